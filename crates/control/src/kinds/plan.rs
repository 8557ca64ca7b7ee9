//! Plans, for those who read. The planner makes them, [`crate::planning`] carries them out.

use super::{Reading, Resource};
use crate::Control;
use drover_model::TimeMs;
use drover_model::plan::PlanRecord;
use drover_model::v1::{PlanView, plan_state_words};

impl Resource for PlanRecord {
    fn state(&self, _control: &Control) -> Option<&'static str> {
        Some(plan_state_words(&self.state).0)
    }

    fn view(&self, reading: Reading) -> PlanView {
        let mut view = PlanView::new(self, reading.revision);
        let steps = view.steps.iter_mut().filter_map(|step| step.state_at_ms.as_mut());
        let verified = view.verification.iter_mut().map(|verification| &mut verification.at_ms);
        for at_ms in [&mut view.made_at_ms].into_iter().chain(view.finished_at_ms.as_mut()).chain(steps).chain(verified)
        {
            *at_ms = reading.control.to_wall(TimeMs(*at_ms)).0;
        }
        view
    }
}
