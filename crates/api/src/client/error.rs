//! What can go wrong between a client and the server, and what a person can do about it.

use crate::problem::Problem;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The server understood and refused. Nothing has changed.
    #[error("{0}")]
    Problem(Problem),

    #[error("no server answers at {server}: check that it runs (`drover server`) and that the address is right")]
    Unreachable {
        server: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error(
        "whoever answers at {server} is not the server that the CA file vouches for: \
         take ca_file from the server's own data directory"
    )]
    Untrusted {
        server: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("{server} did not answer within {} s: it may be overloaded; try again", after.as_secs())]
    TimedOut { server: String, after: Duration },

    #[error("the answer of {server} is longer than {max} bytes: ask for less, e.g. with a limit")]
    TooLong { server: String, max: usize },

    /// Neither the expected answer nor a problem document.
    #[error("{server} answered with HTTP status {status} and {what}: is it a drover server of this version?")]
    Unexpected { server: String, status: u16, what: String },

    #[error("the console of {vm} broke off: open it again")]
    ConsoleBroke {
        vm: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("{path} can't be read")]
    File {
        path: String,
        #[source]
        source: std::io::Error,
    },

    #[error(transparent)]
    Config(#[from] BadConfig),
}

impl ApiError {
    /// The HTTP status the server answered with, where it did.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Problem(problem) => Some(problem.status),
            Self::Unexpected { status, .. } => Some(*status),
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::TimedOut { .. }
            | Self::TooLong { .. }
            | Self::ConsoleBroke { .. }
            | Self::File { .. }
            | Self::Config(_) => None,
        }
    }
}

/// Why no client can be made of a configuration.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    #[error("server {server:?} is not an address: write e.g. https://10.0.0.1:7443")]
    Server { server: String },

    #[error("server {server:?} is not encrypted, which is allowed on this machine only (127.0.0.1): use https://")]
    NotEncrypted { server: String },

    #[error("no CA certificate is given: name the server's pki/ca.crt with ca_file or --ca-file")]
    NoCa,

    #[error("the CA file holds no certificate in PEM form: take ca_file from the server's data directory")]
    Ca,

    #[error("the token is not one of drover's (`drover_<id>_<64 hexadecimal digits>`): check the token file")]
    Token,

    #[error("TLS can't be set up")]
    Tls(#[from] rustls::Error),

    #[error("the HTTP client can't be set up")]
    Http(#[source] reqwest::Error),
}
