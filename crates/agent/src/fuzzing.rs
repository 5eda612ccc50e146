//! Doors for random input to readers that the commands alone reach otherwise: what comes from the kernel by a system
//! call, and texts that are read only on the way to doing something.
//!
//! Readers of the system's files need none: [`serve_recorded`](crate::serve_recorded) runs the whole command on them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use qga_protocol::network::{NetworkInterface, NetworkRoute};
use qga_protocol::storage::NvmeSmart;
use qga_protocol::time::Timezone;

use crate::commands::accounts::{keys, linux::users};
use crate::commands::network::linux as network;
use crate::commands::storage::linux::smart;
use crate::commands::time::zone;
use crate::freeze::linux::plan;
use crate::freeze::linux::state_file::Marker;
use crate::startup::config::Settings;
use crate::system::mounts;
use crate::system::netlink::{Answer, Question, Reader};
use crate::system::root::Root;
use crate::system::state_directory::State;

/// The number under which questions are asked to the kernel here.
pub const SEQUENCE: u32 = 1;

/// Interfaces out of the kernel's two answers, each a datagram.
pub fn interfaces(links: &[u8], addresses: &[u8]) -> io::Result<Vec<NetworkInterface>> {
    let links = answer(Question::Links, network::interfaces::read_link, links)?;
    let addresses = answer(Question::Addresses, network::addresses::read_address, addresses)?;
    Ok(network::interfaces::joined(links, addresses))
}

/// IPv4 routes out of the kernel's three answers, each a datagram.
pub fn ipv4_routes(routes: &[u8], next_hops: &[u8], links: &[u8]) -> io::Result<Vec<NetworkRoute>> {
    let routes = answer(Question::Ipv4Routes, network::ipv4_routes::read_route, routes)?;
    let next_hops =
        network::next_hops::by_number(answer(Question::NextHops, network::next_hops::read_next_hop, next_hops)?);
    let links = answer(Question::Links, network::interfaces::read_link, links)?;
    let names: HashMap<u32, String> = links.into_iter().map(|link| (link.index, link.name)).collect();
    Ok(network::ipv4_routes::listed(&routes, &next_hops, &names))
}

/// IPv6 routes out of the kernel's text.
#[must_use]
pub fn ipv6_routes(text: &[u8]) -> Vec<NetworkRoute> {
    network::ipv6_routes::parse(text).collect()
}

fn answer<Thing>(question: Question, read: Reader<Thing>, datagram: &[u8]) -> io::Result<Vec<Thing>> {
    let mut answer = Answer::new(question, SEQUENCE, read);
    answer.take(datagram)?;
    Ok(answer.things)
}

/// The health that an NVM Express disk tells in its log page.
#[must_use]
pub fn nvme_health(page: &[u8; qga_sys::nvme::SMART_BYTES]) -> NvmeSmart {
    smart::parse(page)
}

/// The zone at a time in seconds since the epoch, for a value of `TZ`.
#[must_use]
pub fn timezone(root: &Root, variable: Option<&str>, unix_time: i64) -> Timezone {
    let environment = zone::Environment { zone: variable.map(str::to_owned), directory: None };
    zone::at(&zone::local(root, &environment), unix_time)
}

/// User, group and home of a user, or of the first one, in the text of passwd(5).
#[must_use]
pub fn account(passwd: &[u8], name: Option<&str>) -> Option<(u32, u32, PathBuf)> {
    users::entry(passwd, name).map(|account| (account.uid, account.gid, account.home))
}

/// The keys in a file of keys.
#[must_use]
pub fn keys(file: &[u8]) -> Vec<String> {
    keys::listed(file).map(Cow::into_owned).collect()
}

/// A file of keys with keys added; why they are refused otherwise.
pub fn keys_added(file: &[u8], added: &[String]) -> Result<Vec<u8>, String> {
    keys::check_added(added).map_err(|error| error.desc)?;
    Ok(keys::with(file.to_vec(), added).bytes)
}

/// A file of keys without some; why that is refused otherwise.
pub fn keys_removed(file: &[u8], removed: &[String]) -> Result<Vec<u8>, String> {
    keys::without(file.to_vec(), removed).map(|changed| changed.bytes).map_err(|error| error.desc)
}

/// What the agent would run by, as it dumps it, for the bytes of a configuration file.
pub fn configuration(bytes: &[u8]) -> Result<String, String> {
    Settings::of_bytes("file", bytes).and_then(|settings| settings.dumped(None)).map_err(|failure| failure.text)
}

/// The next file handle by what a state directory holds.
pub fn next_handle(state_directory: &Path) -> io::Result<i64> {
    State::open(state_directory).map_err(|failure| io::Error::other(failure.text))?.next_handle()
}

/// A freeze's state file, read and written again; `None` if it says nothing of a boot.
#[must_use]
pub fn freeze_marker(content: &[u8]) -> Option<String> {
    Marker::parse(content).map(|marker| marker.text())
}

/// How many file systems of a machine a freeze would hold.
#[must_use]
pub fn file_systems_to_freeze(root: &Root) -> usize {
    mounts::all(root).map_or(0, |mounts| plan::choose(root, &mounts, None, &plan::unasked).steps.len())
}
