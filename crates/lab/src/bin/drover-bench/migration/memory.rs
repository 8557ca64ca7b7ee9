//! How much of a guest's memory is in use, as the host sees it, by the same measure for both sides.

use anyhow::{Context, Result};
use std::fs;

/// Bytes of the guest's memory that hold something: pages of QEMU's mapping of it that are there. Pages the guest never
/// touched, and those that arrived as zeros, are not (proc_pid_smaps(5)).
pub fn in_use(qemu: u32, memory_mib: u64) -> Result<u64> {
    let path = format!("/proc/{qemu}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("can't read {path}: has QEMU ended?"))?;
    in_smaps(&text, memory_mib * 1024).with_context(|| format!("{path} shows no mapping of a guest's {memory_mib} MiB"))
}

/// The mapping whose size is nearest to the guest's, which may be a little short (decision 0006).
fn in_smaps(text: &str, memory_kib: u64) -> Option<u64> {
    let kib = |line: &str, name| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok();
    let mut nearest: Option<(u64, u64)> = None;
    let mut distance = u64::MAX;
    for line in text.lines() {
        if let Some(size) = kib(line, "Size:") {
            distance = size.abs_diff(memory_kib);
        } else if let Some(resident) = kib(line, "Rss:")
            && distance <= memory_kib / 16
            && nearest.is_none_or(|(found, _)| distance < found)
        {
            nearest = Some((distance, resident * 1024));
        }
    }
    nearest.map(|(_, resident)| resident)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_the_mapping_of_its_size() {
        let text = "7f0-7f1 rw-p 00000000 00:00 0\nSize:             1024 kB\nRss:              1000 kB\n\
                    7f2-7f3 rw-p 00000000 00:00 0\nSize:            98296 kB\nRss:             51200 kB\nPss: 3 kB\n\
                    7f4-7f5 rw-p 00000000 00:00 0\nSize:           102400 kB\nRss:             90000 kB\n";
        assert_eq!(in_smaps(text, 98_304), Some(51_200 << 10));
        assert_eq!(in_smaps(text, 500_000), None);
    }
}
