//! The server and the agents of a lab, and what tests and the demo do to them.

use crate::config::{self, HostSize};
use crate::limits::{HOSTS_UP_WAIT_MAX, POLL, SERVER_READY_WAIT_MAX};
use crate::netns::Namespace;
use crate::place::Place;
use crate::power::Wiring;
use crate::process::{self, Daemon};
use crate::vms::{self, TAP_PREFIX};
use anyhow::{Context, Result, anyhow, bail};
use drover_api::client::{Client, ClientConfig};
use drover_api::v1::{CreateJoinToken, CreateTenant, CreateToken, RoleName};
use drover_model::HostId;
use drover_model::intent::Host;
use drover_model::intent::Tenant;
use drover_model::policy::Policy;
use drover_model::world::HostState;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    pub hosts: Vec<HostSize>,
    pub policy: Policy,
    /// The `drover` program.
    pub drover: PathBuf,
    /// The program with the `host-power` command; without one no host can be switched.
    pub power_switch: Option<PathBuf>,
}

/// A cluster that is up. Dropping it leaves it running; the lab ends it.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    wiring: Wiring,
    client: Client,
    ca_pem: String,
}

impl Cluster {
    /// Starts server and agents, joins the hosts, and waits until all of them are up.
    pub async fn start(place: &Place, options: &ClusterOptions) -> Result<Self> {
        let hosts: Vec<HostId> = (1..=options.hosts.len()).map(config::host_id).collect();
        let wiring = Wiring { drover: options.drover.clone(), hosts };
        wiring.write(place)?;
        let power_switch = options.power_switch.as_deref();
        let text = config::server(place, &wiring.hosts, &options.policy, power_switch)?;
        write(&config::server_file(place), &text, PUBLIC)?;
        wiring.server(place)?.start()?;
        let (client, ca_pem) = first_client(place, &wiring).await?;

        let cluster = Self { place: place.clone(), wiring, client, ca_pem };
        for (host, size) in cluster.wiring.hosts.iter().zip(&options.hosts) {
            cluster.join(host, *size).await?;
        }
        for host in &cluster.wiring.hosts {
            cluster.wait_until_up(host).await?;
        }
        Ok(cluster)
    }

    async fn join(&self, host: &HostId, size: HostSize) -> Result<()> {
        let token = self
            .client
            .create_join_token(host.as_str(), &CreateJoinToken::default())
            .await
            .with_context(|| format!("can't make a join token for {host}"))?;
        write(&config::join_token_file(&self.place, host), &token.token, SECRET)?;
        let text = config::agent(&self.place, host, self.wiring.number(host)?, size)?;
        write(&config::agent_file(&self.place, host), &text, PUBLIC)?;
        self.agent(host)?.start()
    }

    /// Acts as the operator.
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn hosts(&self) -> &[HostId] {
        &self.wiring.hosts
    }

    /// A client with this token, or without one.
    pub fn client_with(&self, token: Option<String>) -> Result<Client> {
        Ok(Client::new(&ClientConfig { server: config::api_base(), ca_pem: Some(self.ca_pem.clone()), token })?)
    }

    /// Makes a tenant, and a client that acts as it.
    pub async fn create_tenant(&self, id: &str) -> Result<Client> {
        self.client
            .of::<Tenant>()
            .create(&CreateTenant {
                provider_networks: [(config::NETWORK.parse()?, Vec::new())].into(),
                ..CreateTenant::named(id.parse()?)
            })
            .await
            .with_context(|| format!("can't make tenant {id}"))?;
        let token = CreateToken { id: None, role: RoleName::Tenant, tenant: Some(id.to_owned()), expires_s: None };
        let token = self.client.create_token(&token).await.with_context(|| format!("can't make a token for {id}"))?;
        self.client_with(Some(token.token))
    }

    pub fn server(&self) -> Result<Daemon> {
        self.wiring.server(&self.place)
    }

    pub fn agent(&self, host: &HostId) -> Result<Daemon> {
        self.wiring.agent(&self.place, host)
    }

    /// Plugs a host's management link in or out.
    pub fn link(&self, host: &HostId, up: bool) -> Result<()> {
        self.wiring.net(&self.place)?.link(self.wiring.number(host)?, up)
    }

    /// Opens or cuts the path that migrations between two hosts take; both still reach the server.
    pub fn path(&self, a: &HostId, b: &HostId, open: bool) -> Result<()> {
        self.wiring.net(&self.place)?.path(self.wiring.number(a)?, self.wiring.number(b)?, open)
    }

    /// The namespace that stands for a host.
    pub fn namespace(&self, host: &HostId) -> Result<Namespace> {
        Ok(self.wiring.net(&self.place)?.host(self.wiring.number(host)?))
    }

    /// Pulls a host's plug: what it ran is gone at once, and so is what its kernel held for the vms.
    /// [`Cluster::plug_in`] brings it back.
    pub fn pull_plug(&self, host: &HostId) -> Result<()> {
        self.link(host, false)?;
        let vms = vms::running(&self.place).into_iter().filter(|vm| vm.host == *host).map(|vm| vm.pid);
        let pids: Vec<u32> = self.agent(host)?.pid().into_iter().chain(vms).collect();
        process::end_all(&pids, Duration::ZERO)?;
        let namespace = self.namespace(host)?;
        for tap in namespace.interfaces()?.iter().filter(|name| name.starts_with(TAP_PREFIX)) {
            namespace.ip(&["link", "del", tap])?;
        }
        Ok(())
    }

    pub fn plug_in(&self, host: &HostId) -> Result<()> {
        self.link(host, true)?;
        self.agent(host)?.start()
    }

    /// Waits until the server answers, after it was started again.
    pub async fn wait_until_served(&self) -> Result<()> {
        self.wait_for("the server answers", SERVER_READY_WAIT_MAX, async || Ok(self.client.health().await.ok()))
            .await?;
        Ok(())
    }

    pub async fn wait_until_up(&self, host: &HostId) -> Result<()> {
        let what = format!("host {host} is up");
        let agent = self.agent(host)?;
        self.wait_for(&what, HOSTS_UP_WAIT_MAX, async || {
            agent.expect_running()?;
            let view = self.client.of::<Host>().get(host.as_str()).await.ok();
            Ok(view.filter(|view| view.connected && view.state == HostState::Up))
        })
        .await?;
        Ok(())
    }

    /// Looks until there is something, and gives it; an error ends the wait.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        wait_for(what, limit, &mut look)
            .await
            .with_context(|| format!("the logs are in {}", self.place.dir().display()))
    }

    /// The agents end first, so that they do not report the server's end as a fault.
    pub fn stop(&self) -> Result<()> {
        for host in &self.wiring.hosts {
            self.agent(host)?.terminate()?;
        }
        self.server()?.terminate()
    }
}

async fn wait_for<T>(what: &str, limit: Duration, look: &mut impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look().await.with_context(|| format!("while waiting that {what}"))? {
            Some(found) => return Ok(found),
            None if Instant::now() > deadline => bail!("not within {} s: {what}", limit.as_secs()),
            None => tokio::time::sleep(POLL).await,
        }
    }
}

/// The operator's client, from the files that the server makes at its first start.
async fn first_client(place: &Place, wiring: &Wiring) -> Result<(Client, String)> {
    let data_dir = place.file("server");
    let (token, ca) = (data_dir.join("operator.token"), data_dir.join("pki/ca.crt"));
    let server = wiring.server(place)?;
    let look = &mut async || {
        server.expect_running()?;
        let (Ok(token), Ok(ca_pem)) = (fs::read_to_string(&token), fs::read_to_string(&ca)) else { return Ok(None) };
        let token = Some(token.trim().to_owned());
        let config = ClientConfig { server: config::api_base(), ca_pem: Some(ca_pem.clone()), token };
        let client = Client::new(&config)?;
        Ok(client.whoami().await.ok().map(|_| (client, ca_pem)))
    };
    wait_for("the server answers its operator", SERVER_READY_WAIT_MAX, look)
        .await
        .map_err(|problem| anyhow!("{problem:#}; its log is {}", server.log.display()))
}

const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    options
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .with_context(|| format!("can't write {}", path.display()))
}
