//! The grammar as a whole, and the views that the tables' tests draw.

use super::output::Output;
use super::*;
use drover_api::v1::{ClusterView, HostView, MigrationView, PlanView, VmView};
use serde_json::json;

pub const PLAIN: Output = Output { format: Format::Table, colour: false };

pub fn host_view(id: &str) -> HostView {
    serde_json::from_value(json!({
        "id": id, "revision": 5, "joined_at_ms": 1_795_294_000_000_u64, "state": "up",
        "state_since_ms": 1_795_294_010_000_u64, "connected": true, "last_report_at_ms": 1_795_294_069_000_u64,
        "maintenance": false, "power": "on", "power_managed": true, "boot_time_ms": 4200,
        "capacity": {"cpu_millis": 1500, "memory_mib": 1024},
        "facts": {
            "agent_version": "0.1.0", "qemu_version": "7.2.22", "kernel": "6.1.0", "accelerator": "tcg",
            "accelerator_why": "/dev/kvm is missing", "cpu_model": "Some Processor", "networks": ["prov"],
            "boot_id": "b", "agent_run": "r",
        },
        "load": {
            "cpu_used_millis": 1490, "cpu_wanted_millis": 1720, "memory_used_mib": 300, "memory_pressure": 0.02,
            "net_rx_bytes_s": 2048, "net_tx_bytes_s": 100, "disk_latency_us": 0,
        },
        "heat": "hot", "vms": ["vm-aaaaaaaaaaaa", "vm-bbbbbbbbbbbb"], "memory_promised_mib": 384,
    }))
    .unwrap()
}

pub fn vm_view(name: &str) -> VmView {
    serde_json::from_value(json!({
        "id": "vm-aaaaaaaaaaaa", "name": name, "tenant": "acme", "revision": 9, "image": "tiny", "vcpus": 1,
        "memory_mib": 128, "nic": {"network": "prov", "mac": "52:11:22:33:44:55", "address": "10.78.0.11/24"},
        "anti_affinity": "web", "pinned_to": ["h1", "h2"], "guest_args": {"cpu": "60"},
        "created_at_ms": 1_795_294_000_000_u64, "run": "running", "phase": "running", "why": null, "host": "h1",
        "generation": 3, "migration": null, "moved_at_ms": 1_795_294_050_000_u64, "moved_from": "h2", "pid": 4242,
        "load": {
            "cpu_used_millis": 500, "cpu_wanted_millis": 612, "memory_used_mib": 90, "net_rx_bytes_s": 0,
            "net_tx_bytes_s": 0, "disk_latency_us": 0, "dirty_bytes_s": null,
        },
    }))
    .unwrap()
}

pub fn migration_view() -> MigrationView {
    serde_json::from_value(json!({
        "id": 7, "revision": 31, "vm": "vm-aaaaaaaaaaaa", "vm_name": "web-1", "tenant": "acme", "from": "h1", "to": "h2",
        "generation": 3, "plan": 42, "reason": "h1 is hot", "phase": "done", "over": true, "stage": "done", "why": null,
        "strategy": {
            "method": "post-copy", "channels": 1, "compress": false, "throttle_max_percent": 0, "tls": true,
            "pace_min_bytes_s": 55_000_000, "pace_max_bytes_s": 110_000_000,
        },
        "prediction": {
            "total_ms": {"low": 2200, "expected": 2800, "high": 3900},
            "downtime_ms": {"low": 30, "expected": 55, "high": 90},
            "transferred_bytes": {"low": 96_000_000, "expected": 104_000_000, "high": 140_000_000},
        },
        "priority": "high", "held": false, "start_eta_at_ms": null, "finish_eta_at_ms": null, "waits_for": null,
        "recoveries": 0,
        "started_at_ms": 1_795_294_060_000_u64, "finished_at_ms": 1_795_294_063_000_u64, "progress": null,
        "report": {
            "predicted_total_ms": 2800, "total_ms": 3000, "downtime_ms": 61, "downtime_commit_ms": 9,
            "downtime_copy_ms": 40, "downtime_resume_ms": 12, "transferred_bytes": 110_000_000,
            "memory_bytes": 134_217_728, "rounds": 3, "in_use_bytes": 98_000_000, "throughput_bytes_s": 60_000_000,
            "dirty_bytes_s": 9_000_000, "writable_working_set_bytes": 4_000_000, "post_copied_bytes": 2_000_000,
            "throttled_percent": 0,
        },
    }))
    .unwrap()
}

pub fn plan_view() -> PlanView {
    let to_h3 = json!({"action": "migrate", "vm": "vm-aaaaaaaaaaaa", "generation": 3, "from": "h1", "to": "h3"});
    let migrate = json!({"action": "migrate", "vm": "vm-aaaaaaaaaaaa", "generation": 3, "from": "h1", "to": "h2"});
    serde_json::from_value(json!({
        "id": 42, "revision": 30, "parent_revision": 28, "made_at_ms": 1_795_294_059_000_u64,
        "finished_at_ms": 1_795_294_066_000_u64, "scenario": "hotspot", "why": "h1 is hot and h2 has room",
        "state": "done", "state_why": null,
        "steps": [
            {
                "after": [], "action": {"action": "power-on", "host": "h2"}, "reason": "room is needed",
                "gain_micro": -3000, "cost_micro": 3000, "duration_ms": 4200, "state": "done",
                "state_at_ms": 1_795_294_060_000_u64, "migration": null, "state_why": null,
            },
            {
                "after": [0], "action": migrate, "reason": "h1 is hot", "gain_micro": 90_000, "cost_micro": 40,
                "start_ms": 4200, "duration_ms": 2800, "bandwidth_bytes_s": 50 << 20, "state": "done",
                "state_at_ms": 1_795_294_063_000_u64, "migration": 7, "state_why": null,
                "alternatives": [{"action": to_h3, "because": "h3 would need 5 GiB of disk and has 2 GiB"}],
            },
        ],
        "predicted": {
            "rate_before_micro_h": 210_000, "rate_after_micro_h": 120_000, "moving_cost_micro": 3040,
            "gain_micro": 86_960, "rate_bound_micro_h": 110_000,
            "hosts": {
                "h1": {"cpu_before": 1.15, "cpu_after": 0.7, "memory_before": 0.4, "memory_after": 0.25},
                "h2": {"cpu_before": 0.1, "cpu_after": 0.55, "memory_before": 0.1, "memory_after": 0.25},
            },
        },
        "makespan_ms": 7000, "makespan_bound_ms": 6800,
        "rejected": [{"action": migrate, "because": "h3 is in maintenance"}],
        "findings": {},
        "verification": {
            "at_ms": 1_795_294_066_000_u64, "kept": true, "summary": "as predicted: h1 is no longer hot",
            "hosts": {"h1": {"cpu_predicted": 0.7, "cpu_measured": 0.68}},
        },
    }))
    .unwrap()
}

pub fn cluster_view() -> ClusterView {
    serde_json::from_value(json!({
        "version": "0.1.0", "now_ms": 1_795_294_070_000_u64, "revision": 31, "mode": "act", "scenario": "hotspot",
        "why": "h1 is hot and h2 has room", "found_at_ms": 1_795_294_069_000_u64,
        "hosts": {
            "h1": {
                "heat": "hot", "cpu_forecast_millis": 1800, "memory_forecast_mib": 300,
                "evidence": {
                    "resource": "cpu", "threshold": 0.85, "hits": 5, "needed": 4, "of": 6, "last": 1.15,
                    "forecast": 1.2,
                },
            },
            "h2": {"heat": "unknown", "cpu_forecast_millis": null, "memory_forecast_mib": null, "evidence": null},
        },
        "counts": {
            "tenants": 2, "hosts": 2, "hosts_up": 1, "vms": 8, "vms_running": 7, "migrations_running": 1,
            "plans_proposed": 0,
        },
    }))
    .unwrap()
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_grammar_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_of_the_manual_parses() {
    for line in [
        "server --config /etc/drover/server.toml",
        "agent --config /etc/drover/agent.toml",
        "host ls -o json",
        "host show h1",
        "host drain h1 --wait --timeout 10m",
        "host undrain h1",
        "host power on h1 --wait",
        "host power off h1",
        "host token h1 --expires 2h --save h1.join",
        "host rm h1",
        "vm create web-1 --tenant acme --image tiny --vcpus 2 --memory 1G --network prov --address 10.0.0.1/24 \
         --anti-affinity web --pin h1 --pin h2 --arg cpu=5 --arg a=b=c --idempotency-key k --wait",
        "vm ls --host h1 --tenant acme",
        "vm show acme/web-1",
        "vm start web-1 --wait",
        "vm stop web-1",
        "vm rm web-1 --wait",
        "vm migrate web-1 --to h2 --wait --timeout 30s",
        "vm migrate web-1 --method post-copy --dry-run",
        "vm create web-1 --image tiny --memory 1G --network lan --address 10.0.0.9 --group web --group db \
         --ingress-max 10M --egress-max 64k",
        "vm set-groups acme/web-1 web db",
        "vm set-groups web-1 --none",
        "network create lan --tenant acme --subnet 10.1.0.0/16 --router 10.1.0.1 --dns 9.9.9.9 --dns 1.1.1.1 --mtu 1400",
        "network ls --tenant acme -o yaml",
        "network show acme/lan",
        "network rm lan",
        "security-group create web --tenant acme --rule ingress:tcp:80 --rule ingress:any:@web",
        "security-group ls",
        "security-group show acme/web",
        "security-group set-rules web --rule ingress:icmp",
        "security-group set-rules web --none",
        "security-group rm web",
        "port create gw --network acme/lan --host h1 --interface gw0 --address 10.1.0.1 --mac 52:54:00:00:00:01",
        "port ls",
        "port show gw",
        "port rm gw",
        "vm measure web-1",
        "vm measure acme/web-1 --seconds 60 --wait --timeout 90s",
        "vm console web-1",
        "image create tiny --kernel k --initrd i --cmdline quiet",
        "image create big --disk d",
        "image ls",
        "image show tiny",
        "image rm tiny",
        "tenant create acme",
        "tenant ls",
        "tenant rm acme",
        "token create ci --tenant acme --expires 30d",
        "token create --operator",
        "token ls",
        "token rm ci",
        "plan ls",
        "plan show 42",
        "plan approve 42",
        "plan reject 42",
        "plan now",
        "migration ls",
        "migration show 7",
        "migration watch 7 --timeout 1h",
        "migration cancel 7",
        "migration pause 7",
        "migration resume 7",
        "migration prioritise 7 --priority high",
        "policy show",
        "policy set mode=act hot_above=0.9 --if-match 12",
        "policy edit-from policy.yaml",
        "events --follow --object vm/web-1",
        "explain vm/web-3",
        "status -o yaml --no-color",
        "top --server https://h:7443 --ca-file ca.pem --token-file t",
        "whoami --config client.toml",
        "completions bash",
        "openapi",
    ] {
        if let Err(error) = parse(&format!("drover {line}")) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_makes_no_sense_is_bad_usage() {
    for line in [
        "host",
        "host power up h1",
        "vm create web-1 --image tiny",
        "vm create web-1 --image tiny --memory lots",
        "vm create web-1 --image tiny --memory 1G --address 10.0.0.1/24",
        "vm create web-1 --image tiny --memory 1G --group web",
        "vm set-groups web-1",
        "vm set-groups web-1 web --none",
        "network create lan",
        "security-group create web --rule nonsense",
        "security-group set-rules web",
        "port create gw --network lan --host h1",
        "image create empty",
        "image create disk-only --disk d --cmdline quiet",
        "token create ci",
        "token create ci --operator --tenant acme",
        "plan show forty",
        "policy set",
        "policy set mode",
        "explain nothing",
        "events --limit 0",
        "vm show a/b/c",
        "vm measure web-1 --seconds 0",
        "vm measure web-1 --seconds 61",
        "host ls --token secret",
        "server",
    ] {
        let error = parse(&format!("drover {line}")).expect_err(line);
        assert!(error.use_stderr(), "{line}");
    }
}

#[test]
fn a_daemon_has_a_configuration_of_its_own() {
    let cli = parse("drover server --config /etc/drover/server.toml").unwrap();
    let Command::Server(server) = cli.command else { panic!("another command") };
    assert!(format!("{server:?}").contains("/etc/drover/server.toml"));
}

#[test]
fn completions_are_made_for_every_shell() {
    use clap::ValueEnum;
    for shell in clap_complete::Shell::value_variants() {
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut Cli::command(), "drover", &mut script);
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("migration") && script.contains("no-color"), "{shell}");
    }
}

#[test]
fn the_help_lists_the_exit_codes() {
    let help = Cli::command().render_long_help().to_string();
    for code in [
        Exit::Ok,
        Exit::Refused,
        Exit::Usage,
        Exit::Unreachable,
        Exit::Unauthorized,
        Exit::NotFound,
        Exit::Conflict,
        Exit::TimedOut,
    ] {
        assert!(help.contains(&format!("\n  {}  ", code as u8)), "{code:?} is missing");
    }
}
