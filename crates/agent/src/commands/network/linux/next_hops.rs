//! Next hops that exist apart from routes (`ip nexthop`). A route may name one instead of telling it: the kernel tells
//! both unless its `net.ipv4.nexthop_compat_mode` is off.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use crate::system::netlink::{AF_INET, Attributes, number};

const FIXED_BYTES: usize = 8;
const GROUP_MEMBER_BYTES: usize = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

/// Where a route leads at first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hop {
    /// The interface's number; none where nothing is sent.
    pub interface: Option<u32>,
    /// Whether there is a router, of whatever address.
    pub has_router: bool,
    /// The router's address, if it is one of IPv4.
    pub gateway: Option<Ipv4Addr>,
}

/// A next hop, or a group of them, by its number.
#[derive(Debug, PartialEq, Eq)]
pub struct NextHop {
    number: u32,
    hop: Hop,
    /// The numbers of a group's members.
    members: Vec<u32>,
}

/// Reads a next hop out of a message.
pub fn read_next_hop(message: &[u8], next_hops: &mut Vec<NextHop>) -> Option<()> {
    let family = *message.first()?;
    let (mut own_number, mut hop, mut members) = (None, Hop::default(), Vec::new());
    for (kind, value) in Attributes(message.get(FIXED_BYTES..)?) {
        match kind {
            NHA_ID => own_number = number(value, 0),
            NHA_OIF => hop.interface = number(value, 0),
            NHA_GATEWAY => {
                hop.has_router = true;
                hop.gateway = ipv4_address(value).filter(|_| family == AF_INET);
            }
            NHA_GROUP => members = value.chunks_exact(GROUP_MEMBER_BYTES).filter_map(|it| number(it, 0)).collect(),
            _ => {}
        }
    }
    next_hops.push(NextHop { number: own_number?, hop, members });
    Some(())
}

/// The hops behind a number: one, or those of a group, which has no groups in it.
pub fn hops_of(number: u32, next_hops: &HashMap<u32, NextHop>) -> Vec<Hop> {
    let Some(next_hop) = next_hops.get(&number) else { return Vec::new() };
    if next_hop.members.is_empty() {
        return vec![next_hop.hop];
    }
    next_hop.members.iter().filter_map(|member| Some(next_hops.get(member)?.hop)).collect()
}

/// The next hops by their numbers.
pub fn by_number(next_hops: Vec<NextHop>) -> HashMap<u32, NextHop> {
    next_hops.into_iter().map(|next_hop| (next_hop.number, next_hop)).collect()
}

/// An address of four bytes.
pub fn ipv4_address(value: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(*value.first_chunk::<4>()?))
}
