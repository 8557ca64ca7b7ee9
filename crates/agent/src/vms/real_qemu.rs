//! Hosts with real QEMUs: vms that outlive their agent, and move between two of them.

mod measure;

use super::record::{Role, SendStep};
use super::*;
use crate::config::Limits;
use crate::net::Net;
use drover_model::command::MigrationTarget;
use drover_model::intent::Nic;
use drover_model::inventory::{Capacity, OutgoingPhase, VmState};
use drover_model::policy::MigrationPolicy;
use drover_model::{Bytes, CpuMillis, Generation, Millis};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

/// No test waits longer for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
const MIGRATION: MigrationId = MigrationId(9);

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

/// Switches itself off through ACPI's PM1a control register: `mov dx,0x604; mov ax,0x2000; out dx,ax; hlt`.
const SWITCHES_ITSELF_OFF: &[u8] = &[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4];

/// A vm and the directories of two hosts that can run it.
struct Lab {
    dir: TempDir,
    vm: VmId,
}

/// A host whose agent can be killed and started again.
struct LabHost {
    state_dir: PathBuf,
    shared_dir: PathBuf,
    vm: VmId,
    cgroup: Option<HostGroup>,
    bridge: Option<String>,
    supervisor: Option<Supervisor>,
}

impl Lab {
    fn new(guest: &[u8]) -> Self {
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
        Self { dir, vm }
    }

    fn host(&self, name: &str) -> LabHost {
        LabHost {
            state_dir: self.dir.path().join(name),
            shared_dir: self.dir.path().join("shared"),
            vm: self.vm.clone(),
            cgroup: None,
            bridge: None,
            supervisor: None,
        }
    }

    /// A vm that stands at the switch-over from the first host to the second.
    async fn at_switch_over(&self) -> (LabHost, LabHost) {
        let (source, destination) = self.pair().await;
        let mut told = source.agent().updates();
        let target = destination.prepare(2).await;
        assert_eq!(source.migrate_out(1, target, POLICY).await, Ok(CommandOutcome::Done));
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
    fn host(&self) -> Host {
        let mut text = format!(
            "host = \"h1\"\nserver = \"https://127.0.0.1:1\"\nstate_dir = {:?}\nshared_dir = {:?}\nmigration_address = \"127.0.0.1\"\n",
            self.state_dir, self.shared_dir
        );
        if let Some(bridge) = &self.bridge {
            text.push_str(&format!("[networks]\nlan = {bridge:?}\n"));
        }
        let config = AgentConfig::from_toml(&text).unwrap();
        Host {
            accel: Accel::Tcg,
            cgroup: self.cgroup.clone(),
            net: Net::new(Limits::default().tool_wait_max()),
            migration_address: watch::Sender::new(config.migration_address),
            config,
        }
    }

    async fn start_agent(&mut self) {
        self.supervisor = Some(Supervisor::start(self.host()).await.unwrap());
    }

    /// The task of an agent that runs, its vm known as recorded and seen as `state`, which QEMU may be past.
    async fn task_that_sees(&self, state: VmState) -> VmTask {
        let (updates, _) = broadcast::channel(UPDATES_KEPT_MAX);
        let changes = watch::Sender::new(0);
        let shared = Arc::new(Shared { host: self.host(), vms: Mutex::default(), updates, changes });
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
            nic: self.bridge.as_ref().map(|_| Nic {
                network: "lan".parse().unwrap(),
                mac: "52:01:02:03:04:05".to_owned(),
                address: None,
            }),
        }
    }

    async fn prepare(&self, generation: u64) -> MigrationTarget {
        let command =
            Command::PrepareIncoming { run: self.vm_run(), generation: Generation(generation), migration: MIGRATION };
        match self.tell(command).await {
            Ok(CommandOutcome::Listening { target }) => target,
            other => panic!("{other:?}"),
        }
    }

    async fn migrate_out(&self, generation: u64, target: MigrationTarget, limits: MigrationPolicy) -> Answer {
        let (vm, generation) = (self.vm.clone(), Generation(generation));
        self.tell(Command::MigrateOut { vm, generation, migration: MIGRATION, target, limits }).await
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

const POLICY: MigrationPolicy = MigrationPolicy {
    downtime_max: Millis(2000),
    total_max: Millis(30_000),
    bandwidth_max: Bytes(0),
    commit_wait_max: Millis(30_000),
};

fn outgoing(phase: OutgoingPhase) -> VmState {
    VmState::Outgoing { migration: MIGRATION, phase }
}

fn exists(pid: u32) -> bool {
    // A process that ended and was not collected yet has no arguments.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|arguments| !arguments.is_empty())
}

#[tokio::test]
async fn a_vm_outlives_its_agent_and_the_next_one_adopts_stops_and_releases_it() {
    let lab = Lab::new(COUNTER);
    let mut host = lab.host("h1");
    host.start_agent().await;
    assert_eq!(host.run(1).await, Ok(CommandOutcome::Done));
    host.until_state(&VmState::Running).await;
    let pid = host.pid();
    host.kill_agent().await;
    host.assert_runs_on().await;

    host.start_agent().await;
    let seen = host.inventory().unwrap();
    assert_eq!((seen.state, seen.pid, seen.generation), (VmState::Running, Some(pid), Generation(1)));
    assert_eq!(host.run(1).await, Ok(CommandOutcome::Done));
    assert_eq!(host.run(2).await, Ok(CommandOutcome::Done));
    assert_eq!(host.run(1).await, Err(CommandRefusal::StaleGeneration { known: Generation(2) }));
    assert_eq!(host.pid(), pid, "an adopted vm is not started again");

    let stop = Command::Stop { vm: lab.vm.clone(), generation: Generation(2), grace: Millis(50) };
    assert_eq!(host.tell(stop).await, Ok(CommandOutcome::Done));
    host.until_state(&VmState::Stopped).await;
    assert!(!exists(pid));
    host.kill_agent().await;
    host.start_agent().await;
    host.until_state(&VmState::Stopped).await;

    assert_eq!(host.run(3).await, Ok(CommandOutcome::Done));
    host.assert_runs_on().await;
    let pid = host.pid();
    assert_eq!(host.release(2).await, Err(CommandRefusal::StaleGeneration { known: Generation(3) }));
    let disk = host.shared_dir.join(format!("disks/{}.qcow2", lab.vm));
    assert!(disk.exists());
    for _ in 0..2 {
        assert_eq!(host.release(3).await, Ok(CommandOutcome::Done));
        assert_eq!(host.inventory(), None);
    }
    assert!(!exists(pid) && !disk.exists() && !host.dir().pid_file().exists());
}

#[tokio::test]
async fn a_vm_has_its_tap_and_its_vcpus_under_the_quota_while_it_runs() {
    let lab = Lab::new(COUNTER);
    let n = std::process::id() % 100_000;
    let bridge = format!("dvb{n}");
    let ip = |arguments: &[&str]| std::process::Command::new("ip").args(arguments).status().unwrap().success();
    assert!(ip(&["link", "add", "dev", &bridge, "type", "bridge"]), "this test needs root");
    let group = format!("drover-agent-test-{n}");
    let capacity = Capacity { cpu: CpuMillis(900), memory: Bytes::mib(512) };
    let hierarchy = crate::cgroup::Hierarchy::find().expect("this test needs control groups");
    let cgroup = HostGroup::set_up(hierarchy, &group, capacity, Bytes::mib(200)).unwrap();
    let mut host = lab.host("h1");
    host.bridge = Some(bridge.clone());
    host.cgroup = Some(cgroup.clone());
    host.start_agent().await;
    let started = host.run(1).await;
    let tap = tap_name(&lab.vm);
    let there = ip(&["link", "show", "dev", &tap, "master", &bridge]);
    let (pid, threads) = {
        let measurable = host.agent().measurable();
        let subject = measurable.first().map(|one| one.subject.clone()).expect("a vm to measure");
        (subject.pid, subject.vcpu_threads)
    };
    let group_of = |task: u32| std::fs::read_to_string(format!("/proc/{pid}/task/{task}/cgroup")).unwrap();
    let (vcpu, main) = (group_of(threads[0]), group_of(pid));
    let released = host.release(1).await;
    let tap_left = ip(&["link", "show", "dev", &tap]);
    ip(&["link", "delete", "dev", &bridge]);
    cgroup.remove_all();
    assert_eq!((started, released), (Ok(CommandOutcome::Done), Ok(CommandOutcome::Done)));
    assert!(there && !tap_left);
    let vcpu_group = format!("/{group}/vcpu/{}", lab.vm);
    assert!(vcpu.contains(&vcpu_group), "{vcpu}");
    assert!(!main.contains(&vcpu_group) && main.contains(&format!("/{group}")), "{main}");
}

#[tokio::test]
async fn a_guest_that_switches_itself_off_is_stopped_and_a_qemu_that_is_killed_has_failed() {
    let lab = Lab::new(SWITCHES_ITSELF_OFF);
    let mut host = lab.host("h1");
    host.start_agent().await;
    assert_eq!(host.run(1).await, Ok(CommandOutcome::Done));
    host.until_state(&VmState::Stopped).await;

    let lab = Lab::new(COUNTER);
    let mut host = lab.host("h1");
    host.start_agent().await;
    assert_eq!(host.run(1).await, Ok(CommandOutcome::Done));
    assert!(std::process::Command::new("kill").args(["-9", &host.pid().to_string()]).status().unwrap().success());
    host.until_inventory("failed", |state| matches!(state, VmState::Failed { .. })).await;
    assert_eq!(host.inventory().unwrap().pid, None);
    assert_eq!(host.run(2).await, Ok(CommandOutcome::Done));
    host.assert_runs_on().await;
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_can_be_tried_at_a_newer_generation() {
    let lab = Lab::new(COUNTER);
    let mut host = lab.host("h1");
    host.start_agent().await;
    let disk = host.shared_dir.join("images/img/disk");
    let hidden = disk.with_extension("hidden");
    std::fs::rename(&disk, &hidden).unwrap();
    let Err(CommandRefusal::Failed { why }) = host.run(1).await else { panic!("started without an image") };
    assert!(why.contains("the image img has no disk"), "{why}");
    assert!(matches!(host.inventory().unwrap().state, VmState::Failed { .. }));
    std::fs::rename(&hidden, &disk).unwrap();
    assert_eq!(host.run(2).await, Ok(CommandOutcome::Done));
    host.assert_runs_on().await;
}

#[tokio::test]
async fn a_committed_vm_runs_at_the_destination_and_the_source_lets_go() {
    let lab = Lab::new(COUNTER);
    let (source, destination) = lab.pair().await;
    let (mut told, mut arrived) = (source.agent().updates(), destination.agent().updates());
    let target = destination.prepare(2).await;
    assert_eq!(destination.prepare(2).await, target, "the same answer to the same command");
    assert_eq!(source.migrate_out(1, target.clone(), POLICY).await, Ok(CommandOutcome::Done));
    let MigrationUpdate::AtSwitchOver { stopped_at } = significant(&mut told).await else { panic!("no switch-over") };
    assert_eq!(source.inventory().unwrap().state, outgoing(OutgoingPhase::AtSwitchOver));

    assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
    let MigrationUpdate::HandedOver { report } = significant(&mut told).await else { panic!("not handed over") };
    let MigrationUpdate::Running { at } = significant(&mut arrived).await else { panic!("not arrived") };
    assert!(at >= stopped_at, "{at:?} {stopped_at:?}");
    assert!(report.memory >= Bytes::mib(31) && report.transferred > Bytes::ZERO && report.rounds >= 1, "{report:?}");
    destination.assert_runs_on().await;
    let seen = destination.inventory().unwrap();
    assert_eq!((seen.state, seen.generation), (VmState::Running, Generation(2)));
    assert_eq!(source.inventory().unwrap().state, VmState::HandedOver { migration: MIGRATION });
    assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done), "twice is once");
    for host in [&source, &destination] {
        let refused = host.tell(lab.cancel()).await;
        assert!(matches!(refused, Err(CommandRefusal::WrongState { .. })), "{refused:?}");
    }
    let pid = source.pid();
    let release = Command::Release { vm: lab.vm.clone(), generation: Generation(2), delete_disk: false };
    assert_eq!(source.tell(release).await, Ok(CommandOutcome::Done));
    assert!(!exists(pid) && source.inventory().is_none());
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn without_a_commit_in_time_the_source_runs_on_and_the_destination_never_ran() {
    let lab = Lab::new(COUNTER);
    let (source, destination) = lab.pair().await;
    let (mut told, mut arrived) = (source.agent().updates(), destination.agent().updates());
    let target = destination.prepare(2).await;
    let hasty = MigrationPolicy { commit_wait_max: Millis(100), ..POLICY };
    assert_eq!(source.migrate_out(1, target, hasty).await, Ok(CommandOutcome::Done));
    assert!(matches!(significant(&mut told).await, MigrationUpdate::AtSwitchOver { .. }));
    let MigrationUpdate::SourceResumed { why } = significant(&mut told).await else { panic!("not resumed") };
    assert!(why.contains("commit"), "{why}");
    assert!(matches!(significant(&mut arrived).await, MigrationUpdate::IncomingFailed { .. }));
    assert!(matches!(source.commit(2).await, Err(CommandRefusal::WrongState { .. })), "too late");
    source.until_state(&VmState::Running).await;
    source.assert_runs_on().await;
    assert_eq!(destination.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
    assert_eq!(destination.inventory(), None);
}

#[tokio::test]
async fn a_cancelled_migration_leaves_the_vm_where_it_was_and_nothing_at_the_destination() {
    let lab = Lab::new(COUNTER);
    let (source, destination) = lab.pair().await;
    let target = destination.prepare(2).await;
    // Slow enough to be cancelled while memory flows.
    let slow = MigrationPolicy { bandwidth_max: Bytes(100_000), downtime_max: Millis(1), ..POLICY };
    assert_eq!(source.migrate_out(1, target, slow).await, Ok(CommandOutcome::Done));
    source.until_state(&outgoing(OutgoingPhase::PreCopy)).await;
    assert_eq!(source.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
    assert_eq!(source.inventory().unwrap().state, VmState::Running);
    source.assert_runs_on().await;
    // Its stream is broken and its QEMU ends: while it does, a cancel may be told to try again.
    let cancelled = async { while destination.tell(lab.cancel()).await != Ok(CommandOutcome::Done) {} };
    timeout(PATIENCE, cancelled).await.expect("the destination lets go");
    assert_eq!(destination.inventory(), None);
    assert_eq!(destination.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
    assert_eq!(source.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
}

#[tokio::test]
async fn both_agents_die_at_the_switch_over_and_their_successors_finish_it() {
    let lab = Lab::new(COUNTER);
    let (mut source, mut destination) = lab.at_switch_over().await;
    source.kill_agent().await;
    destination.kill_agent().await;
    source.start_agent().await;
    destination.start_agent().await;
    assert_eq!(source.inventory().unwrap().state, outgoing(OutgoingPhase::AtSwitchOver));
    assert_eq!(destination.inventory().unwrap().state, VmState::Incoming { migration: MIGRATION });
    assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
    source.until_state(&VmState::HandedOver { migration: MIGRATION }).await;
    destination.until_state(&VmState::Running).await;
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_recorded_commit_is_carried_out_by_the_next_agent() {
    let lab = Lab::new(COUNTER);
    let (mut source, destination) = lab.at_switch_over().await;
    source.kill_agent().await;
    // The moment between the record of the commit and QEMU hearing of it.
    let mut record = source.record();
    let Role::Send { step, .. } = &mut record.role else { panic!("{record:?}") };
    *step = SendStep::Committed;
    source.dir().save(&record).unwrap();
    source.start_agent().await;
    source.until_state(&VmState::HandedOver { migration: MIGRATION }).await;
    destination.until_state(&VmState::Running).await;
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_vm_handed_over_to_a_host_that_was_lost_is_taken_back_at_a_newer_generation() {
    let lab = Lab::new(COUNTER);
    let (mut source, destination) = lab.pair().await;
    let mut told = source.agent().updates();
    let target = destination.prepare(2).await;
    assert_eq!(source.migrate_out(1, target, POLICY).await, Ok(CommandOutcome::Done));
    assert!(matches!(significant(&mut told).await, MigrationUpdate::AtSwitchOver { .. }));
    assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
    assert!(matches!(significant(&mut told).await, MigrationUpdate::HandedOver { .. }));
    destination.until_state(&VmState::Running).await;
    assert_eq!(destination.release_keeping_disk(2).await, Ok(CommandOutcome::Done));
    // The agent restarts in between: what was handed over is known from QEMU and the record.
    source.kill_agent().await;
    source.start_agent().await;
    assert_eq!(source.inventory().unwrap().state, VmState::HandedOver { migration: MIGRATION });
    let take_back =
        |generation| Command::TakeBack { vm: lab.vm.clone(), generation: Generation(generation), migration: MIGRATION };
    assert_eq!(source.tell(take_back(1)).await, Err(CommandRefusal::Conflict));
    for _ in 0..2 {
        assert_eq!(source.tell(take_back(3)).await, Ok(CommandOutcome::Done));
    }
    let seen = source.inventory().unwrap();
    assert_eq!((seen.state, seen.generation), (VmState::Running, Generation(3)));
    source.assert_runs_on().await;
}

#[tokio::test]
async fn a_vm_handed_over_whose_qemu_ends_has_failed_whoever_watched() {
    /// What the source's agent does meanwhile.
    #[derive(Debug)]
    enum Agent {
        Watches,
        AdoptedIt,
        Sleeps,
    }
    for agent in [Agent::Watches, Agent::AdoptedIt, Agent::Sleeps] {
        let lab = Lab::new(COUNTER);
        let (mut source, destination) = lab.at_switch_over().await;
        assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
        source.until_state(&VmState::HandedOver { migration: MIGRATION }).await;
        let pid = source.pid();
        if !matches!(agent, Agent::Watches) {
            source.kill_agent().await;
        }
        if matches!(agent, Agent::AdoptedIt) {
            source.start_agent().await;
            assert_eq!(source.inventory().unwrap().state, VmState::HandedOver { migration: MIGRATION });
        }
        assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
        if matches!(agent, Agent::Sleeps) {
            until("QEMU ends", || !exists(pid)).await;
            source.start_agent().await;
        }
        let failed = |state: &VmState| matches!(state, VmState::Failed { why } if why.contains("handed over"));
        source.until_inventory(&format!("failed, while the agent {agent:?}"), failed).await;
        assert_eq!(source.inventory().unwrap().pid, None);
        let take_back = Command::TakeBack { vm: lab.vm.clone(), generation: Generation(3), migration: MIGRATION };
        let refused = source.tell(take_back).await;
        assert!(matches!(refused, Err(CommandRefusal::WrongState { .. })), "{refused:?}");
        destination.assert_runs_on().await;
    }
}

#[tokio::test]
async fn a_cancel_does_not_end_a_guest_that_ran_before_its_agent_saw_it() {
    let lab = Lab::new(COUNTER);
    let (source, mut destination) = lab.at_switch_over().await;
    destination.kill_agent().await;
    assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
    source.until_state(&VmState::HandedOver { migration: MIGRATION }).await;
    destination.assert_runs_on().await;

    let mut task = destination.task_that_sees(VmState::Incoming { migration: MIGRATION }).await;
    let (reply, answer) = oneshot::channel();
    task.cancel_migration(reply).await;
    assert_eq!(answer.await.unwrap(), Err(CommandRefusal::WrongState { state: "running".to_owned() }));
    assert_eq!(task.known.as_ref().map(|(_, state)| state), Some(&VmState::Running));
    assert_eq!(destination.record().arrived_by, Some(MIGRATION));
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_cancel_ends_a_destination_that_has_not_received_everything() {
    let lab = Lab::new(COUNTER);
    let (source, destination) = lab.at_switch_over().await;
    let pid = destination.pid();
    assert_eq!(destination.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
    assert!(!exists(pid) && destination.inventory().is_none());
    assert_eq!(source.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
    source.until_state(&VmState::Running).await;
    source.assert_runs_on().await;
}

#[tokio::test]
async fn a_guest_that_an_unfinished_cancel_forbade_to_run_runs_once_it_has_arrived() {
    for agent_returns_first in [true, false] {
        let lab = Lab::new(COUNTER);
        let (source, mut destination) = lab.at_switch_over().await;
        destination.kill_agent().await;
        // The moment between forbidding it and looking.
        let machine = Machine::attach(&destination.dir().qmp_socket()).await.unwrap();
        machine.stop().await.unwrap();
        drop(machine);
        if agent_returns_first {
            destination.start_agent().await;
            assert_eq!(destination.inventory().unwrap().state, VmState::Incoming { migration: MIGRATION });
        }
        assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
        source.until_state(&VmState::HandedOver { migration: MIGRATION }).await;
        if !agent_returns_first {
            destination.start_agent().await;
        }
        destination.until_state(&VmState::Running).await;
        assert_eq!(destination.record().arrived_by, Some(MIGRATION));
        destination.assert_runs_on().await;
    }
}

#[tokio::test]
async fn a_destination_that_dies_during_pre_copy_leaves_the_vm_at_the_source() {
    let lab = Lab::new(COUNTER);
    let (source, destination) = lab.pair().await;
    let (mut told, mut arrived) = (source.agent().updates(), destination.agent().updates());
    let target = destination.prepare(2).await;
    let slow = MigrationPolicy { bandwidth_max: Bytes(100_000), downtime_max: Millis(1), ..POLICY };
    assert_eq!(source.migrate_out(1, target, slow).await, Ok(CommandOutcome::Done));
    let pid = destination.pid().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    assert!(matches!(significant(&mut arrived).await, MigrationUpdate::IncomingFailed { .. }));
    assert!(matches!(significant(&mut told).await, MigrationUpdate::SourceResumed { .. }));
    source.until_state(&VmState::Running).await;
    source.assert_runs_on().await;
    destination.until_inventory("incoming failed", |state| matches!(state, VmState::IncomingFailed { .. })).await;
}
