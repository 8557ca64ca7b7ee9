//! Virtual servers.

use super::condition::{Conditions, object};
use super::crud::gone;
use super::problem::Failure;
use super::read::{At, Body, Caller, Operator, Params, name, optional_name, owner};
use super::{Api, crud};
use crate::secret;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drover_api::v1::{CreateVm, MeasureVm, MigrateVm, MigrationView, SetSecurityGroups, TenantQuery, VmView};
use drover_control::interface::{Action, Actor, Reply};
use drover_control::kinds::Entity as _;
use drover_model::intent::{Nic, RunIntent, Vm, VmSpec};
use drover_model::migration::MigrationRecord;
use drover_model::network::Bandwidth;
use drover_model::{Bytes, CpuMillis, HostId, Millis, SecurityGroupId, TenantName, VmId};
use std::collections::BTreeSet;
use std::net::IpAddr;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    crud::routes::<Vm>()
        .routes(routes!(create_vm))
        .routes(routes!(remove_vm))
        .routes(routes!(start_vm))
        .routes(routes!(stop_vm))
        .routes(routes!(migrate_vm))
        .routes(routes!(measure_vm))
        .routes(routes!(set_security_groups))
}

/// A new vm; it is placed and started at once
#[utoipa::path(post, path = "/v1/vms", tag = "vms", request_body = CreateVm,
    responses((status = 201, description = "It was made", body = VmView)))]
async fn create_vm(
    State(api): State<Api>,
    caller: Caller,
    conditions: Conditions,
    Body(create): Body<CreateVm>,
) -> Result<Response, Failure> {
    let id = secret::vm_id();
    let spec = spec_of(&create, caller.tenant(), &id)?;
    match api.shell.submit(conditions.change(caller.0.clone(), Action::CreateVm { id, spec })).await? {
        Reply::Vm(id) => crud::show::<Vm>(&api, caller.0, id, StatusCode::CREATED).await,
        _ => Err(gone("vm")),
    }
}

/// Remove a vm and its disk; it is gone once its host has let go of it
#[utoipa::path(delete, path = "/v1/vms/{ref}", tag = "vms",
    params(("ref" = String, Path, description = "Its id or name"), TenantQuery),
    responses((status = 202, description = "It is being removed", body = VmView),
              (status = 204, description = "It is gone")))]
async fn remove_vm(
    State(api): State<Api>,
    Caller(actor): Caller,
    conditions: Conditions,
    At(reference): At<String>,
    Params(query): Params<TenantQuery>,
) -> Result<Response, Failure> {
    let vm = crud::find::<Vm>(&api, &actor, reference, query).await?;
    api.shell.submit(conditions.change(actor.clone(), Action::RemoveVm { vm: vm.clone() })).await?;
    let left = api.shell.query(move |control| {
        let row = Vm::table(control.rows()).row(&vm)?;
        Some((row.revision, control.view(row, &actor, true)))
    });
    Ok(match left.await? {
        Some((revision, vm)) => object(StatusCode::ACCEPTED, revision, vm),
        None => axum::response::IntoResponse::into_response(StatusCode::NO_CONTENT),
    })
}

/// Start a vm
#[utoipa::path(post, path = "/v1/vms/{vm}/start", tag = "vms",
    params(("vm" = String, Path, description = "Its id or name"), TenantQuery),
    responses((status = 202, description = "It is being started", body = VmView)))]
async fn start_vm(
    State(api): State<Api>,
    Caller(actor): Caller,
    conditions: Conditions,
    At(reference): At<String>,
    Params(query): Params<TenantQuery>,
) -> Result<Response, Failure> {
    set_run(&api, actor, conditions, reference, query, RunIntent::Running).await
}

/// Stop a vm: its guest is asked to power down, and ended if it does not
#[utoipa::path(post, path = "/v1/vms/{vm}/stop", tag = "vms",
    params(("vm" = String, Path, description = "Its id or name"), TenantQuery),
    responses((status = 202, description = "It is being stopped", body = VmView)))]
async fn stop_vm(
    State(api): State<Api>,
    Caller(actor): Caller,
    conditions: Conditions,
    At(reference): At<String>,
    Params(query): Params<TenantQuery>,
) -> Result<Response, Failure> {
    set_run(&api, actor, conditions, reference, query, RunIntent::Stopped).await
}

async fn set_run(
    api: &Api,
    actor: Actor,
    conditions: Conditions,
    reference: String,
    query: TenantQuery,
    run: RunIntent,
) -> Result<Response, Failure> {
    let vm = crud::find::<Vm>(api, &actor, reference, query).await?;
    api.shell.submit(conditions.change(actor.clone(), Action::SetRun { vm: vm.clone(), run })).await?;
    crud::show::<Vm>(api, actor, vm, StatusCode::ACCEPTED).await
}

/// Move a running vm to another host
#[utoipa::path(post, path = "/v1/vms/{vm}/migrate", tag = "vms", request_body = MigrateVm,
    params(("vm" = String, Path, description = "Its id or name"), TenantQuery),
    responses((status = 202, description = "It is being moved", body = MigrationView)))]
async fn migrate_vm(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(reference): At<String>,
    Params(query): Params<TenantQuery>,
    Body(migrate): Body<MigrateVm>,
) -> Result<Response, Failure> {
    let to: Option<HostId> = optional_name("to", migrate.to.as_deref())?;
    let vm = crud::find::<Vm>(&api, &actor, reference, query).await?;
    match api
        .shell
        .submit(conditions.change(actor.clone(), Action::MigrateVm { vm, to, method: migrate.method }))
        .await?
    {
        Reply::Migration(id) => crud::show::<MigrationRecord>(&api, actor, id, StatusCode::ACCEPTED).await,
        _ => Err(gone("migration")),
    }
}

/// Measure how fast a running vm writes to its memory
#[utoipa::path(post, path = "/v1/vms/{vm}/measure", tag = "vms", request_body = MeasureVm,
    params(("vm" = String, Path, description = "Its id or name"), TenantQuery),
    responses((status = 202, description = "It is being measured; `load.dirty_bytes_s` has the result", body = VmView)))]
async fn measure_vm(
    State(api): State<Api>,
    Caller(actor): Caller,
    conditions: Conditions,
    At(reference): At<String>,
    Params(query): Params<TenantQuery>,
    Body(MeasureVm { seconds }): Body<MeasureVm>,
) -> Result<Response, Failure> {
    let vm = crud::find::<Vm>(&api, &actor, reference, query).await?;
    let span = Millis::secs(u64::from(seconds));
    api.shell.submit(conditions.change(actor.clone(), Action::MeasureVm { vm: vm.clone(), span })).await?;
    crud::show::<Vm>(&api, actor, vm, StatusCode::ACCEPTED).await
}

/// Take a vm out of the security groups it is in, and put it into others; takes effect at once
#[utoipa::path(put, path = "/v1/vms/{vm}/security-groups", tag = "vms", request_body = SetSecurityGroups,
    params(("vm" = String, Path, description = "Its id or name"), TenantQuery),
    responses((status = 200, description = "It is in these groups now", body = VmView)))]
async fn set_security_groups(
    State(api): State<Api>,
    Caller(actor): Caller,
    conditions: Conditions,
    At(reference): At<String>,
    Params(query): Params<TenantQuery>,
    Body(set): Body<SetSecurityGroups>,
) -> Result<Response, Failure> {
    let groups = groups(&set.security_groups)?;
    let vm = crud::find::<Vm>(&api, &actor, reference, query).await?;
    api.shell.submit(conditions.change(actor.clone(), Action::SetSecurityGroups { vm: vm.clone(), groups })).await?;
    crud::show::<Vm>(&api, actor, vm, StatusCode::OK).await
}

/// What is asked for, with every field checked. Whether it fits the cluster is the state machine's to say.
fn spec_of(create: &CreateVm, own: Option<&TenantName>, id: &VmId) -> Result<VmSpec, Failure> {
    let tenant = owner(own, create.tenant.as_deref(), "vm")?;
    if !(1..=CreateVm::VCPUS_MAX).contains(&create.vcpus) {
        return Err(Failure::invalid("vcpus", format!("must lie between 1 and {}", CreateVm::VCPUS_MAX)));
    }
    if !(CreateVm::MEMORY_MIB_MIN..=CreateVm::MEMORY_MIB_MAX).contains(&create.memory_mib) {
        let (min, max) = (CreateVm::MEMORY_MIB_MIN, CreateVm::MEMORY_MIB_MAX);
        return Err(Failure::invalid("memory_mib", format!("must lie between {min} and {max} MiB")));
    }
    if create.pinned_to.len() > CreateVm::PINNED_TO_MAX {
        let detail = format!("names {} hosts; at most {} are taken", create.pinned_to.len(), CreateVm::PINNED_TO_MAX);
        return Err(Failure::invalid("pinned_to", detail));
    }
    let pinned_to: BTreeSet<HostId> =
        create.pinned_to.iter().map(|host| name("pinned_to", host)).collect::<Result<_, _>>()?;
    check_guest_args(create)?;
    let nic = nic_of(create, id)?;
    Ok(VmSpec {
        name: name("name", &create.name)?,
        tenant,
        image: name("image", &create.image)?,
        vcpus: create.vcpus,
        memory: Bytes::mib(create.memory_mib),
        nic,
        anti_affinity: optional_name("anti_affinity", create.anti_affinity.as_deref())?,
        pinned_to,
        cpu_reserved: CpuMillis(create.cpu_reserved_millis),
        guest_args: create.guest_args.clone(),
        labels: create.labels.clone(),
    })
}

fn nic_of(create: &CreateVm, id: &VmId) -> Result<Option<Nic>, Failure> {
    let Some(network) = &create.network else {
        let alone = [
            ("address", create.address.is_some()),
            ("security_groups", !create.security_groups.is_empty()),
            ("ingress_max_bytes_s", create.ingress_max_bytes_s.is_some()),
            ("egress_max_bytes_s", create.egress_max_bytes_s.is_some()),
        ];
        return match alone.into_iter().find(|(_, given)| *given) {
            Some((field, _)) => Err(Failure::invalid(field, "needs a network: set `network`, too")),
            None => Ok(None),
        };
    };
    let limit = |field, max: Option<u64>| match max {
        Some(0) => Err(Failure::invalid(field, "leave it out for no limit")),
        max => Ok(Bytes(max.unwrap_or(0))),
    };
    Ok(Some(Nic {
        network: name("network", network)?,
        mac: Vm::derived_mac(id),
        address: create.address.as_deref().map(address).transpose()?,
        security_groups: groups(&create.security_groups)?,
        bandwidth: Bandwidth {
            ingress_max: limit("ingress_max_bytes_s", create.ingress_max_bytes_s)?,
            egress_max: limit("egress_max_bytes_s", create.egress_max_bytes_s)?,
        },
    }))
}

fn groups(names: &[String]) -> Result<BTreeSet<SecurityGroupId>, Failure> {
    names.iter().map(|group| name("security_groups", group)).collect()
}

/// They become words of the guest's kernel command line: nothing in them may end the word.
fn check_guest_args(create: &CreateVm) -> Result<(), Failure> {
    let args = &create.guest_args;
    if args.len() > CreateVm::GUEST_ARGS_MAX {
        let detail = format!("has {} entries; at most {} are taken", args.len(), CreateVm::GUEST_ARGS_MAX);
        return Err(Failure::invalid("guest_args", detail));
    }
    for (key, value) in args {
        let shown: String = key.chars().take(80).collect();
        let field = format!("guest_args.{shown}");
        let label = (1..=63).contains(&key.len())
            && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'));
        if !label {
            return Err(Failure::invalid(
                &field,
                "a key is 1 to 63 lower-case letters, digits, hyphens and underscores",
            ));
        }
        // `name` and `address` are drover's own words there.
        if matches!(key.as_str(), "name" | "address") {
            return Err(Failure::invalid(&field, "drover sets this one itself: choose another key"));
        }
        if value.len() > CreateVm::GUEST_ARG_VALUE_MAX {
            let detail = format!("a value has at most {} characters", CreateVm::GUEST_ARG_VALUE_MAX);
            return Err(Failure::invalid(&field, detail));
        }
        if !value.bytes().all(|b| b.is_ascii_graphic() && b != b'"') {
            return Err(Failure::invalid(&field, "a value is of visible ASCII characters, without spaces and quotes"));
        }
    }
    Ok(())
}

/// An address, with its prefix length if it is given, in its usual spelling.
fn address(text: &str) -> Result<String, Failure> {
    let bad = || Failure::invalid("address", "must be an address, on a provider network in CIDR form: 10.78.0.11/24");
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    if address.is_unspecified() || address.is_multicast() {
        return Err(bad());
    }
    let Some(prefix) = prefix else { return Ok(address.to_string()) };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    match prefix.parse::<u8>() {
        Ok(prefix) if (1..=longest).contains(&prefix) => Ok(format!("{address}/{prefix}")),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create() -> CreateVm {
        CreateVm {
            name: "web-1".to_owned(),
            image: "small".to_owned(),
            vcpus: 1,
            memory_mib: 64,
            network: Some("lan".to_owned()),
            address: Some("10.78.0.11/24".to_owned()),
            ..CreateVm::default()
        }
    }

    fn spec(create: &CreateVm) -> Result<VmSpec, Option<String>> {
        let (own, id) = ("acme".parse().unwrap(), "vm-abcdefghijkl".parse().unwrap());
        spec_of(create, Some(&own), &id).map_err(|failure| failure.0.field)
    }

    #[test]
    fn a_good_request_becomes_a_spec() {
        let spec = spec(&create()).unwrap();
        assert_eq!(spec.tenant.as_str(), "acme");
        assert_eq!(spec.memory, Bytes::mib(64));
        let nic = spec.nic.unwrap();
        assert_eq!(nic.address.as_deref(), Some("10.78.0.11/24"));
        assert_eq!(nic.mac, Vm::derived_mac(&"vm-abcdefghijkl".parse().unwrap()));
    }

    #[test]
    fn each_bad_field_is_named() {
        type Change = fn(&mut CreateVm);
        let cases: [(Change, &str); 22] = [
            (|vm| vm.name = "Web".to_owned(), "name"),
            (|vm| vm.name = "x".repeat(64), "name"),
            (|vm| vm.tenant = Some("other".to_owned()), "tenant"),
            (|vm| vm.tenant = Some("a b".to_owned()), "tenant"),
            (|vm| vm.image = "../etc".to_owned(), "image"),
            (|vm| vm.vcpus = 0, "vcpus"),
            (|vm| vm.vcpus = 65, "vcpus"),
            (|vm| vm.memory_mib = 31, "memory_mib"),
            (|vm| vm.memory_mib = u64::MAX, "memory_mib"),
            (|vm| vm.network = None, "address"),
            (|vm| vm.network = Some("LAN".to_owned()), "network"),
            (|vm| vm.address = Some("10.78.0".to_owned()), "address"),
            (|vm| vm.security_groups = vec!["no group".to_owned()], "security_groups"),
            (|vm| vm.ingress_max_bytes_s = Some(0), "ingress_max_bytes_s"),
            (|vm| vm.address = Some("10.78.0.11/33".to_owned()), "address"),
            (|vm| vm.address = Some("10.78.0.11/24 init=/bin/sh".to_owned()), "address"),
            (|vm| vm.anti_affinity = Some(String::new()), "anti_affinity"),
            (|vm| vm.pinned_to = vec!["h1".to_owned(), "H2".to_owned()], "pinned_to"),
            (|vm| drop(vm.guest_args.insert("a=b".to_owned(), "c".to_owned())), "guest_args.a=b"),
            (|vm| drop(vm.guest_args.insert("k".to_owned(), "a init=/bin/sh".to_owned())), "guest_args.k"),
            (|vm| drop(vm.guest_args.insert("k".to_owned(), "v".repeat(129))), "guest_args.k"),
            (|vm| vm.guest_args = (0..33).map(|n| (format!("k{n}"), String::new())).collect(), "guest_args"),
        ];
        for (n, (change, field)) in cases.into_iter().enumerate() {
            let mut create = create();
            change(&mut create);
            assert_eq!(spec(&create).err().flatten().as_deref(), Some(field), "case {n}");
        }
    }

    #[test]
    fn an_operator_must_say_whose_vm_it_is() {
        let id = "vm-abcdefghijkl".parse().unwrap();
        let failure = spec_of(&create(), None, &id).unwrap_err();
        assert_eq!(failure.0.field.as_deref(), Some("tenant"));
        let named = CreateVm { tenant: Some("acme".to_owned()), ..create() };
        assert!(spec_of(&named, None, &id).is_ok());
    }
}
