//! The terminal of `drover vm console`: keys go to the guest as they are, Ctrl-] leaves.

use super::Failure;
use super::vm::VmRef;
use drover_api::client::{Client, ConsoleOutput};
use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use std::io::{IsTerminal, Read, Write};
use tokio::sync::mpsc;

/// Ctrl-], as telnet has it: guests rarely want it.
const LEAVE: u8 = 0x1d;
const READ_BYTES: usize = 1024;
/// Reads of the keyboard waiting for the network.
const READS_WAITING_MAX: usize = 16;

pub async fn run(client: &Client, vm: &VmRef) -> Result<(), Failure> {
    let mut console = client.console(&vm.vm, &vm.query).await?;
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        eprintln!("connected to {}; Ctrl-] leaves", vm.vm);
    }
    let raw = terminal.then(RawMode::enter).transpose()?;
    let mut keys = read_keyboard(terminal);
    let mut typing = true;
    let why = loop {
        tokio::select! {
            typed = keys.recv(), if typing => match typed {
                Some(Typed::Bytes(bytes)) => console.writer.write(&bytes).await?,
                Some(Typed::Leave) => break String::new(),
                // Input that was piped in has ended; what the guest says is still wanted.
                None => typing = false,
            },
            output = console.reader.read() => match output? {
                ConsoleOutput::Bytes(bytes) => print(&bytes)?,
                ConsoleOutput::Closed(why) => break why,
            },
        }
    };
    drop(raw);
    eprintln!("\nconsole closed{}{why}", if why.is_empty() { "" } else { ": " });
    // The server may have closed it first.
    let _ = console.writer.close().await;
    Ok(())
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::Terminal)
}

/// Gives the terminal back when it goes, also on errors.
struct RawMode;

impl RawMode {
    fn enter() -> Result<Self, Failure> {
        enable_raw_mode().map_err(Failure::Terminal)?;
        Ok(Self)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing better can be done about a terminal that is gone.
        let _ = disable_raw_mode();
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Bytes(Vec<u8>),
    Leave,
}

/// Reading the keyboard blocks, so it has a thread; it ends with the process.
fn read_keyboard(terminal: bool) -> mpsc::Receiver<Typed> {
    let (send, receive) = mpsc::channel(READS_WAITING_MAX);
    std::thread::spawn(move || {
        let mut buffer = [0; READ_BYTES];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut buffer) {
            for typed in typed(&buffer[..count], terminal) {
                if send.blocking_send(typed).is_err() {
                    return;
                }
            }
        }
    });
    receive
}

/// What was typed before Ctrl-], and whether it was. Piped bytes have no meaning of their own.
fn typed(bytes: &[u8], terminal: bool) -> Vec<Typed> {
    match bytes.iter().position(|byte| terminal && *byte == LEAVE) {
        Some(0) => vec![Typed::Leave],
        Some(at) => vec![Typed::Bytes(bytes[..at].to_vec()), Typed::Leave],
        None => vec![Typed::Bytes(bytes.to_vec())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bracket_leaves_but_only_from_a_keyboard() {
        assert_eq!(typed(b"ls\x1dx", true), [Typed::Bytes(b"ls".to_vec()), Typed::Leave]);
        assert_eq!(typed(b"\x1d", true), [Typed::Leave]);
        assert_eq!(typed(b"ls\x1dx", false), [Typed::Bytes(b"ls\x1dx".to_vec())]);
    }
}
