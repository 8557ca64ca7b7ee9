//! Migrations, for those who read. [`crate::migrate`] carries them out.

use super::{Reading, Resource};
use crate::Control;
use drover_model::kind::{Kind, Owner};
use drover_model::migration::MigrationRecord;
use drover_model::v1::{MigrationNow, MigrationView};

impl Resource for MigrationRecord {
    /// Its vm's, as long as there is one.
    fn owner_in<'a>(&'a self, control: &'a Control) -> Owner<'a> {
        control.vm(&self.vm).map_or(Owner::Cluster, Kind::owner)
    }

    fn state(&self, _control: &Control) -> Option<&'static str> {
        Some(self.phase.word())
    }

    fn view(&self, reading: Reading) -> MigrationView {
        let control = reading.control;
        let outlook = control.migration_outlook(self.id);
        let now = MigrationNow {
            stage: control.migration_stage(self),
            progress: control.migration_progress(self.id),
            start_eta: outlook.and_then(|outlook| outlook.start_at).map(|at| control.to_wall(at)),
            finish_eta: outlook.and_then(|outlook| outlook.finish_at).map(|at| control.to_wall(at)),
            waits_for: outlook.and_then(|outlook| outlook.waits_for.as_deref()),
            recoveries: control.migration_recoveries(self.id),
        };
        MigrationView {
            started_at_ms: control.to_wall(self.started_at).0,
            finished_at_ms: self.finished_at.map(|at| control.to_wall(at).0),
            ..MigrationView::new(self, reading.revision, control.vm(&self.vm), &now)
        }
    }
}
