//! The two probes that every guest answers.

use super::ledger::ChannelId;
use super::{ANSWER_WAIT_MAX, RECONNECT_AFTER, Shared, broken};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

const PORT: u16 = 9_001;
const PERIOD: Duration = Duration::from_millis(10);

pub fn spawn(site: &Handle, shared: &Shared, guest: IpAddr) -> Vec<JoinHandle<()>> {
    let address = SocketAddr::new(guest, PORT);
    let (udp, tcp) = {
        let mut ledger = shared.ledger();
        (ledger.add("udp", PERIOD, true), ledger.add("tcp", PERIOD, true))
    };
    vec![site.spawn(datagrams(shared.clone(), udp, address)), site.spawn(connection(shared.clone(), tcp, address))]
}

async fn datagrams(mut shared: Shared, id: ChannelId, guest: SocketAddr) {
    let socket = loop {
        match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await {
            Ok(socket) => break Arc::new(socket),
            Err(_) => sleep(RECONNECT_AFTER).await,
        }
    };
    let answers = receive(shared.clone(), id, socket.clone(), guest);
    let asks = async {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            shared.wait_to_ask().await;
            ticks.tick().await;
            let now = shared.now();
            let number = {
                let mut ledger = shared.ledger();
                ledger.asked(id, now);
                ledger.probe.next(now)
            };
            // What can't be sent is lost, and is counted so.
            let _ = socket.send_to(&number.to_be_bytes(), guest).await;
        }
    };
    tokio::join!(answers, asks);
}

async fn receive(shared: Shared, id: ChannelId, socket: Arc<UdpSocket>, guest: SocketAddr) {
    let mut datagram = [0; 64];
    loop {
        let Ok((16, from)) = socket.recv_from(&mut datagram).await else { continue };
        let (Some(number), Some(answer)) = (datagram.first_chunk::<8>(), datagram[8..].first_chunk::<8>()) else {
            continue;
        };
        if from == guest {
            let now = shared.now();
            let mut ledger = shared.ledger();
            ledger.probe.answered(u64::from_be_bytes(*number), u64::from_be_bytes(*answer));
            if shared.asks() {
                ledger.answered(id, now);
            }
        }
    }
}

async fn connection(mut shared: Shared, id: ChannelId, guest: SocketAddr) {
    loop {
        shared.wait_to_ask().await;
        match exchange(&mut shared, id, guest).await {
            Err(error) if broken(&error) => shared.ledger().reset(id),
            Err(_) | Ok(()) => shared.ledger().unanswered(id),
        }
        sleep(RECONNECT_AFTER).await;
    }
}

/// Returns when an answer does not come, fails when the connection does.
async fn exchange(shared: &mut Shared, id: ChannelId, guest: SocketAddr) -> io::Result<()> {
    let Ok(stream) = timeout(ANSWER_WAIT_MAX, TcpStream::connect(guest)).await else { return Ok(()) };
    let mut stream = stream?;
    stream.set_nodelay(true)?;
    let mut next = Instant::now();
    for number in 1_u64.. {
        shared.wait_to_ask().await;
        shared.ledger().asked(id, shared.now());
        stream.write_all(&number.to_be_bytes()).await?;
        let mut answer = [0; 8];
        match timeout(ANSWER_WAIT_MAX, stream.read_exact(&mut answer)).await {
            Err(_) => return Ok(()),
            Ok(read) => drop(read?),
        }
        if u64::from_be_bytes(answer) != number {
            return Ok(());
        }
        if shared.asks() {
            shared.ledger().answered(id, shared.now());
        }
        next = (next + PERIOD).max(Instant::now());
        sleep_until(next).await;
    }
    Ok(())
}
