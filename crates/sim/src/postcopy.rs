//! Post-copy between two virtual qemus: the guest runs at the destination while part of its memory is still at the source.
//!
//! ```text
//!  source: SwitchingOver ─▶ PostCopy ◀────▶ PostCopyPaused     ─▶ Sent
//!  dest.:  Receiving     ─▶ Completing ◀──▶ Completing, stalled ─▶ Running
//! ```
//! From the first instruction at the destination on, the source's memory is an old copy. A broken connection leaves both
//! with what they have; only the loss of a process loses memory.

use crate::agent::Notice;
use crate::fleet::{Around, COPY_STEP_MS, Fleet};
use crate::qemu::{Completing, Guest, Phase, Qemu};
use crate::schedule::{Happening, QemuStep};
use drover_model::{Bytes, HostId, VmId};

/// How soon a destination that listens anew is connected again.
const RECONNECT_MS: (u64, u64) = (20, 300);
/// How long the destination of a stalled post-copy may take to find out.
pub const STALL_NOTICED_MS: (u64, u64) = (500, 6_000);

impl Fleet {
    /// The state of the machine goes over in one piece, and the guest goes on there.
    pub fn post_copy_starts(&mut self, around: &mut Around, host: &HostId, vm: &VmId, pid: u32) {
        let Some(qemu) = self.process_mut(host, vm) else { return };
        let memory = qemu.memory;
        let Some(sending) = qemu.sending() else { return };
        sending.phase = Phase::PostCopy;
        let (migration, to, to_pid) = (sending.migration, sending.to.clone(), sending.to_pid);
        let (missing, severed) = (sending.remaining, sending.severed);
        self.note_change(host, vm);
        let receiver = self.process_mut(&to, vm).filter(|qemu| qemu.pid == to_pid);
        match receiver {
            Some(receiver) if !severed && matches!(receiver.guest, Guest::Receiving { .. }) => {
                let from = (host.clone(), pid);
                receiver.guest = Guest::Completing(Completing { migration, from, stalled_at: None, listens: false });
                receiver.memory = memory.map(|memory| around.witness.resumes(vm, memory));
                self.note_change(&to, vm);
                self.noticed(around, &to, vm, Notice::Completes);
                let wait = if missing == Bytes::ZERO { 1 } else { COPY_STEP_MS };
                let step = QemuStep::PagesCame { migration };
                around.schedule.after(wait, Happening::Qemu { host: host.clone(), vm: vm.clone(), pid, step });
            }
            // It was put on the wire and never came: qemu does not know it from a guest that runs there.
            _ => {
                around.witness.hit(vm, true);
                let wait = around.dice.between(STALL_NOTICED_MS.0, STALL_NOTICED_MS.1);
                let step = QemuStep::StreamBroken { migration };
                around.schedule.after(wait, Happening::Qemu { host: host.clone(), vm: vm.clone(), pid, step });
            }
        }
    }

    pub fn pages_came(&mut self, around: &mut Around, host: &HostId, vm: &VmId, pid: u32) {
        let Some(sending) = self.process_mut(host, vm).and_then(Qemu::sending) else { return };
        if sending.severed {
            return;
        }
        let sent = sending.per_step().min(sending.remaining);
        sending.remaining = sending.remaining.saturating_sub(sent);
        sending.transferred += sent;
        sending.post_copied += sent;
        let (migration, done) = (sending.migration, sending.remaining == Bytes::ZERO);
        let (to, to_pid, throughput) = (sending.to.clone(), sending.to_pid, sending.rate());
        if !done {
            let step = QemuStep::PagesCame { migration };
            around.schedule.after(COPY_STEP_MS, Happening::Qemu { host: host.clone(), vm: vm.clone(), pid, step });
            return self.noticed(around, host, vm, Notice::Progress { throughput });
        }
        let Some(receiver) = self.process_mut(&to, vm).filter(|qemu| qemu.pid == to_pid) else { return };
        if matches!(receiver.guest, Guest::Completing(_)) {
            receiver.guest = Guest::Running;
            self.note_change(&to, vm);
            self.noticed(around, &to, vm, Notice::Arrived);
        }
        self.sent(around, host, vm);
    }

    /// One end finds the connection gone; it keeps what it has.
    pub fn stalls(&mut self, around: &mut Around, host: &HostId, vm: &VmId) {
        let now = around.schedule.now;
        match self.process_mut(host, vm).map(|qemu| &mut qemu.guest) {
            Some(Guest::Completing(completing)) => {
                completing.stalled_at = completing.stalled_at.or(Some(now));
                completing.listens = false;
            }
            Some(Guest::Sending(sending)) => {
                sending.severed = true;
                sending.phase = Phase::PostCopyPaused;
            }
            _ => return,
        }
        self.note_change(host, vm);
        self.noticed(around, host, vm, Notice::Stalled);
    }

    /// `false`: there is nothing here that waits to be connected anew.
    pub fn listen_anew(&mut self, host: &HostId, vm: &VmId) -> bool {
        match self.process_mut(host, vm).map(|qemu| &mut qemu.guest) {
            Some(Guest::Completing(completing)) if completing.stalled_at.is_some() => {
                completing.listens = true;
                true
            }
            _ => false,
        }
    }

    /// Tries once; while the network between them is away, or nobody listens, both stay as they are.
    pub fn connect_anew(&mut self, around: &mut Around, host: &HostId, vm: &VmId) {
        let Some(qemu) = self.process_mut(host, vm) else { return };
        let pid = qemu.pid;
        let Some(sending) = qemu.sending().filter(|sending| sending.phase == Phase::PostCopyPaused) else { return };
        let step = QemuStep::Reconnected { migration: sending.migration };
        let wait = around.dice.between(RECONNECT_MS.0, RECONNECT_MS.1);
        around.schedule.after(wait, Happening::Qemu { host: host.clone(), vm: vm.clone(), pid, step });
    }

    pub fn reconnected(&mut self, around: &mut Around, host: &HostId, vm: &VmId, pid: u32) {
        let now = around.schedule.now;
        let Some(sending) = self.process_mut(host, vm).and_then(Qemu::sending) else { return };
        let (migration, to, to_pid) = (sending.migration, sending.to.clone(), sending.to_pid);
        if sending.away_until > now {
            return;
        }
        match self.process_mut(&to, vm).filter(|qemu| qemu.pid == to_pid).map(|qemu| &mut qemu.guest) {
            Some(Guest::Completing(completing)) if completing.listens => {
                completing.stalled_at = None;
                completing.listens = false;
            }
            _ => return,
        }
        self.note_change(&to, vm);
        if let Some(sending) = self.process_mut(host, vm).and_then(Qemu::sending) {
            sending.severed = false;
            sending.phase = Phase::PostCopy;
        }
        around.witness.note(format!("{vm} is connected anew from {host} to {to}"));
        around.witness.tally.recovered += 1;
        self.note_change(host, vm);
        let step = QemuStep::PagesCame { migration };
        around.schedule.after(COPY_STEP_MS, Happening::Qemu { host: host.clone(), vm: vm.clone(), pid, step });
    }
}
