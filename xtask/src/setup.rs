//! `cargo xtask setup`: the Debian packages that are needed and missing.
//!
//! As root they are installed; otherwise the command to do so is printed and nothing is changed.

use crate::packages::{self, Installed, NEEDED, Needed};
use crate::run;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// How long apt waits for another package tool to finish, in seconds.
const LOCK_WAIT: &str = "DPkg::Lock::Timeout=120";

/// Something has to be put right by a person with more rights than ours.
#[derive(Debug)]
pub struct NotSetUp(String);

impl std::fmt::Display for NotSetUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotSetUp {}

pub fn run() -> Result<()> {
    let installed = installed_packages()?;
    let missing: Vec<&Needed> =
        NEEDED.iter().filter(|needed| !installed.iter().any(|i| i.package == needed.package)).collect();
    if missing.is_empty() {
        println!("setup: all {} Debian packages are there", NEEDED.len());
        return Ok(());
    }
    for Needed { package, because } in &missing {
        println!("setup: missing package {package} ({because})");
    }
    let names: Vec<&str> = missing.iter().map(|needed| needed.package).collect();
    if !is_root()? {
        let command = run::shown(&install_command(&names, &too_new_for(&names, &installed)?));
        return Err(NotSetUp(format!(
            "packages are missing and installing them needs root; run this and try again:\n\n    \
             sudo apt-get update && sudo {command}\n"
        ))
        .into());
    }
    install(&names, &installed)
}

pub fn is_root() -> Result<bool> {
    Ok(run::stdout(Command::new("id").arg("-u"), "needed to tell whether we are root")?.trim() == "0")
}

fn installed_packages() -> Result<Vec<Installed>> {
    let said = run::stdout(
        Command::new("dpkg-query").args(["-W", "-f", packages::QUERY_FORMAT]),
        "is the package database whole? `dpkg --audit` tells",
    );
    let names: Vec<_> = NEEDED.iter().map(|needed| needed.package).collect();
    let said = said.with_context(|| {
        format!("drover is set up on Debian 12; elsewhere install what corresponds to: {}", names.join(" "))
    })?;
    Ok(packages::installed(&said))
}

/// With the package lists that are there if they know everything, else, or if that fails, with fresh ones.
fn install(names: &[&str], installed: &[Installed]) -> Result<()> {
    let mut updated = false;
    if !all_have_candidates(names)? {
        update()?;
        updated = true;
        if !all_have_candidates(names)? {
            bail!(
                "apt knows no version of some of: {}; add Debian 12's main archive to /etc/apt/sources.list",
                names.join(" ")
            );
        }
    }
    match install_once(names, installed) {
        Err(problem) if !updated => {
            println!("setup: {problem:#}\nsetup: once more with fresh package lists");
            update()?;
            install_once(names, installed)
        }
        done => done,
    }
}

fn all_have_candidates(names: &[&str]) -> Result<bool> {
    for name in names {
        if candidate(name)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn candidate(package: &str) -> Result<Option<String>> {
    let policy = run::stdout(Command::new("apt-cache").args(["policy", package]), "repair apt's sources first")?;
    Ok(packages::candidate(&policy).map(str::to_owned))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", LOCK_WAIT]);
    command
}

fn update() -> Result<()> {
    println!("setup: apt-get update");
    run::passed(
        apt_get().args(["update", "-q"]),
        "see the message above: the archive must be reachable and /etc/apt/sources.list in order",
    )
}

fn install_once(names: &[&str], installed: &[Installed]) -> Result<()> {
    let mut command = install_command(names, &too_new_for(names, installed)?);
    println!("setup: {}", run::shown(&command));
    run::passed(&mut command, "see the message above; `apt-get install -f` repairs interrupted installations")
}

/// `taken_back` are packages that have to go back to an older version, as `package=version`.
fn install_command(names: &[&str], taken_back: &[String]) -> Command {
    let mut command = apt_get();
    command.args(["install", "-q", "-y", "--no-install-recommends"]);
    if !taken_back.is_empty() {
        command.arg("--allow-downgrades");
    }
    command.args(names).args(taken_back);
    command
}

/// Packages of QEMU's source that are installed in a newer version (from backports) than the one
/// qemu-system-x86 is offered in: the two can't be mixed, so these go back, as `package=version`.
fn too_new_for(names: &[&str], installed: &[Installed]) -> Result<Vec<String>> {
    const QEMU: &str = "qemu-system-x86";
    let mut back = Vec::new();
    if !names.contains(&QEMU) {
        return Ok(back);
    }
    let Some(offered) = candidate(QEMU)? else { return Ok(back) };
    for Installed { package, version, .. } in installed.iter().filter(|i| i.source == "qemu") {
        let newer = Command::new("dpkg").args(["--compare-versions", version, "gt", &offered]).status();
        if !newer.context("can't run dpkg")?.success() {
            continue;
        }
        let madison = run::stdout(Command::new("apt-cache").args(["madison", package]), "repair apt's sources first")?;
        if let Some(older) = packages::version_like(&madison, &offered) {
            println!("setup: {package} {version} does not go with {QEMU} {offered}: taking it back to {older}");
            back.push(format!("{package}={older}"));
        }
    }
    Ok(back)
}
