//! `cargo xtask demo`: everything from a fresh checkout to the running demo.

use crate::release;
use anyhow::Result;
use std::path::Path;
use std::process::ExitCode;

const PROGRAM: &str = "drover-demo";

pub fn run(root: &Path, args: &[String]) -> Result<ExitCode> {
    release::become_program(root, PROGRAM, args)
}
