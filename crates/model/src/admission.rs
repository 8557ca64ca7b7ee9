//! Whether an agent may carry out a command, given what its host knows of the vm. Here, since the real agents and the
//! simulator's must follow the same rules.
//!
//! The rules, in this order:
//! 1. A generation older than the known one is refused: the right to run has moved on ([`CommandRefusal::StaleGeneration`]).
//! 2. The same generation with other content is refused: two deciders disagree ([`CommandRefusal::Conflict`]).
//! 3. What was done already is not done again ([`Admission::Repeat`]).
//! 4. What the vm's state rules out is refused by that state's name. Past a commit nothing unwinds.

use crate::command::{Command, CommandRefusal, VmRun};
use crate::inventory::{OutgoingPhase, VmState};
use crate::{Generation, MigrationId};

/// What this host knows of a vm.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub run: &'a VmRun,
    pub generation: Generation,
    pub state: &'a VmState,
    /// The migration that brought the vm here, if one did.
    pub arrived_by: Option<MigrationId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Do it.
    Act,
    /// It was done before, or there is nothing to do: answer as then.
    Repeat,
    Refuse(CommandRefusal),
}

use Admission::{Act, Refuse, Repeat};

pub fn admit(known: Option<Known<'_>>, command: &Command) -> Admission {
    let Some(known) = known else {
        return match command {
            Command::Run { .. } | Command::PrepareIncoming { .. } => Act,
            // The disk may be left from a host that was lost: a release for good still looks for it.
            Command::Release { delete_disk, .. } => {
                if *delete_disk {
                    Act
                } else {
                    Repeat
                }
            }
            Command::CancelMigration { .. } => Repeat,
            Command::Stop { .. }
            | Command::MigrateOut { .. }
            | Command::CommitSwitchOver { .. }
            | Command::TakeBack { .. }
            | Command::AdjustMigration { .. }
            | Command::RecoverIncoming { .. }
            | Command::RecoverOutgoing { .. }
            | Command::MeasureDirtyRate { .. } => Refuse(CommandRefusal::UnknownVm),
        };
    };
    if generation(command).is_some_and(|given| given < known.generation) {
        return Refuse(CommandRefusal::StaleGeneration { known: known.generation });
    }
    match command {
        Command::Run { run, generation } => admit_run(known, run, *generation),
        Command::Stop { .. } => admit_stop(known),
        Command::Release { .. } => Act,
        Command::PrepareIncoming { run, generation, migration, .. } => {
            admit_incoming(known, run, *generation, *migration)
        }
        Command::MigrateOut { generation, migration, .. } => admit_outgoing(known, *generation, *migration),
        Command::CommitSwitchOver { migration, .. } => admit_commit(known, *migration),
        Command::CancelMigration { migration, .. } => admit_cancel(known, *migration),
        Command::TakeBack { generation, migration, .. } => admit_take_back(known, *generation, *migration),
        Command::AdjustMigration { migration, .. } => admit_adjustment(known, *migration),
        Command::RecoverIncoming { migration, .. } => admit_recovery_here(known, *migration),
        Command::RecoverOutgoing { migration, .. } => admit_recovery_from_here(known, *migration),
        Command::MeasureDirtyRate { .. } => admit_measurement(known),
    }
}

/// The generation a command was decided at; a cancel and an adjustment have none, they are about one migration only.
pub fn generation(command: &Command) -> Option<Generation> {
    match command {
        Command::Run { generation, .. }
        | Command::Stop { generation, .. }
        | Command::Release { generation, .. }
        | Command::PrepareIncoming { generation, .. }
        | Command::MigrateOut { generation, .. }
        | Command::CommitSwitchOver { generation, .. }
        | Command::TakeBack { generation, .. }
        | Command::RecoverIncoming { generation, .. }
        | Command::RecoverOutgoing { generation, .. }
        | Command::MeasureDirtyRate { generation, .. } => Some(*generation),
        Command::CancelMigration { .. } | Command::AdjustMigration { .. } => None,
    }
}

fn wrong_state(state: &VmState) -> Admission {
    Refuse(CommandRefusal::WrongState { state: state.word().to_owned() })
}

fn admit_run(known: Known<'_>, run: &VmRun, generation: Generation) -> Admission {
    let newer = generation > known.generation;
    let same_content = run == known.run;
    if !newer && !same_content {
        return Refuse(CommandRefusal::Conflict);
    }
    match known.state {
        VmState::Starting | VmState::Running => match (newer, same_content) {
            (false, _) => Repeat,
            (true, true) => Act,
            (true, false) => Refuse(CommandRefusal::Failed {
                why: "the vm runs here with another configuration: stop it first".to_owned(),
            }),
        },
        VmState::Outgoing { phase: OutgoingPhase::PreCopy | OutgoingPhase::AtSwitchOver, .. } if !newer => Repeat,
        VmState::Completing { .. } if !newer => Repeat,
        // Its memory is given up: it is ended and started anew.
        VmState::Completing { stalled: true, .. } => Act,
        // It does not run, and a new generation may start it anew. A qemu that still waits for it is ended first.
        VmState::Stopped | VmState::Failed { .. } | VmState::Incoming { .. } | VmState::IncomingFailed { .. }
            if newer =>
        {
            Act
        }
        VmState::Stopping
        | VmState::Stopped
        | VmState::Failed { .. }
        | VmState::Incoming { .. }
        | VmState::IncomingFailed { .. }
        | VmState::Completing { .. }
        | VmState::Outgoing { .. }
        | VmState::HandedOver { .. } => wrong_state(known.state),
    }
}

fn admit_stop(known: Known<'_>) -> Admission {
    match known.state {
        VmState::Starting | VmState::Running | VmState::Failed { .. } => Act,
        // Acts again: a newer generation has to be noted, and the deadline only ever comes closer.
        VmState::Stopping | VmState::Stopped => Act,
        VmState::Incoming { .. }
        | VmState::IncomingFailed { .. }
        | VmState::Completing { .. }
        | VmState::Outgoing { .. }
        | VmState::HandedOver { .. } => wrong_state(known.state),
    }
}

fn admit_incoming(known: Known<'_>, run: &VmRun, generation: Generation, migration: MigrationId) -> Admission {
    let newer = generation > known.generation;
    match known.state {
        VmState::Incoming { migration: current } if !newer => {
            if *current == migration && run == known.run {
                Repeat
            } else {
                Refuse(CommandRefusal::Conflict)
            }
        }
        // What is left of an older generation here no longer runs the guest: it makes room.
        VmState::Stopped
        | VmState::Failed { .. }
        | VmState::IncomingFailed { .. }
        | VmState::HandedOver { .. }
        | VmState::Incoming { .. }
            if newer =>
        {
            Act
        }
        VmState::Starting
        | VmState::Running
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed { .. }
        | VmState::Incoming { .. }
        | VmState::IncomingFailed { .. }
        | VmState::Completing { .. }
        | VmState::Outgoing { .. }
        | VmState::HandedOver { .. } => wrong_state(known.state),
    }
}

fn admit_outgoing(known: Known<'_>, generation: Generation, migration: MigrationId) -> Admission {
    if generation > known.generation {
        return Refuse(CommandRefusal::Failed {
            why: format!("this host holds the vm at generation {} only", known.generation),
        });
    }
    match known.state {
        VmState::Running => Act,
        VmState::Outgoing { migration: current, .. } | VmState::HandedOver { migration: current }
            if *current == migration =>
        {
            Repeat
        }
        VmState::Starting
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed { .. }
        | VmState::Incoming { .. }
        | VmState::IncomingFailed { .. }
        | VmState::Completing { .. }
        | VmState::Outgoing { .. }
        | VmState::HandedOver { .. } => wrong_state(known.state),
    }
}

fn admit_commit(known: Known<'_>, migration: MigrationId) -> Admission {
    match known.state {
        VmState::Outgoing { migration: current, phase } if *current == migration => match phase {
            OutgoingPhase::AtSwitchOver => Act,
            OutgoingPhase::SwitchingOver | OutgoingPhase::PostCopy | OutgoingPhase::PostCopyPaused => Repeat,
            OutgoingPhase::PreCopy => wrong_state(known.state),
        },
        VmState::HandedOver { migration: current } if *current == migration => Repeat,
        VmState::Starting
        | VmState::Running
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed { .. }
        | VmState::Incoming { .. }
        | VmState::IncomingFailed { .. }
        | VmState::Completing { .. }
        | VmState::Outgoing { .. }
        | VmState::HandedOver { .. } => wrong_state(known.state),
    }
}

fn admit_cancel(known: Known<'_>, migration: MigrationId) -> Admission {
    if known.arrived_by == Some(migration) {
        return wrong_state(known.state);
    }
    match known.state {
        VmState::Outgoing { migration: current, phase } if *current == migration => match phase {
            OutgoingPhase::PreCopy | OutgoingPhase::AtSwitchOver => Act,
            OutgoingPhase::SwitchingOver | OutgoingPhase::PostCopy | OutgoingPhase::PostCopyPaused => {
                wrong_state(known.state)
            }
        },
        VmState::HandedOver { migration: current } | VmState::Completing { migration: current, .. }
            if *current == migration =>
        {
            wrong_state(known.state)
        }
        VmState::Incoming { migration: current } | VmState::IncomingFailed { migration: current, .. }
            if *current == migration =>
        {
            Act
        }
        // That migration is not under way here: nothing to cancel.
        VmState::Starting
        | VmState::Running
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed { .. }
        | VmState::Incoming { .. }
        | VmState::IncomingFailed { .. }
        | VmState::Completing { .. }
        | VmState::Outgoing { .. }
        | VmState::HandedOver { .. } => Repeat,
    }
}

fn admit_take_back(known: Known<'_>, generation: Generation, migration: MigrationId) -> Admission {
    let newer = generation > known.generation;
    match known.state {
        // QEMU resumed the guest by itself, or it was taken back before.
        VmState::Running => {
            if newer {
                Act
            } else {
                Repeat
            }
        }
        VmState::HandedOver { migration: current }
        | VmState::Outgoing { migration: current, phase: OutgoingPhase::SwitchingOver }
            if *current == migration =>
        {
            if newer {
                Act
            } else {
                Refuse(CommandRefusal::Conflict)
            }
        }
        VmState::Starting
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed { .. }
        | VmState::Incoming { .. }
        | VmState::IncomingFailed { .. }
        | VmState::Completing { .. }
        | VmState::Outgoing { .. }
        | VmState::HandedOver { .. } => wrong_state(known.state),
    }
}

fn admit_adjustment(known: Known<'_>, migration: MigrationId) -> Admission {
    match known.state {
        VmState::Outgoing { migration: current, phase: OutgoingPhase::PreCopy | OutgoingPhase::PostCopy }
            if *current == migration =>
        {
            Act
        }
        _ => wrong_state(known.state),
    }
}

fn admit_recovery_here(known: Known<'_>, migration: MigrationId) -> Admission {
    match known.state {
        VmState::Completing { migration: current, stalled: true } if *current == migration => Act,
        _ => wrong_state(known.state),
    }
}

fn admit_recovery_from_here(known: Known<'_>, migration: MigrationId) -> Admission {
    match known.state {
        VmState::Outgoing { migration: current, phase } if *current == migration => match phase {
            OutgoingPhase::PostCopyPaused => Act,
            OutgoingPhase::PostCopy => Repeat,
            OutgoingPhase::PreCopy | OutgoingPhase::AtSwitchOver | OutgoingPhase::SwitchingOver => {
                wrong_state(known.state)
            }
        },
        _ => wrong_state(known.state),
    }
}

/// A guest that stands still for a while looks idle, so one that moves is not measured: its migration is, instead.
fn admit_measurement(known: Known<'_>) -> Admission {
    match known.state {
        VmState::Running => Act,
        VmState::Starting
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed { .. }
        | VmState::Incoming { .. }
        | VmState::IncomingFailed { .. }
        | VmState::Completing { .. }
        | VmState::Outgoing { .. }
        | VmState::HandedOver { .. } => wrong_state(known.state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::MigrationTarget;
    use crate::migration::{Pace, Strategy};
    use crate::policy::MigrationPolicy;
    use crate::{Bytes, Millis};

    fn vm_run(cmdline: &str) -> VmRun {
        VmRun {
            vm: "vm-a".parse().unwrap(),
            label: "t-a".to_owned(),
            image: "img".parse().unwrap(),
            kernel: true,
            initrd: true,
            disk: false,
            cmdline: cmdline.to_owned(),
            vcpus: 1,
            memory: Bytes::mib(64),
            nic: None,
        }
    }

    fn state(word: &str) -> VmState {
        let migration = MigrationId(7);
        let why = String::new();
        match word {
            "starting" => VmState::Starting,
            "running" => VmState::Running,
            "stopping" => VmState::Stopping,
            "stopped" => VmState::Stopped,
            "failed" => VmState::Failed { why },
            "incoming" => VmState::Incoming { migration },
            "incoming-failed" => VmState::IncomingFailed { migration, why },
            "pre-copy" => VmState::Outgoing { migration, phase: OutgoingPhase::PreCopy },
            "at-switch-over" => VmState::Outgoing { migration, phase: OutgoingPhase::AtSwitchOver },
            "switching-over" => VmState::Outgoing { migration, phase: OutgoingPhase::SwitchingOver },
            "post-copy" => VmState::Outgoing { migration, phase: OutgoingPhase::PostCopy },
            "post-copy-paused" => VmState::Outgoing { migration, phase: OutgoingPhase::PostCopyPaused },
            "completing" => VmState::Completing { migration, stalled: false },
            "stalled" => VmState::Completing { migration, stalled: true },
            "handed-over" => VmState::HandedOver { migration },
            other => panic!("no state {other}"),
        }
    }

    fn target() -> MigrationTarget {
        MigrationTarget { host: "h2".parse().unwrap(), address: [127, 0, 0, 1].into(), port: 1, relay: None }
    }

    /// `verb generation [migration]`; `run*` carries other content than the known one.
    fn command(text: &str) -> Command {
        let mut words = text.split_whitespace();
        let verb = words.next().unwrap();
        let mut number = |default: u64| words.next().map_or(default, |w| w.parse().unwrap());
        let vm: crate::VmId = "vm-a".parse().unwrap();
        let content = if verb.ends_with('*') { "other" } else { "same" };
        match verb.trim_end_matches('*') {
            "cancel" => Command::CancelMigration { vm, migration: MigrationId(number(7)) },
            "adjust" => Command::AdjustMigration { vm, migration: MigrationId(number(7)), pace: Pace::default() },
            verb => {
                let generation = Generation(number(5));
                let migration = MigrationId(number(7));
                match verb {
                    "run" => Command::Run { run: vm_run(content), generation },
                    "stop" => Command::Stop { vm, generation, grace: Millis(100) },
                    "release" => Command::Release { vm, generation, delete_disk: false },
                    "purge" => Command::Release { vm, generation, delete_disk: true },
                    "receive" => Command::PrepareIncoming {
                        run: vm_run(content),
                        generation,
                        migration,
                        from: "h1".parse().unwrap(),
                        strategy: Strategy::PRE_COPY,
                    },
                    "send" => Command::MigrateOut {
                        vm,
                        generation,
                        migration,
                        target: target(),
                        limits: MigrationPolicy::default(),
                        strategy: Strategy::PRE_COPY,
                    },
                    "recover-in" => Command::RecoverIncoming { vm, generation, migration },
                    "recover-out" => Command::RecoverOutgoing { vm, generation, migration, target: target() },
                    "commit" => Command::CommitSwitchOver { vm, generation, migration },
                    "take-back" => Command::TakeBack { vm, generation, migration },
                    "measure" => Command::MeasureDirtyRate { vm, generation, span: Millis::secs(2) },
                    other => panic!("no command {other}"),
                }
            }
        }
    }

    fn word(admission: &Admission) -> String {
        match admission {
            Act => "act".to_owned(),
            Repeat => "repeat".to_owned(),
            Refuse(CommandRefusal::StaleGeneration { known }) => format!("stale {known}"),
            Refuse(CommandRefusal::Conflict) => "conflict".to_owned(),
            Refuse(CommandRefusal::UnknownVm) => "unknown".to_owned(),
            Refuse(CommandRefusal::WrongState { .. }) => "state".to_owned(),
            Refuse(CommandRefusal::Failed { .. }) => "failed".to_owned(),
        }
    }

    fn check(state_word: Option<&str>, table: &[(&str, &str)]) {
        let run = vm_run("same");
        let state = state_word.map(state);
        for (text, wanted) in table {
            let known =
                state.as_ref().map(|state| Known { run: &run, generation: Generation(5), state, arrived_by: None });
            assert_eq!(&word(&admit(known, &command(text))), wanted, "{text} while {state_word:?}");
        }
    }

    #[test]
    fn an_unknown_vm_can_be_started_received_and_forgotten_only() {
        check(
            None,
            &[
                ("run 1", "act"),
                ("receive 1", "act"),
                ("release 1", "repeat"),
                ("purge 1", "act"),
                ("cancel 7", "repeat"),
                ("stop 1", "unknown"),
                ("send 1", "unknown"),
                ("commit 1", "unknown"),
                ("take-back 1", "unknown"),
                ("measure 1", "unknown"),
            ],
        );
    }

    #[test]
    fn an_older_generation_is_refused_in_every_state() {
        for word in [
            "starting",
            "running",
            "stopping",
            "stopped",
            "failed",
            "incoming",
            "incoming-failed",
            "pre-copy",
            "at-switch-over",
            "switching-over",
            "handed-over",
        ] {
            for verb in ["run", "stop", "release", "purge", "receive", "send", "commit", "take-back", "measure"] {
                check(Some(word), &[(&format!("{verb} 4"), "stale 5")]);
            }
        }
    }

    #[test]
    fn the_same_generation_with_other_content_is_a_conflict() {
        for word in ["running", "stopped", "failed", "pre-copy", "handed-over"] {
            check(Some(word), &[("run* 5", "conflict")]);
        }
        check(Some("incoming"), &[("receive* 5 7", "conflict"), ("receive 5 8", "conflict")]);
        check(Some("handed-over"), &[("take-back 5 7", "conflict")]);
    }

    #[test]
    fn a_running_vm_is_adopted_moved_and_stopped_but_not_received() {
        check(
            Some("running"),
            &[
                ("run 5", "repeat"),
                ("run 6", "act"),
                ("run* 6", "failed"),
                ("stop 5", "act"),
                ("release 5", "act"),
                ("receive 6", "state"),
                ("send 5", "act"),
                ("send 6", "failed"),
                ("commit 5", "state"),
                ("cancel 7", "repeat"),
                ("take-back 5", "repeat"),
                ("take-back 7", "act"),
            ],
        );
    }

    #[test]
    fn only_a_running_guest_is_measured() {
        check(Some("running"), &[("measure 5", "act"), ("measure 6", "act")]);
        for word in [
            "starting",
            "stopping",
            "stopped",
            "failed",
            "incoming",
            "incoming-failed",
            "pre-copy",
            "at-switch-over",
            "switching-over",
            "handed-over",
        ] {
            check(Some(word), &[("measure 5", "state")]);
        }
    }

    #[test]
    fn a_stopped_vm_starts_again_at_a_newer_generation_only() {
        for word in ["stopped", "failed", "incoming-failed"] {
            check(Some(word), &[("run 5", "state"), ("run 6", "act"), ("receive 6", "act"), ("receive 5", "state")]);
        }
        check(Some("stopped"), &[("stop 5", "act"), ("send 5", "state"), ("take-back 6", "state")]);
    }

    #[test]
    fn before_the_commit_everything_unwinds() {
        check(
            Some("pre-copy"),
            &[("send 5 7", "repeat"), ("send 5 8", "state"), ("commit 6 7", "state"), ("cancel 7", "act")],
        );
        check(
            Some("at-switch-over"),
            &[("commit 6 7", "act"), ("commit 6 8", "state"), ("cancel 7", "act"), ("cancel 8", "repeat")],
        );
        check(
            Some("pre-copy"),
            &[("run 5", "repeat"), ("run 6", "state"), ("stop 5", "state"), ("take-back 6", "state")],
        );
        check(
            Some("incoming"),
            &[("receive 5 7", "repeat"), ("receive 6 8", "act"), ("cancel 7", "act"), ("run 5", "state")],
        );
        check(Some("incoming"), &[("run 6", "act")]);
    }

    #[test]
    fn past_the_commit_nothing_unwinds_except_by_a_newer_generation() {
        for word in ["switching-over", "handed-over"] {
            check(
                Some(word),
                &[
                    ("commit 6 7", "repeat"),
                    ("cancel 7", "state"),
                    ("run 5", "state"),
                    ("run 6", "state"),
                    ("stop 6", "state"),
                    ("take-back 7 7", "act"),
                    ("take-back 7 8", "state"),
                    ("release 6", "act"),
                ],
            );
        }
        check(Some("handed-over"), &[("receive 7 9", "act"), ("send 5 7", "repeat")]);
        check(Some("switching-over"), &[("receive 7 9", "state")]);
    }

    #[test]
    fn a_vm_that_arrived_is_not_cancelled_by_the_migration_that_brought_it() {
        let run = vm_run("same");
        let known = |arrived_by| Known { run: &run, generation: Generation(5), state: &VmState::Running, arrived_by };
        assert_eq!(word(&admit(Some(known(Some(MigrationId(7)))), &command("cancel 7"))), "state");
        assert_eq!(word(&admit(Some(known(Some(MigrationId(6)))), &command("cancel 7"))), "repeat");
    }

    #[test]
    fn a_post_copy_is_recovered_where_it_stalled_and_never_taken_back() {
        check(
            Some("completing"),
            &[
                ("run 5", "repeat"),
                ("run 6", "state"),
                ("stop 5", "state"),
                ("send 5 8", "state"),
                ("cancel 7", "state"),
                ("recover-in 5 7", "state"),
                ("release 6", "act"),
            ],
        );
        check(
            Some("stalled"),
            &[("recover-in 5 7", "act"), ("recover-in 5 8", "state"), ("run 6", "act"), ("cancel 7", "state")],
        );
        check(
            Some("post-copy"),
            &[("recover-out 6 7", "repeat"), ("take-back 7 7", "state"), ("cancel 7", "state"), ("adjust 7", "act")],
        );
        check(
            Some("post-copy-paused"),
            &[
                ("recover-out 6 7", "act"),
                ("recover-out 6 8", "state"),
                ("commit 6 7", "repeat"),
                ("take-back 7 7", "state"),
                ("run 6", "state"),
            ],
        );
        check(Some("running"), &[("adjust 7", "state"), ("recover-out 5 7", "state"), ("recover-in 5 7", "state")]);
        check(Some("pre-copy"), &[("adjust 7", "act"), ("adjust 8", "state")]);
    }
}
