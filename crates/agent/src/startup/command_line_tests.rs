use super::*;

const COMMANDS: &[&str] = &["guest-sync", "guest-ping"];

/// With a configuration file of this content; what the file is called varies, so it is called FILE.
fn action_with_file(content: &str, arguments: &str, change: impl FnOnce(&mut Environment)) -> Result<Action, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    let path = file.path().to_str().unwrap();
    let mut environment = Environment {
        config_path: Some(path.into()),
        listen_pid: None,
        listen_fds: None,
        own_pid: 77,
        directory: "/start".into(),
        activated_method: || Ok(None),
    };
    change(&mut environment);
    let arguments = arguments.split('|').filter(|argument| !argument.is_empty()).map(|argument| match argument {
        "EMPTY" => OsString::new(),
        argument => OsString::from(argument.replace("FILE", path)),
    });
    Action::from_arguments(arguments, &environment, COMMANDS).map_err(|failure| failure.text.replace(path, "FILE"))
}

fn action(arguments: &str) -> Result<Action, String> {
    action_with_file("", arguments, |_| ())
}

fn run(arguments: &str) -> Configuration {
    match action(arguments) {
        Ok(Action::Run(configuration)) => *configuration,
        other => panic!("{arguments}: {other:?}"),
    }
}

fn dumped(content: &str, arguments: &str) -> String {
    match action_with_file(content, &format!("-D|{arguments}"), |_| ()) {
        Ok(Action::Print(text)) => text,
        other => panic!("{arguments}: {other:?}"),
    }
}

/// Arguments are separated by `|`. The expected texts are what the original printed for the same input.
#[test]
fn the_configuration_is_dumped_as_by_the_original() {
    let base = "[general]\ndaemon=false\nmethod=virtio-serial\npath=/dev/virtio-ports/org.qemu.guest_agent.0\npidfile=/var/run/qemu-ga.pid\nstatedir=/var/run\nverbose=false\nretry-path=false\nblock-rpcs=\nallow-rpcs=\n";
    let path = |value: &str| base.replace("path=/dev/virtio-ports/org.qemu.guest_agent.0", &format!("path={value}"));
    let with = |line: &str, after: &str| base.replace(after, &format!("{after}{line}\n"));
    let hook = |value: &str| with(&format!("fsfreeze-hook={value}"), "pidfile=/var/run/qemu-ga.pid\n");
    let on = |keys: &[&str]| {
        keys.iter().fold(base.to_owned(), |text, key| text.replace(&format!("{key}=false"), &format!("{key}=true")))
    };
    for (arguments, text) in [
        ("", base.to_owned()),
        ("-b|EMPTY|-a|EMPTY", base.to_owned()),
        ("-m|isa-serial", path("/dev/ttyS0").replace("virtio-serial", "isa-serial")),
        ("-m|nope|-p|x", path("x").replace("virtio-serial", "nope")),
        ("-d|-v", on(&["daemon", "verbose"])),
        ("-dvr", on(&["daemon", "verbose", "retry-path"])),
        ("foo|-v", on(&["verbose"])),
        ("-|--|-v", base.to_owned()),
        ("--verb|--da", on(&["daemon", "verbose"])),
        ("-F", hook("/etc/qemu/fsfreeze-hook")),
        ("-F|/x", hook("/etc/qemu/fsfreeze-hook")),
        ("-F/x", hook("/x")),
        ("-F=x", hook("=x")),
        ("--fs=x", hook("x")),
        ("--fsfreeze=x", hook("x")),
        ("-F/z|-F", hook("/etc/qemu/fsfreeze-hook")),
        ("-s|q", base.to_owned()),
        ("-p=x", path("=x")),
        ("-vpx", path("x").replace("verbose=false", "verbose=true")),
        ("-p|--", path("--")),
        ("-p|EMPTY", path("")),
        ("-p| x y ", path("\\sx y ")),
        ("-p|a\nb\t\\c;d\u{1}", path("a\\nb\t\\\\c;d\u{1}")),
        ("-p|a|--path=b", path("b")),
        ("--pidfile=", base.replace("/var/run/qemu-ga.pid", "")),
        ("-l|-v|-r", with("logfile=-v", "guest_agent.0\n").replace("retry-path=false", "retry-path=true")),
        ("-b|,", base.replace("block-rpcs=", "block-rpcs=,")),
        (
            "-b|help,foo|-a|x,y|-a|z",
            base.replace("block-rpcs=", "block-rpcs=foo,help").replace("allow-rpcs=", "allow-rpcs=y,x,z"),
        ),
    ] {
        assert_eq!(dumped("", arguments), text, "{arguments:?}");
    }
    let file = "[general]\ndaemon=true\nmethod=unix-listen\npath=/a b\\s\\tx\nlogfile=l\tog\nfsfreeze-hook=/h\nverbose=1\nretry-path=0\nblock-rpcs=a,b\nallow-rpcs=c\n";
    let expected = "[general]\ndaemon=true\nmethod=unix-listen\npath=/a b \tx\nlogfile=l\tog\npidfile=/p\nfsfreeze-hook=/h\nstatedir=/s\nverbose=true\nretry-path=true\nblock-rpcs=b,a,d,c\nallow-rpcs=c\n";
    assert_eq!(dumped(file, "-b|c,d|-f|/p|-t|/s|-r"), expected);
}

/// The original has none of these, so a dump names only what was given.
#[test]
fn what_the_original_lacks_is_dumped_if_it_was_given() {
    let arguments = "--fsfreeze-hook-dir|/d d|--fsfreeze-hook-timeout=5|--fsfreeze-hook-t|6|--fsfreeze-t=0|--fsfreeze-hook=/h|--vsock-peers|2,1";
    let lines = "\nfsfreeze-hook=/h\nfsfreeze-hook-dir=/d d\nfsfreeze-hook-timeout=6\nfsfreeze-timeout=0\nvsock-peers=2,1\nstatedir=";
    assert!(dumped("", arguments).contains(lines), "{}", dumped("", arguments));
    assert!(dumped(&dumped("", arguments), "").contains(lines));
}

#[test]
fn a_dump_is_read_back_as_the_same_configuration() {
    for arguments in ["-m|unix-listen|-p| /x\\y|-b|guest-exec|-a|guest-ping,guest-exec", "-a|,", "-dvr|-F|-l|/log"] {
        let text = dumped("", arguments);
        let Ok(Action::Run(again)) = action_with_file(&text, "", |_| ()) else { panic!("{text}") };
        let first = run(arguments);
        assert_eq!(Configuration { warnings: Vec::new(), ..*again }, Configuration { warnings: Vec::new(), ..first });
    }
}

#[test]
fn what_is_asked_for_is_printed_at_once_from_left_to_right() {
    let version = format!("QEMU Guest Agent {}\n", env!("CARGO_PKG_VERSION"));
    for (arguments, text) in [
        ("-V", version.clone()),
        ("--vers", version.clone()),
        ("-V|-x", version.clone()),
        ("-D|-V", version.clone()),
        ("-m|unix-listen|-V", version),
        ("-h|-V", help()),
        ("-b|help", "guest-sync\nguest-ping\n".to_owned()),
        ("--allow-rpcs=?", "guest-sync\nguest-ping\n".to_owned()),
    ] {
        assert_eq!(action(arguments), Ok(Action::Print(text)), "{arguments:?}");
    }
}

#[test]
fn a_wrong_option_says_what_would_be_right() {
    for (arguments, text) in [
        ("-x|-V", "unknown option '-x'; try 'qemu-ga --help'"),
        ("--metod=x", "unknown option '--metod': did you mean '--method'? try 'qemu-ga --help'"),
        ("--blacklist|x", "unknown option '--blacklist': did you mean '--block-rpcs'? try 'qemu-ga --help'"),
        ("--nonsense", "unknown option '--nonsense'; try 'qemu-ga --help'"),
        ("--ver", "option '--ver' is ambiguous: it could be '--verbose' or '--version'; try 'qemu-ga --help'"),
        ("--p|x", "option '--p' is ambiguous: it could be '--path' or '--pidfile'; try 'qemu-ga --help'"),
        ("-vp", "option '-p' needs a value (PATH); try 'qemu-ga --help'"),
        ("--block-rpcs", "option '--block-rpcs' needs a value (NAMES); try 'qemu-ga --help'"),
        ("-s", "option '-s' needs a value (COMMAND); try 'qemu-ga --help'"),
        ("--verbose=3", "option '--verbose' takes no value, but '3' is given; try 'qemu-ga --help'"),
        ("-v=1", "unknown option '-='; try 'qemu-ga --help'"),
        (
            "--vsock-peers=2,host",
            "option '--vsock-peers': vsock-peers: 'host' is no context id: numbers from 0 to 4294967295 are wanted, as in '2,3', or 'any'",
        ),
        (
            "--fsfreeze-timeout=1h",
            "option '--fsfreeze-timeout': the value '1h' of fsfreeze-timeout is no number of seconds from 0 to 31536000",
        ),
        (
            "-D|--fsfreeze-hook-timeout|0",
            "option '--fsfreeze-hook-timeout': the value '0' of fsfreeze-hook-timeout is no number of seconds from 1 to 86400",
        ),
        (
            "--fsfreeze-hook-",
            "option '--fsfreeze-hook-' is ambiguous: it could be '--fsfreeze-hook-dir' or '--fsfreeze-hook-timeout'; try 'qemu-ga --help'",
        ),
        ("-b|guest-pings", "option '-b': unknown command 'guest-pings': did you mean 'guest-ping'?"),
        ("-m|unix-listen", "the method 'unix-listen' needs a path: give one with '--path'"),
        ("-D|-m|unix-listen", "the method 'unix-listen' needs a path: give one with '--path'"),
        ("-c|/nonexistent|-V", "cannot read the configuration file '/nonexistent': No such file or directory"),
    ] {
        assert_eq!(action(arguments), Err(text.to_owned()), "{arguments:?}");
    }
}

#[test]
fn a_value_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    let environment = Environment { config_path: Some("/nonexistent".into()), ..Environment::of_process() };
    let arguments = [OsString::from("-p"), OsString::from_vec(vec![b'/', 0xff])];
    let failure = Action::from_arguments(arguments.into_iter(), &environment, COMMANDS).unwrap_err();
    assert_eq!(failure.text, "option '-p': the value '/\u{fffd}' is not UTF-8");
}

#[test]
fn the_command_line_beats_the_file_and_the_named_file_beats_the_variable() {
    let other = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(other.path(), "[general]\nlogfile=/other\npath=/other\n").unwrap();
    let other = other.path().to_str().unwrap();
    let content = "[general]\nlogfile=/file\nverbose=true\n";
    for (arguments, logfile, verbose) in [
        (String::new(), "/file", true),
        ("-l|/line".to_owned(), "/line", true),
        ("-l|/line|-c|FILE".to_owned(), "/line", true),
        (format!("-c|{other}"), "/other", false),
        (format!("-c|FILE|-c|{other}"), "/other", false),
        (format!("-c|{other}|-c|FILE"), "/file", true),
    ] {
        let Ok(Action::Run(configuration)) = action_with_file(content, &arguments, |_| ()) else {
            panic!("{arguments}")
        };
        assert_eq!(configuration.logfile.as_deref(), Some(Path::new(logfile)), "{arguments}");
        assert_eq!(configuration.verbose, verbose, "{arguments}");
    }
}

#[test]
fn the_variable_may_name_a_missing_file_or_nothing() {
    for path in ["/nonexistent", ""] {
        assert!(action_with_file("", "", |environment| environment.config_path = Some(path.into())).is_ok());
    }
}

#[test]
fn a_socket_handed_over_replaces_method_and_path() {
    let with = |pid: &str, count: &str, method: fn() -> io::Result<Option<Method>>, arguments: &str| {
        action_with_file("", arguments, |environment| {
            environment.listen_pid = Some(pid.into());
            environment.listen_fds = Some(count.into());
            environment.activated_method = method;
        })
    };
    let Ok(Action::Run(activated)) = with("77", "1", || Ok(Some(Method::UnixListen)), "-m|isa-serial|-p|/x") else {
        panic!("not activated")
    };
    assert_eq!((activated.method, activated.path), (Method::UnixListen, None));
    assert_eq!(activated.socket_activation, Some(crate::startup::config::SocketActivation { descriptor: 3 }));
    let Ok(Action::Print(dump)) = with("77", "1", || Ok(Some(Method::VsockListen)), "-D|-p|/x") else { panic!() };
    assert!(dump.starts_with("[general]\ndaemon=false\nmethod=vsock-listen\npidfile="), "{dump}");
    for (pid, count) in [("78", "1"), ("77", "0"), ("77", "x"), ("", "1")] {
        let Ok(Action::Run(ignored)) = with(pid, count, || panic!("looked at"), "") else { panic!("{pid} {count}") };
        assert_eq!(ignored.socket_activation, None);
    }
    for (count, method, text) in [
        (
            "2",
            (|| Ok(None)) as fn() -> io::Result<Option<Method>>,
            "LISTEN_FDS is 2, but the agent listens on one socket only",
        ),
        ("1", || Ok(None), "descriptor 3 is not a listening unix or vsock socket, the only ones served"),
        (
            "1",
            || Err(io::Error::from_raw_os_error(9)),
            "descriptor 3 is not a socket to listen on: Bad file descriptor",
        ),
    ] {
        assert_eq!(with("77", count, method, ""), Err(format!("socket activation: {text}")));
    }
}

#[test]
fn the_help_names_every_option_and_the_true_defaults() {
    let help = help();
    for option in OPTIONS.iter().filter(|option| option.effect != Effect::Ignored) {
        let short = option.short.map_or(String::new(), |short| format!("-{short}, "));
        assert!(help.contains(&format!("\n  {short}--{}", option.long.unwrap())), "{option:?}");
    }
    for text in [
        DEFAULT_CONFIG_PATH,
        crate::startup::config::DEFAULT_VIRTIO_PATH,
        crate::startup::config::DEFAULT_SERIAL_PATH,
        DEFAULT_PIDFILE,
        DEFAULT_STATEDIR,
        DEFAULT_FSFREEZE_HOOK,
        crate::startup::config::DEFAULT_FSFREEZE_HOOK_DIR,
        &format!("(default: {})", crate::startup::config::DEFAULT_FSFREEZE_HOOK_TIMEOUT.as_secs()),
        &format!("(default: {})", crate::startup::config::DEFAULT_FSFREEZE_TIMEOUT.as_secs()),
        "<cid>:<port>",
    ] {
        assert!(help.contains(text), "{text}");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    for method in Method::ALL {
        assert!(help.contains(method.name()));
    }
}

#[test]
fn every_key_of_the_file_has_its_option() {
    for key in Key::ALL {
        assert!(OPTIONS.iter().any(|option| option.effect == Effect::Set(key)), "{key:?}");
    }
}
