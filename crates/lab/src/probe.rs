//! What can be seen of the guests from outside: their ticks, and what they answer.
//!
//! Runs inside the switch namespace, on the network the vms are on.

use crate::limits::{GUEST_ANSWER_BYTES_MAX, GUEST_REQUEST_WAIT_MAX, POLL, TICK_BYTES_MAX};
use crate::net::PROVIDER_ADDRESS;
use crate::ticks::{TickBook, VmTicks};
use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;

/// Where guests send their ticks; told to them as `drover.tick`.
pub const TICK_SINK: SocketAddr = SocketAddr::new(PROVIDER_ADDRESS, 9_000);

/// Listens for ticks as long as it lives.
#[derive(Debug)]
pub struct Probe {
    opened: Instant,
    book: Arc<Mutex<TickBook>>,
    listener: JoinHandle<()>,
}

impl Probe {
    pub async fn start() -> Result<Self> {
        Self::listen(TICK_SINK).await.map(|(probe, _)| probe)
    }

    async fn listen(address: SocketAddr) -> Result<(Self, SocketAddr)> {
        let socket = UdpSocket::bind(address).await.with_context(|| format!("can't listen on UDP {address}"))?;
        let address = socket.local_addr().context("a bound socket has an address")?;
        let opened = Instant::now();
        let book = Arc::new(Mutex::new(TickBook::default()));
        let listener = tokio::spawn({
            let book = book.clone();
            async move {
                let mut datagram = [0; TICK_BYTES_MAX];
                loop {
                    match socket.recv_from(&mut datagram).await {
                        Ok((length, _)) => lock(&book).record(&datagram[..length], opened.elapsed()),
                        // An unconnected socket has no lasting errors.
                        Err(_) => tokio::time::sleep(POLL).await,
                    }
                }
            }
        });
        Ok((Self { opened, book, listener }, address))
    }

    /// By the names the guests know themselves by: the vms' names, which two tenants of a lab must not share.
    pub fn ticks(&self) -> BTreeMap<String, VmTicks> {
        lock(&self.book).snapshot(self.opened.elapsed())
    }

    /// For a task of its own that follows the ticks.
    pub fn reader(&self) -> TickReader {
        TickReader { opened: self.opened, book: self.book.clone() }
    }

    /// Forgets how long vms were silent so far.
    pub fn reset_gaps(&self) {
        lock(&self.book).reset_gaps(self.opened.elapsed());
    }
}

/// Reads what a [`Probe`] has heard.
#[derive(Debug, Clone)]
pub struct TickReader {
    opened: Instant,
    book: Arc<Mutex<TickBook>>,
}

impl TickReader {
    /// What is known of one vm, and how long it has been silent; `None` until it is first heard.
    pub fn vm(&self, name: &str) -> Option<(VmTicks, Duration)> {
        let now = self.opened.elapsed();
        let ticks = lock(&self.book).snapshot(now).remove(name)?;
        let silent = ticks.silent_for(now);
        Some((ticks, silent))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

fn lock(book: &Mutex<TickBook>) -> MutexGuard<'_, TickBook> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a guest says of itself (`GET /stats` of guest-load).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStats {
    pub name: String,
    pub boot_id: String,
    pub uptime_ms: u64,
    pub ticks: u64,
    pub pages: u64,
    pub verified_pages: u64,
    /// Pages whose content was not what had been written.
    pub errors: u64,
    pub cpu_percent: u32,
    pub dirty_mib_s: u32,
    pub dirtied_pages: u64,
}

/// What a guest is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestLoad {
    /// Of each of its vcpus, 0 to 100.
    pub cpu_percent: u32,
    pub dirty_mib_s: u32,
}

const GUEST_PORT: u16 = 80;

pub async fn guest_stats(guest: IpAddr) -> Result<GuestStats> {
    ask(guest, "GET", "/stats").await
}

/// Makes the guest verify every page of its working set.
pub async fn verify_guest(guest: IpAddr) -> Result<GuestStats> {
    ask(guest, "GET", "/verify").await
}

pub async fn load_guest(guest: IpAddr, load: GuestLoad) -> Result<GuestStats> {
    ask(guest, "PUT", &format!("/load?cpu={}&dirty_mib_s={}", load.cpu_percent, load.dirty_mib_s)).await
}

async fn ask(guest: IpAddr, method: &str, target: &str) -> Result<GuestStats> {
    let address = SocketAddr::new(guest, GUEST_PORT);
    let body = request(address, method, target).await?;
    serde_json::from_str(&body).with_context(|| format!("guest {guest} answered {method} {target} with {body:?}"))
}

/// One HTTP/1.0 exchange; the body of a 200, or why there is none.
async fn request(address: SocketAddr, method: &str, target: &str) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("{method} {target} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(GUEST_ANSWER_BYTES_MAX as u64).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(GUEST_REQUEST_WAIT_MAX, exchange)
        .await
        .map_err(|_| anyhow!("guest {address} did not answer within {} s", GUEST_REQUEST_WAIT_MAX.as_secs()))?
        .with_context(|| format!("guest {address} can't be reached"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("guest {address} broke off"))?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("guest {address} answered {method} {target} with {status}: {}", body.trim());
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn ticks_that_arrive_are_in_the_book() {
        let (probe, address) = Probe::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for seq in 1..=3 {
            let line = format!("{{\"name\":\"web-1\",\"boot_id\":\"a\",\"seq\":{seq},\"errors\":0}}\n");
            sender.send_to(line.as_bytes(), address).await.unwrap();
        }
        let arrived = tokio::time::timeout(Duration::from_secs(10), async {
            while probe.ticks().get("web-1").is_none_or(|vm| vm.total < 3) {
                tokio::task::yield_now().await;
            }
        });
        arrived.await.expect("three ticks arrive");
        assert_eq!(probe.ticks()["web-1"].seq, 3);
    }

    /// Answers one request with this.
    async fn guest(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /stats HTTP/1.0\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn the_body_of_a_good_answer_is_given_and_a_bad_one_says_why() {
        let good = guest("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
        assert_eq!(request(good, "GET", "/stats").await.unwrap(), "hi");
        let bad = guest("HTTP/1.0 400 Bad Request\r\n\r\nwrite cpu=PERCENT\n").await;
        let error = request(bad, "GET", "/stats").await.unwrap_err().to_string();
        assert!(error.contains("with 400: write cpu=PERCENT"), "{error}");
        let cut = guest("HTTP/1.0 200 OK\r\n").await;
        assert!(request(cut, "GET", "/stats").await.unwrap_err().to_string().contains("broke off"));
    }
}
