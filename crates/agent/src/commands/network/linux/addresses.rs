//! The addresses of interfaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::system::netlink::{AF_INET, AF_INET6, Attributes, number, text};

const FIXED_BYTES: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;

/// An address of an interface.
#[derive(Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface's number.
    pub interface: u32,
    /// The interface's name or one of its own, `eth0:web` (IPv4).
    pub label: Option<String>,
    pub ip: IpAddr,
    /// How many leading bits are the network's.
    pub prefix: u8,
}

/// Reads an address out of a message.
pub fn read_address(message: &[u8], addresses: &mut Vec<Address>) -> Option<()> {
    let (&[family, prefix, ..], interface) = (message, number(message, 4)?) else { return None };
    let (mut local, mut other, mut label) = (None, None, None);
    for (kind, value) in Attributes(message.get(FIXED_BYTES..)?) {
        match kind {
            IFA_ADDRESS => other = address(family, value),
            IFA_LOCAL => local = address(family, value),
            IFA_LABEL => label = Some(text(value)).filter(|label| !label.is_empty()),
            _ => {}
        }
    }
    // Where there is a peer it is the other one.
    addresses.push(Address { interface, label, ip: local.or(other)?, prefix });
    Some(())
}

/// An address of a family.
fn address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::from(*value.first_chunk::<4>()?).into()),
        AF_INET6 => Some(Ipv6Addr::from(*value.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// An address as `inet_ntop(3)` writes it: also one that only carries an IPv4 address ends with that in dots.
pub fn ipv6_text(address: Ipv6Addr) -> String {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, _] => address.to_string(),
        [0, 0, 0, 0, 0, 0, ..] => {
            let [.., a, b, c, d] = address.octets();
            format!("::{}", Ipv4Addr::new(a, b, c, d))
        }
        _ => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::ipv6_text;

    #[test]
    fn addresses_are_written_as_inet_ntop_does() {
        for text in ["::", "::1", "::ffff", "::1.2.3.4", "::0.1.0.2", "::ffff:1.2.3.4", "fe80::1", "2001:db8:0:1::2"] {
            assert_eq!(ipv6_text(text.parse().unwrap()), text);
        }
    }
}
