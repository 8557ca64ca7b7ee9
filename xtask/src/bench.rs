//! `cargo xtask bench NAME`: everything from a fresh checkout to the figures of a bench.

use crate::release;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::ExitCode;

const PROGRAM: &str = "drover-bench";
/// Known here, too, so that a wrong name is said before a build of minutes.
const BENCHES: [&str; 1] = ["footprint"];

pub fn run(root: &Path, args: &[String]) -> Result<ExitCode> {
    check(args)?;
    release::become_program(root, PROGRAM, args)
}

fn check(args: &[String]) -> Result<()> {
    let known = BENCHES.join(", ");
    match args.first() {
        None => bail!("name a bench: {known}"),
        Some(name) if !BENCHES.contains(&name.as_str()) => bail!("{name:?} is not a bench; there is: {known}"),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bench_that_is_not_there_is_said_before_anything_is_built() {
        let checked = |args: &[&str]| check(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        assert!(checked(&["footprint", "--json", "f.json"]).is_ok());
        assert_eq!(checked(&[]).unwrap_err().to_string(), "name a bench: footprint");
        let error = checked(&["relief"]).unwrap_err().to_string();
        assert_eq!(error, "\"relief\" is not a bench; there is: footprint");
    }
}
