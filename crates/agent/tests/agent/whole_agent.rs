//! Joining, serving, and losing the server.

use crate::server::{Connection, PATIENCE, Server};
use drover_agent::AgentConfig;
use drover_api::agent::{ConsoleBytes, FromAgent, PROTOCOL_VERSION, ToAgent};
use drover_model::command::{Command, CommandOutcome, CommandRefusal, VmRun};
use drover_model::inventory::{Accelerator, MigrationFeature, VmInventory, VmState};
use drover_model::{Bytes, CommandId, CpuMillis, Generation, VmId};
use std::path::PathBuf;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Prints `.` now and then: `mov dx,0x3f8; mov al,'.'; out: out dx,al; xor cx,cx; wait: loop wait; jmp out`.
const PRINTER: &[u8] = &[0xba, 0xf8, 0x03, 0xb0, 0x2e, 0xee, 0x31, 0xc9, 0xe2, 0xfe, 0xeb, 0xf9];

struct Lab {
    dir: TempDir,
    server: Server,
    qemu: &'static str,
    limits: String,
}

struct Agent {
    task: JoinHandle<anyhow::Result<()>>,
    stop: oneshot::Sender<()>,
}

impl Lab {
    async fn new() -> Self {
        own_network();
        let dir = tempfile::Builder::new().prefix("dv").tempdir().unwrap();
        let image = dir.path().join("shared/images/img");
        std::fs::create_dir_all(&image).unwrap();
        let mut sector = vec![0; 1 << 20];
        sector[..PRINTER.len()].copy_from_slice(PRINTER);
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        let raw = dir.path().join("guest.raw");
        std::fs::write(&raw, sector).unwrap();
        let convert = std::process::Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args([&raw, &image.join("disk")])
            .status()
            .expect("these tests run real QEMUs: install Debian's qemu-utils");
        assert!(convert.success());
        let lab = Self { dir, server: Server::start().await, qemu: "qemu-system-x86_64", limits: String::new() };
        lab.write_token(&lab.server.token());
        lab
    }

    fn write_token(&self, token: &str) {
        std::fs::write(self.dir.path().join("token"), token).unwrap();
    }

    fn config(&self) -> AgentConfig {
        let at = |name: &str| self.dir.path().join(name);
        AgentConfig::from_toml(&format!(
            "host = \"h1\"\nserver = \"https://127.0.0.1:{}\"\nstate_dir = {:?}\nshared_dir = {:?}\njoin_token_file = {:?}\nqemu = {:?}\n\
             [limits]\nrefused_wait_ms = 50\nsample_every_ms = 200\n{}",
            self.server.api_port,
            at("state"),
            at("shared"),
            at("token"),
            self.qemu,
            self.limits,
        ))
        .unwrap()
    }

    fn start_agent(&self) -> Agent {
        let (stop, stopped) = oneshot::channel::<()>();
        let config = self.config();
        let task = tokio::spawn(drover_agent::run(config, async {
            let _ = stopped.await;
        }));
        Agent { task, stop }
    }

    async fn start_refused(&self) -> String {
        let end = timeout(PATIENCE, drover_agent::run(self.config(), std::future::pending())).await;
        format!("{:#}", end.expect("an end").expect_err("an error"))
    }

    fn identity(&self) -> PathBuf {
        self.dir.path().join("state/identity")
    }

    /// Unique, so that tests that run side by side never meet.
    fn vm(&self) -> VmId {
        let name: String = self.dir.path().file_name().unwrap().to_str().unwrap().to_lowercase();
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        format!("vm-{name}").parse().unwrap()
    }
}

/// A network of the test's own, for this thread and what it starts: an agent takes its whole namespace for its host's.
fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("these tests need Debian's iproute2").success());
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A test that failed leaves its vm: ended here, while the process is still that one.
        let pid_file = self.dir.path().join(format!("state/vms/{}/qemu.pid", self.vm()));
        let Some(pid) = std::fs::read_to_string(&pid_file).ok().map(|text| text.trim().to_owned()) else { return };
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if arguments.split(|byte| *byte == 0).any(|one| one == pid_file.as_os_str().as_encoded_bytes()) {
            let _ = std::process::Command::new("kill").args(["-9", &pid]).status();
        }
    }
}

impl Agent {
    async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(PATIENCE, self.task).await.expect("an end").unwrap().unwrap();
    }
}

impl Connection {
    async fn command(&mut self, id: u64, command: Command) -> Result<CommandOutcome, CommandRefusal> {
        let id = CommandId(id);
        self.say(ToAgent::Command { id, command: Box::new(command) }).await;
        self.hear_until("an answer", |message| match message {
            FromAgent::Answer { id: answered, answer } if answered == id => Some(answer),
            _ => None,
        })
        .await
    }

    async fn inventory(&mut self, what: &str, is: impl Fn(&[VmInventory]) -> bool) {
        self.hear_until(what, |message| match message {
            FromAgent::Report(report) => is(&report.vms).then_some(()),
            _ => None,
        })
        .await;
    }

    async fn output(&mut self, wanted: u64, text: &str) {
        self.hear_until("console output", |message| match message {
            FromAgent::ConsoleOutput { session, data } if session == wanted => {
                String::from_utf8_lossy(&data.0).contains(text).then_some(())
            }
            _ => None,
        })
        .await;
    }
}

#[tokio::test]
async fn a_host_joins_once_and_says_what_it_is() {
    let lab = Lab::new().await;
    let agent = lab.start_agent();
    let (mut connection, hello) = lab.server.welcome().await;
    assert_eq!((hello.protocol, hello.host.as_str(), hello.vms.len()), (PROTOCOL_VERSION, "h1", 0));
    assert!(hello.facts.capacity.cpu >= CpuMillis::CORE && hello.facts.qemu_version.contains('.'), "{hello:?}");
    let facts = &hello.facts;
    assert!(facts.machine_types.contains("pc-q35-7.2"), "{facts:?}");
    assert!(facts.migration_features.contains(&MigrationFeature::Tls), "{facts:?}");
    assert_eq!(facts.cpu_features.is_empty(), facts.accelerator == Accelerator::Tcg, "{facts:?}");
    assert_eq!(facts.overlay_address, Some([127, 0, 0, 1].into()), "the connection's own, for want of another");
    let mut last = 0;
    connection
        .hear_until("load", |message| {
            let FromAgent::Report(report) = message else { panic!("{message:?}") };
            assert_eq!(report.seq, last + 1, "reports are counted");
            last = report.seq;
            report.load
        })
        .await;
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(lab.identity().join("key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let shown = |path: &str| std::fs::read(lab.dir.path().join("state").join(path)).unwrap();
    assert_eq!(shown("tls/server-cert.pem"), shown("identity/certificate.pem"), "QEMU shows what the agent does");
    agent.stop().await;

    // The token is used up, and not needed any more.
    let again = lab.start_agent();
    let (_, second) = lab.server.welcome().await;
    assert_ne!(second.facts.agent_run, hello.facts.agent_run);
    assert_eq!(second.facts.boot_id, hello.facts.boot_id);
    assert_eq!(*lab.server.joined.lock().unwrap(), 1);
    again.stop().await;
}

#[tokio::test]
async fn a_join_that_cannot_be_says_what_to_do_and_stores_nothing() {
    let lab = Lab::new().await;
    let token = lab.server.token();
    lab.write_token("not a token");
    assert!(lab.start_refused().await.contains("drover host token"));
    let (start, ca) = token.rsplit_once('.').unwrap();
    lab.write_token(&format!("{start}.{}", "0".repeat(ca.len())));
    assert!(lab.start_refused().await.contains("another CA"));
    *lab.server.joined.lock().unwrap() = 1;
    lab.write_token(&token);
    assert!(lab.start_refused().await.contains("the token was used already: make a new one"));
    assert!(!lab.identity().exists());
}

#[tokio::test]
async fn what_a_host_lacks_is_said_by_name_before_anything_runs() {
    let mut lab = Lab::new().await;
    lab.limits = "[networks]\nlan = \"nobridge\"\n".to_owned();
    let said = lab.start_refused().await;
    assert!(said.contains("network lan") && said.contains("nobridge"), "{said}");
    lab.limits.clear();
    lab.qemu = "qemu-that-is-not-there";
    let said = lab.start_refused().await;
    assert!(said.contains("qemu-that-is-not-there") && said.contains("package qemu-system-x86"), "{said}");
    lab.qemu = "true";
    assert!(lab.start_refused().await.contains("not QEMU"));
    lab.qemu = "qemu-system-x86_64";
    std::fs::rename(lab.dir.path().join("shared"), lab.dir.path().join("elsewhere")).unwrap();
    let said = lab.start_refused().await;
    assert!(said.contains("shared_dir") && said.contains("/shared"), "{said}");
    std::fs::write(lab.dir.path().join("state/vms"), "not a directory").unwrap();
    std::fs::rename(lab.dir.path().join("elsewhere"), lab.dir.path().join("shared")).unwrap();
    assert!(lab.start_refused().await.contains("state/vms"));
}

#[tokio::test]
async fn losing_the_server_stops_no_vm_and_the_next_connection_tells_all_anew() {
    let lab = Lab::new().await;
    let agent = lab.start_agent();
    let (mut connection, _) = lab.server.welcome().await;
    let vm = lab.vm();
    let run = VmRun {
        vm: vm.clone(),
        label: "acme-web".to_owned(),
        image: "img".parse().unwrap(),
        kernel: false,
        initrd: false,
        disk: true,
        cmdline: String::new(),
        vcpus: 1,
        memory: Bytes::mib(32),
        nic: None,
    };
    let generation = Generation(1);
    let started = connection.command(1, Command::Run { run, generation }).await;
    assert_eq!(started, Ok(CommandOutcome::Done));
    connection.inventory("a running vm", |vms| vms.first().is_some_and(|one| one.state == VmState::Running)).await;
    // A guest that has just begun holds no memory yet.
    let used = connection
        .hear_until("the load of a vm with memory", |message| match message {
            FromAgent::Report(report) => {
                let used = report.load.and_then(|load| load.vms.get(&vm).copied());
                used.filter(|used| used.memory_used > Bytes::ZERO)
            }
            _ => None,
        })
        .await;
    assert!(used.cpu_wanted >= used.cpu_used && used.memory_used <= Bytes::mib(32), "{used:?}");
    connection.say(ToAgent::ConsoleOpen { session: 1, vm: vm.clone() }).await;
    connection.output(1, ".").await;
    connection.say(ToAgent::ConsoleInput { session: 1, data: ConsoleBytes(b"x".to_vec()) }).await;
    drop(connection);

    let (mut connection, hello) = lab.server.welcome().await;
    assert_eq!(hello.vms.iter().map(|one| &one.state).collect::<Vec<_>>(), [&VmState::Running]);
    connection.say(ToAgent::ConsoleOpen { session: 1, vm: vm.clone() }).await;
    connection.output(1, ".").await;
    let stop = Command::Stop { vm: vm.clone(), generation: Generation(0), grace: drover_model::Millis(1) };
    let refused = connection.command(2, stop).await;
    assert_eq!(refused, Err(CommandRefusal::StaleGeneration { known: generation }));
    let release = Command::Release { vm, generation, delete_disk: true };
    assert_eq!(connection.command(3, release).await, Ok(CommandOutcome::Done));
    connection.inventory("no vm", <[VmInventory]>::is_empty).await;
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_that_was_refused_or_hears_nothing_dials_again() {
    let mut lab = Lab::new().await;
    lab.limits = "ping_every_ms = 50\nserver_silence_max_ms = 200\n".to_owned();
    let agent = lab.start_agent();
    let mut connection = lab.server.accept().await;
    assert!(matches!(connection.hear().await, FromAgent::Hello(_)));
    connection.say(ToAgent::Refused { why: "run the same version".to_owned() }).await;
    let silent = lab.server.welcome().await;
    // Held, and never read again: not even pings are answered.
    let (_, hello) = lab.server.welcome().await;
    assert_eq!(hello.host.as_str(), "h1");
    drop(silent);
    agent.stop().await;
}

#[tokio::test]
async fn a_second_agent_on_the_same_state_directory_does_not_start() {
    let lab = Lab::new().await;
    let agent = lab.start_agent();
    let (connection, _) = lab.server.welcome().await;
    assert!(lab.start_refused().await.contains("another agent runs"));
    drop(connection);
    agent.stop().await;
}
