//! The order of things: workload by workload, link by link, round by round, side by side.

use super::arguments::NetworkKind;
use super::bars::GIVEN_UP_AFTER_S;
use super::clients::site::Site;
use super::managed::{self, Managed};
use super::moves::{Cell, Control, ControlKind, Move, Spread};
use super::noise::Listener;
use super::site_network::SiteNetwork;
use super::stock::{Stock, StockHost, StockVm};
use super::subject::{Subject, Vm};
use super::workloads::{Link, SideName, Workload};
use super::{Report, bars, make_disk};
use anyhow::{Result, ensure};
use drover_lab::cluster::ClusterOptions;
use drover_lab::config::HostSize;
use drover_lab::net::{self, HOST_BRIDGE, HostNumber, LabNet};
use drover_lab::vms::GuestImage;
use drover_lab::{Lab, LabOptions, LabOutcome, process};
use drover_model::HostId;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The two that vms move between, and the clients'. No quota binds: what slows a guest is what runs.
const HOSTS: [HostSize; 3] = [HostSize { cpu_millis: 2_000, memory_mib: 1_024 }; 3];
/// A move that takes longer is given up and counts as not completed.
const MOVE_WAIT_MAX: Duration = Duration::from_secs(GIVEN_UP_AFTER_S);
/// Of each kind, for each workload, link and side.
const CONTROLS: u32 = 3;
/// A control at rest lasts as long.
const REST: Duration = Duration::from_secs(1);
/// Where no move of a side was completed, its controls stand still for so long: QEMU's default downtime limit.
const PAUSE_DEFAULT: Duration = Duration::from_millis(300);
const STOCK_VM_NUMBER: u8 = 2;

#[derive(Debug, Clone)]
pub struct Options {
    pub workloads: Vec<Workload>,
    pub links: Vec<Link>,
    pub sides: Vec<SideName>,
    pub rounds: u32,
    /// The whole run.
    pub limit: Duration,
    pub stock_memory_short: bool,
    pub network: NetworkKind,
}

/// Builds the cluster, measures, and removes it.
pub fn measure(options: &Options) -> Result<Report> {
    let lab = LabOptions {
        kind: "bench",
        sweep_kept: false,
        cluster: ClusterOptions {
            hosts: HOSTS.to_vec(),
            policy: managed::policy(),
            drover: process::programs_dir()?.join("drover"),
            power_switch: None,
        },
    };
    println!("building a cluster of {} hosts", HOSTS.len());
    let (report, kept) = drover_lab::run(lab, async |lab| Bench::prepare(lab, options).await?.run(lab).await)?;
    if let LabOutcome::No { leftovers } = kept
        && !leftovers.is_empty()
    {
        eprintln!("clean-up is not complete, the next lab will try again: {leftovers:?}");
    }
    Ok(report)
}

struct Bench<'a> {
    options: &'a Options,
    until: Instant,
    net: LabNet,
    site: Site,
    image: GuestImage,
    network: SiteNetwork,
    hosts: [HostId; 2],
    stock_hosts: [StockHost; 2],
    stock_dir: PathBuf,
    boots: u32,
    moves: Vec<Move>,
    controls: Vec<Control>,
    notes: Vec<String>,
    complete: bool,
}

impl<'a> Bench<'a> {
    async fn prepare(lab: &Lab, options: &'a Options) -> Result<Self> {
        let until = Instant::now() + options.limit;
        let [first, second, clients] = lab.cluster.hosts() else { anyhow::bail!("the cluster has three hosts") };
        let net = LabNet::new(lab.place().namespace_prefix(), HOSTS.len())?;
        let mut addressed = Vec::new();
        for (number, host) in numbers().zip(lab.cluster.hosts()) {
            let namespace = net.host(number);
            let address = bridge_address(number);
            namespace.ip(&["addr", "add", &format!("{address}/24"), "dev", HOST_BRIDGE])?;
            addressed.push(StockHost { name: host.to_string(), namespace, address });
        }
        let site = Site::start(&addressed[2].namespace)?;
        let image = GuestImage::find()?;
        let client = lab.cluster.client();
        lab.cluster.create_tenant(managed::TENANT).await?;
        let disk = lab.place().file("bench-disk.qcow2");
        make_disk(&disk)?;
        managed::upload(client, &image, &disk, &options.workloads).await?;
        let network = SiteNetwork::make(lab, options.network, clients).await?;
        Ok(Self {
            options,
            until,
            net,
            site,
            image,
            network,
            hosts: [first.clone(), second.clone()],
            stock_hosts: [addressed[0].clone(), addressed[1].clone()],
            stock_dir: lab.place().file("stock"),
            boots: 0,
            moves: Vec::new(),
            controls: Vec::new(),
            notes: Vec::new(),
            complete: true,
        })
    }

    async fn run(mut self, lab: &Lab) -> Result<Report> {
        for workload in self.options.workloads.clone() {
            if let Err(problem) = self.workload(lab, workload).await {
                // One workload that can't be measured does not take the others' figures with it.
                self.missed(format!("{workload} was not measured to its end: {problem:#}"));
            }
        }
        Ok(self.report())
    }

    fn missed(&mut self, note: String) {
        println!("{note}");
        self.notes.push(note);
        self.complete = false;
    }

    fn out_of_time(&self) -> bool {
        Instant::now() > self.until
    }

    async fn workload(&mut self, lab: &Lab, workload: Workload) -> Result<()> {
        self.shape(Link::Gigabit)?;
        let mut stock = self.boot(lab, workload, SideName::Stock).await?;
        let mut managed = None;
        if self.options.sides.contains(&SideName::Drover) {
            managed = Some(self.boot(lab, workload, SideName::Drover).await?);
        }
        for link in self.options.links.clone() {
            self.shape(link)?;
            for round in 1..=self.options.rounds {
                let stock_first = round % 2 == 1;
                for turn in [stock_first, !stock_first] {
                    if self.out_of_time() {
                        self.missed(format!("out of time at {workload} {link}, round {round}"));
                        break;
                    }
                    if turn && self.options.sides.contains(&SideName::Stock) {
                        stock = self.turn(lab, stock, workload, link, round).await?;
                    } else if !turn && let Some(vm) = managed.take() {
                        managed = Some(self.turn(lab, vm, workload, link, round).await?);
                    }
                }
            }
            if !self.out_of_time() {
                self.controls(&stock, workload, link).await?;
            }
        }
        stock.end().await?;
        match managed {
            Some(managed) => managed.end().await,
            None => Ok(()),
        }
    }

    fn shape(&self, link: Link) -> Result<()> {
        numbers().try_for_each(|number| self.net.shape(number, link.speed()))
    }

    async fn boot(&mut self, lab: &Lab, workload: Workload, side: SideName) -> Result<Subject> {
        println!("{workload}: booting the {side} vm");
        self.boots += 1;
        let (vm, address) = match side {
            SideName::Stock => {
                let (address, cidr) = net::vm_address(STOCK_VM_NUMBER);
                let short_memory = self.options.stock_memory_short;
                let vm = StockVm { image: &self.image, workload, address: cidr, short_memory };
                let dir = self.stock_dir.join(self.boots.to_string());
                (Vm::Stock(Stock::boot(self.stock_hosts.clone(), &dir, &vm).await?), address)
            }
            SideName::Drover => {
                let vm = Managed::boot(lab, &self.hosts, &self.network, workload).await?;
                let address = vm.address;
                (Vm::Managed(vm), address)
            }
        };
        Subject::new(vm, address, &self.site, workload).await
    }

    /// There and back. A guest that does not answer any more is replaced by a new one.
    async fn turn(
        &mut self,
        lab: &Lab,
        mut subject: Subject,
        workload: Workload,
        link: Link,
        round: u32,
    ) -> Result<Subject> {
        let side = subject.side();
        subject.wake(&self.site).await?;
        for _ in 0..2 {
            let measured = subject.measure_move(&self.site, link, round, MOVE_WAIT_MAX).await?;
            println!("{}", line(&measured));
            let (completed, answers) = (measured.outcome.completed, measured.memory_intact.is_some());
            self.moves.push(measured);
            if !answers {
                println!("{workload} {link} {side}: the guest does not answer any more; booting another");
                subject.end().await?;
                return self.boot(lab, workload, side).await;
            }
            if !completed {
                break;
            }
        }
        subject.rest(&self.site).await?;
        Ok(subject)
    }

    async fn controls(&mut self, stock: &Subject, workload: Workload, link: Link) -> Result<()> {
        stock.wake(&self.site).await?;
        if let Vm::Stock(stock) = &stock.vm {
            stock.prepare_to_forget().await?;
        }
        for like in self.options.sides.clone() {
            let downtimes = self.moves.iter().filter(|m| (m.workload, m.link, m.side) == (workload, link, like));
            let downtime = Spread::of(downtimes.filter_map(|m| m.outcome.downtime_ms));
            let length = downtime.map_or(PAUSE_DEFAULT, |spread| Duration::from_secs_f64(spread.median / 1_000.0));
            for _ in 0..CONTROLS {
                for kind in [ControlKind::Rest, ControlKind::Pause, ControlKind::ColdPause] {
                    let control = self.control(stock, workload, link, like, kind, length).await?;
                    println!(
                        "{workload} {link} like {like}: {}: stood still {:.0} ms, gap {:.0} ms",
                        kind.word(),
                        control.stood_still_ms,
                        control.seen.worst_gap_ms
                    );
                    self.controls.push(control);
                }
            }
        }
        if let Vm::Stock(stock) = &stock.vm {
            stock.done_forgetting().await?;
        }
        stock.rest(&self.site).await
    }

    async fn control(
        &self,
        subject: &Subject,
        workload: Workload,
        link: Link,
        like: SideName,
        kind: ControlKind,
        length: Duration,
    ) -> Result<Control> {
        ensure!(subject.clients.settled(REST * 10).await, "the clients are not served though the vm stays where it is");
        let Vm::Stock(stock) = &subject.vm else { anyhow::bail!("controls are taken of the stock vm") };
        let listener = Listener::start();
        subject.clients.open_window();
        let stood_still = match kind {
            ControlKind::Rest => {
                tokio::time::sleep(REST).await;
                Duration::ZERO
            }
            ControlKind::Pause => stock.pause(length).await?,
            ControlKind::ColdPause => stock.pause_and_forget(length).await?,
        };
        let stood_still_ms = stood_still.as_secs_f64() * 1_000.0;
        subject.clients.settled(REST * 10).await;
        let seen = subject.clients.close_window().await;
        Ok(Control { workload, link, kind, like, stood_still_ms, seen, noise: listener.heard() })
    }

    fn report(mut self) -> Report {
        let mut cells = Vec::new();
        for workload in Workload::ALL {
            for link in Link::ALL {
                let of = |side| Cell::of(workload, link, side, &self.moves, &self.controls);
                cells.extend(SideName::ALL.into_iter().filter_map(of));
            }
        }
        self.notes.extend(self.remarks(&cells));
        Report {
            bench: "migration",
            rounds: self.options.rounds,
            complete: self.complete,
            network: self.network.kind,
            stock_memory_short: self.options.stock_memory_short,
            bars: bars::judge(&cells, &self.moves),
            cells,
            notes: self.notes,
            moves: self.moves,
            controls: self.controls,
        }
    }

    fn remarks(&self, cells: &[Cell]) -> Vec<String> {
        let mut remarks = vec![format!("The vms of drover are on its {} network.", self.network.kind)];
        let steal = cells.iter().map(|cell| cell.steal_percent_max).fold(0.0, f64::max);
        let rest = Spread::of(cells.iter().filter_map(|cell| Some(cell.rest_gap_ms?.median)));
        let runnable = Spread::of(cells.iter().map(|cell| cell.runnable_mean));
        remarks.push(format!(
            "Noise: with nothing done to the vm its clients' worst gap in {} s was {} (medians of the cells); \
             {} threads wanted to run on {} cores while vms moved; at most {steal:.1} % of the machine was taken by others.",
            REST.as_secs(),
            rest.map_or("not measured".to_owned(), |gap| format!("{:.0} to {:.0} ms", gap.min, gap.max)),
            runnable.map_or("-".to_owned(), |mean| format!("{:.1} to {:.1}", mean.min, mean.max)),
            std::thread::available_parallelism().map_or(0, usize::from),
        ));
        if !self.options.stock_memory_short {
            remarks.push(
                "Stock QEMU has its guest's memory at a plain size, at which QEMU 7.2 under TCG loses writes \
                 (docs/decisions/0006); --stock-memory short gives it drover's."
                    .to_owned(),
            );
        }
        remarks
    }
}

fn numbers() -> impl Iterator<Item = HostNumber> {
    (1..=HOSTS.len()).filter_map(HostNumber::new)
}

/// A host's own address on the provider network: beyond those of vms.
fn bridge_address(number: HostNumber) -> IpAddr {
    let IpAddr::V4(management) = number.address() else { return number.address() };
    let [_, _, _, last] = management.octets();
    IpAddr::V4(Ipv4Addr::new(10, 78, 0, 220 + last - 10))
}

fn line(measured: &Move) -> String {
    let Move { workload, link, side, round, from, to, outcome, seen, .. } = measured;
    let ms = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.0}"));
    let intact = match measured.memory_intact {
        Some(true) => "intact",
        Some(false) => "DAMAGED",
        None => "guest LOST",
    };
    let end = match &outcome.why {
        Some(why) => format!("NOT COMPLETED ({why})"),
        None => format!("{} ms, downtime {} ms", ms(outcome.total_ms), ms(outcome.downtime_ms)),
    };
    format!(
        "{workload} {link} {side} {round} {from} -> {to}: {end}; gap {:.0} ms, lost {}, twice {}, reset {}; {intact}",
        seen.worst_gap_ms,
        seen.packets_lost,
        seen.packets_duplicated,
        seen.connections_reset + seen.requests_unanswered
    )
}
