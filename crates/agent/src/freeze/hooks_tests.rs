use super::super::journal::Journal;
use super::{ERROR_OUTPUT_BYTES_MAX, Hooks, Ran};
use crate::process::system_tool::tests::write_script;
use crate::startup::config::DEFAULT_FSFREEZE_HOOK_DIR;
use crate::system::root::Root;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(1);
const SCRIPT: &str = "/etc/qemu/fsfreeze-hook";
const FAILED: &str = "child process has failed to execute fsfreeze hook: ";

/// A machine with hooks that note their calls.
struct Machine {
    root: Root,
    _directory: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let machine = Self { root: Root::at(directory.path()), _directory: directory };
        fs::create_dir_all(machine.root.path(DEFAULT_FSFREEZE_HOOK_DIR)).unwrap();
        machine.set_mode(DEFAULT_FSFREEZE_HOOK_DIR, 0o755);
        machine
    }

    fn with(names: &[&str]) -> Self {
        let machine = Self::new();
        for name in names {
            machine.add(name, "");
        }
        machine
    }

    /// Adds a hook to the directory; `$1` is what it is told.
    fn add(&self, name: &str, script: &str) {
        self.add_at(&format!("{DEFAULT_FSFREEZE_HOOK_DIR}/{name}"), script);
    }

    fn add_at(&self, path: &str, script: &str) {
        let said = self.root.path("/said");
        write_script(&self.root, path, &format!("printf '%s ' \"${{0##*/}} $1,\" >> '{}'\n{script}", said.display()));
    }

    fn set_mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.root.path(path), Permissions::from_mode(mode)).unwrap();
    }

    /// Which hooks were called with what since the last question.
    fn said(&self) -> String {
        let said = fs::read_to_string(self.root.path("/said")).unwrap_or_default();
        let _ = fs::remove_file(self.root.path("/said"));
        said.trim_end_matches([' ', ',']).to_owned()
    }

    fn freeze(&self, hooks: &Hooks) -> (Ran, Result<(), String>) {
        let (ran, outcome) = hooks.freeze(&self.root, &Journal::default(), &|| false);
        (ran, outcome.map_err(|error| error.desc))
    }

    fn freeze_error(&self, hooks: &Hooks) -> String {
        self.freeze(hooks).1.unwrap_err()
    }

    fn thaw(&self, hooks: &Hooks, ran: Ran) -> Result<(), String> {
        hooks.thaw(&self.root, &Journal::default(), ran).map_err(|error| error.desc)
    }
}

fn directory() -> Hooks {
    Hooks::new(None, Some(DEFAULT_FSFREEZE_HOOK_DIR.into()), LONG)
}

fn script() -> Hooks {
    Hooks::new(Some(SCRIPT.into()), None, LONG)
}

fn in_directory(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| Path::new(DEFAULT_FSFREEZE_HOOK_DIR).join(name)).collect()
}

#[test]
fn the_script_and_then_the_directory_are_called_and_for_the_thaw_in_reverse() {
    let machine = Machine::with(&["b", "10-x", "B", "9", "two words", "a\nline"]);
    machine.add_at(SCRIPT, "");
    let hooks = Hooks::new(Some(SCRIPT.into()), Some(DEFAULT_FSFREEZE_HOOK_DIR.into()), LONG);
    let (ran, outcome) = machine.freeze(&hooks);
    assert_eq!(outcome, Ok(()));
    let order = ["fsfreeze-hook", "10-x", "9", "B", "a\nline", "b", "two words"];
    assert_eq!(machine.said(), order.map(|name| format!("{name} freeze")).join(", "));
    // Another agent, after the one that froze has died.
    let ran = Ran::of(ran.paths().to_vec());
    assert_eq!(machine.thaw(&hooks, ran), Ok(()));
    let mut order = order;
    order.reverse();
    assert_eq!(machine.said(), order.map(|name| format!("{name} thaw")).join(", "));
}

#[test]
fn without_hooks_nothing_fails() {
    let machine = Machine::new();
    let none = Hooks::new(None, None, LONG);
    for hooks in [&none, &directory()] {
        assert_eq!(machine.freeze(hooks), (Ran::default(), Ok(())));
        assert_eq!(machine.thaw(hooks, Ran::default()), Ok(()));
    }
    fs::remove_dir(machine.root.path(DEFAULT_FSFREEZE_HOOK_DIR)).unwrap();
    assert_eq!(machine.freeze(&directory()), (Ran::default(), Ok(())));
    assert_eq!(
        machine.freeze_error(&Hooks::new(None, Some("/etc/hooks".into()), LONG)),
        "the fsfreeze hooks of '/etc/hooks' are not run: No such file or directory"
    );
}

#[test]
fn a_failure_ends_the_freeze_and_only_what_was_started_is_thawed() {
    let machine = Machine::with(&["1", "3"]);
    machine.add("2", "[ $1 = thaw ] || { echo 'no space'; exit 7; }");
    let (ran, outcome) = machine.freeze(&directory());
    assert_eq!(outcome, Err(format!("{FAILED}2: no space")));
    assert_eq!(ran.paths(), in_directory(&["1", "2"]));
    assert_eq!(machine.thaw(&directory(), ran), Ok(()));
    assert_eq!(machine.said(), "1 freeze, 2 freeze, 2 thaw, 1 thaw");
}

#[test]
fn a_failing_thaw_does_not_keep_the_others_from_theirs() {
    let machine = Machine::with(&["1"]);
    machine.add("2", "[ $1 = freeze ]");
    machine.add("3", "[ $1 = freeze ] || kill -9 $$");
    let (ran, outcome) = machine.freeze(&directory());
    assert_eq!(outcome, Ok(()));
    machine.said();
    let error = machine.thaw(&directory(), ran).unwrap_err();
    assert_eq!(error, "child process has terminated abnormally (fsfreeze hook 3)");
    assert_eq!(machine.said(), "3 thaw, 2 thaw, 1 thaw");
}

#[test]
fn a_hook_that_hangs_is_killed_with_what_it_started_and_gets_its_thaw() {
    let machine = Machine::with(&["1"]);
    let child = machine.root.path("/child");
    let hang = format!("{{ echo waiting; sleep 1000 & echo $! > '{}'; sleep 1000; }}", child.display());
    machine.add("2", &format!("[ $1 = thaw ] || {hang}"));
    let hooks = Hooks::new(None, Some(DEFAULT_FSFREEZE_HOOK_DIR.into()), SHORT);
    let (ran, outcome) = machine.freeze(&hooks);
    assert_eq!(outcome, Err(format!("{FAILED}2: it did not end within 1 s and was killed: waiting")));
    let child = fs::read_to_string(child).unwrap();
    // One that nobody has waited for yet has no command line any more.
    let is_alive = || fs::read(format!("/proc/{}/cmdline", child.trim())).is_ok_and(|words| !words.is_empty());
    let deadline = Instant::now() + LONG;
    while is_alive() {
        assert!(Instant::now() < deadline, "process {child} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(machine.thaw(&directory(), ran), Ok(()));
    assert_eq!(machine.said(), "1 freeze, 2 freeze, 2 thaw, 1 thaw");
}

#[test]
fn a_thaw_that_comes_in_ends_the_freeze() {
    let machine = Machine::new();
    let begun = machine.root.path("/begun");
    machine.add("1", &format!("[ $1 = thaw ] || {{ : > '{}'; sleep 1000; }}", begun.display()));
    let (ran, outcome) = directory().freeze(&machine.root, &Journal::default(), &|| begun.exists());
    assert_eq!(
        outcome.unwrap_err().desc,
        "the freeze was given up: fsfreeze hook '/etc/qemu/fsfreeze-hook.d/1' was killed, because a thaw has come in"
    );
    assert_eq!(machine.thaw(&directory(), ran), Ok(()));
    assert_eq!(machine.said(), "1 freeze, 1 thaw");
    let (ran, outcome) = directory().freeze(&machine.root, &Journal::default(), &|| true);
    assert_eq!(ran, Ran::default());
    assert_eq!(
        outcome.unwrap_err().desc,
        "the freeze was given up for a thaw before fsfreeze hook '/etc/qemu/fsfreeze-hook.d/1' was run"
    );
    assert_eq!(machine.said(), "");
}

#[test]
fn what_is_no_hook_is_passed_over() {
    let machine = Machine::with(&["1~", "1.bak", "1.dpkg-dist", "1.rpmsave", "1.sample", ".1", "README.md", "1"]);
    machine.set_mode(&format!("{DEFAULT_FSFREEZE_HOOK_DIR}/README.md"), 0o644);
    fs::create_dir(machine.root.path(DEFAULT_FSFREEZE_HOOK_DIR).join("old")).unwrap();
    symlink("/nowhere", machine.root.path(DEFAULT_FSFREEZE_HOOK_DIR).join("removed")).unwrap();
    symlink("/etc", machine.root.path(DEFAULT_FSFREEZE_HOOK_DIR).join("etc")).unwrap();
    assert_eq!(machine.freeze(&directory()).1, Ok(()));
    assert_eq!(machine.said(), "1 freeze");
}

/// Why a mode is refused, with what mends it.
fn changeable(path: &str, mode: &str, who: &str, mending: &str) -> String {
    format!("the mode of '{path}' is {mode}: {who} may change it; 'chmod {mending} {path}' mends that")
}

#[test]
fn what_others_can_change_is_refused_before_anything_is_started() {
    let hook = "/etc/qemu/fsfreeze-hook.d/2";
    let not_run = format!("fsfreeze hook '{hook}' is not run: ");
    for (path, mode, begin, who, mending) in [
        (hook, 0o775, not_run.as_str(), "its group, 0,", "g-w"),
        (hook, 0o757, &not_run, "everybody", "o-w"),
        (
            DEFAULT_FSFREEZE_HOOK_DIR,
            0o1777,
            "the fsfreeze hooks of '/etc/qemu/fsfreeze-hook.d' are not run: ",
            "everybody",
            "o-w",
        ),
        // Whoever can rename a directory above can put another one in its place.
        ("/etc", 0o777, "the fsfreeze hooks of '/etc/qemu/fsfreeze-hook.d' are not run: ", "everybody", "o-w"),
    ] {
        let machine = Machine::with(&["1", "2"]);
        machine.set_mode(path, mode);
        let text = format!("{begin}{}", changeable(path, &format!("{mode:04o}"), who, mending));
        let group = fs::metadata(machine.root.path(path)).unwrap().gid();
        let text = text.replace("its group, 0,", &format!("its group, {group},"));
        assert_eq!(machine.freeze(&directory()), (Ran::default(), Err(text)));
        assert_eq!(machine.said(), "");
    }
}

#[test]
fn what_others_have_made_is_refused() {
    let machine = Machine::with(&["1"]);
    let hook = "/etc/qemu/fsfreeze-hook.d/1";
    // Only root can make the case.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(machine.root.path(hook), Some(1234), None).unwrap();
        let text = format!(
            "fsfreeze hook '{hook}' is not run: the owner of '{hook}' (mode 0755) is the user 1234, not root; 'chown root {hook}' mends that"
        );
        assert_eq!(machine.freeze_error(&directory()), text);
    }
}

#[test]
fn a_link_is_judged_by_where_it_leads() {
    let machine = Machine::new();
    machine.add_at("/opt/tool", "");
    machine.set_mode("/opt", 0o755);
    symlink("/opt/tool", machine.root.path(DEFAULT_FSFREEZE_HOOK_DIR).join("1")).unwrap();
    // The kernel would follow this link out of the recorded machine, but nothing is started here.
    let start = |machine: &Machine| machine.freeze(&directory()).1;
    let refused = |step: &str| {
        let reason = changeable(step, "0777", "everybody", "o-w");
        Err(format!("fsfreeze hook '/etc/qemu/fsfreeze-hook.d/1' is not run: {reason}"))
    };
    machine.set_mode("/opt/tool", 0o777);
    assert_eq!(start(&machine), refused("/opt/tool"));
    machine.set_mode("/opt/tool", 0o755);
    machine.set_mode("/opt", 0o777);
    assert_eq!(start(&machine), refused("/opt"));
    machine.set_mode("/opt", 0o755);
    fs::remove_file(machine.root.path(DEFAULT_FSFREEZE_HOOK_DIR).join("1")).unwrap();
    symlink("../../../opt/tool", machine.root.path(DEFAULT_FSFREEZE_HOOK_DIR).join("1")).unwrap();
    assert_eq!(start(&machine), Ok(()));
    assert_eq!(machine.said(), "1 freeze");
}

#[test]
fn a_hook_that_became_writable_while_frozen_is_not_run_any_more() {
    let machine = Machine::with(&["1", "2"]);
    let (ran, _) = machine.freeze(&directory());
    machine.set_mode("/etc/qemu/fsfreeze-hook.d/2", 0o777);
    machine.said();
    let hook = "/etc/qemu/fsfreeze-hook.d/2";
    let text = format!("fsfreeze hook '{hook}' is not run: {}", changeable(hook, "0777", "everybody", "o-w"));
    assert_eq!(machine.thaw(&directory(), ran), Err(text));
    assert_eq!(machine.said(), "1 thaw");
}

#[test]
fn the_script_may_belong_to_a_group_but_not_to_everybody() {
    let machine = Machine::new();
    machine.add_at(SCRIPT, "");
    machine.set_mode(SCRIPT, 0o775);
    assert_eq!(machine.freeze(&script()).1, Ok(()));
    machine.set_mode(SCRIPT, 0o777);
    assert_eq!(
        machine.freeze_error(&script()),
        format!("fsfreeze hook '{SCRIPT}' is not run: {}", changeable(SCRIPT, "0777", "everybody", "o-w"))
    );
}

#[test]
fn nothing_is_run_by_a_link_that_a_user_could_lead_elsewhere() {
    // Only root can make the case.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let machine = Machine::new();
    machine.add_at("/opt/tool", "");
    fs::create_dir_all(machine.root.path("/home/lab")).unwrap();
    symlink("/opt/tool", machine.root.path("/home/lab/current")).unwrap();
    std::os::unix::fs::chown(machine.root.path("/home/lab"), Some(1234), None).unwrap();
    machine.set_mode("/home/lab", 0o755);
    let reason = "is not run: the owner of '/home/lab' (mode 0755) is the user 1234, not root; \
                  'chown root /home/lab' mends that";
    let hook = "/etc/qemu/fsfreeze-hook.d/1";
    symlink("/home/lab/current", machine.root.path(hook)).unwrap();
    assert_eq!(machine.freeze_error(&directory()), format!("fsfreeze hook '{hook}' {reason}"));
    symlink("/home/lab/current", machine.root.path(SCRIPT)).unwrap();
    assert_eq!(machine.freeze_error(&script()), format!("fsfreeze hook '{SCRIPT}' {reason}"));
    let direct = Hooks::new(Some("/home/lab/current".into()), None, LONG);
    assert_eq!(machine.freeze_error(&direct), format!("fsfreeze hook '/home/lab/current' {reason}"));
    assert_eq!(machine.said(), "");
}

/// The original's words.
#[test]
fn the_script_s_failure_has_no_name_in_it() {
    let machine = Machine::new();
    for (text, error) in [
        ("exit 3", "child process has failed to execute fsfreeze hook: exit status 3"),
        ("echo out; echo err >&2; exit 3", "child process has failed to execute fsfreeze hook: out\nerr"),
        ("kill -9 $$", "child process has terminated abnormally"),
        ("echo so; kill -9 $$", "child process has terminated abnormally: so"),
    ] {
        machine.add_at(SCRIPT, text);
        assert_eq!(machine.freeze_error(&script()), error);
    }
    fs::remove_file(machine.root.path(SCRIPT)).unwrap();
    let (ran, outcome) = machine.freeze(&script());
    assert_eq!(ran, Ran::default());
    assert_eq!(outcome, Err(format!("{FAILED}failed to exec '{SCRIPT}': No such file or directory")));
}

#[test]
fn a_hook_has_one_argument_an_empty_input_and_the_agent_s_environment() {
    let machine = Machine::new();
    machine.add("1", "echo \"$# $1 $(cat) $0 $CARGO_MANIFEST_DIR\"; exit 1");
    let path = machine.root.path(DEFAULT_FSFREEZE_HOOK_DIR).join("1");
    let expected = format!("{FAILED}1: 1 freeze  {} {}", path.display(), env!("CARGO_MANIFEST_DIR"));
    assert_eq!(machine.freeze_error(&directory()), expected);
}

#[test]
fn a_script_without_a_first_line_is_run_by_the_shell() {
    let machine = Machine::with(&["1"]);
    let hook = machine.root.path(DEFAULT_FSFREEZE_HOOK_DIR).join("1");
    let text = fs::read_to_string(&hook).unwrap();
    let mut writer = std::process::Command::new("/bin/sh");
    writer.args(["-c", "printf '%s' \"$1\" > \"$0\""]).arg(&hook).arg(text.trim_start_matches("#!/bin/sh"));
    assert!(writer.status().unwrap().success());
    assert_eq!(machine.freeze(&directory()).1, Ok(()));
    assert_eq!(machine.said(), "1 freeze");
}

#[test]
fn who_holds_the_output_after_the_end_is_not_waited_for() {
    let machine = Machine::new();
    // The holder ends when the hook is removed, which is after the end of the test.
    machine.add("1", "(while [ -e \"$0\" ]; do sleep 0.1; done) & echo done");
    assert_eq!(machine.freeze(&directory()).1, Ok(()));
}

#[test]
fn of_a_long_output_the_error_has_the_beginning() {
    let machine = Machine::new();
    machine.add("1", "head -c 1000000 /dev/zero | tr '\\0' x; exit 1");
    let error = machine.freeze_error(&directory());
    assert_eq!(error, format!("{FAILED}1: {}", "x".repeat(ERROR_OUTPUT_BYTES_MAX)));
    machine.add("1", "yes é | head -c 1000000; exit 1");
    let error = machine.freeze_error(&directory());
    assert!(error.len() <= FAILED.len() + 3 + ERROR_OUTPUT_BYTES_MAX);
}
