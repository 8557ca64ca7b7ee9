//! Logs that QEMU appends to: their end for people, and their length bounded.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// What is kept of a log that got too long.
const KEPT_BYTES: u64 = 32 << 10;

/// The last `max` bytes; nothing if there is no such file.
pub fn tail(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let from = file.metadata()?.len().saturating_sub(max);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last lines as one, for an error text.
pub fn last_lines(path: &Path, lines_max: usize) -> String {
    let bytes = tail(path, KEPT_BYTES).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(lines_max)..].join("; ")
}

/// Drops all but the end of a log longer than `max`. QEMU appends, so it may go on meanwhile; what it writes between
/// the reading and the cut is lost.
pub fn shorten(path: &Path, max: u64) -> io::Result<()> {
    let length = match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?.len(),
    };
    if length <= max {
        return Ok(());
    }
    let kept = tail(path, KEPT_BYTES)?;
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.set_len(0)?;
    file.write_all(&kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_got_too_long_keeps_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        shorten(&path, 10).unwrap();
        assert_eq!(last_lines(&path, 3), "");
        let text: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, &text).unwrap();
        shorten(&path, 1 << 20).unwrap();
        assert_eq!(path.metadata().unwrap().len(), text.len() as u64);
        shorten(&path, 64 << 10).unwrap();
        assert_eq!(path.metadata().unwrap().len(), KEPT_BYTES);
        assert_eq!(last_lines(&path, 2), "line 9998; line 9999");
    }
}
