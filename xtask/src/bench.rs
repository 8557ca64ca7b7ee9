//! `cargo xtask bench NAME`: everything from a fresh checkout to the figures of a bench.

use crate::release;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::ExitCode;

/// Measures on a cluster of real parts.
const CLUSTER: &str = "drover-bench";
/// Computes from an input file, and needs nothing but its own build.
const FIGURES: &str = "drover-figures";
/// Measures the server with agents that a process plays: needs no package of the system and no guest.
const CONTROL: &str = "control";
const FIGURES_PACKAGE: &str = "drover-benches";
/// Each bench and the program that has it. Known here, too, so that a wrong name is said before a build of minutes.
const BENCHES: [(&str, &str); 12] = [
    (CONTROL, CLUSTER),
    ("footprint", CLUSTER),
    ("forecast", FIGURES),
    ("hbal", FIGURES),
    ("migration", CLUSTER),
    ("migration-faults", CLUSTER),
    ("pingpong", FIGURES),
    ("planetlab", FIGURES),
    ("prediction", FIGURES),
    ("rescheduling", FIGURES),
    ("scale", FIGURES),
    ("schedule", FIGURES),
];

pub fn run(root: &Path, args: &[String]) -> Result<ExitCode> {
    match program(args)? {
        FIGURES => release::become_lone_program(root, &[FIGURES_PACKAGE], FIGURES, args),
        CLUSTER if args.first().is_some_and(|name| name == CONTROL) => {
            release::become_lone_program(root, &["drover", "drover-lab"], CLUSTER, args)
        }
        cluster => release::become_program(root, cluster, args),
    }
}

fn program(args: &[String]) -> Result<&'static str> {
    let known = BENCHES.map(|(name, _)| name).join(", ");
    let Some(name) = args.first() else { bail!("name a bench: {known}") };
    match BENCHES.iter().find(|(bench, _)| bench == name) {
        Some((_, program)) => Ok(program),
        None => bail!("{name:?} is not a bench; there is: {known}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bench_that_is_not_there_is_said_before_anything_is_built() {
        let program = |args: &[&str]| program(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        assert_eq!(program(&["footprint", "--json", "f.json"]).unwrap(), CLUSTER);
        assert_eq!(program(&["prediction"]).unwrap(), FIGURES);
        assert!(program(&[]).unwrap_err().to_string().starts_with("name a bench: control, footprint, "));
        let error = program(&["relief"]).unwrap_err().to_string();
        assert!(error.starts_with("\"relief\" is not a bench; there is: control, footprint, "), "{error}");
    }
}
