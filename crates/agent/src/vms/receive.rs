//! The destination's end of a live migration, as the owner of the vm sees it.
//!
//! Its word that the guest never ran here lets the source run it again, with the memory of then. So that is said only
//! of a guest that is certain not to have run and not to run any more.
//!
//! ```text
//!  Receive ──Arrived──▶ Running
//!     │ ├──Completing: runs here by post-copy──last page──▶ Running
//!     │ │      └──the connection broke: stalled──listens anew──▶ Completing
//!     │ ├──the stream broke──▶ IncomingFailed
//!     │ └──QEMU ended, and nobody saw whether the guest ran before──▶ Failed
//!     └──cancelled: forbidden to run, then looked at──▶ still incomplete: ended and forgotten │ else it runs here
//! ```

use super::Answer;
use super::driver::{BeginIncoming, Driver, Order};
use super::figures::strategy_of;
use super::lifecycle::state_of_status;
use super::migrate::unreachable_qemu;
use super::record::{Ended, Record, Role};
use super::task::{VmTask, failed};
use crate::clock::time_ms;
use crate::error_chain::chain;
use drover_model::command::{CommandOutcome, CommandRefusal, MigrationTarget, MigrationUpdate, VmRun};
use drover_model::inventory::VmState;
use drover_model::migration::Strategy;
use drover_model::{Generation, HostId, MigrationId};
use drover_qemu::migration::{AdoptedIncoming, Incoming, IncomingFailed, ListenPorts, RanAt};
use drover_qemu::{Machine, QmpError, RunStatus};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// A destination that listens for its source once more says the same again for so long, and then listens anew: the one
/// that asks may have had no answer, or the source may have been turned away.
const LISTENS_FOR: Duration = Duration::from_secs(10);
/// QEMU's answer to being told to listen.
const LISTEN_WAIT_MAX: Duration = Duration::from_secs(15);

/// How a vm is received, and from where; recorded with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reception {
    pub migration: MigrationId,
    pub from: HostId,
    pub strategy: Strategy,
}

impl VmTask {
    pub(super) async fn prepare_incoming(
        &mut self,
        run: VmRun,
        generation: Generation,
        reception: Reception,
    ) -> Answer {
        let address = self.migration_address()?;
        // What the server can't know of this host, before anything is done about it.
        self.files(&run)?.check().map_err(|error| failed(&error))?;
        self.check_network(&run).await?;
        self.end_process().await?;
        self.last_update = None;
        let Reception { migration, from, strategy } = reception;
        let how = strategy_of(strategy, &from, &self.host().config.state_dir);
        self.record(
            Record::new(run.clone(), generation, Role::Receive { migration, from, strategy }),
            VmState::Incoming { migration },
        )?;
        self.publish();
        let listening = async {
            let machine = self.launch(&run, true).await?;
            Incoming::prepare(&machine, address, ListenPorts::Any, &how).await.map_err(|error| failed(&error))
        };
        match listening.await {
            Ok(incoming) => {
                let target = self.target(address, incoming.port()).await;
                self.driver = Some(Driver::incoming(BeginIncoming::Waiting(incoming), Some(target.clone())));
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

    fn migration_address(&self) -> Result<IpAddr, CommandRefusal> {
        let address = *self.host().migration_address.borrow();
        address.ok_or_else(|| {
            let why =
                "this host does not know its migration address yet: set migration_address in the agent's configuration";
            CommandRefusal::Failed { why: why.to_owned() }
        })
    }

    async fn target(&self, address: IpAddr, port: u16) -> MigrationTarget {
        MigrationTarget { host: self.host().config.host.clone(), address, port, relay: self.relay_address().await }
    }

    pub(super) async fn adopt_incoming(&mut self, machine: &Machine, reception: Reception) {
        let Reception { migration, from, strategy } = reception;
        let how = strategy_of(strategy, &from, &self.host().config.state_dir);
        match Incoming::adopt(machine, &how).await {
            Ok(AdoptedIncoming::Waiting(incoming)) => {
                let port = incoming.port();
                let target = match self.migration_address() {
                    Ok(address) if port != 0 => Some(self.target(address, port).await),
                    Ok(_) | Err(_) => None,
                };
                self.driver = Some(Driver::incoming(BeginIncoming::Waiting(incoming), target));
            }
            Ok(AdoptedIncoming::Completing(completing)) => {
                self.driver = Some(Driver::incoming(BeginIncoming::Completing(completing), None));
                self.completing(migration).await;
            }
            Ok(AdoptedIncoming::Stalled(stalled)) => {
                let why = stalled.why().to_owned();
                self.driver = Some(Driver::incoming(BeginIncoming::Stalled(stalled), None));
                self.arrived_on_network().await;
                self.completing_stalled(migration, why);
            }
            Ok(AdoptedIncoming::NotPrepared) => {
                let why = "the agent ended before it listened".to_owned();
                self.incoming_failed(migration, why).await;
            }
            Ok(AdoptedIncoming::Ran(ran)) => self.arrived(migration, ran).await,
            Ok(AdoptedIncoming::Failed(error)) => self.did_not_run(migration, error).await,
            Err(error) => {
                tracing::warn!(vm = %self.vm, %error, "can't see how the migration stands; trying again");
                self.attached = None;
            }
        }
    }

    /// Ends the waiting QEMU, unless the guest is complete here: it may have run since anybody last looked.
    pub(super) async fn cancel_incoming(&mut self) -> Answer {
        let machine = self.machine()?;
        match forbidden_to_run(&machine).await {
            Ok(RunStatus::InMigrate) => self.release(false).await,
            Ok(status) => {
                // It has seen the guest stand still, perhaps, which is over in a moment.
                self.driver = None;
                self.allowed_to_run(&machine, &status).await?;
                // All of it is here, or it runs by post-copy.
                self.adopt_as_recorded(&machine).await;
                let state = self.known.as_ref().map_or("unknown", |(_, state)| state.word());
                Err(CommandRefusal::WrongState { state: state.to_owned() })
            }
            // The process ends, and the driver is about to say whether the guest ran.
            Err(QmpError::Closed { .. }) => Err(unreachable_qemu()),
            Err(error) => {
                self.look_anew();
                Err(failed(&error))
            }
        }
    }

    /// The guest runs here, part of its memory is still at the source.
    pub(super) async fn completing(&mut self, migration: MigrationId) {
        self.set_state(VmState::Completing { migration, stalled: false });
        self.arrived_on_network().await;
    }

    pub(super) fn completing_stalled(&mut self, migration: MigrationId, why: String) {
        if let Some(driver) = &mut self.driver {
            driver.target = None;
        }
        self.set_state(VmState::Completing { migration, stalled: true });
        self.update(migration, MigrationUpdate::Stalled { why });
    }

    /// QEMU says that the source sends again.
    pub(super) fn goes_on_completing(&mut self) {
        if let Some((_, VmState::Completing { migration, stalled: true })) = &self.known {
            let migration = *migration;
            // A stall that is over must not be told again.
            self.last_update = None;
            self.set_state(VmState::Completing { migration, stalled: false });
        }
    }

    pub(super) async fn recover_incoming(&mut self) -> Answer {
        let address = self.migration_address()?;
        if let Some((target, since)) = self.driver.as_ref().and_then(|driver| driver.target.as_ref()) {
            if since.elapsed() < LISTENS_FOR {
                return Ok(CommandOutcome::Listening { target: target.clone() });
            }
            // What it listened for did not come: taken up again from what QEMU says.
            let machine = self.machine()?;
            self.driver = None;
            self.adopt_as_recorded(&machine).await;
        }
        let Some(orders) = self.driver.as_ref().map(|driver| driver.orders.clone()) else {
            return Err(unreachable_qemu());
        };
        let (reply, listening) = oneshot::channel();
        orders.try_send(Order::Listen { address, reply }).map_err(|_| unreachable_qemu())?;
        let listening = timeout(LISTEN_WAIT_MAX, listening).await;
        let port = listening.ok().and_then(Result::ok).unwrap_or_else(|| Err(unreachable_qemu()))?;
        let target = self.target(address, port).await;
        if let Some(driver) = &mut self.driver {
            driver.target = Some((target.clone(), Instant::now()));
        }
        Ok(CommandOutcome::Listening { target })
    }

    pub(super) async fn arrived(&mut self, migration: MigrationId, ran: RanAt) {
        self.arrived_on_network().await;
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
    ) -> Result<(), CommandRefusal> {
        self.allowed_to_run(machine, &status).await?;
        self.arrived_on_network().await;
        self.ours(migration, if status == RunStatus::Paused { VmState::Running } else { state_of_status(&status) });
        Ok(())
    }

    async fn allowed_to_run(&mut self, machine: &Machine, status: &RunStatus) -> Result<(), CommandRefusal> {
        if *status == RunStatus::Paused
            && let Err(error) = machine.cont().await
        {
            self.look_anew();
            return Err(failed(&error));
        }
        Ok(())
    }

    async fn adopt_as_recorded(&mut self, machine: &Machine) {
        let Some((record, _)) = &self.known else { return };
        if let Role::Receive { migration, from, strategy } = record.role.clone() {
            self.adopt_incoming(machine, Reception { migration, from, strategy }).await;
        }
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
