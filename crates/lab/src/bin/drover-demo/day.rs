//! The day: load comes and goes in the guests, and drover is watched dealing with it. Besides the load,
//! the only thing done to the cluster is the maintenance at the end, by the command an operator would give.

use crate::summary::{HostLine, Hotspot, MigrationLine, Phase, Summary, VmLine};
use crate::teller::Teller;
use anyhow::{Context, Result, anyhow, bail, ensure};
use drover::top::{Snapshot, live};
use drover_api::client::Client;
use drover_api::v1::HostView;
use drover_lab::Lab;
use drover_lab::config::HostSize;
use drover_lab::probe::{GuestLoad, verify_guest};
use drover_lab::vms::{GuestImage, LabVm, NewVm};
use drover_model::intent::Host;
use drover_model::plan::PlanRecord;
use drover_model::plan::Scenario;
use drover_model::policy::{Aim, KOfN, Mode, Policy};
use drover_model::world::HostState;
use drover_model::{HostId, Millis, Ratio};
use futures_util::future::try_join_all;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Between two looks at the cluster.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Each part of the day must show what it is about within this.
const PART_MAX: Duration = Duration::from_secs(75);
pub const PHASES: usize = 4;

/// Processor that the guests ask for, in percent of one vcpu.
mod load {
    /// A quiet morning: no host is hot, none is cold.
    pub const MORNING: u32 = 7;
    /// Of the vms on one host: together more than it has.
    pub const HOT: [u32; 3] = [32, 15, 12];
    pub const NIGHT: u32 = 0;
    /// Rising: at the third level two hosts are nearly filled by it, at the last they would be hot.
    pub const RISING: [u32; 5] = [4, 7, 9, 11, 13];
    pub const EVENING: u32 = 7;
}
/// The guests' boot is over when no host wanted more than this for so long: nearly as far as the forecast looks back, or it
/// would take the boot for the guests' ways.
const CALM_BELOW: f64 = 0.7;
/// Nor does placement wait for a host that wants less than this.
const BOOTED_BELOW: f64 = 0.5;
const CALM_FOR: Duration = Duration::from_secs(24);
/// Three seconds: one sample is noise.
const LOOKS_TO_BE_SATURATED: usize = 12;
/// Memory that every guest rewrites, in MiB a second.
const DIRTY_MIB_S: u32 = 2;
/// How long each level of the rising load lasts.
const RISE_EVERY: Duration = Duration::from_secs(6);

/// Three hosts of half a core, so that a machine with two carries them and its own work.
pub fn hosts() -> Vec<HostSize> {
    vec![HostSize { cpu_millis: 500, memory_mib: 1024 }; 3]
}

/// Windows of seconds instead of minutes: a day passes in minutes here. While the guests boot, drover only watches.
pub fn policy() -> Policy {
    Policy {
        mode: Mode::Observe,
        hot_evidence: KOfN { k: 3, n: 5 },
        cold_below: Ratio(0.25),
        cold_evidence: KOfN { k: 8, n: 10 },
        aim: Aim::Auto,
        hosts_up_min: 2,
        forecast_ahead: Millis::secs(5),
        quantile: 0.8,
        vm_cooldown: Millis::secs(10),
        settle: Millis::secs(5),
        ..Policy::default()
    }
}

/// Eight vms of two tenants.
fn vms() -> Vec<NewVm> {
    let names = ["web-1", "web-2", "api", "db", "shop-1", "shop-2", "cache", "batch"];
    let mut vms: Vec<NewVm> = names
        .iter()
        .enumerate()
        .map(|(at, name)| NewVm::small(if at < 4 { "acme" } else { "globex" }, name, at as u8 + 1))
        .collect();
    for vm in &mut vms {
        vm.load = GuestLoad { cpu_percent: load::MORNING, dirty_mib_s: DIRTY_MIB_S };
        // Twins never share a host.
        vm.anti_affinity = vm.name.rsplit_once('-').map(|(group, _)| group.to_owned());
    }
    vms
}

/// Plays it. A part that fails ends the day; the summary says which and why.
pub async fn play(lab: &mut Lab, teller: &mut Teller) -> Result<Summary> {
    teller.say("three hosts are up; two tenants make eight vms, which boot now");
    GuestImage::find()?.upload(lab.cluster.client()).await?;
    for tenant in ["acme", "globex"] {
        lab.cluster.create_tenant(tenant).await?;
    }
    let mut made = Vec::new();
    // One a host at a time: a guest that boots takes all its host has, and placement goes by what is measured.
    for some in vms().chunks(hosts().len()) {
        made.extend(lab.cluster.create_vms(some).await?);
        let client = lab.cluster.client();
        lab.cluster
            .wait_for("the hosts have calmed down", PART_MAX, async || {
                let hosts = client.of::<Host>().all().await?.items;
                Ok(hosts.iter().all(|host| wanted(host).is_some_and(|share| share < BOOTED_BELOW)).then_some(()))
            })
            .await?;
    }
    teller.open()?;
    let client = lab.cluster.client().clone();
    let mut day = Day { lab, teller, client, snapshot: Snapshot::default(), vms: made, hotspot: Hotspot::default() };
    let mut phases = Vec::new();
    match day.morning().await {
        Ok(()) => day.phases(&mut phases).await,
        Err(problem) => phases.push(Phase {
            name: "morning",
            ok: false,
            started_s: 0.0,
            ended_s: day.now_s(),
            outcome: format!("{problem:#}"),
        }),
    }
    day.sum_up(phases).await
}

struct Day<'a> {
    lab: &'a Lab,
    teller: &'a mut Teller,
    client: Client,
    snapshot: Snapshot,
    vms: Vec<LabVm>,
    hotspot: Hotspot,
}

impl Day<'_> {
    fn now_s(&self) -> f64 {
        self.teller.elapsed().as_secs_f64()
    }

    async fn phases(&mut self, phases: &mut Vec<Phase>) {
        for number in 0..PHASES {
            let started_s = self.now_s();
            let (name, outcome) = match number {
                0 => ("hot spot", self.hot_spot().await),
                1 => ("power saving", self.power_saving().await),
                2 => ("waking", self.waking().await),
                _ => ("maintenance", self.maintenance().await),
            };
            let ok = outcome.is_ok();
            let outcome = outcome.unwrap_or_else(|problem| format!("{problem:#}"));
            phases.push(Phase { name, ok, started_s, ended_s: self.now_s(), outcome });
            if !ok {
                return;
            }
        }
    }

    /// Looks at the cluster and tells what is new until there is something to find.
    async fn wait_for<T>(&mut self, what: &str, mut find: impl FnMut(&Snapshot) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PART_MAX;
        loop {
            live::refresh(&self.client, &mut self.snapshot).await.context("the server does not answer")?;
            self.teller.show(&mut self.snapshot)?;
            if let Some(found) = find(&self.snapshot) {
                return Ok(found);
            }
            ensure!(Instant::now() < deadline, "not within {} s: {what}", PART_MAX.as_secs());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn load_all(&self, cpu_percent: u32) -> Result<()> {
        let load = GuestLoad { cpu_percent, dirty_mib_s: DIRTY_MIB_S };
        try_join_all(self.vms.iter().map(|vm| vm.set_load(load))).await?;
        Ok(())
    }

    /// The guests have booted: from here on drover acts on what it finds.
    async fn morning(&mut self) -> Result<()> {
        self.teller.say("all guests answer; when they have calmed down drover is set to act on what it finds");
        let mut calm_since: Option<Instant> = None;
        self.wait_for("every host is calm", |snapshot| {
            let calm = |host: &HostView| wanted(host).is_some_and(|share| share < CALM_BELOW);
            let balanced =
                snapshot.cluster.as_ref().is_some_and(|cluster| cluster.scenario == Some(Scenario::Balanced));
            if !balanced || !snapshot.hosts.iter().all(calm) {
                calm_since = None;
                return None;
            }
            (calm_since.get_or_insert_with(Instant::now).elapsed() >= CALM_FOR).then_some(())
        })
        .await?;
        let act = serde_json::json!({ "mode": "act" });
        self.client.patch_policy(&act).await.context("can't set the policy")?;
        self.lab.probe.reset_gaps();
        Ok(())
    }

    /// 1: the vms of one host want more than it has.
    async fn hot_spot(&mut self) -> Result<String> {
        let host = most_vms(&self.snapshot.hosts).context("no host has vms")?.clone();
        let on_it: Vec<LabVm> = self.vms.iter().filter(|vm| host.vms.contains(&vm.id)).cloned().collect();
        self.teller.say(&format!("1. load rises in the vms of {}", host.id));
        let began_ms = now_ms();
        self.hotspot.host = host.id.to_string();
        self.hotspot.overloaded_s = self.now_s();
        let rising = on_it.iter().zip(load::HOT);
        try_join_all(rising.map(|(vm, cpu_percent)| vm.set_load(GuestLoad { cpu_percent, dirty_mib_s: DIRTY_MIB_S })))
            .await?;
        let overloaded_s = self.hotspot.overloaded_s;

        let object = format!("host/{}", host.id);
        let found_ms = self
            .wait_for("the hot spot is found", |snapshot| {
                let hot =
                    |e: &&drover_api::v1::EventView| e.kind == "host-hot" && e.object == object && e.at_ms >= began_ms;
                snapshot.events.iter().find(hot).map(|event| event.at_ms)
            })
            .await?;
        self.hotspot.detected_s = overloaded_s + (found_ms - began_ms) as f64 / 1000.0;

        let hot_above = policy().hot_above.0;
        let mut calm: Option<(u64, u64)> = None;
        let (moved, relieved_ms) = self
            .wait_for("the hot host is relieved", |snapshot| {
                let left = |m: &&drover_api::v1::MigrationView| {
                    m.from == host.id && m.phase == "done" && m.started_at_ms >= began_ms
                };
                let moved = snapshot.migrations.iter().filter(left).count();
                let view = snapshot.hosts.iter().find(|view| view.id == host.id)?;
                let reported = view.last_report_at_ms?;
                if moved == 0 || wanted(view)? > hot_above {
                    calm = None;
                    return None;
                }
                // Two reports in a row, so that a moment between two moves is not taken for relief.
                let (first, _) = *calm.get_or_insert((reported, reported));
                (reported > first).then_some((moved, first))
            })
            .await?;
        self.hotspot.relieved_s = overloaded_s + (relieved_ms.saturating_sub(began_ms)) as f64 / 1000.0;
        self.quiet().await?;
        Ok(format!(
            "{} was overloaded; {moved} of its vms moved and it was relieved after {:.1} s",
            host.id,
            self.hotspot.relieved_s - overloaded_s
        ))
    }

    /// 2: at night the others can carry what one host runs.
    async fn power_saving(&mut self) -> Result<String> {
        self.teller.say("2. night: load falls everywhere");
        self.load_all(load::NIGHT).await?;
        let asleep = self
            .wait_for("a cold host is emptied and powered off", |snapshot| {
                snapshot.hosts.iter().find(|host| host.state == HostState::Asleep).map(|host| host.id.clone())
            })
            .await?;
        self.quiet().await?;
        Ok(format!("{asleep} was emptied and powered off"))
    }

    /// 3: in the morning the sleeping host is needed again.
    async fn waking(&mut self) -> Result<String> {
        self.teller.say("3. load rises again, everywhere");
        let sleeping = self.snapshot.hosts.iter().find(|host| host.state == HostState::Asleep);
        let sleeping: HostId = sleeping.context("no host sleeps")?.id.clone();
        let mut levels = load::RISING.iter();
        let mut next = Instant::now();
        let deadline = next + PART_MAX;
        let mut fullest: f64 = 0.0;
        let mut recent = VecDeque::new();
        let woken = loop {
            if Instant::now() >= next
                && let Some(level) = levels.next()
            {
                self.load_all(*level).await?;
                next = Instant::now() + RISE_EVERY;
            }
            let look = self.wait_for("a look", |snapshot| Some(snapshot.hosts.clone())).await?;
            let host = look.iter().find(|host| host.id == sleeping).context("the sleeping host is gone")?;
            if host.state != HostState::Asleep {
                break self.now_s();
            }
            if recent.len() == LOOKS_TO_BE_SATURATED {
                recent.pop_front();
            }
            recent.push_back(wanted_of_pool(&look));
            if recent.len() == LOOKS_TO_BE_SATURATED {
                fullest = fullest.max(recent.iter().sum::<f64>() / recent.len() as f64);
            }
            ensure!(
                fullest <= 1.0,
                "the other hosts were saturated ({:.0} %) before {sleeping} was woken",
                fullest * 100.0
            );
            ensure!(Instant::now() < deadline, "{sleeping} was not woken within {} s", PART_MAX.as_secs());
            tokio::time::sleep(LOOK_EVERY).await;
        };
        // It goes on rising: what the others alone would not carry.
        for level in levels {
            self.load_all(*level).await?;
        }
        let vms = self
            .wait_for("the woken host is used", |snapshot| {
                let host = snapshot.hosts.iter().find(|host| host.id == sleeping)?;
                let arrived = host.state == HostState::Up && !host.vms.is_empty();
                arrived.then_some(host.vms.len())
            })
            .await?;
        let used = self.now_s() - woken;
        self.quiet().await?;
        Ok(format!(
            "{sleeping} was woken when the others were asked for {:.0} % of what they have, and ran {vms} vms {used:.1} s later",
            fullest * 100.0
        ))
    }

    /// 4: an operator drains a host and gives it back.
    async fn maintenance(&mut self) -> Result<String> {
        self.load_all(load::EVENING).await?;
        let host = most_vms(&self.snapshot.hosts).context("no host has vms")?.clone();
        let count = host.vms.len();
        self.teller.say(&format!("4. `drover host drain {}`: maintenance", host.id));
        self.client.drain_host(host.id.as_str()).await.context("can't drain")?;
        let started = Instant::now();
        self.wait_for("the drained host is empty", |snapshot| {
            snapshot.hosts.iter().find(|view| view.id == host.id)?.vms.is_empty().then_some(())
        })
        .await?;
        let took = started.elapsed().as_secs_f64();
        self.quiet().await?;
        self.teller.say(&format!("`drover host undrain {}`: it is given back", host.id));
        self.client.undrain_host(host.id.as_str()).await.context("can't give back")?;
        self.wait_for("the host is given back", |snapshot| {
            let view = snapshot.hosts.iter().find(|view| view.id == host.id)?;
            (!view.maintenance).then_some(())
        })
        .await?;
        Ok(format!("{} gave its {count} vms away in {took:.1} s and was given back", host.id))
    }

    /// No move and no plan is under way.
    async fn quiet(&mut self) -> Result<()> {
        let client = self.client.clone();
        let deadline = Instant::now() + PART_MAX;
        loop {
            let moving = self.wait_for("a look", |snapshot| Some(snapshot.migrations.iter().any(|m| !m.over))).await?;
            let plans = client.of::<PlanRecord>().all().await.context("the server does not answer")?.items;
            let busy = plans.iter().any(|plan| ["running", "settling"].contains(&plan.state.as_str()));
            if !moving && !busy {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not within {} s: the cluster is quiet", PART_MAX.as_secs());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn sum_up(mut self, phases: Vec<Phase>) -> Result<Summary> {
        self.teller.say("every guest verifies its memory");
        // Hosts and migrations as they are now, whatever the last part saw.
        self.wait_for("a look", |_| Some(())).await?;
        let stats = try_join_all(self.vms.iter().map(|vm| verify_guest(vm.address))).await?;
        let ticks = self.lab.probe.ticks();
        let mut lines = Vec::new();
        for (vm, stats) in self.vms.iter().zip(&stats) {
            let ticks = ticks.get(&vm.name).ok_or_else(|| anyhow!("{} never sent a tick", vm.name))?;
            let view = self.snapshot.vms.iter().find(|view| view.id == vm.id);
            let moves = self.snapshot.migrations.iter().filter(|m| m.vm == vm.id && m.phase == "done").count();
            lines.push(VmLine {
                name: vm.name.clone(),
                tenant: vm.tenant.clone(),
                host: view.and_then(|view| view.host.as_ref()).map(ToString::to_string),
                moves,
                pages: stats.pages,
                page_errors: stats.errors.max(ticks.errors),
                reboots: ticks.reboots,
                heard_twice: ticks.twice,
                longest_silence_ms: ticks.longest_gap_ms,
            });
        }
        let hosts = self.snapshot.hosts.iter().map(|host| HostLine {
            name: host.id.to_string(),
            cpu_millis: host.capacity.map_or(0, |capacity| capacity.cpu_millis),
            memory_mib: host.capacity.map_or(0, |capacity| capacity.memory_mib),
            accelerator: host
                .facts
                .as_ref()
                .map_or("unknown".to_owned(), |facts| format!("{:?}", facts.accelerator).to_lowercase()),
        });
        let mut migrations: Vec<_> = self.snapshot.migrations.iter().collect();
        migrations.sort_by_key(|migration| migration.id);
        Ok(Summary {
            hosts: hosts.collect(),
            memory_intact: lines.iter().all(|vm| vm.page_errors == 0 && vm.reboots == 0 && vm.pages > 0),
            ran_twice: lines.iter().filter(|vm| vm.heard_twice > 0).count(),
            vms: lines,
            phases,
            hotspot: self.hotspot,
            migrations: migrations.into_iter().map(MigrationLine::from).collect(),
            leftovers: Default::default(),
        })
    }
}

/// What a host's vms want, as a share of what it has.
fn wanted(host: &HostView) -> Option<f64> {
    if host.state != HostState::Up {
        return None;
    }
    let share = Ratio(host.load?.cpu_wanted_millis as f64 / host.capacity?.cpu_millis.max(1) as f64);
    Some(share.0)
}

/// What all vms want, as a share of what the hosts that are up have.
fn wanted_of_pool(hosts: &[HostView]) -> f64 {
    let up = hosts.iter().filter(|host| host.state == HostState::Up);
    let of = |host: &HostView| Some((host.load?.cpu_wanted_millis, host.capacity?.cpu_millis));
    let (wanted, capacity) = up.filter_map(of).fold((0, 0), |sum, host| (sum.0 + host.0, sum.1 + host.1));
    wanted as f64 / capacity.max(1) as f64
}

fn most_vms(hosts: &[HostView]) -> Option<&HostView> {
    hosts.iter().filter(|host| host.state == HostState::Up && !host.vms.is_empty()).max_by_key(|host| host.vms.len())
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}
