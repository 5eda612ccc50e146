//! `qga ip`: the addresses of a guest, the one to reach it by first.

use std::net::IpAddr;

use qga_client::AnyAgent;
use qga_protocol::network::{GetInterfaces, GetRoute, InterfaceStatistics, NetworkInterface, NetworkRoute};
use serde::Serialize;

use super::info::show;
use crate::arguments::Ip;
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::visit::{Visit, optional};

/// The flags of a route that is up and leads through a router.
const UP: u64 = 1;

/// An interface of the guest.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Interface {
    pub name: String,
    pub is_default_route: bool,
    pub hardware_address: Option<String>,
    pub addresses: Vec<Address>,
    pub statistics: Option<InterfaceStatistics>,
}

/// One of its addresses.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Address {
    pub address: String,
    pub prefix: i64,
    /// Whether it is of use from elsewhere: neither loopback nor link-local.
    pub is_global: bool,
}

pub fn run(options: &Ip, visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    let interfaces = interfaces(&mut agent)?;
    if !options.first {
        return visit.page.report_as(&interfaces, |interfaces| show::interfaces(interfaces));
    }
    match main_address(&interfaces) {
        Some(address) if visit.page.is_json() => visit.page.json(&address.to_string().into()),
        Some(address) => visit.page.line(address.to_string()),
        None => Err(Failure::told(
            Code::NoSuchThing,
            "the guest has no address that is of use from elsewhere",
            "'qga ip' lists those it has.",
        )),
    }
}

/// The guest's interfaces, that of the default route first, the loopback last.
pub fn interfaces(agent: &mut AnyAgent) -> Result<Vec<Interface>> {
    let interfaces = agent.call(&GetInterfaces {})?;
    let routes = optional(agent.call(&GetRoute {}))?.unwrap_or_default();
    Ok(ordered(interfaces, &routes))
}

/// The address by which the guest is reached: IPv4 of the default route before IPv6, before any other. It goes into
/// other programs' command lines, so it is the address alone and nothing that the guest may have written behind it.
pub fn main_address(interfaces: &[Interface]) -> Option<IpAddr> {
    let global = |interface: &Interface| {
        let addresses = interface.addresses.iter().filter(|address| address.is_global);
        addresses.filter_map(|address| parse(&address.address)).collect::<Vec<_>>()
    };
    let of_default: Vec<IpAddr> =
        interfaces.iter().find(|interface| interface.is_default_route).map(global).unwrap_or_default();
    let all: Vec<IpAddr> = interfaces.iter().flat_map(global).collect();
    let first = |addresses: &[IpAddr]| {
        addresses.iter().find(|address| address.is_ipv4()).or_else(|| addresses.first()).copied()
    };
    first(&of_default).or_else(|| first(&all))
}

fn ordered(interfaces: Vec<NetworkInterface>, routes: &[NetworkRoute]) -> Vec<Interface> {
    let default = default_interface(routes);
    let mut ordered: Vec<Interface> = interfaces
        .into_iter()
        .map(|interface| {
            let addresses = interface.ip_addresses.unwrap_or_default();
            let addresses = addresses.into_iter().map(|address| Address {
                is_global: is_global(&address.ip_address),
                address: address.ip_address,
                prefix: address.prefix,
            });
            Interface {
                is_default_route: default == Some(interface.name.as_str()),
                name: interface.name,
                hardware_address: interface.hardware_address,
                addresses: addresses.collect(),
                statistics: interface.statistics,
            }
        })
        .collect();
    ordered.sort_by_key(|interface| {
        let is_of_use = interface.addresses.iter().any(|address| address.is_global);
        (!interface.is_default_route, !is_of_use, interface.name.starts_with("lo"))
    });
    ordered
}

/// The interface of the default route with the lowest metric, IPv4 first.
fn default_interface(routes: &[NetworkRoute]) -> Option<&str> {
    let is_default = |route: &&NetworkRoute| {
        if route.version == 4 {
            route.destination == "0.0.0.0" && route.mask.as_deref().is_none_or(|mask| mask == "0.0.0.0")
        } else {
            let bits = route.desprefixlen.as_deref().and_then(|bits| bits.parse::<u32>().ok());
            route.destination == "::" && bits.unwrap_or(0) == 0
        }
    };
    let is_up = |route: &&NetworkRoute| route.flags.is_none_or(|flags| flags & UP != 0);
    let leads_out = |route: &&NetworkRoute| route.iface != "*" && !route.iface.starts_with("lo");
    routes
        .iter()
        .filter(is_default)
        .filter(is_up)
        .filter(leads_out)
        .min_by_key(|route| (route.version, route.metric))
        .map(|route| route.iface.as_str())
}

fn parse(address: &str) -> Option<IpAddr> {
    // A Windows guest writes the scope behind the address.
    address.split('%').next()?.parse().ok()
}

fn is_global(address: &str) -> bool {
    match parse(address) {
        Some(IpAddr::V4(address)) => !address.is_loopback() && !address.is_link_local() && !address.is_unspecified(),
        Some(IpAddr::V6(address)) => {
            !address.is_loopback() && !address.is_unicast_link_local() && !address.is_unspecified()
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn interface(name: &str, addresses: &[&str]) -> NetworkInterface {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| {
                let kind = if address.contains(':') { "ipv6" } else { "ipv4" };
                json!({ "ip-address": address, "ip-address-type": kind, "prefix": 24 })
            })
            .collect();
        serde_json::from_value(json!({ "name": name, "ip-addresses": addresses })).unwrap()
    }

    fn route(value: serde_json::Value) -> NetworkRoute {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_default_routes_address_comes_first() {
        let interfaces = vec![
            interface("lo", &["127.0.0.1", "::1"]),
            interface("docker0", &["172.17.0.1"]),
            interface("eth0", &["fe80::1", "2001:db8::2", "192.0.2.2"]),
        ];
        let routes = [
            route(
                json!({ "iface": "docker0", "destination": "172.17.0.0", "metric": 0, "mask": "255.255.0.0", "flags": 1, "version": 4 }),
            ),
            route(
                json!({ "iface": "*", "destination": "0.0.0.0", "metric": 0, "mask": "0.0.0.0", "flags": 512, "version": 4 }),
            ),
            route(
                json!({ "iface": "eth0", "destination": "0.0.0.0", "metric": 100, "mask": "0.0.0.0", "flags": 3, "version": 4 }),
            ),
        ];
        let sorted = ordered(interfaces.clone(), &routes);
        let names: Vec<&str> = sorted.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["eth0", "docker0", "lo"]);
        assert_eq!(main_address(&sorted).unwrap().to_string(), "192.0.2.2");
        // An agent before 9.1 does not tell routes.
        let sorted = ordered(interfaces, &[]);
        assert_eq!(main_address(&sorted).unwrap().to_string(), "172.17.0.1");
    }

    #[test]
    fn what_a_guest_writes_behind_its_address_is_dropped() {
        let interfaces = ordered(vec![interface("eth0", &["192.0.2.2% -oProxyCommand=x\u{1b}[2J"])], &[]);
        assert_eq!(main_address(&interfaces).unwrap().to_string(), "192.0.2.2");
    }

    #[test]
    fn addresses_of_no_use_elsewhere_are_known() {
        for (address, expected) in [
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("fe80::1%4", false),
            ("::1", false),
            ("10.0.0.1", true),
            ("fd00::1", true),
            ("x", false),
        ] {
            assert_eq!(is_global(address), expected, "{address}");
        }
    }
}
