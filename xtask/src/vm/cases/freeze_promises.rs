//! A frozen guest always comes back: each way in which a freeze of the original never ends is gone through with ours.
//!
//! File systems of their own are frozen, not the root, so that the guest can be looked into meanwhile; the cases that
//! freeze everything look only at what the host sees.

use super::Case;
use crate::vm::conversation::{Conversation, patience};
use crate::vm::frozen::ORIGINAL_UNIT;
use crate::vm::guest::{Agent, Guest, OUR_UNIT};
use crate::vm::pace;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    Case { name: "freeze_of_everything_many_times_under_load_keeps_every_byte", run: many_rounds },
    Case { name: "freeze_of_the_original_outlasts_all_of_it", run: original_stays_frozen },
    Case { name: "freeze_holds_what_lies_on_files_of_other_file_systems", run: stacked },
    Case { name: "freeze_reaches_what_was_mounted_over_or_moved_meanwhile", run: moved },
    Case { name: "freeze_ends_at_its_deadline_and_says_so_once", run: deadline },
    Case { name: "freeze_ends_when_the_host_is_gone", run: host_gone },
    Case { name: "freeze_ends_when_the_agent_is_told_to_end", run: terminated },
    Case { name: "freeze_survives_a_killed_agent_and_is_ended_by_the_next_one", run: killed },
    Case { name: "freeze_is_ended_by_the_guardian_when_no_agent_comes", run: orphaned },
    Case { name: "freeze_is_ended_by_the_next_agent_though_the_guardian_was_killed_too", run: both_killed },
    Case { name: "freeze_of_an_earlier_boot_is_forgotten", run: stale },
    Case { name: "freeze_on_a_disk_that_hangs_is_called_off_by_a_thaw", run: hung_disk },
    Case { name: "freeze_of_a_disk_that_is_gone_is_ended", run: unplugged },
    Case { name: "freeze_writes_nothing_while_frozen", run: writes_nothing },
];

/// File systems on files of `/var/freeze`: `a` (ext4), `b` (xfs), `inner` (ext4, on a file of `a`).
const MAKE: &str = "
mkdir -p /var/freeze /mnt/a /mnt/b /mnt/inner /mnt/elsewhere
cd /var/freeze
truncate -s 64M a.img; mkfs.ext4 -q -F a.img; mount -o loop a.img /mnt/a
truncate -s 320M b.img; mkfs.xfs -q -f b.img; mount -o loop b.img /mnt/b
truncate -s 16M /mnt/a/inner.img; mkfs.ext4 -q -F /mnt/a/inner.img; mount -o loop /mnt/a/inner.img /mnt/inner
";
/// Thaws by hand whatever is left, so that a failed case does not take the next ones with it.
const CLEAN_UP: &str = "
for place in /mnt/inner /mnt/a /mnt/b /mnt/elsewhere; do
    for again in 1 2; do fsfreeze -u $place 2> /dev/null; done
done
for place in /mnt/inner /mnt/elsewhere /mnt/a /mnt/a /mnt/b; do umount -l $place 2> /dev/null; done
rm -rf /var/freeze /etc/qemu
";

/// Runs something with these file systems and an agent with these lines in its configuration.
fn with_file_systems(guest: &mut Guest, configuration: &str, run: impl FnOnce(&mut Guest) -> Result<()>) -> Result<()> {
    guest.shell(MAKE)?;
    guest.shell(&format!(
        "mkdir -p /etc/qemu && printf '[general]\\n{configuration}\\n' > /etc/qemu/qemu-ga.conf && systemctl restart {OUR_UNIT}"
    ))?;
    let outcome = run(guest);
    // Whatever the case has left: no agent may be held by a frozen disk.
    let cleaned = guest.shell(&format!(
        "systemctl unmask --runtime {OUR_UNIT}; systemctl kill --signal KILL {OUR_UNIT} 2> /dev/null; pkill -KILL -x qemu-ga-guard\n{CLEAN_UP}\n\
         rm -f /run/qga.state.*\nsystemctl reset-failed {OUR_UNIT}; systemctl restart {OUR_UNIT}"
    ));
    outcome.and(cleaned.map(drop))
}

fn freeze(host: &mut Conversation, places: &[&str]) -> Result<()> {
    let count = host.call("guest-fsfreeze-freeze-list", &json!({"mountpoints": places}))?;
    ensure!(count == places.len(), "{count} of {places:?} were frozen");
    ensure!(status(host)? == "frozen", "the status is {}", status(host)?);
    Ok(())
}

fn thaw(host: &mut Conversation) -> Result<Value> {
    host.ask(&json!({"execute": "guest-fsfreeze-thaw"}))
}

fn status(host: &mut Conversation) -> Result<Value> {
    host.call("guest-fsfreeze-status", &json!({}))
}

/// Waits until the agent says that nothing is frozen.
fn wait_for_thaw(guest: &mut Guest) -> Result<Conversation> {
    guest.wait_until("the agent says that it is thawed", |guest| {
        let mut host = guest.talk_to_ours()?;
        Ok((status(&mut host)? == "thawed").then_some(host))
    })
}

/// What the table in `docs/freeze.md` says of the original.
fn original_stays_frozen(guest: &mut Guest) -> Result<()> {
    with_file_systems(guest, "", |guest| {
        // Its state outlives it, as /run does for a unit that has no directory of its own there.
        guest.change_unit(ORIGINAL_UNIT, "RuntimeDirectoryPreserve=yes")?;
        let outcome = original_is_held(guest);
        // Whatever was found, it serves the cases after this one.
        let restored = guest.shell(&format!(
            "systemctl stop --no-block {ORIGINAL_UNIT}; systemctl kill --signal KILL {ORIGINAL_UNIT} 2> /dev/null; 
             for place in /mnt/a /mnt/b; do fsfreeze -u $place 2> /dev/null; done
             rm -f /run/original-agent/qga.state.isfrozen; systemctl restart {ORIGINAL_UNIT}"
        ));
        outcome.and(restored.map(drop))
    })
}

fn original_is_held(guest: &mut Guest) -> Result<()> {
    let mut host = guest.talk_to_original()?;
    // Mounted over: found by its name alone, it is not found.
    freeze(&mut host, &["/mnt/a", "/mnt/b"])?;
    guest.shell("mount -t tmpfs none /mnt/a")?;
    ensure!(thaw(&mut host)? == json!({"return": 1}), "the original finds what was mounted over");
    guest.shell("umount /mnt/a")?;
    guest.expect_writes(&["/mnt/a"], false)?;
    guest.shell("fsfreeze -u /mnt/a")?;
    // Told to end: it does not.
    freeze(&mut host, &["/mnt/b"])?;
    let pid = guest.unit_pid(ORIGINAL_UNIT)?;
    guest.shell(&format!("kill -TERM {pid}; sleep 2"))?;
    ensure!(guest.unit_pid(ORIGINAL_UNIT)? == pid && status(&mut host)? == "frozen", "the original ends");
    // The host is gone: so it stays, for longer than ours is given for it.
    drop(host);
    guest.shell("sleep 8")?;
    guest.expect_writes(&["/mnt/b"], false)?;
    // Killed: the one that the service manager starts knows of it, and waits to be asked.
    guest.shell(&format!("kill -9 {pid}; sleep 5"))?;
    guest.expect_writes(&["/mnt/b"], false)?;
    let mut host = guest.talk_to_original()?;
    ensure!(status(&mut host)? == "frozen" && thaw(&mut host)?["return"] == 1, "the next one does not thaw");
    // A state file, however old, is believed.
    drop(host);
    guest.shell(&format!(
        "systemctl stop {ORIGINAL_UNIT}; touch -d '2001-01-01' /run/original-agent/qga.state.isfrozen
         systemctl start {ORIGINAL_UNIT}"
    ))?;
    let mut host = guest.talk_to_original()?;
    ensure!(status(&mut host)? == "frozen", "the original looks at the age of its state file");
    let refused = host.ask(&json!({"execute": "guest-get-host-name"}))?;
    ensure!(refused["error"]["class"] == "CommandNotFound", "{refused}");
    thaw(&mut host)?;
    Ok(())
}

fn stacked(guest: &mut Guest) -> Result<()> {
    with_file_systems(guest, "", |guest| {
        let mut host = guest.talk_to_ours()?;
        // In the order in which it would hang: the file's own file system first.
        freeze(&mut host, &["/mnt/a", "/mnt/inner", "/mnt/b"])?;
        guest.expect_writes(&["/mnt/a", "/mnt/inner", "/mnt/b"], false)?;
        let refused = host.ask(&json!({"execute": "guest-get-host-name"}))?;
        ensure!(refused["error"]["class"] == "CommandNotFound", "{refused}");
        ensure!(thaw(&mut host)? == json!({"return": 3}));
        guest.expect_writes(&["/mnt/a", "/mnt/inner", "/mnt/b"], true)?;
        ensure!(host.ask(&json!({"execute": "guest-get-host-name"}))?["return"].is_object());
        let left = guest.shell_result("pgrep -x qemu-ga-guard; ls /run/qga.state.* | grep -v lock$")?.stdout;
        ensure!(left.is_empty(), "left behind: {left}");
        stacked_out_of_order(guest, &mut host)
    })
}

/// The lower file system comes later in the list of mounts than the one that lies on a file of it.
fn stacked_out_of_order(guest: &mut Guest, ours: &mut Conversation) -> Result<()> {
    const PLACES: [&str; 2] = ["/mnt/elsewhere", "/mnt/inner"];
    guest
        .shell("mount $(findmnt -no SOURCE /mnt/a) /mnt/elsewhere; umount -l /mnt/a; echo dirty > /mnt/inner/dirty")?;
    let mut original = guest.talk_to_original()?;
    original.send_request(&json!({"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": PLACES}}))?;
    let early = original.line_within(Duration::from_secs(8));
    // With nothing beneath it frozen any more it goes on.
    guest.shell("fsfreeze -u /mnt/elsewhere")?;
    ensure!(early?.is_none(), "the original freezes the lower one last");
    original.synchronise(patience())?;
    thaw(&mut original)?;
    guest.shell("echo dirty > /mnt/inner/dirty")?;
    freeze(ours, &PLACES)?;
    ensure!(thaw(ours)? == json!({"return": 2}));
    guest.expect_writes(&PLACES, true)
}

fn moved(guest: &mut Guest) -> Result<()> {
    with_file_systems(guest, "", |guest| {
        let mut host = guest.talk_to_ours()?;
        freeze(&mut host, &["/mnt/a", "/mnt/b"])?;
        guest.shell("mount -t tmpfs none /mnt/a && mount --make-private / && mount --move /mnt/b /mnt/elsewhere")?;
        ensure!(thaw(&mut host)? == json!({"return": 2}));
        guest.shell("umount /mnt/a")?;
        guest.expect_writes(&["/mnt/a", "/mnt/elsewhere"], true)
    })
}

/// The time limit of a freeze was over before the case could look: nothing is shown.
#[derive(Debug)]
struct TooLate;

impl fmt::Display for TooLate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the freeze's time limit was over before anybody could look")
    }
}

impl std::error::Error for TooLate {}

/// Freezes `places` with a time limit, does `then`, and makes sure that a write to the first place waits; then runs the
/// rest of the case. A guest that is too slow for the limit gets a longer one.
fn with_time_limit(
    guest: &mut Guest,
    usual_seconds: u32,
    places: &[&str],
    then: impl Fn(&mut Guest) -> Result<()>,
    rest: impl Fn(&mut Guest) -> Result<()>,
) -> Result<()> {
    let limited = |guest: &mut Guest, seconds: u32| {
        with_file_systems(guest, &format!("fsfreeze-timeout={seconds}"), |guest| {
            let mut host = guest.talk_to_ours()?;
            let began = guest.uptime_seconds()?;
            let looked = freeze(&mut host, places)
                .and_then(|()| then(guest))
                .and_then(|()| guest.expect_writes(&places[..1], false));
            drop(host);
            if let Err(error) = looked {
                let is_over = guest.uptime_seconds()? - began >= f64::from(seconds);
                return Err(if is_over { TooLate.into() } else { error });
            }
            rest(guest)
        })
    };
    let seconds = usual_seconds * pace::slowness();
    match limited(guest, seconds) {
        Err(error) if error.is::<TooLate>() => limited(guest, seconds * 4),
        other => other,
    }
}

/// How often our agent's log of this boot says that a freeze was ended by its time limit.
fn time_limits_over(guest: &mut Guest) -> Result<u32> {
    let lines = format!("journalctl --boot --unit {OUR_UNIT} | grep -c 'fsfreeze-timeout was over'; true");
    Ok(guest.shell(&lines)?.parse()?)
}

fn deadline(guest: &mut Guest) -> Result<()> {
    let before = Cell::new(0);
    let count = |guest: &mut Guest| time_limits_over(guest).map(|count| before.set(count));
    with_time_limit(guest, 4, &["/mnt/a"], count, |guest| {
        let mut host = wait_for_thaw(guest)?;
        guest.expect_writes(&["/mnt/a"], true)?;
        let told = thaw(&mut host)?;
        let text = told["error"]["desc"].as_str().unwrap_or_default();
        ensure!(text.contains("thawed before guest-fsfreeze-thaw") && text.contains("fsfreeze-timeout"), "{told}");
        ensure!(thaw(&mut host)? == json!({"return": 0}), "it is told twice");
        let after = time_limits_over(guest)?;
        ensure!(after == before.get() + 1, "the log has {} lines of it", after - before.get());
        Ok(())
    })
}

fn host_gone(guest: &mut Guest) -> Result<()> {
    let before = time_limits_over(guest)?;
    with_file_systems(guest, "fsfreeze-timeout=5", |guest| {
        let mut host = guest.talk_to_ours()?;
        host.send_request(&json!({"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": ["/mnt/b"]}}))?;
        // Gone before the reply.
        drop(host);
        // A slow guest may show the frozen state to nobody, so the log is asked whether the freeze has begun and ended.
        guest.wait_until("the freeze has ended at its time limit", |guest| {
            Ok((time_limits_over(guest)? > before).then_some(()))
        })?;
        wait_for_thaw(guest)?;
        guest.expect_writes(&["/mnt/b"], true)
    })
}

fn terminated(guest: &mut Guest) -> Result<()> {
    with_file_systems(guest, "", |guest| {
        let mut host = guest.talk_to_ours()?;
        freeze(&mut host, &["/mnt/a", "/mnt/b"])?;
        drop(host);
        guest.shell(&format!("systemctl stop {OUR_UNIT}"))?;
        guest.expect_writes(&["/mnt/a", "/mnt/b"], true)?;
        let left =
            guest.shell_result("pgrep -x qemu-ga-guard; ls /run/qga.state.isfrozen /run/qga.state.guardian")?.stdout;
        ensure!(left.is_empty(), "left behind: {left}");
        guest.shell(&format!("systemctl start {OUR_UNIT}"))?;
        let mut host = guest.talk_to_ours()?;
        ensure!(status(&mut host)? == "thawed");
        // As after an update of the package in the middle of a backup.
        let told = thaw(&mut host)?;
        let text = told["error"]["desc"].as_str().unwrap_or_default();
        ensure!(text.contains("the agent was told to end"), "the next agent says nothing of it: {told}");
        ensure!(thaw(&mut host)? == json!({"return": 0}), "it is told twice");
        Ok(())
    })
}

fn killed(guest: &mut Guest) -> Result<()> {
    with_file_systems(guest, "", |guest| {
        let mut host = guest.talk_to_ours()?;
        freeze(&mut host, &["/mnt/a", "/mnt/b"])?;
        drop(host);
        let killed = guest.our_pid()?;
        guest.shell(&format!("kill -9 {killed}"))?;
        guest.wait_until("the agent is started anew", |guest| Ok((guest.our_pid()? != killed).then_some(())))?;
        let mut host = guest.talk_to_ours()?;
        ensure!(status(&mut host)? == "frozen", "the new agent does not know of the freeze");
        let refused = host.ask(&json!({"execute": "guest-exec", "arguments": {"path": "true"}}))?;
        ensure!(refused["error"]["class"] == "CommandNotFound", "{refused}");
        // Through the guardian's descriptors: by name it would not be reached any more.
        guest.shell("mount -t tmpfs none /mnt/a")?;
        ensure!(thaw(&mut host)? == json!({"return": 2}));
        guest.shell("umount /mnt/a")?;
        guest.expect_writes(&["/mnt/a", "/mnt/b"], true)?;
        ensure!(host.ask(&json!({"execute": "guest-get-host-name"}))?["return"].is_object());
        Ok(())
    })
}

fn orphaned(guest: &mut Guest) -> Result<()> {
    let kill = |guest: &mut Guest| {
        // A masked unit is not started again.
        let dead = format!("systemctl mask --runtime {OUR_UNIT}; kill -9 {}", guest.our_pid()?);
        guest.shell(&dead).map(drop)
    };
    with_time_limit(guest, 25, &["/mnt/a", "/mnt/b"], kill, |guest| {
        guest.wait_until("the guardian thaws", |guest| {
            // Each look leaves a program behind that waits.
            guest.shell("sleep 1")?;
            Ok(guest.takes_writes("/mnt/b")?.then_some(()))
        })?;
        guest.expect_writes(&["/mnt/a"], true)?;
        guest.shell(&format!("systemctl unmask --runtime {OUR_UNIT}; systemctl restart {OUR_UNIT}"))?;
        let mut host = guest.talk_to_ours()?;
        ensure!(status(&mut host)? == "thawed");
        let told = thaw(&mut host)?;
        let text = told["error"]["desc"].as_str().unwrap_or_default();
        ensure!(text.contains("thawed before guest-fsfreeze-thaw"), "the next agent says nothing of it: {told}");
        ensure!(thaw(&mut host)? == json!({"return": 0}));
        Ok(())
    })
}

fn both_killed(guest: &mut Guest) -> Result<()> {
    with_file_systems(guest, "", |guest| {
        let mut host = guest.talk_to_ours()?;
        freeze(&mut host, &["/mnt/a", "/mnt/inner", "/mnt/b"])?;
        drop(host);
        let killed = guest.our_pid()?;
        guest.shell(&format!("kill -9 {killed} $(pgrep -x qemu-ga-guard)"))?;
        guest.wait_until("the agent is started anew", |guest| Ok((guest.our_pid()? != killed).then_some(())))?;
        let mut host = guest.talk_to_ours()?;
        ensure!(status(&mut host)? == "frozen", "the new agent does not know of the freeze");
        ensure!(thaw(&mut host)? == json!({"return": 3}));
        guest.expect_writes(&["/mnt/a", "/mnt/inner", "/mnt/b"], true)
    })
}

fn stale(guest: &mut Guest) -> Result<()> {
    with_file_systems(guest, "", |guest| {
        for content in ["boot-id=an-earlier-one\\nmount=/mnt/a\\n", ""] {
            guest.shell(&format!(
                "systemctl stop {OUR_UNIT}; printf '{content}' > /run/qga.state.isfrozen
                 touch -d '2001-01-01' /run/qga.state.isfrozen; systemctl start {OUR_UNIT}"
            ))?;
            let mut host = guest.talk_to_ours()?;
            ensure!(status(&mut host)? == "thawed", "an old file with {content:?} is believed");
            ensure!(guest.shell_result("ls /run/qga.state.isfrozen")?.status != 0, "the old file is still there");
        }
        Ok(())
    })
}

/// A device on `/dev/mapper/hangs` below `/mnt/b` that can be made to hang.
fn hung_disk(guest: &mut Guest) -> Result<()> {
    with_file_systems(guest, "", |guest| {
        guest.shell(
            "modprobe dm-mod; umount /mnt/b; loop=$(losetup --find --show /var/freeze/b.img)
             echo \"0 $(blockdev --getsz $loop) linear $loop 0\" | dmsetup create hangs
             mount /dev/mapper/hangs /mnt/b",
        )?;
        let outcome = original_is_deaf(guest).and_then(|()| hung_disk_is_survived(guest));
        guest.shell("dmsetup resume hangs; umount -l /mnt/b; dmsetup remove --retry hangs; losetup -D; true")?;
        outcome
    })
}

fn original_is_deaf(guest: &mut Guest) -> Result<()> {
    guest.shell("echo dirty > /mnt/b/dirty; dmsetup suspend --nolockfs hangs")?;
    let mut host = guest.talk_to_original()?;
    host.send_request(&json!({"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": ["/mnt/b"]}}))?;
    host.send_request(&json!({"execute": "guest-sync", "arguments": {"id": 1}}))?;
    let early = host.line_within(Duration::from_secs(8));
    guest.shell("dmsetup resume hangs")?;
    ensure!(early?.is_none(), "the original answers while the disk hangs");
    host.synchronise(patience())?;
    thaw(&mut host).map(drop)
}

fn hung_disk_is_survived(guest: &mut Guest) -> Result<()> {
    guest.shell("echo dirty > /mnt/b/dirty; dmsetup suspend --nolockfs hangs")?;
    let mut host = guest.talk_to_ours()?;
    let request = json!({"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": ["/mnt/a", "/mnt/b"]}});
    host.send_request(&request)?;
    ensure!(host.line_within(Duration::from_secs(3))?.is_none(), "the disk does not hang");
    // As libvirt does after its patience is over: a sync, then the thaw.
    let asked = Instant::now();
    host.synchronise(patience())?;
    guest.note(format!("a sync during a freeze that hangs is answered within {} ms", asked.elapsed().as_millis()));
    let thawed = thaw(&mut host)?;
    ensure!(thawed["return"].is_i64(), "{thawed}");
    guest.note(format!("the thaw that calls it off takes {} ms", asked.elapsed().as_millis()));
    ensure!(status(&mut host)? == "thawed");
    guest.expect_writes(&["/mnt/a"], true)?;
    guest.shell("dmsetup resume hangs")?;
    guest.expect_writes(&["/mnt/b"], true).context("what hung is frozen after all")?;
    // Nothing is left of it: the next freeze goes through.
    freeze(&mut host, &["/mnt/a", "/mnt/b"])?;
    ensure!(thaw(&mut host)? == json!({"return": 2}));
    guest.expect_writes(&["/mnt/a", "/mnt/b"], true)
}

fn unplugged(guest: &mut Guest) -> Result<()> {
    Agent::BOTH.into_iter().try_for_each(|agent| with_file_systems(guest, "", |guest| unplugged_under(guest, agent)))
}

fn unplugged_under(guest: &mut Guest, agent: Agent) -> Result<()> {
    let folder = guest.folder().to_owned();
    let file = folder.join("unplugged.raw");
    std::fs::File::create(&file)?.set_len(64 << 20)?;
    let machine = guest.machine();
    machine.qmp("blockdev-add", &json!({"driver": "file", "node-name": "unplugged", "filename": file}))?;
    machine.qmp("device_add", &json!({"driver": "scsi-hd", "bus": "plugs.0", "id": "unplugged-disk", "drive": "unplugged", "serial": "UNPLUGGED"}))?;
    guest.shell(
            "modprobe virtio_scsi; for try in $(seq 600); do udevadm settle; disk=$(ls /dev/disk/by-id/*UNPLUGGED) && break; sleep 1; done
             mkfs.ext4 -q $disk && mount $disk /mnt/elsewhere",
        )?;
    let mut host = guest.talk_to(agent)?;
    freeze(&mut host, &["/mnt/a", "/mnt/elsewhere"])?;
    let machine = guest.machine();
    machine.qmp("device_del", &json!({"id": "unplugged-disk"}))?;
    machine.wait_for_event("DEVICE_DELETED", patience())?;
    guest.machine().qmp("blockdev-del", &json!({"node-name": "unplugged"}))?;
    let thawed = thaw(&mut host)?;
    guest.note(format!("{agent:?}: thaw after one of two disks was unplugged: {thawed}"));
    ensure!(status(&mut host)? == "thawed");
    guest.expect_writes(&["/mnt/a"], true)?;
    guest.shell("umount -l /mnt/elsewhere").map(drop)
}

fn writes_nothing(guest: &mut Guest) -> Result<()> {
    with_file_systems(guest, "logfile=/mnt/a/agent.log\\nverbose=true", |guest| {
        let mut host = guest.talk_to_ours()?;
        freeze(&mut host, &["/mnt/a", "/mnt/b"])?;
        let pid = guest.our_pid()?;
        guest.shell(&format!(
            "strace -f -qq -o /run/trace -e trace=desc,file,network $(pgrep -x qemu-ga-guard | sed 's/^/-p /') -p {pid} > /dev/null 2>&1 &
             until grep -q TracerPid:.*[1-9] /proc/{pid}/status; do sleep 0.1; done"
        ))?;
        let size = guest.shell("stat -c %s /mnt/a/agent.log")?;
        for _ in 0..20 {
            host.call("guest-ping", &json!({}))?;
            host.call("guest-info", &json!({}))?;
            host.ask(&json!({"execute": "guest-exec", "arguments": {"path": "true"}}))?;
            host.send(b"garbage\n")?;
            host.reply()?;
        }
        let locked = guest.shell(&format!("awk '/^VmLck/ {{print $2}}' /proc/{pid}/status"))?;
        ensure!(locked.parse::<u64>()? > 1000, "{locked} kB of memory are locked");
        guest.shell("pkill strace; while pgrep strace; do sleep 0.1; done")?;
        // Only the port is written to; nothing is opened for writing, made, renamed or removed.
        let port = guest.shell(&format!(
            "for file in /proc/{pid}/fd/*; do case $(readlink $file) in /dev/vport*) basename $file;; esac; done"
        ))?;
        let trace = guest.shell("cat /run/trace; rm /run/trace")?;
        ensure!(trace.lines().count() > 40, "nothing was traced:\n{trace}");
        for line in trace.lines() {
            let call = line.split_once(' ').map_or(line, |(_, call)| call.trim_start());
            let is_write =
                ["write(", "pwrite64(", "writev(", "sendto(", "sendmsg("].iter().any(|name| call.starts_with(name));
            let changes =
                ["O_WRONLY", "O_RDWR", "O_CREAT", "unlink", "rename(", "mkdir", "truncate", "chmod", "utime", "fsync"];
            // The threads wake each other by pipes and sockets of their own.
            let is_to_port = port.split_whitespace().any(|number| call.contains(&format!("({number},")));
            let is_bad = changes.iter().any(|word| call.contains(word))
                || (is_write && !is_to_port && !call.contains("\"\\0\", 1"));
            ensure!(!is_bad, "while frozen: {line}");
        }
        ensure!(guest.shell("stat -c %s /mnt/a/agent.log")? == size, "the log file has grown");
        ensure!(thaw(&mut host)? == json!({"return": 2}));
        let log = guest.shell("grep -c 'guest-exec refused' /mnt/a/agent.log")?;
        ensure!(log == "20", "after the thaw the log has {log} of 20 lines");
        Ok(())
    })
}

/// Programs write and check on three file systems and the root, while everything is frozen and thawed.
fn many_rounds(guest: &mut Guest) -> Result<()> {
    /// As many as come about in the time, between these bounds: on a slow machine a round takes six seconds.
    const ROUNDS: Range<usize> = 25..200;
    const TIME: Duration = Duration::from_secs(60);
    with_file_systems(guest, "", |guest| {
        guest.shell(
            "cat > /run/load.sh <<'END'
cd $1
round=0
while [ ! -e /run/enough ]; do
    round=$((round + 1))
    head -c 30000 /dev/urandom > data.$((round % 5)).new && sha256sum < data.$((round % 5)).new > sum.$((round % 5)).new
    sync data.$((round % 5)).new
    mv data.$((round % 5)).new data.$((round % 5)); mv sum.$((round % 5)).new sum.$((round % 5))
    [ \"$(sha256sum < data.$((round % 5)))\" = \"$(cat sum.$((round % 5)))\" ] || { echo $1 > /run/broken; exit 1; }
    sleep 0.2
done
echo $round > /run/rounds.$(basename $1)
END
             rm -f /run/enough /run/broken /run/rounds.*
             for place in /mnt/a /mnt/b /mnt/inner /var/freeze; do setsid sh /run/load.sh $place > /dev/null 2>&1 < /dev/null & done",
        )?;
        let mut host = guest.talk_to_ours()?;
        let mut counts = Vec::new();
        let (mut round, started) = (0, Instant::now());
        while round < ROUNDS.start || (round < ROUNDS.end && started.elapsed() < TIME) {
            let count = host.call("guest-fsfreeze-freeze", &json!({})).with_context(|| format!("round {round}"))?;
            let thawed = thaw(&mut host)?;
            ensure!(thawed["return"] == count, "round {round}: {count} frozen, {thawed} thawed");
            if !counts.contains(&count) {
                counts.push(count);
            }
            round += 1;
        }
        guest.shell("touch /run/enough")?;
        guest.wait_until("the programs that write have ended", |guest| {
            Ok((guest.shell("ls /run/rounds.* 2> /dev/null | wc -l")?.trim() == "4").then_some(()))
        })?;
        if guest.shell_result("test -e /run/broken")?.status == 0 {
            bail!("a file was damaged on {}", guest.shell("cat /run/broken")?);
        }
        let rounds = guest.shell("cat /run/rounds.* | tr '\\n' ' '")?;
        guest.note(format!("{round} rounds of {counts:?} file systems; files written meanwhile: {rounds}"));
        Ok(())
    })
}
