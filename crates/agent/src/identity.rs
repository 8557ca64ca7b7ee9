//! Who this host is: a key of its own and a certificate from the cluster, got once for a one-time token.
//!
//! ```text
//! no identity ──token: fetch the CA, compare its hash──▶ CA trusted ──token + CSR──▶ certificate ──stored──▶ joined
//! ```
//!
//! The CA is fetched without verification and trusted only because its SHA-256 is the token's. Everything after that
//! goes over verified TLS. The key never leaves this host.
//!
//! QEMU shows the same certificate to other hosts' QEMUs when a vm moves: it finds it under the names it wants in
//! [`tls_dir`], which is made to agree with the identity at each start.

use crate::config::AgentConfig;
use crate::vms::record::replace_file;
use drover_api::join::{BadJoinToken, JoinRequest, JoinResponse, JoinTokenText};
use drover_model::HostId;
use rcgen::{CertificateParams, DnType, KeyPair};
use reqwest::{Client, Url};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "certificate.pem";
const CA: &str = "ca.pem";
/// Written last: without it nothing else counts.
const JOINED: &str = "joined.json";

/// What QEMU calls the files of a `tls-creds-x509` object, and whose content each has. One certificate serves both ends.
const TLS_FILES: [(&str, &str); 5] = [
    ("ca-cert.pem", CA),
    ("server-cert.pem", CERTIFICATE),
    ("server-key.pem", KEY),
    ("client-cert.pem", CERTIFICATE),
    ("client-key.pem", KEY),
];

/// A certificate is about 1 KiB, a problem document less.
const ANSWER_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(
        "this host has not joined yet: make a token with `drover host token {host}` on the server, \
         store it in a file here and name the file as join_token_file"
    )]
    NoToken { host: HostId },
    #[error("can't read the join token file {}", path.display())]
    ReadToken {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the join token file {} is not usable", path.display())]
    BadToken {
        path: PathBuf,
        #[source]
        source: BadJoinToken,
    },
    #[error("can't reach the server at {server}: check `server` in the configuration, and the network")]
    Unreachable {
        server: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the server at {server} does not answer like a drover server: check `server` in the configuration")]
    NotADroverServer { server: String },
    #[error(
        "the server at {server} shows another CA than the join token was made under: \
         either the token is another cluster's, or something stands between. Nothing was sent"
    )]
    WrongCa { server: String },
    #[error("the server refused the join: {detail}")]
    Refused { detail: String },
    #[error("can't store the identity in {}", path.display())]
    Store {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the identity in {} can't be used: remove that directory and join again with a new token", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "{} is the identity of host {found}, and the configuration says {host}: \
         use another state_dir, or remove the identity and join again", path.display()
    )]
    OtherHost { path: PathBuf, found: HostId, host: HostId },
    #[error("can't make a key or a signing request")]
    Key(#[source] rcgen::Error),
}

/// What is kept beside the PEM files.
#[derive(Debug, Serialize, Deserialize)]
struct Joined {
    host: HostId,
    agent_port: u16,
}

/// A host that has joined.
#[derive(Clone)]
pub struct Identity {
    /// Trusts the cluster's CA and nothing else; shows this host's certificate.
    pub tls: Arc<rustls::ClientConfig>,
    /// The server, by the name its API is reached by.
    pub server_host: String,
    pub server_name: ServerName<'static>,
    pub agent_port: u16,
}

impl Identity {
    /// The stored one, or a new one for the configured token.
    pub async fn obtain(config: &AgentConfig) -> Result<Self, IdentityError> {
        let dir = config.state_dir.join("identity");
        if !dir.join(JOINED).exists() {
            join(config, &dir).await?;
        }
        let identity = Self::load(config, &dir)?;
        let tls_dir = tls_dir(&config.state_dir);
        let written = write_tls_files(&dir, &tls_dir);
        written.map_err(|source| IdentityError::Store { path: tls_dir, source })?;
        Ok(identity)
    }

    fn load(config: &AgentConfig, dir: &Path) -> Result<Self, IdentityError> {
        fn damaged<E: Into<Box<dyn std::error::Error + Send + Sync>>>(dir: &Path) -> impl Fn(E) -> IdentityError {
            let path = dir.to_owned();
            move |source| IdentityError::Damaged { path: path.clone(), source: source.into() }
        }
        let joined = std::fs::read(dir.join(JOINED)).map_err(damaged(dir))?;
        let joined: Joined = serde_json::from_slice(&joined).map_err(damaged(dir))?;
        if joined.host != config.host {
            return Err(IdentityError::OtherHost {
                path: dir.to_owned(),
                found: joined.host,
                host: config.host.clone(),
            });
        }
        let ca = CertificateDer::from_pem_file(dir.join(CA)).map_err(damaged(dir))?;
        let certificate = CertificateDer::from_pem_file(dir.join(CERTIFICATE)).map_err(damaged(dir))?;
        let key = PrivateKeyDer::from_pem_file(dir.join(KEY)).map_err(damaged(dir))?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca).map_err(damaged(dir))?;
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(damaged(dir))?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .map_err(damaged(dir))?;
        let (server_host, server_name) = server_name(&config.server)?;
        Ok(Self { tls: Arc::new(tls), server_host, server_name, agent_port: joined.agent_port })
    }
}

/// Where QEMU finds this host's certificate and key.
pub fn tls_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("tls")
}

/// Makes QEMU's files what the identity's are. Those that are so already are left alone.
pub fn write_tls_files(identity: &Path, tls_dir: &Path) -> io::Result<()> {
    make_private_dir(tls_dir)?;
    for (name, source) in TLS_FILES {
        let content = std::fs::read(identity.join(source))?;
        if std::fs::read(tls_dir.join(name)).ok().as_ref() != Some(&content) {
            replace_file(tls_dir, name, &format!("{name}.tmp"), &content, 0o600)?;
        }
    }
    Ok(())
}

fn make_private_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if dir.is_dir() { Ok(()) } else { std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) }
}

fn server_name(server: &str) -> Result<(String, ServerName<'static>), IdentityError> {
    let unusable = || IdentityError::NotADroverServer { server: server.to_owned() };
    let url = Url::parse(server).map_err(|_| unusable())?;
    // An IPv6 address stands in brackets in a URL and without them everywhere else.
    let host = url.host_str().ok_or_else(unusable)?.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| unusable())?;
    Ok((host, name))
}

async fn join(config: &AgentConfig, dir: &Path) -> Result<(), IdentityError> {
    let path = config.join_token_file.as_ref();
    let path = path.ok_or_else(|| IdentityError::NoToken { host: config.host.clone() })?;
    let token: JoinTokenText = std::fs::read_to_string(path)
        .map_err(|source| IdentityError::ReadToken { path: path.clone(), source })?
        .parse()
        .map_err(|source| IdentityError::BadToken { path: path.clone(), source })?;

    let ca_pem = fetch_ca(config, &token).await?;
    let key = KeyPair::generate().map_err(IdentityError::Key)?;
    let response = request_certificate(config, &token, &ca_pem, &key).await?;
    let stored = store(dir, &config.host, &key, &ca_pem, &response);
    stored.map_err(|source| IdentityError::Store { path: dir.to_owned(), source })?;
    tracing::info!(host = %config.host, server = %config.server, "joined the cluster");
    Ok(())
}

/// The cluster's CA, which the token vouches for.
async fn fetch_ca(config: &AgentConfig, token: &JoinTokenText) -> Result<String, IdentityError> {
    let not_drover = || IdentityError::NotADroverServer { server: config.server.clone() };
    let builder = Client::builder().tls_danger_accept_invalid_certs(true);
    let client = build(builder, config)?;
    let answer = client.get(url(config, "v1/ca")?).send().await.map_err(unreachable(config))?;
    let (status, body) = read_answer(answer, config).await?;
    let pem = String::from_utf8(body).map_err(|_| not_drover())?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| not_drover())?;
    if !status.is_success() {
        return Err(not_drover());
    }
    if hex(&Sha256::digest(&der)) != token.ca_sha256 {
        return Err(IdentityError::WrongCa { server: config.server.clone() });
    }
    Ok(pem)
}

async fn request_certificate(
    config: &AgentConfig,
    token: &JoinTokenText,
    ca_pem: &str,
    key: &KeyPair,
) -> Result<JoinResponse, IdentityError> {
    let mut params = CertificateParams::new([]).map_err(IdentityError::Key)?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, config.host.as_str());
    let csr_pem = params.serialize_request(key).and_then(|csr| csr.pem()).map_err(IdentityError::Key)?;

    let ca = reqwest::Certificate::from_pem(ca_pem.as_bytes()).map_err(unreachable(config))?;
    let client = build(Client::builder().tls_certs_only([ca]), config)?;
    let request = JoinRequest { host: config.host.clone(), token: format!("{}.{}", token.id, token.secret), csr_pem };
    let answer = client.post(url(config, "v1/join")?).json(&request).send().await.map_err(unreachable(config))?;
    let (status, body) = read_answer(answer, config).await?;
    if status.is_success() {
        let not_drover = |_| IdentityError::NotADroverServer { server: config.server.clone() };
        return serde_json::from_slice(&body).map_err(not_drover);
    }
    let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
    let detail = problem.detail.or(problem.title).unwrap_or_else(|| format!("it answered {status}"));
    Err(IdentityError::Refused { detail })
}

/// RFC 9457, as much of it as a person needs.
#[derive(Default, Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
}

fn build(builder: reqwest::ClientBuilder, config: &AgentConfig) -> Result<Client, IdentityError> {
    builder
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(config.limits.join_wait_max())
        .build()
        .map_err(unreachable(config))
}

fn url(config: &AgentConfig, path: &str) -> Result<Url, IdentityError> {
    let base = Url::parse(&config.server).and_then(|base| base.join(path));
    base.map_err(|_| IdentityError::NotADroverServer { server: config.server.clone() })
}

fn unreachable(config: &AgentConfig) -> impl Fn(reqwest::Error) -> IdentityError {
    let server = config.server.clone();
    move |source| IdentityError::Unreachable { server: server.clone(), source }
}

async fn read_answer(
    mut answer: reqwest::Response,
    config: &AgentConfig,
) -> Result<(reqwest::StatusCode, Vec<u8>), IdentityError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(unreachable(config))? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(IdentityError::NotADroverServer { server: config.server.clone() });
        }
        body.extend_from_slice(&chunk);
    }
    Ok((answer.status(), body))
}

fn store(dir: &Path, host: &HostId, key: &KeyPair, ca_pem: &str, response: &JoinResponse) -> io::Result<()> {
    make_private_dir(dir)?;
    let write = |name: &str, content: &[u8]| replace_file(dir, name, &format!("{name}.tmp"), content, 0o600);
    write(KEY, key.serialize_pem().as_bytes())?;
    write(CERTIFICATE, response.certificate_pem.as_bytes())?;
    // The one the token vouched for, whatever the response says.
    write(CA, ca_pem.as_bytes())?;
    let joined = Joined { host: host.clone(), agent_port: response.agent_port };
    write(JOINED, &serde_json::to_vec(&joined)?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An identity as joining leaves it, with QEMU's files.
#[cfg(test)]
pub fn keep(state_dir: &Path, key_pem: &str, certificate_pem: &str, ca_pem: &str) {
    let dir = state_dir.join("identity");
    make_private_dir(&dir).unwrap();
    for (name, content) in [(KEY, key_pem), (CERTIFICATE, certificate_pem), (CA, ca_pem)] {
        std::fs::write(dir.join(name), content).unwrap();
    }
    write_tls_files(&dir, &tls_dir(state_dir)).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_name_or_address() {
        for (server, host) in [
            ("https://10.77.0.1:7443", "10.77.0.1"),
            ("https://[fd00::1]:7443", "fd00::1"),
            ("https://vim.lan", "vim.lan"),
        ] {
            assert_eq!(server_name(server).unwrap().0, host);
        }
    }

    #[test]
    fn qemu_finds_the_identity_under_its_own_names_and_follows_a_change() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (identity, tls) = (dir.path().join("identity"), tls_dir(dir.path()));
        make_private_dir(&identity).unwrap();
        for key in ["first", "second"] {
            for (name, content) in [(CA, "ca"), (CERTIFICATE, "certificate"), (KEY, key)] {
                std::fs::write(identity.join(name), content).unwrap();
            }
            write_tls_files(&identity, &tls).unwrap();
            let read = |name: &str| std::fs::read_to_string(tls.join(name)).unwrap();
            assert_eq!((read("ca-cert.pem").as_str(), read("server-cert.pem").as_str()), ("ca", "certificate"));
            assert_eq!((read("server-key.pem").as_str(), read("client-key.pem").as_str()), (key, key));
        }
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&tls), mode(&tls.join("server-key.pem"))), (0o700, 0o600));
        std::fs::remove_file(identity.join(KEY)).unwrap();
        assert!(write_tls_files(&identity, &tls).is_err());
    }

    #[test]
    fn digests_are_lower_case_hexadecimal() {
        assert_eq!(hex(&[0x00, 0xab, 0x7f]), "00ab7f");
    }
}
