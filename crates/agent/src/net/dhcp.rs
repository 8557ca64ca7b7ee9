//! DHCP (RFC 2131) for the vms of this host: asked and answered at the vm's own tap, so that no request and no answer
//! ever is on the network. There is nothing to lease: the server gave each vm its address, and the answer is always that.
//!
//! Every host answers as [`SERVER`], so a vm that has moved renews at its new host what the old one gave it.

use super::names::Mac;
use super::packet::{End, PacketSocket, udp_frame, udp_from, udp_payload};
use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use drover_model::network::VmPort;
use std::io;
use std::net::Ipv4Addr;
use tokio::task::AbortHandle;

/// Of every host; link-local (RFC 3927), so that no tenant's network has it. A guest that can't send to it (it has no
/// router) asks everybody instead when 7/8 of its time are over, as the RFC has it, and is answered as well.
const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 67, 67);
const SERVER_MAC: Mac = Mac([0x02, b'd', b'r', 0, 0, 67]);
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// What is told besides the address may change; a guest learns it within half of this.
const LEASE_SECONDS: u32 = 3_600;

/// Answers at one tap until it is dropped.
pub struct Answering {
    port: VmPort,
    device: u32,
    task: AbortHandle,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Answering {
    /// `device` is the tap's index: another tap of the same name is another.
    pub fn start(port: VmPort, tap: &str, device: u32) -> io::Result<Self> {
        let mac: Mac = port.mac.parse().map_err(io::Error::other)?;
        let socket = PacketSocket::open(tap, &udp_from(mac, SERVER_PORT))?;
        let asked = port.clone();
        let task = tokio::spawn(async move {
            // An error is the end of the tap.
            while let Ok(frame) = socket.receive().await {
                if let Some(reply) = answer_frame(&asked, mac, &frame)
                    && let Err(error) = socket.send(&reply)
                {
                    tracing::debug!(vm = %asked.vm, %error, "a DHCP answer was lost");
                }
            }
        });
        Ok(Self { port, device, task: task.abort_handle() })
    }

    /// Whether it says at this tap what is to be said.
    pub fn serves(&self, port: &VmPort, device: u32) -> bool {
        self.device == device && self.port == *port
    }
}

fn answer_frame(port: &VmPort, mac: Mac, frame: &[u8]) -> Option<Vec<u8>> {
    let request = Message::decode(&mut Decoder::new(udp_payload(frame)?)).ok()?;
    if request.opcode() != Opcode::BootRequest || request.chaddr() != mac.0 {
        return None;
    }
    let reply = answer(port, &request)?;
    let mut payload = Vec::new();
    reply.encode(&mut Encoder::new(&mut payload)).ok()?;
    let refused = reply.opts().msg_type() == Some(MessageType::Nak);
    // RFC 2131 section 4.1, fourth paragraph.
    let to = if refused || (request.ciaddr().is_unspecified() && request.flags().broadcast()) {
        End { mac: Mac([0xff; 6]), address: Ipv4Addr::BROADCAST, port: CLIENT_PORT }
    } else {
        let address = if request.ciaddr().is_unspecified() { reply.yiaddr() } else { request.ciaddr() };
        End { mac, address, port: CLIENT_PORT }
    };
    Some(udp_frame(End { mac: SERVER_MAC, address: SERVER, port: SERVER_PORT }, to, &payload))
}

/// RFC 2131 section 4.3 for a server with one client and one address for it. `None`: nothing is to be said.
fn answer(port: &VmPort, request: &Message) -> Option<Message> {
    let (subnet, lease) = (port.address?, port.lease.as_ref()?);
    let asked = |code| request.opts().get(code);
    let kind = match request.opts().msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request => {
            if let Some(DhcpOption::ServerIdentifier(server)) = asked(OptionCode::ServerIdentifier)
                && *server != SERVER
            {
                return None;
            }
            let wanted = match asked(OptionCode::RequestedIpAddress) {
                Some(DhcpOption::RequestedIpAddress(address)) => *address,
                _ => request.ciaddr(),
            };
            if wanted == subnet.address { MessageType::Ack } else { MessageType::Nak }
        }
        MessageType::Inform => MessageType::Ack,
        MessageType::Decline => {
            tracing::warn!(vm = %port.vm, address = %subnet.address, "the guest says that somebody else has its address");
            return None;
        }
        _ => return None,
    };
    let mut reply = Message::new_with_id(
        request.xid(),
        request.ciaddr(),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        request.giaddr(),
        request.chaddr(),
    );
    reply.set_opcode(Opcode::BootReply).set_flags(request.flags());
    let inform = request.opts().msg_type() == Some(MessageType::Inform);
    if kind == MessageType::Nak {
        reply.set_ciaddr(Ipv4Addr::UNSPECIFIED).set_flags(Flags::default().set_broadcast());
    } else if !inform {
        reply.set_yiaddr(subnet.address);
    }
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(SERVER));
    if kind == MessageType::Nak {
        return Some(reply);
    }
    if !inform {
        options.insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
    }
    options.insert(DhcpOption::SubnetMask(Ipv4Addr::from(subnet.mask())));
    options.insert(DhcpOption::BroadcastAddr(subnet.broadcast()));
    options.insert(DhcpOption::InterfaceMtu(lease.mtu));
    options.insert(DhcpOption::Hostname(lease.host_name.clone()));
    if let Some(router) = lease.router {
        options.insert(DhcpOption::Router(vec![router]));
    }
    if !lease.dns.is_empty() {
        options.insert(DhcpOption::DomainNameServer(lease.dns.clone()));
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_model::network::{Bandwidth, Lease};

    const MAC: Mac = Mac([0x52, 1, 2, 3, 4, 5]);

    fn port() -> VmPort {
        VmPort {
            vm: "vm-a".parse().unwrap(),
            network: "net-a".parse().unwrap(),
            mac: MAC.to_string(),
            address: Some("10.1.0.5/16".parse().unwrap()),
            lease: Some(Lease {
                host_name: "web-1".to_owned(),
                router: Some(Ipv4Addr::new(10, 1, 0, 1)),
                dns: vec![Ipv4Addr::new(10, 1, 0, 2)],
                mtu: 1_450,
            }),
            perimeter: None,
            bandwidth: Bandwidth::default(),
        }
    }

    fn request(kind: MessageType, options: &[DhcpOption]) -> Message {
        let unset = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(7, unset, unset, unset, unset, &MAC.0);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            message.opts_mut().insert(option.clone());
        }
        message
    }

    #[test]
    fn a_guest_is_offered_exactly_its_address_and_what_goes_with_it() {
        let reply = answer(&port(), &request(MessageType::Discover, &[])).unwrap();
        assert_eq!(reply.yiaddr(), Ipv4Addr::new(10, 1, 0, 5));
        for wanted in [
            DhcpOption::MessageType(MessageType::Offer),
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 0, 0)),
            DhcpOption::Router(vec![Ipv4Addr::new(10, 1, 0, 1)]),
            DhcpOption::DomainNameServer(vec![Ipv4Addr::new(10, 1, 0, 2)]),
            DhcpOption::InterfaceMtu(1_450),
            DhcpOption::Hostname("web-1".to_owned()),
            DhcpOption::ServerIdentifier(SERVER),
        ] {
            assert!(reply.opts().iter().any(|(_, option)| *option == wanted), "{wanted:?} is missing");
        }
    }

    #[test]
    fn requests_are_granted_refused_or_left_to_others() {
        let address = |last| DhcpOption::RequestedIpAddress(Ipv4Addr::new(10, 1, 0, last));
        let other = DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 1, 0, 9));
        let kind = |options: &[DhcpOption]| {
            answer(&port(), &request(MessageType::Request, options)).and_then(|reply| reply.opts().msg_type())
        };
        assert_eq!(kind(&[address(5), DhcpOption::ServerIdentifier(SERVER)]), Some(MessageType::Ack));
        assert_eq!(kind(&[address(5)]), Some(MessageType::Ack), "after a restart of the guest");
        assert_eq!(kind(&[address(6)]), Some(MessageType::Nak));
        assert_eq!(kind(&[address(5), other]), None);
        let mut renewal = request(MessageType::Request, &[]);
        renewal.set_ciaddr(Ipv4Addr::new(10, 1, 0, 5));
        assert_eq!(answer(&port(), &renewal).unwrap().opts().msg_type(), Some(MessageType::Ack));
        assert!(answer(&port(), &request(MessageType::Release, &[])).is_none());
        let inform = answer(&port(), &request(MessageType::Inform, &[])).unwrap();
        assert!(inform.yiaddr().is_unspecified() && inform.opts().get(OptionCode::AddressLeaseTime).is_none());
    }
}
