//! Hosts: how they look, and when one may be removed. They come about by joining.

use super::{Context, Reading, Resource};
use crate::Control;
use crate::interface::{Effect, Refusal};
use crate::transfers::Evacuation;
use drover_model::intent::{Host, Vm};
use drover_model::kind::Kind;
use drover_model::plan::Heat;
use drover_model::v1::{CapacityView, EvacuationView, HostAttributes, HostFactsView, HostLoad, HostView};
use drover_model::{Bytes, HostId};

/// The most that anything is priced at, in millionths.
const PRICE_MAX: i64 = 1_000_000_000_000;

impl Resource for Host {
    fn settings(&self) -> Option<HostAttributes> {
        Some(HostAttributes::from(&self.attributes))
    }

    fn patch(&self, _context: &mut Context, settings: HostAttributes) -> Result<Self, Refusal> {
        let attributes = settings.checked().map_err(|bad| Refusal::invalid(bad.field, bad.problem))?;
        let labels_max = drover_model::intent::HostAttributes::LABELS_MAX;
        if attributes.labels.len() > labels_max {
            return Err(Refusal::invalid("labels", format!("at most {labels_max} are taken")));
        }
        if attributes.link == Some(Bytes::ZERO) {
            return Err(Refusal::invalid("link_bytes_s", "must be above 0; leave it out for no limit".to_owned()));
        }
        if attributes.power.is_some_and(|curve| !curve.is_sound()) {
            let detail = "must be eleven figures, at 0, 10, ... 100 % of the processor, none below the one before it, \
                          from 0 to 100000 watts";
            return Err(Refusal::invalid("power_curve_watts", detail.to_owned()));
        }
        if attributes.power_cycle_price.is_some_and(|price| !(0..=PRICE_MAX).contains(&price.0)) {
            let detail = format!("must lie between 0 and {PRICE_MAX} millionths");
            return Err(Refusal::invalid("power_cycle_price_micro", detail));
        }
        Ok(Self { attributes, ..self.clone() })
    }

    /// Vms: they are to leave it, not to be removed.
    const MAY_REFER: &'static [&'static str] = &[Vm::NAME];

    fn may_remove(&self, context: &Context) -> Result<(), Refusal> {
        let (host, control) = (&self.id, &*context.control);
        if self.lost.is_some() && !control.live.is_connected(host) {
            return Ok(());
        }
        let held = control.vms_on(host).count().max(control.holds_vms(host));
        if held > 0 {
            let detail = format!("{host} still holds {held} vms: `drover host drain {host}` first");
            return Err(Refusal::conflict(detail));
        }
        Ok(())
    }

    fn removed(&self, context: &mut Context) {
        let live = context.control.live.hosts.remove(&self.id);
        if let Some(connection) = live.and_then(|live| live.connection) {
            let why = "this host was removed from the cluster".to_owned();
            context.control.live.effects.push(Effect::Disconnect { host: self.id.clone(), connection, why });
        }
    }

    fn state(&self, control: &Control) -> Option<&'static str> {
        Some(control.live.state(&self.id).word())
    }

    fn host(&self) -> Option<&HostId> {
        Some(&self.id)
    }

    fn view(&self, reading: Reading) -> HostView {
        let control = reading.control;
        let status = control.host_status(&self.id);
        let finding = control.findings().and_then(|found| found.hosts.get(&self.id));
        let vms = || control.tables.vms.referring_to(&self.object_key());
        let promised: Bytes = vms().map(|vm| vm.spec.memory).sum();
        HostView {
            id: self.id.clone(),
            revision: reading.revision,
            joined_at_ms: self.joined_at.0,
            state: status.state,
            state_since_ms: status.since.0,
            connected: status.connected,
            last_report_at_ms: status.last_report.map(|at| at.0),
            maintenance: self.maintenance,
            lost_at_ms: self.lost.as_ref().map(|lost| control.to_wall(lost.at).0),
            power: self.power,
            power_managed: status.power_managed,
            wake_problem: status.wake_problem.map(str::to_owned),
            off_since_ms: self.off_since.map(|at| control.to_wall(at).0),
            power_cycles: self.power_cycles,
            boot_time_ms: self.boot_time.map(|time| time.0),
            capacity: self.capacity.as_ref().map(CapacityView::from),
            facts: status.facts.map(HostFactsView::from),
            load: status.sample.filter(|_| status.connected).map(HostLoad::from),
            heat: finding.map_or(Heat::Unknown, |found| found.heat),
            vms: vms().map(|vm| vm.id.clone()).collect(),
            memory_promised_mib: promised.0 >> 20,
            evacuation: control.evacuation(&self.id).map(|found| evacuation(control, found)),
            attributes: HostAttributes::from(&self.attributes),
        }
    }
}

fn evacuation(control: &Control, evacuation: &Evacuation) -> EvacuationView {
    let Evacuation { since, total, done, moving, waiting, stuck, eta_at, promised_at, slips, finished_at, .. } =
        *evacuation;
    let ms = |at| control.to_wall(at).0;
    EvacuationView {
        since_ms: ms(since),
        total,
        done,
        moving,
        waiting,
        stuck,
        finish_eta_at_ms: eta_at.map(ms),
        promised_at_ms: promised_at.map(ms),
        slips,
        finished_at_ms: finished_at.map(ms),
    }
}
