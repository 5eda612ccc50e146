//! The IPv6 routes, from the text of `/proc/net/ipv6_route`.

use std::net::Ipv6Addr;

use qga_protocol::network::NetworkRoute;

use super::addresses::ipv6_text;

/// Where the kernel lists them.
pub const PATH: &str = "/proc/net/ipv6_route";

/// The routes of a text, without lines that are none.
pub fn parse(text: &[u8]) -> impl Iterator<Item = NetworkRoute> {
    text.split(|&byte| byte == b'\n').filter_map(|line| route(&String::from_utf8_lossy(line)))
}

/// Ten columns; all numbers are hexadecimal and unsigned.
fn route(line: &str) -> Option<NetworkRoute> {
    let mut columns = line.split_ascii_whitespace();
    let mut column = || columns.next();
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let destination = address(column()?)?;
    let destination_bits = number(column()?)?;
    let source = address(column()?)?;
    let source_bits = number(column()?)?;
    let nexthop = address(column()?)?;
    let metric = number(column()?)?;
    let refcnt = number(column()?)?;
    let used = number(column()?)?;
    let flags = number(column()?)?;
    let iface = column()?;
    Some(NetworkRoute {
        iface: iface.to_owned(),
        destination,
        metric: metric.into(),
        gateway: None,
        mask: None,
        irtt: None,
        flags: Some(flags.into()),
        refcnt: Some(refcnt.into()),
        r#use: Some(used.into()),
        window: None,
        mtu: None,
        desprefixlen: Some(destination_bits.to_string()),
        source: Some(source),
        srcprefixlen: Some(source_bits.to_string()),
        nexthop: Some(nexthop),
        version: 6,
    })
}

/// An address of 32 digits.
fn address(digits: &str) -> Option<String> {
    let is_whole = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let bits = u128::from_str_radix(digits, 16).ok().filter(|_| is_whole)?;
    Some(ipv6_text(Ipv6Addr::from(bits)))
}
