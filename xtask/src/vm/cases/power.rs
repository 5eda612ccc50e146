//! The clock, trimming, sleep and the end of the machine. The original is asked for the same, as far as the guest
//! survives it.

use super::Case;
use crate::vm::Skipped;
use crate::vm::conversation::Conversation;
use crate::vm::guest::{Agent, Guest};
use crate::vm::pace;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub const CASES: &[Case] = &[
    Case { name: "power_set_time_sets_both_clocks_as_the_original_does", run: set_time },
    Case { name: "power_set_time_without_a_hardware_clock_or_hwclock", run: set_time_of_poor_guest },
    Case { name: "power_trim_is_told_as_by_the_original_and_reaches_the_disk", run: trim },
    Case { name: "power_trim_of_a_disk_that_hangs_leaves_the_agent_answering", run: trim_of_hanging_disk },
    Case { name: "power_sleep_that_cannot_work_or_end_is_refused", run: sleep_refused },
    Case { name: "power_sleep_on_the_disk_and_go_on", run: |guest| with_swap(guest, sleep_off_and_go_on_twice) },
    Case { name: "power_sleep_in_memory_with_a_copy_on_the_disk", run: |guest| with_swap(guest, sleep_hybrid) },
    Case { name: "power_down_halt_and_reboot_with_fewer_and_fewer_programs", run: ends },
    Case { name: "power_sleep_in_memory_and_wake_by_the_host", run: sleep_in_memory },
];

/// How long the machine may take to get into another state.
fn patience() -> Duration {
    pace::patience(Duration::from_secs(60))
}
/// Longer than two questions take on the busiest host; shorter than any step of the clock here.
const MOMENT_NS: i64 = 600_000_000_000;
const WEEK_NS: i64 = 7 * 24 * 3600 * 1_000_000_000;
const HOUR_NS: i64 = 3600 * 1_000_000_000;

fn ask(guest: &Guest, agent: Agent, command: &str, arguments: &Value) -> Result<Value> {
    guest.talk_to(agent)?.ask(&json!({"execute": command, "arguments": arguments}))
}

/// What an error says, or the whole reply if it is none.
fn told(reply: &Value) -> String {
    reply["error"]["desc"].as_str().map_or_else(|| reply.to_string(), str::to_owned)
}

/// The host's time.
fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i64)
}

fn guest_time_ns(guest: &Guest) -> Result<i64> {
    let reply = ask(guest, Agent::Original, "guest-get-time", &json!({}))?;
    reply["return"].as_i64().with_context(|| format!("no time: {reply}"))
}

/// The hardware clock as it stands, taken for UTC.
fn hardware_time_ns(guest: &mut Guest) -> Result<i64> {
    let text = guest.shell("cat /sys/class/rtc/rtc0/since_epoch")?;
    Ok(text.parse::<i64>().with_context(|| format!("no time: {text}"))? * 1_000_000_000)
}

fn ensure_near(what: &str, found_ns: i64, expected_ns: i64) -> Result<()> {
    ensure!(
        (found_ns - expected_ns).abs() < MOMENT_NS,
        "{what} is {} s off",
        (found_ns - expected_ns).div_euclid(1_000_000_000)
    );
    Ok(())
}

fn set_time(guest: &mut Guest) -> Result<()> {
    let outcome = set_time_by_both(guest);
    guest.shell("rm -f /etc/adjtime")?;
    let restored = ask(guest, Agent::Ours, "guest-set-time", &json!({"time": now_ns()}));
    outcome?;
    ensure_near("the clock after all", guest_time_ns(guest)?, now_ns())?;
    restored.map(drop)
}

fn set_time_by_both(guest: &mut Guest) -> Result<()> {
    for agent in Agent::BOTH {
        for (step_ns, zone) in [(-WEEK_NS, "UTC"), (WEEK_NS, "UTC"), (0, "LOCAL")] {
            guest.shell(&format!("printf '0.0 0 0.0\\n0\\n{zone}\\n' > /etc/adjtime"))?;
            let reply = ask(guest, agent, "guest-set-time", &json!({"time": now_ns() + step_ns}))?;
            ensure!(reply == json!({"return": {}}), "{agent:?}: {reply}");
            ensure_near("the system clock", guest_time_ns(guest)?, now_ns() + step_ns)?;
            // The guest's zone is Paris, which is ahead by one hour or two.
            let zone_ns = if zone == "LOCAL" { zone_offset_ns(guest)? } else { 0 };
            ensure_near("the hardware clock", hardware_time_ns(guest)?, now_ns() + step_ns + zone_ns)?;
            // Away from it, then back to it.
            guest.shell("date -s '5 hours ago'")?;
            let reply = ask(guest, agent, "guest-set-time", &json!({}))?;
            ensure!(reply == json!({"return": {}}), "{agent:?}: {reply}");
            ensure_near("the system clock from the hardware clock", guest_time_ns(guest)?, now_ns() + step_ns)?;
        }
        guest.shell("rm /etc/adjtime")?;
        note_precision(guest, agent)?;
    }
    for time in [3_155_760_000_000_000_000_i64, i64::MAX] {
        let replies = Agent::BOTH.map(|agent| ask(guest, agent, "guest-set-time", &json!({"time": time})));
        for reply in replies {
            let text = told(&reply?);
            ensure!(text.starts_with("Invalid time"), "{time}: {text}");
        }
    }
    let text = told(&ask(guest, Agent::Ours, "guest-set-time", &json!({"time": -1}))?);
    ensure!(text.starts_with("Invalid time"), "-1: {text}");
    let replies = Agent::BOTH.map(|agent| ask(guest, agent, "guest-set-time", &json!({"time": "now"})));
    let [original, ours] = replies;
    ensure!(original? == ours?, "a time that is no number is refused in other words");
    ensure_near("the clock that nobody set", guest_time_ns(guest)?, now_ns())
}

fn zone_offset_ns(guest: &mut Guest) -> Result<i64> {
    let zone = guest.shell("date +%z")?;
    let hours: i64 = zone.get(..3).unwrap_or_default().parse().with_context(|| format!("no offset: {zone}"))?;
    Ok(hours * HOUR_NS)
}

/// How far the two clocks are apart after one was set from the other: where in the system's second the other's begins.
fn note_precision(guest: &mut Guest, agent: Agent) -> Result<()> {
    const WHERE_A_SECOND_BEGINS: &str = "python3 - <<'end'
import time
clock = '/sys/class/rtc/rtc0/since_epoch'
first = open(clock).read()
while open(clock).read() == first: pass
print(round(time.time() - int(open(clock).read()), 3))
end";
    ask(guest, agent, "guest-set-time", &json!({"time": now_ns()}))?;
    let after_setting = guest.shell(WHERE_A_SECOND_BEGINS)?;
    guest.shell("date -s '5 hours ago'")?;
    ask(guest, agent, "guest-set-time", &json!({}))?;
    let after_reading = guest.shell(WHERE_A_SECOND_BEGINS)?;
    guest.note(format!(
        "{agent:?}: the hardware clock is behind by {after_setting} s after setting, {after_reading} s after reading"
    ));
    Ok(())
}

fn set_time_of_poor_guest(guest: &mut Guest) -> Result<()> {
    // The driver cannot be taken away without a trace: the kernel's timers hold on to the clock.
    const CLOCK_AWAY: &str = "cp -a /dev/rtc /run/rtc-link; mv /dev/rtc0 /run/rtc0.away; rm /dev/rtc";
    const CLOCK_BACK: &str = "test -e /dev/rtc0 || { mv /run/rtc0.away /dev/rtc0; mv /run/rtc-link /dev/rtc; }";
    guest.shell("mv /usr/sbin/hwclock /usr/sbin/hwclock.away")?;
    let outcome = (|| -> Result<()> {
        // The original needs the program, and sets the clock before it notices.
        let original = ask(guest, Agent::Original, "guest-set-time", &json!({"time": now_ns()}))?;
        guest.note(format!("the original without hwclock: {}", told(&original).trim()));
        for arguments in [json!({"time": now_ns() - HOUR_NS}), json!({"time": now_ns()}), json!({})] {
            let reply = ask(guest, Agent::Ours, "guest-set-time", &arguments)?;
            ensure!(reply == json!({"return": {}}), "without hwclock: {reply}");
        }
        guest.shell(CLOCK_AWAY)?;
        let reply = ask(guest, Agent::Ours, "guest-set-time", &json!({"time": now_ns() - HOUR_NS}))?;
        ensure!(reply == json!({"return": {}}), "without a hardware clock: {reply}");
        ensure_near("the system clock", guest_time_ns(guest)?, now_ns() - HOUR_NS)?;
        let text = told(&ask(guest, Agent::Ours, "guest-set-time", &json!({}))?);
        let expected = "failed to set system time from hardware clock: there is none, neither /dev/rtc0 nor /dev/rtc nor \
                        another";
        ensure!(text == expected, "without a hardware clock: {text}");
        Ok(())
    })();
    guest.shell_result("mv /usr/sbin/hwclock.away /usr/sbin/hwclock")?;
    let restored = guest.shell(CLOCK_BACK);
    ask(guest, Agent::Ours, "guest-set-time", &json!({"time": now_ns()}))?;
    outcome.and(restored.map(drop))
}

/// Plugs a disk in, backed by a file of the host with holes.
fn plug_disk(guest: &mut Guest, name: &str, device: Value) -> Result<()> {
    const BYTES: u64 = 2 << 30;
    let file = guest.folder().join(name);
    File::create(&file)?.set_len(BYTES)?;
    let backend = json!({"driver": "raw", "node-name": name, "discard": "unmap",
        "file": {"driver": "file", "filename": file, "discard": "unmap"}});
    guest.machine().qmp("blockdev-add", &backend)?;
    let mut device = device;
    device["drive"] = json!(name);
    device["id"] = json!(format!("{name}-disk"));
    device["serial"] = json!(name);
    guest.machine().qmp("device_add", &device)?;
    guest.shell(&format!(
        "for try in $(seq 600); do udevadm settle; lsblk -dno SERIAL | grep -qx {name} && exit; sleep 0.2; done; exit 1"
    ))?;
    Ok(())
}

/// Takes a disk out and removes its file.
fn unplug_disk(guest: &mut Guest, name: &str) -> Result<()> {
    guest.machine().qmp("device_del", &json!({"id": format!("{name}-disk")}))?;
    guest.wait_until("the guest has let the disk go", |guest| {
        let gone = guest.shell_result(&format!("lsblk -dno SERIAL | grep -qx {name}"))?.status != 0;
        Ok(gone.then_some(()))
    })?;
    // QEMU lets go of it a little later than the guest.
    guest.wait_until("QEMU has let the disk go", |guest| {
        Ok(guest.machine().qmp("blockdev-del", &json!({"node-name": name})).is_ok().then_some(()))
    })?;
    fs::remove_file(guest.folder().join(name))?;
    Ok(())
}

/// Where the disk with a serial number is.
const FIND_DISK: &str = r#"disk() { lsblk -dnpo PATH,SERIAL | awk -v serial="$1" '$2 == serial { print $1 }'; }"#;

/// The size of the file that is deleted.
const DELETED_MIB: u64 = 16;

/// New file systems of four kinds, from which a file has just been deleted.
const FRESH: &str = r#"set -e
exec 2>&1
cd /
for kind in ext4 xfs btrfs vfat; do umount /trim/$kind || true; mkdir -p /trim/$kind; done
mkfs.ext4 -qFE lazy_itable_init=0,nodiscard "${disk}1"
mkfs.xfs -qfK "${disk}2"
mkfs.btrfs -qfK "${disk}3"
mkfs.vfat "${disk}4"
number=0
for kind in ext4 xfs btrfs vfat; do
    number=$((number + 1))
    mount -t $kind "$disk$number" /trim/$kind
    dd if=/dev/zero of=/trim/$kind/file bs=1M count=$deleted conv=fsync
done
sync
rm /trim/*/file
sync
"#;

fn trim(guest: &mut Guest) -> Result<()> {
    plug_disk(guest, "trimmed", json!({"driver": "scsi-hd", "bus": "plugs.0"}))?;
    let outcome = trim_by_both(guest);
    guest.shell_result("umount /trim/*; rm -rf /trim")?;
    outcome.and(unplug_disk(guest, "trimmed"))
}

fn trim_by_both(guest: &mut Guest) -> Result<()> {
    guest.shell(&format!(
        "{FIND_DISK}
         printf 'size=400MiB\\nsize=400MiB\\nsize=400MiB\\nsize=400MiB\\n' | sfdisk -q $(disk trimmed); udevadm settle"
    ))?;
    let file = guest.folder().join("trimmed");
    let fresh = format!("{FIND_DISK}\ndisk=$(disk trimmed)\ndeleted={DELETED_MIB}\n{FRESH}");
    for minimum in [None, Some(1_i64 << 20), Some(0), Some(1 << 33), Some(-1)] {
        let arguments = minimum.map_or_else(|| json!({}), |minimum| json!({"minimum": minimum}));
        let mut replies = Vec::new();
        for agent in Agent::BOTH {
            guest.shell(&fresh)?;
            let before = fs::metadata(&file)?.blocks();
            let reply = ask(guest, agent, "guest-fstrim", &arguments)?;
            let after = fs::metadata(&file)?.blocks();
            if minimum.is_none() {
                let freed = before.saturating_sub(after) / 2048;
                ensure!(freed >= 4 * DELETED_MIB, "{agent:?}: only {freed} MiB reached the disk");
                guest.note(format!("{agent:?}: {freed} MiB reached the disk"));
            }
            replies.push(reply);
        }
        let paths = |reply: &Value| reply["return"]["paths"].as_array().cloned().unwrap_or_default();
        let [original, ours] = [paths(&replies[0]), paths(&replies[1])];
        ensure!(original.len() == 5 && ours.len() == 5, "not five file systems: {} {}", replies[0], replies[1]);
        for (original, ours) in original.iter().zip(&ours) {
            ensure!(is_the_same(original, ours), "{arguments}\noriginal: {original}\nours:     {ours}");
        }
        let told: Vec<String> = ours.iter().map(|path| format!("{}: {}", path["path"], outcome_of(path))).collect();
        guest.note(format!("{arguments}: {}", told.join(", ")));
    }
    Ok(())
}

/// Whether both agents say the same of a file system.
fn is_the_same(original: &Value, ours: &Value) -> bool {
    let trimmed = |path: &Value| path["trimmed"].as_f64();
    let is_near = match (trimmed(original), trimmed(ours)) {
        // The root is in use, so its free space moves; where a new btrfs puts its trees is not always the same.
        (Some(first), Some(second)) if original["path"] == "/trim/btrfs" => (first / second - 1.0).abs() < 0.01,
        (Some(_), Some(_)) if original["path"] == "/" => true,
        (first, second) => first == second,
    };
    is_near && ["path", "minimum", "error"].iter().all(|name| original.get(name) == ours.get(name))
}

/// The outcome of one file system.
fn outcome_of(path: &Value) -> String {
    path["error"].as_str().map_or_else(|| format!("{} ≥ {}", path["trimmed"], path["minimum"]), str::to_owned)
}

fn trim_of_hanging_disk(guest: &mut Guest) -> Result<()> {
    const BUILD: &str = "set -e
exec 2>&1
truncate -s 64M /hanging.img
loop=$(losetup -f --show /hanging.img)
echo \"0 $(blockdev --getsz $loop) linear $loop 0\" | dmsetup create hanging
udevadm settle
mkfs.ext4 -qE nodiscard /dev/mapper/hanging
mkdir -p /hanging
mount /dev/mapper/hanging /hanging
dmsetup suspend --nolockfs hanging";
    const CLEAR: &str = "dmsetup resume hanging; umount /hanging; dmsetup remove hanging; losetup -D
rm -rf /hanging /hanging.img; true";
    let outcome = guest.shell(BUILD).and_then(|_| answered_meanwhile(guest));
    guest.shell_result(CLEAR)?;
    outcome
}

fn answered_meanwhile(guest: &mut Guest) -> Result<()> {
    let mut host = guest.talk_to_ours()?;
    host.send_request(&json!({"execute": "guest-fstrim"}))?;
    let early = host.line_within(Duration::from_secs(3))?;
    ensure!(
        early.is_none(),
        "trimming does not hang: {:?}",
        early.map(|line| String::from_utf8_lossy(&line).into_owned())
    );
    host.synchronise(patience()).context("while trimming hangs")?;
    host.call("guest-get-fsinfo", &json!({})).context("while trimming hangs")?;
    let text = told(&host.ask(&json!({"execute": "guest-set-time", "arguments": {"time": now_ns()}}))?);
    ensure!(text.contains("guest-fstrim has been running"), "while trimming hangs: {text}");
    guest.shell("dmsetup resume hanging")?;
    // The reply of the trim is not sent to a client that has resynchronised.
    host.call("guest-ping", &json!({}))?;
    guest.wait_until("trimming has ended", |_| {
        let reply = host.ask(&json!({"execute": "guest-set-time", "arguments": {"time": now_ns()}}))?;
        Ok((reply == json!({"return": {}})).then_some(()))
    })
}

/// Asks for sleep and waits until QEMU tells that the machine sleeps; then wakes it. The agent then answers, and has
/// not answered before.
fn sleep_and_wake(guest: &mut Guest, agent: Agent, command: &str) -> Result<()> {
    let mut host = guest.talk_to(agent)?;
    host.send_request(&json!({"execute": command}))?;
    if let Err(error) = guest.machine().wait_for_event("SUSPEND", patience()) {
        let line = host.line_within(Duration::from_millis(100))?.unwrap_or_default();
        return Err(error.context(format!("{command} of {agent:?} says {:?}", String::from_utf8_lossy(&line))));
    }
    guest.machine().qmp("system_wakeup", &json!({}))?;
    guest.machine().wait_for_event("WAKEUP", patience())?;
    ensure_timers_run(guest)?;
    // The very next line is the answer to this.
    let reply = host.ask(&json!({"execute": "guest-ping", "id": "awake"}))?;
    ensure!(reply == json!({"return": {}, "id": "awake"}), "{command} of {agent:?}: after waking {reply}");
    drop(host);
    guest.talk_to(agent)?;
    Ok(())
}

/// QEMU without KVM often wakes a processor whose timer never fires again. Nothing in such a guest can wait for
/// anything, so nothing can be shown in it.
fn ensure_timers_run(guest: &mut Guest) -> Result<()> {
    const SLEEP: &str = "for processor in 0 1 0 1; do taskset -c $processor sleep 0.1; done";
    // The original waits for nothing to answer these, and the host's time counts.
    let mut host = guest.talk_to_original()?;
    let arguments = json!({"path": "/bin/sh", "arg": ["-c", SLEEP]});
    let pid = host.call("guest-exec", &arguments)?["pid"].clone();
    let started = Instant::now();
    while host.call("guest-exec-status", &json!({"pid": pid}))?["exited"] == false {
        if started.elapsed() > pace::patience(Duration::from_secs(15)) {
            drop(host);
            restart(guest)?;
            return Err(Skipped::because("a processor's timer stands still after waking: a fault of QEMU without KVM"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Starts the guest anew by the host's will.
fn restart(guest: &mut Guest) -> Result<()> {
    guest.reboot(|guest| guest.machine().qmp("system_reset", &json!({})).map(drop))?;
    // The kernel does not put a machine to sleep whose devices are still being looked for.
    guest.shell_result("timeout 600 systemctl is-system-running --wait; udevadm settle").map(drop)
}

/// Takes systemctl away from the agents while something is done.
fn without_systemctl(guest: &mut Guest, run: impl FnOnce(&mut Guest) -> Result<()>) -> Result<()> {
    guest.shell("mv /usr/bin/systemctl /usr/bin/systemctl.away; sync")?;
    let outcome = run(guest);
    // A guest that was started anew meanwhile has lost what it had not written.
    guest.shell("test -e /usr/bin/systemctl || mv /usr/bin/systemctl.away /usr/bin/systemctl; sync")?;
    outcome
}

fn sleep_in_memory(guest: &mut Guest) -> Result<()> {
    sleep_and_wake(guest, Agent::Ours, "guest-suspend-ram").context("by systemd")?;
    // Without KVM the machine does not fall asleep a second time, whoever asks for it.
    guest.renew()?;
    without_systemctl(guest, |guest| sleep_and_wake(guest, Agent::Ours, "guest-suspend-ram"))
        .context("by the kernel")?;
    guest.renew()
}

fn sleep_refused(guest: &mut Guest) -> Result<()> {
    guest.shell("echo 's2idle' > /run/only-idle; mount --bind /run/only-idle /sys/power/mem_sleep")?;
    let refused = ask(guest, Agent::Ours, "guest-suspend-ram", &json!({}));
    guest.shell("umount /sys/power/mem_sleep; rm /run/only-idle")?;
    let text = told(&refused?);
    let expected = "the requested suspend mode is not supported by the guest: /sys/power/mem_sleep does not offer \
                    'deep', and the host cannot end another sleep";
    ensure!(text == expected, "{text}");
    // Whoever masks the target does not want it.
    guest.shell("systemctl mask --runtime suspend.target")?;
    let masked = ask(guest, Agent::Ours, "guest-suspend-ram", &json!({}));
    guest.shell("systemctl unmask --runtime suspend.target")?;
    let text = told(&masked?);
    ensure!(text.starts_with("failed to suspend to memory: systemctl suspend: "), "{text}");
    guest.note(format!("masked: {text}"));
    let text = told(&ask(guest, Agent::Ours, "guest-suspend-disk", &json!({}))?);
    ensure!(text.contains("from which device it would go on"), "without swap: {text}");
    let text = told(&ask(guest, Agent::Ours, "guest-suspend-hybrid", &json!({}))?);
    ensure!(text.starts_with("failed to suspend to disk and memory: systemctl hybrid-sleep: "), "{text}");
    ensure!(text.ends_with("there is no swap space on a disk"), "{text}");
    let mut host = guest.talk_to_original()?;
    for command in ["guest-suspend-hybrid", "guest-suspend-disk"] {
        host.send_request(&json!({"execute": command}))?;
        let line = host.line_within(Duration::from_secs(20))?;
        let line = line.map_or("no reply".to_owned(), |line| String::from_utf8_lossy(&line).into_owned());
        guest.note(format!("the original's {command} without swap: {line}"));
    }
    drop(host);
    without_systemctl(guest, |guest| {
        let original = ask(guest, Agent::Original, "guest-suspend-ram", &json!({}))?;
        guest.note(format!("the original's guest-suspend-ram without systemctl: {}", told(&original)));
        Ok(())
    })
}

/// Gives the guest a disk to sleep on.
fn with_swap(guest: &mut Guest, run: impl FnOnce(&mut Guest) -> Result<()>) -> Result<()> {
    plug_disk(guest, "memory", json!({"driver": "virtio-blk-pci", "bus": "slot1"}))?;
    // The firmware's map of the memory changes with a plugged device at the next start, and must be the same then. The
    // less is written, the sooner it sleeps.
    let prepare = format!(
        "{FIND_DISK}
         disk=$(disk memory); mkswap $disk && swapon $disk && cat /sys/block/${{disk##*/}}/dev > /sys/power/resume
         echo 0 > /sys/power/image_size"
    );
    let outcome = restart(guest).and_then(|()| guest.shell(&prepare)).and_then(|_| run(guest));
    guest.shell_result(&format!("{FIND_DISK}\nswapoff $(disk memory); echo 0:0 > /sys/power/resume"))?;
    outcome.and(unplug_disk(guest, "memory"))
}

fn sleep_off_and_go_on_twice(guest: &mut Guest) -> Result<()> {
    without_systemctl(guest, |guest| sleep_off_and_go_on(guest).context("by the kernel"))?;
    sleep_off_and_go_on(guest).context("by systemd")
}

/// The host sees a machine that sleeps in memory; what would be gone on with after a loss of power is on the disk.
fn sleep_hybrid(guest: &mut Guest) -> Result<()> {
    sleep_and_wake(guest, Agent::Ours, "guest-suspend-hybrid")?;
    let written = guest.shell("journalctl --boot --dmesg --grep 'hibernation: (Image|Creating)' --output cat")?;
    ensure!(!written.is_empty(), "the kernel wrote no copy");
    guest.note(written.lines().last().unwrap_or_default());
    restart(guest)
}

/// Suspends to the disk, lets the machine start, and finds everything as it was.
fn sleep_off_and_go_on(guest: &mut Guest) -> Result<()> {
    const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
    let before = guest.shell(BOOT_ID)?;
    let pid = guest.our_pid();
    let mut host = guest.talk_to_ours()?;
    guest.machine().qmp("set-action", &json!({"shutdown": "pause"}))?;
    host.send_request(&json!({"execute": "guest-suspend-disk"}))?;
    if let Err(error) = guest.machine().wait_for_event("SHUTDOWN", patience()) {
        let line = host.line_within(Duration::from_millis(100))?.unwrap_or_default();
        return Err(error.context(format!("it says {:?}", String::from_utf8_lossy(&line))));
    }
    start_anew(guest)?;
    host.synchronise(patience())?;
    drop(host);
    guest.wait_until("the guest goes on", |guest| Ok(guest.shell(BOOT_ID).is_ok().then_some(())))?;
    ensure!(guest.shell(BOOT_ID)? == before, "the guest has started anew instead of going on");
    if let Ok(pid) = pid {
        ensure!(guest.our_pid()? == pid, "another agent answers");
    }
    Ok(())
}

/// Switches a machine on that has switched itself off and that QEMU has kept.
fn start_anew(guest: &mut Guest) -> Result<()> {
    guest.machine().qmp("system_reset", &json!({}))?;
    // Refused until the reset is done.
    guest.wait_until("the machine runs", |guest| Ok(guest.machine().qmp("cont", &json!({})).is_ok().then_some(())))?;
    guest.machine().qmp("set-action", &json!({"shutdown": "poweroff"})).map(drop)
}

fn ends(guest: &mut Guest) -> Result<()> {
    for agent in Agent::BOTH {
        let text = told(&ask(guest, agent, "guest-shutdown", &json!({"mode": "sleep"}))?);
        ensure!(text == "mode is invalid (valid values are: halt|powerdown|reboot", "{agent:?}: {text}");
    }
    // With all programs.
    guest.machine().qmp("set-action", &json!({"shutdown": "pause"}))?;
    let mut host = end(guest, &json!({}))?;
    let event = guest.machine().wait_for_event("SHUTDOWN", patience())?;
    ensure!(event["data"]["reason"] == "guest-shutdown", "{event}");
    ensure_silent(&mut host)?;
    guest.renew()?;
    // Without shutdown(8).
    guest.shell("mv /usr/sbin/shutdown /usr/sbin/shutdown.away")?;
    let console = guest.folder().join("console.log");
    let mut host = end(guest, &json!({"mode": "halt"}))?;
    let deadline = Instant::now() + patience();
    while !String::from_utf8_lossy(&fs::read(&console)?).contains("System halted") {
        ensure!(Instant::now() < deadline, "the guest does not halt:\n{}", guest.console_tail(20));
        std::thread::sleep(Duration::from_millis(200));
    }
    ensure!(guest.machine().qmp("query-status", &json!({}))?["status"] == "running", "it does not stand still");
    ensure_silent(&mut host)?;
    guest.renew()?;
    // Without any program: poweroff, halt and reboot are names of systemctl.
    guest
        .shell("mv /usr/sbin/shutdown /usr/sbin/shutdown.away; mv /usr/bin/systemctl /usr/bin/systemctl.away; sync")?;
    guest.reboot(|guest| end(guest, &json!({"mode": "reboot"})).map(drop))?;
    guest.shell("mv /usr/bin/systemctl.away /usr/bin/systemctl; mv /usr/sbin/shutdown.away /usr/sbin/shutdown")?;
    guest.talk_to_original()?;
    guest.talk_to_ours()?;
    Ok(())
}

/// Asks ours for the machine's end.
fn end(guest: &Guest, arguments: &Value) -> Result<Conversation> {
    let mut host = guest.talk_to_ours()?;
    host.send_request(&json!({"execute": "guest-shutdown", "arguments": arguments}))?;
    Ok(host)
}

/// A success is not answered.
fn ensure_silent(host: &mut Conversation) -> Result<()> {
    let line = host.line_within(Duration::from_millis(500))?;
    ensure!(line.is_none(), "it says {:?}", line.map(|line| String::from_utf8_lossy(&line).into_owned()));
    Ok(())
}
