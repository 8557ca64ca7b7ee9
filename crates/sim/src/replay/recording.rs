//! Recorded load: what each vm wanted, at fixed steps.

use drover_model::inventory::Capacity;
use drover_model::load::{DailyPattern, Window};
use drover_model::world::{Movable, VmView, World};
use drover_model::{Bytes, CpuMillis, Generation, HostId, Millis, TimeMs, VmId, VmName};
use drover_planner::text::label;
use std::collections::{BTreeMap, BTreeSet};

/// First line of a recording as CSV.
pub const HEADER: &str = "time,vm,cpu_millis,memory_mib";
const ROWS: &str = "a name, then percents of a core, from 0 to 100000, parted by commas";
/// More than that fits no memory.
const POINTS_MAX: usize = 50_000_000;
const STEP_MIN: Millis = Millis::secs(1);
/// A vm that the recording alone tells of.
const MEMORY_GUESS: Bytes = Bytes::GIB;

/// What a vm wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    pub cpu: CpuMillis,
    /// Resident; 0 if not known.
    pub memory: Bytes,
}

/// Made of points by hand, or read from text.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    pub start: TimeMs,
    /// Above zero.
    pub step: Millis,
    /// From the start on. A vm goes on as before where it has no point.
    pub vms: BTreeMap<VmId, Vec<Option<Point>>>,
}

/// What stands in a recording is not what must stand there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {found}, but expected {expected}")]
pub struct BadRecording {
    /// From 1.
    pub line: usize,
    pub found: String,
    pub expected: String,
}

/// A recording and a cluster that are not of each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    #[error(
        "the recording tells of {vm}, which the cluster does not have: take the cluster it was recorded on, or one without vms, which are then made up"
    )]
    Vm { vm: VmId },
    #[error("{vm} finds no host with {memory} of memory left: give the cluster more hosts")]
    NoRoom { vm: VmId, memory: Bytes },
}

impl Recording {
    /// How many steps it has.
    pub fn len(&self) -> usize {
        self.vms.values().map(Vec::len).max().unwrap_or(0)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When a step begins.
    pub fn at(&self, step: usize) -> TimeMs {
        self.start.plus(Millis(self.step.0 * step as u64))
    }

    pub fn point(&self, vm: &VmId, step: usize) -> Option<Point> {
        *self.vms.get(vm)?.get(step)?
    }

    /// Reads [`HEADER`] and a line for each vm and time, in any order; times are seconds since 1970, memory may be left
    /// empty. Without `step` the smallest distance of two times is taken, a second at least. Of several records within a
    /// step the mean counts, and the largest memory.
    pub fn from_csv(text: &str, step: Option<Millis>) -> Result<Self, BadRecording> {
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let (at, header) = lines.next().unwrap_or((0, ""));
        if header.trim() != HEADER {
            return Err(bad(at, header, HEADER));
        }
        let records: Vec<Record> = lines.map(|(at, line)| Record::of(at, line)).collect::<Result<_, _>>()?;
        let times: BTreeSet<TimeMs> = records.iter().map(|record| record.at).collect();
        let Some((&start, &end)) = times.first().zip(times.last()) else {
            return Err(bad(at, "no record", "records below the first line"));
        };
        let gaps = times.iter().zip(times.iter().skip(1)).map(|(before, after)| after.since(*before));
        let step = step.or(gaps.min()).unwrap_or(STEP_MIN).max(STEP_MIN);
        let steps = (end.since(start).0 / step.0) as usize + 1;
        let ids: BTreeSet<&VmId> = records.iter().map(|record| &record.vm).collect();
        if steps.saturating_mul(ids.len()) > POINTS_MAX {
            return Err(bad(at, &format!("{steps} steps of {step}"), "a longer step, or less to replay at once"));
        }
        let mut sums: BTreeMap<VmId, Vec<(u64, u64, Bytes)>> =
            ids.into_iter().map(|id| (id.clone(), vec![(0, 0, Bytes::ZERO); steps])).collect();
        for Record { at, vm, point } in records {
            if let Some((count, cpu, memory)) =
                sums.get_mut(&vm).and_then(|sums| sums.get_mut((at.since(start).0 / step.0) as usize))
            {
                (*count, *cpu, *memory) = (*count + 1, *cpu + point.cpu.0, (*memory).max(point.memory));
            }
        }
        let mean = |(count, cpu, memory): (u64, u64, Bytes)| {
            (count > 0).then(|| Point { cpu: CpuMillis(cpu / count), memory })
        };
        let vms = sums.into_iter().map(|(vm, sums)| (vm, sums.into_iter().map(mean).collect())).collect();
        Ok(Self { start, step, vms })
    }

    /// Reads a line for each vm: its name, then its values at fixed steps, in percent of one core, parted by commas (the
    /// layout of the PlanetLab traces). Names are made fit; the first value is midnight's.
    pub fn from_rows(text: &str, step: Millis) -> Result<Self, BadRecording> {
        let mut vms = BTreeMap::new();
        let mut points = 0;
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let mut fields = line.split(',');
            let name = fields.next().unwrap_or_default();

            let value = |field: &str| match field.trim().parse::<f64>() {
                Ok(value) if (0.0..=100_000.0).contains(&value) => {
                    Ok(Some(Point { cpu: CpuMillis((value * 10.0).round() as u64), memory: Bytes::ZERO }))
                }
                _ => Err(bad(at, field, ROWS)),
            };
            let row: Vec<_> = fields.map(value).collect::<Result<_, _>>()?;
            points += row.len();
            if row.is_empty() || points > POINTS_MAX {
                return Err(bad(at, &format!("{} values", row.len()), "at least one for each vm, 50 million in all"));
            }
            let id =
                unused(&vms, &label(name)).ok_or_else(|| bad(at, name, "a name with a letter or a digit in it"))?;
            vms.insert(id, row);
        }
        if vms.is_empty() {
            return Err(bad(0, "", ROWS));
        }
        Ok(Self { start: TimeMs::ZERO, step: step.max(STEP_MIN), vms })
    }

    /// Makes `world` one that this recording can be replayed on: where it has no vms they are made up, as large as what was
    /// recorded of them, and vms without a host are put where most memory is free.
    pub fn inhabit(&self, world: &mut World) -> Result<(), Stranger> {
        if world.vms.is_empty() {
            world.vms = self.vms.iter().map(|(id, points)| (id.clone(), made_up(id, points))).collect();
        }
        if let Some(vm) = self.vms.keys().find(|vm| !world.vms.contains_key(vm)) {
            return Err(Stranger::Vm { vm: vm.clone() });
        }
        let room = |world: &World, host: &HostId, capacity: Capacity| {
            let here = world.vms.values().filter(|vm| vm.host.as_ref() == Some(host));
            capacity.memory.saturating_sub(here.map(|vm| vm.memory).sum())
        };
        let hosts = world.hosts.iter().filter(|(_, host)| host.takes_vms());
        let hosts = hosts.filter_map(|(id, host)| Some((id.clone(), host.capacity?)));
        let mut free: BTreeMap<HostId, Bytes> =
            hosts.map(|(id, capacity)| (id.clone(), room(world, &id, capacity))).collect();
        for (id, vm) in world.vms.iter_mut().filter(|(_, vm)| vm.host.is_none()) {
            let most = free.iter_mut().max_by_key(|(_, room)| **room).filter(|(_, room)| **room >= vm.memory);
            let Some((host, room)) = most else {
                return Err(Stranger::NoRoom { vm: id.clone(), memory: vm.memory });
            };
            *room = *room - vm.memory;
            vm.host = Some(host.clone());
        }
        Ok(())
    }
}

fn bad(at: usize, found: &str, expected: &str) -> BadRecording {
    let found = found.chars().take(80).collect::<String>();
    BadRecording { line: at + 1, found: format!("{found:?}"), expected: expected.to_owned() }
}

struct Record {
    at: TimeMs,
    vm: VmId,
    point: Point,
}

impl Record {
    fn of(at: usize, line: &str) -> Result<Self, BadRecording> {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [time, vm, cpu, memory] = fields.as_slice() else {
            return Err(bad(at, line, "four fields: time, vm, cpu_millis, memory_mib"));
        };
        let seconds = time.parse::<f64>().ok().filter(|seconds| (0.0..1e11).contains(seconds));
        let seconds = seconds.ok_or_else(|| bad(at, time, "seconds since 1970"))?;
        let number = |text: &str, most: u64, expected| {
            text.parse().ok().filter(|number| *number <= most).ok_or_else(|| bad(at, text, expected))
        };
        let memory = if memory.is_empty() { 0 } else { number(memory, 1 << 34, "memory in MiB, or nothing")? };
        Ok(Self {
            at: TimeMs((seconds * 1000.0).round() as u64),
            vm: vm.parse().map_err(|_| bad(at, vm, "the id of a vm"))?,
            point: Point {
                cpu: CpuMillis(number(cpu, 1_000_000_000, "processor demand in thousandths of a core")?),
                memory: Bytes::mib(memory),
            },
        })
    }
}

/// The name, or with a number behind it where it is taken: names may be equal once they are made fit.
fn unused<T>(taken: &BTreeMap<VmId, T>, name: &str) -> Option<VmId> {
    let first: VmId = name.parse().ok()?;
    if !taken.contains_key(&first) {
        return Some(first);
    }
    let stem = name[..name.len().min(56)].trim_end_matches('-');
    (2..1_000_000).find_map(|n| format!("{stem}-{n}").parse().ok().filter(|id| !taken.contains_key(id)))
}

fn made_up(id: &VmId, points: &[Option<Point>]) -> VmView {
    let points = || points.iter().flatten();
    let cores = points().map(|point| point.cpu.0.div_ceil(CpuMillis::CORE.0)).max().unwrap_or(0);
    let memory = points().map(|point| point.memory).max().unwrap_or(Bytes::ZERO);
    let name: Result<VmName, _> = id.as_str().parse();
    VmView {
        name: name.expect("ids and names of vms are labels"),
        tenant: "recorded".parse().expect("it is a label"),
        generation: Generation(1),
        vcpus: u32::try_from(cores).unwrap_or(u32::MAX).max(1),
        memory: if memory == Bytes::ZERO { MEMORY_GUESS } else { memory },
        network: None,
        anti_affinity: None,
        pinned_to: BTreeSet::new(),
        host: None,
        movable: Movable::Yes,
        left: Vec::new(),
        load: Window::default(),
        pattern: DailyPattern::default(),
        disk: Bytes::ZERO,
        pool: None,
        cpu_reserved: CpuMillis::ZERO,
    }
}
