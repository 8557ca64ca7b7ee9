//! What the server costs and how fast it answers with the agents of many hosts.
//!
//! ```text
//!   this process ──HTTPS──▶ drover server (its own directory, SQLite) ◀──mTLS, WebSockets── the player process
//! ```
//! Everything is on loopback. The server is the released program with its defaults, but for the most connections that it
//! accepts and for planning, which only proposes: a played host can't move vms. Without `--create` the vms are written
//! to the store before the server starts, placed and with generation 1, and the hosts report them as running; with it
//! they are created through the API. The vms have no network cards.
//!
//! `heartbeat_p99_ms` is read from the server's own histogram (`drover_agent_message_duration_seconds`): from the moment
//! that the connection's task has read a frame until the state machine has handled it and what it changed is durable.
//! What a frame waits in the kernel's socket buffer because that task is not scheduled is not in it.

pub mod player;

use crate::usage::{Machine, Meter};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use drover_api::client::{ApiError, Client, ClientConfig};
use drover_api::v1::{CreateVm, ListQuery};
use drover_control::interface::{Commit, Object, Write};
use drover_model::intent::{Host, HostAttributes, Image, PowerIntent, Quota, RunIntent, Tenant, Vm, VmSpec};
use drover_model::inventory::Capacity;
use drover_model::world::HostState;
use drover_model::{Bytes, CpuMillis, Generation, HostId, VmId};
use drover_server::store::Store as _;
use drover_server::store::sqlite::{Kept, SqliteStore};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

const TENANT: &str = "bench";
const IMAGE: &str = "bench";
const VM_MEMORY: Bytes = Bytes::mib(256);
/// Files and sockets that server and player have beside their connections.
const FILES_BESIDE: u64 = 256;
/// Until the server answers after its start, and until it has ended after SIGTERM.
const START_MAX: Duration = Duration::from_secs(120);
const END_MAX: Duration = Duration::from_secs(30);
/// Longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Between two looks at something that is awaited, and between two requests of the measurement.
const POLL: Duration = Duration::from_millis(100);
const REQUEST_EVERY: Duration = Duration::from_millis(500);
/// With everything connected, before it is measured: the first load of each host has been judged by then.
const SETTLE: Duration = Duration::from_secs(10);
const CREATORS: u32 = 8;
const PROFILE_SECONDS: &str = "5";
const PROFILE_LINES: usize = 8;

/// The bars, for 1,000 hosts and 100,000 vms.
const CORES_BAR: f64 = 0.5;
const ANSWER_BAR_MS: f64 = 100.0;
const HEARTBEAT_BAR_MS: f64 = 50.0;
const RSS_BAR_MIB: f64 = 1024.0;
const RECONNECT_BAR_S: f64 = 5.0;

#[derive(Debug, Args)]
pub struct Arguments {
    /// How many hosts are played.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    hosts: u32,
    /// How many vms run on them.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    vms: u32,
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// How long to measure.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(10..=600))]
    seconds: u64,
    /// Longest wait until all agents are connected and heard, also after the restart, in seconds.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(5..=3_600))]
    connect_max: u64,
    /// Create the vms through the API instead of writing them to the store before the server starts.
    #[arg(long)]
    create: bool,
    /// Longest time for the creation, in seconds.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(10..=7_200))]
    create_max: u64,
}

/// Names, places and sizes, the same for the store and for the player.
#[derive(Debug, Clone, Copy)]
struct Layout {
    hosts: u32,
    vms: u32,
}

impl Layout {
    fn host(self, index: u32) -> HostId {
        format!("h{index}").parse().expect("h and a number are a label")
    }

    fn vm(self, index: u32) -> VmId {
        format!("vm-{index:012}").parse().expect("vm- and twelve digits are a label")
    }

    fn host_of(self, vm: u32) -> u32 {
        vm % self.hosts
    }

    /// Twice what its vms need when all hosts have as many.
    fn capacity(self) -> Capacity {
        let room = 2 * u64::from(self.vms.div_ceil(self.hosts));
        Capacity { cpu: CpuMillis(1_000 * room), memory: Bytes(VM_MEMORY.0 * room) }
    }
}

/// Absent figures could not be reached within their limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    bench: &'static str,
    hosts: u32,
    vms: u32,
    /// Processor seconds per second.
    server_cores: f64,
    player_cores: f64,
    /// Of all cores, by everything that ran on the machine.
    machine_busy_percent: f64,
    rss_mib: f64,
    rss_peak_mib: f64,
    hosts_get_p99_ms: Option<f64>,
    vms_page_p99_ms: Option<f64>,
    heartbeat_p99_ms: Option<f64>,
    /// Messages of agents that the server handled per second of the measurement; one per host and second are sent.
    messages_per_s: f64,
    /// From the start of the first player until all its agents were heard.
    connect_s: Option<f64>,
    /// From the start of the new server process until all agents are connected and heard.
    reconnect_s: Option<f64>,
    /// From SIGTERM to the end of the old one.
    shutdown_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_vm_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<u32>,
    missed: Vec<&'static str>,
    limits: String,
}

impl Report {
    /// Name, bar, figure: `None` if the figure could not be had.
    fn rows(&self) -> [(&'static str, f64, Option<f64>); 6] {
        [
            ("server_cores", CORES_BAR, Some(self.server_cores)),
            ("rss_mib", RSS_BAR_MIB, Some(self.rss_mib)),
            ("hosts_get_p99_ms", ANSWER_BAR_MS, self.hosts_get_p99_ms),
            ("vms_page_p99_ms", ANSWER_BAR_MS, self.vms_page_p99_ms),
            ("heartbeat_p99_ms", HEARTBEAT_BAR_MS, self.heartbeat_p99_ms),
            ("reconnect_s", RECONNECT_BAR_S, self.reconnect_s),
        ]
    }

    fn missed(&self) -> Vec<&'static str> {
        let missed = |figure: Option<f64>, bar| figure.is_none_or(|figure| figure > bar);
        self.rows().into_iter().filter(|(_, bar, figure)| missed(*figure, *bar)).map(|(name, ..)| name).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} hosts, {} vms", self.hosts, self.vms)?;
        writeln!(f, "{:<20} {:>12} {:>8}", "figure", "measured", "bar")?;
        for (name, bar, figure) in self.rows() {
            let figure = figure.map_or_else(|| "not reached".to_owned(), |figure| format!("{figure:.2}"));
            let kept = if self.missed.contains(&name) { "MISSED" } else { "kept" };
            writeln!(f, "{name:<20} {figure:>12} {bar:>8}  {kept}")?;
        }
        writeln!(
            f,
            "The player took {:.2} cores. The whole machine was {:.0} % busy. The bars are for 1,000 hosts and 100,000 vms.",
            self.player_cores, self.machine_busy_percent
        )?;
        if let Some(rate) = self.create_vm_per_s {
            writeln!(f, "{} vms were created, {rate:.1} per second.", self.created.unwrap_or_default())?;
        }
        writeln!(f, "{}", self.limits)
    }
}

pub fn measure(args: &Arguments) -> Result<Report> {
    // Libraries that make a TLS configuration of their own take this one.
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measured(args))
}

async fn measured(args: &Arguments) -> Result<Report> {
    let layout = Layout { hosts: args.hosts, vms: args.vms };
    allow_files(u64::from(args.hosts) + FILES_BESIDE)?;
    let place = Place::make(layout)?;
    let connect_max = Duration::from_secs(args.connect_max);

    // The first start makes the CA, the operator's token and the policy; the rest is written beside them.
    let mut server = place.start()?;
    place.answers(&mut server).await?;
    end(server, END_MAX).await?;
    place.fill(layout, !args.create).await?;
    let mut server = place.start()?;
    place.answers(&mut server).await?;
    let operator = place.operator()?;
    say("the server runs; connecting agents");
    let mut player = Player::start(&place, layout, if args.create { 0 } else { args.vms })?;
    let connect_s = all_heard(&operator, args.hosts, connect_max, Instant::now()).await;
    let created = match args.create {
        true => Some(create(&operator, args.vms, Duration::from_secs(args.create_max)).await?),
        false => None,
    };
    sleep(SETTLE).await;

    say("measuring");
    let seconds = Duration::from_secs(args.seconds);
    let (mut server_meter, mut player_meter) = (Meter::start(server.0.id())?, Meter::start(player.pid())?);
    let (machine, before) = (Machine::read()?, Buckets::read(&operator).await);
    let begun = Instant::now();
    let page = ListQuery { limit: Some(ListQuery::LIMIT_DEFAULT), ..ListQuery::default() };
    let (hosts, vms) = tokio::join!(
        latencies(seconds, async || operator.of::<Host>().all().await.map(drop)),
        latencies(seconds, async || operator.of::<Vm>().page(&page).await.map(drop)),
    );
    server_meter.look()?;
    player_meter.look()?;
    let machine_busy_percent = Machine::read()?.busy_percent_since(machine);
    let heartbeats = before.zip(Buckets::read(&operator).await).map(|(before, after)| after.since(&before));
    let took = begun.elapsed().as_secs_f64();
    let profile = profile(server.0.id(), &place);

    say("restarting the server");
    let asked = Instant::now();
    end(server, END_MAX).await?;
    let shutdown_s = asked.elapsed().as_secs_f64();
    let restarted = Instant::now();
    let mut server = place.start()?;
    let reconnect_s = match place.answers(&mut server).await {
        Ok(()) => all_heard(&operator, args.hosts, connect_max, restarted).await,
        Err(problem) => {
            say(&format!("{problem:#}"));
            None
        }
    };
    let summary = player.end().await?;
    end(server, END_MAX).await?;

    let (server_cost, player_cost) = (server_meter.cost(), player_meter.cost());
    let messages = heartbeats.as_ref().map_or(0, Buckets::count);
    let mut report = Report {
        bench: "control",
        hosts: args.hosts,
        vms: args.vms,
        server_cores: server_cost.cpu_percent / 100.0,
        player_cores: player_cost.cpu_percent / 100.0,
        machine_busy_percent,
        rss_mib: server_cost.rss_mib,
        rss_peak_mib: server_cost.hwm_mib,
        hosts_get_p99_ms: hosts,
        vms_page_p99_ms: vms,
        heartbeat_p99_ms: heartbeats.and_then(|heartbeats| heartbeats.quantile_ms(0.99)),
        messages_per_s: messages as f64 / took,
        connect_s,
        reconnect_s,
        shutdown_s,
        create_vm_per_s: created.map(|(_, rate)| rate),
        created: created.map(|(count, _)| count),
        missed: Vec::new(),
        limits: String::new(),
    };
    report.missed = report.missed();
    report.limits = format!(
        "Missed: {}. The server handled {:.0} agent messages per second where {} were due; the player sent {} reports, \
         answered {} commands and lost {} connections in all (the last: {}). Most processor time: {profile}.",
        if report.missed.is_empty() { "none".to_owned() } else { report.missed.join(", ") },
        report.messages_per_s,
        args.hosts,
        summary.reports,
        summary.commands,
        summary.lost,
        summary.last_lost,
    );
    Ok(report)
}

fn say(text: &str) {
    eprintln!("drover-bench: {text}");
}

/// Lets this process and those that it starts have so many open files.
fn allow_files(wanted: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < wanted {
        ensure!(
            hard >= wanted,
            "{wanted} open files are needed, {hard} allowed: raise it (ulimit -Hn), or take fewer hosts"
        );
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(())
}

/// The server's directories, its configuration and addresses. Gone when dropped.
struct Place {
    dir: tempfile::TempDir,
    api: SocketAddr,
    agents: SocketAddr,
}

impl Place {
    fn make(layout: Layout) -> Result<Self> {
        let dir = tempfile::tempdir().context("can't make a temporary directory")?;
        // Held together until both are known, so that they differ; the restarted server needs the same ones.
        let free = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let place = Self { dir, api: free[0].local_addr()?, agents: free[1].local_addr()? };
        fs::create_dir(place.path("shared"))?;
        let text = format!(
            "data_dir = {:?}\nshared_dir = {:?}\nlisten = \"{}\"\nagent_listen = \"{}\"\n\
             [limits]\nagents_max = {}\n[policy]\nmode = \"propose\"\n",
            place.path("data"),
            place.path("shared"),
            place.api,
            place.agents,
            layout.hosts + 1,
        );
        fs::write(place.path("server.toml"), text)?;
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self) -> Result<Process> {
        let program = std::env::current_exe()?.with_file_name("drover");
        let log = File::options().create(true).append(true).open(self.path("server.log"))?;
        let mut command = Command::new(&program);
        command.arg("server").arg("--config").arg(self.path("server.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().with_context(|| format!("can't start {}: build it first", program.display()))?;
        Ok(Process(child))
    }

    /// Waits until the server answers.
    async fn answers(&self, server: &mut Process) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        loop {
            if let Some(status) = server.0.try_wait()? {
                bail!("the server ended ({status}): {}", last_lines(&self.path("server.log")));
            }
            if let Ok(operator) = self.operator()
                && let Ok(Ok(_)) = timeout(ANSWER_MAX, operator.policy()).await
            {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the server did not answer within {} s", START_MAX.as_secs());
            sleep(POLL).await;
        }
    }

    fn operator(&self) -> Result<Client> {
        let data = self.path("data");
        let ca_pem = Some(fs::read_to_string(data.join("pki/ca.crt"))?);
        let token = Some(fs::read_to_string(data.join("operator.token"))?.trim().to_owned());
        Ok(Client::new(&ClientConfig { server: format!("https://{}", self.api), ca_pem, token })?)
    }

    /// Writes tenant, image, hosts and, if `vms`, the vms to the store of a server that does not run.
    async fn fill(&self, layout: Layout, vms: bool) -> Result<()> {
        let kept = Kept { events_max: 100_000, changes_max: 100_000, maintain_every: SqliteStore::MAINTAIN_EVERY };
        let mut store = SqliteStore::open(&self.path("data").join("store.sqlite"), kept).await?;
        let revision = store.load().await?.revision.next();
        let at = drover_server::shell::now();
        let quota = Quota { vms: u64::MAX, vcpus: u64::MAX, memory_mib: u64::MAX, ..Quota::default() };
        let (id, name) = (format!("tn-{TENANT}").parse()?, TENANT.parse()?);
        let tenant =
            Tenant { id, name, created_at: at, labels: Default::default(), quota, provider_networks: BTreeMap::new() };
        let image = Image {
            id: IMAGE.parse()?,
            created_at: at,
            kernel: None,
            initrd: None,
            disk: None,
            cmdline: "console=ttyS0".to_owned(),
            labels: Default::default(),
        };
        let host = |index| Host {
            id: layout.host(index),
            joined_at: at,
            maintenance: false,
            drained_at: None,
            power: PowerIntent::On,
            capacity: Some(layout.capacity()),
            networks: BTreeSet::new(),
            overlay_address: None,
            boot_time: None,
            attributes: HostAttributes::default(),
            power_cycles: 0,
            off_since: None,
            wake_failed: None,
            lost: None,
        };
        let vm = |index: u32| -> Result<Vm> {
            let spec = VmSpec {
                name: format!("vm{index}").parse()?,
                tenant: tenant.name.clone(),
                image: image.id.clone(),
                vcpus: 1,
                memory: VM_MEMORY,
                nic: None,
                anti_affinity: None,
                pinned_to: BTreeSet::new(),
                cpu_reserved: CpuMillis(0),
                guest_args: BTreeMap::new(),
                labels: Default::default(),
            };
            Ok(Vm {
                id: layout.vm(index),
                spec,
                created_at: at,
                run: RunIntent::Running,
                host: Some(layout.host(layout.host_of(index))),
                generation: Generation(1),
                migration: None,
                left: Vec::new(),
                deleting: false,
                remains_on: BTreeSet::new(),
                gave_up: None,
            })
        };
        let mut objects = vec![Object::Tenant(tenant.clone()), Object::Image(image.clone())];
        objects.extend((0..layout.hosts).map(|index| Object::Host(host(index))));
        for index in (0..layout.vms).filter(|_| vms) {
            objects.push(Object::Vm(vm(index)?));
        }
        let writes = objects.into_iter().map(|object| Write::Put { object, expected: None }).collect();
        store.commit(&Commit { revision, writes, ..Commit::default() }).await?;
        store.release().await?;
        Ok(())
    }
}

/// Killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already, and then both fail.
        let _killed = self.0.kill();
        let _waited = self.0.wait();
    }
}

/// SIGTERM; SIGKILL if that is not enough.
async fn end(mut process: Process, within: Duration) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(process.0.id())?), Signal::SIGTERM)?;
    let deadline = Instant::now() + within;
    while process.0.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            say(&format!(
                "process {} did not end within {} s of SIGTERM and is killed",
                process.0.id(),
                within.as_secs()
            ));
            return Ok(());
        }
        sleep(POLL / 10).await;
    }
    Ok(())
}

struct Player(Process);

impl Player {
    fn start(place: &Place, layout: Layout, running: u32) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("control-player").arg("--server").arg(place.agents.to_string());
        command.arg("--pki").arg(place.path("data/pki")).arg("--running").arg(running.to_string());
        command.arg("--hosts").arg(layout.hosts.to_string()).arg("--vms").arg(layout.vms.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Self(Process(command.spawn().context("can't start the player")?)))
    }

    fn pid(&self) -> u32 {
        self.0.0.id()
    }

    /// Closes its standard input and takes its last words.
    async fn end(&mut self) -> Result<player::Summary> {
        drop(self.0.0.stdin.take());
        let mut stdout = self.0.0.stdout.take().context("the player's output is taken once")?;
        let read = tokio::task::spawn_blocking(move || std::io::read_to_string(&mut stdout));
        let text = timeout(END_MAX, read).await.context("the player does not end")???;
        serde_json::from_str(&text).context("the player said something else than its summary")
    }
}

/// Seconds from `since` until all agents are connected and heard, `None` if not within `max` of now.
async fn all_heard(operator: &Client, hosts: u32, max: Duration, since: Instant) -> Option<f64> {
    let heard = async {
        loop {
            if let Ok(list) = operator.of::<Host>().all().await {
                let up = list
                    .items
                    .iter()
                    .filter(|host| host.connected && host.state == HostState::Up && host.load.is_some());
                if up.count() == hosts as usize {
                    return since.elapsed().as_secs_f64();
                }
            }
            sleep(POLL).await;
        }
    };
    timeout(max, heard).await.ok()
}

/// How many vms were created, and how many per second.
async fn create(operator: &Client, vms: u32, max: Duration) -> Result<(u32, f64)> {
    say("creating vms");
    let (begun, next, made) = (Instant::now(), AtomicU32::new(0), AtomicU32::new(0));
    let creator = async || -> Result<(), ApiError> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= vms || begun.elapsed() >= max {
                return Ok(());
            }
            let vm = CreateVm {
                name: format!("vm{index}"),
                tenant: Some(TENANT.to_owned()),
                image: IMAGE.to_owned(),
                vcpus: 1,
                memory_mib: VM_MEMORY.0 >> 20,
                ..CreateVm::default()
            };
            operator.of::<Vm>().create(&vm).await?;
            made.fetch_add(1, Ordering::Relaxed);
        }
    };
    let creators = futures_util::future::try_join_all((0..CREATORS).map(|_| creator())).await;
    if let Err(problem) = creators {
        say(&format!("the creation ended early: {problem}"));
    }
    let made = made.load(Ordering::Relaxed);
    Ok((made, f64::from(made) / begun.elapsed().as_secs_f64()))
}

/// The 99th percentile of the answer times in ms; `None` if a request failed or had no answer in time.
async fn latencies(seconds: Duration, ask: impl AsyncFn() -> Result<(), ApiError>) -> Option<f64> {
    let deadline = Instant::now() + seconds;
    let (mut times, mut complete) = (Vec::new(), true);
    while Instant::now() < deadline {
        let asked = Instant::now();
        match timeout(ANSWER_MAX, ask()).await {
            Ok(Ok(())) => times.push(asked.elapsed().as_secs_f64() * 1e3),
            Ok(Err(problem)) => {
                say(&format!("a request failed: {problem}"));
                complete = false;
            }
            Err(_) => complete = false,
        }
        sleep(REQUEST_EVERY.saturating_sub(asked.elapsed())).await;
    }
    times.sort_by(f64::total_cmp);
    let rank = (times.len() as f64 * 0.99).ceil() as usize;
    times.get(rank.checked_sub(1)?).copied().filter(|_| complete)
}

/// The server's histogram of agent messages: upper bound in seconds and count up to it, in rising order.
#[derive(Debug, Clone, PartialEq)]
struct Buckets(Vec<(f64, u64)>);

impl Buckets {
    async fn read(operator: &Client) -> Option<Self> {
        let page = timeout(ANSWER_MAX, operator.metrics()).await.ok()?.ok()?;
        Self::in_page(&page)
    }

    fn in_page(page: &str) -> Option<Self> {
        let bucket = |line: &str| {
            let rest = line.strip_prefix("drover_agent_message_duration_seconds_bucket{le=\"")?;
            let (bound, count) = rest.split_once("\"} ")?;
            // "+Inf" is read as infinity.
            Some((bound.parse().ok()?, count.trim().parse().ok()?))
        };
        let buckets: Vec<_> = page.lines().filter_map(bucket).collect();
        (!buckets.is_empty()).then_some(Self(buckets))
    }

    fn since(&self, before: &Self) -> Self {
        let counts = self.0.iter().zip(&before.0);
        Self(counts.map(|((bound, now), (_, then))| (*bound, now.saturating_sub(*then))).collect())
    }

    fn count(&self) -> u64 {
        self.0.last().map_or(0, |(_, count)| *count)
    }

    /// The upper bound of the bucket that holds the quantile; `None` without messages, or beyond the last bound.
    fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        let rank = (self.count() as f64 * quantile).ceil().max(1.0) as u64;
        let (bound, _) = self.0.iter().find(|(_, count)| *count >= rank)?;
        bound.is_finite().then_some(bound * 1e3)
    }
}

/// Where the server spends its processor time, by perf(1) if that is installed.
fn profile(server: u32, place: &Place) -> String {
    let data = place.path("perf.data");
    let recorded = Command::new("perf")
        .args(["record", "-q", "-F", "199", "-p", &server.to_string(), "-o"])
        .arg(&data)
        .args(["--", "sleep", PROFILE_SECONDS])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !recorded.is_ok_and(|status| status.success()) {
        return "unknown (perf(1) of the linux-perf package could not record)".to_owned();
    }
    let report = Command::new("perf")
        .args(["report", "--stdio", "--no-children", "--sort", "symbol", "-i"])
        .arg(&data)
        .stderr(Stdio::null())
        .output();
    let Ok(report) = report else { return "unknown (perf report failed)".to_owned() };
    let text = String::from_utf8_lossy(&report.stdout);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let words = lines.take(PROFILE_LINES).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    words.collect::<Vec<_>>().join("; ")
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "drover_agent_message_duration_seconds_sum 1.0\n\
        drover_agent_message_duration_seconds_bucket{le=\"0.001\"} 90\n\
        drover_agent_message_duration_seconds_bucket{le=\"0.002\"} 99\n\
        drover_agent_message_duration_seconds_bucket{le=\"+Inf\"} 100\n";

    #[test]
    fn the_quantile_is_the_bound_of_its_bucket() {
        let buckets = Buckets::in_page(PAGE).unwrap();
        assert_eq!((buckets.count(), buckets.quantile_ms(0.9), buckets.quantile_ms(0.99)), (100, Some(1.0), Some(2.0)));
        assert_eq!(buckets.quantile_ms(0.999), None);
        assert_eq!(buckets.since(&buckets).quantile_ms(0.99), None);
        assert_eq!(Buckets::in_page("# EOF\n"), None);
    }

    #[test]
    fn every_host_has_room_for_twice_its_vms() {
        let layout = Layout { hosts: 3, vms: 10 };
        assert_eq!(layout.capacity().cpu, CpuMillis(8_000));
        assert_eq!(layout.capacity().memory, Bytes(8 * VM_MEMORY.0));
    }
}
