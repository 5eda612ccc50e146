//! The answers of the kernel's routing socket, and its text of IPv6 routes: never a panic, never more entries than
//! anybody can use.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qga_agent::fuzzing;

/// Interfaces or routes in one reply.
const ENTRIES_MAX: usize = 65_536;

fuzz_target!(|input: &[u8]| {
    // Which reader, and how many words of four bytes the first two datagrams have.
    let Some((&[choice, one, two], rest)) = input.split_first_chunk() else { return };
    let (one, others) = rest.split_at(rest.len().min(usize::from(one) * 4));
    let (two, three) = others.split_at(others.len().min(usize::from(two) * 4));
    match choice % 3 {
        0 => {
            if let Ok(interfaces) = fuzzing::interfaces(one, two) {
                assert!(interfaces.len() <= ENTRIES_MAX);
                let text = serde_json::to_string(&interfaces).expect("interfaces can be told");
                assert!(text.len() <= 4096 + 200 * input.len(), "{} bytes of {}", text.len(), input.len());
            }
        }
        1 => {
            if let Ok(routes) = fuzzing::ipv4_routes(one, two, three) {
                assert!(routes.len() <= ENTRIES_MAX);
                assert!(routes.iter().all(|route| route.version == 4 && route.metric >= 0));
            }
        }
        _ => {
            let routes = fuzzing::ipv6_routes(rest);
            let lines = rest.split(|byte| *byte == b'\n').count();
            assert!(routes.len() <= lines, "{} routes in {lines} lines", routes.len());
            for route in routes {
                route.destination.parse::<std::net::Ipv6Addr>().expect("a destination is an address");
            }
        }
    }
});
