//! Interfaces: the kernel's links, and their addresses joined to them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use qga_protocol::network::{InterfaceStatistics, IpAddress, IpAddressType, NetworkInterface};

use super::addresses::{Address, ipv6_text};
use crate::system::netlink::{Attributes, long, number, short, text};

const FIXED_BYTES: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_STATS64: u16 = 23;

/// Kinds of links whose link-layer address is an IP address: `ARPHRD_TUNNEL`, `TUNNEL6`, `SIT`, `IPGRE`, `IP6GRE`.
const TUNNELS: [u16; 5] = [768, 769, 776, 778, 823];
/// A MAC address. Longer ones are an InfiniBand port's and the like, shorter ones nothing that hosts know.
const MAC_BYTES_MIN: usize = 6;

/// An interface as the kernel tells of it.
#[derive(Debug, PartialEq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    pub name: String,
    pub hardware_address: Option<String>,
    pub statistics: Option<InterfaceStatistics>,
}

/// Reads a link out of a message.
pub fn read_link(message: &[u8], links: &mut Vec<Link>) -> Option<()> {
    let (kind, index) = (short(message, 2)?, number(message, 4)?);
    let (mut name, mut address, mut statistics) = (None, None, None);
    for (attribute, value) in Attributes(message.get(FIXED_BYTES..)?) {
        match attribute {
            IFLA_IFNAME => name = Some(text(value)),
            IFLA_ADDRESS => address = Some(value),
            IFLA_STATS64 => statistics = counters(value),
            _ => {}
        }
    }
    let hardware_address = address.filter(|bytes| bytes.len() >= MAC_BYTES_MIN && !TUNNELS.contains(&kind));
    links.push(Link { index, name: name?, hardware_address: hardware_address.map(hexadecimal), statistics });
    Some(())
}

/// The counters in the order of the kernel's `rtnl_link_stats64`, told as `/proc/net/dev` tells them.
fn counters(value: &[u8]) -> Option<InterfaceStatistics> {
    let counter = |place: usize| long(value, place * size_of::<u64>());
    let (dropped, missed) = (counter(6)?, counter(15)?);
    Some(InterfaceStatistics {
        rx_packets: counter(0)?,
        tx_packets: counter(1)?,
        rx_bytes: counter(2)?,
        tx_bytes: counter(3)?,
        rx_errs: counter(4)?,
        tx_errs: counter(5)?,
        rx_dropped: dropped.wrapping_add(missed),
        tx_dropped: counter(7)?,
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for (place, byte) in bytes.iter().enumerate() {
        let separator = if place == 0 { "" } else { ":" };
        let _ = write!(text, "{separator}{byte:02x}");
    }
    text
}

/// The reply: an entry for each link in the kernel's order, then one for each label that is no link's name.
pub fn joined(links: Vec<Link>, addresses: Vec<Address>) -> Vec<NetworkInterface> {
    let places: HashMap<u32, usize> = links.iter().enumerate().map(|(place, link)| (link.index, place)).collect();
    let mut entries: Vec<NetworkInterface> = links
        .into_iter()
        .map(|link| NetworkInterface {
            name: link.name,
            hardware_address: link.hardware_address,
            ip_addresses: None,
            statistics: link.statistics,
        })
        .collect();
    let mut by_name: HashMap<String, usize> =
        entries.iter().enumerate().map(|(place, entry)| (entry.name.clone(), place)).collect();
    for address in addresses {
        // Without a link it is an interface's that came between the two dumps.
        let Some(&link) = places.get(&address.interface) else { continue };
        let place = address.label.map_or(link, |label| {
            *by_name.entry(label).or_insert_with_key(|label| {
                entries.push(NetworkInterface {
                    name: label.clone(),
                    hardware_address: entries[link].hardware_address.clone(),
                    ip_addresses: None,
                    statistics: None,
                });
                entries.len() - 1
            })
        });
        entries[place].ip_addresses.get_or_insert_default().push(described(address.ip, address.prefix));
    }
    entries
}

fn described(address: IpAddr, prefix: u8) -> IpAddress {
    let (ip_address, ip_address_type) = match address {
        IpAddr::V4(address) => (address.to_string(), IpAddressType::Ipv4),
        IpAddr::V6(address) => (ipv6_text(address), IpAddressType::Ipv6),
    };
    IpAddress { ip_address, ip_address_type: ip_address_type.into(), prefix: prefix.into() }
}
