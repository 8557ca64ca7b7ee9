//! `drover host`.

use super::confirm::{confirm, confirm_removal};
use super::context::{Context, write_secret};
use super::output::{Columns, Output, cell, properties, state_cell};
use super::show::{self, or_nothing};
use super::wait::{Look, Wait, until};
use super::{Failure, attributes, now_ms};
use clap::{Subcommand, ValueEnum};
use drover_api::v1::{CreateJoinToken, EvacuationView, HostAttributes, HostView, SetPower};
use drover_model::intent::Host;
use drover_model::world::HostState;
use std::path::PathBuf;
use std::time::Duration;

/// What is expected to take minutes is not said to the second.
const ETA_STEP_MS: u64 = 5_000;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List hosts
    #[command(visible_alias = "list")]
    Ls,
    /// Show one host
    #[command(visible_alias = "get")]
    Show { host: String },
    /// Take a host out of use: its vms are migrated away, none come
    Drain {
        host: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Say what no agent can know of a host; KEY= alone takes it back
    #[command(after_help = "Keys:\n  \
        rack, zone         names; a host without a rack is a rack of its own\n  \
        labels             words for sets of hosts, e.g. oracle,ssd\n  \
        disk               room for disks on the host itself, e.g. 2T\n  \
        link               what its link carries each way, per second, e.g. 1250M\n  \
        power-curve        eleven watts, at 0, 10, ... 100 % of the processor\n  \
        power-cycle-price  wear of switching it off and on once, in millionths\n\n\
        Example:\n  drover host set h7 rack=r1 zone=z1 labels=oracle,ssd \\\n    \
        power-curve=86,89,92,96,99,102,106,108,112,114,117")]
    Set {
        host: String,
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = super::values::key_value)]
        changes: Vec<(String, String)>,
    },
    /// Declare a host lost that does not answer: its vms are started elsewhere, without what was in their memory
    Lost {
        host: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Give a drained host back, or one that was declared lost and has returned
    Undrain { host: String },
    /// Switch a host on or off; off needs an empty host
    Power {
        state: Power,
        host: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Make a one-time token with which a host may join
    #[command(after_help = "Example:\n  drover host token h4 --save h4.join\n\
        Copy the file to the host and name it as join_token_file in the agent's configuration.")]
    Token {
        host: String,
        /// How long it may be used, e.g. 1h
        #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = super::values::span)]
        expires: Duration,
        /// Write it into a new file for its owner only, instead of standard output
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
    /// Forget a host; it must be empty
    #[command(visible_alias = "delete")]
    Rm {
        host: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Power {
    On,
    Off,
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Ls => output.emit(&client.of::<Host>().all().await?, |list| table(&list.items, output)),
        Verb::Show { host } => output.emit(&client.of::<Host>().get(&host).await?, |host| describe(host, now_ms())),
        Verb::Drain { host, wait } => {
            let mut view = client.drain_host(&host).await?;
            if wait.wait {
                let look = format!("drover host show {host}");
                view = until(&wait.limit, &format!("draining {host}"), &look, async || {
                    let view = client.of::<Host>().get(&host).await?;
                    let moving = view.evacuation.is_some_and(|evacuation| evacuation.finished_at_ms.is_none());
                    Ok(if view.vms.is_empty() && !moving { Look::Done(view) } else { leaving(&view) })
                })
                .await?;
            }
            emit_changed(output, &view)
        }
        Verb::Set { host, changes } => {
            let view = client.of::<Host>().patch(&host, &attributes::patch(&changes)?).await?;
            output.emit(&view, |host| describe(host, now_ms()))
        }
        Verb::Lost { host, yes } => {
            let what = format!(
                "{host} will count as lost: the memory of all vms on it is gone, and those that should run are started \
                     elsewhere. If the machine is in fact still running, these vms run twice until it answers: power it \
                     off first"
            );
            confirm(&what, yes)?;
            emit_changed(output, &client.declare_host_lost(&host).await?)
        }
        Verb::Undrain { host } => emit_changed(output, &client.undrain_host(&host).await?),
        Verb::Power { host, state, wait } => {
            let mut view = client.power_host(&host, SetPower { on: state == Power::On }).await?;
            if wait.wait {
                let look = format!("drover host show {host}");
                view = until(&wait.limit, &format!("switching {host}"), &look, async || {
                    let view = client.of::<Host>().get(&host).await?;
                    let there = match state {
                        Power::On => view.state == HostState::Up,
                        Power::Off => view.state == HostState::Asleep,
                    };
                    let going = format!("{host} is {}", show::host_state(&view));
                    Ok(if there { Look::Done(view) } else { Look::going(going) })
                })
                .await?;
            }
            emit_changed(output, &view)
        }
        Verb::Token { host, expires, save } => {
            let ask = CreateJoinToken { expires_s: Some(expires.as_secs()) };
            let created = client.create_join_token(&host, &ask).await?;
            output.say(&format!("{} may join once, until {}", created.host, show::time(created.expires_at_ms)));
            match save {
                Some(path) => write_secret(&path, &(created.token + "\n")),
                None => output.emit(&created, |created| created.token.clone() + "\n"),
            }
        }
        Verb::Rm { host, yes } => {
            let what = format!("host {}", host);
            confirm_removal(&what, yes)?;
            client.of::<Host>().remove(&host).await.map(drop)?;
            output.say(&format!("{what} was removed"));
            Ok(())
        }
    }
}

/// How far a drained host is from being empty.
fn leaving(host: &HostView) -> Look<HostView> {
    match &host.evacuation {
        Some(evacuation) if evacuation.total > 0 => Look::Going {
            line: evacuation_line(evacuation),
            share: Some(evacuation.done as f64 / evacuation.total as f64),
        },
        _ => Look::going(format!("vms still on {}: {}", host.id, host.vms.len())),
    }
}

/// The time of day is said, rounded: a span would change with every look.
fn evacuation_line(evacuation: &EvacuationView) -> String {
    let EvacuationView { total, done, moving, waiting, stuck, slips, .. } = *evacuation;
    let end = match (evacuation.finished_at_ms, evacuation.finish_eta_at_ms) {
        (Some(at), _) => format!("empty since {} UTC", show::clock(at)),
        (None, Some(at)) => format!("empty about {} UTC", show::clock(at.div_ceil(ETA_STEP_MS) * ETA_STEP_MS)),
        (None, None) if stuck > 0 => format!("no place yet for {stuck}: `drover explain cluster` says why"),
        (None, None) => "it can't be said yet when it is empty".to_owned(),
    };
    let later = match slips {
        0 => String::new(),
        1 => " (put off once)".to_owned(),
        count => format!(" (put off {count} times)"),
    };
    format!("{done} of {total} have left, {moving} move, {waiting} wait; {end}{later}")
}

fn emit_changed(output: Output, host: &HostView) -> Result<(), Failure> {
    output.emit(host, |host| table(std::slice::from_ref(host), output))
}

fn table(hosts: &[HostView], output: Output) -> String {
    let mut columns = Columns::new(
        output,
        &["HOST", "STATE", "HEAT", ">CPU WANTED", ">CPU", ">MEMORY PROMISED", ">MEMORY", ">VMS", "ACCELERATOR"],
    );
    for host in hosts {
        columns.row([
            cell(&host.id),
            state_cell(show::host_state(host)),
            state_cell(show::word(&host.heat)),
            cell(or_nothing(host.load.map(|load| show::cores(load.cpu_wanted_millis)))),
            cell(or_nothing(host.capacity.map(|capacity| show::cores(capacity.cpu_millis)))),
            cell(format!("{} MiB", host.memory_promised_mib)),
            cell(or_nothing(host.capacity.map(|capacity| format!("{} MiB", capacity.memory_mib)))),
            cell(host.vms.len()),
            cell(or_nothing(host.facts.as_ref().map(|facts| show::word(&facts.accelerator)))),
        ]);
    }
    columns.text()
}

fn describe(host: &HostView, now_ms: u64) -> String {
    let vms: Vec<&str> = host.vms.iter().map(|vm| vm.as_str()).collect();
    let mut pairs = vec![
        ("host", host.id.to_string()),
        ("state", format!("{}, since {}", show::host_state(host), show::time(host.state_since_ms))),
        ("heat", show::word(&host.heat)),
        ("agent", if host.connected { "connected" } else { "not connected" }.to_owned()),
        ("last report", or_nothing(host.last_report_at_ms.map(|at| show::ago(now_ms, at)))),
        (
            "power",
            format!("{}, {}", show::word(&host.power), if host.power_managed { "managed" } else { "not managed" }),
        ),
        ("boot time", or_nothing(host.boot_time_ms.map(show::millis))),
        ("power cycles", host.power_cycles.to_string()),
        ("joined", show::time(host.joined_at_ms)),
    ];
    if let Some(capacity) = &host.capacity {
        let wanted = or_nothing(host.load.map(|load| show::cores(load.cpu_wanted_millis)));
        pairs.push(("cpu", format!("{} cores, {wanted} wanted", show::cores(capacity.cpu_millis))));
        let used = or_nothing(host.load.map(|load| load.memory_used_mib));
        let promised = host.memory_promised_mib;
        pairs.push(("memory", format!("{} MiB, {promised} promised, {used} used", capacity.memory_mib)));
    }
    if let Some(load) = &host.load {
        pairs.push(("memory pressure", show::percent(load.memory_pressure)));
        let (rx, tx) = (show::bytes(load.net_rx_bytes_s), show::bytes(load.net_tx_bytes_s));
        pairs.push(("network", format!("{rx}/s in, {tx}/s out")));
        pairs.push(("disk latency", format!("{} us", load.disk_latency_us)));
    }
    if let Some(facts) = &host.facts {
        let networks: Vec<&str> = facts.networks.iter().map(|network| network.as_str()).collect();
        pairs.extend([
            ("accelerator", format!("{} ({})", show::word(&facts.accelerator), facts.accelerator_why)),
            ("processor", facts.cpu_model.clone()),
            ("kernel", facts.kernel.clone()),
            ("qemu", facts.qemu_version.clone()),
            ("agent version", facts.agent_version.clone()),
            ("networks", networks.join(" ")),
            ("overlay address", or_nothing(facts.overlay_address)),
        ]);
    }
    if let Some(at) = host.off_since_ms {
        pairs.push(("off since", show::time(at)));
    }
    pairs.extend(host.wake_problem.clone().map(|why| ("not counted on", why)));
    pairs.extend(said(&host.attributes));
    if let Some(evacuation) = &host.evacuation {
        pairs.push(("evacuation", evacuation_line(evacuation)));
    }
    pairs.push(("vms", if vms.is_empty() { show::NOTHING.to_owned() } else { vms.join(" ") }));
    pairs.push(("revision", host.revision.to_string()));
    properties(pairs)
}

/// What the operator said of it.
fn said(attributes: &HostAttributes) -> Vec<(&'static str, String)> {
    let HostAttributes { rack, zone, labels, disk_mib, link_bytes_s, power_curve_watts, power_cycle_price_micro } =
        attributes;
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let curve = |watts: &[f64; 11]| watts.map(|watts| watts.to_string()).join(" ") + " W";
    let pairs = [
        ("rack", rack.clone()),
        ("zone", zone.clone()),
        ("labels", (!labels.is_empty()).then(|| labels.join(" "))),
        ("disk", disk_mib.map(|mib| format!("{mib} MiB"))),
        ("link", link_bytes_s.map(|rate| format!("{}/s", show::bytes(rate)))),
        ("power curve", power_curve_watts.as_ref().map(curve)),
        ("power cycle costs", power_cycle_price_micro.map(show::money)),
    ];
    pairs.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{PLAIN, host_view};

    #[test]
    fn a_list_of_hosts_reads_at_a_glance() {
        let mut asleep = host_view("h2");
        asleep.state = HostState::Asleep;
        (asleep.load, asleep.facts) = (None, None);
        asleep.vms.clear();
        insta::assert_snapshot!(table(&[host_view("h1"), asleep], PLAIN));
    }

    #[test]
    fn an_evacuation_is_one_line_that_changes_only_when_something_does() {
        let going = EvacuationView {
            since_ms: 1_795_294_000_000,
            total: 7,
            done: 2,
            moving: 1,
            waiting: 4,
            stuck: 0,
            finish_eta_at_ms: Some(1_795_294_061_300),
            promised_at_ms: Some(1_795_294_050_000),
            slips: 1,
            finished_at_ms: None,
        };
        let line = evacuation_line(&going);
        assert_eq!(line, "2 of 7 have left, 1 move, 4 wait; empty about 20:47:45 UTC (put off once)");
        let a_look_later = EvacuationView { finish_eta_at_ms: Some(1_795_294_064_900), ..going };
        assert_eq!(evacuation_line(&a_look_later), line);
        let stuck = EvacuationView { stuck: 4, finish_eta_at_ms: None, slips: 0, ..going };
        assert!(evacuation_line(&stuck).contains("no place yet for 4"));
        let mut host = host_view("h1");
        host.evacuation = Some(going);
        assert!(matches!(leaving(&host), Look::Going { share: Some(share), .. } if (share - 2.0 / 7.0).abs() < 1e-9));
    }

    #[test]
    fn one_host_is_shown_whole() {
        insta::assert_snapshot!(describe(&host_view("h1"), 1_795_294_070_000));
    }
}
