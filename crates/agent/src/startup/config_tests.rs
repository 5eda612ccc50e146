use super::*;
use crate::transport::vsock_peers::VsockPeers;

fn of_text(text: &str) -> Result<Settings, String> {
    Settings::of_bytes("f", text.as_bytes()).map_err(|failure| failure.text)
}

fn warnings(text: &str) -> Vec<String> {
    of_text(text).unwrap().warnings
}

fn environment() -> Environment {
    Environment {
        config_path: None,
        listen_pid: None,
        listen_fds: None,
        own_pid: 1,
        directory: "/start".into(),
        activated_method: || Ok(None),
    }
}

fn resolved(text: &str) -> Result<Configuration, String> {
    of_text(text)?.resolved(&environment(), None).map_err(|failure| failure.text)
}

#[test]
fn without_anything_the_defaults_count() {
    let configuration = resolved("").unwrap();
    assert_eq!(
        configuration,
        Configuration {
            method: Method::VirtioSerial,
            path: Some("/dev/virtio-ports/org.qemu.guest_agent.0".to_owned()),
            logfile: None,
            pidfile: "/var/run/qemu-ga.pid".into(),
            fsfreeze_hook: None,
            fsfreeze_hook_dir: Some("/etc/qemu/fsfreeze-hook.d".into()),
            fsfreeze_hook_timeout: Duration::from_secs(60),
            fsfreeze_timeout: Some(Duration::from_secs(3600)),
            vsock_peers: VsockPeers::default(),
            statedir: "/var/run".into(),
            verbose: false,
            daemon: false,
            retry_path: false,
            policy: Policy::default(),
            socket_activation: None,
            warnings: Vec::new(),
        }
    );
}

#[test]
fn relative_paths_are_meant_from_where_the_agent_was_started() {
    let configuration =
        resolved("[general]\nmethod=unix-listen\npath=s\nlogfile=l\npidfile=../p\nstatedir=/abs\nfsfreeze-hook=h\n")
            .unwrap();
    assert_eq!(configuration.path.as_deref(), Some("/start/s"));
    assert_eq!(configuration.logfile.as_deref(), Some(Path::new("/start/l")));
    assert_eq!(configuration.pidfile, Path::new("/start/../p"));
    assert_eq!(configuration.statedir, Path::new("/abs"));
    assert_eq!(configuration.fsfreeze_hook.as_deref(), Some(Path::new("/start/h")));
    let address = resolved("[general]\nmethod=vsock-listen\npath=1:5\n").unwrap().path;
    assert_eq!(address.as_deref(), Some("1:5"));
    let unnamed = resolved("[general]\nmethod=unix-listen\npath=\nlogfile=\n").unwrap();
    assert_eq!((unnamed.path.as_deref(), unnamed.logfile.as_deref()), (Some(""), Some(Path::new(""))));
}

#[test]
fn the_directory_of_hooks_is_not_run_beside_a_script_unless_that_is_said() {
    for (lines, directory) in [
        ("", Some("/etc/qemu/fsfreeze-hook.d")),
        ("fsfreeze-hook=/h\n", None),
        ("fsfreeze-hook-dir=d\n", Some("/start/d")),
        ("fsfreeze-hook=/h\nfsfreeze-hook-dir=/d\n", Some("/d")),
        ("fsfreeze-hook-dir=\n", None),
    ] {
        let configuration = resolved(&format!("[general]\n{lines}")).unwrap();
        assert_eq!(configuration.fsfreeze_hook_dir.as_deref(), directory.map(Path::new), "{lines:?}");
        assert_eq!(configuration.warnings, [""; 0], "{lines:?}");
    }
    let both = "[general]\nfsfreeze-hook=/h\nfsfreeze-hook-dir=/fsfreeze-hook.d\n";
    let warning = "both '/h' and the directory '/fsfreeze-hook.d' are run around a freeze: ";
    assert!(resolved(both).unwrap().warnings[0].starts_with(warning));
}

#[test]
fn the_limits_of_a_freeze_are_seconds() {
    let limits = |hook: &str, freeze: &str| {
        resolved(&format!("[general]\nfsfreeze-hook-timeout={hook}\nfsfreeze-timeout={freeze}\n"))
            .map(|configuration| (configuration.fsfreeze_hook_timeout, configuration.fsfreeze_timeout))
    };
    let seconds = Duration::from_secs;
    assert_eq!(limits("1", "0"), Ok((seconds(1), None)));
    assert_eq!(limits("86400", "31536000"), Ok((seconds(86_400), Some(seconds(31_536_000)))));
    for (hook, freeze, text) in [
        ("0", "1", "f:2: the value '0' of fsfreeze-hook-timeout is no number of seconds from 1 to 86400"),
        ("86401", "1", "f:2: the value '86401' of fsfreeze-hook-timeout is no number of seconds from 1 to 86400"),
        ("1", "-1", "f:3: the value '-1' of fsfreeze-timeout is no number of seconds from 0 to 31536000"),
        ("1", "", "f:3: the value '' of fsfreeze-timeout is no number of seconds from 0 to 31536000"),
        ("1", "60s", "f:3: the value '60s' of fsfreeze-timeout is no number of seconds from 0 to 31536000"),
    ] {
        assert_eq!(limits(hook, freeze), Err(text.to_owned()));
    }
}

#[test]
fn each_method_has_its_place_or_needs_one() {
    for (method, path) in [
        ("virtio-serial", Ok("/dev/virtio-ports/org.qemu.guest_agent.0")),
        ("isa-serial", Ok("/dev/ttyS0")),
        ("unix-listen", Err("the method 'unix-listen' needs a path: give one with '--path'")),
        ("vsock-listen", Err("the method 'vsock-listen' needs a path: give one with '--path'")),
    ] {
        let found = resolved(&format!("[general]\nmethod={method}\n")).map(|configuration| configuration.path.unwrap());
        assert_eq!(found.as_deref().map_err(String::as_str), path);
    }
}

#[test]
fn an_unknown_method_is_named_with_its_place_and_the_right_ones() {
    let methods = "there are virtio-serial, isa-serial, unix-listen, vsock-listen";
    for (method, start) in [
        ("unix-lisen", "f:2: unknown method 'unix-lisen': did you mean 'unix-listen'?: "),
        ("isa-serial ", "f:2: unknown method 'isa-serial ' (there is a blank around it): "),
        ("nope", "f:2: unknown method 'nope': "),
        ("", "f:2: unknown method '': "),
    ] {
        for path in ["", "path=/x\n"] {
            let text = resolved(&format!("[general]\nmethod={method}\n{path}")).unwrap_err();
            assert_eq!(text, format!("{start}{methods}"));
        }
    }
}

#[test]
fn what_the_file_says_in_vain_is_warned_about() {
    for (text, warning) in [
        ("[general]\ndaemonize=0\n", "f:2: unknown key 'daemonize' is ignored: did you mean 'daemon'?"),
        ("[general]\nblock_rpcs=x\n", "f:2: unknown key 'block_rpcs' is ignored: did you mean 'block-rpcs'?"),
        ("[general]\ncolour=x\n", "f:2: unknown key 'colour' is ignored"),
        ("[general]\npath[de]=x\n", "f:2: unknown key 'path[de]' is ignored: did you mean 'path'?"),
        ("[agent]\npath=x\n", "f:1: unknown group '[agent]' is ignored: the keys belong under '[general]'"),
        ("[general]\npath=x\npath=y\n", "f:2: the key 'path' is given again below: this one is ignored"),
        ("[general]\nblacklist=guest-ping\n", "f:2: the key 'blacklist' is now called 'block-rpcs'"),
    ] {
        assert_eq!(warnings(text), [warning], "{text:?}");
    }
    assert_eq!(warnings("[general]\nverbose=1\n"), [""; 0]);
}

#[test]
fn the_old_name_of_the_block_list_still_blocks() {
    let configuration = resolved("[general]\nblock-rpcs=guest-exec\nblacklist=guest-ping\n").unwrap();
    for (name, reason) in
        [("guest-ping", "blocked by block-rpcs"), ("guest-exec", "blocked by block-rpcs"), ("guest-info", "allowed")]
    {
        assert_eq!(configuration.policy.why_not(name), reason);
    }
}

#[test]
fn a_wrong_value_is_an_error_with_its_line() {
    for (text, message) in [
        ("[general]\nverbose=yes\n", "f:2: the key 'verbose' has the value 'yes', which is none of true, false, 1, 0"),
        ("[general]\ndaemon=\n", "f:2: the key 'daemon' has the value '', which is none of true, false, 1, 0"),
        ("[general]\n\nblock-rpcs=guest-pong\n", "f:3: unknown command 'guest-pong': did you mean 'guest-ping'?"),
        ("daemon=1\n", "f:1: the key 'daemon' stands before any group: put '[general]' above it"),
    ] {
        assert_eq!(resolved(text).unwrap_err(), message, "{text:?}");
    }
    // The original does not look at a value that a later one replaces, nor at unknown keys.
    assert!(resolved("[general]\nverbose=yes\nverbose=1\nother=\\q\n").is_ok());
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    assert_eq!(Settings::of_file(&missing, false).unwrap(), Settings::default());
    for (path, must_exist, reason) in [
        (missing.as_path(), true, "No such file or directory"),
        (directory.path(), false, "not a regular file"),
        (Path::new("/dev/zero"), false, "not a regular file"),
        (Path::new(""), true, "No such file or directory"),
    ] {
        let text = Settings::of_file(path, must_exist).unwrap_err().text;
        assert_eq!(text, format!("cannot read the configuration file '{}': {reason}", path.display()));
    }
    let large = directory.path().join("large");
    std::fs::write(&large, "#".repeat(1 << 21)).unwrap();
    assert!(Settings::of_file(&large, true).unwrap_err().text.ends_with(": it is larger than 1048576 bytes"));
}
