//! The vms of this host. Each is owned by one task; commands reach it through a bounded mailbox, in order.
//!
//! ```text
//! link ──Command──▶ Supervisor ──mailbox──▶ VmTask ──▶ QEMU, tap, control group, disk
//!                       ▲                     │
//!                       └───── what is seen ◀─┘  (inventory, the last migration update, how to measure it)
//! ```
//!
//! Dropping the supervisor ends the tasks and leaves every QEMU process as it is.

mod driver;
mod figures;
mod files;
mod lifecycle;
pub mod log;
mod measure;
mod migrate;
mod network;
mod process;
#[cfg(test)]
mod real_qemu;
mod receive;
pub mod record;
mod task;

use crate::cgroup::HostGroup;
use crate::config::AgentConfig;
use crate::net::{Net, tap_name};
use crate::telemetry::{Measurable, VmSubject};
use drover_model::command::{Command, CommandOutcome, CommandRefusal, MigrationUpdate, VmRun};
use drover_model::inventory::VmInventory;
use drover_model::{MigrationId, VmId};
use drover_qemu::{Accel, Machine};
use measure::DirtyRate;
use record::{Record, RecordError, VmDir};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use task::{Request, VmTask};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Vms measured at once without being asked: it costs each a little.
const MEASURED_AT_ONCE: usize = 1;
/// Migration updates kept for a connection that lags; the last one of each vm is never lost.
const UPDATES_KEPT_MAX: usize = 256;

pub type Answer = Result<CommandOutcome, CommandRefusal>;

/// What every vm of this host shares.
pub struct Host {
    pub config: AgentConfig,
    pub accel: Accel,
    pub cgroup: Option<HostGroup>,
    pub net: Net,
    /// Where vms are received: configured, or learned from the connection to the server.
    pub migration_address: watch::Sender<Option<IpAddr>>,
}

impl Host {
    /// Where other hosts send frames of overlay networks to.
    pub fn overlay_address(&self) -> Option<IpAddr> {
        self.config.overlay_address.or(*self.migration_address.borrow())
    }
}

/// A migration update on its way to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    pub vm: VmId,
    pub migration: MigrationId,
    pub update: MigrationUpdate,
}

/// What a vm's task lets others see of it.
#[derive(Default)]
struct Seen {
    /// `None` before the vm is known and after it is forgotten.
    inventory: Option<VmInventory>,
    process: Option<Attached>,
    dirty_rate: Option<DirtyRate>,
    /// The last update that says more than progress, and when that was.
    last_update: Option<(Instant, Update)>,
}

/// A QEMU process that answers.
#[derive(Clone)]
struct Attached {
    machine: Machine,
    subject: VmSubject,
    disk: bool,
    since: Instant,
}

struct VmHandle {
    mailbox: mpsc::Sender<Request>,
    seen: watch::Receiver<Seen>,
    task: AbortHandle,
}

impl Drop for VmHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Owns the tasks of this host's vms.
pub struct Supervisor {
    shared: Arc<Shared>,
}

/// Between the supervisor and its tasks.
struct Shared {
    host: Host,
    vms: Mutex<BTreeMap<VmId, VmHandle>>,
    /// Whose turn it is to be measured without being asked.
    measuring: Arc<Semaphore>,
    updates: broadcast::Sender<Update>,
    /// Counts changes of what is seen.
    changes: watch::Sender<u64>,
}

impl Shared {
    fn new(host: Host) -> Self {
        let (updates, _) = broadcast::channel(UPDATES_KEPT_MAX);
        Self {
            host,
            vms: Mutex::default(),
            measuring: Arc::new(Semaphore::new(MEASURED_AT_ONCE)),
            updates,
            changes: watch::Sender::new(0),
        }
    }

    fn vms(&self) -> MutexGuard<'_, BTreeMap<VmId, VmHandle>> {
        // The map is whole at every unlock: nothing between can panic half-way.
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Supervisor {
    /// Reads the records and adopts what runs. Returns once every vm's state is known.
    pub async fn start(host: Host) -> Result<Self, RecordError> {
        let records = record::load_all(&host.config.state_dir)?;
        if let Some(cgroup) = &host.cgroup {
            cgroup.sweep(|vm| records.iter().any(|record| record.run.vm.as_str() == vm));
        }
        let shared = Arc::new(Shared::new(host));
        let adopted: Vec<_> = {
            let mut vms = shared.vms();
            records.into_iter().map(|record| spawn(&shared, &mut vms, record.run.vm.clone(), Some(record))).collect()
        };
        for mut seen in adopted {
            // Every wait of an adoption is bounded. A task that ended has nothing to show.
            let _ = seen.wait_for(|seen| seen.inventory.is_some()).await;
        }
        Ok(Self { shared })
    }

    /// Hands a command to its vm. The answer comes when it is done; commands of one vm are carried out in order.
    pub fn command(&self, command: Command) -> oneshot::Receiver<Answer> {
        let (reply, answer) = oneshot::channel();
        let mut vms = self.shared.vms();
        let vm = command.vm().clone();
        if !vms.contains_key(&vm) {
            if vms.len() >= self.shared.host.config.limits.vms_max {
                let why = format!("this host keeps {} vms already, its limit (limits.vms_max)", vms.len());
                let _ = reply.send(Err(CommandRefusal::Failed { why }));
                return answer;
            }
            spawn(&self.shared, &mut vms, vm.clone(), None);
        }
        if let Some(handle) = vms.get(&vm)
            && let Err(mpsc::error::TrySendError::Full(request) | mpsc::error::TrySendError::Closed(request)) =
                handle.mailbox.try_send(Request { command, reply })
        {
            let why = "too many commands wait for this vm: try again once they are done".to_owned();
            let _ = request.reply.send(Err(CommandRefusal::Failed { why }));
        }
        answer
    }

    pub fn inventory(&self) -> Vec<VmInventory> {
        self.shared.vms().values().filter_map(|handle| handle.seen.borrow().inventory.clone()).collect()
    }

    /// Changes whenever [`Self::inventory`] does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Migration updates from now on.
    pub fn updates(&self) -> broadcast::Receiver<Update> {
        self.shared.updates.subscribe()
    }

    /// The last significant update of each vm, for a server that may have missed it. One it knows changes nothing.
    pub fn last_updates(&self) -> Vec<Update> {
        let repeat_max = self.shared.host.config.limits.update_repeat_max();
        let recent = |handle: &VmHandle| {
            let seen = handle.seen.borrow();
            seen.last_update.as_ref().filter(|(at, _)| at.elapsed() < repeat_max).map(|(_, update)| update.clone())
        };
        self.shared.vms().values().filter_map(recent).collect()
    }

    pub fn measurable(&self) -> Vec<Measurable> {
        let measurable = |(vm, handle): (&VmId, &VmHandle)| {
            let seen = handle.seen.borrow();
            let attached = seen.process.clone()?;
            let disk = attached.disk.then_some(attached.machine);
            let dirty_rate = seen.dirty_rate.and_then(|measured| measured.at(Instant::now()));
            Some(Measurable { vm: vm.clone(), subject: attached.subject, disk, dirty_rate })
        };
        self.shared.vms().iter().filter_map(measurable).collect()
    }

    /// The files of a vm that has a QEMU process.
    pub fn running_dir(&self, vm: &VmId) -> Option<VmDir> {
        let has_process = self.shared.vms().get(vm)?.seen.borrow().inventory.as_ref()?.pid.is_some();
        has_process.then(|| VmDir::new(&self.shared.host.config.state_dir, vm))
    }

    pub fn host(&self) -> &Host {
        &self.shared.host
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // The tasks hold the shared part: without this they would keep themselves alive.
        self.shared.vms().clear();
    }
}

fn spawn(
    shared: &Arc<Shared>,
    vms: &mut BTreeMap<VmId, VmHandle>,
    vm: VmId,
    record: Option<Record>,
) -> watch::Receiver<Seen> {
    let (mailbox, requests) = mpsc::channel(shared.host.config.limits.vm_commands_max);
    let (seen_sender, seen) = watch::channel(Seen::default());
    let task = VmTask::new(Arc::clone(shared), vm.clone(), requests, seen_sender);
    let task = tokio::spawn(task.run(record)).abort_handle();
    vms.insert(vm, VmHandle { mailbox, seen: seen.clone(), task });
    seen
}

fn subject(run: &VmRun, pid: u32, vcpu_threads: Vec<u32>) -> VmSubject {
    let tap = run.nic.as_ref().map(|_| tap_name(&run.vm));
    VmSubject { pid, vcpu_threads, memory: run.memory, tap }
}
