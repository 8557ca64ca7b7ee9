//! The real `drover` command against a real server on loopback: what scripts rely on.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const DROVER: &str = env!("CARGO_BIN_EXE_drover");
const START_MAX: Duration = Duration::from_secs(60);

struct Server {
    process: std::process::Child,
    dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        let config = dir.path().join("server.toml");
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let text = format!(
            "data_dir = {data:?}\nshared_dir = {shared:?}\nlisten = \"127.0.0.1:0\"\n\
             agent_listen = \"127.0.0.1:0\"\n"
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new(DROVER).arg("server").arg("--config").arg(&config).stderr(log).spawn().unwrap();
        let mut server = Self { process, dir };
        server.wait_until_ready();
        server
    }

    fn client_toml(&self) -> PathBuf {
        self.dir.path().join("data/client.toml")
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + START_MAX;
        loop {
            if self.client_toml().exists() && self.run("whoami").status.success() {
                return;
            }
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap();
            assert!(Instant::now() < deadline, "the server did not come up: {}", log());
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!(
                    "the server ended with {status}: {}",
                    std::fs::read_to_string(self.dir.path().join("log")).unwrap()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn run(&self, line: &str) -> Output {
        run_with(&self.client_toml(), line)
    }

    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} -o json"))).unwrap()
    }

    /// Expects a failure with this exit code, nothing on standard output and one line that says `said`.
    fn refused(&self, line: &str, code: i32, said: &str) {
        let output = self.run(line);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {message}");
        assert!(output.stdout.is_empty(), "{line}: {:?}", output.stdout);
        assert!(message.starts_with("error: ") && message.contains(said), "{line}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{line}: {message}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run_with(config: &Path, line: &str) -> Output {
    Command::new(DROVER).arg("--config").arg(config).args(line.split_whitespace()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_operator_can_do_the_first_day_s_work() {
    let server = Server::start();
    let whoami = server.json("whoami");
    assert_eq!(whoami["role"], "operator");

    assert!(server.ok("tenant create acme").contains("acme"));
    let tenants = server.json("tenant ls");
    assert_eq!(tenants["items"][0]["name"], "acme");

    let kernel = server.dir.path().join("kernel");
    std::fs::write(&kernel, vec![7; 100_000]).unwrap();
    let image = server.json(&format!("image create tiny --kernel {} --cmdline quiet", kernel.display()));
    assert_eq!((&image["id"], &image["kernel"]["size_bytes"]), (&"tiny".into(), &100_000.into()));

    assert!(server.ok("image ls").contains("tiny"));
    assert!(server.json("vm ls")["items"].as_array().unwrap().is_empty());
    server.refused("vm create web-1 --tenant acme --image tiny --memory 64M", 1, "drover host token");

    let events = server.json("events --object tenant/acme");
    assert_eq!(events["items"][0]["object"], "tenant/acme");
    assert!(server.ok("events --limit 5").contains("acme"));
    assert!(!server.ok("explain cluster").trim().is_empty());

    let policy = server.json("policy set mode=propose hosts_up_min=2");
    assert_eq!((&policy["mode"], &policy["hosts_up_min"]), (&"propose".into(), &2.into()));
    let file = server.dir.path().join("policy.yaml");
    std::fs::write(&file, server.ok("policy show -o yaml").replace("propose", "observe")).unwrap();
    let policy = server.json(&format!("policy edit-from {}", file.display()));
    assert_eq!((&policy["mode"], &policy["hosts_up_min"]), (&"observe".into(), &2.into()));

    assert!(server.ok("host ls").starts_with("HOST"));
    assert!(server.ok("status").contains("observe"));
    let join = server.dir.path().join("h1.join");
    server.ok(&format!("host token h1 --save {}", join.display()));
    assert_eq!(std::fs::read_to_string(&join).unwrap().trim().split('.').count(), 3);
    assert!(server.json("openapi")["paths"]["/v1/vms"].is_object());
}

#[test]
fn refusals_come_with_their_exit_codes_in_one_line() {
    let server = Server::start();
    server.ok("tenant create acme");
    server.refused("host show h9", 5, "h9");
    server.refused("vm measure web-9 --seconds 1 --wait", 5, "web-9");
    server.refused("tenant create acme", 6, "acme");
    server.refused("policy set hot_abov=1", 1, "hot_abov");
    server.refused("policy set hot_above=7", 1, "between 0 and 1");
    server.refused("policy set mode=act --if-match 0", 6, "read it again");
    server.refused("host ls --ca-file /no/such/ca.pem", 1, "/no/such/ca.pem");
    server.refused("host ls --server https://127.0.0.1:1", 3, "no server answers");
    let other = Server::start();
    let ca = other.dir.path().join("data/pki/ca.crt");
    assert!(ca.exists());
    server.refused(&format!("host ls --ca-file {}", ca.display()), 3, "is not the server that the CA file vouches for");

    let token = server.dir.path().join("acme.token");
    server.ok(&format!("token create ci --tenant acme --save {}", token.display()));
    server.refused(&format!("host ls --token-file {}", token.display()), 4, "whoami");
    let vms = server.run(&format!("vm ls --token-file {} -o json", token.display()));
    assert!(vms.status.success(), "{}", stderr(&vms));
    server.ok("token rm ci");
    server.refused(&format!("vm ls --token-file {}", token.display()), 4, "--token-file");

    let usage = server.run("vm create");
    assert_eq!(usage.status.code(), Some(2));
    let version = server.run("--version");
    assert!(version.status.success() && version.stdout.starts_with(b"drover "));
}
