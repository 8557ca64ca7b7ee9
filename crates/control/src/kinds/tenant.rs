//! Tenants: cloud consumers, and how much each may have.

use super::{Context, Reading, Resource};
use crate::interface::{Refusal, RefusalKind};
use drover_model::TenantName;
use drover_model::intent::{ApiToken, Quota, Tenant};
use drover_model::kind::{Kind, ObjectKey, Versioned};
use drover_model::v1::{CreateTenant, TenantSettings, TenantView};

impl Resource for Tenant {
    /// Its tokens: nobody could speak for it any more.
    const GO_WITH_IT: &'static [&'static str] = &[ApiToken::NAME];

    fn create(context: &mut Context, create: CreateTenant) -> Result<Self, Refusal> {
        let CreateTenant { name, labels, quota } = create;
        let id = format!("tn-{}", context.fresh);
        let id = id.parse().map_err(|error: drover_model::BadName| Refusal::invalid("id", error.to_string()))?;
        Ok(Self { id, name, created_at: context.wall(), labels, quota })
    }

    fn settings(&self) -> Option<TenantSettings> {
        Some(TenantSettings { labels: self.labels.clone(), quota: self.quota })
    }

    fn patch(&self, _context: &mut Context, settings: TenantSettings) -> Result<Self, Refusal> {
        let TenantSettings { labels, quota } = settings;
        Ok(Self { labels, quota, ..self.clone() })
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
        let Quota { vms, vcpus, memory_mib, networks, security_groups, tokens } = row.ok_or_else(unknown)?.quota;
        let key = ObjectKey::of::<Tenant>(tenant);
        let (mut used_vms, mut used_vcpus, mut used_mib) = (0, 0, 0);
        if wanted.vms + wanted.vcpus + wanted.memory_mib > 0 {
            for vm in tables.vms.referring_to(&key).filter(|vm| !vm.deleting) {
                used_vms += 1;
                used_vcpus += u64::from(vm.spec.vcpus);
                used_mib += vm.spec.memory.0 >> 20;
            }
        }
        let groups = tables.security_groups.count_referring_to(&key) as u64;
        for (what, used, wanted, most) in [
            ("vms", used_vms, wanted.vms, vms),
            ("vcpus", used_vcpus, wanted.vcpus, vcpus),
            ("MiB of memory", used_mib, wanted.memory_mib, memory_mib),
            ("networks", tables.networks.count_referring_to(&key) as u64, wanted.networks, networks),
            ("security groups", groups, wanted.security_groups, security_groups),
            ("tokens", tables.api_tokens.count_referring_to(&key) as u64, wanted.tokens, tokens),
        ] {
            if wanted > 0 && used + wanted > most {
                let detail = format!(
                    "tenant {tenant} has {used} of at most {most} {what}, and this asks for {wanted} more: remove \
                     some, or ask an operator for a larger quota"
                );
                return Err(Refusal::new(RefusalKind::Conflict, detail));
            }
        }
        Ok(())
    }
}
