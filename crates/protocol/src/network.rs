//! The guest's network as the guest sees it: `guest-network-get-interfaces`, `guest-network-get-route`.
//!
//! The family only reads. Names are in `identity.rs`.

use crate::command::{Command, Family, Open, Platforms};
use crate::{command, enumeration, object};

/// The family's commands.
pub const FAMILY: Family = Family { name: "network", commands: &[GetInterfaces::INFO, GetRoute::INFO] };

command! {
    "guest-network-get-interfaces", since "1.1", reply Vec<NetworkInterface>,
    /// Lists the network interfaces with their addresses and counters, those that are down and the loopback included.
    ///
    /// On Linux an IPv4 address with a label of its own, such as `eth0:web`, makes an entry of that name.
    ///
    /// Errors: interfaces that cannot be listed.
    pub struct GetInterfaces {}
}

object! {
    /// An interface in the reply of `guest-network-get-interfaces`.
    pub struct NetworkInterface as "GuestNetworkInterface" {
        /// The name: `eth0`, on Windows `Ethernet`.
        name: String,
        /// The link-layer address in lower-case hexadecimal with colons, six bytes for Ethernet, 20 for InfiniBand;
        /// absent where there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        hardware_address: Option<String>,
        /// The addresses; absent if there are none.
        #[serde(skip_serializing_if = "Option::is_none")]
        ip_addresses: Option<Vec<IpAddress>>,
        /// The counters (since 2.11); absent for a label's entry, where the system has none, and on BSD.
        #[serde(skip_serializing_if = "Option::is_none")]
        statistics: Option<InterfaceStatistics>,
    }
}

object! {
    /// An address of an interface.
    pub struct IpAddress as "GuestIpAddress" {
        /// The address as text, without prefix: `192.0.2.2`, `fe80::1`; on Windows with its scope, `fe80::1%4`.
        ip_address: String,
        /// Its kind.
        ip_address_type: Open<IpAddressType>,
        /// How many leading bits are the network's.
        prefix: i64,
    }
}

enumeration! {
    /// A kind of address.
    pub enum IpAddressType as "GuestIpAddressType" {
        /// IP version 4.
        Ipv4,
        /// IP version 6.
        Ipv6,
    }
}

object! {
    /// The counters of an interface since it exists (since 2.11).
    pub struct InterfaceStatistics as "GuestNetworkInterfaceStat" {
        /// Bytes received.
        rx_bytes: u64,
        /// Packets received.
        rx_packets: u64,
        /// Packets received with an error.
        rx_errs: u64,
        /// Packets received and dropped.
        rx_dropped: u64,
        /// Bytes sent.
        tx_bytes: u64,
        /// Packets sent.
        tx_packets: u64,
        /// Packets not sent for an error.
        tx_errs: u64,
        /// Packets dropped instead of sent.
        tx_dropped: u64,
    }
}

command! {
    "guest-network-get-route", since "9.1", reply Vec<NetworkRoute>, rules { platforms: Platforms::LINUX },
    /// Lists the routes: for IPv4 those of the main table, then for IPv6 those of all tables.
    ///
    /// The members are the columns of `/proc/net/route` and `/proc/net/ipv6_route`; those of one version are absent in
    /// the other. A route with several next hops has an entry for each.
    pub struct GetRoute {}
}

object! {
    /// A route in the reply of `guest-network-get-route`.
    pub struct NetworkRoute as "GuestNetworkRoute" {
        /// The interface; `*` for an IPv4 route that rejects or drops.
        iface: String,
        /// The destination's network, without prefix: `0.0.0.0` or `::` for the default route.
        destination: String,
        /// The priority; the lowest wins.
        metric: i64,
        /// The router, `0.0.0.0` if there is none (IPv4).
        #[serde(skip_serializing_if = "Option::is_none")]
        gateway: Option<String>,
        /// The destination's network mask, `255.255.255.0` (IPv4).
        #[serde(skip_serializing_if = "Option::is_none")]
        mask: Option<String>,
        /// The initial round trip time of TCP connections, in milliseconds; 0 if not set (IPv4).
        #[serde(skip_serializing_if = "Option::is_none")]
        irtt: Option<i64>,
        /// The kernel's flags: 1 up, 2 through a router, 4 a host, others as in `linux/route.h` and
        /// `linux/ipv6_route.h`.
        #[serde(skip_serializing_if = "Option::is_none")]
        flags: Option<u64>,
        /// The count of references.
        #[serde(skip_serializing_if = "Option::is_none")]
        refcnt: Option<i64>,
        /// The count of lookups.
        #[serde(skip_serializing_if = "Option::is_none")]
        r#use: Option<i64>,
        /// The window of TCP connections, in bytes; 0 if not set (IPv4).
        #[serde(skip_serializing_if = "Option::is_none")]
        window: Option<i64>,
        /// The largest packet, in bytes; 0 if not set (IPv4).
        #[serde(skip_serializing_if = "Option::is_none")]
        mtu: Option<i64>,
        /// The bits of the destination's prefix, as decimal text (IPv6).
        #[serde(skip_serializing_if = "Option::is_none")]
        desprefixlen: Option<String>,
        /// The network of the source that the route is for, `::` for any (IPv6).
        #[serde(skip_serializing_if = "Option::is_none")]
        source: Option<String>,
        /// The bits of the source's prefix, as decimal text (IPv6).
        #[serde(skip_serializing_if = "Option::is_none")]
        srcprefixlen: Option<String>,
        /// The router, `::` if there is none (IPv6).
        #[serde(skip_serializing_if = "Option::is_none")]
        nexthop: Option<String>,
        /// The version of IP, 4 or 6.
        version: i64,
    }
}
