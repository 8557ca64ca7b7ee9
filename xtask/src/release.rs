//! Everything from a fresh checkout to a program that runs on a release build: the demo, a bench.

use crate::{guest_image, run, setup};
use anyhow::{Context, Error, Result};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

const BUILD: [&str; 8] = ["build", "--release", "--locked", "-p", "drover", "-p", "drover-lab", "--bins"];
const PROGRAMS: &str = "target/release";

/// Becomes the program, so that its exit status is ours and Ctrl-C reaches it alone.
pub fn become_program(root: &Path, program: &str, args: &[String]) -> Result<ExitCode> {
    setup::run()?;
    println!("{program}: building");
    run::passed(run::cargo().current_dir(root).args(BUILD), "mend what the compiler says above")?;
    guest_image::build(root)?;
    become_built(root, program, args)
}

/// The same for a program that needs no package of the system and no guest.
pub fn become_lone_program(root: &Path, packages: &[&str], program: &str, args: &[String]) -> Result<ExitCode> {
    println!("{program}: building");
    let mut build = run::cargo();
    build.current_dir(root).args(["build", "--release", "--locked", "--bins"]);
    for package in packages {
        build.args(["-p", package]);
    }
    run::passed(&mut build, "mend what the compiler says above")?;
    become_built(root, program, args)
}

fn become_built(root: &Path, program: &str, args: &[String]) -> Result<ExitCode> {
    let problem = Command::new(root.join(PROGRAMS).join(program)).args(args).exec();
    Err(Error::new(problem)).context(format!("can't start {PROGRAMS}/{program}"))
}
