//! What becomes of the kernel's messages. That they come as built here is shown by the compliance cases.

use std::collections::HashMap;
use std::net::IpAddr;

use qga_protocol::network::{NetworkInterface, NetworkRoute};

use super::addresses::{Address, read_address};
use super::interfaces::{Link, joined, read_link};
use super::ipv4_routes::{listed, read_route};
use super::ipv6_routes;
use super::next_hops::{by_number, read_next_hop};
use crate::system::netlink::{Answer, Question, Reader};

const SEQUENCE: u32 = 7;
const ETHERNET: u16 = 1;
const INFINIBAND: u16 = 32;
const IP_TUNNEL: u16 = 768;
const NONE: u16 = 65534;

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (value.len() + 4) as u16;
    padded([&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat())
}

fn message(kind: u16, flags: u16, fixed: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let body = [fixed, &attributes.concat()].concat();
    let length = (body.len() + 16) as u32;
    let header = [length.to_ne_bytes(), [0; 4], SEQUENCE.to_ne_bytes(), [0; 4]].concat();
    let mut message = padded([header, body].concat());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message
}

fn done(status: i32) -> Vec<u8> {
    message(3, 2, &status.to_ne_bytes(), &[])
}

fn link(kind: u16, index: u32, name: &[u8], address: &[u8]) -> Vec<u8> {
    let mut fixed = [0; 16];
    fixed[2..4].copy_from_slice(&kind.to_ne_bytes());
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let counters: Vec<u8> = (1..=25_u64).flat_map(u64::to_ne_bytes).collect();
    message(16, 2, &fixed, &[attribute(3, name), attribute(1, address), attribute(23, &counters)])
}

fn address(prefix: u8, index: u32, local: [u8; 4], label: &[u8]) -> Vec<u8> {
    let mut fixed = [2, prefix, 0, 0, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    message(20, 2, &fixed, &[attribute(1, &[10, 9, 9, 9]), attribute(2, &local), attribute(3, label)])
}

fn route(table: u8, kind: u8, bits: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
    message(24, 2, &[2, bits, 0, 0, table, 0, 0, kind, 0, 0, 0, 0], attributes)
}

/// What a whole answer tells of.
fn read<Thing>(question: Question, read: Reader<Thing>, messages: &[Vec<u8>]) -> Vec<Thing> {
    let mut answer = Answer::new(question, SEQUENCE, read);
    assert!(!answer.take(&messages.concat()).unwrap(), "the end is still to come");
    assert!(answer.take(&done(0)).unwrap());
    answer.things
}

fn links(messages: &[Vec<u8>]) -> Vec<Link> {
    read(Question::Links, read_link, messages)
}

fn addresses(messages: &[Vec<u8>]) -> Vec<Address> {
    read(Question::Addresses, read_address, messages)
}

fn routes(messages: &[Vec<u8>], next_hops: &[Vec<u8>]) -> Vec<NetworkRoute> {
    let names = HashMap::from([(2, "eth0".to_owned()), (3, "eth1".to_owned())]);
    let next_hops = by_number(read(Question::NextHops, read_next_hop, next_hops));
    let routes = read(Question::Ipv4Routes, read_route, messages);
    listed(&routes, &next_hops, &names)
}

#[test]
fn hardware_addresses_are_whole_or_absent() {
    let port: Vec<u8> = (0..20).collect();
    let found = links(&[
        link(ETHERNET, 2, b"eth0\0", &[2, 0, 0, 0xab, 0, 1]),
        link(INFINIBAND, 3, b"ib0\0", &port),
        link(IP_TUNNEL, 4, b"ipip0\0", &[10, 0, 0, 1]),
        link(769, 5, b"ip6tnl0\0", &[0; 16]),
        link(NONE, 6, b"tun0\0", &[]),
    ]);
    let addresses: Vec<Option<&str>> = found.iter().map(|link| link.hardware_address.as_deref()).collect();
    let long = "00:01:02:03:04:05:06:07:08:09:0a:0b:0c:0d:0e:0f:10:11:12:13";
    assert_eq!(addresses, [Some("02:00:00:ab:00:01"), Some(long), None, None, None]);
}

#[test]
fn counters_are_those_of_the_text_file() {
    let found = links(&[link(ETHERNET, 2, b"eth0\0", &[])]);
    let counters = found[0].statistics.as_ref().unwrap();
    // The kernel's fields are numbered from 1 here.
    assert_eq!([counters.rx_packets, counters.rx_bytes, counters.rx_errs, counters.rx_dropped], [1, 3, 5, 7 + 16]);
    assert_eq!([counters.tx_packets, counters.tx_bytes, counters.tx_errs, counters.tx_dropped], [2, 4, 6, 8]);
}

#[test]
fn addresses_join_the_entry_of_their_label() {
    let links =
        links(&[link(ETHERNET, 2, b"eth0\0", &[2, 0, 0, 0, 0, 1]), link(ETHERNET, 3, b"\xff\0", &[2, 0, 0, 0, 0, 2])]);
    let addresses = addresses(&[
        address(24, 2, [10, 0, 0, 1], b"eth0\0"),
        address(32, 2, [10, 0, 0, 2], b"eth0:web\0"),
        address(8, 2, [10, 0, 0, 3], b"eth0:web\0"),
        address(8, 3, [10, 0, 0, 4], b""),
        address(8, 99, [10, 0, 0, 5], b"gone\0"),
    ]);
    assert_eq!(addresses[0].ip, IpAddr::from([10, 0, 0, 1]));
    let summary: Vec<(String, Option<String>, Vec<String>, bool)> = joined(links, addresses)
        .into_iter()
        .map(|NetworkInterface { name, hardware_address, ip_addresses, statistics }| {
            let addresses = ip_addresses.unwrap_or_default();
            let texts = addresses.iter().map(|it| format!("{}/{}", it.ip_address, it.prefix)).collect();
            (name, hardware_address, texts, statistics.is_some())
        })
        .collect();
    let entry = |name: &str, mac: &str, addresses: &[&str], has_counters| {
        let addresses = addresses.iter().map(|&address| address.to_owned()).collect();
        (name.to_owned(), Some(mac.to_owned()), addresses, has_counters)
    };
    assert_eq!(
        summary,
        [
            entry("eth0", "02:00:00:00:00:01", &["10.0.0.1/24"], true),
            entry("\u{fffd}", "02:00:00:00:00:02", &["10.0.0.4/8"], true),
            entry("eth0:web", "02:00:00:00:00:01", &["10.0.0.2/32", "10.0.0.3/8"], false),
        ]
    );
}

#[test]
fn only_routes_of_the_main_table_that_are_no_copies_count() {
    let other_table = attribute(15, &100_u32.to_ne_bytes());
    let mut copy = route(254, 1, 32, &[]);
    copy[16 + 8..16 + 12].copy_from_slice(&0x200_u32.to_ne_bytes());
    let messages =
        [route(255, 2, 32, &[]), route(254, 3, 32, &[]), route(254, 5, 4, &[]), route(254, 1, 0, &[other_table]), copy];
    assert_eq!(routes(&messages, &[]), []);
}

#[test]
fn a_route_has_an_entry_for_each_hop() {
    let router = |address: [u8; 4]| attribute(5, &address);
    let hop = |interface: u32, attributes: Vec<u8>| {
        let length = (attributes.len() + 8) as u16;
        let interface = interface.to_ne_bytes();
        [length.to_ne_bytes().as_slice(), &[0, 0], &interface, &attributes].concat()
    };
    let gone = hop(99, Vec::new());
    let hops = [hop(2, router([10, 0, 0, 1])), hop(3, Vec::new()), gone].concat();
    let metrics = [attribute(2, &1400_u32.to_ne_bytes()), attribute(4, &800_u32.to_ne_bytes())].concat();
    let found = routes(
        &[route(254, 1, 25, &[attribute(1, &[10, 1, 2, 0]), attribute(9, &hops), attribute(8 | 0x8000, &metrics)])],
        &[],
    );
    let summary: Vec<(&str, Option<&str>, Option<u64>)> =
        found.iter().map(|route| (route.iface.as_str(), route.gateway.as_deref(), route.flags)).collect();
    assert_eq!(summary, [("eth0", Some("10.0.0.1"), Some(3)), ("eth1", Some("0.0.0.0"), Some(1))]);
    assert_eq!(
        (found[0].mask.as_deref(), found[0].mtu, found[0].irtt),
        (Some("255.255.255.128"), Some(1400), Some(100))
    );
}

#[test]
fn a_route_may_name_its_hops() {
    let next_hop = |id: u32, family: u8, attributes: &[Vec<u8>]| {
        let attributes = [&[attribute(1, &id.to_ne_bytes())], attributes].concat();
        message(104, 2, &[family, 0, 0, 0, 0, 0, 0, 0], &attributes)
    };
    let interface = |index: u32| attribute(5, &index.to_ne_bytes());
    let members: Vec<u8> = [7_u32, 8].iter().flat_map(|id| [id.to_ne_bytes(), [0; 4]].concat()).collect();
    let next_hops = [
        next_hop(7, 2, &[interface(2), attribute(6, &[10, 0, 0, 1])]),
        next_hop(8, 10, &[interface(3), attribute(6, &[0xfe; 16])]),
        next_hop(9, 0, &[attribute(2, &members)]),
    ];
    let named = |id: u32| attribute(30, &id.to_ne_bytes());
    let found = routes(
        &[
            route(254, 1, 0, &[named(9)]),
            route(254, 1, 0, &[named(77)]),
            route(254, 1, 0, &[named(9), attribute(4, &3_u32.to_ne_bytes())]),
        ],
        &next_hops,
    );
    let summary: Vec<(&str, Option<&str>, Option<u64>)> =
        found.iter().map(|route| (route.iface.as_str(), route.gateway.as_deref(), route.flags)).collect();
    assert_eq!(
        summary,
        [("eth0", Some("10.0.0.1"), Some(3)), ("eth1", Some("0.0.0.0"), Some(3)), ("eth1", Some("0.0.0.0"), Some(1)),]
    );
}

#[test]
fn lines_that_are_no_routes_are_passed_over() {
    let line = "fd000000000000000000000000000001 80 00000000000000000000000000000000 00 \
                00000000000000000000000000000000 ffffffff 00000002 00000001 80200001       lo";
    let text = format!("{line}\n{}\n\n\u{fffd}\n{}x\n{line} \n{}", &line[..140], &line[1..], &line[..60]);
    let found: Vec<NetworkRoute> = ipv6_routes::parse(text.as_bytes()).collect();
    let summary: Vec<(&str, &str, i64, Option<u64>)> = found
        .iter()
        .map(|route| (route.iface.as_str(), route.destination.as_str(), route.metric, route.flags))
        .collect();
    let expected = ("lo", "fd00::1", 4_294_967_295, Some(0x8020_0001));
    assert_eq!(summary, [expected, expected]);
    assert_eq!(found[0].desprefixlen.as_deref(), Some("128"));
}

#[test]
fn an_answer_may_be_an_error_or_somebody_elses() {
    let mut answer = Answer::new(Question::Links, SEQUENCE, read_link);
    assert_eq!(answer.take(&done(-13)).unwrap_err().raw_os_error(), Some(13));
    let mut stranger = done(0);
    stranger[8] ^= 1;
    assert!(!answer.take(&stranger).unwrap());
}

#[test]
fn mutilated_messages_harm_nothing() {
    fn survives<Thing>(question: Question, read: Reader<Thing>, datagram: &[u8]) {
        for place in 0..datagram.len() {
            let _ = Answer::new(question, SEQUENCE, read).take(&datagram[..place]);
            for value in [0, 1, 3, 0x7f, 0xff] {
                let mut mutilated = datagram.to_vec();
                mutilated[place] = value;
                let _ = Answer::new(question, SEQUENCE, read).take(&mutilated);
            }
        }
    }
    let links = [link(ETHERNET, 2, b"eth0\0", &[2; 6]), link(INFINIBAND, 3, b"ib0\0", &[1; 20])].concat();
    survives(Question::Links, read_link, &links);
    survives(Question::Addresses, read_address, &address(24, 2, [10, 0, 0, 1], b"eth0:1\0"));
    let attributes = [attribute(1, &[10, 0, 0, 0]), attribute(9, &[8, 0, 0, 0, 2, 0, 0, 0]), attribute(8, &[8; 8])];
    survives(Question::Ipv4Routes, read_route, &route(254, 1, 8, &attributes));
    let members = [attribute(1, &[1, 0, 0, 0]), attribute(2, &[2; 16])];
    survives(Question::NextHops, read_next_hop, &message(104, 2, &[0; 8], &members));
}

#[test]
fn routes_to_large_groups_are_no_more_than_anybody_can_use() {
    let next_hop = |number: u32, attributes: &[Vec<u8>]| {
        message(104, 2, &[2, 0, 0, 0, 0, 0, 0, 0], &[&[attribute(1, &number.to_ne_bytes())], attributes].concat())
    };
    let members = [1_u32.to_ne_bytes(), [0; 4]].concat().repeat(4000);
    let next_hops = [next_hop(1, &[attribute(5, &2_u32.to_ne_bytes())]), next_hop(9, &[attribute(2, &members)])];
    let to_group = route(254, 1, 0, &[attribute(30, &9_u32.to_ne_bytes())]);
    assert_eq!(routes(std::slice::from_ref(&to_group), &next_hops).len(), 4000);
    assert_eq!(routes(&vec![to_group; 20], &next_hops).len(), 65_536);
}
