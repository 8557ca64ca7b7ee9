//! `cargo xtask test`: every check and every test, in the order of what fails soonest.
//!
//! Ends with the line `total: N passed, N failed`. The first stage that fails ends it.

use crate::{guest_image, run, setup, tidy};
use anyhow::{Context, Result, bail};
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The tests that build real clusters, in namespaces with QEMU.
const END_TO_END_CRATE: &str = "drover-lab";
const END_TO_END_TESTS: &str = "crates/lab/tests";

pub fn run(root: &Path) -> Result<()> {
    stage("setup", setup::run)?;
    stage("guest image", || guest_image::build(root).map(drop))?;
    stage("format", || cargo(root, &["fmt", "--all", "--check"], "run `cargo fmt --all`"))?;
    stage("tidy", || tidy::run(root))?;
    stage("clippy", || {
        let args = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
        cargo(root, &args, "mend what clippy says above")
    })?;
    if run::available("cargo-deny", "--version") {
        stage("deny", || {
            cargo(root, &["deny", "check", "licenses", "bans", "sources"], "see deny.toml for what is allowed and why")
        })?;
    } else {
        println!("== deny: skipped, cargo-deny is not installed");
    }
    stage("build", || {
        cargo(root, &["build", "--locked", "--workspace", "--bins"], "mend what the compiler says above")
    })?;
    let mut total = Count::default();
    let outcome = stage("tests", || tests(root, &mut total))
        .and_then(|()| stage("doc tests", || counted(root, &["test", "--locked", "--workspace", "--doc"], &mut total)));
    println!("{total}");
    outcome
}

fn stage(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    let began = Instant::now();
    work().with_context(|| format!("stage {name:?} failed"))?;
    println!("== {name}: ok, {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn cargo(root: &Path, args: &[&str], remedy: &str) -> Result<()> {
    run::passed(run::cargo().current_dir(root).args(args), remedy)
}

/// The end-to-end tests need root for namespaces and cgroups; without it they are named and left out.
fn tests(root: &Path, total: &mut Count) -> Result<()> {
    let end_to_end = setup::is_root()?;
    if !end_to_end {
        for name in end_to_end_tests(root)? {
            println!("skipped, needs root: {END_TO_END_CRATE}::{name}");
        }
    }
    if run::available("cargo-nextest", "--version") {
        let all = ["nextest", "run", "--locked", "--workspace", "--no-fail-fast"];
        let without = format!("not (package({END_TO_END_CRATE}) & kind(test))");
        let filter: &[&str] = if end_to_end { &[] } else { &["-E", &without] };
        return counted(root, &[&all, filter].concat(), total);
    }
    let others = ["test", "--locked", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"];
    counted(root, &[&others[..], &["--exclude", END_TO_END_CRATE]].concat(), total)?;
    // One at a time: each is a cluster and wants the machine for itself.
    let own = ["test", "--locked", "-p", END_TO_END_CRATE, "--lib", "--bins", "--no-fail-fast"];
    let more: &[&str] = if end_to_end { &["--tests", "--", "--test-threads=1"] } else { &[] };
    counted(root, &[&own, more].concat(), total)
}

/// The test files of the end-to-end crate, by name.
fn end_to_end_tests(root: &Path) -> Result<Vec<String>> {
    let directory = root.join(END_TO_END_TESTS);
    let mut names: Vec<String> = std::fs::read_dir(&directory)
        .with_context(|| format!("can't read {}", directory.display()))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

/// Runs tests by cargo, shows their output as it comes, and adds what they count.
fn counted(root: &Path, args: &[&str], total: &mut Count) -> Result<()> {
    let mut command = run::cargo();
    command.current_dir(root).args(args);
    let (reader, writer) = std::io::pipe().context("can't make a pipe")?;
    // cargo test counts on its output, nextest on its error output: both into one.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("can't copy a pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("can't run `{}`", run::shown(&command)))?;
    let shown = run::shown(&command);
    // The command holds the writing ends; the reader ends only once nobody does.
    drop::<Command>(command);
    for line in BufReader::new(reader).lines() {
        let line = line.with_context(|| format!("can't read what `{shown}` says"))?;
        println!("{line}");
        if let Some(count) = Count::in_line(&line) {
            total.add(count);
        }
    }
    let status = child.wait().with_context(|| format!("lost sight of `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status}): the tests that failed are named above");
    }
    Ok(())
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Count {
    /// From the closing line of cargo test (`test result: ok. 3 passed; 0 failed; 1 ignored; ...`) or of
    /// nextest (`Summary [ 0.5s] 19 tests run: 18 passed (1 slow), 1 failed, 0 skipped`).
    fn in_line(line: &str) -> Option<Self> {
        // nextest quotes what a failed test's own runner said, indented: that is counted in its summary.
        let figures = line.strip_prefix("test result: ").or_else(|| {
            line.trim().strip_prefix("Summary [").and_then(|rest| rest.split_once("run: ")).map(|(_, r)| r)
        })?;
        let mut count = Self::default();
        let mut before = "";
        for word in figures.split([' ', ',', ';']).filter(|word| !word.is_empty()) {
            let figure = before.trim_start_matches('(').parse().unwrap_or(0);
            match word {
                "passed" => count.passed = figure,
                // nextest tells time-outs and execution failures apart; all are failures here.
                "failed" | "timed" | "exec" => count.failed += figure,
                "ignored" | "skipped" => count.skipped = figure,
                _ => {}
            }
            before = word;
        }
        Some(count)
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "total: {} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_cargo_test_and_from_nextest() {
        assert_eq!(Count::in_line("    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured"), None);
        for (line, passed, failed, skipped) in [
            ("test result: ok. 19 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s", 19, 0, 1),
            ("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out", 1, 2, 0),
            ("     Summary [   0.512s] 19 tests run: 19 passed, 3 skipped", 19, 0, 3),
            ("     Summary [   1.5s] 6 tests run: 3 passed (1 slow), 1 failed, 2 timed out, 0 skipped", 3, 3, 0),
            ("     Summary [   1.5s] 5/6 tests run: 4 passed, 1 failed, 0 skipped", 4, 1, 0),
        ] {
            assert_eq!(Count::in_line(line), Some(Count { passed, failed, skipped }), "{line}");
        }
        assert_eq!(Count::in_line("test burn::tests::x ... ok"), None);
    }

    #[test]
    fn what_a_command_prints_is_read_to_its_end_and_its_failure_is_told() {
        let root = crate::workspace_root();
        let mut total = Count::default();
        counted(&root, &["--version"], &mut total).unwrap();
        let error = counted(&root, &["--no-such-option"], &mut total).unwrap_err().to_string();
        assert!(error.contains("--no-such-option` failed"), "{error}");
        assert_eq!(total, Count::default());
    }

    #[test]
    fn the_closing_line_names_what_was_skipped_only_if_something_was() {
        assert_eq!(Count { passed: 3, failed: 0, skipped: 0 }.to_string(), "total: 3 passed, 0 failed");
        assert_eq!(Count { passed: 3, failed: 1, skipped: 2 }.to_string(), "total: 3 passed, 1 failed, 2 skipped");
    }
}
