//! Processors, their times and the load.

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod machine;

use qga_compliance::{Failure, check, deviation};
use serde_json::{Value, json};

use machine::{Machine, Machines, same};

#[test]
fn cpu() {
    check("cpu");
}

#[test]
fn processors() {
    const OWN_SYSFS: &str = "mkdir $machine/cpu; mount --bind $machine/cpu /sys/devices/system/cpu; cd $machine/cpu";
    let mut machines = Machines::new("processors");
    machines.case("this machine's processors are told", "", |machine| {
        let listed = std::fs::read_dir("/sys/devices/system/cpu").map_err(|error| error.to_string())?;
        let names = listed.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let expected: Vec<i64> = names.filter_map(|name| name.strip_prefix("cpu")?.parse().ok()).collect();
        same(&numbers(machine)?, &json!(expected))
    });
    let unordered = format!("{OWN_SYSFS}; mkdir cpu7 cpu0 cpu12 cpufreq cpu3 cpu2 cpu10; ls -U > $machine/order");
    machines.case("processors come in the order of the kernel's directory", &unordered, |machine| {
        let listed = machine.words("order")?;
        let numbers_there = listed.iter().filter_map(|name| name.strip_prefix("cpu")?.parse::<i64>().ok());
        let expected: Vec<i64> = numbers_there.collect();
        same(&numbers(machine)?, &json!(expected))
    });
    let zoo = format!(
        "{OWN_SYSFS}; mkdir cpu0 cpu1 cpu2 cpu10 cpufreq cpuidle; echo 1 > cpu1/online; echo 0 > cpu2/online; \
         echo 1 > cpu10/online; echo 0-3 > possible"
    );
    machines.case("each processor is told with its state", &zoo, |machine| {
        let expected = json!([
            {"logical-id": 0, "online": true, "can-offline": false},
            {"logical-id": 1, "online": true, "can-offline": true},
            {"logical-id": 2, "online": false, "can-offline": true},
            {"logical-id": 10, "online": true, "can-offline": true},
        ]);
        same(&Value::from(by_number(machine)?), &expected)
    });
    let choice = deviation("a list without processors ends nothing");
    machines.case(choice.case(), OWN_SYSFS, |machine| {
        let answer = machine.returned("guest-get-vcpus").ok();
        let expected = choice.pick(machine.kind, None, Some(json!([])));
        if answer == expected { Ok(()) } else { Err(format!("expected {expected:?}, found {answer:?}")) }
    });
    let empty = "mkdir $machine/system; mount --bind $machine/system /sys/devices/system";
    machines.case("without the kernel's list there is an error", empty, |machine| {
        machine.expect_error(
            "guest-get-vcpus",
            "failed to list entries: /sys/devices/system/cpu: No such file or directory",
        )
    });
    let choice = deviation("a processor's state that is empty is an error with its file");
    machines.case(choice.case(), &format!("{OWN_SYSFS}; mkdir cpu7; : > cpu7/online"), |machine| {
        let original = "pread(\"/sys/devices/system/cpu/cpu7//online\"): unexpected EOF";
        let ours = "pread(\"/sys/devices/system/cpu/cpu7/online\"): unexpected EOF";
        machine.expect_error("guest-get-vcpus", choice.pick(machine.kind, original, ours))
    });
    machines.finish();
}

/// The processors' numbers as they come.
fn numbers(machine: &mut Machine) -> Result<Value, Failure> {
    let found = machine.returned("guest-get-vcpus")?;
    Ok(found.as_array().into_iter().flatten().map(|entry| entry["logical-id"].clone()).collect())
}

fn by_number(machine: &mut Machine) -> Result<Vec<Value>, Failure> {
    let mut found = machine.returned("guest-get-vcpus")?.as_array().cloned().ok_or("not a list")?;
    found.sort_by_key(|entry| entry["logical-id"].as_i64());
    Ok(found)
}

#[test]
fn processor_times() {
    const OWN_STAT: &str = "mount --bind $machine/stat /proc/stat";
    let mut machines = Machines::new("processor times");
    machines.case("this machine's times grow", "", |machine| {
        let earlier = sums(machine)?;
        let later = sums(machine)?;
        let grows = earlier.len() == later.len() && earlier.iter().zip(&later).all(|(earlier, later)| earlier <= later);
        if grows && !later.is_empty() { Ok(()) } else { Err(format!("{earlier:?}, then {later:?}")) }
    });
    let cpu = |number: u64, rest: Value| {
        let mut entry = json!({"type": "linux", "cpu": number, "user": 10, "nice": 20, "system": 30, "idle": 40});
        if let (Some(entry), Value::Object(rest)) = (entry.as_object_mut(), rest) {
            entry.extend(rest);
        }
        entry
    };
    let up_to_steal = json!({"iowait": 50, "irq": 60, "softirq": 70, "steal": 80});
    let all = json!({"iowait": 50, "irq": 60, "softirq": 70, "steal": 80, "guest": 90, "guestnice": 100});
    for (name, stat, expected) in [
        ("the oldest kernels tell four columns", "cpu0 1 2 3 4\n", json!([cpu(0, json!({}))])),
        ("then came waiting for disks", "cpu0 1 2 3 4 5\n", json!([cpu(0, json!({"iowait": 50}))])),
        (
            "then came interrupts",
            "cpu0 1 2 3 4 5 6 7\n",
            json!([cpu(0, json!({"iowait": 50, "irq": 60, "softirq": 70}))]),
        ),
        ("then came stolen time", "cpu0 1 2 3 4 5 6 7 8\n", json!([cpu(0, up_to_steal)])),
        ("columns of the future are left out", "cpu0 1 2 3 4 5 6 7 8 9 10 11\n", json!([cpu(0, all)])),
        (
            "the total and other lines are left out, the order is the kernel's",
            "cpu  9 9 9 9\ncpu3 1 2 3 4\ncpu1 1 2 3 4\nintr 1 2 3 4 5\nctxt 1\n",
            json!([cpu(3, json!({})), cpu(1, json!({}))]),
        ),
        ("without processors the list is empty", "intr 1 2 3 4 5\n", json!([])),
    ] {
        machines.case_with(name, &[("stat", stat.as_bytes())], OWN_STAT, |machine| {
            machine.expect("guest-get-cpustats", &expected)
        });
    }
    let choice = deviation("a line with too few columns costs only itself");
    let stat = b"cpu0 1 2 3 4\ncpu1 1 2 3\ncpu2 1 2 3 4\n";
    machines.case_with(choice.case(), &[("stat", stat)], OWN_STAT, |machine| {
        let original = json!([cpu(0, json!({}))]);
        let ours = json!([cpu(0, json!({})), cpu(2, json!({}))]);
        machine.expect("guest-get-cpustats", &choice.pick(machine.kind, original, ours))
    });
    let choice = deviation("a column that is not there is not told");
    machines.case_with(choice.case(), &[("stat", b"cpu0 1 2 3 4 5 6\n")], OWN_STAT, |machine| {
        let found = machine.returned("guest-get-cpustats")?;
        let is_told = found[0].get("softirq").is_some();
        same(&Value::from(is_told), &Value::from(choice.pick(machine.kind, true, false)))
    });
    machines.finish();
}

/// Each processor's time in all.
fn sums(machine: &mut Machine) -> Result<Vec<u64>, Failure> {
    const KINDS: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];
    let found = machine.returned("guest-get-cpustats")?;
    let entries = found.as_array().ok_or("not a list")?;
    entries
        .iter()
        .map(|entry| {
            let times: Option<Vec<u64>> = KINDS.iter().map(|kind| entry.get(kind)?.as_u64()).collect();
            // The kernel's count of idle time may step back by a tick.
            times.map(|times| times.iter().sum::<u64>() / 1000).ok_or_else(|| format!("a member is missing: {entry}"))
        })
        .collect()
}
