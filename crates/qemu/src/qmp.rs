//! A small, tolerant client of the QEMU Machine Protocol (QMP).
//!
//! ```text
//!  Qmp (clones) ── bounded queue ──▶ writer task ──▶ socket
//!      ▲  ▲                                            │
//!      │  └── replies by id ◀── reader task ◀───────────┘
//!      └───── events (broadcast, bounded) ◀──┘
//! ```
//!
//! - Calls may overlap; each carries an id. A call that is dropped or times out harms no other.
//! - Unknown events and unknown fields are passed on or ignored, never an error.
//! - When QEMU closes the socket every waiting call ends with [`QmpError::Closed`], and so do the
//!   event receivers.
//! - Events that precede a reply on the wire are delivered before that reply.
//! - QEMU serves one client per monitor socket; the socket is closed when the last clone is dropped.
//!
//! Protocol: QEMU's `docs/interop/qmp-spec`.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::AbortHandle;

/// Longest wait for the answer to one command.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for QEMU's greeting. A monitor that another client holds accepts and stays silent.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest message taken from QEMU; its schema, the longest there is, has about 200 KiB.
const MESSAGE_BYTES_MAX: u64 = 4 << 20;
/// Commands that wait to be written.
const COMMANDS_QUEUED_MAX: usize = 64;
/// Events kept for a receiver that lags; older ones are lost to it.
const EVENTS_KEPT_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("cannot connect to QEMU's monitor at {}: is its process running?", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error(
        "QEMU's monitor at {} stayed silent: another client holds it, or QEMU hangs; close the other client or look at the process",
        path.display()
    )]
    Silent { path: PathBuf },
    #[error("QEMU closed its monitor ({why}): its process has ended or is ending, its log says why")]
    Closed { why: String },
    #[error("QEMU did not answer {command} within {} s: its process hangs or its host is overloaded", CALL_TIMEOUT.as_secs())]
    Timeout { command: String },
    /// QEMU understood and refused.
    #[error("QEMU refused {command}: {desc}")]
    Command { command: String, class: String, desc: String },
    #[error("QEMU's answer to {command} is not understood ({problem}): this version of QEMU may be unsupported")]
    Protocol { command: String, problem: String },
}

/// Something QEMU tells on its own account.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    pub name: String,
    /// `Null` when the event carries nothing.
    pub data: Value,
    /// When it happened, by the clock of QEMU's host, to the microsecond.
    pub at: SystemTime,
}

/// The version that QEMU's greeting or `--version` tells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct QemuVersion {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A connection to one QEMU. Clones share it.
#[derive(Clone)]
pub struct Qmp {
    shared: Arc<Shared>,
}

struct Shared {
    commands: mpsc::Sender<Vec<u8>>,
    pending: Arc<Mutex<Pending>>,
    next_id: AtomicU64,
    /// Weak: the reader owns the channel, so that receivers see its end.
    events: broadcast::WeakSender<QmpEvent>,
    closed: watch::Receiver<bool>,
    version: QemuVersion,
    peer_pid: Option<u32>,
    tasks: [AbortHandle; 2],
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl fmt::Debug for Qmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qmp(QEMU {})", self.shared.version)
    }
}

impl Qmp {
    /// Connects and negotiates. One try: QEMU listens from before [`crate::process::launch`] returns.
    pub async fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream =
            UnixStream::connect(path).await.map_err(|source| QmpError::Connect { path: path.to_owned(), source })?;
        let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let peer_pid = peer.and_then(|pid| u32::try_from(pid).ok());
        let (read, write) = stream.into_split();
        let mut lines = Lines { reader: BufReader::new(read), line: Vec::new() };
        let greeting = tokio::time::timeout(GREETING_TIMEOUT, lines.next())
            .await
            .map_err(|_| QmpError::Silent { path: path.to_owned() })?
            .map_err(|why| QmpError::Closed { why })?;
        let version = Greeting::version(greeting)?;

        let pending = Arc::new(Mutex::new(Pending::default()));
        let (events, _) = broadcast::channel(EVENTS_KEPT_MAX);
        let (commands, queue) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let (closing, closed) = watch::channel(false);
        let weak_events = events.downgrade();
        let reader = tokio::spawn(read_all(lines, Arc::clone(&pending), events, closing));
        let writer = tokio::spawn(write_all(write, queue));
        let tasks = [reader.abort_handle(), writer.abort_handle()];
        let next_id = AtomicU64::new(1);
        let shared = Shared { commands, pending, next_id, events: weak_events, closed, version, peer_pid, tasks };
        let qmp = Self { shared: Arc::new(shared) };
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Runs one command. `arguments` is an object, or `Null` for none.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(CALL_TIMEOUT, command, arguments).await
    }

    async fn execute_within(&self, limit: Duration, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let mut message = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(b'\n');

        let (answer, answered) = oneshot::channel();
        self.pending().add(id, answer)?;
        // Forgets the call when this future is dropped, answered or not.
        let _call = PendingCall { qmp: self, id };
        let exchange = async {
            // The writer ends only with the connection; the reader then fails the call below.
            let _ = self.shared.commands.send(bytes).await;
            answered.await
        };
        match tokio::time::timeout(limit, exchange).await {
            Err(_) => Err(QmpError::Timeout { command: command.to_owned() }),
            Ok(Err(_)) => Err(self.pending().closed_error()),
            Ok(Ok(Answer::Return(value))) => Ok(value),
            Ok(Ok(Answer::Error { class, desc })) => {
                Err(QmpError::Command { command: command.to_owned(), class, desc })
            }
        }
    }

    /// Runs one command and reads its answer as `T`.
    pub async fn query<T: DeserializeOwned>(&self, command: &str, arguments: Value) -> Result<T, QmpError> {
        let value = self.execute(command, arguments).await?;
        serde_json::from_value(value)
            .map_err(|e| QmpError::Protocol { command: command.to_owned(), problem: e.to_string() })
    }

    /// Events from now on. The receiver ends when the connection does.
    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        match self.shared.events.upgrade() {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    /// Returns once QEMU has closed the connection.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.clone();
        // An error means that the reader is gone, which is the same.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    pub fn is_closed(&self) -> bool {
        self.pending().closed.is_some()
    }

    pub fn version(&self) -> &QemuVersion {
        &self.shared.version
    }

    /// The process that listens on the socket, as the kernel knows it.
    pub fn peer_pid(&self) -> Option<u32> {
        self.shared.peer_pid
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.shared.pending)
    }
}

/// Calls that wait for an answer. Bounded by its callers: each waits at most [`CALL_TIMEOUT`].
#[derive(Default)]
struct Pending {
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    /// Why the connection ended.
    closed: Option<String>,
}

enum Answer {
    Return(Value),
    Error { class: String, desc: String },
}

impl Pending {
    fn add(&mut self, id: u64, answer: oneshot::Sender<Answer>) -> Result<(), QmpError> {
        if self.closed.is_some() {
            return Err(self.closed_error());
        }
        self.calls.insert(id, answer);
        Ok(())
    }

    fn closed_error(&self) -> QmpError {
        QmpError::Closed { why: self.closed.clone().unwrap_or_else(|| "the connection is gone".to_owned()) }
    }
}

struct PendingCall<'a> {
    qmp: &'a Qmp,
    id: u64,
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        self.qmp.pending().calls.remove(&self.id);
    }
}

/// A panic while the lock is held cannot leave the map half-changed.
fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Deserialize)]
struct Greeting {
    version: GreetingVersion,
}

#[derive(Deserialize)]
struct GreetingVersion {
    qemu: QemuVersion,
}

impl Greeting {
    fn version(mut message: Value) -> Result<QemuVersion, QmpError> {
        serde_json::from_value::<Self>(message["QMP"].take())
            .map(|greeting| greeting.version.qemu)
            .map_err(|e| QmpError::Protocol { command: "the connection".to_owned(), problem: e.to_string() })
    }
}

struct Lines {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Lines {
    /// The next message, or why there will be none. What is no message is skipped: only QEMU closes a
    /// connection, so that its end says something about QEMU.
    async fn next(&mut self) -> Result<Value, String> {
        loop {
            match self.next_line().await? {
                None => tracing::warn!("skipped a message of QEMU with more than {MESSAGE_BYTES_MAX} bytes"),
                Some(line) => match serde_json::from_slice(line) {
                    Ok(message) => return Ok(message),
                    Err(error) => tracing::warn!(%error, "skipped a message of QEMU that is not JSON"),
                },
            }
        }
    }

    /// `None`: it was too long and is gone.
    async fn next_line(&mut self) -> Result<Option<&[u8]>, String> {
        let mut too_long = false;
        loop {
            self.line.clear();
            let limited = &mut (&mut self.reader).take(MESSAGE_BYTES_MAX);
            match limited.read_until(b'\n', &mut self.line).await {
                Err(e) => return Err(e.to_string()),
                Ok(0) => return Err("end of stream".to_owned()),
                Ok(_) if self.line.last() == Some(&b'\n') => return Ok((!too_long).then_some(&self.line)),
                // Also the last bytes before the end, which then shows in the next round.
                Ok(_) => too_long = true,
            }
        }
    }
}

async fn read_all(
    mut lines: Lines,
    pending: Arc<Mutex<Pending>>,
    events: broadcast::Sender<QmpEvent>,
    closing: watch::Sender<bool>,
) {
    let why = loop {
        match lines.next().await {
            Err(why) => break why,
            Ok(message) => dispatch(message, &pending, &events),
        }
    };
    tracing::debug!(%why, "monitor closed");
    let mut pending = lock(&pending);
    pending.closed = Some(why);
    // Dropping the senders ends the waiting calls.
    pending.calls.clear();
    drop(pending);
    closing.send_replace(true);
}

fn dispatch(mut message: Value, pending: &Mutex<Pending>, events: &broadcast::Sender<QmpEvent>) {
    if let Some(name) = message["event"].as_str() {
        let event =
            QmpEvent { name: name.to_owned(), at: event_time(&message["timestamp"]), data: message["data"].take() };
        tracing::trace!(name = %event.name, data = %event.data, "event");
        // An error means that nobody listens.
        let _ = events.send(event);
        return;
    }
    // No id: QEMU could not read a command. Ours are well-formed; the caller times out.
    let Some(id) = message["id"].as_u64() else {
        tracing::warn!(%message, "QEMU sent an answer to nothing");
        return;
    };
    let answer = match message.get_mut("return") {
        Some(value) => Answer::Return(value.take()),
        None => Answer::Error {
            class: message["error"]["class"].as_str().unwrap_or("GenericError").to_owned(),
            desc: message["error"]["desc"].as_str().unwrap_or("no reason given").to_owned(),
        },
    };
    if let Some(call) = lock(pending).calls.remove(&id) {
        // An error means that the caller went away.
        let _ = call.send(answer);
    }
}

/// QEMU gives -1 where it could not read the clock.
fn event_time(timestamp: &Value) -> SystemTime {
    let part = |name: &str| timestamp[name].as_u64();
    match (part("seconds"), part("microseconds")) {
        (Some(seconds), Some(micros)) => {
            UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros.min(999_999))
        }
        _ => SystemTime::now(),
    }
}

async fn write_all(mut socket: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = queue.recv().await {
        if let Err(error) = socket.write_all(&bytes).await {
            // The reader sees the end of the same socket and fails the callers.
            tracing::debug!(%error, "cannot write to the monitor");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_command_without_an_answer_times_out_and_the_next_one_works() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let greeting = json!({ "QMP": { "version": { "qemu": { "major": 7, "minor": 2, "micro": 0 } } } });
            stream.write_all(format!("{greeting}\n").as_bytes()).await.unwrap();
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            while let Some(line) = lines.next_line().await.unwrap() {
                let message: Value = serde_json::from_str(&line).unwrap();
                if message["execute"] != "slow" {
                    let answer = json!({ "return": message["execute"], "id": message["id"] });
                    write.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
                }
            }
        });
        let qmp = Qmp::connect(&path).await.unwrap();
        let slow = qmp.execute_within(Duration::from_millis(1), "slow", Value::Null).await.unwrap_err();
        assert!(matches!(slow, QmpError::Timeout { ref command } if command == "slow"), "{slow}");
        assert!(qmp.pending().calls.is_empty(), "the call is forgotten");
        assert_eq!(qmp.execute("next", Value::Null).await.unwrap(), "next");
        drop(qmp);
        server.await.unwrap();
    }
}
