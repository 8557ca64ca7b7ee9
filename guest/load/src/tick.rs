//! A numbered line ten times a second, so that a receiver can tell that the vm runs, once, and since when.
//!
//! The number rises by one with each line of one boot. Seeing it twice or going back means that the
//! vm ran in two places; another boot id means that it was started afresh.

use crate::stats::{Shared, json_text};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

const PERIOD: Duration = Duration::from_millis(100);

fn line(name: &str, boot_id: &str, seq: u64, errors: u64) -> String {
    format!("{{\"name\":\"{}\",\"boot_id\":\"{boot_id}\",\"seq\":{seq},\"errors\":{errors}}}\n", json_text(name))
}

pub fn run(shared: &Shared, sink: SocketAddr) {
    let socket = match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) {
        Ok(socket) => socket,
        Err(problem) => {
            eprintln!("guest-load: no ticks, can't open a UDP socket: {problem}");
            return;
        }
    };
    let boot_id = shared.boot_id();
    loop {
        let seq = shared.ticks.fetch_add(1, Relaxed) + 1;
        let line = line(&shared.name, &boot_id, seq, shared.errors.load(Relaxed));
        // A tick that can't be sent now is one the receiver misses, which is what it is there to notice.
        let _ = socket.send_to(line.as_bytes(), sink);
        thread::sleep(PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_one_json_line() {
        assert_eq!(
            line("web-1", "00000000000000ab", 3, 0),
            "{\"name\":\"web-1\",\"boot_id\":\"00000000000000ab\",\"seq\":3,\"errors\":0}\n"
        );
    }
}
