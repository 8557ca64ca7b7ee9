//! `drover explain OBJECT`: what is so, why, and why not otherwise, from the records of the decisions themselves.

use crate::Control;
use crate::interface::{Actor, Refusal};
use crate::planning;
use drover_model::event::Event;
use drover_model::intent::{Host, Role, Vm};
use drover_model::migration::{MigrationPhase, MigrationRecord};
use drover_model::plan::{Action, Heat, Objection, Plan, PlanRecord, PlanState, Rejected, Step, StepState};
use drover_model::world::HostState;
use drover_model::{HostId, MigrationId, Millis, PlanId, TimeMs, VmId};
use drover_planner::explain::{WhyOff, WhyOn, WhyStays, why_off, why_on, why_stays};

const HISTORY_MAX: usize = 20;
const REJECTED_MAX: usize = 10;

#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// As asked: `vm/web-3`, `host/h1`, `plan/42`, `migration/7`, `cluster`.
    pub object: String,
    /// One paragraph.
    pub answer: String,
    pub because: Vec<String>,
    /// What was considered and lost, and to what.
    pub rejected: Vec<String>,
    /// Newest last.
    pub history: Vec<Event>,
    /// What the planner answers for the moment, where it was asked; its sentence is among the `because`.
    pub why: Option<Why>,
}

/// The planner's answers, which name vms by id: [`Control::with_names`].
#[derive(Debug, Clone, PartialEq)]
pub enum Why {
    On(WhyOn),
    Off(WhyOff),
    Stays(WhyStays),
}

impl Why {
    pub fn sentence(&self) -> &str {
        match self {
            Self::On(answer) => &answer.sentence,
            Self::Off(answer) => &answer.sentence,
            Self::Stays(answer) => &answer.sentence,
        }
    }
}

impl Control {
    /// Why this object is as it is. A tenant may ask about its own vms.
    pub fn explain(&self, object: &str, actor: &Actor, now: TimeMs) -> Result<Explanation, Refusal> {
        let (kind, id) = object.split_once('/').unwrap_or((object, ""));
        let unknown = || {
            Refusal::not_found(format!(
                "{object:?} can't be explained: ask for vm/NAME, host/NAME, plan/NUMBER, migration/NUMBER or cluster"
            ))
        };
        if actor.role != Role::Operator && kind != "vm" {
            return Err(unknown());
        }
        match kind {
            "cluster" => Ok(self.explain_cluster(now)),
            "vm" => {
                let (tenant, name) = match id.split_once('/') {
                    Some((tenant, name)) => (tenant.parse().ok(), name),
                    None => (None, id),
                };
                let vm = &self.find::<Vm>(name, actor, tenant.as_ref())?.value;
                Ok(self.explain_vm(object, vm, actor, now))
            }
            "host" => {
                let id: HostId = id.parse().map_err(|_| unknown())?;
                Ok(self.explain_host(self.require::<Host>(&id)?, now))
            }
            "plan" => {
                let id: PlanId = id.parse().map_err(|_| unknown())?;
                Ok(self.explain_plan(self.require::<PlanRecord>(&id)?))
            }
            "migration" => {
                let id: MigrationId = id.parse().map_err(|_| unknown())?;
                Ok(self.explain_migration(self.require::<MigrationRecord>(&id)?))
            }
            _ => Err(unknown()),
        }
    }

    fn history(&self, object: &str) -> Vec<Event> {
        let mut events: Vec<Event> =
            self.tables.events.iter().rev().filter(|event| event.object == object).take(HISTORY_MAX).cloned().collect();
        events.reverse();
        events
    }

    fn name(&self, vm: &VmId) -> String {
        self.vm(vm).map_or_else(|| vm.to_string(), |row| row.spec.name.to_string())
    }

    /// The text with the ids of vms replaced by their names, which is what people know them by.
    pub fn with_names(&self, text: &str) -> String {
        let is_id = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let mut named = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(is_id) {
            let word = &rest[start..];
            let end = word.find(|c| !is_id(c)).unwrap_or(word.len());
            named.push_str(&rest[..start]);
            match word[..end].parse::<VmId>().ok().filter(|_| word.starts_with("vm-")).and_then(|id| self.vm(&id)) {
                Some(vm) => named.push_str(vm.spec.name.as_str()),
                None => named.push_str(&word[..end]),
            }
            rest = &word[end..];
        }
        named + rest
    }

    fn say(&self, action: &Action) -> String {
        match action {
            Action::Migrate { vm, from, to, .. } => format!("move {} from {from} to {to}", self.name(vm)),
            Action::PowerOn { host } => format!("power {host} on"),
            Action::PowerOff { host } => format!("power {host} off"),
        }
    }

    fn say_rejected(&self, rejected: &Rejected) -> String {
        self.with_names(&format!("{}: {}", self.say(&rejected.action), rejected.because))
    }

    /// The newest judgement, carried out or not: the answer to "why did nothing move?".
    fn latest_plan(&self) -> Option<&Plan> {
        let recorded = self.plans().next_back().map(|record| &record.plan);
        match (recorded, self.planning.idle()) {
            (Some(recorded), Some(idle)) if idle.made_at >= recorded.made_at => Some(idle),
            (None, idle) => idle,
            (recorded, _) => recorded,
        }
    }

    fn say_held_back(&self, now: TimeMs) -> Option<String> {
        planning::held_back(self, now).map(|why| format!("nothing is planned at the moment, because {why}"))
    }

    /// The step of an open plan that is to move this vm.
    fn step_ahead(&self, vm: &VmId) -> Option<String> {
        let open = |record: &&PlanRecord| matches!(record.state, PlanState::Proposed | PlanState::Running);
        self.plans().filter(open).find_map(|record| {
            let ahead = |(step, state): (&Step, &StepState)| {
                let moves = matches!(&step.action, Action::Migrate { vm: id, .. } if id == vm);
                moves && matches!(state, StepState::Waiting | StepState::Running { .. })
            };
            let number = record.plan.steps.iter().zip(&record.steps).position(ahead)?;
            Some(self.say_step(record, number, &record.plan.steps[number]))
        })
    }

    /// Why a vm that nothing moves, or is about to move, stays; `None` for one that has no host or takes no room.
    fn why_stays(&self, vm: &Vm, now: TimeMs) -> Option<WhyStays> {
        if vm.migration.is_some() {
            return None;
        }
        why_stays(&self.world(now), self.transfers.predictor(), &vm.id).filter(|answer| answer.host.is_some())
    }

    /// What the answer rejects, for people: the best other host unless it pays, and those that could not take the vm.
    fn say_elsewhere(&self, answer: &WhyStays) -> Vec<String> {
        let Some(from) = &answer.host else { return Vec::new() };
        let lost = answer.best.iter().filter(|best| best.gain < best.needed);
        let lost = lost.map(|best| (&best.host, Objection::Money { gain: best.gain, needed: best.needed }.to_string()));
        let forbidden = answer.forbidden.iter().map(|host| (&host.host, host.because.to_string()));
        let name = self.name(&answer.vm);
        let say = |(to, because)| self.with_names(&format!("move {name} from {from} to {to}: {because}"));
        lost.chain(forbidden).take(REJECTED_MAX).map(say).collect()
    }

    fn explain_cluster(&self, now: TimeMs) -> Explanation {
        let mut because: Vec<String> = self.say_held_back(now).into_iter().collect();
        let answer = match self.findings() {
            Some(findings) => format!("The cluster is {}: {}.", findings.scenario, findings.why),
            None => "The cluster has not been looked at yet.".to_owned(),
        };
        let latest = self.latest_plan();
        because.extend(latest.map(|plan| format!("latest judgement: {}", plan.why)));
        let rejected = latest.map(|plan| plan.rejected.as_slice()).unwrap_or_default();
        Explanation {
            object: "cluster".to_owned(),
            answer,
            because,
            rejected: rejected.iter().take(REJECTED_MAX).map(|rejected| self.say_rejected(rejected)).collect(),
            history: self.history("cluster"),
            why: None,
        }
    }

    fn explain_vm(&self, object: &str, vm: &Vm, actor: &Actor, now: TimeMs) -> Explanation {
        let status = self.vm_status(&vm.id);
        let name = &vm.spec.name;
        let place = vm.host.as_ref().map_or_else(|| "nowhere yet".to_owned(), |host| format!("on {host}"));
        let why = status.why.map(|why| format!(" ({why})")).unwrap_or_default();
        let answer = format!("{name} is {}, {place}{why}.", status.phase);
        let mut because = Vec::new();
        let mut alternatives = Vec::new();
        // The reasons of migrations, plans and placements name other vms and the load of hosts: for operators only.
        if actor.role != Role::Operator {
            let last = self.migrations().rev().find(|migration| migration.vm == vm.id);
            because.extend(last.map(|last| format!("migration {}: {}", last.id, last.phase.word())));
        } else if let Some(last) = self.migrations().rev().find(|m| m.vm == vm.id) {
            because.push(self.say_migration(last));
            if let Some(record) = last.plan.and_then(|id| self.plan(id)) {
                if let Some((number, step)) = step_of(record, last) {
                    because.push(self.say_step(record, number, step));
                    alternatives.extend(step.alternatives.iter().map(|lost| self.say_rejected(lost)));
                }
                because.push(self.say_plan(record));
                because.extend(record.verification.as_ref().map(|v| format!("afterwards: {}", v.summary)));
            }
        } else {
            let placed =
                self.tables.events.iter().rev().find(|e| e.kind == "vm-placed" && e.object == format!("vm/{}", vm.id));
            because.extend(placed.map(|event| event.text.clone()));
        }
        // What the planner answers names other hosts and prices: for operators only.
        let ahead = self.step_ahead(&vm.id);
        let stays = if actor.role == Role::Operator && ahead.is_none() { self.why_stays(vm, now) } else { None };
        if actor.role == Role::Operator {
            because.extend(ahead);
        }
        if let Some(answer) = &stays {
            because.push(self.with_names(&answer.sentence));
            because.extend(self.say_held_back(now));
        }
        // It tells why the last move failed.
        if actor.role == Role::Operator {
            because
                .extend(self.cools_down(&vm.id, now).map(|why| format!("the planner does not move it, because {why}")));
        }
        if !vm.spec.pinned_to.is_empty() {
            let hosts: Vec<&str> = vm.spec.pinned_to.iter().map(HostId::as_str).collect();
            because.push(format!("it is pinned to {}", hosts.join(", ")));
        }
        // A rule may be about other tenants' vms, too.
        if actor.role == Role::Operator {
            let about = self.rules_of(&vm.id);
            because.extend(about.map(|rule| format!("placement rule {}: {}", rule.id, self.say_rule(rule))));
        }
        because.extend(
            vm.spec.anti_affinity.as_ref().map(|group| format!("it shares no host with others of group {group}")),
        );
        let concerns =
            |rejected: &&Rejected| matches!(&rejected.action, Action::Migrate { vm: id, .. } if *id == vm.id);
        // Alternatives name other tenants' hosts and load: for operators only.
        let rejected = match (&actor.role, self.latest_plan()) {
            (Role::Operator, plan) => {
                let lately = plan.iter().flat_map(|plan| &plan.rejected).filter(concerns);
                alternatives.extend(lately.take(REJECTED_MAX).map(|lost| self.say_rejected(lost)));
                for lost in stays.iter().flat_map(|answer| self.say_elsewhere(answer)) {
                    if !alternatives.contains(&lost) {
                        alternatives.push(lost);
                    }
                }
                alternatives
            }
            (Role::Tenant { .. }, _) => Vec::new(),
        };
        Explanation {
            object: object.to_owned(),
            answer,
            because,
            rejected,
            history: self.history(&format!("vm/{}", vm.id)),
            why: stays.map(Why::Stays),
        }
    }

    fn explain_host(&self, host: &Host, now: TimeMs) -> Explanation {
        let status = self.host_status(&host.id);
        let vms = self.vms_on(&host.id).count();
        let state = match status.state {
            HostState::Unknown => "not heard of since the server started",
            HostState::Up => "up",
            HostState::Suspect => "quiet",
            HostState::Down => "silent and not used",
            HostState::Asleep => "asleep",
            HostState::Waking => "waking",
            HostState::FallingAsleep => "falling asleep",
        };
        let since = now.since(status.since);
        let answer = format!("{} has been {state} for {since} and has the right to run {vms} vms.", host.id);
        let why = self.why_power(&host.id, status.state, now);
        let mut because: Vec<String> = why.iter().map(|why| self.with_names(why.sentence())).collect();
        because.extend(self.say_held_back(now));
        if host.maintenance {
            because.push("it is drained for maintenance: its vms leave and none come".to_owned());
            because.extend(self.evacuation(&host.id).map(|evacuation| evacuation.say(now)));
        }
        if let Some(finding) = self.findings().and_then(|findings| findings.hosts.get(&host.id)) {
            let heat = match finding.heat {
                Heat::Hot => "hot",
                Heat::Warm => "neither hot nor cold",
                Heat::Cold => "cold",
                Heat::Unknown => "of unknown load",
            };
            because.push(match &finding.evidence {
                Some(e) => format!(
                    "it is {heat}: {} of its {} is wanted now and {} is forecast; {} of the last {} samples passed {}",
                    e.last, e.resource, e.forecast, e.hits, e.needed.n, e.threshold
                ),
                None => format!("it is {heat}"),
            });
        }
        let switched = |event: &&Event| matches!(event.kind.as_str(), "host-wake" | "host-power-off");
        let about = format!("host/{}", host.id);
        let last = self.tables.events.iter().rev().filter(|event| event.object == about).find(switched);
        because.extend(
            last.map(|event| format!("last switched {} ago: {}", self.to_wall(now).since(event.at), event.text)),
        );
        if host.power_cycles > 0 {
            because.push(format!("drover has switched it off {} times", host.power_cycles));
        }
        because.extend(status.wake_problem.map(str::to_owned));
        if !status.power_managed {
            because.push("it has no power driver, so drover never switches it off".to_owned());
        }
        let latest = self.latest_plan();
        because.extend(latest.map(|plan| format!("latest judgement: {}", plan.why)));
        let concerns = |rejected: &&Rejected| match &rejected.action {
            Action::Migrate { from, to, .. } => *from == host.id || *to == host.id,
            Action::PowerOn { host: id } | Action::PowerOff { host: id } => *id == host.id,
        };
        let rejected = latest.map(|plan| plan.rejected.as_slice()).unwrap_or_default();
        Explanation {
            object: format!("host/{}", host.id),
            answer,
            because,
            rejected: rejected.iter().filter(concerns).take(REJECTED_MAX).map(|r| self.say_rejected(r)).collect(),
            history: self.history(&format!("host/{}", host.id)),
            why,
        }
    }

    /// Why it is on, or off. Of a host that is silent or on its way, its state says all there is.
    fn why_power(&self, host: &HostId, state: HostState, now: TimeMs) -> Option<Why> {
        let predictor = self.transfers.predictor();
        match state {
            HostState::Up => why_on(&self.world(now), predictor, host).map(Why::On),
            HostState::Asleep | HostState::FallingAsleep => why_off(&self.world(now), predictor, host).map(Why::Off),
            HostState::Unknown | HostState::Suspect | HostState::Down | HostState::Waking => None,
        }
    }

    fn say_step(&self, record: &PlanRecord, number: usize, step: &Step) -> String {
        let text = format!(
            "step {} of plan {}: {}, because {}; it was to gain {} and to cost {}",
            number + 1,
            record.id,
            self.say(&step.action),
            step.reason,
            step.gain,
            step.cost
        );
        self.with_names(&text)
    }

    fn say_plan(&self, record: &PlanRecord) -> String {
        let predicted = &record.plan.predicted;
        format!(
            "plan {} ({}): {}; it was to gain {} within the horizon, after {} for moving",
            record.id, record.plan.scenario, record.plan.why, predicted.gain, predicted.moving_cost
        )
    }

    fn explain_plan(&self, record: &PlanRecord) -> Explanation {
        let state = match &record.state {
            PlanState::Proposed => "waits for approval".to_owned(),
            PlanState::Running => "is being carried out".to_owned(),
            PlanState::Settling => "is carried out; its effect settles".to_owned(),
            PlanState::Done => "is done".to_owned(),
            PlanState::Failed { why } => format!("was not carried out whole: {why}"),
            PlanState::Rejected { by } => format!("was rejected by {by}"),
            PlanState::Superseded { why } => format!("was superseded: {why}"),
        };
        let steps = record.plan.steps.iter().zip(&record.steps).map(|(step, state)| {
            let state = match state {
                StepState::Waiting => "waiting".to_owned(),
                StepState::Running { .. } => "running".to_owned(),
                StepState::Done { .. } => "done".to_owned(),
                StepState::Failed { why, .. } => format!("failed: {why}"),
                StepState::Skipped => "skipped".to_owned(),
            };
            format!(
                "{}, because {} (gains {}, costs {}): {state}",
                self.say(&step.action),
                step.reason,
                step.gain,
                step.cost
            )
        });
        let mut because = vec![record.findings.why.clone()];
        because.extend(steps);
        because.extend(record.verification.as_ref().map(|v| format!("afterwards: {}", v.summary)));
        if record.plan.timing.makespan > Millis::ZERO {
            let timing = &record.plan.timing;
            because.push(format!(
                "it was to take {}, and no order of its steps could take less than {}",
                timing.makespan, timing.bound
            ));
        }
        if let Some(bound) = record.plan.predicted.rate_bound {
            let after = record.plan.predicted.rate_after;
            because.push(format!("it leads to {after}, and no placement could cost less than {bound}"));
        }
        let lost = record.plan.steps.iter().flat_map(|step| &step.alternatives).chain(&record.plan.rejected);
        Explanation {
            object: format!("plan/{}", record.id),
            answer: format!("{}. It {state}.", self.say_plan(record)),
            because,
            rejected: lost.take(REJECTED_MAX).map(|r| self.say_rejected(r)).collect(),
            history: self.history(&format!("plan/{}", record.id)),
            why: None,
        }
    }

    fn say_migration(&self, record: &MigrationRecord) -> String {
        let outcome = match (&record.phase, &record.report) {
            (MigrationPhase::Done, Some(report)) => format!(
                "done in {}, stood still for {} ({} waiting for the commit, {} copying, {} resuming), {} sent in {} rounds",
                report.total,
                report.downtime,
                report.downtime_phases.commit,
                report.downtime_phases.copy,
                report.downtime_phases.resume,
                report.transferred,
                report.rounds
            ),
            (
                MigrationPhase::Failed { why } | MigrationPhase::TakenBack { why } | MigrationPhase::Restarted { why },
                _,
            ) => why.clone(),
            (MigrationPhase::Cancelled { by }, _) => format!("cancelled by {by}"),
            (phase, _) => match self.migration_outlook(record.id).and_then(|outlook| outlook.waits_for.as_ref()) {
                Some(why) => format!("{}, because {why}", phase.word()),
                None => phase.word().to_owned(),
            },
        };
        let by = record.strategy.method.word();
        format!(
            "migration {}: {} from {} to {} by {by}, because {}: {outcome}",
            record.id,
            self.name(&record.vm),
            record.from,
            record.to,
            record.reason
        )
    }

    fn explain_migration(&self, record: &MigrationRecord) -> Explanation {
        let plan = record.plan.and_then(|id| self.plan(id));
        Explanation {
            object: format!("migration/{}", record.id),
            answer: format!("{}.", self.say_migration(record)),
            because: plan.map(|plan| self.say_plan(plan)).into_iter().collect(),
            rejected: plan
                .map(|plan| plan.plan.rejected.iter().take(REJECTED_MAX).map(|r| self.say_rejected(r)).collect())
                .unwrap_or_default(),
            history: self.history(&format!("vm/{}", record.vm)),
            why: None,
        }
    }
}

/// The step that a migration carried out, and its place.
fn step_of<'a>(record: &'a PlanRecord, migration: &MigrationRecord) -> Option<(usize, &'a Step)> {
    let moves = |step: &Step| matches!(&step.action, Action::Migrate { vm, to, .. } if *vm == migration.vm && *to == migration.to);
    record.plan.steps.iter().enumerate().find(|(_, step)| moves(step))
}
