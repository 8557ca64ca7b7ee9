//! Plans, for those who read. The planner makes them, [`crate::planning`] carries them out.

use super::{Reading, Resource};
use crate::Control;
use drover_model::plan::PlanRecord;
use drover_model::v1::{PlanView, plan_state_words};

impl Resource for PlanRecord {
    fn state(&self, _control: &Control) -> Option<&'static str> {
        Some(plan_state_words(&self.state).0)
    }

    fn view(&self, reading: Reading) -> PlanView {
        PlanView::new(self, reading.revision)
    }
}
