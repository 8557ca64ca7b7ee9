//! Hosts with real QEMUs: vms that outlive their agent, and move between two of them.

mod away;
mod life;
mod measure;
mod overlay;
mod post_copy;
mod pre_copy;
mod strategies;

use super::record::{Role, SendStep};
use super::*;
use crate::identity;
use crate::net::{Net, NetConfig};
use drover_model::command::MigrationTarget;
use drover_model::intent::Nic;
use drover_model::inventory::{Capacity, OutgoingPhase, VmState};
use drover_model::migration::Strategy;
use drover_model::network::Bandwidth;
use drover_model::policy::MigrationPolicy;
use drover_model::{Bytes, CpuMillis, Generation, Millis, NetworkId};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

/// No test waits longer for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
const MIGRATION: MigrationId = MigrationId(9);
const MAC: &str = "52:01:02:03:04:05";

/// Counts in memory without pause, checks what it wrote before, prints `.` now and then and `X` when memory is wrong:
///
/// ```text
///        cli; xor ax,ax; mov ds,ax; xor ecx,ecx; mov [0x600],ecx
/// next:  cmp [0x600],ecx; jne bad; inc ecx; mov [0x600],ecx
///        test ecx,0xffff; jnz next; mov dx,0x3f8; mov al,'.'; out dx,al; jmp next
/// bad:   mov dx,0x3f8; mov al,'X'; out dx,al
/// halt:  hlt; jmp halt
/// ```
const COUNTER: &[u8] = &[
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0x31, 0xc9, 0x66, 0x89, 0x0e, 0x00, 0x06, //
    0x66, 0x39, 0x0e, 0x00, 0x06, 0x75, 0x18, 0x66, 0x41, 0x66, 0x89, 0x0e, 0x00, 0x06, //
    0x66, 0xf7, 0xc1, 0xff, 0xff, 0x00, 0x00, 0x75, 0xe9, 0xba, 0xf8, 0x03, 0xb0, 0x2e, 0xee, 0xeb, 0xe1, //
    0xba, 0xf8, 0x03, 0xb0, 0x58, 0xee, 0xf4, 0xeb, 0xfd,
];

/// Writes a new number to every page between 1 and 31 MiB, round after round, after it has checked the one before; prints
/// `.` every 64 rounds and `X` when a page is wrong:
///
/// ```text
///        cli; xor ax,ax; mov ds,ax; lgdt [gdtr]; mov eax,cr0; or al,1; mov cr0,eax
///        mov bx,8; mov ds,bx; and al,0xfe; mov cr0,eax; xor ecx,ecx   ; ds now reaches all memory
///        mov edi,0x100000
/// fill:  mov [edi],ecx; add edi,0x1000; cmp edi,0x1f00000; jb fill
/// round: mov edi,0x100000
/// page:  cmp [edi],ecx; jne bad; inc ecx; mov [edi],ecx; dec ecx
///        add edi,0x1000; cmp edi,0x1f00000; jb page; inc ecx
///        test cl,0x3f; jnz round; mov dx,0x3f8; mov al,'.'; out dx,al; jmp round
/// bad:   mov dx,0x3f8; mov al,'X'; out dx,al
/// halt:  hlt; jmp halt
/// gdtr:  dw 15; dd gdt
/// gdt:   dq 0, 0x00cf92000000ffff
/// ```
const REWRITES_MEMORY: &[u8] = &[
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0x0f, 0x01, 0x16, 0x76, 0x7c, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, //
    0xc0, 0xbb, 0x08, 0x00, 0x8e, 0xdb, 0x24, 0xfe, 0x0f, 0x22, 0xc0, 0x66, 0x31, 0xc9, 0x66, 0xbf, 0x00, 0x00, //
    0x10, 0x00, 0x67, 0x66, 0x89, 0x0f, 0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0x66, 0x81, 0xff, 0x00, 0x00, //
    0xf0, 0x01, 0x72, 0xec, 0x66, 0xbf, 0x00, 0x00, 0x10, 0x00, 0x67, 0x66, 0x39, 0x0f, 0x75, 0x27, 0x66, 0x41, //
    0x67, 0x66, 0x89, 0x0f, 0x66, 0x49, 0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0x66, 0x81, 0xff, 0x00, 0x00, //
    0xf0, 0x01, 0x72, 0xe2, 0x66, 0x41, 0xf6, 0xc1, 0x3f, 0x75, 0xd5, 0xba, 0xf8, 0x03, 0xb0, 0x2e, 0xee, 0xeb, //
    0xcd, 0xba, 0xf8, 0x03, 0xb0, 0x58, 0xee, 0xf4, 0xeb, 0xfd, 0x0f, 0x00, 0x7c, 0x7c, 0x00, 0x00, 0x00, 0x00, //
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00,
];

/// Switches itself off through ACPI's PM1a control register: `mov dx,0x604; mov ax,0x2000; out dx,ax; hlt`.
const SWITCHES_ITSELF_OFF: &[u8] = &[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4];

/// A vm and the directories of two hosts that can run it.
struct Lab {
    dir: TempDir,
    vm: VmId,
    strategy: Strategy,
}

/// A host whose agent can be killed and started again.
struct LabHost {
    name: &'static str,
    strategy: Strategy,
    state_dir: PathBuf,
    shared_dir: PathBuf,
    vm: VmId,
    /// Where it receives vms.
    address: &'static str,
    cgroup: Option<HostGroup>,
    bridge: Option<String>,
    /// Of its vm, if that is on one.
    network: Option<NetworkId>,
    /// Those that differ from the defaults.
    limits: &'static str,
    supervisor: Option<Supervisor>,
}

impl Lab {
    fn new(guest: &[u8]) -> Self {
        own_network();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new().prefix("dv").tempdir().unwrap();
        let image = dir.path().join("shared/images/img");
        std::fs::create_dir_all(&image).unwrap();
        let mut sector = vec![0; 1 << 20];
        sector[..guest.len()].copy_from_slice(guest);
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        let raw = dir.path().join("guest.raw");
        std::fs::write(&raw, sector).unwrap();
        let convert = std::process::Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args([&raw, &image.join("disk")])
            .status()
            .expect("these tests run real QEMUs: install Debian's qemu-utils");
        assert!(convert.success());
        let vm = format!("vm-t{}x{number}", std::process::id()).parse().unwrap();
        make_identities(dir.path());
        Self { dir, vm, strategy: Strategy::PRE_COPY }
    }

    fn moving(guest: &[u8], strategy: Strategy) -> Self {
        Self { strategy, ..Self::new(guest) }
    }

    fn host(&self, name: &'static str) -> LabHost {
        LabHost {
            name,
            strategy: self.strategy,
            state_dir: self.dir.path().join(name),
            shared_dir: self.dir.path().join("shared"),
            vm: self.vm.clone(),
            cgroup: None,
            address: "127.0.0.1",
            bridge: None,
            network: None,
            limits: "",
            supervisor: None,
        }
    }

    /// A vm that stands at the switch-over from the first host to the second.
    async fn at_switch_over(&self) -> (LabHost, LabHost) {
        let (source, destination) = self.pair().await;
        let mut told = source.agent().updates();
        let target = destination.prepare(2).await;
        assert_eq!(source.migrate_out(1, target, policy()).await, Ok(CommandOutcome::Done));
        assert!(matches!(significant(&mut told).await, MigrationUpdate::AtSwitchOver { .. }));
        (source, destination)
    }

    fn cancel(&self) -> Command {
        Command::CancelMigration { vm: self.vm.clone(), migration: MIGRATION }
    }

    /// A vm running on the first host.
    async fn pair(&self) -> (LabHost, LabHost) {
        let (mut source, mut destination) = (self.host("h1"), self.host("h2"));
        source.start_agent().await;
        destination.start_agent().await;
        assert_eq!(source.run(1).await, Ok(CommandOutcome::Done));
        source.assert_runs_on().await;
        (source, destination)
    }
}

impl LabHost {
    async fn host(&self) -> Host {
        let mut text = format!(
            "host = {:?}\nserver = \"https://127.0.0.1:1\"\nstate_dir = {:?}\nshared_dir = {:?}\nmigration_address = {:?}\n",
            self.name, self.state_dir, self.shared_dir, self.address
        );
        if let Some(bridge) = &self.bridge {
            text.push_str(&format!("[networks]\nlan = {bridge:?}\n"));
        }
        text.push_str(&format!("[limits]\n{}\n", self.limits));
        let config = AgentConfig::from_toml(&text).unwrap();
        std::fs::create_dir_all(&self.state_dir).unwrap();
        let net = NetConfig {
            state_file: self.state_dir.join("network.json"),
            providers: config.networks.clone(),
            wait_max: config.limits.tool_wait_max(),
        };
        Host {
            accel: Accel::Tcg,
            cgroup: self.cgroup.clone(),
            net: Net::open(net).await.unwrap(),
            migration_address: watch::Sender::new(config.migration_address),
            config,
        }
    }

    async fn start_agent(&mut self) {
        self.supervisor = Some(Supervisor::start(self.host().await).await.unwrap());
    }

    /// The task of an agent that runs, its vm known as recorded and seen as `state`, which QEMU may be past.
    async fn task_that_sees(&self, state: VmState) -> VmTask {
        let shared = Arc::new(Shared::new(self.host().await));
        let (_, requests) = mpsc::channel(1);
        let mut task = VmTask::new(shared, self.vm.clone(), requests, watch::Sender::new(Seen::default()));
        task.process = task.find_process().unwrap();
        task.attach(&self.vm_run()).await.unwrap();
        task.known = Some((self.record(), state));
        task
    }

    /// As a kill would: nothing is said or written first.
    async fn kill_agent(&mut self) {
        let supervisor = self.supervisor.take().expect("an agent to kill");
        let shared = Arc::downgrade(&supervisor.shared);
        drop(supervisor);
        // Its tasks are gone once nothing is shared any more; QEMU serves one monitor client.
        until("the agent's tasks end", || shared.upgrade().is_none()).await;
    }

    fn agent(&self) -> &Supervisor {
        self.supervisor.as_ref().expect("an agent that runs")
    }

    async fn tell(&self, command: Command) -> Answer {
        timeout(PATIENCE, self.agent().command(command)).await.expect("an answer in time").expect("an answer")
    }

    async fn run(&self, generation: u64) -> Answer {
        self.tell(Command::Run { run: self.vm_run(), generation: Generation(generation) }).await
    }

    fn vm_run(&self) -> VmRun {
        VmRun {
            vm: self.vm.clone(),
            label: "acme-web".to_owned(),
            image: "img".parse().unwrap(),
            kernel: false,
            initrd: false,
            disk: true,
            cmdline: String::new(),
            vcpus: 1,
            memory: Bytes::mib(32),
            nic: self.network.as_ref().map(|network| Nic {
                network: network.clone(),
                mac: MAC.to_owned(),
                address: None,
                security_groups: BTreeSet::new(),
                bandwidth: Bandwidth::default(),
            }),
        }
    }

    async fn prepare(&self, generation: u64) -> MigrationTarget {
        match self.prepare_from("h1", generation).await {
            Ok(CommandOutcome::Listening { target }) => target,
            other => panic!("{other:?}"),
        }
    }

    async fn prepare_from(&self, from: &str, generation: u64) -> Answer {
        self.tell(Command::PrepareIncoming {
            run: self.vm_run(),
            generation: Generation(generation),
            migration: MIGRATION,
            from: from.parse().unwrap(),
            strategy: self.strategy,
        })
        .await
    }

    async fn migrate_out(&self, generation: u64, target: MigrationTarget, limits: MigrationPolicy) -> Answer {
        let (vm, generation, strategy) = (self.vm.clone(), Generation(generation), self.strategy);
        self.tell(Command::MigrateOut { vm, generation, migration: MIGRATION, target, limits, strategy }).await
    }

    async fn commit(&self, generation: u64) -> Answer {
        let generation = Generation(generation);
        self.tell(Command::CommitSwitchOver { vm: self.vm.clone(), generation, migration: MIGRATION }).await
    }

    async fn release(&self, generation: u64) -> Answer {
        let generation = Generation(generation);
        self.tell(Command::Release { vm: self.vm.clone(), generation, delete_disk: true }).await
    }

    async fn release_keeping_disk(&self, generation: u64) -> Answer {
        let generation = Generation(generation);
        self.tell(Command::Release { vm: self.vm.clone(), generation, delete_disk: false }).await
    }

    fn inventory(&self) -> Option<VmInventory> {
        self.agent().inventory().into_iter().find(|one| one.vm == self.vm)
    }

    fn pid(&self) -> u32 {
        self.inventory().and_then(|one| one.pid).expect("a process")
    }

    async fn until_state(&self, wanted: &VmState) {
        self.until_inventory(&format!("{wanted:?}"), |state| state == wanted).await;
    }

    async fn until_inventory(&self, what: &str, is: impl Fn(&VmState) -> bool) {
        let mut changes = self.agent().changes();
        let seen = async {
            while !self.inventory().is_some_and(|one| is(&one.state)) {
                changes.changed().await.expect("an agent that runs");
            }
        };
        if timeout(PATIENCE, seen).await.is_err() {
            panic!("waited for {what}, and it is {:?}", self.inventory());
        }
    }

    fn dir(&self) -> VmDir {
        VmDir::new(&self.state_dir, &self.vm)
    }

    fn printed(&self) -> String {
        String::from_utf8(log::tail(&self.dir().serial_log(), 1 << 20).unwrap()).unwrap()
    }

    /// The guest executes on this host, and its memory is what it left there.
    async fn assert_runs_on(&self) {
        let before = self.printed().len();
        until("the guest prints", || {
            let printed = self.printed();
            assert!(!printed.contains('X'), "the guest found its memory changed");
            printed.len() > before + 1
        })
        .await;
    }

    fn record(&self) -> Record {
        record::load_all(&self.state_dir).unwrap().into_iter().next().expect("a record")
    }
}

impl Drop for LabHost {
    fn drop(&mut self) {
        // A test that failed leaves its vm: ended here, while the process is still that one.
        let pid_file = self.dir().pid_file();
        let Some(pid) = std::fs::read_to_string(&pid_file).ok().map(|text| text.trim().to_owned()) else { return };
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if arguments.split(|byte| *byte == 0).any(|one| one == pid_file.as_os_str().as_encoded_bytes()) {
            let _ = std::process::Command::new("kill").args(["-9", &pid]).status();
        }
    }
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The next update that says more than progress.
async fn significant(updates: &mut broadcast::Receiver<Update>) -> MigrationUpdate {
    loop {
        match timeout(PATIENCE, updates.recv()).await.expect("an update in time").expect("an update").update {
            MigrationUpdate::Progress { .. } => {}
            other => return other,
        }
    }
}

fn policy() -> MigrationPolicy {
    MigrationPolicy {
        downtime_max: Millis(2000),
        total_max: Millis(30_000),
        bandwidth_max: Bytes(0),
        commit_wait_max: Millis(30_000),
        ..MigrationPolicy::default()
    }
}

/// A network of the test's own, for this thread and what it starts: a host's network is all of its namespace.
fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("these tests need Debian's iproute2").success());
}

/// Hosts of one cluster, as joining would leave them.
fn make_identities(dir: &Path) {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    for name in ["h1", "h2", "h3"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        identity::keep(&dir.join(name), &key.serialize_pem(), &certificate.pem(), &ca.pem());
    }
}

fn outgoing(phase: OutgoingPhase) -> VmState {
    VmState::Outgoing { migration: MIGRATION, phase }
}

fn exists(pid: u32) -> bool {
    // A process that ended and was not collected yet has no arguments.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|arguments| !arguments.is_empty())
}
