//! Six players: inputs go out, ticks come in.

use super::ledger::{ChannelId, Player};
use super::{RECONNECT_AFTER, Shared};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

const PORT: u16 = 9_002;
const PLAYERS: usize = 6;
const TICK: Duration = Duration::from_millis(20);
const INPUT: Duration = Duration::from_millis(50);

pub fn spawn(site: &Handle, shared: &Shared, guest: IpAddr) -> Vec<JoinHandle<()>> {
    let address = SocketAddr::new(guest, PORT);
    (0..PLAYERS)
        .map(|_| {
            let (id, player) = {
                let mut ledger = shared.ledger();
                ledger.players.push(Player::default());
                (ledger.add("game", TICK, true), ledger.players.len() - 1)
            };
            site.spawn(play(shared.clone(), id, player, address))
        })
        .collect()
}

async fn play(mut shared: Shared, id: ChannelId, player: usize, guest: SocketAddr) {
    let socket = loop {
        match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await {
            Ok(socket) => break socket,
            Err(_) => sleep(RECONNECT_AFTER).await,
        }
    };
    let receiver = shared.clone();
    let ticks = async {
        let shared = receiver;
        let mut datagram = [0; 64];
        loop {
            let Ok((24, from)) = socket.recv_from(&mut datagram).await else { continue };
            if from != guest || !shared.asks() {
                continue;
            }
            let [tick, last_input, inputs] = [0, 8, 16].map(|at| number(&datagram[at..]));
            let now = shared.now();
            let mut ledger = shared.ledger();
            ledger.answered(id, now);
            ledger.players[player].tick(tick, last_input, inputs);
        }
    };
    let inputs = async {
        let mut every = interval(INPUT);
        every.set_missed_tick_behavior(MissedTickBehavior::Skip);
        for number in 1_u64.. {
            shared.wait_to_ask().await;
            every.tick().await;
            shared.ledger().asked(id, shared.now());
            // What can't be sent is lost, and the guest's count of inputs shows it.
            let _ = socket.send_to(&number.to_be_bytes(), guest).await;
        }
    };
    tokio::join!(ticks, inputs);
}

fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
