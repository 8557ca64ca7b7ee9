//! From a configuration to a running server, and back to nothing.

use crate::ca::{Ca, ServerIdentity};
use crate::config::ServerConfig;
use crate::datadir::{DataDir, write_whole};
use crate::http::{Api, ApiParts};
use crate::hub::Hub;
use crate::hub::connection::AgentPort;
use crate::metrics::Metrics;
use crate::power::{PowerDrivers, PowerResult};
use crate::secret;
use crate::serve::{ServeLimits, serve};
use crate::shell::{Change, Shell, ShellError, ShellHandle, Surroundings, now};
use crate::store::sqlite::{Kept, SqliteStore};
use anyhow::{Context as _, anyhow};
use drover_control::Settings;
use drover_control::interface::{Action, Actor};
use drover_model::intent::{ApiToken, Role};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Power results waiting for the state machine.
const POWER_RESULTS_MAX: usize = 256;
/// How often the server's certificate is looked at.
const RENEW_EVERY: Duration = Duration::from_secs(3_600);

/// Runs the server until `shutdown` resolves or something it can't do without fails.
pub async fn run(config: ServerConfig, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    start(config).await?.until(shutdown).await
}

/// A server that is ready. Dropped, it ends at once, as if killed.
#[derive(Debug)]
pub struct Running {
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where agents connect.
    pub agents: SocketAddr,
    hub: Arc<Hub>,
    shell: AbortOnDropHandle<Result<(), ShellError>>,
    listeners: JoinSet<()>,
    /// Ended last, without being waited for.
    _background: JoinSet<()>,
    shell_ending: CancellationToken,
    ending: CancellationToken,
}

/// Brings a server up: when this returns, it answers.
pub async fn start(config: ServerConfig) -> anyhow::Result<Running> {
    let dirs = Arc::new(DataDir::open(&config)?);
    let api_listener = listen("listen", config.listen).await?;
    let agent_listener = listen("agent_listen", config.agent_listen).await?;
    let (api_address, agent_address) = (api_listener.local_addr()?, agent_listener.local_addr()?);

    let ca = Arc::new(Ca::open(&dirs.pki(), now())?);
    let identity = Arc::new(ServerIdentity::new(&ca, certificate_names(&config), now())?);
    let api_tls = tls(&identity, None)?;
    let agent_tls = tls(&identity, Some(&ca))?;

    let hub = Arc::new(Hub::new(config.limits.agent_queue_max));
    let metrics = Arc::new(Metrics::default());
    let (shell, handle, power_found) = shell_of(&config, &dirs, &hub, &metrics).await?;
    let (shell_ending, ending) = (CancellationToken::new(), CancellationToken::new());
    let shell = AbortOnDropHandle::new(tokio::spawn(shell.run(shell_ending.clone())));
    let mut background = JoinSet::new();
    background.spawn(handle.clone().forward_power(power_found));
    background.spawn(renew(ca.clone(), identity));
    first_operator(&handle, &dirs, api_address).await?;

    let limits = |connections_max| ServeLimits {
        connections_max,
        handshakes_at_once_max: config.limits.handshakes_at_once_max,
        handshake_timeout: Duration::from_secs(config.limits.handshake_timeout_s),
        header_timeout: Duration::from_secs(config.limits.header_timeout_s),
    };
    let (api_limits, agent_limits) = (limits(config.limits.connections_max), limits(config.limits.agents_max));
    let api = Api::new(ApiParts {
        shell: handle.clone(),
        hub: hub.clone(),
        ca,
        metrics,
        dirs,
        limits: config.limits,
        intervals: config.intervals.clone(),
        agent_port: agent_address.port(),
        ending: ending.clone(),
    });
    let agents = AgentPort { hub: hub.clone(), shell: handle, intervals: config.intervals };
    let mut listeners = JoinSet::new();
    listeners.spawn(serve("api", api_listener, api_tls, api.router(), api_limits, ending.clone()));
    listeners.spawn(serve("agents", agent_listener, agent_tls, agents.router(), agent_limits, ending.clone()));
    tracing::info!(api = %api_address, agents = %agent_address, "ready");
    Ok(Running {
        api: api_address,
        agents: agent_address,
        hub,
        shell,
        listeners,
        _background: background,
        shell_ending,
        ending,
    })
}

impl Running {
    /// Serves until `shutdown` resolves, then ends in order: what was accepted is still carried out.
    pub async fn until(mut self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let failed = tokio::select! {
            () = shutdown => None,
            ended = &mut self.shell => Some(ended),
        };
        self.ending.cancel();
        self.hub.disconnect_all("the server ends");
        while let Some(listener) = self.listeners.join_next().await {
            listener.context("a listener failed")?;
        }
        self.shell_ending.cancel();
        match failed {
            Some(ended) => {
                ended.context("the state machine's task failed")??;
                Err(anyhow!("the state machine's task ended by itself"))
            }
            None => {
                self.shell.await.context("the state machine's task failed")??;
                tracing::info!("ended");
                Ok(())
            }
        }
    }
}

/// The state machine's task, with all that it carries effects out with.
async fn shell_of(
    config: &ServerConfig,
    dirs: &DataDir,
    hub: &Arc<Hub>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Shell, ShellHandle, mpsc::Receiver<PowerResult>)> {
    let kept = Kept {
        events_max: config.limits.events_kept_max,
        changes_max: config.limits.changes_kept_max,
        maintain_every: SqliteStore::MAINTAIN_EVERY,
    };
    let store = SqliteStore::open_when_free(&dirs.store(), kept).await?;
    let (power_results, power_found) = mpsc::channel(POWER_RESULTS_MAX);
    let around = Surroundings {
        hub: hub.clone(),
        power: PowerDrivers::start(&config.hosts, power_results),
        metrics: metrics.clone(),
        tick: config.intervals.tick(),
        queue_max: config.limits.queue_max,
        store_retries_max: config.limits.store_retries_max,
    };
    let power_managed =
        config.hosts.iter().filter(|(_, host)| host.power.is_some()).map(|(id, _)| id.clone()).collect();
    let settings = Settings { power_managed, initial_policy: (&config.policy).into(), waits: (&config.waits).into() };
    let (shell, handle) = Shell::start(Box::new(store), settings, around).await?;
    Ok((shell, handle, power_found))
}

async fn listen(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow!("{key}: {address} is in use; stop what listens there or set another port")
        }
        std::io::ErrorKind::AddrNotAvailable => {
            anyhow!("{key}: {address} is not an address of this machine; set one that is")
        }
        std::io::ErrorKind::PermissionDenied => {
            anyhow!("{key}: {address} is not allowed for this user; set a port from 1024 on")
        }
        _ => anyhow::Error::new(error).context(format!("{key}: {address} can't be listened on")),
    })
}

fn certificate_names(config: &ServerConfig) -> BTreeSet<String> {
    let addresses = [config.listen.ip(), config.agent_listen.ip()];
    let listening = addresses.into_iter().filter(|address| !address.is_unspecified());
    let local = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    let mut names: BTreeSet<String> = listening.chain(local).map(|address| address.to_string()).collect();
    names.insert("localhost".to_owned());
    // As they come back out of the certificate.
    names.extend(config.names.iter().map(|name| match name.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => name.to_ascii_lowercase(),
    }));
    names
}

/// `clients`: the CA that clients must have a certificate of.
fn tls(identity: &Arc<ServerIdentity>, clients: Option<&Ca>) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.der().clone())?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut tls = builder.with_cert_resolver(identity.clone());
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

async fn renew(ca: Arc<Ca>, identity: Arc<ServerIdentity>) {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        if let Err(error) = identity.renew(&ca, now()) {
            tracing::error!(error = %crate::shell::chain(&error), "the server's certificate can't be renewed");
        }
    }
}

/// A cluster without an operator's token gets one, in files that only this user can read.
async fn first_operator(shell: &ShellHandle, dirs: &DataDir, api: SocketAddr) -> anyhow::Result<()> {
    let have = shell.query(|control| control.api_tokens().any(|token| token.role == Role::Operator)).await?;
    if have {
        return Ok(());
    }
    let id = secret::token_id("operator");
    let token = secret::api_token(&id);
    let token_file = dirs.root().join("operator.token");
    let ca_file = dirs.pki().join("ca.crt");
    let host = if api.ip().is_unspecified() { "localhost".to_owned() } else { uri_host(api.ip()) };
    let client = format!(
        "# For `drover --config`: the operator's way in.\nserver = \"https://{host}:{}\"\nca_file = {}\ntoken_file = {}\n",
        api.port(),
        toml::Value::from(ca_file.display().to_string()),
        toml::Value::from(token_file.display().to_string()),
    );
    // The files first: should the server die between, the next start finds no token and writes them again.
    write_whole(&token_file, format!("{}\n", token.reveal()).as_bytes(), 0o600)?;
    let client_file = dirs.root().join("client.toml");
    write_whole(&client_file, client.as_bytes(), 0o600)?;
    let token =
        ApiToken { id, secret_sha256: token.sha256(), role: Role::Operator, created_at: now(), expires_at: None };
    let server = Actor { name: "server".to_owned(), role: Role::Operator };
    shell.submit(Change::new(server, Action::CreateToken { token })).await?;
    tracing::info!(
        token_file = %token_file.display(),
        client_config = %client_file.display(),
        "the first operator token was made"
    );
    Ok(())
}

fn uri_host(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}
