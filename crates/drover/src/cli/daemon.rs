//! `drover server` and `drover agent`: configuration, log, runtime, and the signals that end them.

use super::Failure;
use anyhow::Context as _;
use clap::Args;
use std::path::PathBuf;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Threads of blocking file work; both daemons do little of it.
const BLOCKING_THREADS_MAX: usize = 4;

const LOG_HELP: &str = "\
Logs go to standard error. DROVER_LOG sets what is logged: a level (error, warn, info, debug) or a filter \
such as drover_agent=debug,info.
SIGTERM and SIGINT end it in good order; no vm stops.";

#[derive(Debug, Args)]
#[command(after_help = LOG_HELP)]
pub struct Server {
    /// Its configuration (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = LOG_HELP)]
pub struct Agent {
    /// Its configuration (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Server {
    pub fn run(self) -> Result<(), Failure> {
        start_log()?;
        let config = drover_server::config::ServerConfig::load(&self.config).map_err(|e| usage(&e))?;
        let runtime = runtime(Threads::Two)?;
        runtime.block_on(async { drover_server::run(config, shutdown()?).await })?;
        Ok(())
    }
}

impl Agent {
    pub fn run(self) -> Result<(), Failure> {
        start_log()?;
        let config = drover_agent::AgentConfig::load(&self.config).map_err(|e| usage(&e))?;
        let runtime = runtime(Threads::Two)?;
        runtime.block_on(async { drover_agent::run(config, shutdown()?).await })?;
        Ok(())
    }
}

/// A configuration that can't be used is bad usage; its error says which key and what to do.
fn usage(error: &(dyn std::error::Error + 'static)) -> Failure {
    match error.source() {
        Some(cause) => Failure::Usage(format!("{error}: {cause}")),
        None => Failure::Usage(error.to_string()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    One,
    /// So that one slow piece of work never stands in the way of a switch-over.
    Two,
}

pub fn runtime(threads: Threads) -> Result<Runtime, Failure> {
    // Every TLS configuration of ours names its provider; this is for those that libraries make.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = match threads {
        Threads::One => Builder::new_current_thread(),
        Threads::Two => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(2);
            builder
        }
    };
    let runtime = builder.enable_all().max_blocking_threads(BLOCKING_THREADS_MAX).build();
    Ok(runtime.context("the async runtime can't be started")?)
}

fn start_log() -> Result<(), Failure> {
    let filter = match std::env::var("DROVER_LOG") {
        Ok(filter) => EnvFilter::try_new(&filter)
            .map_err(|error| Failure::Usage(format!("DROVER_LOG={filter:?} is not a log filter: {error}")))?,
        Err(_) => EnvFilter::new("info"),
    };
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
    Ok(())
}

/// Resolves at the first SIGTERM or SIGINT. The handlers are in place when this returns.
fn shutdown() -> anyhow::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be handled")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
            _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
        }
    })
}
