//! The chores of the project: `cargo xtask setup|demo|bench|test|tidy|guest-image`.
//!
//! Builds in seconds and needs nothing installed but the Rust toolchain, so that it can install the rest.

mod bench;
mod cpio;
mod demo;
mod guest_image;
mod packages;
mod release;
mod run;
mod setup;
mod stages;
mod tidy;

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  setup        install the Debian packages that are missing; without root, print the command and stop
  demo [ARGS]  setup, build, and run the demo; ARGS go to it (--headless, --json FILE, --keep, ...)
  bench NAME [ARGS]
               setup, build, and measure; NAME is footprint (what server and agents cost at rest),
               migration (what clients see while a vm moves, beside stock QEMU),
               migration-faults (everything killed in each phase of a migration), forecast (whether
               forecasts' intervals hold what comes, on recorded days), pingpong (whether vms are sent to
               and fro in a week of noisy load), planetlab (policies of consolidation on recorded days),
               prediction (predicted against real migration times), scale (what a round costs as clusters
               grow) or schedule (many migrations against their bound); ARGS go to it (--json FILE;
               footprint: --seconds N; migration: --workload, --link, --side, --rounds N;
               migration-faults: --cell VICTIM/PHASE, --logs DIR; forecast, planetlab: --input PATH...;
               prediction: --input CSV; pingpong, schedule: --seed N; scale: --size NAME, --rounds N)
  test         setup, then every check and every test
  tidy         check the rules of the code base that the compiler does not check
  guest-image  build the image that the demo's and the tests' vms run, into target/guest/
";

/// Exit status for what has to be put right outside the project first, such as a missing package.
const EXIT_NOT_SET_UP: u8 = 2;

fn main() -> ExitCode {
    match dispatch() {
        Ok(code) => code,
        Err(problem) => {
            eprintln!("xtask: {problem:#}");
            if problem.is::<setup::NotSetUp>() { EXIT_NOT_SET_UP.into() } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch() -> Result<ExitCode> {
    let root = workspace_root();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match args.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => bail!("no command given\n\n{USAGE}"),
    };
    match command {
        "demo" => return demo::run(&root, rest),
        "bench" => return bench::run(&root, rest),
        _ => {}
    }
    if matches!(command, "help" | "--help" | "-h") {
        print!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(argument) = rest.first() {
        bail!("`cargo xtask {command}` takes no argument, and {argument:?} was given\n\n{USAGE}");
    }
    match command {
        "setup" => setup::run()?,
        "test" => stages::run(&root)?,
        "tidy" => tidy::run(&root)?,
        "guest-image" => {
            let image = guest_image::build(&root)?;
            println!("{}\n{}", image.kernel.display(), image.initrd.display());
        }
        other => bail!("{other:?} is not a command\n\n{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies in the workspace's directory").to_owned()
}
