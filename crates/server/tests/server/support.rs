//! A whole server on loopback, its operator, and agents that do as they are told without a hypervisor.

use drover_api::agent::{ConsoleBytes, FromAgent, Hello, Load, PATH, PROTOCOL_VERSION, Report, ToAgent};
use drover_api::client::{ApiError, Client, ClientConfig};
use drover_api::join::{JoinRequest, JoinResponse};
use drover_api::problem::Problem;
use drover_api::v1::{CreateImage, CreateJoinToken, CreateTenant, CreateToken, CreateVm, ImagePart, RoleName};
use drover_model::command::{Command, CommandOutcome};
use drover_model::intent::Nic;
use drover_model::intent::Tenant;
use drover_model::inventory::{Accelerator, Capacity, HostFacts, VmInventory, VmState};
use drover_model::load::{HostSample, VmSample};
use drover_model::network::HostNetwork;
use drover_model::{Bytes, CpuMillis, HostId, Ratio, TimeMs, VmId};
use drover_server::config::ServerConfig;
use futures_util::{SinkExt as _, StreamExt as _};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// Longest wait for anything: far above what is needed, so that only a hang reaches it.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct Cluster {
    pub dir: TempDir,
    pub config: ServerConfig,
    pub api: SocketAddr,
    pub agents: SocketAddr,
    server: JoinHandle<anyhow::Result<()>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// `extra`: more TOML for the configuration.
    pub async fn with(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), extra);
        let (api, agents, server, stop) = serve(config.clone()).await;
        Self { dir, config, api, agents, server, stop: Some(stop) }
    }

    /// Ends the server as a kill would, and starts another one on the same directory.
    pub async fn kill_and_start(&mut self) {
        self.kill_and_edit(async |_same| ()).await;
    }

    /// The same, and in between the files are changed.
    pub async fn kill_and_edit(&mut self, edit: impl AsyncFnOnce(&Self)) {
        self.server.abort();
        let _killed = (&mut self.server).await;
        edit(self).await;
        let (api, agents, server, stop) = serve(self.config.clone()).await;
        (self.api, self.agents, self.server, self.stop) = (api, agents, server, Some(stop));
    }

    /// Asks the server to end; gives what it returned.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.stop.take());
        (&mut self.server).await.unwrap()
    }

    pub fn server(&self) -> String {
        format!("https://{}", self.api)
    }

    pub fn ca_pem(&self) -> String {
        std::fs::read_to_string(self.config.data_dir.join("pki/ca.crt")).unwrap()
    }

    pub fn operator_token(&self) -> String {
        std::fs::read_to_string(self.config.data_dir.join("operator.token")).unwrap().trim().to_owned()
    }

    pub fn client(&self, token: Option<String>) -> Client {
        Client::new(&ClientConfig { server: self.server(), ca_pem: Some(self.ca_pem()), token }).unwrap()
    }

    pub fn operator(&self) -> Client {
        self.client(Some(self.operator_token()))
    }

    /// Requests that the typed client would never send.
    pub fn raw(&self) -> reqwest::Client {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem().as_bytes()).unwrap()).unwrap();
        reqwest::Client::builder().tls_backend_preconfigured(client_tls(roots, None)).no_proxy().build().unwrap()
    }

    /// An encrypted connection to the API, and nothing said on it.
    pub async fn tls(&self) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem().as_bytes()).unwrap()).unwrap();
        let tcp = TcpStream::connect(self.api).await.unwrap();
        let name = ServerName::try_from(self.api.ip().to_string()).unwrap();
        TlsConnector::from(Arc::new(client_tls(roots, None))).connect(name, tcp).await.unwrap()
    }

    /// A tenant, and a client that speaks for it.
    pub async fn tenant(&self, name: &str) -> Client {
        let operator = self.operator();
        operator.of::<Tenant>().create(&create_tenant(name)).await.unwrap();
        let ask = CreateToken { id: None, role: RoleName::Tenant, tenant: Some(name.to_owned()), expires_s: None };
        let created = operator.create_token(&ask).await.unwrap();
        self.client(Some(created.token))
    }

    /// An image whose kernel is a few bytes: nobody boots it here.
    pub async fn image(&self, name: &str) {
        let file = self.dir.path().join("kernel");
        std::fs::write(&file, b"not really a kernel").unwrap();
        let operator = self.operator();
        operator.stage_image_file(name, ImagePart::Kernel, &file, |_| ()).await.unwrap();
        let files = vec![ImagePart::Kernel];
        let create = CreateImage { cmdline: "console=ttyS0".to_owned(), ..create_image(name, files) };
        operator.create_image(&create).await.unwrap();
    }

    pub async fn join_token(&self, host: &str) -> String {
        self.operator().create_join_token(host, &CreateJoinToken::default()).await.unwrap().token
    }

    pub async fn join(&self, host: &str) -> Identity {
        let token = self.join_token(host).await;
        self.join_with(host, &token).await.unwrap()
    }

    pub async fn join_with(&self, host: &str, token: &str) -> Result<Identity, Problem> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let host: HostId = host.parse().unwrap();
        let request = JoinRequest { host: host.clone(), token: token.to_owned(), csr_pem: csr.pem().unwrap() };
        let url = format!("{}/v1/join", self.server());
        let response = self.raw().post(url).json(&request).send().await.unwrap();
        if !response.status().is_success() {
            return Err(response.json().await.unwrap());
        }
        let joined: JoinResponse = response.json().await.unwrap();
        assert_eq!(joined.agent_port, self.agents.port());
        Ok(Identity { host, certificate_pem: joined.certificate_pem, key_pem: key.serialize_pem() })
    }

    /// An agent's connection before its first word.
    pub async fn dial(&self, identity: Option<&Identity>) -> Result<AgentLink, String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem().as_bytes()).unwrap()).unwrap();
        let tls = client_tls(roots, identity);
        let tcp = TcpStream::connect(self.agents).await.map_err(|error| error.to_string())?;
        let name = ServerName::try_from(self.agents.ip().to_string()).unwrap();
        let tls = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(|error| error.to_string())?;
        let url = format!("wss://{}{PATH}", self.agents);
        let (socket, _) = tokio_tungstenite::client_async(url, tls).await.map_err(|error| error.to_string())?;
        Ok(AgentLink { socket })
    }

    /// A host that has joined and whose agent does as it is told until dropped.
    pub async fn host(&self, name: &str) -> ObedientAgent {
        let identity = self.join(name).await;
        self.agent(&identity).await
    }

    pub async fn agent(&self, identity: &Identity) -> ObedientAgent {
        let mut link = self.dial(Some(identity)).await.unwrap();
        link.say(hello(&identity.host)).await;
        let ToAgent::Welcome(_) = link.hear().await.unwrap() else { panic!("not welcome") };
        ObedientAgent { task: tokio::spawn(obey(link)) }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub fn config(dir: &Path, extra: &str) -> ServerConfig {
    std::fs::create_dir_all(dir.join("shared")).unwrap();
    let text = format!(
        "data_dir = {:?}\nshared_dir = {:?}\nlisten = \"127.0.0.1:0\"\nagent_listen = \"127.0.0.1:0\"\n{extra}",
        dir.join("data"),
        dir.join("shared"),
    );
    ServerConfig::parse(Path::new("test"), &text).unwrap()
}

type Served = (SocketAddr, SocketAddr, JoinHandle<anyhow::Result<()>>, tokio::sync::oneshot::Sender<()>);

async fn serve(config: ServerConfig) -> Served {
    let deadline = Instant::now() + DEADLINE;
    let running = loop {
        match drover_server::start(config.clone()).await {
            Ok(running) => break running,
            // The tasks of a killed predecessor let go of its lock when the runtime gets round to it.
            Err(error) if error.to_string().contains("another server runs") && Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("{error:#}"),
        }
    };
    let (api, agents) = (running.api, running.agents);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let server = tokio::spawn(running.until(async {
        let _asked = stopped.await;
    }));
    (api, agents, server, stop)
}

fn client_tls(roots: rustls::RootCertStore, identity: Option<&Identity>) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let certificate = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    }
}

/// What a host has once it joined.
pub struct Identity {
    pub host: HostId,
    pub certificate_pem: String,
    pub key_pem: String,
}

pub fn facts() -> HostFacts {
    HostFacts {
        agent_version: "0.1.0".to_owned(),
        qemu_version: "7.2.22".to_owned(),
        kernel: "6.1".to_owned(),
        accelerator: Accelerator::Tcg,
        accelerator_why: "no virtualization".to_owned(),
        cpu_model: "test".to_owned(),
        capacity: Capacity { cpu: CpuMillis(4_000), memory: Bytes::GIB },
        networks: ["lan".parse().unwrap()].into(),
        overlay_address: Some([10, 77, 0, 1].into()),
        machine_types: Default::default(),
        cpu_features: Default::default(),
        migration_features: Default::default(),
        boot_id: "boot".to_owned(),
        agent_run: "run".to_owned(),
    }
}

pub fn hello(host: &HostId) -> FromAgent {
    FromAgent::Hello(Hello { protocol: PROTOCOL_VERSION, host: host.clone(), facts: facts(), vms: Vec::new() })
}

pub struct AgentLink {
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

impl AgentLink {
    pub async fn say(&mut self, message: FromAgent) {
        self.say_text(&serde_json::to_string(&message).unwrap()).await;
    }

    pub async fn say_text(&mut self, text: &str) {
        // The server may have ended the connection; the test sees that by what it hears.
        let _sent = self.socket.send(Message::text(text)).await;
    }

    /// The server's next message; `None` when the connection has ended.
    pub async fn hear(&mut self) -> Option<ToAgent> {
        tokio::time::timeout(DEADLINE, async {
            loop {
                match self.socket.next().await? {
                    Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
                    Ok(Message::Close(_)) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        })
        .await
        .expect("the server said nothing")
    }

    pub async fn refusal(&mut self) -> String {
        loop {
            match self.hear().await {
                Some(ToAgent::Network { .. }) => {}
                Some(ToAgent::Refused { why }) => return why,
                other => panic!("not refused: {other:?}"),
            }
        }
    }
}

pub struct ObedientAgent {
    task: JoinHandle<()>,
}

impl Drop for ObedientAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What every measurement finds.
pub const DIRTY_RATE: Bytes = Bytes::mib(3);

/// Runs, stops, releases and measures vms in no time, and echoes on consoles.
async fn obey(mut link: AgentLink) {
    let mut vms: BTreeMap<VmId, VmInventory> = BTreeMap::new();
    let mut measured: BTreeSet<VmId> = BTreeSet::new();
    let mut seq = 0;
    let mut network = HostNetwork::default();
    let mut every = tokio::time::interval(Duration::from_millis(200));
    loop {
        let heard = tokio::select! {
            heard = link.hear() => heard,
            _ = every.tick() => {
                seq += 1;
                let at = drover_server::shell::now();
                let samples = measured.iter().map(|vm| (vm.clone(), idle_vm())).collect();
                let load = Some(Load { host: idle(), vms: samples });
                link.say(FromAgent::Report(report(seq, at, &vms, load, &network))).await;
                continue;
            }
        };
        match heard {
            None => return,
            Some(ToAgent::Command { id, command }) => {
                match *command {
                    Command::MeasureDirtyRate { vm, .. } => drop(measured.insert(vm)),
                    Command::Run { run, .. } if run.nic.as_ref().is_some_and(|nic| !has(&network, &run.vm, nic)) => {
                        panic!("told to run {} before its network", run.vm);
                    }
                    command => carry_out(&mut vms, command),
                }
                link.say(FromAgent::Answer { id, answer: Ok(CommandOutcome::Done) }).await;
                seq += 1;
                link.say(FromAgent::Report(report(seq, drover_server::shell::now(), &vms, None, &network))).await;
            }
            Some(ToAgent::Network { network: newer }) => network = newer,
            Some(ToAgent::ConsoleOpen { session, .. }) => {
                let data = ConsoleBytes(b"login: ".to_vec());
                link.say(FromAgent::ConsoleOutput { session, data }).await;
            }
            Some(ToAgent::ConsoleInput { session, data }) if data.0 == b"exit\n" => {
                link.say(FromAgent::ConsoleClosed { session, why: "the guest hung up".to_owned() }).await;
            }
            Some(ToAgent::ConsoleInput { session, data }) => {
                link.say(FromAgent::ConsoleOutput { session, data }).await;
            }
            Some(ToAgent::ConsoleClose { .. } | ToAgent::Welcome(_) | ToAgent::Refused { .. }) => {}
        }
    }
}

fn report(
    seq: u64,
    at: TimeMs,
    vms: &BTreeMap<VmId, VmInventory>,
    load: Option<Load>,
    network: &HostNetwork,
) -> Report {
    let vms = vms.values().cloned().collect();
    Report { seq, at, vms, load, network: network.generation, network_error: None }
}

/// Whether the host was told how to guard the vm's card, and of its overlay network if it is on one.
fn has(network: &HostNetwork, vm: &VmId, nic: &Nic) -> bool {
    let overlay = nic.network.as_str().starts_with("net-");
    network.vms.iter().any(|port| port.vm == *vm && port.mac == nic.mac)
        && (!overlay || network.overlays.iter().any(|known| known.network == nic.network))
}

fn carry_out(vms: &mut BTreeMap<VmId, VmInventory>, command: Command) {
    match command {
        Command::Run { run, generation } => {
            let seen = VmInventory { vm: run.vm.clone(), generation, state: VmState::Running, pid: Some(1) };
            vms.insert(run.vm, seen);
        }
        Command::Stop { vm, .. } => {
            if let Some(seen) = vms.get_mut(&vm) {
                seen.state = VmState::Stopped;
            }
        }
        Command::Release { vm, .. } | Command::CancelMigration { vm, .. } => drop(vms.remove(&vm)),
        // It never says where it listens, so nothing is sent.
        Command::PrepareIncoming { run, generation, migration, .. } => {
            let seen =
                VmInventory { vm: run.vm.clone(), generation, state: VmState::Incoming { migration }, pid: None };
            vms.insert(run.vm, seen);
        }
        other => panic!("not in these tests: {other:?}"),
    }
}

fn idle() -> HostSample {
    HostSample {
        cpu_used: CpuMillis(1_500),
        cpu_wanted: CpuMillis(1_500),
        memory_used: Bytes::mib(100),
        memory_pressure: Ratio(0.0),
        net_rx: Bytes(0),
        net_tx: Bytes(0),
        disk_latency_us: 0,
    }
}

fn idle_vm() -> VmSample {
    VmSample {
        cpu_used: CpuMillis(10),
        cpu_wanted: CpuMillis(10),
        memory_used: Bytes::mib(30),
        net_rx: Bytes(0),
        net_tx: Bytes(0),
        disk_latency_us: 0,
        dirty_rate: Some(DIRTY_RATE),
    }
}

pub fn create_tenant(name: &str) -> CreateTenant {
    let provider_networks = [("lan".parse().unwrap(), Vec::new())].into();
    CreateTenant { provider_networks, ..CreateTenant::named(name.parse().unwrap()) }
}

pub fn create_image(name: &str, files: Vec<ImagePart>) -> CreateImage {
    CreateImage { name: name.to_owned(), cmdline: String::new(), files, labels: Default::default() }
}

pub fn small_vm(name: &str) -> CreateVm {
    CreateVm {
        name: name.to_owned(),
        image: "small".to_owned(),
        vcpus: 1,
        memory_mib: 64,
        network: Some("lan".to_owned()),
        address: Some("10.78.0.11/24".to_owned()),
        ..CreateVm::default()
    }
}

pub fn problem<T: std::fmt::Debug>(result: Result<T, ApiError>) -> Problem {
    match result {
        Err(ApiError::Problem(problem)) => problem,
        other => panic!("not a problem: {other:?}"),
    }
}

/// Asks again and again until the answer is there.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
