//! A web server of a few files of 512 KB from memory: HTTP/1.1 (RFC 9112) with connections that stay.
//!
//! `GET /N` gives file N, the remainder counts. What a file holds follows from its number, so that a client can check it.

use crate::serve;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

const PORT: u16 = 8_080;
const FILES: u64 = 16;
const FILE_BYTES: usize = 512 << 10;
const HEAD_BYTES_MAX: usize = 2_048;
/// 2^64 divided by the golden ratio.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

pub fn start() -> Result<(), String> {
    let files: Arc<[Vec<u8>]> = (0..FILES).map(file).collect();
    serve::start(PORT, move |stream| answer_all(stream, &files))
}

/// 64-bit words, little-endian.
fn file(number: u64) -> Vec<u8> {
    let words = (FILE_BYTES / size_of::<u64>()) as u64;
    (0..words).flat_map(|at| (number << 32 | at).wrapping_mul(STRIDE).to_le_bytes()).collect()
}

fn answer_all(mut stream: TcpStream, files: &[Vec<u8>]) -> io::Result<()> {
    let mut head = Vec::with_capacity(HEAD_BYTES_MAX);
    loop {
        head.clear();
        if !read_head(&mut stream, &mut head)? {
            return Ok(());
        }
        let Some(number) = requested(&head) else {
            return stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        };
        let file = &files[(number % files.len() as u64) as usize];
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", file.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(file)?;
    }
}

/// Clients wait for each answer, so what comes is one request; `false` at the end of the connection.
fn read_head(stream: &mut TcpStream, head: &mut Vec<u8>) -> io::Result<bool> {
    let mut chunk = [0; 512];
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut chunk)?;
        if read == 0 || head.len() + read > HEAD_BYTES_MAX {
            return Ok(false);
        }
        head.extend_from_slice(&chunk[..read]);
    }
    Ok(true)
}

fn requested(head: &[u8]) -> Option<u64> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let target = str::from_utf8(line).ok()?.strip_prefix("GET /")?.strip_suffix(" HTTP/1.1")?;
    target.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn files_are_told_apart_by_every_word() {
        let (one, two) = (file(1), file(2));
        assert_eq!((one.len(), two.len()), (FILE_BYTES, FILE_BYTES));
        assert!(one.chunks(8).zip(two.chunks(8)).all(|(one, two)| one != two));
    }

    #[test]
    fn one_connection_gets_several_files_and_a_bad_request_ends_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let files: Vec<Vec<u8>> = (0..2).map(file).collect();
        let expected = [files[1].clone(), files[0].clone()];
        serve::spawn(listener, move |stream| answer_all(stream, &files));
        for (number, expected) in [3, 4].into_iter().zip(expected) {
            client.write_all(format!("GET /{number} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 524288\r\n\r\n";
            let mut answer = vec![0; head.len() + FILE_BYTES];
            client.read_exact(&mut answer).unwrap();
            assert!(answer.starts_with(head));
            assert_eq!(answer[head.len()..], expected);
        }
        client.write_all(b"PUT /1 HTTP/1.1\r\n\r\n").unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).unwrap();
        assert!(rest.starts_with("HTTP/1.1 400 "), "{rest}");
    }
}
