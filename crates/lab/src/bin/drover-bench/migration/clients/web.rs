//! A hundred readers of a web server, each on a connection that stays: HTTP/1.1 (RFC 9112).

use super::ledger::ChannelId;
use super::{ANSWER_WAIT_MAX, RECONNECT_AFTER, Shared, broken};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

const PORT: u16 = 8_080;
const CLIENTS: u32 = 100;
/// From one file to the next of each client: together 3.5 MB/s, a quarter of a link of 100 Mbit/s.
const EVERY: Duration = Duration::from_secs(15);
const FILE_BYTES: usize = 512 << 10;
const HEAD_END: &[u8] = b"\r\n\r\n";
/// As guest-load writes its files: 2^64 divided by the golden ratio.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
const FILES: u64 = 16;

pub fn spawn(site: &Handle, shared: &Shared, guest: IpAddr) -> Vec<JoinHandle<()>> {
    let address = SocketAddr::new(guest, PORT);
    (0..CLIENTS)
        .map(|client| {
            let id = shared.ledger().add("web", Duration::ZERO, false);
            site.spawn(reader(shared.clone(), id, address, client))
        })
        .collect()
}

async fn reader(mut shared: Shared, id: ChannelId, guest: SocketAddr, client: u32) {
    loop {
        shared.wait_to_ask().await;
        match read_files(&mut shared, id, guest, client).await {
            Err(error) if broken(&error) => shared.ledger().reset(id),
            Err(_) | Ok(()) => shared.ledger().unanswered(id),
        }
        sleep(RECONNECT_AFTER).await;
    }
}

/// Returns when an answer does not come or is wrong, fails when the connection does.
async fn read_files(shared: &mut Shared, id: ChannelId, guest: SocketAddr, client: u32) -> io::Result<()> {
    let Ok(stream) = timeout(ANSWER_WAIT_MAX, TcpStream::connect(guest)).await else { return Ok(()) };
    let mut stream = stream?;
    stream.set_nodelay(true)?;
    // Spread over the period, so that the guest has even work.
    let mut next = Instant::now() + EVERY * client / CLIENTS;
    for number in u64::from(client).. {
        sleep_until(next).await;
        let was_resting = !shared.asks();
        shared.wait_to_ask().await;
        if was_resting {
            next = Instant::now() + EVERY * client / CLIENTS;
            sleep_until(next).await;
        }
        shared.ledger().asked(id, shared.now());
        stream.write_all(format!("GET /{number} HTTP/1.1\r\nHost: guest\r\n\r\n").as_bytes()).await?;
        if !read_file(shared, id, &mut stream, number % FILES).await? {
            return Ok(());
        }
        shared.ledger().satisfied(id);
        next = (next + EVERY).max(Instant::now());
    }
    Ok(())
}

/// Whether the whole file came, and as it should be.
async fn read_file(shared: &Shared, id: ChannelId, stream: &mut TcpStream, number: u64) -> io::Result<bool> {
    let mut answer = Vec::with_capacity(FILE_BYTES + 256);
    let mut body_at = None;
    while body_at.is_none_or(|at| answer.len() < at + FILE_BYTES) {
        match timeout(ANSWER_WAIT_MAX, stream.read_buf(&mut answer)).await {
            Err(_) => return Ok(false),
            Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => drop(read?),
        }
        if shared.asks() {
            shared.ledger().answered(id, shared.now());
        }
        if body_at.is_none() {
            body_at = answer.windows(HEAD_END.len()).position(|bytes| bytes == HEAD_END).map(|at| at + HEAD_END.len());
        }
    }
    Ok(body_at.is_some_and(|at| is_file(&answer[at..], number)))
}

fn is_file(bytes: &[u8], number: u64) -> bool {
    bytes.len() == FILE_BYTES
        && bytes
            .chunks_exact(8)
            .zip(0_u64..)
            .all(|(word, at)| word == (number << 32 | at).wrapping_mul(STRIDE).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_from_another_and_from_a_damaged_one() {
        let words = (FILE_BYTES / 8) as u64;
        let mut file: Vec<u8> = (0..words).flat_map(|at| (3 << 32 | at).wrapping_mul(STRIDE).to_le_bytes()).collect();
        assert!(is_file(&file, 3) && !is_file(&file, 4) && !is_file(&file[8..], 3));
        file[400_000] ^= 1;
        assert!(!is_file(&file, 3));
    }
}
