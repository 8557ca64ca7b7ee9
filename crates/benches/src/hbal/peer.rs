//! Ganeti's `hbal`, where it is installed: it balances, and it scores.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The files hbal reads.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    pub cluster: &'a Path,
    pub load: Option<&'a Path>,
}

/// What hbal made of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Balanced {
    /// The score after each of its moves.
    pub after: Vec<f64>,
    /// Processor time, its own and the system's for it.
    pub cpu_s: f64,
    /// It was ended at the limit, and this is how far it had come.
    pub ended_by_limit: bool,
}

/// Whether there is an hbal, and which.
pub fn version() -> Option<String> {
    let said = Command::new("hbal").arg("--version").output().ok()?;
    String::from_utf8_lossy(&said.stdout).lines().next().map(str::to_owned)
}

/// hbal's score of the cluster as it is.
pub fn score(files: Files) -> Result<f64> {
    let output = command(files).args(["-l", "0"]).output().context("can't start hbal")?;
    let said = succeeded(&output, files)?;
    parse_score(&said).with_context(|| format!("can't read what hbal says of {}", files.cluster.display()))
}

fn parse_score(said: &str) -> Result<f64> {
    // Says so, with the score in fewer digits, and ends.
    if let Some(rest) = said.split("already well balanced (initial score ").nth(1) {
        return number(rest.split(',').next());
    }
    let line = said.lines().find_map(|line| line.strip_prefix("Initial score: "));
    number(Some(line.context("there is no initial score in it")?))
}

/// Lets hbal move instances until it finds nothing better, or for `limit` of its processor time.
pub fn balance(files: Files, limit: Duration) -> Result<Balanced> {
    let directory = tempfile::tempdir().context("can't make a temporary directory")?;
    let report = directory.path().join("hbal");
    let to = std::fs::File::create(&report).with_context(|| format!("can't write {}", report.display()))?;
    let hbal = command(files).stdout(to).stderr(Stdio::null()).spawn().context("can't start hbal")?;
    let (cpu_s, ended_by_limit) = wait(hbal, limit)?;
    let said = std::fs::read_to_string(&report).with_context(|| format!("can't read {}", report.display()))?;
    let after =
        parse_moves(&said).with_context(|| format!("can't read what hbal says of {}", files.cluster.display()))?;
    Ok(Balanced { after, cpu_s, ended_by_limit })
}

/// The processor time it took, and whether it had to be ended. On a machine that does other things, too, the clock on
/// the wall says little, so the limit is of processor time; ten times as long on the wall is too long in any case.
fn wait(mut hbal: Child, limit: Duration) -> Result<(f64, bool)> {
    let begun = Instant::now();
    let mut cpu_s = 0.0;
    let mut pause = Duration::from_millis(1);
    loop {
        // Read before it is asked whether it has ended: what has ended and been waited for has no times.
        let ended = std::fs::read_to_string(format!("/proc/{}/stat", hbal.id()));
        let (spent, gone) = times(&ended.context("can't read the processor time of hbal")?)?;
        cpu_s = spent.max(cpu_s);
        if gone {
            let status = hbal.wait().context("can't wait for hbal")?;
            if !status.success() {
                bail!("hbal failed on this cluster ({status}): run it by hand to see why");
            }
            return Ok((cpu_s, false));
        }
        if cpu_s >= limit.as_secs_f64() || begun.elapsed() > 10 * limit {
            hbal.kill().context("can't end hbal")?;
            hbal.wait().context("can't wait for hbal")?;
            return Ok((cpu_s, true));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Processor seconds of a process and whether it has ended, from its line in `/proc` (proc_pid_stat(5)).
fn times(stat: &str) -> Result<(f64, bool)> {
    /// Of the kernel's interface, whatever the kernel's own clock.
    const TICKS_PER_S: f64 = 100.0;
    // The name of the program stands in brackets and may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = number(fields.get(11).copied())? + number(fields.get(12).copied())?;
    Ok((ticks / TICKS_PER_S, fields.first() == Some(&"Z")))
}

/// The score after each move of what hbal prints while it goes.
fn parse_moves(said: &str) -> Result<Vec<f64>> {
    let mut after = Vec::new();
    for line in said.lines() {
        // "  1. i8       n8   => n37      12.95310563 a=fa:n37"
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [_, _, _, "=>", _, score, action, ..] = fields[..]
            && action.starts_with("a=")
        {
            after.push(number(Some(score))?);
        }
    }
    Ok(after)
}

fn command(files: Files) -> Command {
    let mut command = Command::new("hbal");
    command.arg("-t").arg(files.cluster).arg("--no-disk-moves");
    if let Some(load) = files.load {
        command.arg("-U").arg(load);
    }
    command
}

fn succeeded(output: &Output, files: Files) -> Result<String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("hbal can't use {}: {}", files.cluster.display(), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn number(text: Option<&str>) -> Result<f64> {
    let text = text.context("a number is missing")?.trim();
    text.parse().with_context(|| format!("{text:?} is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hbal_prints_is_read() {
        let scored = "Loaded 2 nodes, 1 instances\nInitial score: 4.47500000\nTrying to minimize the CV...\n";
        assert_eq!(parse_score(scored).unwrap(), 4.475);
        let well =
            "Cluster is already well balanced (initial score 1.2e-10,\noptimum score due to N+1 reservations 0,\n";
        assert_eq!(parse_score(well).unwrap(), 1.2e-10);
        assert!(parse_score("Cluster is empty, exiting.\n").is_err());
        let balanced = "Initial score: 3.5\nTrying to minimize the CV...\n    1. i8  n8 => n37  2.95310563 a=fa:n37\n    2. \
                        i9   n8      => n3       1.5 a=fa:n3\nCluster score improved from 3.5 to 1.5\n";
        assert_eq!(parse_moves(balanced).unwrap(), [2.953_105_63, 1.5]);
        assert_eq!(parse_moves("").unwrap(), [0.0; 0]);
    }

    #[test]
    fn processor_time_is_read_whatever_the_program_is_called() {
        let stat = "812 (a) b (c)) R 1 812 812 0 -1 4194304 95 0 0 0 150 25 0 0 20 0 1 0 99 8192 200 1 1 1\n";
        assert_eq!(times(stat).unwrap(), (1.75, false));
        assert_eq!(times(&stat.replace(") R", ") Z")).unwrap(), (1.75, true));
        assert!(times("812 (hbal) R 1").is_err());
    }
}
