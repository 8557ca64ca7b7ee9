//! Where clients are: a thread inside a network namespace with a runtime of its own. Everything that is spawned on it
//! has its sockets there.

use anyhow::{Context, Result, bail};
use drover_lab::netns::Namespace;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Clients are what is measured with: they come before the guests for the processor, which a real client, on a machine
/// of its own, does, too.
const NICENESS: &str = "-15";

#[derive(Debug)]
pub struct Site {
    handle: Handle,
    /// Dropping it ends the thread and all that was spawned.
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Site {
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let (end, ended) = oneshot::channel::<()>();
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let namespace = namespace.clone();
        let thread = std::thread::Builder::new().name("clients".to_owned()).spawn(move || {
            let begun = namespace.enter().and_then(|()| first_served()).and_then(|()| {
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("can't start tokio")
            });
            match begun {
                Ok(runtime) => {
                    // Nobody listens any more when the start was given up.
                    let _ = ready.send(Ok(runtime.handle().clone()));
                    // An error is the other end's drop, which is how it is told.
                    let _ = runtime.block_on(ended);
                }
                Err(problem) => drop(ready.send(Err(problem))),
            }
        });
        let thread = thread.context("can't start the clients' thread")?;
        let handle = started.recv().context("the clients' thread ended at once")??;
        Ok(Self { handle, end: Some(end), thread: Some(thread) })
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Does this at the site, and waits for it here.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        self.handle.spawn(work).await.context("what was to be done at the clients' site broke off")?
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was told by its task.
            let _ = thread.join();
        }
    }
}

/// Puts the calling thread first.
fn first_served() -> Result<()> {
    let thread = nix::unistd::gettid().to_string();
    let status = Command::new("renice").args(["-n", NICENESS, "-p", &thread]).stdout(Stdio::null()).status();
    if !status.context("can't run renice: install Debian's bsdutils")?.success() {
        bail!("renice {NICENESS} was refused: run as root");
    }
    Ok(())
}
