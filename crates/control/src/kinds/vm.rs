//! Virtual servers, for those who read. [`crate::lifecycle`] and [`crate::migrate`] care for them.

use super::{Reading, Resource};
use crate::Control;
use drover_model::HostId;
use drover_model::intent::Vm;
use drover_model::v1::{VmLoad, VmView};

impl Resource for Vm {
    fn state(&self, control: &Control) -> Option<&'static str> {
        Some(control.vm_status(&self.id).phase)
    }

    fn host(&self) -> Option<&HostId> {
        self.host.as_ref()
    }

    fn view(&self, reading: Reading) -> VmView {
        let control = reading.control;
        let status = control.vm_status(&self.id);
        let mut view = VmView::new(self, reading.revision, status.phase);
        view.why = status.why;
        if let Some(nic) = &mut view.nic {
            nic.network_name = control.network(&nic.network).map(|network| network.name.clone());
        }
        view.pid = status.inventory.and_then(|seen| seen.pid);
        view.load = status.sample.map(VmLoad::from);
        view
    }
}
