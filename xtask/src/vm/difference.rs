//! What two agents say of the same machine, member by member.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What moves between two questions: its presence counts, its value does not.
const MOVING: &[&str] = &[
    "used-bytes",
    "statistics",
    "stats",
    "load1m",
    "load5m",
    "load15m",
    "user",
    "nice",
    "system",
    "idle",
    "iowait",
    "irq",
    "softirq",
    "steal",
    "guest",
    "guestnice",
    "refcnt",
    "use",
];

/// What tells the elements of a list apart.
const IDENTITIES: &[&str] =
    &["mountpoint", "serial", "name", "dev", "logical-id", "phys-index", "cpu", "ip-address", "iface"];

/// A member that is not the same in both replies.
#[derive(Debug)]
pub struct Difference {
    /// Names of members from the outside in, with slashes between; an element of a list by its identity.
    pub place: String,
    /// What the first agent said.
    pub first: Option<String>,
    /// What the second agent said.
    pub second: Option<String>,
}

/// The number of members compared, and those that differ.
pub fn between(first: &Value, second: &Value) -> (usize, Vec<Difference>) {
    let (first, second) = (members(first), members(second));
    let places: BTreeSet<&Vec<String>> = first.keys().chain(second.keys()).collect();
    let count = places.len();
    let differing = places.into_iter().filter(|place| first.get(*place) != second.get(*place));
    let differences = differing.map(|place| Difference {
        place: place.join("/"),
        first: first.get(place).cloned(),
        second: second.get(place).cloned(),
    });
    (count, differences.collect())
}

/// The values by their places.
fn members(value: &Value) -> BTreeMap<Vec<String>, String> {
    let mut found = BTreeMap::new();
    collect(value, &mut Vec::new(), &mut found);
    found
}

fn collect(value: &Value, place: &mut Vec<String>, found: &mut BTreeMap<Vec<String>, String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                place.push(name.clone());
                if MOVING.contains(&name.as_str()) {
                    found.insert(place.clone(), "(moves)".into());
                } else {
                    collect(member, place, found);
                }
                place.pop();
            }
        }
        Value::Array(elements) => {
            let mut seen: BTreeMap<String, usize> = BTreeMap::new();
            for element in elements {
                let identity = identity(element);
                let number = seen.entry(identity.clone()).or_default();
                *number += 1;
                place.push(if *number == 1 { identity } else { format!("{identity} {number}") });
                // That it is there counts, whatever is in it.
                found.insert(place.clone(), "(element)".into());
                collect(element, place, found);
                place.pop();
            }
        }
        Value::Number(number) => {
            // Whole numbers that a double holds may be written with a fraction or without.
            let whole = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 2_f64.powi(53));
            found.insert(place.clone(), whole.map_or(number.to_string(), |number| number.to_string()));
        }
        _ => {
            found.insert(place.clone(), value.to_string());
        }
    }
}

fn identity(element: &Value) -> String {
    let shown = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
    let of_route = || Some(format!("{} {}", shown(element.get("destination")?), shown(element.get("iface")?)));
    // The kernel's name of a disk depends on which controller it found first.
    let of_disk = || element.pointer("/address/serial").map(shown);
    let of_object = || IDENTITIES.iter().find_map(|name| element.get(name)).map(shown);
    of_route()
        .or_else(of_disk)
        .or_else(of_object)
        .unwrap_or_else(|| if element.is_object() { "?".into() } else { shown(element) })
}

#[cfg(test)]
mod tests {
    use super::between;
    use serde_json::{Value, json};

    fn check(first: &Value, second: &Value, expected: &[&str]) {
        let (_, differences) = between(first, second);
        let places: Vec<&str> = differences.iter().map(|difference| difference.place.as_str()).collect();
        assert_eq!(places, expected, "{differences:?}");
    }

    #[test]
    fn elements_are_compared_by_identity_and_moving_values_by_presence() {
        check(&json!([{"name": "a"}, {"name": "b"}]), &json!([{"name": "b"}, {"name": "a"}]), &[]);
        check(&json!({"used-bytes": 1}), &json!({"used-bytes": 2}), &[]);
        check(&json!({"used-bytes": 1}), &json!({}), &["used-bytes"]);
        check(&json!([{"name": "a", "unit": 1}]), &json!([{"name": "a", "unit": 2}]), &["a/unit"]);
        check(&json!([{"name": "a"}]), &json!([]), &["a", "a/name"]);
        check(&json!([["x"], ["x"]]), &json!([["x"]]), &["[\"x\"] 2", "[\"x\"] 2/x"]);
        check(
            &json!([{"name": "/dev/sda", "address": {"serial": "1"}}]),
            &json!([]),
            &["1", "1/address/serial", "1/name"],
        );
        check(&json!({"seconds": 3600}), &json!({"seconds": 3600.0}), &[]);
        check(&json!({"flags": u64::MAX}), &json!({"flags": u64::MAX - 1}), &["flags"]);
    }
}
