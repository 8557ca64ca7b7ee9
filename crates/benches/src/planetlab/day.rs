//! A day of PlanetLab: for each vm the processor load of 288 spans of five minutes.

use crate::io;
use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use std::io::Read;
use std::path::{Path, PathBuf};

pub const SPAN_S: f64 = 300.0;
pub const SAMPLES: usize = 288;
const ENDING: &str = ".csv.gz";
/// A day has 2 MB; more than this is no day.
const BYTES_MAX: u64 = 64 << 20;

#[derive(Debug)]
pub struct Day {
    pub name: String,
    /// In byte order of the vms' names: it decides which vm is of which kind.
    pub loads: Vec<Load>,
}

/// What one vm asks of its processor.
#[derive(Debug, Clone)]
pub struct Load {
    vm: String,
    /// 0 to 1, at the beginning of each span; the last value stands twice, for the end.
    samples: Vec<f64>,
}

impl Load {
    /// 0 to 1, at a time within the day: linear between samples.
    pub fn at(&self, time_s: f64) -> f64 {
        let (before, after) = ((time_s / SPAN_S).floor(), (time_s / SPAN_S).ceil());
        let (from, to) = (self.samples[before as usize], self.samples[after as usize]);
        if before == after { from } else { from + (to - from) / SPAN_S * (time_s - before * SPAN_S) }
    }
}

/// The days in files, or in folders of `DAY.csv.gz`. An input that is not there is [`io::Absent`].
pub fn read(inputs: &[PathBuf]) -> Result<Vec<Day>> {
    let mut files = Vec::new();
    for input in inputs {
        if input.is_dir() { files.extend(in_folder(input)?) } else { files.push(input.clone()) }
    }
    files.iter().map(|file| read_file(file).with_context(|| format!("can't use {}", file.display()))).collect()
}

fn in_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let entries = entries.with_context(|| format!("can't list {}", folder.display()))?;
    let mut days: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(|path| is_day(path)).collect();
    days.sort();
    if days.is_empty() {
        return Err(anyhow::Error::new(io::Absent(folder.join("DAY.csv.gz"))));
    }
    Ok(days)
}

fn is_day(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(ENDING))
}

fn read_file(file: &Path) -> Result<Day> {
    let packed = io::read(file)?;
    let mut text = String::new();
    GzDecoder::new(&*packed).take(BYTES_MAX).read_to_string(&mut text).context("it is no gzip of text")?;
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    parse(name.strip_suffix(ENDING).unwrap_or(&name), &text)
}

/// A line per vm: its name, then 288 percentages.
pub fn parse(name: &str, text: &str) -> Result<Day> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let loads = lines.map(|(ix, line)| load(line).with_context(|| format!("line {}", ix + 1)));
    let mut loads = loads.collect::<Result<Vec<_>>>()?;
    ensure!(!loads.is_empty(), "it has no vm: a line is a name and {SAMPLES} percentages");
    loads.sort_by(|a, b| a.vm.as_bytes().cmp(b.vm.as_bytes()));
    Ok(Day { name: name.to_owned(), loads })
}

fn load(line: &str) -> Result<Load> {
    let (vm, values) = line.split_once(',').context("has no comma after the vm's name")?;
    let percent = |value: &str| -> Result<f64> {
        let percent: u8 = value.trim().parse().with_context(|| format!("{value:?} is not a percentage"))?;
        Ok(f64::from(percent) / 100.0)
    };
    let mut samples = values.split(',').map(percent).collect::<Result<Vec<_>>>()?;
    ensure!(samples.len() == SAMPLES, "has {} values, not {SAMPLES}", samples.len());
    samples.push(samples[SAMPLES - 1]);
    Ok(Load { vm: vm.to_owned(), samples })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A day whose vms each have one load from its beginning to its end.
    pub fn steady(percentages: &[u8]) -> Day {
        made_up(percentages.len(), |vm, _| percentages[vm])
    }

    pub fn made_up(vms: usize, percent: impl Fn(usize, usize) -> u8) -> Day {
        let line = |vm: usize| -> String {
            let values: Vec<String> = (0..SAMPLES).map(|sample| percent(vm, sample).to_string()).collect();
            format!("vm {vm:05},{}\n", values.join(","))
        };
        parse("made up", &(0..vms).map(line).collect::<String>()).unwrap()
    }

    #[test]
    fn loads_are_read_in_byte_order_and_are_linear_between_samples() {
        let text = format!("b b,{}\nB,{}\n", vec!["7"; SAMPLES].join(","), ["10,20"; SAMPLES / 2].join(","));
        let day = parse("d", &text).unwrap();
        assert_eq!((day.loads[0].vm.as_str(), day.loads[1].vm.as_str()), ("B", "b b"));
        let load = &day.loads[0];
        assert_eq!((load.at(0.0), load.at(300.0), load.at(86_100.0), load.at(86_400.0)), (0.1, 0.2, 0.2, 0.2));
        assert!((load.at(150.0) - 0.15).abs() < 1e-12 && (load.at(450.0) - 0.15).abs() < 1e-12);
    }

    #[test]
    fn what_is_wrong_with_a_day_is_said_with_its_place() {
        let wrong = |text: &str| format!("{:#}", parse("d", text).unwrap_err());
        assert!(wrong("").starts_with("it has no vm"));
        assert_eq!(wrong("name"), "line 1: has no comma after the vm's name");
        assert_eq!(wrong("name,1,2"), "line 1: has 2 values, not 288");
        assert!(wrong("name,1,x").starts_with("line 1: \"x\" is not a percentage"));
    }

    #[test]
    fn a_folder_without_days_and_a_file_that_is_not_there_are_absent() {
        for input in ["src", "no/such/20110303.csv.gz"] {
            assert!(read(&[PathBuf::from(input)]).unwrap_err().is::<io::Absent>(), "{input}");
        }
    }
}
