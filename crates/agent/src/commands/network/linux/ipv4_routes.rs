//! The IPv4 routes, in the columns of `/proc/net/route`.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use qga_protocol::network::NetworkRoute;

use super::next_hops::{Hop, NextHop, hops_of, ipv4_address};
use crate::system::netlink::{AF_INET, Attributes, THINGS_MAX, number, short};

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
const RTA_NH_ID: u16 = 30;
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

const HOST_BITS: u8 = 32;
/// The kernel keeps the round trip time in eighths of a millisecond.
const RTT_SHIFT: u32 = 3;

/// A route of the main table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Route {
    kind: u8,
    destination: Option<Ipv4Addr>,
    destination_bits: u8,
    metric: u32,
    mtu: u32,
    window: u32,
    rtt: u32,
    hops: Vec<Hop>,
    /// The number under which its hops are found, if it tells none itself.
    next_hop_number: Option<u32>,
}

/// Reads a route out of a message, if it is one of the main table.
pub fn read_route(message: &[u8], routes: &mut Vec<Route>) -> Option<()> {
    let &[family, destination_bits, _, _, table, _, _, kind, ..] = message else { return None };
    if family != AF_INET || matches!(kind, RTN_BROADCAST | RTN_MULTICAST) || number(message, 8)? & RTM_F_CLONED != 0 {
        return None;
    }
    let mut table = u32::from(table);
    let mut route = Route { kind, destination_bits, ..Route::default() };
    let mut only_hop = Hop::default();
    for (attribute, value) in Attributes(message.get(FIXED_BYTES..)?) {
        match attribute {
            RTA_DST => route.destination = ipv4_address(value),
            RTA_PRIORITY => route.metric = number(value, 0)?,
            RTA_TABLE => table = number(value, 0)?,
            RTA_OIF => only_hop.interface = number(value, 0),
            RTA_METRICS => read_metrics(value, &mut route),
            RTA_MULTIPATH => route.hops = hops(value),
            RTA_NH_ID => route.next_hop_number = number(value, 0),
            _ => read_router(attribute, value, &mut only_hop),
        }
    }
    if table != MAIN_TABLE {
        return None;
    }
    if only_hop.interface.is_some() || !route.hops.is_empty() {
        route.next_hop_number = None;
    }
    if route.hops.is_empty() {
        route.hops.push(only_hop);
    }
    routes.push(route);
    Some(())
}

/// A route's hops, each with length, flags, weight and interface, then attributes.
fn hops(mut rest: &[u8]) -> Vec<Hop> {
    let mut hops = Vec::new();
    while let Some(next) = short(rest, 0).and_then(|length| rest.get(..length.into())) {
        let Some(attributes) = next.get(NEXT_HOP_BYTES..) else { break };
        let mut hop = Hop { interface: number(next, 4), ..Hop::default() };
        for (attribute, value) in Attributes(attributes) {
            read_router(attribute, value, &mut hop);
        }
        hops.push(hop);
        rest = rest.get(next.len().next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

fn read_router(attribute: u16, value: &[u8], hop: &mut Hop) {
    match attribute {
        RTA_GATEWAY => {
            hop.has_router = true;
            hop.gateway = ipv4_address(value);
        }
        // A router with an IPv6 address, for which there is no column.
        RTA_VIA => hop.has_router = true,
        _ => {}
    }
}

fn read_metrics(value: &[u8], route: &mut Route) {
    for (metric, value) in Attributes(value) {
        let Some(value) = number(value, 0) else { continue };
        match metric {
            RTAX_MTU => route.mtu = value,
            RTAX_WINDOW => route.window = value,
            RTAX_RTT => route.rtt = value,
            _ => {}
        }
    }
}

/// Whether the hops of a route must be looked up.
pub fn names_next_hops(route: &Route) -> bool {
    route.next_hop_number.is_some()
}

/// The reply's entries for the routes, in their order; no more than anybody can use, as each route may lead to a group of
/// many hops.
pub fn listed(routes: &[Route], next_hops: &HashMap<u32, NextHop>, names: &HashMap<u32, String>) -> Vec<NetworkRoute> {
    routes.iter().flat_map(|route| entries(route, next_hops, names)).take(THINGS_MAX).collect()
}

/// The entries for a route, one for each hop whose interface is still there.
fn entries(
    route: &Route,
    next_hops: &HashMap<u32, NextHop>,
    names: &HashMap<u32, String>,
) -> impl Iterator<Item = NetworkRoute> {
    let hops = route.next_hop_number.map_or_else(|| route.hops.clone(), |number| hops_of(number, next_hops));
    hops.into_iter().filter_map(|hop| {
        let iface = match hop.interface {
            None => "*".to_owned(),
            Some(index) => names.get(&index)?.clone(),
        };
        Some(entry(route, hop, iface))
    })
}

fn entry(route: &Route, hop: Hop, iface: String) -> NetworkRoute {
    NetworkRoute {
        iface,
        destination: route.destination.unwrap_or(Ipv4Addr::UNSPECIFIED).to_string(),
        metric: route.metric.into(),
        gateway: Some(hop.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED).to_string()),
        mask: Some(mask(route.destination_bits).to_string()),
        irtt: Some((route.rtt >> RTT_SHIFT).into()),
        flags: Some(flags(route, hop)),
        // The kernel counts neither for IPv4.
        refcnt: Some(0),
        r#use: Some(0),
        window: Some(route.window.into()),
        mtu: Some(route.mtu.into()),
        desprefixlen: None,
        source: None,
        srcprefixlen: None,
        nexthop: None,
        version: 4,
    }
}

fn flags(route: &Route, hop: Hop) -> u64 {
    let flag = |set: bool, flag: u64| if set { flag } else { 0 };
    RTF_UP
        | flag(hop.has_router, RTF_GATEWAY)
        | flag(route.destination_bits == HOST_BITS, RTF_HOST)
        | flag(matches!(route.kind, RTN_UNREACHABLE | RTN_PROHIBIT), RTF_REJECT)
}

fn mask(bits: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(HOST_BITS.saturating_sub(bits).into()).unwrap_or(0))
}
