//! Where the vms are and which hosts are powered, with every sum that judgement needs kept as vms come and go.

use super::{HostIx, Problem, RuleIx, Sums, VmIx};
use crate::cost::{self, Rates};
use drover_model::world::HostState;

pub(crate) struct State {
    pub at: Vec<Option<HostIx>>,
    /// By host: its vms, sorted, with those on the way to it.
    pub on: Vec<Vec<VmIx>>,
    pub sums: Vec<Sums>,
    /// By host: up, and meant to be.
    pub up: Vec<bool>,
    /// By host: up, may take vms, and its load is known.
    pub open: Vec<bool>,
    /// By host, as it is filled: what it costs while it is up.
    pub rates: Vec<Rates>,
    /// By rule, sorted by domain: how many of its vms are in each host, rack or zone.
    counts: Vec<Vec<(usize, u32)>>,
}

impl State {
    pub fn new(problem: &Problem<'_>) -> Self {
        let count = problem.hosts.len();
        let mut state = Self {
            at: vec![None; problem.vms.len()],
            on: vec![Vec::new(); count],
            sums: vec![Sums::default(); count],
            up: problem.hosts.iter().map(|host| host.view.state == HostState::Up).collect(),
            open: problem.hosts.iter().map(|host| host.view.takes_vms() && host.load_known).collect(),
            rates: vec![Rates::default(); count],
            counts: vec![Vec::new(); problem.placement.rules.len()],
        };
        for (ix, vm) in problem.vms.iter().enumerate() {
            state.at[ix] = vm.host;
            for host in vm.host.into_iter().chain(vm.moving_to.filter(|to| Some(*to) != vm.host)) {
                state.on[host].push(ix);
                state.sums[host] = state.sums[host].with(&vm.wants);
                state.count(problem, ix, host, 1);
            }
        }
        for (host, row) in problem.hosts.iter().enumerate() {
            // What the host itself reports is nearer the truth than the sum over its vms.
            if let Some(used) = row.memory_used {
                state.sums[host].resident = i64::try_from(used).unwrap_or(i64::MAX);
            }
            state.rates[host] = cost::host_rate(problem, host, &state.sums[host]);
        }
        state
    }

    /// The vm comes to run on the host.
    pub fn put(&mut self, problem: &Problem<'_>, vm: VmIx, host: HostIx) {
        self.at[vm] = Some(host);
        if let Err(at) = self.on[host].binary_search(&vm) {
            self.on[host].insert(at, vm);
        }
        self.count(problem, vm, host, 1);
        self.refill(problem, host, self.sums[host].with(&problem.vms[vm].wants));
    }

    /// The vm leaves its host, and has none.
    pub fn take(&mut self, problem: &Problem<'_>, vm: VmIx) {
        let Some(host) = self.at[vm].take() else { return };
        if let Ok(at) = self.on[host].binary_search(&vm) {
            self.on[host].remove(at);
        }
        self.count(problem, vm, host, -1);
        self.refill(problem, host, self.sums[host].without(&problem.vms[vm].wants));
    }

    pub fn shift(&mut self, problem: &Problem<'_>, vm: VmIx, to: HostIx) {
        self.take(problem, vm);
        self.put(problem, vm, to);
    }

    /// A host that this plan wakes is idle, which is known.
    pub fn switch(&mut self, problem: &Problem<'_>, host: HostIx, on: bool) {
        let row = &problem.hosts[host];
        self.up[host] = on;
        self.open[host] = on
            && !row.view.maintenance
            && row.view.capacity.is_some()
            && (row.load_known || row.view.state != HostState::Up);
    }

    fn refill(&mut self, problem: &Problem<'_>, host: HostIx, sums: Sums) {
        self.sums[host] = sums;
        self.rates[host] = cost::host_rate(problem, host, &sums);
    }

    fn count(&mut self, problem: &Problem<'_>, vm: VmIx, host: HostIx, by: i32) {
        for rule in problem.placement.counted(vm) {
            let domain = problem.placement.domain(problem.placement.rules[*rule].scope, host);
            let counts = &mut self.counts[*rule];
            match counts.binary_search_by_key(&domain, |(at, _)| *at) {
                Ok(at) => {
                    counts[at].1 = counts[at].1.saturating_add_signed(by);
                    if counts[at].1 == 0 {
                        counts.remove(at);
                    }
                }
                Err(at) if by > 0 => counts.insert(at, (domain, 1)),
                Err(_) => {}
            }
        }
    }

    /// How many of the rule's vms are there.
    pub fn counted(&self, rule: RuleIx, domain: usize) -> u32 {
        let counts = &self.counts[rule];
        counts.binary_search_by_key(&domain, |(at, _)| *at).map_or(0, |at| counts[at].1)
    }

    /// Hosts, racks or zones that the rule's vms are in, and how many of them in each.
    pub fn spread(&self, rule: RuleIx) -> &[(usize, u32)] {
        &self.counts[rule]
    }

    /// Hosts that are up and not in maintenance.
    pub fn up_count(&self, problem: &Problem<'_>) -> u32 {
        let serves = |ix: &HostIx| self.up[*ix] && !problem.hosts[*ix].view.maintenance;
        u32::try_from((0..problem.hosts.len()).filter(serves).count()).unwrap_or(u32::MAX)
    }

    /// Forecast demand of all vms whose hosts are up and known (at the quantile), and the capacity of the hosts among
    /// them that take vms, with those on their way up.
    pub fn pool(&self, problem: &Problem<'_>) -> (u64, u64) {
        let (mut demand, mut capacity) = (Sums::default(), 0);
        for (ix, host) in problem.hosts.iter().enumerate() {
            let woken = self.up[ix] && host.view.state != HostState::Up;
            if host.view.state == HostState::Waking && !host.view.maintenance {
                capacity += host.cpu;
            }
            if !self.up[ix] || !(host.load_known || woken) {
                continue;
            }
            demand.mean += self.sums[ix].mean;
            demand.variance += self.sums[ix].variance;
            if !host.view.maintenance {
                capacity += host.cpu;
            }
        }
        (problem.at_quantile(&demand), capacity)
    }
}
