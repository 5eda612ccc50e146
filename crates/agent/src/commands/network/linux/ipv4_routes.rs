//! The IPv4 routes, in the columns of `/proc/net/route`.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use qga_protocol::network::NetworkRoute;

use super::netlink::{AF_INET, Attributes, number, short};

const FIXED_BYTES: usize = 12;
const NEXT_HOP_BYTES: usize = 8;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
const RTAX_WINDOW: u16 = 3;
const RTAX_RTT: u16 = 4;

/// The table that `ip route` shows without being asked for another.
const MAIN_TABLE: u32 = 254;
/// A copy of a route that the kernel has made for one destination.
const RTM_F_CLONED: u32 = 0x200;

const RTN_BROADCAST: u8 = 3;
const RTN_MULTICAST: u8 = 5;
const RTN_UNREACHABLE: u8 = 7;
const RTN_PROHIBIT: u8 = 8;

const RTF_UP: u64 = 0x1;
const RTF_GATEWAY: u64 = 0x2;
const RTF_HOST: u64 = 0x4;
const RTF_REJECT: u64 = 0x200;

/// The kernel keeps the round trip time in eighths of a millisecond.
const RTT_SHIFT: u32 = 3;

/// A next hop of a route, with what it shares with the route's other hops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// The interface's number; none where nothing is sent.
    interface: Option<u32>,
    has_router: bool,
    gateway: Ipv4Addr,
    kind: u8,
    destination: Ipv4Addr,
    destination_bits: u8,
    metric: u32,
    mtu: u32,
    window: u32,
    rtt: u32,
}

impl Hop {
    /// The entry of the reply; none if the interface has gone.
    pub fn into_route(self, names: &HashMap<u32, String>) -> Option<NetworkRoute> {
        let iface = match self.interface {
            None => "*".to_owned(),
            Some(index) => names.get(&index)?.clone(),
        };
        Some(NetworkRoute {
            iface,
            destination: self.destination.to_string(),
            metric: self.metric.into(),
            gateway: Some(self.gateway.to_string()),
            mask: Some(mask(self.destination_bits).to_string()),
            irtt: Some((self.rtt >> RTT_SHIFT).into()),
            flags: Some(self.flags()),
            // The kernel counts neither for IPv4.
            refcnt: Some(0),
            r#use: Some(0),
            window: Some(self.window.into()),
            mtu: Some(self.mtu.into()),
            desprefixlen: None,
            source: None,
            srcprefixlen: None,
            nexthop: None,
            version: 4,
        })
    }

    fn flags(&self) -> u64 {
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        RTF_UP
            | flag(self.has_router, RTF_GATEWAY)
            | flag(self.destination_bits == 32, RTF_HOST)
            | flag(matches!(self.kind, RTN_UNREACHABLE | RTN_PROHIBIT), RTF_REJECT)
    }
}

fn mask(bits: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32_u32.saturating_sub(bits.into())).unwrap_or(0))
}

/// Reads the next hops of a route of the main table out of a message.
pub fn read_hops(message: &[u8], hops: &mut Vec<Hop>) -> Option<()> {
    let &[family, destination_bits, _, _, table, _, _, kind, ..] = message else { return None };
    if family != AF_INET || matches!(kind, RTN_BROADCAST | RTN_MULTICAST) || number(message, 8)? & RTM_F_CLONED != 0 {
        return None;
    }
    let mut table = u32::from(table);
    let mut hop = Hop {
        interface: None,
        has_router: false,
        gateway: Ipv4Addr::UNSPECIFIED,
        kind,
        destination: Ipv4Addr::UNSPECIFIED,
        destination_bits,
        metric: 0,
        mtu: 0,
        window: 0,
        rtt: 0,
    };
    let mut several: &[u8] = &[];
    for (attribute, value) in Attributes(message.get(FIXED_BYTES..)?) {
        match attribute {
            RTA_DST => hop.destination = address(value)?,
            RTA_PRIORITY => hop.metric = number(value, 0)?,
            RTA_TABLE => table = number(value, 0)?,
            RTA_OIF => hop.interface = number(value, 0),
            RTA_METRICS => read_metrics(value, &mut hop),
            RTA_MULTIPATH => several = value,
            _ => read_router(attribute, value, &mut hop),
        }
    }
    if table != MAIN_TABLE {
        return None;
    }
    if several.is_empty() {
        hops.push(hop);
        return Some(());
    }
    while let Some(next) = next_hop(&mut several) {
        let mut hop = Hop { interface: number(next, 4), ..hop.clone() };
        for (attribute, value) in Attributes(next.get(NEXT_HOP_BYTES..)?) {
            read_router(attribute, value, &mut hop);
        }
        hops.push(hop);
    }
    Some(())
}

/// The next of a route's hops: length, flags, weight and interface, then attributes.
fn next_hop<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let hop = rest.get(..usize::from(short(rest, 0)?)).filter(|hop| hop.len() >= NEXT_HOP_BYTES)?;
    *rest = rest.get(hop.len().next_multiple_of(4)..).unwrap_or_default();
    Some(hop)
}

fn read_router(attribute: u16, value: &[u8], hop: &mut Hop) {
    match attribute {
        RTA_GATEWAY => {
            hop.has_router = true;
            hop.gateway = address(value).unwrap_or(hop.gateway);
        }
        // A router with an IPv6 address, for which there is no column.
        RTA_VIA => hop.has_router = true,
        _ => {}
    }
}

fn read_metrics(value: &[u8], hop: &mut Hop) {
    for (metric, value) in Attributes(value) {
        let Some(value) = number(value, 0) else { continue };
        match metric {
            RTAX_MTU => hop.mtu = value,
            RTAX_WINDOW => hop.window = value,
            RTAX_RTT => hop.rtt = value,
            _ => {}
        }
    }
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(*value.first_chunk::<4>()?))
}
