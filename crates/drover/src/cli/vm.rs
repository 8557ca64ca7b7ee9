//! `drover vm`.

use super::context::Context;
use super::migration;
use super::output::{Columns, Output, cell, properties, state_cell};
use super::show::{self, or_nothing};
use super::wait::{Look, Wait, until};
use super::{Failure, console, now_ms};
use clap::{Args, Subcommand};
use drover_api::client::{ApiError, Client};
use drover_api::v1::{
    CreateVm, ForecastQuery, ListQuery, MeasureVm, MigrateVm, SetSecurityGroups, TenantQuery, VmView,
};
use drover_model::intent::Vm;
use drover_model::migration::Method;
use std::ops::RangeInclusive;

/// What a vm can be measured for.
const SECONDS: RangeInclusive<i64> = MeasureVm::SECONDS_MIN as i64..=MeasureVm::SECONDS_MAX as i64;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a vm and start it
    #[command(
        after_help = "Example:\n  drover vm create web-1 --tenant acme --image tiny --vcpus 2 --memory 256M \\\n    \
        --network prov --address 10.78.0.11/24 --anti-affinity web --arg role=front --wait"
    )]
    Create(Box<Create>),
    /// List vms
    #[command(visible_alias = "list")]
    Ls {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<String>,
        /// Only those that this host has the right to run
        #[arg(long)]
        host: Option<String>,
    },
    /// Show one vm
    #[command(visible_alias = "get")]
    Show { vm: VmRef },
    /// Start a stopped vm
    Start {
        vm: VmRef,
        #[command(flatten)]
        wait: Wait,
    },
    /// Power a vm down
    Stop {
        vm: VmRef,
        #[command(flatten)]
        wait: Wait,
    },
    /// Remove a vm and its disk
    #[command(visible_alias = "delete")]
    Rm {
        vm: VmRef,
        #[command(flatten)]
        wait: Wait,
    },
    /// Live-migrate a vm to another host
    Migrate {
        vm: VmRef,
        /// Where to; the planner chooses when left out
        #[arg(long, value_name = "HOST")]
        to: Option<String>,
        /// How; what is expected to do best when left out
        #[arg(long, value_parser = migration::method_parser())]
        method: Option<Method>,
        /// Say what it would take, how it would be done and what forbids it, and change nothing
        #[arg(long, conflicts_with = "wait")]
        dry_run: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Measure how fast a running vm writes to its memory; `vm show` has the result for a minute
    Measure {
        vm: VmRef,
        /// For how long, 1 to 60
        #[arg(long, value_name = "N", default_value_t = MeasureVm::default().seconds,
            value_parser = clap::value_parser!(u32).range(SECONDS))]
        seconds: u32,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a vm out of the security groups it is in, and put it into these; takes effect at once
    SetGroups {
        vm: VmRef,
        #[arg(required_unless_present = "none")]
        groups: Vec<String>,
        /// Into none at all: everything is let through
        #[arg(long, conflicts_with = "groups")]
        none: bool,
    },
    /// Attach to a vm's serial console; Ctrl-] leaves
    Console { vm: VmRef },
}

#[derive(Debug, Args)]
pub struct Create {
    /// Unique within the tenant
    name: String,
    /// Whose it is; operators must say
    #[arg(long)]
    tenant: Option<String>,
    #[arg(long)]
    image: String,
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// E.g. 512M or 2G
    #[arg(long, value_name = "SIZE", value_parser = super::values::memory_mib)]
    memory: u64,
    /// Network of its one card: the tenant's own by name, or a provider network of the hosts
    #[arg(long)]
    network: Option<String>,
    /// The lowest free one of the tenant's network when left out; on a provider network with its prefix, e.g.
    /// 10.78.0.11/24
    #[arg(long, value_name = "ADDRESS", requires = "network")]
    address: Option<String>,
    /// Security group that guards it; may be given several times
    #[arg(long = "group", value_name = "GROUP", requires = "network")]
    groups: Vec<String>,
    /// Most that may be sent to it, per second, e.g. 10M
    #[arg(long, value_name = "SIZE", requires = "network", value_parser = super::values::bytes)]
    ingress_max: Option<u64>,
    /// Most that it may send, per second, e.g. 10M
    #[arg(long, value_name = "SIZE", requires = "network", value_parser = super::values::bytes)]
    egress_max: Option<u64>,
    /// Never on one host with another vm of this group
    #[arg(long, value_name = "GROUP")]
    anti_affinity: Option<String>,
    /// Runs on this host only; may be given several times
    #[arg(long, value_name = "HOST")]
    pin: Vec<String>,
    /// Processor that its host keeps for it, in cores, e.g. 0.5; at most its vcpus
    #[arg(long, value_name = "CORES", default_value = "0", value_parser = super::values::cores_millis)]
    cpu_reserved: u64,
    /// Handed to the guest on its kernel command line as drover.KEY=VALUE; may be given several times
    #[arg(long = "arg", value_name = "KEY=VALUE", value_parser = super::values::key_value)]
    args: Vec<(String, String)>,
    /// Makes the command repeatable: the same key never creates a second vm
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    wait: Wait,
}

/// An id, a name, or `TENANT/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRef {
    pub vm: String,
    pub query: TenantQuery,
}

impl std::str::FromStr for VmRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tenant, vm) = match text.split_once('/') {
            Some((tenant, vm)) => (Some(tenant), vm),
            None => (None, text),
        };
        if vm.is_empty() || vm.contains('/') || tenant.is_some_and(str::is_empty) {
            return Err(format!("{text:?} names no vm: write its id, its name, or TENANT/NAME"));
        }
        Ok(Self { vm: vm.to_owned(), query: TenantQuery { tenant: tenant.map(str::to_owned) } })
    }
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Create(create) => create_vm(client, output, *create).await,
        Verb::Ls { tenant, host } => {
            let list = client.of::<Vm>().list(&ListQuery { tenant, host, ..ListQuery::default() }).await?;
            output.emit(&list, |list| table(&list.items, output))
        }
        Verb::Show { vm } => output
            .emit(&client.of::<Vm>().within(vm.query.tenant.as_deref()).get(&vm.vm).await?, |vm| {
                describe(vm, now_ms())
            }),
        Verb::Start { vm, wait } => {
            let view = client.start_vm(&vm.vm, &vm.query).await?;
            let view = if wait.wait { wait_for_phase(client, &wait, view, "running").await? } else { view };
            emit_changed(output, &view)
        }
        Verb::Stop { vm, wait } => {
            let view = client.stop_vm(&vm.vm, &vm.query).await?;
            let view = if wait.wait { wait_for_phase(client, &wait, view, "stopped").await? } else { view };
            emit_changed(output, &view)
        }
        Verb::Rm { vm, wait } => {
            let view = client.of::<Vm>().within(vm.query.tenant.as_deref()).remove(&vm.vm).await?;
            if let Some(view) = view.filter(|_| wait.wait) {
                wait_until_gone(client, &wait, &view).await?;
            }
            Ok(())
        }
        Verb::Migrate { vm, to, method, dry_run: true, wait: _ } => {
            let query = ForecastQuery { tenant: vm.query.tenant.clone(), to, method };
            output.emit(&client.forecast_migration(&vm.vm, &query).await?, migration::forecast)
        }
        Verb::Migrate { vm, to, method, dry_run: false, wait } => {
            let ask = MigrateVm { to, method };
            let started = client.migrate_vm(&vm.vm, &vm.query, &ask).await?;
            let view = if wait.wait { migration::watch(client, started.id, &wait.limit).await? } else { started };
            migration::emit(output, &view)?;
            if wait.wait { migration::outcome(&view) } else { Ok(()) }
        }
        Verb::Measure { vm, seconds, wait } => {
            let asked = client.measure_vm(&vm.vm, &vm.query, MeasureVm { seconds }).await?;
            let view = if wait.wait { wait_for_dirty_rate(client, &wait, asked).await? } else { asked };
            output.emit(&view, |vm| describe(vm, now_ms()))
        }
        Verb::SetGroups { vm, groups, none: _ } => {
            let ask = SetSecurityGroups { security_groups: groups };
            let view = client.set_security_groups(&vm.vm, &vm.query, &ask).await?;
            output.emit(&view, |vm| describe(vm, now_ms()))
        }
        Verb::Console { vm } => console::run(client, &vm).await,
    }
}

async fn create_vm(client: &Client, output: Output, create: Create) -> Result<(), Failure> {
    let keyed = match &create.idempotency_key {
        Some(key) => client
            .with_idempotency_key(key)
            .ok_or_else(|| Failure::Usage("an idempotency key is 1 to 128 visible ASCII characters".to_owned()))?,
        None => client.clone(),
    };
    let ask = CreateVm {
        name: create.name,
        tenant: create.tenant,
        image: create.image,
        vcpus: create.vcpus,
        memory_mib: create.memory,
        network: create.network,
        address: create.address,
        security_groups: create.groups,
        ingress_max_bytes_s: create.ingress_max,
        egress_max_bytes_s: create.egress_max,
        anti_affinity: create.anti_affinity,
        pinned_to: create.pin,
        cpu_reserved_millis: create.cpu_reserved,
        guest_args: create.args.into_iter().collect(),
        labels: Default::default(),
    };
    let mut view = keyed.of::<Vm>().create(&ask).await?;
    if create.wait.wait {
        view = wait_for_phase(client, &create.wait, view, "running").await?;
    }
    emit_changed(output, &view)
}

async fn wait_for_phase(client: &Client, wait: &Wait, vm: VmView, phase: &str) -> Result<VmView, Failure> {
    let id = vm.id.as_str();
    let look = format!("drover vm show {id}");
    until(&wait.limit, &format!("{} becoming {phase}", vm.name), &look, async || {
        let view = client.of::<Vm>().get(id).await?;
        if view.phase == phase {
            return Ok(Look::Done(view));
        }
        let why = view.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let now = format!("{} is {}{why}", view.name, view.phase);
        if view.phase == "failed" { Err(Failure::Failed(now)) } else { Ok(Look::going(now)) }
    })
    .await
}

async fn wait_for_dirty_rate(client: &Client, wait: &Wait, asked: VmView) -> Result<VmView, Failure> {
    let id = asked.id.as_str();
    let look = format!("drover vm show {id}");
    let mut last = dirty_bytes_s(&asked);
    until(&wait.limit, &format!("measuring {}", asked.name), &look, async || {
        let view = client.of::<Vm>().get(id).await?;
        if measured_anew(&mut last, dirty_bytes_s(&view)) {
            return Ok(Look::Done(view));
        }
        if view.phase != "running" {
            let now = format!("{} is {}: measure it again once it is running", view.name, view.phase);
            return Err(Failure::Failed(now));
        }
        Ok(Look::going(format!("{} is being measured", view.name)))
    })
    .await
}

fn dirty_bytes_s(vm: &VmView) -> Option<u64> {
    vm.load.and_then(|load| load.dirty_bytes_s)
}

/// Whether what is seen now is another measurement's than what was seen `last`: the older one is withdrawn when a
/// measurement begins, and may still be seen for a moment.
fn measured_anew(last: &mut Option<u64>, now: Option<u64>) -> bool {
    let anew = now.is_some() && *last != now;
    *last = now;
    anew
}

async fn wait_until_gone(client: &Client, wait: &Wait, vm: &VmView) -> Result<(), Failure> {
    let look = format!("drover vm show {}", vm.id);
    until(&wait.limit, &format!("removing {}", vm.name), &look, async || {
        match client.of::<Vm>().get(vm.id.as_str()).await {
            Ok(view) => Ok(Look::going(format!("{} is {}", view.name, view.phase))),
            Err(ApiError::Problem(problem)) if problem.status == 404 => Ok(Look::Done(())),
            Err(error) => Err(error.into()),
        }
    })
    .await
}

fn emit_changed(output: Output, vm: &VmView) -> Result<(), Failure> {
    output.emit(vm, |vm| table(std::slice::from_ref(vm), output))
}

fn table(vms: &[VmView], output: Output) -> String {
    let names = ["VM", "TENANT", "STATE", "HOST", ">VCPUS", ">MEMORY", ">CPU WANTED", "ADDRESS", "ID"];
    let mut columns = Columns::new(output, &names);
    for vm in vms {
        let address = vm.nic.as_ref().and_then(|nic| nic.address.as_deref());
        columns.row([
            cell(&vm.name),
            cell(&vm.tenant),
            state_cell(&vm.phase),
            cell(or_nothing(vm.host.as_ref())),
            cell(vm.vcpus),
            cell(format!("{} MiB", vm.memory_mib)),
            cell(or_nothing(vm.load.map(|load| show::cores(load.cpu_wanted_millis)))),
            cell(or_nothing(address)),
            cell(&vm.id),
        ]);
    }
    columns.text()
}

fn describe(vm: &VmView, now_ms: u64) -> String {
    let pinned: Vec<&str> = vm.pinned_to.iter().map(|host| host.as_str()).collect();
    let why = vm.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let mut pairs = vec![
        ("vm", vm.name.to_string()),
        ("id", vm.id.to_string()),
        ("tenant", vm.tenant.to_string()),
        ("state", format!("{}{why}", vm.phase)),
        ("asked to be", show::word(&vm.run)),
        ("host", or_nothing(vm.host.as_ref())),
        ("image", vm.image.to_string()),
        ("vcpus", vm.vcpus.to_string()),
        ("memory", format!("{} MiB", vm.memory_mib)),
    ];
    if let Some(nic) = &vm.nic {
        let address = nic.address.as_ref().map(|address| format!(", address {address}")).unwrap_or_default();
        let network = match &nic.network_name {
            Some(name) => format!("{name} ({})", nic.network),
            None => nic.network.to_string(),
        };
        pairs.push(("network", format!("{network}, mac {}{address}", nic.mac)));
        let groups: Vec<&str> = nic.security_groups.iter().map(|group| group.as_str()).collect();
        if !groups.is_empty() {
            pairs.push(("security groups", groups.join(" ")));
        }
        let limit = |max: Option<u64>| max.map_or("no limit".to_owned(), |max| format!("{}/s", show::bytes(max)));
        if nic.ingress_max_bytes_s.is_some() || nic.egress_max_bytes_s.is_some() {
            let (ingress, egress) = (limit(nic.ingress_max_bytes_s), limit(nic.egress_max_bytes_s));
            pairs.push(("bandwidth", format!("{ingress} in, {egress} out")));
        }
    }
    if let Some(group) = &vm.anti_affinity {
        pairs.push(("anti-affinity", group.to_string()));
    }
    if vm.cpu_reserved_millis > 0 {
        pairs.push(("cpu reserved", format!("{} cores", show::cores(vm.cpu_reserved_millis))));
    }
    if !pinned.is_empty() {
        pairs.push(("pinned to", pinned.join(" ")));
    }
    let args: Vec<String> = vm.guest_args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if !args.is_empty() {
        pairs.push(("guest arguments", args.join(" ")));
    }
    if let Some(load) = &vm.load {
        let (used, wanted) = (show::cores(load.cpu_used_millis), show::cores(load.cpu_wanted_millis));
        pairs.push(("cpu", format!("{used} cores used, {wanted} wanted")));
        pairs.push(("memory used", format!("{} MiB", load.memory_used_mib)));
        if let Some(rate) = load.dirty_bytes_s {
            pairs.push(("memory written", format!("{}/s, as measured in the last minute", show::bytes(rate))));
        }
    }
    if let Some(migration) = vm.migration {
        pairs.push(("migrating", format!("`drover migration watch {migration}`")));
    }
    if let (Some(from), Some(at)) = (&vm.moved_from, vm.moved_at_ms) {
        pairs.push(("moved", format!("from {from}, {}", show::ago(now_ms, at))));
    }
    pairs.push(("created", show::time(vm.created_at_ms)));
    pairs.push(("generation", vm.generation.to_string()));
    pairs.push(("process", or_nothing(vm.pid)));
    pairs.push(("revision", vm.revision.to_string()));
    properties(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{PLAIN, vm_view};

    #[test]
    fn a_list_of_vms_reads_at_a_glance() {
        let mut pending = vm_view("db-1");
        pending.phase = "pending".to_owned();
        (pending.host, pending.nic, pending.load) = (None, None, None);
        insta::assert_snapshot!(table(&[vm_view("web-1"), pending], PLAIN));
    }

    #[test]
    fn one_vm_is_shown_whole() {
        insta::assert_snapshot!(describe(&vm_view("web-1"), 1_795_294_070_000));
    }

    #[test]
    fn what_was_measured_is_shown_while_it_stands() {
        let mut vm = vm_view("web-1");
        assert!(!describe(&vm, 0).contains("memory written"));
        vm.load.as_mut().unwrap().dirty_bytes_s = Some(5 << 20);
        let shown = describe(&vm, 0);
        assert!(shown.contains("memory written   5 MiB/s"), "{shown}");
    }

    #[test]
    fn an_older_measurement_is_not_taken_for_the_new_one() {
        let seen = |before: Option<u64>, looks: &[Option<u64>]| {
            let mut last = before;
            looks.iter().position(|now| measured_anew(&mut last, *now))
        };
        assert_eq!(seen(None, &[None, Some(7)]), Some(1));
        assert_eq!(seen(Some(7), &[Some(7), None, None, Some(7)]), Some(3));
        assert_eq!(seen(Some(7), &[Some(7), Some(8)]), Some(1));
        assert_eq!(seen(Some(7), &[Some(7), Some(7)]), None);
    }

    #[test]
    fn a_vm_is_named_alone_or_with_its_tenant() {
        let named: VmRef = "acme/web-1".parse().unwrap();
        assert_eq!((named.vm.as_str(), named.query.tenant.as_deref()), ("web-1", Some("acme")));
        assert_eq!("web-1".parse::<VmRef>().unwrap().query.tenant, None);
        for bad in ["", "/web", "acme/", "a/b/c"] {
            assert!(bad.parse::<VmRef>().is_err(), "{bad}");
        }
    }
}
