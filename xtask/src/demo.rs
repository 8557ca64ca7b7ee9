//! `cargo xtask demo`: everything from a fresh checkout to the running demo.

use crate::{guest_image, run, setup};
use anyhow::{Context, Error, Result};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

const BUILD: [&str; 8] = ["build", "--release", "--locked", "-p", "drover", "-p", "drover-lab", "--bins"];
const DEMO: &str = "target/release/drover-demo";

/// Becomes the demo, so that its exit status is ours and Ctrl-C reaches it alone.
pub fn run(root: &Path, args: &[String]) -> Result<ExitCode> {
    setup::run()?;
    println!("demo: building");
    run::passed(run::cargo().current_dir(root).args(BUILD), "mend what the compiler says above")?;
    guest_image::build(root)?;
    let problem = Command::new(root.join(DEMO)).args(args).exec();
    Err(Error::new(problem)).context(format!("can't start {DEMO}"))
}
