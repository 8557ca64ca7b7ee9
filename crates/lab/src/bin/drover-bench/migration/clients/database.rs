//! The database's client: transactions one after the other, and a check that what was answered is on the disk.

use super::ledger::ChannelId;
use super::{ANSWER_WAIT_MAX, RECONNECT_AFTER, Shared, broken};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

const PORT: u16 = 9_003;
const PERIOD: Duration = Duration::from_millis(10);
const PAGES: u64 = 8_192;
const KEYS: usize = 4;
/// Read back in one check: those written last, and as many of the others.
const CHECKED_MAX: usize = 200;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    pub pages: usize,
    /// Pages that hold less than what was said to be kept, or nothing whole.
    pub wrong: usize,
}

pub fn spawn(
    site: &Handle,
    shared: &Shared,
    guest: IpAddr,
    mut checks: mpsc::Receiver<oneshot::Sender<Checked>>,
) -> JoinHandle<()> {
    let address = SocketAddr::new(guest, PORT);
    let id = shared.ledger().add("database", PERIOD, true);
    let mut client = DatabaseClient { shared: shared.clone(), id, book: Book::default() };
    site.spawn(async move {
        loop {
            match client.work(address, &mut checks).await {
                Err(error) if broken(&error) => client.shared.ledger().reset(id),
                Err(_) => client.shared.ledger().unanswered(id),
                Ok(()) => return,
            }
            sleep(RECONNECT_AFTER).await;
        }
    })
}

/// What each page may hold.
#[derive(Debug, Default)]
struct Book {
    seq: u64,
    /// By page: the last transaction that was answered, and the last that was sent.
    pages: BTreeMap<u64, (u64, u64)>,
    /// Newest last.
    recent: Vec<u64>,
}

impl Book {
    fn begin(&mut self) -> (u64, [u64; KEYS]) {
        self.seq += 1;
        let keys = std::array::from_fn(|at| scattered(self.seq * KEYS as u64 + at as u64) % PAGES);
        for key in keys {
            self.pages.entry(key).or_default().1 = self.seq;
        }
        (self.seq, keys)
    }

    fn kept(&mut self, seq: u64, keys: [u64; KEYS]) {
        for key in keys {
            self.pages.entry(key).or_default().0 = seq;
            self.recent.push(key);
        }
        let too_many = self.recent.len().saturating_sub(CHECKED_MAX / 2);
        self.recent.drain(..too_many);
    }

    /// Whether a page may hold this: what was answered, or anything sent since.
    fn may_hold(&self, key: u64, seq: u64) -> bool {
        let (kept, sent) = self.pages.get(&key).copied().unwrap_or_default();
        (kept..=sent).contains(&seq)
    }

    fn to_check(&self) -> Vec<u64> {
        let others = self.pages.keys().step_by((self.pages.len() / (CHECKED_MAX / 2)).max(1));
        let mut keys: Vec<u64> = self.recent.iter().chain(others).copied().collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// The finalizer of SplitMix64: the same keys in every run.
fn scattered(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

struct DatabaseClient {
    shared: Shared,
    id: ChannelId,
    book: Book,
}

impl DatabaseClient {
    /// Returns when nobody can ask for checks any more.
    async fn work(
        &mut self,
        guest: SocketAddr,
        checks: &mut mpsc::Receiver<oneshot::Sender<Checked>>,
    ) -> io::Result<()> {
        let stream = timeout(ANSWER_WAIT_MAX, TcpStream::connect(guest)).await.map_err(io::Error::from)??;
        stream.set_nodelay(true)?;
        let mut stream = BufStream::new(stream);
        let mut next = Instant::now();
        loop {
            tokio::select! {
                biased;
                check = checks.recv() => match check {
                    // Whoever asked may have given up.
                    Some(answer) => drop(answer.send(self.check(&mut stream).await?)),
                    None => return Ok(()),
                },
                () = self.shared.wait_to_ask() => {
                    sleep_until(next).await;
                    self.transaction(&mut stream).await?;
                    next = (next + PERIOD).max(Instant::now());
                }
            }
        }
    }

    async fn transaction(&mut self, stream: &mut BufStream<TcpStream>) -> io::Result<()> {
        self.shared.ledger().asked(self.id, self.shared.now());
        let (seq, keys) = self.book.begin();
        let [a, b, c, d] = keys;
        if ask(stream, &format!("put {seq} {a} {b} {c} {d}\n")).await? == format!("ok {seq}") {
            self.book.kept(seq, keys);
            if self.shared.asks() {
                self.shared.ledger().answered(self.id, self.shared.now());
            }
        } else {
            self.shared.ledger().unanswered(self.id);
        }
        Ok(())
    }

    async fn check(&self, stream: &mut BufStream<TcpStream>) -> io::Result<Checked> {
        let mut checked = Checked::default();
        ask(stream, "forget\n").await?;
        for key in self.book.to_check() {
            let answer = ask(stream, &format!("get {key}\n")).await?;
            let seq = answer.strip_prefix("is ").and_then(|seq| seq.parse().ok());
            checked.pages += 1;
            checked.wrong += usize::from(!seq.is_some_and(|seq| self.book.may_hold(key, seq)));
        }
        Ok(checked)
    }
}

async fn ask(stream: &mut BufStream<TcpStream>, line: &str) -> io::Result<String> {
    let exchange = async {
        stream.write_all(line.as_bytes()).await?;
        stream.flush().await?;
        let mut answer = String::new();
        match stream.read_line(&mut answer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(answer.trim_end().to_owned()),
        }
    };
    timeout(ANSWER_WAIT_MAX, exchange).await.map_err(io::Error::from)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_hold_what_was_answered_or_anything_sent_since_and_nothing_older() {
        let mut book = Book::default();
        let (first, keys) = book.begin();
        book.kept(first, keys);
        let key = keys[0];
        assert!(book.may_hold(key, first) && !book.may_hold(key, 0) && !book.may_hold(key, first + 1));
        book.pages.entry(key).or_default().1 = 9;
        assert!(book.may_hold(key, first) && book.may_hold(key, 9) && !book.may_hold(key, 10));
        let untouched = (0..PAGES).find(|key| !book.pages.contains_key(key)).unwrap();
        assert!(book.may_hold(untouched, 0) && !book.may_hold(untouched, 1));
    }

    #[test]
    fn a_check_reads_what_was_written_last_and_some_of_the_rest() {
        let mut book = Book::default();
        for _ in 0..2_000 {
            let (seq, keys) = book.begin();
            book.kept(seq, keys);
        }
        let keys = book.to_check();
        assert!(keys.len() <= CHECKED_MAX + CHECKED_MAX / 2 && keys.len() > CHECKED_MAX / 2, "{}", keys.len());
        assert!(book.recent.iter().all(|key| keys.contains(key)));
    }
}
