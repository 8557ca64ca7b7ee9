//! Waiting for something to become true, with a bound, and saying how it goes meanwhile.

use super::Failure;
use clap::Args;
use drover_api::client::ApiError;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;
use tokio::time::Instant;

/// Time between two looks.
const POLL: Duration = Duration::from_millis(400);
const BAR_STEPS: u64 = 1000;

#[derive(Debug, Clone, Args)]
pub struct Timeout {
    /// How long to wait at most, e.g. 90s or 10m; exit code 7 when it is over
    #[arg(long, value_name = "SPAN", default_value = "5m", value_parser = super::values::span)]
    pub timeout: Duration,
}

#[derive(Debug, Clone, Args)]
pub struct Wait {
    /// Wait until it is done
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub limit: Timeout,
}

/// One look at what is waited for.
#[derive(Debug, Clone, PartialEq)]
pub enum Look<T> {
    Done(T),
    Going {
        /// One line for people.
        line: String,
        /// 0 to 1, where that can be said.
        share: Option<f64>,
    },
}

impl<T> Look<T> {
    pub fn going(line: impl Into<String>) -> Self {
        Self::Going { line: line.into(), share: None }
    }
}

/// Looks again and again. A server that does not answer is waited for too: it may be restarting.
///
/// `what` begins the message when time runs out; `command` is where to look afterwards.
pub async fn until<T>(
    limit: &Timeout,
    what: &str,
    command: &str,
    mut look: impl AsyncFnMut() -> Result<Look<T>, Failure>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + limit.timeout;
    let mut progress = Progress::new(std::io::stderr().is_terminal());
    loop {
        match look().await {
            Ok(Look::Done(value)) => {
                progress.end();
                return Ok(value);
            }
            Ok(Look::Going { line, share }) => progress.show(&line, share),
            Err(Failure::Api(error @ (ApiError::Unreachable { .. } | ApiError::TimedOut { .. }))) => {
                progress.show(&format!("waiting for the server: {error}"), None);
            }
            Err(failure) => {
                progress.end();
                return Err(failure);
            }
        }
        if Instant::now() + POLL > deadline {
            progress.end();
            return Err(Failure::TimedOut { what: what.to_owned(), after: limit.timeout, look: command.to_owned() });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A bar when a terminal watches, plain lines when not. Always on standard error.
enum Progress {
    Bar(ProgressBar),
    /// The last line said, so that it is not said again.
    Lines(String),
}

impl Progress {
    fn new(terminal: bool) -> Self {
        if !terminal {
            return Self::Lines(String::new());
        }
        let bar = ProgressBar::new(BAR_STEPS);
        bar.set_style(without_share());
        Self::Bar(bar)
    }

    fn show(&mut self, line: &str, share: Option<f64>) {
        match self {
            Self::Bar(bar) => {
                match share {
                    Some(share) => {
                        bar.set_style(with_share());
                        bar.set_position((share.clamp(0.0, 1.0) * BAR_STEPS as f64) as u64);
                    }
                    None => bar.set_style(without_share()),
                }
                bar.set_message(line.to_owned());
                bar.tick();
            }
            Self::Lines(last) if last != line => {
                eprintln!("{line}");
                line.clone_into(last);
            }
            Self::Lines(_) => {}
        }
    }

    fn end(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn with_share() -> ProgressStyle {
    ProgressStyle::with_template("{bar:30} {percent:>3} % {elapsed:>4} {wide_msg}").expect("the template is right")
}

fn without_share() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {elapsed:>4} {wide_msg}").expect("the template is right")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(ms: u64) -> Timeout {
        Timeout { timeout: Duration::from_millis(ms) }
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_when_it_is_done_and_survives_a_server_that_restarts() {
        let mut looks = 0;
        let done = until(&limit(60_000), "it", "x", async || {
            looks += 1;
            match looks {
                1 => Ok(Look::going("starting")),
                2 => Err(Failure::Api(ApiError::TimedOut { server: "s".to_owned(), after: POLL })),
                _ => Ok(Look::Done(looks)),
            }
        })
        .await;
        assert_eq!(done.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_is_bounded_and_a_failure_ends_it_at_once() {
        let late = until(&limit(1500), "the drain", "drover host show h1", async || Ok(Look::<()>::going("..."))).await;
        let failure = late.unwrap_err();
        assert_eq!(failure.exit() as u8, 7);
        assert!(failure.line().contains("`drover host show h1`"), "{}", failure.line());
        let failed =
            until(&limit(1500), "it", "x", async || Err::<Look<()>, _>(Failure::Failed("no".to_owned()))).await;
        assert_eq!(failed.unwrap_err().line(), "no");
    }
}
