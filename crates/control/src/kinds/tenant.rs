//! Tenants: cloud consumers, and how much each may have.

use super::{Context, Reading, Resource};
use crate::interface::Refusal;
use drover_model::TenantName;
use drover_model::intent::{ApiToken, Tenant, Vm};
use drover_model::kind::{Kind, ObjectKey, Versioned};
use drover_model::v1::{CreateTenant, TenantSettings, TenantView};

impl Resource for Tenant {
    /// Its tokens: nobody could speak for it any more.
    const MAY_REFER: &'static [&'static str] = &[ApiToken::NAME];

    fn create(context: &mut Context, create: CreateTenant) -> Result<Self, Refusal> {
        let CreateTenant { name, labels, quota, provider_networks } = create;
        let id = format!("tn-{}", context.fresh);
        let id = id.parse().map_err(|error: drover_model::BadName| Refusal::invalid("id", error.to_string()))?;
        Ok(Self { id, name, created_at: context.wall(), labels, quota, provider_networks })
    }

    fn settings(&self) -> Option<TenantSettings> {
        let provider_networks = self.provider_networks.clone();
        Some(TenantSettings { labels: self.labels.clone(), quota: self.quota, provider_networks })
    }

    fn patch(&self, _context: &mut Context, settings: TenantSettings) -> Result<Self, Refusal> {
        let TenantSettings { labels, quota, provider_networks } = settings;
        Ok(Self { labels, quota, provider_networks, ..self.clone() })
    }

    fn removed(&self, context: &mut Context) {
        let key = self.object_key();
        let tokens: Vec<_> =
            context.control.tables.api_tokens.referring_to(&key).map(|token| token.id.clone()).collect();
        for token in tokens {
            context.control.tables.remove::<ApiToken>(&token);
        }
    }

    fn view(&self, reading: Reading) -> TenantView {
        Versioned { object: self.clone(), revision: reading.revision }
    }
}

/// What a request would add to what a tenant has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    pub vms: u64,
    pub vcpus: u64,
    pub memory_mib: u64,
    pub networks: u64,
    pub security_groups: u64,
    pub tokens: u64,
}

impl Context<'_> {
    /// The tenant is there, and what is wanted fits into its quota.
    pub fn within_quota(&self, tenant: &TenantName, wanted: Wanted) -> Result<(), Refusal> {
        let tables = &self.control.tables;
        let row = tables.get::<Tenant>(tenant);
        let unknown = || Refusal::not_found(format!("there is no tenant {tenant}")).at("tenant");
        let quota = row.ok_or_else(unknown)?.quota;
        let key = ObjectKey::of::<Tenant>(tenant);
        let own_vms = || tables.vms.referring_to(&key).filter(|vm| !vm.deleting);
        let vcpus = |vm: &Vm| u64::from(vm.spec.vcpus);
        let mib = |vm: &Vm| vm.spec.memory.0 >> 20;
        let within = |what: &str, wanted: u64, most: u64, used: &dyn Fn() -> u64| {
            // What nobody asks for is not counted.
            let used = if wanted == 0 { 0 } else { used() };
            if used.saturating_add(wanted) <= most || wanted == 0 {
                return Ok(());
            }
            Err(Refusal::conflict(format!(
                "tenant {tenant} has {used} of at most {most} {what}, and this asks for {wanted} more: remove some, or \
                 ask an operator for a larger quota"
            )))
        };
        let count = |count: usize| count as u64;
        within("vms", wanted.vms, quota.vms, &|| count(own_vms().count()))?;
        within("vcpus", wanted.vcpus, quota.vcpus, &|| own_vms().map(vcpus).sum())?;
        within("MiB of memory", wanted.memory_mib, quota.memory_mib, &|| own_vms().map(mib).sum())?;
        within("networks", wanted.networks, quota.networks, &|| count(tables.networks.count_referring_to(&key)))?;
        within("security groups", wanted.security_groups, quota.security_groups, &|| {
            count(tables.security_groups.count_referring_to(&key))
        })?;
        within("tokens", wanted.tokens, quota.tokens, &|| count(tables.api_tokens.count_referring_to(&key)))
    }
}
