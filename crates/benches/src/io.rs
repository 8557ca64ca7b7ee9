//! Input files and JSON.

use anyhow::{Context, Error, Result};
use serde::Serialize;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Benches do not pretend: what is not there is not measured.
#[derive(Debug, thiserror::Error)]
#[error("the input {} is not there: give the file with --input", .0.display())]
pub struct Absent(pub PathBuf);

/// The file's bytes, or [`Absent`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(problem) if problem.kind() == ErrorKind::NotFound => Err(Error::new(Absent(path.to_owned()))),
        read => read.with_context(|| format!("can't read {}", path.display())),
    }
}

pub fn write_json(path: Option<&Path>, figures: &impl Serialize) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(figures).context("the figures can't be written as JSON")?;
    std::fs::write(path, text + "\n").with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_input_is_told_apart_from_an_unreadable_one() {
        let absent = read(Path::new("no/such/file.csv")).unwrap_err();
        assert!(absent.is::<Absent>());
        assert!(absent.to_string().contains("no/such/file.csv"), "{absent}");
        assert!(!read(Path::new("/")).unwrap_err().is::<Absent>());
    }
}
