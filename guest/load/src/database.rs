//! A table of pages that are written in transactions: what was answered is on the disk.
//!
//! TCP port 9003, a line for each request and each answer:
//!
//! | request | answer |
//! |---|---|
//! | `put SEQ KEY...` | `ok SEQ` once all these pages hold SEQ and the disk has said that it keeps them |
//! | `get KEY` | `is SEQ`, or `torn` if the page is not what any put wrote |
//! | `forget` | `ok 0` once nothing is in memory any more, so that the next reads come from the disk |
//!
//! Pages have 4 KiB. Every word of one follows from (key, SEQ, place), so a torn one is found; one that was never
//! written holds zeros and SEQ 0.

use crate::serve;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const PORT: u16 = 9_003;
const DISK: &str = "/dev/vda";
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
const PAGE_BYTES: usize = 4_096;
/// 32 MiB of disk.
const PAGES: u64 = 8_192;
/// In one transaction.
const KEYS_MAX: usize = 16;
const LINE_BYTES_MAX: usize = 512;
/// 2^64 divided by the golden ratio.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Debug, PartialEq, Eq)]
enum Request {
    Put { seq: u64, keys: Vec<u64> },
    Get { key: u64 },
    Forget,
}

impl Request {
    fn parse(line: &str) -> Result<Self, String> {
        let mut words = line.split_ascii_whitespace();
        let verb = words.next().unwrap_or_default();
        let numbers: Result<Vec<u64>, _> = words.map(str::parse).collect();
        let numbers = numbers.map_err(|_| "write numbers after the first word".to_owned())?;
        match (verb, numbers.as_slice()) {
            ("put", [seq, keys @ ..]) if !keys.is_empty() && keys.len() <= KEYS_MAX && known(keys) => {
                Ok(Self::Put { seq: *seq, keys: keys.to_vec() })
            }
            ("get", [key]) if known(&[*key]) => Ok(Self::Get { key: *key }),
            ("forget", []) => Ok(Self::Forget),
            _ => Err(format!("write put SEQ KEY..., get KEY or forget; up to {KEYS_MAX} keys below {PAGES}")),
        }
    }
}

fn known(keys: &[u64]) -> bool {
    keys.iter().all(|key| *key < PAGES)
}

pub fn start() -> Result<(), String> {
    let disk = OpenOptions::new().read(true).write(true).open(DISK);
    let disk = Arc::new(disk.map_err(|e| format!("the database needs a disk, and {DISK} can't be opened: {e}"))?);
    serve::start(PORT, move |stream| answer_all(stream, &disk))
}

fn answer_all(stream: TcpStream, disk: &File) -> io::Result<()> {
    let mut lines = BufReader::with_capacity(LINE_BYTES_MAX, stream.try_clone()?);
    let mut stream = stream;
    let mut line = String::new();
    loop {
        line.clear();
        if io::Read::take(&mut lines, LINE_BYTES_MAX as u64).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match Request::parse(&line).map(|request| act(&request, disk)) {
            Ok(Ok(answer)) => answer,
            Ok(Err(problem)) => format!("failed {problem}"),
            Err(why) => format!("refused {why}"),
        };
        stream.write_all(format!("{answer}\n").as_bytes())?;
    }
}

fn act(request: &Request, disk: &File) -> io::Result<String> {
    match request {
        Request::Put { seq, keys } => {
            for key in keys {
                disk.write_all_at(&page(*key, *seq), key * PAGE_BYTES as u64)?;
            }
            disk.sync_data()?;
            Ok(format!("ok {seq}"))
        }
        Request::Get { key } => {
            let mut bytes = [0; PAGE_BYTES];
            disk.read_exact_at(&mut bytes, key * PAGE_BYTES as u64)?;
            Ok(seq_of(*key, &bytes).map_or("torn".to_owned(), |seq| format!("is {seq}")))
        }
        Request::Forget => {
            disk.sync_data()?;
            std::fs::write(DROP_CACHES, "1")?;
            Ok("ok 0".to_owned())
        }
    }
}

fn page(key: u64, seq: u64) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    if seq > 0 {
        let mut word = seq;
        for slot in bytes.chunks_exact_mut(8) {
            slot.copy_from_slice(&word.to_le_bytes());
            word = word.wrapping_add(STRIDE ^ key);
        }
    }
    bytes
}

/// What the page was last written by; `None` if it is no whole page of this key.
fn seq_of(key: u64, bytes: &[u8; PAGE_BYTES]) -> Option<u64> {
    let seq = u64::from_le_bytes(*bytes.first_chunk()?);
    (page(key, seq) == *bytes).then_some(seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str) -> File {
        let path = std::env::temp_dir().join(format!("guest-load-{name}-{}", std::process::id()));
        let disk = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        disk.set_len(PAGES * PAGE_BYTES as u64).unwrap();
        disk
    }

    #[test]
    fn what_was_put_is_read_back_and_a_fresh_page_was_put_by_nobody() {
        let disk = disk("put");
        let ask = |line: &str| act(&Request::parse(line).unwrap(), &disk).unwrap();
        assert_eq!(ask("put 7 0 8191 5\n"), "ok 7");
        assert_eq!([ask("get 0"), ask("get 8191"), ask("get 5")], ["is 7", "is 7", "is 7"]);
        assert_eq!(ask("get 6"), "is 0");
        assert_eq!(ask("put 9 5"), "ok 9");
        assert_eq!(ask("get 5"), "is 9");
    }

    #[test]
    fn a_page_in_another_place_or_half_written_is_torn() {
        let disk = disk("torn");
        disk.write_all_at(&page(1, 3), 2 * PAGE_BYTES as u64).unwrap();
        disk.write_all_at(&page(4, 3), 4 * PAGE_BYTES as u64).unwrap();
        disk.write_all_at(&page(4, 4)[..2_048], 4 * PAGE_BYTES as u64).unwrap();
        for key in [2, 4] {
            assert_eq!(act(&Request::Get { key }, &disk).unwrap(), "torn");
        }
    }

    #[test]
    fn a_bad_request_is_refused_with_what_to_write() {
        for line in ["", "put", "put 1", "put 1 8192", "get", "get x", "get 1 2", "forget 1", "drop table"] {
            assert!(Request::parse(line).is_err(), "{line}");
        }
        let too_many = format!("put 1{}", " 1".repeat(KEYS_MAX + 1));
        assert!(Request::parse(&too_many).is_err());
    }
}
