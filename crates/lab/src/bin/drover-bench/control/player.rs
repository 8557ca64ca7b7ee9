//! Plays the agents of many hosts in one process: real TLS with each host's certificate, real WebSockets, no hypervisor.
//!
//! A vm runs as soon as it is commanded. The bytes of a host's report are prepared when its vms change, in
//! [`VARIANTS`] loads that take turns, so that a report costs little more than its encryption. The hosts' certificates
//! are issued in bulk by the CA in the server's data directory: joining 10,000 hosts one by one is not what is measured.

use super::{Layout, VM_MEMORY};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use drover_api::agent::{FromAgent, Hello, Load, PATH, PROTOCOL_VERSION, Report, ToAgent};
use drover_model::command::{Command, CommandOutcome, CommandRefusal};
use drover_model::inventory::{Accelerator, Capacity, HostFacts, VmInventory, VmState};
use drover_model::load::{HostSample, VmSample};
use drover_model::{Bytes, CpuMillis, Generation, HostId, Ratio, TimeMs, VmId};
use drover_server::ca::Ca;
use futures_util::{SinkExt as _, StreamExt as _};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// Reports of different load that a host sends in turn.
const VARIANTS: usize = 4;
const REPORT_EVERY: Duration = Duration::from_secs(1);
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// Waits between attempts to connect: doubled from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(1);
/// Of what one vm uses.
const VM_CPU: CpuMillis = CpuMillis(500);

#[derive(Debug, Args)]
pub struct Arguments {
    #[arg(long)]
    server: SocketAddr,
    /// Of the server: its CA issues the hosts' certificates.
    #[arg(long)]
    pki: PathBuf,
    #[arg(long)]
    hosts: u32,
    /// The vms that the hosts run from the beginning.
    #[arg(long)]
    running: u32,
    /// The vms that there are in the end, for the size of the hosts.
    #[arg(long)]
    vms: u32,
}

/// What the player did until it ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub reports: u64,
    pub commands: u64,
    /// Attempts to connect that failed, were refused or ended.
    pub lost: u64,
    /// Host and reason of the last of them.
    pub last_lost: String,
}

#[derive(Debug, Default)]
struct Counters {
    reports: AtomicU64,
    commands: AtomicU64,
    lost: AtomicU64,
    last_lost: Mutex<String>,
}

/// Until standard input is closed, which the end of the bench does however it ends.
pub fn play(args: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let layout = Layout { hosts: args.hosts, vms: args.vms };
        let counters = Arc::new(Counters::default());
        let ca = Ca::open(&args.pki, drover_server::shell::now()).context("the CA can't be used")?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        let roots = Arc::new(roots);
        let mut agents = tokio::task::JoinSet::new();
        for index in 0..args.hosts {
            let host = layout.host(index);
            let tls = Arc::new(tls_of(&ca, &host, roots.clone())?);
            let vms = (0..args.running).filter(|vm| layout.host_of(*vm) == index).map(|vm| layout.vm(vm)).collect();
            let agent = Agent::new(host, layout.capacity(), vms)?;
            let phase = REPORT_EVERY * index / args.hosts;
            agents.spawn(agent.live(args.server, tls, phase, counters.clone()));
        }
        let mut stdin = pipe::Receiver::from_owned_fd(std::io::stdin().as_fd().try_clone_to_owned()?)
            .context("standard input must be a pipe")?;
        tokio::select! {
            _closed = stdin.read_u8() => {}
            Some(ended) = agents.join_next() => return ended?.context("an agent can't be played"),
        }
        let summary = Summary {
            reports: counters.reports.load(Ordering::Relaxed),
            commands: counters.commands.load(Ordering::Relaxed),
            lost: counters.lost.load(Ordering::Relaxed),
            last_lost: counters.last_lost.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        println!("{}", serde_json::to_string(&summary)?);
        agents.shutdown().await;
        Ok(())
    })
}

fn tls_of(ca: &Ca, host: &HostId, roots: Arc<RootCertStore>) -> Result<ClientConfig> {
    let key = KeyPair::generate()?;
    let request = ca.read_request(&CertificateParams::default().serialize_request(&key)?.pem()?)?;
    let certificate = ca.issue_host(host, &request, drover_server::shell::now())?;
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::in_memory_sessions(1);
    Ok(config)
}

/// One host's agent: what it runs, and its reports as they are sent.
struct Agent {
    host: HostId,
    capacity: Capacity,
    vms: BTreeMap<VmId, VmInventory>,
    measured: BTreeSet<VmId>,
    network: u64,
    reports: Prepared,
}

impl Agent {
    fn new(host: HostId, capacity: Capacity, running: Vec<VmId>) -> Result<Self> {
        let vms = running.into_iter().map(|vm| (vm.clone(), inventory(vm, Generation(1), VmState::Running))).collect();
        let mut agent =
            Self { host, capacity, vms, measured: BTreeSet::new(), network: 0, reports: Prepared::default() };
        agent.prepare()?;
        Ok(agent)
    }

    fn prepare(&mut self) -> Result<()> {
        let report = |variant: usize| Report {
            seq: 0,
            at: TimeMs(0),
            vms: self.vms.values().cloned().collect(),
            load: Some(self.load(variant)),
            network: self.network,
            network_error: None,
        };
        self.reports = Prepared::new(report)?;
        Ok(())
    }

    /// `variant` moves the processor demand a little: load that never changes would flatter the forecast.
    fn load(&self, variant: usize) -> Load {
        let cpu = CpuMillis(VM_CPU.0 + 20 * variant as u64);
        let running = self.vms.values().filter(|vm| vm.state == VmState::Running).count() as u64;
        let vm = |id: &VmId| VmSample {
            cpu_used: cpu,
            cpu_wanted: cpu,
            memory_used: VM_MEMORY,
            net_rx: Bytes(10_000),
            net_tx: Bytes(10_000),
            disk_latency_us: 200,
            dirty_rate: self.measured.contains(id).then_some(Bytes::mib(3)),
        };
        Load {
            host: HostSample {
                cpu_used: CpuMillis(cpu.0 * running),
                cpu_wanted: CpuMillis(cpu.0 * running),
                memory_used: Bytes(VM_MEMORY.0 * running),
                memory_pressure: Ratio(0.0),
                net_rx: Bytes(10_000 * running),
                net_tx: Bytes(10_000 * running),
                disk_latency_us: 200,
            },
            vms: self
                .vms
                .values()
                .filter(|seen| seen.state == VmState::Running)
                .map(|seen| (seen.vm.clone(), vm(&seen.vm)))
                .collect(),
        }
    }

    fn hello(&self) -> FromAgent {
        FromAgent::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            host: self.host.clone(),
            facts: facts(self.capacity),
            vms: self.vms.values().cloned().collect(),
        })
    }

    /// Connects again whenever the connection ends.
    async fn live(
        mut self,
        server: SocketAddr,
        tls: Arc<ClientConfig>,
        phase: Duration,
        counters: Arc<Counters>,
    ) -> Result<()> {
        let mut wait = RETRY_FIRST;
        tokio::time::sleep(phase).await;
        loop {
            let mut welcome = false;
            let Err(why) = self.connection(server, tls.clone(), phase, &counters, &mut welcome).await;
            counters.lost.fetch_add(1, Ordering::Relaxed);
            *counters.last_lost.lock().unwrap_or_else(PoisonError::into_inner) = format!("{}: {why:#}", self.host);
            wait = if welcome { RETRY_FIRST } else { (wait * 2).min(RETRY_LAST) };
            tokio::time::sleep(wait).await;
        }
    }

    async fn connection(
        &mut self,
        server: SocketAddr,
        tls: Arc<ClientConfig>,
        phase: Duration,
        counters: &Counters,
        welcome: &mut bool,
    ) -> Result<std::convert::Infallible> {
        let opened = timeout(CONNECT_MAX, async {
            let tcp = TcpStream::connect(server).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::from(server.ip());
            let tls = TlsConnector::from(tls).connect(name, tcp).await?;
            anyhow::Ok(tokio_tungstenite::client_async(format!("wss://{server}{PATH}"), tls).await?.0)
        });
        let mut socket = opened.await.context("no connection in time")??;
        socket.send(Message::text(serde_json::to_string(&self.hello())?)).await?;
        let mut seq = 0;
        let mut every = tokio::time::interval_at(Instant::now() + phase.min(REPORT_EVERY), REPORT_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let heard = tokio::select! {
                heard = socket.next() => heard.context("the server closed the connection")??,
                _ = every.tick(), if *welcome => {
                    seq += 1;
                    socket.send(self.reports.next(seq)).await?;
                    counters.reports.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            };
            let Message::Text(text) = heard else {
                // Pings are answered by the library with the next write.
                socket.flush().await?;
                continue;
            };
            match serde_json::from_str(&text)? {
                ToAgent::Welcome(_) => {
                    *welcome = true;
                    // The first report goes at once, as the real agent's does.
                    every.reset_immediately();
                }
                ToAgent::Refused { why } => bail!("refused: {why}"),
                ToAgent::Command { id, command } => {
                    counters.commands.fetch_add(1, Ordering::Relaxed);
                    let answer = self.carry_out(*command);
                    self.prepare()?;
                    socket.feed(Message::text(serde_json::to_string(&FromAgent::Answer { id, answer })?)).await?;
                    seq += 1;
                    socket.send(self.reports.next(seq)).await?;
                    counters.reports.fetch_add(1, Ordering::Relaxed);
                }
                ToAgent::Network { network } => {
                    self.network = network.generation;
                    self.prepare()?;
                }
                ToAgent::ConsoleOpen { .. } | ToAgent::ConsoleInput { .. } | ToAgent::ConsoleClose { .. } => {}
            }
        }
    }

    fn carry_out(&mut self, command: Command) -> Result<CommandOutcome, CommandRefusal> {
        match command {
            Command::Run { run, generation } => {
                let seen = inventory(run.vm.clone(), generation, VmState::Running);
                self.vms.insert(run.vm, seen);
            }
            Command::Stop { vm, .. } => {
                self.vms.get_mut(&vm).ok_or(CommandRefusal::UnknownVm)?.state = VmState::Stopped;
            }
            Command::Release { vm, .. } | Command::CancelMigration { vm, .. } => {
                self.vms.remove(&vm);
            }
            Command::MeasureDirtyRate { vm, .. } => {
                self.measured.insert(vm);
            }
            Command::PrepareIncoming { .. }
            | Command::MigrateOut { .. }
            | Command::AdjustMigration { .. }
            | Command::RecoverIncoming { .. }
            | Command::RecoverOutgoing { .. }
            | Command::CommitSwitchOver { .. }
            | Command::TakeBack { .. } => {
                return Err(CommandRefusal::Failed { why: "hosts of this bench move no vms".to_owned() });
            }
        }
        Ok(CommandOutcome::Done)
    }
}

/// Reports as they are sent, but for sequence number and time.
#[derive(Debug, Default)]
struct Prepared(Vec<String>);

impl Prepared {
    const BEFORE: &str = r#"{"message":"report","seq":"#;

    fn new(report: impl Fn(usize) -> Report) -> Result<Self> {
        let blank = format!("{}0,\"at\":0", Self::BEFORE);
        let rest = |variant| {
            let text = serde_json::to_string(&FromAgent::Report(report(variant)))?;
            text.strip_prefix(&blank).map(str::to_owned).ok_or_else(|| anyhow!("reports no longer begin with {blank}"))
        };
        (0..VARIANTS).map(rest).collect::<Result<_>>().map(Self)
    }

    fn next(&self, seq: u64) -> Message {
        let rest = &self.0[seq as usize % VARIANTS];
        let at = drover_server::shell::now().0;
        Message::Text(Utf8Bytes::from(format!("{}{seq},\"at\":{at}{rest}", Self::BEFORE)))
    }
}

fn inventory(vm: VmId, generation: Generation, state: VmState) -> VmInventory {
    VmInventory { vm, generation, state, pid: Some(1) }
}

fn facts(capacity: Capacity) -> HostFacts {
    HostFacts {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        qemu_version: "7.2.22".to_owned(),
        kernel: "6.1".to_owned(),
        accelerator: Accelerator::Tcg,
        accelerator_why: "the bench plays this host".to_owned(),
        cpu_model: "bench".to_owned(),
        capacity,
        networks: BTreeSet::new(),
        overlay_address: None,
        machine_types: Default::default(),
        cpu_features: Default::default(),
        migration_features: Default::default(),
        boot_id: "boot".to_owned(),
        agent_run: "run".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prepared_report_is_what_an_agent_sends() {
        let layout = Layout { hosts: 1, vms: 2 };
        let agent = Agent::new(layout.host(0), layout.capacity(), vec![layout.vm(0), layout.vm(1)]).unwrap();
        let Message::Text(text) = agent.reports.next(7) else { panic!("not text") };
        let FromAgent::Report(report) = serde_json::from_str(&text).unwrap() else { panic!("not a report: {text}") };
        assert_eq!((report.seq, report.vms.len()), (7, 2));
        assert!(report.at > TimeMs(0));
        assert_eq!(report.load, Some(agent.load(7 % VARIANTS)));
    }
}
