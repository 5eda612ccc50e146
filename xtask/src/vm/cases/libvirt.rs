//! libvirt's own client drives our agent: every command of virsh that asks a guest agent, and what libvirt does with the
//! agent by itself (the snapshot).
//!
//! These cases share a domain of their own and run in this order; the last one switches it off.

use super::Case;
use crate::vm::guest::OUR_UNIT;
use crate::vm::libvirt::{DATA, Domain};
use crate::vm::progress;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

pub const CASES: &[Case<Domain>] = &[
    Case { name: "libvirt_describes_the_guest", run: describe },
    Case { name: "libvirt_is_told_the_same_by_both_agents", run: compare },
    Case { name: "libvirt_freezes_and_thaws", run: freeze },
    Case { name: "libvirt_thaws_by_way_of_the_agent_that_follows_a_killed_one", run: killed_while_frozen },
    Case { name: "libvirt_trims", run: trim },
    Case { name: "libvirt_takes_a_snapshot_that_fsck_finds_clean", run: snapshot },
    Case { name: "libvirt_reads_and_sets_the_time", run: time },
    Case { name: "libvirt_switches_processors", run: processors },
    Case { name: "libvirt_sets_a_password", run: password },
    Case { name: "libvirt_adds_and_removes_keys", run: keys },
    Case { name: "command_line_reaches_a_domain_through_libvirt", run: super::command_line::through_libvirt },
    Case { name: "libvirt_suspends_and_wakes_the_guest", run: suspend },
    Case { name: "libvirt_reboots_the_guest", run: reboot },
    Case { name: "libvirt_shuts_the_guest_down", run: shut_down },
];

const NO_SUCH_COMMAND: &str = r#"{"execute":"guest-no-such"}"#;

/// The fields of a table's lines.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

/// The address comes with the guest's DHCP client; the console logs root in.
fn wait_until_settled(domain: &mut Domain) -> Result<()> {
    domain.wait_until("the guest has its address and its user", |domain| {
        let addresses = domain.virsh("domifaddr", &["--source", "agent"])?;
        let has_address = rows(&addresses).iter().any(|row| matches!(row[..], [.., "ipv4", "10.0.2.15/24"]));
        let users = domain.virsh("guestinfo", &["--user"])?;
        Ok((has_address && users.contains("user.0.name")).then_some(()))
    })
}

fn describe(domain: &mut Domain) -> Result<()> {
    wait_until_settled(domain)?;
    let file_systems = domain.virsh("domfsinfo", &[])?;
    for row in [["/", "vda", "ext4", "vda"], [DATA, "vdb", "ext4", "vdb"]] {
        ensure!(rows(&file_systems).iter().any(|line| line[..] == row), "{row:?} is not in\n{file_systems}");
    }
    let all = domain.virsh("guestinfo", &[])?;
    for line in [
        "os.id : debian",
        "timezone.name : CET",
        "hostname : labvm",
        "fs.count : 2",
        "disk.count : 2",
        "disk.1.serial : data",
        "disk.1.alias : vdb",
        "user.count : 1",
        "user.0.name : root",
        "if.0.name : lo",
    ] {
        let is_there = rows(&all).iter().any(|row| row.join(" ") == line);
        // Daylight saving time.
        let is_summer = line.ends_with("CET") && all.contains("CEST");
        ensure!(is_there || is_summer, "no {line:?} in\n{all}");
    }
    // libvirt asks for it since 11.2.
    let asks_for_load = domain.virsh_has_option("guestinfo", "--load")?;
    ensure!(!asks_for_load || all.contains("load.15m"), "no load in\n{all}");
    let name = domain.virsh("domhostname", &["--source", "agent"])?;
    ensure!(name == "labvm", "the guest's name is {name:?}");
    let info = domain.virsh("qemu-agent-command", &[r#"{"execute":"guest-info"}"#])?;
    ensure!(info.contains("\"guest-fsfreeze-freeze-list\""), "{info}");
    Ok(())
}

/// What virsh prints for each of these must not depend on the agent; every error's text among it.
const ASKED_OF_BOTH: &[(&str, &[&str])] = &[
    ("guestinfo", &[]),
    ("guestinfo", &["--user", "--disk"]),
    ("domfsinfo", &[]),
    ("domifaddr", &["--source", "agent"]),
    ("domhostname", &["--source", "agent"]),
    ("guestvcpus", &[]),
    ("guestvcpus", &["--cpulist", "0", "--disable"]),
    ("guestvcpus", &["--cpulist", "3", "--enable"]),
    ("get-user-sshkeys", &["lab"]),
    ("set-user-password", &["no-such-user", "secret"]),
    ("domfstrim", &[]),
    ("domfsfreeze", &["--mountpoint", "/no/such"]),
    ("domfsthaw", &[]),
    ("domfsfreeze", &["--mountpoint", DATA]),
    ("domfsthaw", &[]),
    ("domfsthaw", &[]),
    ("qemu-agent-command", &[NO_SUCH_COMMAND]),
    ("qemu-agent-command", &[r#"{"execute":"guest-ping","arguments":{"more":1}}"#]),
    ("qemu-agent-command", &[r#"{"execute":"guest-file-open","arguments":{"path":"/no/such"}}"#]),
];

fn compare(domain: &mut Domain) -> Result<()> {
    wait_until_settled(domain)?;
    let before = ask_all(domain)?;
    let original = domain.with_original(ask_all)?;
    // The guest lives: another address or login may have come meanwhile.
    let after = ask_all(domain)?;
    for (number, (command, arguments)) in ASKED_OF_BOTH.iter().enumerate() {
        let (original, ours) = (&original[number], &after[number]);
        ensure!(
            original == ours || *original == before[number],
            "virsh {command} {arguments:?}\noriginal:\n{original}\nours:\n{ours}"
        );
    }
    domain.note(format!("{} commands, the same output", ASKED_OF_BOTH.len()));
    Ok(())
}

fn ask_all(domain: &mut Domain) -> Result<Vec<String>> {
    let ask = |(command, arguments): &(&str, &[&str])| {
        let said = domain.virsh_said(command, arguments)?;
        // What changes from one moment to the next.
        let lasting = said.lines().filter(|line| !line.starts_with("load.") && !line.contains("used-bytes"));
        Ok(lasting.collect::<Vec<_>>().join("\n"))
    };
    ASKED_OF_BOTH.iter().map(ask).collect()
}

fn expect(said: &str, expected: &str) -> Result<()> {
    ensure!(said.contains(expected), "virsh says {said:?}, not {expected:?}");
    Ok(())
}

/// Whether the second disk is frozen: the kernel refuses to freeze it once more.
fn is_frozen(domain: &mut Domain) -> Result<bool> {
    let script = format!("LC_ALL=C fsfreeze -f {DATA} && fsfreeze -u {DATA}");
    Ok(domain.shell_result(&script)?.stderr.contains("resource busy"))
}

fn freeze(domain: &mut Domain) -> Result<()> {
    expect(&domain.virsh("domfsfreeze", &["--mountpoint", DATA])?, "Froze 1 filesystem(s)")?;
    ensure!(is_frozen(domain)?, "{DATA} is not frozen");
    expect(&domain.virsh("domfsthaw", &[])?, "Thawed 1 filesystem(s)")?;
    ensure!(!is_frozen(domain)?, "{DATA} is still frozen");

    let both = ["--mountpoint", "/", "--mountpoint", DATA];
    expect(&domain.virsh("domfsfreeze", &both)?, "Froze 2 filesystem(s)")?;
    expect(&domain.virsh("domfsthaw", &[])?, "Thawed 2 filesystem(s)")?;

    expect(&domain.virsh("domfsfreeze", &[])?, "Froze 2 filesystem(s)")?;
    ensure!(is_frozen(domain)?, "{DATA} is not frozen");
    let refused = "Command guest-fsfreeze-freeze has been disabled: the command is not allowed";
    expect(&domain.virsh_refused("domfsfreeze", &[])?, refused)?;
    let refused = "Command guest-get-osinfo has been disabled: the command is not allowed";
    expect(&domain.virsh_refused("guestinfo", &["--os"])?, refused)?;
    expect(&domain.virsh("domfsthaw", &[])?, "Thawed 2 filesystem(s)")?;
    ensure!(!is_frozen(domain)?, "{DATA} is still frozen");

    expect(&domain.virsh("domfsthaw", &[])?, "Thawed 0 filesystem(s)")?;
    expect(&domain.virsh("domfsfreeze", &["--mountpoint", "/no/such"])?, "Froze 0 filesystem(s)")?;
    domain.virsh("guestinfo", &["--os"])?;
    Ok(())
}

fn killed_while_frozen(domain: &mut Domain) -> Result<()> {
    let connections =
        |domain: &Domain| domain.events("agent-lifecycle").iter().filter(|event| event.contains("'connected'")).count();
    expect(&domain.virsh("domfsfreeze", &["--mountpoint", DATA])?, "Froze 1 filesystem(s)")?;
    let before = connections(domain);
    domain.shell(&format!("systemctl kill --kill-whom main --signal KILL {OUR_UNIT}"))?;
    domain.wait_until("libvirt sees the next agent", |domain| Ok((connections(domain) > before).then_some(())))?;
    domain.wait_for_agent()?;
    ensure!(is_frozen(domain)?, "{DATA} has been thawed, and libvirt does not know");
    let refused = "Command guest-get-osinfo has been disabled: the command is not allowed";
    expect(&domain.virsh_refused("guestinfo", &["--os"])?, refused)?;
    expect(&domain.virsh("domfsthaw", &[])?, "Thawed 1 filesystem(s)")?;
    ensure!(!is_frozen(domain)?, "{DATA} is still frozen");
    domain.virsh("guestinfo", &["--os"]).map(drop)
}

fn trim(domain: &mut Domain) -> Result<()> {
    const MEBIBYTES: u64 = 64;
    // stat(2) counts in blocks of 512 bytes.
    const BLOCKS: u64 = (1 << 20) / 512;
    let room = |domain: &Domain| -> Result<u64> { Ok(domain.path("data.img").metadata()?.blocks() / BLOCKS) };
    domain.shell(&format!("dd if=/dev/urandom of={DATA}/large bs=1M count={MEBIBYTES} conv=fsync 2> /dev/null"))?;
    domain.shell(&format!("rm {DATA}/large; sync {DATA}"))?;
    let before = room(domain)?;
    domain.virsh("domfstrim", &["--minimum", "4096"])?;
    let after = room(domain)?;
    ensure!(after + MEBIBYTES / 2 < before, "the disk takes {before} MiB of the host before, {after} MiB after");
    domain.note(format!("the disk's room on the host: {before} MiB, then {after} MiB"));
    Ok(())
}

fn snapshot(domain: &mut Domain) -> Result<()> {
    let counter = format!("{DATA}/counter");
    domain.shell(&format!(
        "systemd-run --quiet --collect --unit writer sh -ec 'number=0; while :; do number=$((number + 1))
             echo $number > {DATA}/new; sync {DATA}/new; mv {DATA}/new {counter}; sync {DATA}; done'"
    ))?;
    let count = |domain: &mut Domain| -> Result<u64> { Ok(domain.shell(&format!("cat {counter}"))?.parse()?) };
    domain.wait_until("the writer writes", |domain| count(domain).map(Some))?;
    let base = domain.path("data.img");
    // The proof would be none if a disk in use looked the same.
    let header = progress::output(Command::new("dumpe2fs").arg("-h").arg(&base))?;
    ensure!(header.contains("needs_recovery"), "the disk looks unused before the snapshot:\n{header}");

    // One that libvirt cannot take leaves the guest as it was.
    let nowhere = ["--diskspec", "vdb,file=/no/such/overlay", "--diskspec", "vda,snapshot=no"];
    let quiesced = ["never", "--disk-only", "--quiesce", "--no-metadata"];
    domain.virsh_refused("snapshot-create-as", &[&quiesced[..], &nowhere[..]].concat())?;
    ensure!(!is_frozen(domain)?, "{DATA} is still frozen after a failed snapshot");
    let before = count(domain)?;

    let place = |disk: &str| format!("{disk},file={}", domain.path(&format!("{disk}.overlay")).display());
    let (first, second) = (place("vda"), place("vdb"));
    domain.virsh(
        "snapshot-create-as",
        &["after", "--disk-only", "--quiesce", "--no-metadata", "--diskspec", &first, "--diskspec", &second],
    )?;
    let after = count(domain)?;
    domain.wait_until("the writer goes on", |domain| Ok((count(domain)? > after).then_some(())))?;
    domain.shell("systemctl stop writer")?;

    progress::output(Command::new("e2fsck").arg("-fn").arg(&base)).context("the frozen disk")?;
    let header = progress::output(Command::new("dumpe2fs").arg("-h").arg(&base))?;
    ensure!(!header.contains("needs_recovery"), "the frozen disk has a journal to play:\n{header}");
    let kept = progress::output(Command::new("debugfs").args(["-R", "cat /counter"]).arg(&base))?;
    let kept: u64 = kept.trim().parse().with_context(|| format!("the counter in the snapshot: {kept:?}"))?;
    ensure!((before..=after).contains(&kept), "the snapshot has {kept}, the guest had {before} before, {after} after");
    domain.note(format!("the writer had written {before} times before, {kept} in the snapshot, {after} after"));
    Ok(())
}

/// Seconds between two clocks that count as the same: what an hour of standing still would not explain is no clock's
/// delay.
const TOLERANCE_SECONDS: u64 = 3600;

/// Checks what the guest's clock and libvirt say of it.
fn expect_time(domain: &mut Domain, expected: u64) -> Result<()> {
    let told = domain.virsh("domtime", &[])?;
    let told: u64 = told.trim_start_matches("Time:").trim().parse().with_context(|| told.clone())?;
    let real: u64 = domain.shell("date +%s")?.parse()?;
    for time in [told, real] {
        ensure!(time.abs_diff(expected) < TOLERANCE_SECONDS, "{time} is not near {expected}");
    }
    Ok(())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn time(domain: &mut Domain) -> Result<()> {
    const EARLIER: u64 = 1_000_000_000;
    expect_time(domain, now())?;
    domain.virsh("domtime", &["--time", &EARLIER.to_string()])?;
    expect_time(domain, EARLIER)?;
    domain.virsh("domtime", &["--now"])?;
    expect_time(domain, now())?;
    // Libvirt asks the agent to set the clock from the machine's, which the last command has set.
    domain.shell("date --set 2001-01-01 > /dev/null")?;
    domain.virsh("domtime", &["--sync"])?;
    expect_time(domain, now())?;
    let error = domain.virsh_refused("domtime", &["--time", "99999999999999"])?;
    expect(&error, "too big")
}

fn processors(domain: &mut Domain) -> Result<()> {
    let expect_online = |domain: &mut Domain, online: &str, count: &str| -> Result<()> {
        let table = domain.virsh("guestvcpus", &[])?;
        ensure!(rows(&table).contains(&vec!["online", ":", online]), "not {online} online:\n{table}");
        let seen = domain.shell("nproc")?;
        ensure!(seen == count, "the guest counts {seen} processors, not {count}");
        Ok(())
    };
    expect_online(domain, "0-1", "2")?;
    domain.virsh("setvcpus", &["1", "--guest"])?;
    expect_online(domain, "0", "1")?;
    domain.virsh("setvcpus", &["2", "--guest"])?;
    expect_online(domain, "0-1", "2")?;
    domain.virsh("guestvcpus", &["--cpulist", "1", "--disable"])?;
    expect_online(domain, "0", "1")?;
    domain.virsh("guestvcpus", &["--cpulist", "1", "--enable"])?;
    expect_online(domain, "0-1", "2")
}

fn password(domain: &mut Domain) -> Result<()> {
    let logs_in = |domain: &mut Domain, password: &str| -> Result<bool> {
        let script = format!(
            "printf '%s\\n' '{password}' | setpriv --reuid=65534 --regid=65534 --clear-groups su lab -c 'id -un'"
        );
        Ok(domain.shell_result(&script)?.stdout.trim() == "lab")
    };
    ensure!(!logs_in(domain, "a new secret")?, "the password was there before");
    domain.virsh("set-user-password", &["lab", "a new secret"])?;
    ensure!(logs_in(domain, "a new secret")?, "the new password does not let the user in");
    let encrypted = domain.shell("getent shadow lab | cut -d: -f2")?;
    domain.virsh("set-user-password", &["lab", "another"])?;
    ensure!(logs_in(domain, "another")?, "the second password does not let the user in");
    domain.virsh("set-user-password", &["lab", &encrypted, "--encrypted"])?;
    ensure!(logs_in(domain, "a new secret")?, "the encrypted password does not let the user in");
    expect(&domain.virsh_refused("set-user-password", &["no-such-user", "secret"])?, "no-such-user")
}

fn keys(domain: &mut Domain) -> Result<()> {
    const KEYS: [&str; 2] = ["ssh-ed25519 AAAAfirst first of ours", "ssh-ed25519 AAAAsecond second of ours"];
    let files: Vec<String> =
        ["first.pub", "second.pub"].iter().map(|name| domain.path(name).display().to_string()).collect();
    for (file, key) in files.iter().zip(KEYS) {
        fs::write(file, format!("{key}\n"))?;
    }
    let expect_keys = |domain: &mut Domain, expected: &[&str]| -> Result<()> {
        // The agent answers with the last key first, and virsh puts nothing between two keys.
        let told = domain.virsh("get-user-sshkeys", &["lab"])?;
        let last_first: String = expected.iter().rev().copied().collect();
        ensure!(told == last_first, "libvirt is told {told:?} instead of {expected:?}");
        let real = domain.shell("grep . ~lab/.ssh/authorized_keys || true")?;
        ensure!(real.lines().collect::<Vec<_>>() == expected, "{real:?} in the file instead of {expected:?}");
        Ok(())
    };
    domain.virsh("set-user-sshkeys", &["lab", "--file", &files[0]])?;
    expect_keys(domain, &KEYS[..1])?;
    domain.virsh("set-user-sshkeys", &["lab", "--file", &files[1]])?;
    expect_keys(domain, &KEYS)?;
    domain.virsh("set-user-sshkeys", &["lab", "--file", &files[0], "--remove"])?;
    expect_keys(domain, &KEYS[1..])?;
    domain.virsh("set-user-sshkeys", &["lab", "--reset", "--file", &files[0]])?;
    expect_keys(domain, &KEYS[..1])?;
    domain.virsh("set-user-sshkeys", &["lab", "--reset"])?;
    expect_keys(domain, &[])?;
    let rights = domain.shell("stat --format '%U %a' ~lab/.ssh ~lab/.ssh/authorized_keys")?;
    ensure!(rights == "lab 700\nlab 600", "owner and mode: {rights:?}");
    expect(&domain.virsh_refused("get-user-sshkeys", &["no-such-user"])?, "no-such-user")
}

fn suspend(domain: &mut Domain) -> Result<()> {
    domain.virsh("dompmsuspend", &["mem"])?;
    domain
        .wait_until("the guest sleeps", |domain| Ok((domain.virsh("domstate", &[])? == "pmsuspended").then_some(())))?;
    domain.virsh("dompmwakeup", &[])?;
    domain
        .wait_until("the guest is awake", |domain| Ok((domain.virsh("domstate", &[])? == "running").then_some(())))?;
    domain.wait_for_agent()?;
    domain.virsh("domtime", &["--sync"])?;
    expect_time(domain, now())?;
    domain.virsh("domfsinfo", &[])?;
    // The machine has no other kind of sleep.
    domain.virsh_refused("dompmsuspend", &["disk"])?;
    domain.virsh("guestinfo", &["--os"]).map(drop)
}

fn reboot(domain: &mut Domain) -> Result<()> {
    domain.reboot(|domain| domain.virsh("reboot", &["--mode", "agent"]).map(drop))?;
    domain.virsh("domfsinfo", &[]).map(drop)
}

fn shut_down(domain: &mut Domain) -> Result<()> {
    domain.virsh("shutdown", &["--mode", "agent"])?;
    domain.wait_until("the guest is off", |domain| {
        Ok((domain.virsh("domstate", &["--reason"])? == "shut off (shutdown)").then_some(()))
    })?;
    let events = domain.events("lifecycle").join("\n");
    ensure!(events.contains("Shutdown Finished after guest request"), "it was not the guest's own doing:\n{events}");
    expect(&domain.virsh_refused("domfsinfo", &[])?, "not running")
}
