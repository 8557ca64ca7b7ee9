//! Powers the guest off when its power button is pressed.
//!
//! The kernel reports the ACPI button as a key on an input device; there is no other program in the
//! guest that would act on it.

use std::fs::File;
use std::io::Read;
use std::process::Command;
use std::thread;

/// The devices that can be the button; the guest has no others.
const DEVICES_MAX: usize = 4;
const BUSYBOX: &str = "/bin/busybox";

/// `struct input_event` of a 64-bit kernel (linux/input.h): 16 bytes of time, then type, code, value.
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

fn is_power_button(event: &[u8; EVENT_BYTES]) -> bool {
    let kind = u16::from_ne_bytes([event[16], event[17]]);
    let code = u16::from_ne_bytes([event[18], event[19]]);
    let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
    (kind, code, value) == (EV_KEY, KEY_POWER, PRESSED)
}

/// Starts watching every input device there is. None is fine: then the guest is only ever stopped by force.
pub fn watch() {
    for number in 0..DEVICES_MAX {
        if let Ok(device) = File::open(format!("/dev/input/event{number}")) {
            thread::spawn(move || wait_for_button(device));
        }
    }
}

fn wait_for_button(mut device: File) {
    let mut event = [0; EVENT_BYTES];
    while device.read_exact(&mut event).is_ok() {
        if is_power_button(&event) {
            println!("guest-load: power button, off");
            // Nothing is mounted that would have to be written back.
            if let Err(problem) = Command::new(BUSYBOX).args(["poweroff", "-f"]).status() {
                eprintln!("guest-load: can't power off: {problem}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> [u8; EVENT_BYTES] {
        let mut event = [0; EVENT_BYTES];
        event[16..18].copy_from_slice(&kind.to_ne_bytes());
        event[18..20].copy_from_slice(&code.to_ne_bytes());
        event[20..24].copy_from_slice(&value.to_ne_bytes());
        event
    }

    #[test]
    fn only_pressing_the_power_key_counts() {
        assert!(is_power_button(&event(EV_KEY, KEY_POWER, PRESSED)));
        assert!(!is_power_button(&event(EV_KEY, KEY_POWER, 0)));
        assert!(!is_power_button(&event(EV_KEY, 30, PRESSED)));
        assert!(!is_power_button(&event(0, 0, 0)));
    }
}
