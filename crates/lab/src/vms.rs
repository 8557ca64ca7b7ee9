//! The lab's vms: the image they are made from, creating them through the API, and the QEMU
//! processes that run them.

use crate::cluster::Cluster;
use crate::config::NETWORK;
use crate::limits::GUESTS_UP_WAIT_MAX;
use crate::place::Place;
use crate::probe::{GuestLoad, TICK_SINK, guest_stats, load_guest};
use crate::{net, process};
use anyhow::{Context, Result, ensure};
use drover_api::client::Client;
use drover_api::v1::{CreateImage, CreateVm, ImagePart, VmView};
use drover_model::intent::Vm;
use drover_model::{HostId, VmId};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// The image's name in the lab.
pub const IMAGE: &str = "guest-load";

/// Of the taps that agents make for vms.
pub const TAP_PREFIX: &str = "dv";

/// `tsc=reliable` and `no_timer_check` keep the guest from judging its clocks by how it is scheduled:
/// a starved guest would find them unreliable and go over to slower ones.
pub const KERNEL_CMDLINE: &str = "console=ttyS0 quiet panic=5 mitigations=off no_timer_check tsc=reliable";

/// Files built by `cargo xtask guest-image`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

impl GuestImage {
    /// Beside the directories of the programs.
    pub fn find() -> Result<Self> {
        let programs = process::programs_dir()?;
        let dir = programs.parent().unwrap_or(&programs).join("guest");
        let image = Self { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd") };
        ensure!(
            image.kernel.exists() && image.initrd.exists(),
            "there is no guest image in {}: run `cargo xtask guest-image`",
            dir.display()
        );
        Ok(image)
    }

    /// Uploads it as [`IMAGE`].
    pub async fn upload(&self, client: &Client) -> Result<()> {
        for (part, path) in [(ImagePart::Kernel, &self.kernel), (ImagePart::Initrd, &self.initrd)] {
            client
                .stage_image_file(IMAGE, part, path, |_| {})
                .await
                .with_context(|| format!("can't upload {}", path.display()))?;
        }
        let files = vec![ImagePart::Kernel, ImagePart::Initrd];
        let image = CreateImage {
            name: IMAGE.to_owned(),
            cmdline: KERNEL_CMDLINE.to_owned(),
            files,
            labels: Default::default(),
        };
        client.create_image(&image).await.context("can't make the image")?;
        Ok(())
    }
}

/// A vm to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVm {
    pub tenant: String,
    pub name: String,
    /// From 1, of this vm alone: its address follows from it.
    pub number: u8,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// Memory that the guest rewrites and verifies.
    pub working_set_mib: u32,
    pub load: GuestLoad,
    pub anti_affinity: Option<String>,
    pub pinned_to: Vec<String>,
}

impl NewVm {
    /// One vcpu, 96 MiB, idle.
    pub fn small(tenant: &str, name: &str, number: u8) -> Self {
        Self {
            tenant: tenant.to_owned(),
            name: name.to_owned(),
            number,
            vcpus: 1,
            memory_mib: 96,
            working_set_mib: 16,
            load: GuestLoad { cpu_percent: 0, dirty_mib_s: 0 },
            anti_affinity: None,
            pinned_to: Vec::new(),
        }
    }

    fn to_request(&self) -> CreateVm {
        let guest_args = [
            ("tick", TICK_SINK.to_string()),
            ("ws-mib", self.working_set_mib.to_string()),
            ("cpu", self.load.cpu_percent.to_string()),
            ("dirty-mib-s", self.load.dirty_mib_s.to_string()),
        ];
        CreateVm {
            name: self.name.clone(),
            tenant: Some(self.tenant.clone()),
            image: IMAGE.to_owned(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            network: Some(NETWORK.to_owned()),
            address: Some(net::vm_address(self.number).1),
            anti_affinity: self.anti_affinity.clone(),
            pinned_to: self.pinned_to.clone(),
            guest_args: guest_args.map(|(key, value)| (key.to_owned(), value)).into(),
            ..CreateVm::default()
        }
    }
}

/// A vm that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabVm {
    pub id: VmId,
    pub tenant: String,
    pub name: String,
    pub address: IpAddr,
}

impl LabVm {
    pub async fn create(client: &Client, new: &NewVm) -> Result<Self> {
        let made =
            client.of::<Vm>().create(&new.to_request()).await.with_context(|| format!("can't make vm {}", new.name))?;
        let (address, _) = net::vm_address(new.number);
        Ok(Self { id: made.id, tenant: new.tenant.clone(), name: new.name.clone(), address })
    }

    pub async fn view(&self, client: &Client) -> Result<VmView> {
        client.of::<Vm>().get(self.id.as_str()).await.with_context(|| format!("can't read vm {}", self.name))
    }

    /// Whether an interface of this name is its tap: such carry what is random in its id, as far as it fits.
    pub fn is_tap(&self, interface: &str) -> bool {
        let id = self.id.as_str().trim_start_matches("vm-");
        interface.strip_prefix(TAP_PREFIX).is_some_and(|rest| !rest.is_empty() && id.starts_with(rest))
    }

    pub async fn set_load(&self, load: GuestLoad) -> Result<()> {
        load_guest(self.address, load).await.with_context(|| format!("can't set the load of {}", self.name))?;
        Ok(())
    }
}

impl Cluster {
    /// Makes vms and waits until every guest answers.
    pub async fn create_vms(&self, new: &[NewVm]) -> Result<Vec<LabVm>> {
        let mut vms = Vec::with_capacity(new.len());
        for new in new {
            vms.push(LabVm::create(self.client(), new).await?);
        }
        for vm in &vms {
            let what = format!("the guest of {} answers", vm.name);
            self.wait_for(&what, GUESTS_UP_WAIT_MAX, async || Ok(guest_stats(vm.address).await.ok())).await?;
        }
        Ok(vms)
    }
}

/// A QEMU process of the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningVm {
    pub vm: VmId,
    pub host: HostId,
    pub pid: u32,
}

/// While a vm migrates there are two processes of it; the one that receives does not run the guest.
pub fn running(place: &Place) -> Vec<RunningVm> {
    let dir = format!("{}/", place.dir().display());
    let qemus = process::all().into_iter().filter(|seen| seen.program.starts_with("qemu-system-"));
    qemus
        .filter_map(|seen| {
            let (host, vm) = seen.args.iter().find_map(|arg| host_and_vm(arg, &dir))?;
            Some(RunningVm { vm, host, pid: seen.pid })
        })
        .collect()
}

/// How many processes each vm has.
pub fn processes_by_vm(place: &Place) -> BTreeMap<VmId, usize> {
    let mut counts = BTreeMap::new();
    for RunningVm { vm, .. } in running(place) {
        *counts.entry(vm).or_insert(0) += 1;
    }
    counts
}

/// From an argument that names a file below `<lab>/<host>/vms/<vm>/`.
fn host_and_vm(arg: &str, dir: &str) -> Option<(HostId, VmId)> {
    let (_, rest) = arg.split_once(dir)?;
    let mut parts = rest.split('/');
    let host = parts.next()?.parse().ok()?;
    let vms = parts.next()?;
    let vm = parts.next()?.parse().ok()?;
    (vms == "vms").then_some((host, vm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_its_host_and_vm_by_its_sockets() {
        let dir = "/var/tmp/drover-lab/demo-1-1/";
        let arg = format!("socket,id=qmp0,server=on,wait=off,path={dir}h2/vms/vm-abcdefghijkl/qmp.sock");
        let (host, vm) = host_and_vm(&arg, dir).unwrap();
        assert_eq!((host.as_str(), vm.as_str()), ("h2", "vm-abcdefghijkl"));
        assert_eq!(host_and_vm(&format!("{dir}shared/images/guest-load/kernel"), dir), None);
        assert_eq!(host_and_vm("-nodefaults", dir), None);
    }

    #[test]
    fn a_request_carries_what_the_guest_must_know() {
        let mut new = NewVm::small("acme", "web-1", 3);
        new.load = GuestLoad { cpu_percent: 40, dirty_mib_s: 2 };
        let request = new.to_request();
        assert_eq!(request.address.as_deref(), Some("10.78.0.13/24"));
        assert_eq!(request.guest_args["tick"], "10.78.0.1:9000");
        assert_eq!(request.guest_args["cpu"], "40");
    }
}
