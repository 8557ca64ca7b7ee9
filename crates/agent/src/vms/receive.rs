//! The destination's end of a live migration, as the owner of the vm sees it.
//!
//! Its word that the guest never ran here lets the source run it again, with the memory of then. So that is said only
//! of a guest that is certain not to have run and not to run any more.
//!
//! ```text
//!  Receive ──Arrived──▶ Running
//!     │ ├──the stream broke──▶ IncomingFailed
//!     │ └──QEMU ended, and nobody saw whether the guest ran before──▶ Failed
//!     └──cancelled: forbidden to run, then looked at──▶ still incomplete: ended and forgotten │ complete: Running
//! ```

use super::Answer;
use super::lifecycle::state_of_status;
use super::migrate::{Driver, unreachable_qemu};
use super::record::{Ended, Record, Role};
use super::task::{VmTask, failed};
use crate::clock::time_ms;
use crate::error_chain::chain;
use drover_model::command::{CommandOutcome, CommandRefusal, MigrationTarget, MigrationUpdate, VmRun};
use drover_model::inventory::VmState;
use drover_model::{Generation, MigrationId};
use drover_qemu::migration::{AdoptedIncoming, Incoming, IncomingFailed, ListenPorts, RanAt};
use drover_qemu::{Machine, QmpError, RunStatus};

impl VmTask {
    pub(super) async fn prepare_incoming(
        &mut self,
        run: VmRun,
        generation: Generation,
        migration: MigrationId,
    ) -> Answer {
        let Some(address) = *self.host().migration_address.borrow() else {
            let why =
                "this host does not know its migration address yet: set migration_address in the agent's configuration";
            return Err(CommandRefusal::Failed { why: why.to_owned() });
        };
        self.end_process().await?;
        self.last_update = None;
        self.record(
            Record::new(run.clone(), generation, Role::Receive { migration }),
            VmState::Incoming { migration },
        )?;
        self.publish();
        let listening = async {
            let machine = self.launch(&run, true).await?;
            Incoming::prepare(&machine, address, ListenPorts::Any).await.map_err(|error| failed(&error))
        };
        match listening.await {
            Ok(incoming) => {
                let target = MigrationTarget { address, port: incoming.port() };
                self.driver = Some(Driver::incoming(incoming, Some(target.clone())));
                Ok(CommandOutcome::Listening { target })
            }
            Err(refusal) => {
                // Nothing came of it, so nothing is remembered of it.
                if let Err(left) = self.release(false).await {
                    tracing::error!(vm = %self.vm, refusal = %left, "what was prepared can't be removed");
                }
                Err(refusal)
            }
        }
    }

    pub(super) async fn adopt_incoming(&mut self, machine: &Machine, migration: MigrationId) {
        match Incoming::adopt(machine).await {
            Ok(AdoptedIncoming::Waiting(incoming)) => {
                let address = *self.host().migration_address.borrow();
                let port = incoming.port();
                let target = address.filter(|_| port != 0).map(|address| MigrationTarget { address, port });
                self.driver = Some(Driver::incoming(incoming, target));
            }
            Ok(AdoptedIncoming::NotPrepared) => {
                let why = "the agent ended before it listened".to_owned();
                self.incoming_failed(migration, why).await;
            }
            Ok(AdoptedIncoming::Ran(ran)) => self.arrived(migration, ran),
            Ok(AdoptedIncoming::Failed(error)) => self.did_not_run(migration, error).await,
            Err(error) => {
                tracing::warn!(vm = %self.vm, %error, "can't see how the migration stands; trying again");
                self.attached = None;
            }
        }
    }

    /// Ends the waiting QEMU, unless the guest is complete here: it may have run since anybody last looked.
    pub(super) async fn cancel_incoming(&mut self, migration: MigrationId) -> Answer {
        let machine = self.machine()?;
        match forbidden_to_run(&machine).await {
            Ok(RunStatus::InMigrate) => self.release(false).await,
            Ok(status) => {
                // It has seen the guest stand still, perhaps, which is over in a moment.
                self.driver = None;
                let state = self.complete(&machine, migration, status).await?;
                Err(CommandRefusal::WrongState { state: state.word().to_owned() })
            }
            // The process ends, and the driver is about to say whether the guest ran.
            Err(QmpError::Closed { .. }) => Err(unreachable_qemu()),
            Err(error) => {
                self.look_anew();
                Err(failed(&error))
            }
        }
    }

    pub(super) fn arrived(&mut self, migration: MigrationId, ran: RanAt) {
        self.ours(migration, VmState::Running);
        // A time that is only when it was noticed would be taken for downtime: then the inventory alone tells.
        if ran.exact {
            self.update(migration, MigrationUpdate::Running { at: time_ms(ran.at) });
        }
    }

    /// It was not seen to run, which is not yet to say that it never did.
    pub(super) async fn did_not_run(&mut self, migration: MigrationId, error: IncomingFailed) {
        match error {
            IncomingFailed::Ended | IncomingFailed::Stream { .. } => {
                self.incoming_failed(migration, chain(&error)).await;
            }
            IncomingFailed::Unclear => {
                self.end_received().await;
                self.end(Ended::Failed { why: chain(&error) });
            }
            IncomingFailed::StandsStill(status) => {
                let Ok(machine) = self.machine() else { return };
                if let Err(refusal) = self.complete(&machine, migration, status).await {
                    tracing::warn!(vm = %self.vm, %refusal, "the guest that arrived stands still; trying again");
                }
            }
        }
    }

    /// The whole guest is here. One that is paused was forbidden to run by a cancel that came too late, of this agent
    /// or of one before it: nothing else pauses a guest.
    async fn complete(
        &mut self,
        machine: &Machine,
        migration: MigrationId,
        status: RunStatus,
    ) -> Result<VmState, CommandRefusal> {
        if status == RunStatus::Paused
            && let Err(error) = machine.cont().await
        {
            self.look_anew();
            return Err(failed(&error));
        }
        let state = if status == RunStatus::Paused { VmState::Running } else { state_of_status(&status) };
        self.ours(migration, state.clone());
        Ok(state)
    }

    fn ours(&mut self, migration: MigrationId, state: VmState) {
        let Some((record, _)) = self.known.clone() else { return };
        self.record_fact(Record { role: Role::Run, arrived_by: Some(migration), ..record }, state);
    }

    async fn incoming_failed(&mut self, migration: MigrationId, why: String) {
        self.end_received().await;
        self.end(Ended::IncomingFailed { migration, why: why.clone() });
        self.update(migration, MigrationUpdate::IncomingFailed { why });
    }

    async fn end_received(&mut self) {
        if let Err(refusal) = self.end_process().await {
            tracing::error!(vm = %self.vm, %refusal, "a QEMU that received in vain can't be ended");
        }
        self.clear_host().await;
    }

    /// What was ordered may have been carried out: adopted again, which asks QEMU.
    fn look_anew(&mut self) {
        self.driver = None;
        self.attached = None;
    }
}

/// What QEMU is in, once it will not let the guest run any more. One that has not received all of it then only notes
/// not to start it at the end, so still being in migration proves that the guest has not run and will not.
async fn forbidden_to_run(machine: &Machine) -> Result<RunStatus, QmpError> {
    machine.stop().await?;
    machine.status().await
}
