//! The kernel's table of flows, for UDP alone: a TCP connection ends by itself, but a UDP flow would go on to an endpoint
//! that is gone for as long as its sender speaks.
//!
//! The messages are those of `nfnetlink_conntrack`: a dump, and one deletion for each flow that is to be forgotten.
//! Source: the kernel's `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use super::Family;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const UDP: u8 = 17;

/// The kernel answers at once; a silence is an error rather than a wait for ever.
const PATIENCE_SECONDS: i64 = 5;
const BUFFER: usize = 64 * 1024;

/// A flow as it was addressed, and who answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub destination: IpAddr,
    pub port: u16,
    pub answering: IpAddr,
    pub answering_port: u16,
}

/// Forgets the UDP flows of a family that are `stale`. Returns how many. Blocking, for some milliseconds.
pub fn forget_udp(family: Family, stale: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let socket = open()?;
    send(socket.as_raw_fd(), &message(family, GET, REQUEST | DUMP, &[]), MsgFlags::empty())?;
    let mut doomed = Vec::new();
    let mut buffer = vec![0; BUFFER];
    'dump: loop {
        let n = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, payload) in messages(&buffer[..n]) {
            match kind {
                NEW => {
                    let Some((flow, identity)) = udp_flow(payload) else { continue };
                    if stale(&flow) {
                        doomed.push(identity);
                    }
                }
                DONE => break 'dump,
                ERROR => acknowledged(payload)?,
                _ => {}
            }
        }
    }
    let mut forgotten = 0;
    for identity in doomed {
        send(socket.as_raw_fd(), &message(family, DELETE, REQUEST | ACKNOWLEDGE, &identity), MsgFlags::empty())?;
        let n = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, payload) in messages(&buffer[..n]) {
            if kind == ERROR {
                match acknowledged(payload) {
                    Ok(()) => forgotten += 1,
                    // It ended by itself meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(forgotten)
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&socket, ReceiveTimeout, &nix::sys::time::TimeVal::new(PATIENCE_SECONDS, 0))?;
    Ok(socket)
}

/// A netlink header, a netfilter header, and attributes.
fn message(family: Family, kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(20 + attributes.len());
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    let family = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let family = u8::try_from(family).unwrap_or(0);
    bytes.extend_from_slice(&[family, 0, 0, 0]);
    bytes.extend_from_slice(attributes);
    bytes
}

fn number(bytes: &[u8]) -> Option<usize> {
    bytes.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes).and_then(|n| usize::try_from(n).ok())
}

fn short(bytes: &[u8]) -> Option<u16> {
    bytes.get(..2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes)
}

/// Kinds and payloads, as far as they are whole.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = number(bytes)?;
        let kind = short(bytes.get(4..)?)?;
        let payload = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

fn acknowledged(payload: &[u8]) -> io::Result<()> {
    match payload.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Types, values and the whole of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(short(bytes)?);
        // The upper bits say how a value is to be read, which is known here.
        let kind = short(bytes.get(2..)?)? & 0x3fff;
        let (value, whole) = (bytes.get(4..length)?, bytes.get(..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value, whole))
    })
}

/// A UDP flow, and the attributes that name it to the kernel.
fn udp_flow(payload: &[u8]) -> Option<(Flow, Vec<u8>)> {
    let mut identity = Vec::new();
    let (mut original, mut reply) = (None, None);
    for (kind, value, whole) in attributes(payload.get(4..)?) {
        match kind {
            TUPLE_ORIGINAL => original = tuple(value),
            TUPLE_REPLY => reply = tuple(value),
            _ => {}
        }
        if matches!(kind, TUPLE_ORIGINAL | ZONE | ID) {
            identity.extend_from_slice(whole);
            identity.resize(identity.len().next_multiple_of(4), 0);
        }
    }
    let ((_, destination, _, port), (answering, _, answering_port, _)) = (original?, reply?);
    Some((Flow { destination, port, answering, answering_port }, identity))
}

/// Source and destination addresses, source and destination ports; None for another protocol.
fn tuple(bytes: &[u8]) -> Option<(IpAddr, IpAddr, u16, u16)> {
    let (mut from, mut to, mut from_port, mut to_port, mut protocol) = (None, None, None, None, None);
    let v4 = |value: &[u8]| <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from).map(IpAddr::V4);
    let v6 = |value: &[u8]| <[u8; 16]>::try_from(value).ok().map(Ipv6Addr::from).map(IpAddr::V6);
    let port = |value: &[u8]| <[u8; 2]>::try_from(value).ok().map(u16::from_be_bytes);
    for (kind, value, _) in attributes(bytes) {
        for (inner, value, _) in attributes(value) {
            match (kind, inner) {
                (TUPLE_IP, 1) => from = v4(value),
                (TUPLE_IP, 2) => to = v4(value),
                (TUPLE_IP, 3) => from = v6(value),
                (TUPLE_IP, 4) => to = v6(value),
                (TUPLE_PROTOCOL, 1) => protocol = value.first().copied(),
                (TUPLE_PROTOCOL, 2) => from_port = port(value),
                (TUPLE_PROTOCOL, 3) => to_port = port(value),
                _ => {}
            }
        }
    }
    (protocol == Some(UDP)).then_some(())?;
    Some((from?, to?, from_port?, to_port?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple_of(kind: u16, from: [u8; 4], to: [u8; 4], ports: (u16, u16), protocol: u8) -> Vec<u8> {
        let ip = [attribute(1, &from), attribute(2, &to)].concat();
        let ports =
            [attribute(1, &[protocol]), attribute(2, &ports.0.to_be_bytes()), attribute(3, &ports.1.to_be_bytes())];
        // Nested attributes carry a flag in their type.
        let nested = [attribute(1 | 0x8000, &ip), attribute(2 | 0x8000, &ports.concat())].concat();
        attribute(kind | 0x8000, &nested)
    }

    #[test]
    fn a_flow_is_read_with_what_names_it() {
        let original = tuple_of(TUPLE_ORIGINAL, [10, 0, 0, 1], [10, 96, 0, 1], (4000, 53), UDP);
        let reply = tuple_of(TUPLE_REPLY, [10, 0, 0, 9], [10, 0, 0, 1], (5353, 4000), UDP);
        let id = attribute(ID, &[1, 2, 3, 4]);
        let payload = [vec![2, 0, 0, 0], original.clone(), reply, attribute(3, &[0; 4]), id.clone()].concat();
        let (flow, identity) = udp_flow(&payload).unwrap();
        assert_eq!((flow.destination, flow.port), (IpAddr::from([10, 96, 0, 1]), 53));
        assert_eq!((flow.answering, flow.answering_port), (IpAddr::from([10, 0, 0, 9]), 5353));
        assert_eq!(identity, [original, id].concat());
        for cut in 0..payload.len() {
            // Never out of bounds, whatever comes.
            let _ = udp_flow(&payload[..cut]);
            let _: Vec<_> = messages(&payload[..cut]).collect();
        }
        let tcp = [vec![2, 0, 0, 0], tuple_of(TUPLE_ORIGINAL, [1; 4], [2; 4], (1, 2), 6)].concat();
        assert!(udp_flow(&tcp).is_none());
    }

    #[test]
    fn a_flow_of_ipv6_is_read_too() {
        let tuple = |kind, from: &str, to: &str, ports: (u16, u16)| {
            let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
            let ip = [attribute(3, &octets(from)), attribute(4, &octets(to))].concat();
            let ports =
                [attribute(1, &[UDP]), attribute(2, &ports.0.to_be_bytes()), attribute(3, &ports.1.to_be_bytes())];
            attribute(kind | 0x8000, &[attribute(1 | 0x8000, &ip), attribute(2 | 0x8000, &ports.concat())].concat())
        };
        let original = tuple(TUPLE_ORIGINAL, "fd00::2", "fd01::1", (4000, 53));
        let reply = tuple(TUPLE_REPLY, "fd00::9", "fd00::2", (5353, 4000));
        let (flow, _) = udp_flow(&[vec![10, 0, 0, 0], original, reply].concat()).unwrap();
        let wanted = Flow {
            destination: "fd01::1".parse().unwrap(),
            port: 53,
            answering: "fd00::9".parse().unwrap(),
            answering_port: 5353,
        };
        assert_eq!(flow, wanted);
    }

    #[test]
    fn the_kernel_shows_its_table() {
        for family in [Family::V4, Family::V6] {
            assert_eq!(forget_udp(family, |_| false).unwrap(), 0);
        }
    }
}
