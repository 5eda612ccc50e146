//! The network of a Linux guest, from the kernel's routing socket (rtnetlink).
//!
//! | answer | source |
//! |---|---|
//! | interfaces, MAC addresses, counters | one dump of all links |
//! | addresses and their labels | one dump of all addresses |
//! | IPv4 routes: the main table, one entry for each next hop | a dump of the routes |
//! | IPv6 routes: all tables, one entry for each next hop | `/proc/net/ipv6_route` |
//!
//! The choice of tables is the original's: hosts have learnt to read its list. For IPv6 the text file is the source
//! because the socket has no count of references and not all flags; for IPv4 the socket is, because the text file has
//! neither the MTU nor the second and further next hops.

pub mod addresses;
pub mod interfaces;
pub mod ipv4_routes;
pub mod ipv6_routes;
pub mod next_hops;

use std::collections::HashMap;
use std::io;

use qga_protocol::network::{NetworkInterface, NetworkRoute};

use crate::system::error::Error;
use crate::system::netlink::{Question, dump};
use crate::system::root::Root;

/// All interfaces.
pub fn interfaces() -> Result<Vec<NetworkInterface>, Error> {
    let failed = |cause| Error::io("cannot list the network interfaces", &cause);
    let links = dump(Question::Links, interfaces::read_link).map_err(failed)?;
    let addresses = dump(Question::Addresses, addresses::read_address).map_err(failed)?;
    Ok(interfaces::joined(links, addresses))
}

/// All routes of IPv4, then all of IPv6.
pub fn routes(root: &Root) -> Result<Vec<NetworkRoute>, Error> {
    let mut routes = routes_of_ipv4().map_err(|cause| Error::io("cannot list the IPv4 routes", &cause))?;
    let text = match root.read(ipv6_routes::PATH) {
        Ok(text) => text,
        // A kernel without IPv6.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(cause) => return Err(Error::io(format_args!("open(\"{}\")", ipv6_routes::PATH), &cause)),
    };
    routes.extend(ipv6_routes::parse(&text));
    Ok(routes)
}

fn routes_of_ipv4() -> io::Result<Vec<NetworkRoute>> {
    let routes = dump(Question::Ipv4Routes, ipv4_routes::read_route)?;
    let next_hops = if routes.iter().any(ipv4_routes::names_next_hops) {
        next_hops::by_number(dump(Question::NextHops, next_hops::read_next_hop)?)
    } else {
        HashMap::new()
    };
    let links = dump(Question::Links, interfaces::read_link)?;
    let names: HashMap<u32, String> = links.into_iter().map(|link| (link.index, link.name)).collect();
    Ok(ipv4_routes::listed(&routes, &next_hops, &names))
}

#[cfg(test)]
mod tests;
