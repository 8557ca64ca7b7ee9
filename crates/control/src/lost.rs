//! Hosts that a person has declared lost: what they held counts as gone.
//!
//! ```text
//!   Down ──declared lost──▶ lost: its vms are removed, or start elsewhere under a newer generation
//!                             │ returns
//!                             ▼
//!                           drained: it ends what it still holds of them ──undrain──▶ used again
//! ```
//! Nothing here is concluded from silence: a person knows. If the person is wrong and the host runs on, a vm may run
//! twice until the host is back, and only the lock on its disk keeps the two apart.

use crate::Control;
use crate::interface::{Refusal, Reply};
use crate::live::Seen;
use drover_model::event::Severity;
use drover_model::intent::{Host, LostHost};
use drover_model::world::HostState;
use drover_model::{HostId, TimeMs};

pub fn declare(control: &mut Control, now: TimeMs, host: &HostId, by: &str) -> Result<Reply, Refusal> {
    let row = control.require::<Host>(host)?;
    if row.lost.is_some() {
        return Ok(Reply::Host(host.clone()));
    }
    match control.live.state(host) {
        HostState::Down | HostState::Asleep if !control.live.is_connected(host) => {}
        state => {
            let detail = format!(
                "{host} is {}: only a host that does not answer can be declared lost. `drover host drain {host}` empties \
                 one that answers",
                state.word()
            );
            return Err(Refusal::conflict(detail));
        }
    }
    let outdated = control.vms_on(host).map(|vm| (vm.id.clone(), vm.generation)).collect();
    let vms = control.vms_on(host).count();
    control.tables.change::<Host>(host, |row| {
        row.lost = Some(LostHost { at: now, outdated });
        row.maintenance = true;
        row.drained_at = Some(now);
    });
    control.look_at_vms_of(host);
    let text = format!(
        "{by} declared {host} lost: what was in the memory of its {vms} vms is gone, and those that should run are started \
         elsewhere. If {host} returns it ends what it still holds, and is used again after `drover host undrain {host}`"
    );
    control.tables.event(now, Severity::Escalation, format!("host/{host}"), None, "host-lost", text);
    Ok(Reply::Host(host.clone()))
}

/// Not before it has ended what it held when it was declared lost.
pub fn may_be_used_again(control: &Control, host: &HostId) -> Result<(), Refusal> {
    let Some(lost) = control.host(host).and_then(|row| row.lost.as_ref()) else { return Ok(()) };
    if !control.live.is_connected(host) {
        let detail = format!("{host} was declared lost and does not answer: it can't be used before it does");
        return Err(Refusal::conflict(detail));
    }
    let held = |vm: &&drover_model::VmId| {
        let elsewhere = control.vm(vm).is_none_or(|row| row.host.as_ref() != Some(host));
        elsewhere && matches!(control.live.sees(host, vm), Seen::There(_))
    };
    match lost.outdated.keys().filter(held).count() {
        0 => Ok(()),
        held => Err(Refusal::conflict(format!(
            "{host} still holds {held} vms from before it was declared lost and is ending them: try again in a few seconds"
        ))),
    }
}

impl Control {
    pub(crate) fn is_lost(&self, host: &HostId) -> bool {
        self.host(host).is_some_and(|row| row.lost.is_some())
    }
}
