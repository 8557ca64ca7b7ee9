//! Forwarding entries and filters, by rtnetlink(7) in this process: what stands between a guest's stop at one host and its
//! start at another must not wait for a program to be started.

use super::names::Mac;
use futures_util::StreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("can't speak to the kernel by rtnetlink: the agent needs root")]
    Open(#[source] io::Error),
    #[error("can't {what}")]
    Refused {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the kernel did not answer within {} ms when told to {what}", wait_max.as_millis())]
    Silent { what: String, wait_max: Duration },
    #[error("there is no interface {0}")]
    NoInterface(String),
}

/// In the network namespace of the thread that opened it.
#[derive(Clone)]
pub struct Kernel {
    handle: Handle,
    wait_max: Duration,
    _connection: Arc<Connection>,
}

/// Ends with the last of those who use it.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where frames for an address go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forward {
    /// Of a bridge: to this port of it.
    Port,
    /// Of a VXLAN device: to this host.
    Tunnel(IpAddr),
}

/// A forwarding entry that was made by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub device: u32,
    /// All zeros at a VXLAN device: what has no entry of its own.
    pub mac: [u8; 6],
    pub to: Forward,
}

pub const EVERYBODY: [u8; 6] = [0; 6];

/// Of a device, seen from the host: what it receives, what it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Ingress,
    Egress,
}

/// What a filter does. One per priority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Drops everything.
    Drop,
    /// Drops what is for several.
    DropMulticast,
    /// Lets pass, past later filters, what came in by this interface.
    PassFrom { interface: String },
    /// Sends everything out by another device instead.
    SendAll { device: u32 },
    /// Sends what is for this address out by another device instead (or as well).
    Send { mac: Mac, device: u32, copy: bool },
}

impl Kernel {
    pub fn open(wait_max: Duration) -> Result<Self, KernelError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(KernelError::Open)?;
        let task = tokio::spawn(connection).abort_handle();
        Ok(Self { handle, wait_max, _connection: Arc::new(Connection(task)) })
    }

    /// The index of an interface, if there is one of that name.
    pub async fn find(&self, name: &str) -> Result<Option<u32>, KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let what = || format!("look at interface {name}");
        match self.ask(RouteNetlinkMessage::GetLink(message), NLM_F_ACK, what).await {
            Ok(found) => Ok(found.into_iter().find_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
                _ => None,
            })),
            Err(KernelError::Refused { source, .. }) if is(&source, nix::Error::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn index(&self, name: &str) -> Result<u32, KernelError> {
        self.find(name).await?.ok_or_else(|| KernelError::NoInterface(name.to_owned()))
    }

    /// Entries that were made by hand, of bridges and VXLAN devices.
    pub async fn entries(&self) -> Result<BTreeSet<Entry>, KernelError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let what = || "list forwarding entries".to_owned();
        let found = self.ask(RouteNetlinkMessage::GetNeighbour(message), NLM_F_DUMP, what).await?;
        Ok(found.iter().filter_map(entry).collect())
    }

    /// Leads frames for an address elsewhere than before, without a moment between.
    pub async fn set_entry(&self, entry: Entry) -> Result<(), KernelError> {
        let several = entry.mac == EVERYBODY;
        let mode = if several { NLM_F_APPEND } else { NLM_F_REPLACE };
        let what = || format!("set the forwarding entry of {}", Mac(entry.mac));
        let message = RouteNetlinkMessage::NewNeighbour(message_of(entry));
        match self.ask(message, NLM_F_ACK | NLM_F_CREATE | mode, what).await {
            Err(KernelError::Refused { source, .. }) if is(&source, nix::Error::EEXIST) => Ok(()),
            other => other.map(drop),
        }
    }

    pub async fn remove_entry(&self, entry: Entry) -> Result<(), KernelError> {
        let what = || format!("remove the forwarding entry of {}", Mac(entry.mac));
        gone(self.ask(RouteNetlinkMessage::DelNeighbour(message_of(entry)), NLM_F_ACK, what).await)
    }

    /// Addresses that a bridge answers ARP for, with what it answers.
    pub async fn arp_answers(&self) -> Result<BTreeSet<(u32, Ipv4Addr, [u8; 6])>, KernelError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        let what = || "list neighbours".to_owned();
        let found = self.ask(RouteNetlinkMessage::GetNeighbour(message), NLM_F_DUMP, what).await?;
        let answer = |message: &RouteNetlinkMessage| {
            let RouteNetlinkMessage::NewNeighbour(neighbour) = message else { return None };
            let permanent = neighbour.header.state == NeighbourState::Permanent;
            let address = neighbour.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
                _ => None,
            })?;
            permanent.then_some((neighbour.header.ifindex, address, mac_of(neighbour)?))
        };
        Ok(found.iter().filter_map(answer).collect())
    }

    pub async fn set_arp_answer(&self, bridge: u32, address: Ipv4Addr, mac: [u8; 6]) -> Result<(), KernelError> {
        let mut message = neighbour(bridge, address);
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let what = || format!("have ARP for {address} answered");
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewNeighbour(message), flags, what).await.map(drop)
    }

    pub async fn remove_arp_answer(&self, bridge: u32, address: Ipv4Addr) -> Result<(), KernelError> {
        let what = || format!("stop answering ARP for {address}");
        gone(self.ask(RouteNetlinkMessage::DelNeighbour(neighbour(bridge, address)), NLM_F_ACK, what).await)
    }

    /// Where filters can be put. There already is fine.
    pub async fn make_filterable(&self, device: u32) -> Result<(), KernelError> {
        let mut message = TcMessage::with_index(device as i32);
        message.header.parent = TcHandle::CLSACT;
        message.header.handle = TcHandle { major: 0xffff, minor: 0 };
        message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        let what = || format!("make interface {device} filterable");
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        match self.ask(RouteNetlinkMessage::NewQueueDiscipline(message), flags, what).await {
            Err(KernelError::Refused { source, .. }) if is(&source, nix::Error::EEXIST) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Puts the filter in unless there is one at that priority: what stands at one never changes its meaning.
    pub async fn add_filter(&self, device: u32, side: Side, priority: u16, filter: &Filter) -> Result<(), KernelError> {
        let mut message = filter_message(device, side, priority);
        message.header.handle = match filter {
            // A node of whichever table the kernel makes for the priority.
            Filter::PassFrom { .. } => TcHandle { major: 0, minor: 0x800 },
            Filter::Drop | Filter::DropMulticast | Filter::SendAll { .. } | Filter::Send { .. } => {
                TcHandle { major: 0, minor: 1 }
            }
        };
        let (kind, options) = filter_options(filter);
        message.attributes.push(TcAttribute::Kind(kind.to_owned()));
        message.attributes.push(TcAttribute::Options(options));
        let what = || format!("filter what interface {device} {side:?} carries");
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        match self.ask(RouteNetlinkMessage::NewTrafficFilter(message), flags, what).await {
            Err(KernelError::Refused { source, .. })
                if is(&source, nix::Error::EEXIST) || is(&source, nix::Error::ENOSPC) =>
            {
                Ok(())
            }
            other => other.map(drop),
        }
    }

    pub async fn remove_filter(&self, device: u32, side: Side, priority: u16) -> Result<(), KernelError> {
        let what = || format!("take a filter from interface {device}");
        let message = filter_message(device, side, priority);
        match self.ask(RouteNetlinkMessage::DelTrafficFilter(message), NLM_F_ACK, what).await {
            // It has never been filterable.
            Err(KernelError::Refused { source, .. }) if is(&source, nix::Error::EINVAL) => Ok(()),
            other => gone(other),
        }
    }

    /// Priorities of the filters there are.
    pub async fn filters(&self, device: u32, side: Side) -> Result<BTreeSet<u16>, KernelError> {
        let mut message = filter_message(device, side, 0);
        message.header.info = 0;
        let what = || format!("list the filters of interface {device}");
        let found = match self.ask(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP, what).await {
            Err(KernelError::Refused { .. }) => Vec::new(),
            other => other?,
        };
        let priority = |message: RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewTrafficFilter(filter) => Some((filter.header.info >> 16) as u16),
            _ => None,
        };
        Ok(found.into_iter().filter_map(priority).collect())
    }

    async fn ask(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        let refused = |source| KernelError::Refused { what: what(), source };
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        let mut answers =
            self.handle.clone().request(message).map_err(|error| refused(io::Error::other(error.to_string())))?;
        let collect = async {
            let mut found = Vec::new();
            while let Some(answer) = answers.next().await {
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(refused(error.to_io())),
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    _ => {}
                }
            }
            Ok(found)
        };
        let late = |_| KernelError::Silent { what: what(), wait_max: self.wait_max };
        tokio::time::timeout(self.wait_max, collect).await.map_err(late)?
    }
}

fn is(error: &io::Error, number: nix::Error) -> bool {
    error.raw_os_error() == Some(number as i32)
}

/// Removing what is not there has succeeded.
fn gone<T>(result: Result<T, KernelError>) -> Result<(), KernelError> {
    match result {
        Err(KernelError::Refused { source, .. })
            if is(&source, nix::Error::ENOENT) || is(&source, nix::Error::ENODEV) =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}

fn mac_of(message: &NeighbourMessage) -> Option<[u8; 6]> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

fn entry(message: &RouteNetlinkMessage) -> Option<Entry> {
    let RouteNetlinkMessage::NewNeighbour(neighbour) = message else { return None };
    let (header, mac) = (&neighbour.header, mac_of(neighbour)?);
    let of_tunnel = header.flags.contains(NeighbourFlags::Own);
    let to = if of_tunnel {
        Forward::Tunnel(neighbour.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(address) => tunnel_end(address),
            _ => None,
        })?)
    } else if header.state == NeighbourState::Noarp {
        Forward::Port
    } else {
        // Learned, or an interface's own address.
        return None;
    };
    Some(Entry { device: header.ifindex, mac, to })
}

/// DesiredNetwork without its family among the entries of bridges.
fn tunnel_end(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some(IpAddr::V4(*address)),
        NeighbourAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes))),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes))),
            _ => None,
        },
        _ => None,
    }
}

fn message_of(entry: Entry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = entry.device;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.to_vec()));
    match entry.to {
        Forward::Port => {
            // The bridge's own table: static, and not an address of the host.
            message.header.state = NeighbourState::Noarp;
            message.header.flags = NeighbourFlags::Controller;
        }
        Forward::Tunnel(address) => {
            message.header.state = NeighbourState::Permanent;
            message.header.flags = NeighbourFlags::Own;
            message.attributes.push(NeighbourAttribute::Destination(address.into()));
        }
    }
    message
}

fn neighbour(bridge: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = bridge;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

fn filter_message(device: u32, side: Side, priority: u16) -> TcMessage {
    const ETH_P_ALL: u16 = 3;
    let minor = match side {
        Side::Ingress => TcHandle::MIN_INGRESS,
        Side::Egress => TcHandle::MIN_EGRESS,
    };
    let mut message = TcMessage::with_index(device as i32);
    message.header.parent = TcHandle { major: 0xffff, minor };
    message.header.info = u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be());
    message
}

// linux/pkt_cls.h: the kernel's classifiers `bpf` (here with a program of the classic kind) and `u32`.
const TCA_BPF_ACT: u16 = 1;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_INDEV: u16 = 8;
const TC_U32_TERMINAL: u8 = 1;
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_PIPE: i32 = 3;
const TC_ACT_STOLEN: i32 = 4;
// linux/tc_act/tc_mirred.h
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: i32 = 1;
const TCA_EGRESS_MIRROR: i32 = 2;

/// A classic BPF instruction (linux/filter.h): code, where to go on if true and if false, operand.
type Instruction = (u16, u8, u8, u32);
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
/// Return value of a filter with an action: it applies.
const MATCHED: u32 = u32::MAX;

fn filter_options(filter: &Filter) -> (&'static str, Vec<TcOption>) {
    let direct = || option(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    match filter {
        Filter::Drop => {
            let mut options = program(&[(RETURN, 0, 0, TC_ACT_SHOT)]);
            options.push(direct());
            ("bpf", options)
        }
        Filter::DropMulticast => {
            // The lowest bit of the first byte (IEEE 802).
            let mut options = program(&[
                (LOAD_BYTE, 0, 0, 0),
                (JUMP_SET, 0, 1, 1),
                (RETURN, 0, 0, TC_ACT_SHOT),
                (RETURN, 0, 0, TC_ACT_UNSPEC),
            ]);
            options.push(direct());
            ("bpf", options)
        }
        Filter::SendAll { device } => {
            let mut options = program(&[(RETURN, 0, 0, MATCHED)]);
            options.push(option(TCA_BPF_ACT, &mirred(*device, false)));
            ("bpf", options)
        }
        Filter::Send { mac, device, copy } => {
            let [a, b, c, d, e, f] = mac.0;
            let mut options = program(&[
                (LOAD_WORD, 0, 0, 0),
                (JUMP_EQUAL, 0, 3, u32::from_be_bytes([a, b, c, d])),
                (LOAD_HALF, 0, 0, 4),
                (JUMP_EQUAL, 0, 1, u32::from(u16::from_be_bytes([e, f]))),
                (RETURN, 0, 0, MATCHED),
                (RETURN, 0, 0, 0),
            ]);
            options.push(option(TCA_BPF_ACT, &mirred(*device, *copy)));
            ("bpf", options)
        }
        Filter::PassFrom { interface } => {
            // tc_u32_sel with one key that everything matches.
            let mut selector = [0; 32];
            selector[0] = TC_U32_TERMINAL;
            selector[2] = 1;
            let mut name = interface.clone().into_bytes();
            name.push(0);
            ("u32", vec![option(TCA_U32_SEL, &selector), option(TCA_U32_INDEV, &name)])
        }
    }
}

fn option(kind: u16, value: &[u8]) -> TcOption {
    TcOption::Other(DefaultNla::new(kind, value.to_vec()))
}

fn program(instructions: &[Instruction]) -> Vec<TcOption> {
    let mut bytes = Vec::new();
    for (code, if_true, if_false, operand) in instructions {
        bytes.extend(code.to_ne_bytes());
        bytes.extend([*if_true, *if_false]);
        bytes.extend(operand.to_ne_bytes());
    }
    let length = instructions.len() as u16;
    vec![option(TCA_BPF_OPS_LEN, &length.to_ne_bytes()), option(TCA_BPF_OPS, &bytes)]
}

/// The list of actions: one, to another device's egress.
fn mirred(device: u32, copy: bool) -> Vec<u8> {
    let (verdict, how) = if copy { (TC_ACT_PIPE, TCA_EGRESS_MIRROR) } else { (TC_ACT_STOLEN, TCA_EGRESS_REDIR) };
    // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    let words = [0, 0, verdict, 0, 0, how, device as i32];
    let parameters: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut action = attribute(TCA_ACT_KIND, b"mirred\0");
    action.extend(attribute(TCA_ACT_OPTIONS, &attribute(TCA_MIRRED_PARMS, &parameters)));
    // The first of the list.
    attribute(1, &action)
}

/// A netlink attribute with its padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    const HEADER: usize = 4;
    let mut bytes = Vec::from(((HEADER + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
