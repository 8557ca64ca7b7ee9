//! A game's server: the state of the world goes to each player every 20 ms, and says which of their inputs it has seen.
//!
//! UDP port 9002, numbers of 8 bytes, big-endian. A player sends its inputs, numbered from 1. Each tick tells it the
//! number of the tick, counted for this player, the greatest input seen, and how many inputs arrived, doubles included.
//! A player that is not heard of for a while gets no more ticks.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const PORT: u16 = 9_002;
const TICK: Duration = Duration::from_millis(20);
const PLAYERS_MAX: usize = 32;
const SILENT_MAX: Duration = Duration::from_secs(2);
/// A server that stood still does not make up for more ticks than these.
const BEHIND_MAX: Duration = Duration::from_millis(40);

struct Player {
    address: SocketAddr,
    heard: Instant,
    ticks: u64,
    last_input: u64,
    inputs: u64,
}

impl Player {
    fn tick(&mut self) -> [u8; 24] {
        self.ticks += 1;
        let mut datagram = [0; 24];
        for (slot, number) in datagram.chunks_exact_mut(8).zip([self.ticks, self.last_input, self.inputs]) {
            slot.copy_from_slice(&number.to_be_bytes());
        }
        datagram
    }
}

#[derive(Default)]
struct Players(Vec<Player>);

impl Players {
    fn input(&mut self, address: SocketAddr, number: u64, now: Instant) {
        if let Some(player) = self.0.iter_mut().find(|player| player.address == address) {
            player.heard = now;
            player.last_input = player.last_input.max(number);
            player.inputs += 1;
        } else if self.0.len() < PLAYERS_MAX {
            self.0.push(Player { address, heard: now, ticks: 0, last_input: number, inputs: 1 });
        }
    }

    fn forget_silent(&mut self, now: Instant) {
        self.0.retain(|player| now.duration_since(player.heard) < SILENT_MAX);
    }
}

pub fn start() -> Result<(), String> {
    let socket =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).map_err(|e| format!("can't listen on UDP port {PORT}: {e}"))?;
    run(socket).map_err(|e| format!("can't share the socket of UDP port {PORT}: {e}"))
}

fn run(socket: UdpSocket) -> std::io::Result<()> {
    let players = Arc::new(Mutex::new(Players::default()));
    let (sender, heard) = (socket.try_clone()?, players.clone());
    thread::spawn(move || {
        let mut datagram = [0; 64];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut datagram) else { continue };
            if let Some(number) = datagram[..length].first_chunk::<8>() {
                lock(&heard).input(from, u64::from_be_bytes(*number), Instant::now());
            }
        }
    });
    thread::spawn(move || {
        let mut next = Instant::now();
        loop {
            next = next_tick(next, Instant::now());
            thread::sleep(next.saturating_duration_since(Instant::now()));
            let mut players = lock(&players);
            players.forget_silent(Instant::now());
            for player in &mut players.0 {
                let tick = player.tick();
                // What can't be sent is lost, which is what the player is there to see.
                let _ = sender.send_to(&tick, player.address);
            }
        }
    });
    Ok(())
}

fn next_tick(last: Instant, now: Instant) -> Instant {
    let next = last + TICK;
    if now.saturating_duration_since(next) > BEHIND_MAX { now } else { next }
}

fn lock(players: &Mutex<Players>) -> MutexGuard<'_, Players> {
    players.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_player_has_ticks_of_its_own_that_tell_what_was_heard() {
        let mut players = Players::default();
        let now = Instant::now();
        let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
        players.input(address(1), 1, now);
        players.input(address(2), 1, now);
        players.input(address(1), 3, now);
        players.input(address(1), 2, now);
        let numbers = |tick: [u8; 24]| tick.chunks(8).map(|n| n[7]).collect::<Vec<_>>();
        assert_eq!(numbers(players.0[0].tick()), [1, 3, 3]);
        assert_eq!(numbers(players.0[0].tick()), [2, 3, 3]);
        assert_eq!(numbers(players.0[1].tick()), [1, 1, 1]);
        players.input(address(2), 2, now + SILENT_MAX);
        players.forget_silent(now + SILENT_MAX);
        assert_eq!(players.0.len(), 1);
    }

    #[test]
    fn a_server_that_stood_still_goes_on_from_now() {
        let then = Instant::now();
        assert_eq!(next_tick(then, then), then + TICK);
        assert_eq!(next_tick(then, then + TICK + BEHIND_MAX), then + TICK);
        let late = then + Duration::from_secs(1);
        assert_eq!(next_tick(then, late), late);
    }

    #[test]
    fn a_player_that_sends_gets_ticks() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        run(server).unwrap();
        let player = UdpSocket::bind("127.0.0.1:0").unwrap();
        player.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        player.send_to(&5_u64.to_be_bytes(), address).unwrap();
        for number in 1..=2_u8 {
            let mut tick = [0; 24];
            assert_eq!(player.recv(&mut tick).unwrap(), 24);
            assert_eq!((tick[7], tick[15], tick[23]), (number, 5, 1));
        }
    }
}
