//! Serial consoles: a vm's serial socket on one side, frames to the server on the other.
//!
//! ```text
//! ConsoleOpen ──▶ [history from the serial log] ──▶ output ⇄ input ──▶ ConsoleClosed
//! ```
//!
//! One session per vm: QEMU serves one client of a serial socket, and a new session takes over. Sessions belong to the
//! connection they came by and end with it.

use crate::config::Limits;
use crate::vms::log;
use crate::vms::record::VmDir;
use drover_api::agent::{CONSOLE_CHUNK_MAX, ConsoleBytes, FromAgent};
use drover_model::VmId;
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// The sessions of one connection.
pub struct Consoles {
    sessions: BTreeMap<u64, Session>,
    frames: mpsc::Sender<FromAgent>,
    limits: Limits,
}

struct Session {
    vm: VmId,
    input: mpsc::Sender<Vec<u8>>,
    task: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Consoles {
    /// `frames` leads to the server. A console waits when it is full, so a guest that floods its console slows itself.
    pub fn new(frames: mpsc::Sender<FromAgent>, limits: Limits) -> Self {
        Self { sessions: BTreeMap::new(), frames, limits }
    }

    /// `dir` is where the vm's files are, if it has a process.
    pub fn open(&mut self, session: u64, vm: VmId, dir: Option<VmDir>) {
        self.sessions.retain(|_, session| !session.task.is_finished());
        let taken_over: Vec<u64> =
            self.sessions.iter().filter(|(_, other)| other.vm == vm).map(|(number, _)| *number).collect();
        for other in taken_over {
            self.sessions.remove(&other);
            self.closed(other, "another session took the console over");
        }
        let Some(dir) = dir else {
            return self.closed(session, "the vm does not run on this host");
        };
        if self.sessions.len() >= self.limits.consoles_max {
            return self.closed(session, "this host serves no more consoles at once (limits.consoles_max)");
        }
        let (input, inputs) = mpsc::channel(self.limits.console_input_max);
        let frames = self.frames.clone();
        let history_bytes = self.limits.console_history_bytes;
        let task = tokio::spawn(async move {
            let why = serve(session, &dir, history_bytes, inputs, &frames).await;
            let _ = frames.send(FromAgent::ConsoleClosed { session, why }).await;
        });
        self.sessions.insert(session, Session { vm, input, task: task.abort_handle() });
    }

    pub fn input(&self, session: u64, data: ConsoleBytes) {
        if let Some(session) = self.sessions.get(&session)
            && session.input.try_send(data.0).is_err()
        {
            tracing::debug!(vm = %session.vm, "console input dropped: the guest does not take it");
        }
    }

    pub fn close(&mut self, session: u64) {
        self.sessions.remove(&session);
    }

    fn closed(&self, session: u64, why: &str) {
        // A full queue means a connection about to end, which closes every session anyway.
        let _ = self.frames.try_send(FromAgent::ConsoleClosed { session, why: why.to_owned() });
    }
}

/// Until either side ends; gives the reason.
async fn serve(
    session: u64,
    dir: &VmDir,
    history_bytes: u64,
    mut inputs: mpsc::Receiver<Vec<u8>>,
    frames: &mpsc::Sender<FromAgent>,
) -> String {
    let output = |data: &[u8]| FromAgent::ConsoleOutput { session, data: ConsoleBytes(data.to_vec()) };
    // Connected before the history is read: a byte may come twice, none is missing.
    let mut stream = match UnixStream::connect(dir.serial_socket()).await {
        Ok(stream) => stream,
        Err(error) => return format!("the serial console can't be reached: {error}"),
    };
    let history = log::tail(&dir.serial_log(), history_bytes).unwrap_or_default();
    for chunk in history.chunks(CONSOLE_CHUNK_MAX) {
        if frames.send(output(chunk)).await.is_err() {
            return "the connection to the server ended".to_owned();
        }
    }
    let (mut read, mut write) = stream.split();
    let outputs = async {
        let mut buffer = vec![0; CONSOLE_CHUNK_MAX];
        loop {
            match read.read(&mut buffer).await {
                Ok(0) => return "the vm ended or another client took the console".to_owned(),
                Ok(count) if frames.send(output(&buffer[..count])).await.is_ok() => {}
                Ok(_) => return "the connection to the server ended".to_owned(),
                Err(error) => return format!("the serial console broke: {error}"),
            }
        }
    };
    let inputs = async {
        while let Some(data) = inputs.recv().await {
            if let Err(error) = write.write_all(&data).await {
                return format!("the serial console broke: {error}");
            }
        }
        "closed".to_owned()
    };
    tokio::select! {
        why = outputs => why,
        why = inputs => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Duration;
    use tokio::net::UnixListener;
    use tokio::time::timeout;

    async fn next(frames: &mut mpsc::Receiver<FromAgent>) -> FromAgent {
        timeout(Duration::from_secs(10), frames.recv()).await.expect("a frame within 10 s").expect("a frame")
    }

    fn vm_dir(state: &Path, vm: &VmId) -> VmDir {
        std::fs::create_dir_all(state.join("vms").join(vm.as_str())).unwrap();
        VmDir::new(state, vm)
    }

    #[tokio::test]
    async fn a_console_shows_the_past_then_carries_both_ways_and_a_new_session_takes_over() {
        let state = tempfile::tempdir().unwrap();
        let vm: VmId = "vm-a".parse().unwrap();
        let dir = vm_dir(state.path(), &vm);
        std::fs::write(dir.serial_log(), "booted\n").unwrap();
        let guest = UnixListener::bind(dir.serial_socket()).unwrap();
        let (sender, mut frames) = mpsc::channel(16);
        let mut consoles = Consoles::new(sender, Limits::default());

        consoles.open(1, vm.clone(), Some(dir.clone()));
        let (mut serial, _) = guest.accept().await.unwrap();
        let output = |session, text: &str| FromAgent::ConsoleOutput { session, data: ConsoleBytes(text.into()) };
        assert_eq!(next(&mut frames).await, output(1, "booted\n"));
        serial.write_all(b"login: ").await.unwrap();
        assert_eq!(next(&mut frames).await, output(1, "login: "));
        consoles.input(1, ConsoleBytes(b"root\n".to_vec()));
        let mut typed = [0; 5];
        serial.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"root\n");

        consoles.open(2, vm, Some(dir));
        let FromAgent::ConsoleClosed { session: 1, why } = next(&mut frames).await else { panic!("not closed") };
        assert!(why.contains("took the console over"), "{why}");
        assert_eq!(next(&mut frames).await, output(2, "booted\n"));
    }

    #[tokio::test]
    async fn a_vm_that_is_not_here_has_no_console() {
        let (sender, mut frames) = mpsc::channel(16);
        let mut consoles = Consoles::new(sender, Limits::default());
        consoles.open(7, "vm-a".parse().unwrap(), None);
        assert!(matches!(next(&mut frames).await, FromAgent::ConsoleClosed { session: 7, .. }));
    }
}
