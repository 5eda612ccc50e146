//! Interfaces and routes, in a network of the agent's own: a namespace with a pair of virtual interfaces and a tunnel.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use qga_compliance::subject::Access;
use qga_compliance::{Agent, Connection, Failure, Subject, Tally, check, deviation};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

/// Interfaces whose numbers, MAC addresses and addresses are known.
const INTERFACES: &str = "
ip link set lo up
ip link add left index 11 address 02:00:00:00:00:01 type veth peer name right address 02:00:00:00:00:02
ip tuntap add dev tunnel mode tun
for name in left right tunnel; do ip link set $name addrgenmode none up; done
ip address add fd00::1/64 dev left nodad
ip address add 10.0.0.1/24 dev left
ip address add 10.0.0.2/24 dev left label left:web
ip address add 10.0.1.1/0 dev left label plain
ip address add 10.9.0.1 peer 10.9.0.2/30 dev tunnel
ip address add ::10.2.3.4/96 dev tunnel nodad
";

/// Routes of all kinds.
const ROUTES: &str = "
ip route add default via 10.0.0.254 metric 4294967295
ip route add 10.50.0.0/16 via 10.0.0.254 mtu 1400 window 5000 rtt 100ms
ip route add 10.60.0.0/16 nexthop via 10.0.0.251 nexthop via 10.0.0.252 nexthop dev tunnel
ip route add blackhole 10.70.0.0/16
ip route add unreachable 10.71.0.0/16 metric 7
ip route add prohibit 10.72.0.1
ip route add 10.81.0.0/16 dev left table 100
ip -6 route add fd50::/48 via fd00::9 metric 4294967295
ip -6 route add fd60::/64 nexthop via fd00::8 nexthop via fd00::9
ip -6 route add fd80::/64 dev left table 100
";

/// A route that names its next hop, in a kernel that does not tell what the name stands for.
const NAMED_NEXT_HOP: &str = "
ip nexthop add id 7 via 10.0.0.250 dev left
ip route add 10.95.0.0/16 nhid 7
echo 0 > /proc/sys/net/ipv4/nexthop_compat_mode
";

/// Hides what the kernel without IPv6 would not have; with an argument, what a system without IPv4 would not have too.
const NO_IPV6: &str = "
routes=$(cat /proc/net/route)
mount -t tmpfs none /proc/$$/net
echo \"$routes\" > /proc/$$/net/route
";
const NO_ROUTE_FILES: &str = "
mount -t tmpfs none /proc/$$/net
";

#[test]
fn network() {
    check("network");
}

#[test]
fn interfaces() {
    let mut tally = Tally::new("interfaces");
    let Some(machine) = Machine::start(&mut tally, INTERFACES) else { return tally.finish() };
    let listed = machine.list("guest-network-get-interfaces");
    let kind = machine.agent.kind();
    let entry = |name: &str| -> Result<Value, Failure> {
        let entries = listed.clone()?;
        entries.into_iter().find(|entry| entry["name"] == name).ok_or_else(|| format!("there is no {name}"))
    };
    let member = |name: &str, member: &str| Ok::<_, Failure>(entry(name)?.get(member).cloned());
    tally.case("interfaces are listed by number, then the labels by address", || {
        let names: Vec<Value> = listed.clone()?.iter().map(|entry| entry["name"].clone()).collect();
        let mut links = names.clone();
        links.truncate(4);
        links.sort_by_key(Value::to_string);
        equal(&json!(links), &json!(["left", "lo", "right", "tunnel"]))?;
        equal(&names[0], &json!("lo"))?;
        equal(&json!(names[4..]), &json!(["plain", "left:web"]))
    });
    tally.case("an interface has its addresses, those of IPv4 first", || {
        let mut left = entry("left")?;
        mask_counters(&mut left)?;
        let expected = json!({"name": "left", "hardware-address": "02:00:00:00:00:01", "ip-addresses": [
            {"ip-address": "10.0.0.1", "ip-address-type": "ipv4", "prefix": 24},
            {"ip-address": "fd00::1", "ip-address-type": "ipv6", "prefix": 64},
        ], "statistics": null});
        equal(&left, &expected)
    });
    tally.case("an address with a peer is told without the peer", || {
        let expected = json!([
            {"ip-address": "10.9.0.1", "ip-address-type": "ipv4", "prefix": 30},
            {"ip-address": "::10.2.3.4", "ip-address-type": "ipv6", "prefix": 96},
        ]);
        equal(&entry("tunnel")?["ip-addresses"], &expected)
    });
    tally.case("a label is an entry with the interface's MAC address and without counters", || {
        let expected = json!({"name": "left:web", "hardware-address": "02:00:00:00:00:01", "ip-addresses": [
            {"ip-address": "10.0.0.2", "ip-address-type": "ipv4", "prefix": 24},
        ]});
        equal(&entry("left:web")?, &expected)
    });
    tally.case("a prefix may be zero", || equal(&entry("plain")?["ip-addresses"][0]["prefix"], &json!(0)));
    tally.case("the loopback interface has a MAC address of zeros", || {
        equal(&entry("lo")?["hardware-address"], &json!("00:00:00:00:00:00"))
    });
    tally.case("a label without a colon has the interface's MAC address", || {
        let choice = deviation("a label without a colon has the interface's MAC address");
        let expected = choice.pick(kind, None, Some(json!("02:00:00:00:00:01")));
        equal(&json!(member("plain", "hardware-address")?), &json!(expected))
    });
    tally.case("an interface without a MAC address has none", || {
        let choice = deviation("an interface without a MAC address has none");
        let expected = choice.pick(kind, Some(json!("00:00:00:00:00:00")), None);
        equal(&json!(member("tunnel", "hardware-address")?), &json!(expected))
    });
    tally.case("an interface without an address has counters", || {
        let choice = deviation("an interface without an address has counters");
        let has_counters = choice.pick(kind, false, true);
        let mut right = entry("right")?;
        equal(&json!(right.get("statistics").is_some()), &json!(has_counters))?;
        if has_counters { mask_counters(&mut right) } else { Ok(()) }
    });
    tally.case("interfaces that cannot be listed are an error with its cause", || {
        let mut host = machine.agent.connect()?;
        forbid_descriptors(&machine.agent)?;
        let reply = host.ask(r#"{"execute":"guest-network-get-interfaces"}"#)?;
        let is_told = reply.error_text().is_some_and(|text| text.ends_with(": Too many open files"));
        if is_told { Ok(()) } else { Err(reply.shown()) }
    });
    tally.finish();
}

#[test]
fn routes() {
    let mut tally = Tally::new("routes");
    let Some(machine) = Machine::start(&mut tally, &format!("{INTERFACES}{ROUTES}")) else { return tally.finish() };
    let kind = machine.agent.kind();
    // The kernel takes its time to see that a new interface is up; only then it has the way to its own address.
    let is_up = |routes: &Vec<Value>| routes.iter().any(|route| route["destination"] == "fd00::1");
    let mut listed = machine.list("guest-network-get-route");
    for _ in 0..100 {
        if listed.as_ref().is_ok_and(is_up) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        listed = machine.list("guest-network-get-route");
    }
    let towards = |destination: &str| -> Result<Vec<Value>, Failure> {
        Ok(listed.clone()?.into_iter().filter(|route| route["destination"] == destination).collect())
    };
    tally.case("IPv4 routes of the main table are listed by destination, then those of IPv6", || {
        let mut destinations: Vec<Value> = listed.clone()?.iter().map(|route| route["destination"].clone()).collect();
        destinations.dedup();
        let ipv4 = ["0.0.0.0", "10.0.0.0", "10.9.0.0", "10.50.0.0", "10.60.0.0", "10.70.0.0", "10.71.0.0", "10.72.0.1"];
        equal(&json!(destinations[1..ipv4.len()]), &json!(ipv4[1..]))?;
        let versions: Vec<i64> = listed.clone()?.iter().filter_map(|route| route["version"].as_i64()).collect();
        if versions.is_sorted() { Ok(()) } else { Err(format!("{versions:?}")) }
    });
    tally.case("an IPv4 route has the columns of the kernel's list", || {
        let expected = json!([{"iface": "tunnel", "destination": "10.9.0.0", "metric": 0, "gateway": "0.0.0.0",
            "mask": "255.255.255.252", "irtt": 0, "flags": 1, "refcnt": 0, "use": 0, "window": 0, "mtu": 0,
            "version": 4}]);
        equal(&json!(towards("10.9.0.0")?), &expected)
    });
    tally.case("an IPv6 route has the columns of the kernel's list", || {
        let mut routes = towards("fd80::")?;
        let refcnt = routes[0]["refcnt"].take();
        let expected = json!([{"iface": "left", "destination": "fd80::", "metric": 1024, "flags": 1, "refcnt": null,
            "use": 0, "desprefixlen": "64", "source": "::", "srcprefixlen": "0", "nexthop": "::", "version": 6}]);
        if refcnt.is_i64() { equal(&json!(routes), &expected) } else { Err("refcnt is no number".to_owned()) }
    });
    tally.case("routes that lead nowhere have no interface", || {
        for (destination, flags, metric) in [("10.70.0.0", 1, 0), ("10.71.0.0", 513, 7), ("10.72.0.1", 517, 0)] {
            let route = &towards(destination)?[0];
            let found = json!([route["iface"], route["flags"], route["metric"], route["gateway"]]);
            equal(&found, &json!(["*", flags, metric, "0.0.0.0"]))?;
        }
        Ok(())
    });
    tally.case("each next hop of an IPv6 route is an entry", || {
        let hops: Vec<Value> = towards("fd60::")?.iter().map(|route| route["nexthop"].clone()).collect();
        equal(&json!(hops), &json!(["fd00::8", "fd00::9"]))
    });
    tally.case("each next hop of an IPv4 route is an entry", || {
        let choice = deviation("each next hop of an IPv4 route is an entry");
        let first = json!(["left", "10.0.0.251", 3]);
        let others = [json!(["left", "10.0.0.252", 3]), json!(["tunnel", "0.0.0.0", 1])];
        let all = [vec![first.clone()], others.to_vec()].concat();
        let expected = choice.pick(kind, vec![first], all);
        let hops: Vec<Value> = towards("10.60.0.0")?
            .iter()
            .map(|route| json!([route["iface"], route["gateway"], route["flags"]]))
            .collect();
        equal(&json!(hops), &json!(expected))
    });
    tally.case("the greatest metric is not negative", || {
        let expected = deviation("the greatest metric is not negative").pick(kind, -1, 4_294_967_295_i64);
        for destination in ["0.0.0.0", "fd50::"] {
            equal(&towards(destination)?[0]["metric"], &json!(expected))?;
        }
        Ok(())
    });
    tally.case("the highest flag of an IPv6 route sets no higher ones", || {
        let choice = deviation("the highest flag of an IPv6 route sets no higher ones");
        let expected = choice.pick(kind, 0xffff_ffff_8020_0001_u64, 0x8020_0001);
        equal(&towards("fd00::1")?[0]["flags"], &json!(expected))
    });
    tally.case("a route's MTU is told", || {
        let expected = deviation("a route's MTU is told").pick(kind, 0, 1400);
        let route = &towards("10.50.0.0")?[0];
        equal(&json!([route["mtu"], route["window"], route["irtt"]]), &json!([expected, 5000, 100]))
    });
    tally.finish();
}

#[test]
fn named_next_hops() {
    let mut tally = Tally::new("named_next_hops");
    let network = format!("{INTERFACES}{NAMED_NEXT_HOP}");
    let Some(machine) = Machine::start(&mut tally, &network) else { return tally.finish() };
    tally.case("a route that names its next hop has it", || {
        let listed = machine.list("guest-network-get-route")?;
        let route = listed.iter().find(|route| route["destination"] == "10.95.0.0").ok_or("there is no such route")?;
        equal(&json!([route["iface"], route["gateway"], route["flags"]]), &json!(["left", "10.0.0.250", 3]))
    });
    tally.finish();
}

#[test]
fn missing_route_lists() {
    let mut tally = Tally::new("missing_route_lists");
    let Some(machine) = Machine::start(&mut tally, &format!("{INTERFACES}{NO_IPV6}")) else { return tally.finish() };
    let listed = machine.list("guest-network-get-route");
    tally.case("a kernel without IPv6 has routes", || {
        match deviation("a kernel without IPv6 has routes").pick(machine.agent.kind(), None, Some(2)) {
            Some(count) => equal(&json!(listed.clone()?.len()), &json!(count)),
            None => match listed.clone() {
                Err(text) if text.contains("/proc/net/ipv6_route") => Ok(()),
                other => Err(format!("{other:?}")),
            },
        }
    });
    let Some(machine) = Machine::start(&mut tally, &format!("{INTERFACES}{NO_ROUTE_FILES}")) else {
        return tally.finish();
    };
    let listed = machine.list("guest-network-get-route");
    tally.case("without both lists of routes the agent lives on", || {
        let survives =
            deviation("without both lists of routes the agent lives on").pick(machine.agent.kind(), false, true);
        equal(&json!(listed.is_ok()), &json!(survives))
    });
    tally.finish();
}

/// An agent in a network of its own.
struct Machine {
    agent: Agent,
    _directory: tempfile::TempDir,
}

impl Machine {
    /// Nothing where that cannot be had, and then it is counted as skipped.
    fn start(tally: &mut Tally, network: &str) -> Option<Self> {
        let mut subject = Subject::under_test();
        let Access::Program(program) = &subject.access else {
            tally.skip("all cases", "the network of an agent that runs already is not ours to change");
            return None;
        };
        let directory = tempfile::tempdir().expect("a temporary directory");
        let setup = directory.path().join("setup");
        fs::write(&setup, format!("set -e\n{network}\nexec \"$@\"\n")).expect("a script can be written");
        let Some(unshare) = unshare(&setup) else {
            tally.skip("all cases", "no network namespace with virtual interfaces can be made here (unshare, ip)");
            return None;
        };
        // The agent has the process's number from the beginning, as the harness wants it.
        let wrapper = directory.path().join("wrapper");
        let text = format!("#!/bin/sh\nexec {unshare} sh {} {} \"$@\"\n", setup.display(), program.display());
        fs::write(&wrapper, text).expect("a script can be written");
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o700)).expect("a script can be made executable");
        subject.access = Access::Program(wrapper);
        let agent = Agent::start(&subject, &[]).unwrap_or_else(|failure| panic!("{failure}"));
        Some(Self { agent, _directory: directory })
    }

    /// What a command lists, or the text of its error.
    fn list(&self, command: &str) -> Result<Vec<Value>, Failure> {
        let mut host: Connection = self.agent.connect()?;
        let reply = host.ask(&json!({"execute": command}).to_string())?;
        let entries = reply.returned().and_then(Value::as_array);
        entries.cloned().ok_or_else(|| reply.error_text().map_or_else(|| reply.shown(), str::to_owned))
    }
}

/// The way to namespaces that works here: as root, else as root of a namespace of users.
fn unshare(setup: &Path) -> Option<&'static str> {
    ["unshare -n -m", "unshare -r -n -m"].into_iter().find(|unshare| {
        let script = format!("exec {unshare} sh {} true", setup.display());
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let output = Command::new("/bin/sh").args(["-c", &script]).env("PATH", path).output();
        output.is_ok_and(|output| output.status.success())
    })
}

/// Lets an agent open nothing more than it has open.
fn forbid_descriptors(agent: &Agent) -> Result<(), Failure> {
    let id = agent.process_id().ok_or("the agent does not run")?;
    let open = fs::read_dir(format!("/proc/{id}/fd")).map_err(|error| error.to_string())?;
    let used: BTreeSet<u64> = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    let limit = (0..=used.len() as u64).find(|number| !used.contains(number));
    let process = i32::try_from(id).ok().and_then(Pid::from_raw);
    let limit = Rlimit { current: limit, maximum: limit };
    prlimit(process, Resource::Nofile, limit).map(drop).map_err(|error| error.to_string())
}

/// Puts `null` in the place of an entry's counters, which must be the eight of the schema.
fn mask_counters(entry: &mut Value) -> Result<(), Failure> {
    let counters = entry["statistics"].take();
    let mut names: Vec<&str> = Vec::new();
    for (name, counter) in counters.as_object().ok_or("there are no counters")? {
        if !counter.is_u64() {
            return Err(format!("{name} is {counter}"));
        }
        names.push(name);
    }
    names.sort_unstable();
    let expected =
        ["rx-bytes", "rx-dropped", "rx-errs", "rx-packets", "tx-bytes", "tx-dropped", "tx-errs", "tx-packets"];
    equal(&json!(names), &json!(expected))
}

fn equal(found: &Value, expected: &Value) -> Result<(), Failure> {
    if found == expected { Ok(()) } else { Err(format!("expected: {expected}\nfound:    {found}")) }
}
