//! Switching hosts on and off. One worker per host, so that at most one operation runs on a host at a time.
//!
//! The only driver so far runs the operator's own commands; what they print ends up in the error, bounded.

use crate::config::{HostConfig, PowerConfig};
use drover_control::interface::{PowerOp, PowerStatus};
use drover_model::HostId;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Operations waiting for one host; more are refused.
const QUEUE_MAX: usize = 4;
/// What is kept of each stream a command prints.
const OUTPUT_MAX: usize = 4 << 10;
/// What is read and thrown away after that, so that the command is not stopped by a full pipe.
const OUTPUT_READ_MAX: u64 = 16 << 20;

/// A power driver has finished.
#[derive(Debug)]
pub struct PowerResult {
    pub host: HostId,
    pub op: PowerOp,
    pub result: Result<PowerStatus, String>,
}

/// All power drivers of the configuration.
pub struct PowerDrivers {
    queues: BTreeMap<HostId, mpsc::Sender<PowerOp>>,
    results: mpsc::Sender<PowerResult>,
    /// Ends the workers, and with them the commands they run, when the drivers go.
    _workers: JoinSet<()>,
}

impl PowerDrivers {
    pub fn start(hosts: &BTreeMap<HostId, HostConfig>, results: mpsc::Sender<PowerResult>) -> Self {
        let mut workers = JoinSet::new();
        let mut queues = BTreeMap::new();
        for (host, config) in hosts {
            let Some(power) = config.power.clone() else { continue };
            let (sender, queue) = mpsc::channel(QUEUE_MAX);
            queues.insert(host.clone(), sender);
            workers.spawn(work(host.clone(), power, queue, results.clone()));
        }
        Self { queues, results, _workers: workers }
    }

    /// Starts an operation, or queues it behind the one that runs; never waits.
    pub fn ask(&self, host: &HostId, op: PowerOp) {
        let refusal = match self.queues.get(host) {
            None => format!("{host} has no power driver; configure [hosts.{host}.power]"),
            Some(queue) => match queue.try_send(op) {
                Ok(()) => return,
                Err(_) => format!("{host}'s power driver is still busy with {QUEUE_MAX} operations"),
            },
        };
        let result = PowerResult { host: host.clone(), op, result: Err(refusal) };
        // A full channel means the control plane is far behind; it asks again by itself.
        if let Err(error) = self.results.try_send(result) {
            tracing::warn!(%host, %error, "a power driver's refusal was dropped");
        }
    }
}

async fn work(
    host: HostId,
    power: PowerConfig,
    mut queue: mpsc::Receiver<PowerOp>,
    results: mpsc::Sender<PowerResult>,
) {
    while let Some(op) = queue.recv().await {
        let result = perform(&power, op).await;
        match &result {
            Ok(status) => tracing::debug!(%host, ?op, ?status, "power driver"),
            Err(error) => tracing::warn!(%host, ?op, %error, "power driver failed"),
        }
        if results.send(PowerResult { host: host.clone(), op, result }).await.is_err() {
            return;
        }
    }
}

async fn perform(power: &PowerConfig, op: PowerOp) -> Result<PowerStatus, String> {
    let PowerConfig::Command { on, off, status, timeout_s } = power;
    let limit = Duration::from_secs(*timeout_s);
    match op {
        PowerOp::On => run(on, limit).await?.succeeded().map(|()| PowerStatus::On),
        PowerOp::Off => run(off, limit).await?.succeeded().map(|()| PowerStatus::Off),
        PowerOp::Status => {
            let outcome = run(status, limit).await?;
            match outcome.status.code() {
                Some(0) => Ok(PowerStatus::On),
                Some(1) => Ok(PowerStatus::Off),
                _ => Err(outcome.failure("0 means on, 1 means off")),
            }
        }
    }
}

struct Outcome {
    program: String,
    status: std::process::ExitStatus,
    output: String,
}

impl Outcome {
    fn succeeded(self) -> Result<(), String> {
        if self.status.success() { Ok(()) } else { Err(self.failure("0 means done")) }
    }

    fn failure(&self, meaning: &str) -> String {
        let said = if self.output.is_empty() { "it printed nothing" } else { &self.output };
        format!("{} ended with {} ({meaning}): {said}", self.program, self.status)
    }
}

async fn run(command: &[String], limit: Duration) -> Result<Outcome, String> {
    let (program, arguments) = command.split_first().ok_or("the command is empty")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that what it started ends with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{program} can't be started: {error}"))?;
    let group = child.id();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let finished = tokio::time::timeout(limit, async {
        // The output ends with the command unless it left something running in the background: that
        // must not hold the operation up.
        let collect = async { tokio::join!(head(stdout), head(stderr)) };
        tokio::pin!(collect);
        tokio::select! {
            output = &mut collect => (child.wait().await, output),
            status = child.wait() => {
                let output = tokio::time::timeout(Duration::from_millis(200), &mut collect).await.unwrap_or_default();
                (status, output)
            }
        }
    })
    .await;
    match finished {
        Ok((Ok(status), (stdout, stderr))) => {
            let output = [stderr, stdout].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
            Ok(Outcome { program: program.clone(), status, output })
        }
        Ok((Err(error), _)) => Err(format!("{program} can't be waited for: {error}")),
        Err(_) => {
            if let Some(pid) = group.and_then(|pid| i32::try_from(pid).ok()) {
                // It may have ended this moment; then there is nothing left to end.
                let _gone = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
            Err(format!("{program} did not end within {} s and was killed", limit.as_secs()))
        }
    }
}

/// The first [`OUTPUT_MAX`] bytes of a stream as text, reading on to its end.
async fn head(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(stream) = stream else { return String::new() };
    let mut stream = stream.take(OUTPUT_READ_MAX);
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = OUTPUT_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(status: &[&str], off: &[&str], timeout_s: u64) -> PowerConfig {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        PowerConfig::Command { on: owned(&["/bin/true"]), off: owned(off), status: owned(status), timeout_s }
    }

    #[tokio::test]
    async fn exit_codes_become_states() {
        let on = driver(&["/bin/true"], &["/bin/true"], 10);
        assert_eq!(perform(&on, PowerOp::Status).await, Ok(PowerStatus::On));
        assert_eq!(perform(&on, PowerOp::On).await, Ok(PowerStatus::On));
        assert_eq!(perform(&on, PowerOp::Off).await, Ok(PowerStatus::Off));
        let off = driver(&["/bin/false"], &["/bin/false"], 10);
        assert_eq!(perform(&off, PowerOp::Status).await, Ok(PowerStatus::Off));
        let error = perform(&off, PowerOp::Off).await.unwrap_err();
        assert!(error.contains("/bin/false ended with exit status: 1"), "{error}");
    }

    #[tokio::test]
    async fn what_a_failing_command_prints_is_told_and_bounded() {
        let loud = driver(&["/bin/sh", "-c", "echo no such outlet >&2; exit 3"], &["/bin/true"], 10);
        let error = perform(&loud, PowerOp::Status).await.unwrap_err();
        assert!(error.contains("no such outlet") && error.contains("exit status: 3"), "{error}");
        let flood = driver(&["/bin/sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x; exit 2"], &["/bin/true"], 30);
        let error = perform(&flood, PowerOp::Status).await.unwrap_err();
        assert!(error.len() < OUTPUT_MAX + 200, "{} bytes", error.len());
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed() {
        let slow = driver(&["/bin/true"], &["/bin/sleep", "1000"], 1);
        let error = perform(&slow, PowerOp::Off).await.unwrap_err();
        assert!(error.contains("did not end within 1 s"), "{error}");
    }

    #[tokio::test]
    async fn arguments_are_never_a_shell() {
        let odd = driver(&["/usr/bin/test", "$(true)", "=", "$(true)"], &["/bin/true"], 10);
        assert_eq!(perform(&odd, PowerOp::Status).await, Ok(PowerStatus::On));
    }

    #[tokio::test]
    async fn a_host_without_a_driver_is_answered_by_name() {
        let (sender, mut results) = mpsc::channel(8);
        let drivers = PowerDrivers::start(&BTreeMap::new(), sender);
        drivers.ask(&"h7".parse().unwrap(), PowerOp::On);
        let result = results.recv().await.unwrap();
        assert!(result.result.unwrap_err().contains("h7 has no power driver"));
    }

    #[tokio::test]
    async fn operations_of_one_host_run_one_after_another() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("lock");
        // mkdir fails if another operation is inside at the same time.
        let script = format!("mkdir {0:?} && sleep 0.05 && rmdir {0:?}", lock);
        let config = HostConfig { power: Some(driver(&["/bin/sh", "-c", &script], &["/bin/true"], 30)) };
        let (sender, mut results) = mpsc::channel(8);
        let host: HostId = "h1".parse().unwrap();
        let drivers = PowerDrivers::start(&BTreeMap::from([(host.clone(), config)]), sender);
        for _ in 0..3 {
            drivers.ask(&host, PowerOp::Status);
        }
        for _ in 0..3 {
            assert_eq!(results.recv().await.unwrap().result, Ok(PowerStatus::On));
        }
    }
}
