//! The image that the vms of the demo and of the end-to-end tests run: Debian's cloud kernel, and an
//! initramfs of busybox, the virtio modules and `guest-load`.
//!
//! Built on every call, which takes moments, and written only where it differs, so files that
//! depend on it stay valid. The same input gives the same bytes.

use crate::cpio::Archive;
use crate::run;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

const BUSYBOX: &str = "/bin/busybox";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the guest needs beyond what the kernel has built in. What these need in turn is added.
/// `button` and `evdev` let the guest notice its power button.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_net", "virtio_blk", "virtio_balloon", "evdev", "button"];

/// Programs that the init script uses.
const APPLETS: [&str; 7] = ["sh", "mount", "insmod", "ip", "sed", "usleep", "poweroff"];

/// The first process. It ends by becoming `guest-load`.
const INIT: &str = r#"#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
insmod_all
ip link set lo up
address=$(sed -n 's/.*drover\.address=\([^ ]*\).*/\1/p' /proc/cmdline)
if [ -n "$address" ]; then
    ip addr add "$address" dev eth0
    ip link set eth0 up
    # What is sent before the link is ready is lost, and asked again only after a second.
    tries=0
    until [ "$carrier" = 1 ] || [ $tries = 100 ]; do
        read carrier </sys/class/net/eth0/carrier
        usleep 10000
        tries=$((tries + 1))
    done
fi
exec /bin/guest-load
"#;

pub struct GuestImage {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

pub fn build(root: &Path) -> Result<GuestImage> {
    let directory = root.join("target/guest");
    fs::create_dir_all(&directory).with_context(|| format!("can't make {}", directory.display()))?;
    let kernel = Kernel::newest()?;
    let guest_load = build_guest_load(root, &directory)?;

    let image = GuestImage { kernel: directory.join("vmlinuz"), initrd: directory.join("initrd") };
    write_if_different(&image.kernel, &read(&kernel.file)?)?;
    write_if_different(&image.initrd, &initramfs(&kernel, &guest_load)?)?;
    Ok(image)
}

struct Kernel {
    file: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    fn newest() -> Result<Self> {
        let boot = Path::new("/boot");
        let names: Vec<String> = fs::read_dir(boot)
            .context("can't read /boot: run `cargo xtask setup`")?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let version = newest_version(&names).context(
            "no Debian cloud kernel in /boot: run `cargo xtask setup`, which installs linux-image-cloud-amd64",
        )?;
        let modules = Path::new("/lib/modules").join(version);
        if !modules.join("modules.dep").exists() {
            bail!("{} is missing: run `depmod {version}` as root", modules.join("modules.dep").display());
        }
        Ok(Self { file: boot.join(format!("vmlinuz-{version}")), modules })
    }
}

/// The highest version among `vmlinuz-<version>-cloud-amd64`, numbers compared as numbers.
fn newest_version(names: &[String]) -> Option<&str> {
    let numbers = |version: &str| -> Vec<u64> {
        version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    names
        .iter()
        .filter_map(|name| name.strip_prefix("vmlinuz-"))
        .filter(|version| version.ends_with("-cloud-amd64"))
        .max_by_key(|version| numbers(version))
}

fn build_guest_load(root: &Path, directory: &Path) -> Result<PathBuf> {
    let cargo_dir = directory.join("cargo");
    run::passed(
        run::cargo()
            .current_dir(root)
            .args(["build", "--quiet", "--locked", "--release", "--target", TARGET, "-p", "guest-load", "--target-dir"])
            .arg(&cargo_dir)
            // It would take precedence.
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols"),
        "the guest's program does not build; mend what the compiler says above",
    )?;
    Ok(cargo_dir.join(TARGET).join("release/guest-load"))
}

fn initramfs(kernel: &Kernel, guest_load: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "proc", "sys", "modules"] {
        archive.directory(directory);
    }
    // The kernel opens it for the first process before that could mount /dev.
    archive.character_device("dev/console", 5, 1);
    let busybox = read(Path::new(BUSYBOX)).context("run `cargo xtask setup`, which installs busybox-static")?;
    archive.file("bin/busybox", 0o755, &busybox);
    for applet in APPLETS {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    let mut insmod_all = String::new();
    let dependencies = read_text(&kernel.modules.join("modules.dep"))?;
    for path in load_order(&MODULES, &dependencies)? {
        let name = path.rsplit('/').next().unwrap_or(path);
        archive.file(&format!("modules/{name}"), 0o644, &read(&kernel.modules.join(path))?);
        insmod_all.push_str(&format!("insmod /modules/{name}\n"));
    }
    archive.file("bin/guest-load", 0o755, &read(guest_load)?);
    archive.file("init", 0o755, INIT.replace("insmod_all\n", &insmod_all).as_bytes());
    Ok(archive.finish())
}

/// The files of these modules and of all they need, each after what it needs. `modules_dep` is
/// depmod's list: `module: what it needs, nearest first`.
fn load_order<'a>(wanted: &[&str], modules_dep: &'a str) -> Result<Vec<&'a str>> {
    let mut order: Vec<&str> = Vec::new();
    for name in wanted {
        let is_it = |path: &str| path.rsplit('/').next().and_then(|file| file.strip_suffix(".ko")) == Some(name);
        let (module, needs) = modules_dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(module, _)| is_it(module))
            .with_context(|| format!("the kernel has no module {name}.ko: use Debian 12's linux-image-cloud-amd64"))?;
        for path in needs.split_ascii_whitespace().rev().chain([module]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("can't read {}", path.display()))
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
}

/// Whole or not at all: somebody may be reading it.
fn write_if_different(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let new = path.with_extension("new");
    fs::write(&new, content)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("can't write {}: is the disk full?", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_cloud_kernel_is_chosen_by_number() {
        let names =
            ["vmlinuz-6.1.0-9-cloud-amd64", "vmlinuz-6.1.0-56-cloud-amd64", "vmlinuz-6.12.0-1-amd64", "System.map"]
                .map(str::to_owned);
        assert_eq!(newest_version(&names), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(newest_version(&names[2..]), None);
    }

    #[test]
    fn modules_load_after_what_they_need_and_once() {
        let modules_dep = "\
kernel/virtio/virtio.ko: kernel/virtio/virtio_ring.ko
kernel/virtio/virtio_ring.ko:
kernel/net/virtio_net.ko: kernel/net/failover.ko kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko
kernel/net/failover.ko:
kernel/net/not_virtio_net.ko:
";
        assert_eq!(
            load_order(&["virtio", "virtio_net"], modules_dep).unwrap(),
            [
                "kernel/virtio/virtio_ring.ko",
                "kernel/virtio/virtio.ko",
                "kernel/net/failover.ko",
                "kernel/net/virtio_net.ko"
            ]
        );
        let error = load_order(&["nvme"], modules_dep).unwrap_err().to_string();
        assert!(error.contains("no module nvme.ko"), "{error}");
    }

    #[test]
    fn a_file_that_would_be_the_same_is_not_written() {
        let path = std::env::temp_dir().join(format!("drover-write-if-different-{}", std::process::id()));
        write_if_different(&path, b"one").unwrap();
        let before = fs::metadata(&path).unwrap();
        write_if_different(&path, b"one").unwrap();
        let same = fs::metadata(&path).unwrap();
        write_if_different(&path, b"two").unwrap();
        let changed = fs::metadata(&path).unwrap();
        fs::remove_file(&path).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((before.ino(), before.mtime_nsec()), (same.ino(), same.mtime_nsec()));
        assert_ne!(before.ino(), changed.ino());
    }
}
