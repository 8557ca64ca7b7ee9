//! Ethernet frames, read from and sent by one interface (packet(7)).

use super::names::Mac;
use nix::ifaddrs::getifaddrs;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::net::unix::pipe;

const ETH_P_ALL: u16 = 3;
/// Longest frame read; a longer one is cut, and is nothing that is looked for.
const FRAME_MAX: usize = 2_048;

/// Of one interface, in the network namespace of the thread that opens it.
pub struct PacketSocket {
    socket: Socket,
    /// The same socket, and no pipe: this is tokio's one way, without unsafe code, to await any descriptor.
    readable: pipe::Receiver,
}

impl PacketSocket {
    /// Sends by the interface and receives what the filter lets through, from now on.
    pub fn open(interface: &str, filter: &[SockFilter]) -> io::Result<Self> {
        let address = getifaddrs()?
            .filter(|found| found.interface_name == interface)
            .find_map(|found| found.address.as_ref().and_then(|address| address.as_link_addr().copied()))
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {interface}")))?;
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), Some(protocol))?;
        socket.attach_filter(filter)?;
        nix::sys::socket::bind(socket.as_raw_fd(), &address)?;
        // Until it was bound it heard every interface.
        let mut frame = [0; FRAME_MAX];
        while io::Read::read(&mut &socket, &mut frame).is_ok() {}
        let readable = pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(socket.try_clone()?))?;
        Ok(Self { socket, readable })
    }

    pub async fn receive(&self) -> io::Result<Vec<u8>> {
        let mut frame = vec![0; FRAME_MAX];
        let length = loop {
            self.readable.readable().await?;
            match self.readable.try_read(&mut frame) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => break other?,
            }
        };
        frame.truncate(length);
        Ok(frame)
    }

    /// Without waiting: what does not fit the queue is lost, as on any Ethernet.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }
}

/// Lets nothing through.
pub fn nothing() -> [SockFilter; 1] {
    [SockFilter::new(0x06, 0, 0, 0)]
}

/// Lets whole IPv4 packets of UDP to this port through, if this is who sent them.
pub fn udp_from(mac: Mac, port: u16) -> [SockFilter; 15] {
    let [a, b, c, d, e, f] = mac.0;
    // The last line, counted from the next one.
    let refuse = |line: u8| 13 - line;
    let unless = |line: u8, value: u32| SockFilter::new(0x15, 0, refuse(line), value);
    [
        SockFilter::new(0x20, 0, 0, 6),
        unless(1, u32::from_be_bytes([a, b, c, d])),
        SockFilter::new(0x28, 0, 0, 10),
        unless(3, u32::from(u16::from_be_bytes([e, f]))),
        SockFilter::new(0x28, 0, 0, 12),
        unless(5, 0x0800),
        SockFilter::new(0x30, 0, 0, 23),
        unless(7, 17),
        // A fragment of any kind: refused.
        SockFilter::new(0x28, 0, 0, 20),
        SockFilter::new(0x45, refuse(9), 0, 0x3fff),
        // The header's length, then what follows it.
        SockFilter::new(0xb1, 0, 0, 14),
        SockFilter::new(0x48, 0, 0, 16),
        unless(12, u32::from(port)),
        SockFilter::new(0x06, 0, 0, FRAME_MAX as u32),
        SockFilter::new(0x06, 0, 0, 0),
    ]
}

/// What a UDP packet in an Ethernet frame carries (RFC 791, RFC 768), if it is one.
pub fn udp_payload(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.get(14..)?;
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let length = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    packet.get(..length)?.get(header + 8..)
}

/// One end of a UDP packet.
#[derive(Debug, Clone, Copy)]
pub struct End {
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub port: u16,
}

/// A UDP packet in an Ethernet frame. The checksum of UDP over IPv4 may be left out, and is.
pub fn udp_frame(from: End, to: End, payload: &[u8]) -> Vec<u8> {
    const TTL: u8 = 64;
    let udp_length = (8 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp_length).to_be_bytes());
    packet.extend([0, 0, 0, 0, TTL, 17, 0, 0]);
    packet.extend(from.address.octets());
    packet.extend(to.address.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(from.port.to_be_bytes());
    packet.extend(to.port.to_be_bytes());
    packet.extend(udp_length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let mut frame = ethernet(to.mac, from.mac, 0x0800);
    frame.extend(packet);
    frame
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// RARP as QEMU announces with (RFC 903): "I am here".
pub fn rarp(mac: Mac) -> Vec<u8> {
    const REVERSE_REQUEST: u16 = 3;
    let mut frame = ethernet(Mac([0xff; 6]), mac, 0x8035);
    frame.extend(arp_body(REVERSE_REQUEST, mac, Ipv4Addr::UNSPECIFIED, mac, Ipv4Addr::UNSPECIFIED));
    frame
}

/// A gratuitous ARP request (RFC 5227 section 3): "this address is mine".
pub fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    const REQUEST: u16 = 1;
    let mut frame = ethernet(Mac([0xff; 6]), mac, 0x0806);
    frame.extend(arp_body(REQUEST, mac, address, Mac([0; 6]), address));
    frame
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes()].concat()
}

fn arp_body(operation: u16, mac: Mac, address: Ipv4Addr, target: Mac, wanted: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 0x08, 0x00, 6, 4];
    [&head[..], &operation.to_be_bytes(), &mac.0, &address.octets(), &target.0, &wanted.octets()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        let end = |port| End { mac: Mac([2, 0, 0, 0, 0, 1]), address: Ipv4Addr::new(10, 0, 0, 1), port };
        let frame = udp_frame(end(67), end(68), b"hello");
        assert_eq!(udp_payload(&frame), Some(&b"hello"[..]));
        assert_eq!(checksum(&frame[14..34]), 0, "a right header sums up to nothing");
        for length in 0..frame.len() {
            assert_eq!(udp_payload(&frame[..length]), None, "cut to {length}");
        }
    }

    #[test]
    fn announcements_are_as_long_as_arp_is() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        assert_eq!(rarp(mac).len(), 42);
        assert_eq!(gratuitous_arp(mac, Ipv4Addr::new(10, 0, 0, 1)).len(), 42);
    }
}
