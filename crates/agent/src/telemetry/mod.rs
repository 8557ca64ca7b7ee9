//! Load, once a second: what each vm and the host used, and wanted.
//!
//! Cheap by construction: the files that are read each second stay open, one buffer is used for all of them, no process
//! is started, and QEMU itself is asked for its disk counters only now and then, and only where there is a disk.

mod parse;
mod saturation;
mod vm_meter;

pub use saturation::Meter;
pub use vm_meter::{VmSubject, guest_holds};

use crate::clock::now_ms;
use crate::net::is_own;
use drover_api::agent::Load;
use drover_model::load::{HostSample, VmSample};
use drover_model::{Bytes, CpuMillis, Ratio, TimeMs, VmId};
use drover_qemu::Machine;
use saturation::Saturation;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use vm_meter::{VmMeter, per_second};

const NET_DEV: &str = "/proc/net/dev";
const HOST_PRESSURE: &str = "/proc/pressure/memory";
/// Longest kernel file read: some 120 bytes for each network interface.
const FILE_BYTES_MAX: usize = 256 << 10;
const READ_STEP: usize = 4096;

/// A vm that can be measured now.
pub struct Measurable {
    pub vm: VmId,
    pub subject: VmSubject,
    /// Given for vms with a disk only.
    pub disk: Option<Machine>,
    /// Where it was asked for, and still stands.
    pub dirty_rate: Option<Bytes>,
}

/// The newest load and when it was measured.
pub type Newest = Option<(TimeMs, Load)>;

#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    pub sample_every: Duration,
    pub disk_sample_every: Duration,
    /// Memory pressure of this host's own group; the machine's where there is none.
    pub pressure_file: Option<PathBuf>,
    /// Their traffic is counted at the interfaces behind them.
    pub bridges: BTreeSet<String>,
    pub page_size: u64,
    pub cpu: Meter,
}

/// Samples until nobody looks at `newest` any more. `vms` is asked once a second.
pub async fn run(config: TelemetryConfig, vms: impl Fn() -> Vec<Measurable>, newest: watch::Sender<Newest>) {
    let mut sampler = Sampler::new(config);
    let mut ticks = tokio::time::interval(sampler.config.sample_every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = newest.closed() => return,
        }
        let vms = vms();
        sampler.read_disks(&vms).await;
        let load = sampler.sample(&vms, Instant::now());
        newest.send_replace(load.map(|load| (now_ms(), load)));
    }
}

struct Sampler {
    config: TelemetryConfig,
    meters: BTreeMap<VmId, VmMeter>,
    disks: BTreeMap<VmId, Disk>,
    disks_read_at: Option<Instant>,
    net_dev: Option<File>,
    pressure: Option<File>,
    saturation: Saturation,
    host_net: Option<(Instant, u64, u64)>,
    text: String,
    net_text: String,
}

/// Disk counters at the last reading, and what they came to since the one before.
#[derive(Debug, Clone, Copy, Default)]
struct Disk {
    operations: u64,
    time: Duration,
    recent_operations: u64,
    recent_time: Duration,
}

impl Disk {
    fn read(before: Option<Self>, operations: u64, time: Duration) -> Self {
        let before = before.unwrap_or(Self { operations, time, ..Self::default() });
        Self {
            operations,
            time,
            recent_operations: operations.saturating_sub(before.operations),
            recent_time: time.saturating_sub(before.time),
        }
    }

    fn latency_us(operations: u64, time: Duration) -> u64 {
        time.as_micros().checked_div(u128::from(operations)).unwrap_or(0) as u64
    }
}

impl Sampler {
    fn new(config: TelemetryConfig) -> Self {
        let pressure = config.pressure_file.as_deref().unwrap_or(HOST_PRESSURE.as_ref());
        Self {
            pressure: File::open(pressure).ok(),
            net_dev: File::open(NET_DEV).ok(),
            saturation: Saturation::open(config.cpu.clone()),
            config,
            meters: BTreeMap::new(),
            disks: BTreeMap::new(),
            disks_read_at: None,
            host_net: None,
            text: String::new(),
            net_text: String::new(),
        }
    }

    async fn read_disks(&mut self, vms: &[Measurable]) {
        let due = self.disks_read_at.is_none_or(|at| at.elapsed() >= self.config.disk_sample_every);
        if !due {
            return;
        }
        self.disks_read_at = Some(Instant::now());
        let mut read = BTreeMap::new();
        for (vm, machine) in vms.iter().filter_map(|one| Some((&one.vm, one.disk.as_ref()?))) {
            // A QEMU that does not answer within a sample is asked again next time.
            let Ok(Ok(stats)) = tokio::time::timeout(self.config.sample_every, machine.block_stats()).await else {
                continue;
            };
            read.insert(vm.clone(), Disk::read(self.disks.get(vm).copied(), stats.operations(), stats.time));
        }
        self.disks = read;
    }

    /// `None` until there are two readings.
    fn sample(&mut self, vms: &[Measurable], now: Instant) -> Option<Load> {
        self.net_text.clear();
        if let Some(file) = &self.net_dev
            && read_at_start(file, &mut self.net_text).is_err()
        {
            self.net_text.clear();
        }
        let samples = self.sample_vms(vms, now);
        let (net_rx, net_tx) = self.host_net(now)?;
        let host = HostSample {
            cpu_used: samples.values().map(|vm| vm.cpu_used).sum::<CpuMillis>(),
            cpu_wanted: samples.values().map(|vm| vm.cpu_wanted).sum::<CpuMillis>(),
            memory_used: samples.values().map(|vm| vm.memory_used).sum::<Bytes>(),
            memory_pressure: self.memory_pressure(),
            net_rx,
            net_tx,
            disk_latency_us: Disk::latency_us(
                self.disks.values().map(|disk| disk.recent_operations).sum(),
                self.disks.values().map(|disk| disk.recent_time).sum(),
            ),
        };
        Some(Load { host, vms: samples })
    }

    fn sample_vms(&mut self, vms: &[Measurable], now: Instant) -> BTreeMap<VmId, VmSample> {
        self.meters.retain(|vm, meter| vms.iter().any(|one| one.vm == *vm && one.subject == *meter.subject()));
        let saturation = self.saturation.sample(now, &mut self.text);
        let mut samples = BTreeMap::new();
        for Measurable { vm, subject, dirty_rate, .. } in vms {
            if !self.meters.contains_key(vm) {
                match VmMeter::open(subject.clone(), self.config.page_size) {
                    Ok(meter) => self.meters.insert(vm.clone(), meter),
                    // Its process ended a moment ago.
                    Err(_) => continue,
                };
            }
            let Some(meter) = self.meters.get_mut(vm) else { continue };
            let tap = subject.tap.as_deref().and_then(|tap| {
                let interface = parse::interfaces(&self.net_text).find(|interface| interface.name == tap)?;
                Some((interface.received, interface.sent))
            });
            let latency = self.disks.get(vm).map_or(0, |d| Disk::latency_us(d.recent_operations, d.recent_time));
            match meter.sample(now, &mut self.text, saturation, tap, latency) {
                Ok(Some(sample)) => {
                    samples.insert(vm.clone(), VmSample { dirty_rate: *dirty_rate, ..sample });
                }
                Ok(None) => {}
                Err(_) => {
                    self.meters.remove(vm);
                }
            }
        }
        samples
    }

    fn host_net(&mut self, now: Instant) -> Option<(Bytes, Bytes)> {
        let counted = |name: &str| name != "lo" && !is_own(name) && !self.config.bridges.contains(name);
        let (received, sent) = parse::interfaces(&self.net_text)
            .filter(|interface| counted(interface.name))
            .fold((0, 0), |(received, sent), one| (received + one.received, sent + one.sent));
        let (at, received_before, sent_before) = self.host_net.replace((now, received, sent))?;
        let elapsed = now.duration_since(at);
        Some((per_second(received_before, received, elapsed), per_second(sent_before, sent, elapsed)))
    }

    fn memory_pressure(&mut self) -> Ratio {
        let Some(file) = &self.pressure else { return Ratio(0.0) };
        match read_at_start(file, &mut self.text) {
            Ok(()) => parse::some_pressure(&self.text).unwrap_or_default(),
            Err(_) => Ratio(0.0),
        }
    }
}

/// Reads a kernel file from its start into `text`, without opening it again.
fn read_at_start(file: &File, text: &mut String) -> io::Result<()> {
    let mut bytes = std::mem::take(text).into_bytes();
    let mut filled = 0;
    loop {
        if bytes.len() < filled + READ_STEP {
            bytes.resize(filled + READ_STEP, 0);
        }
        let count = file.read_at(&mut bytes[filled..], filled as u64)?;
        filled += count;
        if count == 0 {
            break;
        }
        if filled > FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
    bytes.truncate(filled);
    *text = String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> TelemetryConfig {
        TelemetryConfig {
            sample_every: Duration::from_secs(1),
            disk_sample_every: Duration::from_secs(5),
            pressure_file: None,
            bridges: BTreeSet::new(),
            page_size: 4096,
            cpu: Meter::Machine,
        }
    }

    #[test]
    fn a_host_sample_is_the_sum_of_its_vms() {
        let mut sampler = Sampler::new(config());
        let pid = std::process::id();
        let vms: Vec<Measurable> = ["vm-a", "vm-b"]
            .map(|vm| Measurable {
                vm: vm.parse().unwrap(),
                subject: VmSubject { pid, vcpu_threads: vec![pid], memory: Bytes::mib(1), tap: None },
                disk: None,
                dirty_rate: (vm == "vm-b").then_some(Bytes::MIB),
            })
            .into();
        let start = Instant::now();
        assert_eq!(sampler.sample(&vms, start), None);
        let load = sampler.sample(&vms, start + Duration::from_secs(1)).unwrap();
        assert_eq!(load.vms.len(), 2);
        assert_eq!(load.host.memory_used, Bytes::mib(2));
        let dirty_rates: Vec<_> = load.vms.values().map(|vm| vm.dirty_rate).collect();
        assert_eq!(dirty_rates, [None, Some(Bytes::MIB)], "what was asked for stands in that vm's sample");
        let gone = sampler.sample(&[], start + Duration::from_secs(2)).unwrap();
        assert_eq!((gone.vms.len(), gone.host.memory_used), (0, Bytes(0)));
    }

    #[test]
    fn disk_latency_is_time_over_requests_between_two_readings() {
        let first = Disk::read(None, 100, Duration::from_millis(900));
        assert_eq!(Disk::latency_us(first.recent_operations, first.recent_time), 0);
        let second = Disk::read(Some(first), 110, Duration::from_millis(920));
        assert_eq!(Disk::latency_us(second.recent_operations, second.recent_time), 2000);
    }

    #[test]
    fn a_file_is_read_again_from_its_start() {
        let file = File::open("/proc/self/statm").unwrap();
        let mut text = String::new();
        for _ in 0..2 {
            read_at_start(&file, &mut text).unwrap();
            assert!(parse::resident_pages(&text).is_some(), "{text:?}");
        }
    }
}
