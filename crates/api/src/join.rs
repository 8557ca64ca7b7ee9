//! How a host joins: a one-time token against a certificate.
//!
//! 1. `GET /v1/ca` gives the cluster's CA certificate; the joining agent trusts it only if its
//!    SHA-256 is the one in the token, so nobody in between can pose as the server.
//! 2. `POST /v1/join` with the token and a certificate signing request (PKCS #10, PEM) gives the host's certificate.
//!
//! The token is consumed in the transaction that registers the host.

use drover_model::{BadName, HostId, TokenId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// `<id>.<secret>.<SHA-256 of the CA certificate in DER>`, the last two in lower-case hexadecimal, 64 digits each.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinTokenText {
    pub id: TokenId,
    pub secret: String,
    pub ca_sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadJoinToken {
    #[error("this is not a join token: make one with `drover host token HOST` and pass it on whole")]
    Shape,
    #[error(transparent)]
    Name(#[from] BadName),
}

impl FromStr for JoinTokenText {
    type Err = BadJoinToken;

    fn from_str(text: &str) -> Result<Self, BadJoinToken> {
        let hex64 = |s: &str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut parts = text.trim().split('.');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(id), Some(secret), Some(ca), None) if hex64(secret) && hex64(ca) => {
                Ok(Self { id: id.parse()?, secret: secret.to_owned(), ca_sha256: ca.to_owned() })
            }
            _ => Err(BadJoinToken::Shape),
        }
    }
}

impl fmt::Display for JoinTokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, self.secret, self.ca_sha256)
    }
}

/// Never the secret: this type ends up in logs.
impl fmt::Debug for JoinTokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinTokenText({})", self.id)
    }
}

#[derive(Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    #[schema(value_type = String)]
    pub host: HostId,
    /// `<id>.<secret>`; the CA part may follow.
    pub token: String,
    pub csr_pem: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JoinResponse {
    pub certificate_pem: String,
    pub ca_pem: String,
    /// Port of the agents' listener; at the host name the agent reached the API by.
    pub agent_port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_reads_back_and_keeps_its_secret() {
        let token =
            JoinTokenText { id: "join-a1".parse().unwrap(), secret: "ab".repeat(32), ca_sha256: "0c".repeat(32) };
        assert_eq!(token.to_string().parse::<JoinTokenText>().unwrap(), token);
        assert!(!format!("{token:?}").contains("abab"));
        for bad in ["", "a.b.c", "join-a1.zz.zz", &format!("{token}.x")] {
            assert!(bad.parse::<JoinTokenText>().is_err(), "{bad}");
        }
    }
}
