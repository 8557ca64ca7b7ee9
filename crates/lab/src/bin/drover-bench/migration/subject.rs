//! A vm with its clients, whoever moves it.

use super::clients::Clients;
use super::clients::site::Site;
use super::managed::Managed;
use super::memory;
use super::moves::{Move, Outcome};
use super::noise::Listener;
use super::stock::Stock;
use super::workloads::{Link, SideName, Workload};
use anyhow::{Context, Result, ensure};
use drover_lab::limits::{GUESTS_UP_WAIT_MAX, POLL};
use drover_lab::probe::{GuestLoad, GuestStats, guest_stats, load_guest, verify_guest};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Clients get what they ask for, before and after a move.
const SERVED_WAIT_MAX: Duration = Duration::from_secs(30);
/// A guest that was moved answers; one whose memory was damaged may never.
const ANSWERS_WAIT_MAX: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub enum Vm {
    Stock(Stock),
    Managed(Managed),
}

#[derive(Debug)]
pub struct Subject {
    pub vm: Vm,
    pub clients: Clients,
    workload: Workload,
    address: IpAddr,
    boot_id: String,
    /// Wrong pages that the guest has told of so far.
    errors: u64,
}

impl Subject {
    /// Waits until the guest answers, and gives it clients, which rest.
    pub async fn new(vm: Vm, address: IpAddr, site: &Site, workload: Workload) -> Result<Self> {
        let stats = answer(site, address, GUESTS_UP_WAIT_MAX).await?;
        let clients = Clients::start(site, address, workload);
        Ok(Self { vm, clients, workload, address, boot_id: stats.boot_id, errors: stats.errors })
    }

    pub fn side(&self) -> SideName {
        match self.vm {
            Vm::Stock(_) => SideName::Stock,
            Vm::Managed(_) => SideName::Drover,
        }
    }

    /// Gives guest and clients something to do, and waits until it goes well.
    pub async fn wake(&self, site: &Site) -> Result<()> {
        self.load(site, self.workload.guest().dirty_mib_s).await?;
        self.clients.ask(true);
        ensure!(
            self.clients.settled(SERVED_WAIT_MAX).await,
            "the clients of the {} vm of {} are not served within {} s",
            self.workload,
            self.side(),
            SERVED_WAIT_MAX.as_secs()
        );
        Ok(())
    }

    pub async fn rest(&self, site: &Site) -> Result<()> {
        self.clients.ask(false);
        self.load(site, 0).await
    }

    async fn load(&self, site: &Site, dirty_mib_s: u32) -> Result<()> {
        let (address, load) = (self.address, GuestLoad { cpu_percent: 0, dirty_mib_s });
        site.run(async move { load_guest(address, load).await }).await.context("can't set the guest's load").map(drop)
    }

    /// Moves the vm to the other host. The clients are asking.
    pub async fn measure_move(&mut self, site: &Site, link: Link, round: u32, limit: Duration) -> Result<Move> {
        let in_use_bytes = memory::in_use(self.pid().await?, self.workload.guest().memory_mib)?;
        let from = self.host().await?;
        let listener = Listener::start();
        self.clients.open_window();
        let began = Instant::now();
        let (to, outcome) = self.migrate(limit).await?;
        let wall_ms = began.elapsed().as_secs_f64() * 1_000.0;
        let clients_served = self.clients.settled(SERVED_WAIT_MAX).await;
        let seen = self.clients.close_window().await;
        let noise = listener.heard();

        let stats = self.verify(site).await;
        let database = match stats {
            Some(_) => self.clients.check().await?,
            None => None,
        };
        let pages_wrong = stats.as_ref().map(|stats| stats.errors.saturating_sub(self.errors));
        self.errors = stats.as_ref().map_or(self.errors, |stats| stats.errors);
        Ok(Move {
            workload: self.workload,
            link,
            side: self.side(),
            round,
            from,
            to,
            outcome,
            wall_ms,
            in_use_bytes: Some(in_use_bytes),
            seen,
            clients_served,
            memory_intact: pages_wrong.map(|wrong| wrong == 0),
            pages_wrong,
            same_boot: stats.map(|stats| stats.boot_id == self.boot_id),
            database,
            noise,
        })
    }

    async fn migrate(&mut self, limit: Duration) -> Result<(String, Outcome)> {
        match &mut self.vm {
            Vm::Managed(managed) => managed.migrate(limit).await,
            Vm::Stock(stock) => {
                let to = stock.other_host().to_owned();
                let done = stock.migrate(limit).await?;
                let outcome = Outcome {
                    completed: done.completed,
                    why: done.why,
                    total_ms: Some(done.total_ms),
                    downtime_ms: done.downtime_ms,
                    transferred_bytes: Some(done.transferred_bytes),
                    rounds: Some(done.rounds),
                    ..Outcome::default()
                };
                Ok((to, outcome))
            }
        }
    }

    async fn pid(&self) -> Result<u32> {
        match &self.vm {
            Vm::Stock(stock) => Ok(stock.pid()),
            Vm::Managed(managed) => managed.pid().await,
        }
    }

    async fn host(&self) -> Result<String> {
        match &self.vm {
            Vm::Stock(stock) => Ok(stock.host().to_owned()),
            Vm::Managed(managed) => Ok(managed.host().await?.to_string()),
        }
    }

    /// What the guest finds when it looks at every page. `None`: it does not answer any more.
    async fn verify(&self, site: &Site) -> Option<GuestStats> {
        let address = self.address;
        let deadline = Instant::now() + ANSWERS_WAIT_MAX;
        while Instant::now() < deadline {
            if let Ok(stats) = site.run(async move { verify_guest(address).await }).await {
                return Some(stats);
            }
            tokio::time::sleep(POLL).await;
        }
        None
    }

    pub async fn end(self) -> Result<()> {
        drop(self.clients);
        match self.vm {
            Vm::Stock(stock) => stock.end(),
            Vm::Managed(managed) => managed.remove().await,
        }
    }
}

async fn answer(site: &Site, address: IpAddr, limit: Duration) -> Result<GuestStats> {
    let deadline = Instant::now() + limit;
    loop {
        match site.run(async move { guest_stats(address).await }).await {
            Ok(stats) => return Ok(stats),
            Err(problem) if Instant::now() > deadline => {
                return Err(problem).with_context(|| format!("guest {address} does not answer after its boot"));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
