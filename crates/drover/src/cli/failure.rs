//! What went wrong, in one line with what to do, and the exit code that says so to scripts.

use crate::top::live::LiveError;
use drover_api::client::{ApiError, BadConfig};
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

/// Listed in `drover --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Ok = 0,
    /// Refused by the server for another reason than those below, or failed on this machine.
    Refused = 1,
    Usage = 2,
    Unreachable = 3,
    Unauthorized = 4,
    NotFound = 5,
    Conflict = 6,
    TimedOut = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Api(#[from] ApiError),

    #[error(transparent)]
    Screen(#[from] LiveError),

    /// What was typed, or what a file that was named says, makes no sense.
    #[error("{0}")]
    Usage(String),

    #[error("{path} can't be {what}")]
    File {
        path: String,
        what: &'static str,
        #[source]
        source: std::io::Error,
    },

    /// What was waited for went wrong.
    #[error("{0}")]
    Failed(String),

    #[error("{what} took longer than {} s and goes on without being watched: look with `{look}`, or wait longer with --timeout", after.as_secs())]
    TimedOut { what: String, after: Duration, look: String },

    #[error("the terminal can't be used")]
    Terminal(#[source] std::io::Error),

    /// Whoever read the output has closed it. Not an error of ours.
    #[error("the output was closed")]
    OutputClosed,

    #[error(transparent)]
    Daemon(#[from] anyhow::Error),
}

impl Failure {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Api(error) | Self::Screen(LiveError::Api(error)) => api_exit(error),
            Self::Usage(_) => Exit::Usage,
            Self::TimedOut { .. } => Exit::TimedOut,
            Self::OutputClosed => Exit::Ok,
            Self::File { .. }
            | Self::Failed(_)
            | Self::Terminal(_)
            | Self::Screen(LiveError::Terminal(_))
            | Self::Daemon(_) => Exit::Refused,
        }
    }

    /// One line: what happened, its innermost cause, and what to do where the message itself does not say.
    pub fn line(&self) -> String {
        let mut line = match self {
            // The only chain that was made to be read whole.
            Self::Daemon(error) => format!("{error:#}"),
            Self::Api(_)
            | Self::Screen(_)
            | Self::Usage(_)
            | Self::File { .. }
            | Self::Failed(_)
            | Self::TimedOut { .. }
            | Self::Terminal(_)
            | Self::OutputClosed => with_root_cause(self),
        };
        if let Some(hint) = self.hint() {
            line = format!("{line} ({hint})");
        }
        line.replace('\n', " ")
    }

    fn hint(&self) -> Option<&'static str> {
        match self.exit() {
            Exit::Unauthorized if self.status() == Some(401) => {
                Some("the token is read from --token-file; see `drover token ls`")
            }
            Exit::Unauthorized => Some("`drover whoami` shows whose token this is"),
            Exit::Conflict if self.status() == Some(412) => Some("read it again, then repeat the change"),
            _ => None,
        }
    }

    fn status(&self) -> Option<u16> {
        match self {
            Self::Api(error) | Self::Screen(LiveError::Api(error)) => error.status(),
            _ => None,
        }
    }
}

fn api_exit(error: &ApiError) -> Exit {
    match error {
        ApiError::Problem(problem) => match problem.status {
            401 | 403 => Exit::Unauthorized,
            404 => Exit::NotFound,
            409 | 412 => Exit::Conflict,
            _ => Exit::Refused,
        },
        ApiError::Unreachable { .. } | ApiError::Untrusted { .. } | ApiError::TimedOut { .. } => Exit::Unreachable,
        ApiError::Config(BadConfig::Tls(_) | BadConfig::Http(_)) => Exit::Refused,
        ApiError::Config(
            BadConfig::Server { .. }
            | BadConfig::NotEncrypted { .. }
            | BadConfig::NoCa
            | BadConfig::Ca
            | BadConfig::Token,
        ) => Exit::Usage,
        ApiError::TooLong { .. }
        | ApiError::Unexpected { .. }
        | ApiError::ConsoleBroke { .. }
        | ApiError::File { .. } => Exit::Refused,
    }
}

/// The message and, if it differs, the innermost cause; what lies between says the same in other words.
fn with_root_cause(error: &dyn Error) -> String {
    let mut root = error.source();
    while let Some(next) = root.and_then(Error::source) {
        root = Some(next);
    }
    match root.map(ToString::to_string) {
        Some(cause) if !error.to_string().contains(&cause) => format!("{error}: {cause}"),
        _ => error.to_string(),
    }
}

impl From<BadConfig> for Failure {
    fn from(bad: BadConfig) -> Self {
        Self::Api(ApiError::Config(bad))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_api::problem::{Problem, ProblemType};

    #[test]
    fn every_kind_of_failure_has_its_exit_code() {
        let refused = |kind| Failure::Api(ApiError::Problem(Problem::new(kind, "no")));
        let unreachable = ApiError::Unreachable {
            server: "https://h".to_owned(),
            source: Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
        };
        let late = Failure::TimedOut { what: "it".to_owned(), after: Duration::from_secs(1), look: "x".to_owned() };
        for (failure, code) in [
            (refused(ProblemType::Invalid), 1),
            (refused(ProblemType::Internal), 1),
            (Failure::Usage("no".to_owned()), 2),
            (Failure::from(BadConfig::NoCa), 2),
            (Failure::Api(unreachable), 3),
            (refused(ProblemType::Unauthorized), 4),
            (refused(ProblemType::Forbidden), 4),
            (refused(ProblemType::NotFound), 5),
            (refused(ProblemType::Conflict), 6),
            (refused(ProblemType::PreconditionFailed), 6),
            (late, 7),
        ] {
            assert_eq!(failure.exit() as u8, code, "{failure:?}");
        }
    }

    #[test]
    fn an_error_is_one_line_with_its_cause_and_a_hint() {
        let cause = std::io::Error::other("No route to host");
        let source = Box::new(std::io::Error::other(cause));
        let line = Failure::Api(ApiError::Unreachable { server: "https://h:1".to_owned(), source }).line();
        assert!(line.starts_with("no server answers at https://h:1: check"), "{line}");
        assert!(line.ends_with(": No route to host"), "{line}");
        let stale = Failure::Api(ApiError::Problem(Problem::new(ProblemType::PreconditionFailed, "changed\nsince")));
        assert_eq!(stale.line(), "changed since (read it again, then repeat the change)");
    }
}
