//! `drover host`.

use super::context::{Context, write_secret};
use super::output::{Columns, Output, cell, properties, state_cell};
use super::show::{self, or_nothing};
use super::wait::{Look, Wait, until};
use super::{Failure, now_ms};
use clap::{Subcommand, ValueEnum};
use drover_api::v1::{CreateJoinToken, HostView, SetPower};
use drover_model::world::HostState;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List hosts
    Ls,
    /// Show one host
    Show { host: String },
    /// Take a host out of use: its vms are migrated away, none come
    Drain {
        host: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give a drained host back
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
    Rm { host: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Power {
    On,
    Off,
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Ls => output.emit(&client.hosts().await?, |list| table(&list.items, output)),
        Verb::Show { host } => output.emit(&client.host(&host).await?, |host| describe(host, now_ms())),
        Verb::Drain { host, wait } => {
            let mut view = client.drain_host(&host).await?;
            if wait.wait {
                let look = format!("drover host show {host}");
                view = until(&wait.limit, &format!("draining {host}"), &look, async || {
                    let view = client.host(&host).await?;
                    Ok(if view.vms.is_empty() {
                        Look::Done(view)
                    } else {
                        Look::going(format!("vms still on {host}: {}", view.vms.len()))
                    })
                })
                .await?;
            }
            emit_changed(output, &view)
        }
        Verb::Undrain { host } => emit_changed(output, &client.undrain_host(&host).await?),
        Verb::Power { host, state, wait } => {
            let mut view = client.power_host(&host, SetPower { on: state == Power::On }).await?;
            if wait.wait {
                let look = format!("drover host show {host}");
                view = until(&wait.limit, &format!("switching {host}"), &look, async || {
                    let view = client.host(&host).await?;
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
        Verb::Rm { host } => Ok(client.remove_host(&host).await?),
    }
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
        ]);
    }
    pairs.push(("vms", if vms.is_empty() { show::NOTHING.to_owned() } else { vms.join(" ") }));
    pairs.push(("revision", host.revision.to_string()));
    properties(pairs)
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
    fn one_host_is_shown_whole() {
        insta::assert_snapshot!(describe(&host_view("h1"), 1_795_294_070_000));
    }
}
