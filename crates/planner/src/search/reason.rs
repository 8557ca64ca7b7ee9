//! What a change was made for, kept as numbers while searching and put into words at the end.

use crate::problem::{HostIx, Problem, RuleIx, State, VmIx};
use drover_model::{CpuMillis, Ratio};

/// How much of itself a host is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Asked {
    pub host: HostIx,
    pub share: Ratio,
    /// Of its memory, or of its processor.
    pub memory: bool,
}

impl Asked {
    /// By the resource that is fuller, memory only where it is too full.
    pub fn of(problem: &Problem<'_>, state: &State, host: HostIx) -> Self {
        let (row, sums) = (&problem.hosts[host], &state.sums[host]);
        let cpu = Ratio(problem.load(sums) as f64 / row.cpu.max(1) as f64);
        let in_use = Ratio(sums.resident as f64 / row.memory.max(1) as f64);
        let memory = in_use > cpu && in_use > problem.policy().fill_to;
        Self { host, share: if memory { in_use } else { cpu }, memory }
    }

    fn text(self, problem: &Problem<'_>) -> String {
        let (host, share) = (problem.hosts[self.host].id, self.share);
        if self.memory {
            format!("{host} has {share} of its memory in use")
        } else {
            format!("{host} is asked for {share} of its processor")
        }
    }
}

/// Completes "because ...".
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Reason {
    Relief {
        asked: Asked,
        to: HostIx,
    },
    /// It comes to where `small` leaves.
    Exchange {
        asked: Asked,
        big: VmIx,
        small: VmIx,
    },
    MakesRoom {
        on: HostIx,
        for_vm: VmIx,
    },
    Drained {
        from: HostIx,
        to: HostIx,
    },
    Broken {
        rule: RuleIx,
        to: HostIx,
    },
    Pinned {
        to: HostIx,
    },
    Overcommitted {
        from: HostIx,
        to: HostIx,
    },
    Emptied {
        from: HostIx,
        used: Ratio,
        to: HostIx,
    },
    Cheaper {
        from: HostIx,
        to: HostIx,
    },
    Spread {
        asked: Asked,
        to: HostIx,
    },
    WakeMin,
    WakeRelief {
        asked: Asked,
    },
    WakeDrained,
    WakePool {
        asked: Ratio,
    },
    WakeSpare,
    Empty,
    /// A host on the way.
    Pass,
}

impl Reason {
    /// Nothing presses: limits of moves hold.
    pub fn is_free(self) -> bool {
        matches!(self, Self::MakesRoom { .. } | Self::Emptied { .. } | Self::Cheaper { .. } | Self::Spread { .. })
    }

    pub fn text(self, problem: &Problem<'_>) -> String {
        let host = |host: HostIx| problem.hosts[host].id;
        let name = |vm: VmIx| &problem.vms[vm].view.name;
        match self {
            Self::Relief { asked, to } | Self::Spread { asked, to } => {
                format!("{} and {} has room", asked.text(problem), host(to))
            }
            Self::Exchange { asked, big, small } => format!(
                "{}, no host has room for {} alone, and {} can take the place of {}",
                asked.text(problem),
                name(big),
                name(big),
                name(small)
            ),
            Self::MakesRoom { on, for_vm } => format!("it makes room on {} for {}", host(on), name(for_vm)),
            Self::Drained { from, to } => {
                format!("{} is drained for maintenance and {} has room", host(from), host(to))
            }
            Self::Broken { rule, to } => match problem.placement.rules[rule].id {
                Some(id) => format!("rule {id} is broken and {} keeps it", host(to)),
                None => format!("its anti-affinity group is broken and {} keeps it", host(to)),
            },
            Self::Pinned { to } => format!("it may not be where it is, and {} has room", host(to)),
            Self::Overcommitted { from, to } => {
                format!("{} has promised more than it has, and {} has room", host(from), host(to))
            }
            Self::Emptied { from, used, to } => format!(
                "{} is asked for {used} of its processor only, {} has room, and the empty host can be switched off",
                host(from),
                host(to)
            ),
            Self::Cheaper { from, to } => {
                format!("{} draws less power for it than {}", host(to), host(from))
            }
            Self::WakeMin => format!("at least {} hosts must be up", problem.policy().hosts_up_min),
            Self::WakeRelief { asked } => format!("{} and no host that is up has room", asked.text(problem)),
            Self::WakeDrained => "no host that is up has room for the vms of a drained host".to_owned(),
            Self::WakePool { asked } => format!(
                "the hosts that are up are asked for {asked} of their processors, and above {} one more is woken",
                problem.policy().wake_above
            ),
            Self::WakeSpare => "the hosts that are up could not take the vms of one that failed".to_owned(),
            Self::Empty => "it is empty, and the others carry everything with room to spare".to_owned(),
            Self::Pass => "it makes room for others here, and only passes through there".to_owned(),
        }
    }
}

/// Demand over capacity.
pub(crate) fn asked_of_pool((demand, capacity): (u64, u64)) -> Ratio {
    CpuMillis(demand).ratio_of(CpuMillis(capacity))
}
