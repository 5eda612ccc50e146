//! The command line: options in all their forms, what is printed where, and the exit codes.

#[allow(dead_code, reason = "each test file uses its own part of it")]
#[path = "lifecycle/stage.rs"]
mod stage;

use qga_compliance::{Failure, deviation};

use self::stage::{Cases, Stage, expect};

/// A name, the arguments, the exit code, parts of the standard output, parts of the standard error.
type Row = (&'static str, &'static str, i32, &'static [&'static str], &'static [&'static str]);

#[test]
fn forms() {
    let rows: &[Row] = &[
        (
            "options of one letter take the next word",
            "-m isa-serial -p /x -l /y -D",
            0,
            &["method=isa-serial\npath=/x\nlogfile=/y\n"],
            &[],
        ),
        (
            "options of one letter take the rest of their word",
            "-misa-serial -p/x -l/y -D",
            0,
            &["method=isa-serial\npath=/x\nlogfile=/y\n"],
            &[],
        ),
        ("an equals sign behind one letter belongs to the value", "-p=/x -D", 0, &["path==/x\n"], &[]),
        (
            "long options take the next word",
            "--method isa-serial --path /x --logfile /y --pidfile /z --statedir /s --dump-conf",
            0,
            &["method=isa-serial\npath=/x\nlogfile=/y\npidfile=/z\nstatedir=/s\n"],
            &[],
        ),
        (
            "long options take what is behind the equals sign",
            "--method=isa-serial --path=/x --logfile=/y --pidfile=/z --statedir=/s --dump-conf",
            0,
            &["method=isa-serial\npath=/x\nlogfile=/y\npidfile=/z\nstatedir=/s\n"],
            &[],
        ),
        ("a long option may have an empty value", "--path= -m unix-listen -D", 0, &["path=\n"], &[]),
        (
            "switches can be bundled",
            "-dvr -f $dir/pid -D",
            0,
            &["daemon=true\n", "verbose=true\nretry-path=true\n"],
            &[],
        ),
        (
            "a bundle may end in an option with a value",
            "-vrm isa-serial -D",
            0,
            &["method=isa-serial\n", "verbose=true\nretry-path=true\n"],
            &[],
        ),
        (
            "a bundle may end in an option with its value attached",
            "-vrp/x -D",
            0,
            &["path=/x\n", "verbose=true\nretry-path=true\n"],
            &[],
        ),
        (
            "long options can be shortened as long as they are unambiguous",
            "--meth=isa-serial --dae --verb --ret --pid=/z --st=/s --du",
            0,
            &["daemon=true\nmethod=isa-serial\n", "pidfile=/z\nstatedir=/s\nverbose=true\nretry-path=true\n"],
            &[],
        ),
        (
            "long switches",
            "--daemonize --verbose --retry-path -f $dir/pid -D",
            0,
            &["daemon=true\n", "verbose=true\nretry-path=true\n"],
            &[],
        ),
        ("the hook without a value is the default hook", "-F -D", 0, &["fsfreeze-hook=/etc/qemu/fsfreeze-hook\n"], &[]),
        (
            "the hook's long form without a value is the default hook",
            "--fsfreeze-hook -D",
            0,
            &["fsfreeze-hook=/etc/qemu/fsfreeze-hook\n"],
            &[],
        ),
        ("the hook does not take the next word", "-F /x -D", 0, &["fsfreeze-hook=/etc/qemu/fsfreeze-hook\n"], &[]),
        ("the hook takes an attached value", "-F/x -D", 0, &["fsfreeze-hook=/x\n"], &[]),
        ("the hook's long form takes an attached value", "--fsfreeze-hook=/x -D", 0, &["fsfreeze-hook=/x\n"], &[]),
        ("a hook is not looked for", "-F/nonexistent/hook -D", 0, &["fsfreeze-hook=/nonexistent/hook\n"], &[]),
        ("two dashes end the options", "-D -- -x --nope", 0, &["method=virtio-serial\n"], &[]),
        ("what is no option is ignored", "one -D two three", 0, &["method=virtio-serial\n"], &[]),
        ("one dash is no option", "- -D", 0, &["method=virtio-serial\n"], &[]),
        (
            "the service option of Windows is ignored with its value",
            "-s install -D",
            0,
            &["method=virtio-serial\n"],
            &[],
        ),
        ("of several values the last one counts", "-p /a -p /b --path=/c -D", 0, &["path=/c\n"], &[]),
        (
            "lists add up, each one reversed",
            "-b a,b -b c,d -a e --allow-rpcs=f,g -D",
            0,
            &["block-rpcs=b,a,d,c\nallow-rpcs=e,g,f\n"],
            &[],
        ),
        ("the path of a serial line has a default", "-m isa-serial -D", 0, &["path=/dev/ttyS0\n"], &[]),
        ("a blank in front of a value is escaped in the dump", "-p ' x' -D", 0, &["path=\\sx\n"], &[]),
        ("a method is not looked at for the dump", "-m nope -p /x -D", 0, &["method=nope\npath=/x\n"], &[]),
        (
            "names of commands are not looked at for the dump",
            "-b no-such-command -D",
            0,
            &["block-rpcs=no-such-command\n"],
            &[],
        ),
    ];
    let mut cases = Cases::new("forms of options");
    for &row in rows {
        cases.case(row.0, |stage| check(stage, row));
    }
    cases.case("the dump without any option has the defaults in a fixed order", |stage| {
        let ended = stage.run("exec $agent -D")?;
        let expected = "[general]\ndaemon=false\nmethod=virtio-serial\n\
             path=/dev/virtio-ports/org.qemu.guest_agent.0\npidfile=/var/run/qemu-ga.pid\nstatedir=/var/run\n\
             verbose=false\nretry-path=false\nblock-rpcs=\nallow-rpcs=\n";
        ended.check(0, &[], &[])?;
        expect(ended.output == expected, || ended.output.clone())
    });
    cases.finish();
}

#[test]
fn questions() {
    let rows: &[Row] = &[
        ("the version is asked for by -V", "-V", 0, &["QEMU Guest Agent 1"], &[]),
        ("the version is asked for by its long name", "--version", 0, &["QEMU Guest Agent 1"], &[]),
        ("the help is asked for by -h", "-h", 0, &["Usage: ", "QEMU Guest Agent 1"], &[]),
        (
            "the help names every option",
            "--help",
            0,
            &[
                "-c, --config",
                "-m, --method",
                "-p, --path",
                "-l, --logfile",
                "-f, --pidfile",
                "-F, --fsfreeze-hook",
                "-t, --statedir",
                "-v, --verbose",
                "-V, --version",
                "-d, --daemonize",
                "-b, --block-rpcs",
                "-a, --allow-rpcs",
                "-D, --dump-conf",
                "-r, --retry-path",
                "-h, --help",
            ],
            &[],
        ),
        (
            "the help names the methods and the places",
            "--help",
            0,
            &[
                "virtio-serial",
                "isa-serial",
                "unix-listen",
                "vsock-listen",
                "/dev/virtio-ports/org.qemu.guest_agent.0",
                "/dev/ttyS0",
                "<cid>:<port>",
                "/var/run/qemu-ga.pid",
                "/etc/qemu/fsfreeze-hook",
                "/etc/qemu/qemu-ga.conf",
            ],
            &[],
        ),
        ("what is asked first is answered whatever follows", "-V -x", 0, &["QEMU Guest Agent 1"], &[]),
        ("a mistake before the question is told instead", "-x -V", 1, &[], &["x"]),
        (
            "the configuration file is read before any question is answered",
            "-V -c $dir/missing",
            1,
            &[],
            &["$dir/missing"],
        ),
        ("a list with help among others is a list", "-b help,foo -D", 0, &["block-rpcs=foo,help\n"], &[]),
    ];
    let mut cases = Cases::new("questions to the command line");
    for &row in rows {
        cases.case(row.0, |stage| check(stage, row));
    }
    cases.case("every way to ask for the commands gives the same list", |stage| {
        let one = stage.run("exec $agent -b help")?.output;
        for arguments in ["-a help", "-b '?'", "-a '?'", "--block-rpcs=help", "--allow-rpcs '?'", "-v -b help -x"] {
            let other = stage.run(&format!("exec $agent {arguments}"))?;
            other.check(0, &[], &[])?;
            expect(other.output == one, || format!("{arguments}: {}", other.output))?;
        }
        Ok(())
    });
    cases.case("the list of commands is that of guest-info, which begins with the last", |stage| {
        let printed = stage.run("exec $agent -b help")?.output;
        let listed: Vec<&str> = printed.lines().collect();
        let reply = stage.serve("")?.connect()?.ask(r#"{"execute":"guest-info"}"#)?;
        let commands = reply.returned().and_then(|info| info["supported_commands"].as_array()).cloned();
        let commands = commands.ok_or_else(|| reply.shown())?;
        let known: Vec<&str> = commands.iter().rev().filter_map(|command| command["name"].as_str()).collect();
        expect(listed == known, || format!("listed: {listed:?}\nknown: {known:?}"))?;
        let beginning =
            ["guest-sync-delimited", "guest-sync", "guest-ping", "guest-get-time", "guest-set-time", "guest-info"];
        expect(listed.starts_with(&beginning), || printed.clone())
    });
    cases.case("the version is the one of guest-info", |stage| {
        let printed = stage.run("exec $agent -V")?.output;
        let reply = stage.serve("")?.connect()?.ask(r#"{"execute":"guest-info"}"#)?;
        let told = reply.returned().and_then(|info| info["version"].as_str().map(str::to_owned)).unwrap_or_default();
        expect(printed == format!("QEMU Guest Agent {told}\n"), || format!("printed {printed}, told {told}"))
    });
    cases.finish();
}

#[test]
fn mistakes() {
    let rows: &[Row] = &[
        ("an unknown letter is told", "-x", 1, &[], &["x"]),
        ("an unknown letter in a bundle is told", "-vxr", 1, &[], &["x"]),
        ("an unknown long option is told", "--nope", 1, &[], &["--nope"]),
        ("an unknown long option with a value is told", "--nope=1", 1, &[], &["--nope"]),
        ("an option of one letter without its value is told", "-D -m", 1, &[], &["m"]),
        ("a long option without its value is told", "--method", 1, &[], &["--method"]),
        ("the ignored option without its value is told", "-s", 1, &[], &["s"]),
        ("an ambiguous beginning is told with what it could be", "--ver", 1, &[], &["--ver", "--version", "--verbose"]),
        ("a value for a switch is told", "--verbose=1", 1, &[], &["--verbose"]),
        ("a listening method without a path is told", "-m unix-listen", 1, &[], &["path"]),
        ("a listening method without a path is told for the dump too", "-m unix-listen -D", 1, &[], &["path"]),
        ("a vsock without an address is told", "-m vsock-listen", 1, &[], &["path"]),
        ("an unknown method is told", "-m nope -p /x -t $dir", 1, &[], &["nope"]),
        (
            "a log file that cannot be opened is told",
            "-m unix-listen -p $dir/s -t $dir -l $dir/missing/log",
            1,
            &[],
            &["log", "No such file or directory"],
        ),
        (
            "a device that is not there is told",
            "-p $dir/missing -t $dir",
            1,
            &[],
            &["error opening channel '$dir/missing': No such file or directory"],
        ),
        ("a directory is no device", "-p $dir -t $dir", 1, &[], &["error opening channel '$dir': Is a directory"]),
        (
            "a serial line that is not there is told",
            "-m isa-serial -p $dir/missing -t $dir",
            1,
            &[],
            &["error opening channel '$dir/missing': No such file or directory"],
        ),
    ];
    let mut cases = Cases::new("mistakes on the command line");
    for &row in rows {
        cases.case(row.0, |stage| check(stage, row));
    }
    cases.case("nothing about a mistake is on the standard output", |stage| {
        let ended = stage.run("exec $agent --nope")?;
        let expected = deviation("nothing about a mistake is on the standard output").pick(stage.kind, false, true);
        expect(ended.output.is_empty() == expected, || ended.output.clone())
    });
    cases.case("a mistake is told once", |stage| {
        let ended = stage.run("exec $agent --nope")?;
        let expected = deviation("a mistake is told once").pick(stage.kind, 2, 1);
        expect(ended.errors.matches("--nope").count() == expected, || ended.errors.clone())
    });
    cases.case("an option that is nearly right is told with the right one", |stage| {
        let choice = deviation("an option that is nearly right is told with the right one");
        let part = choice.pick(stage.kind, "unrecognized option", "did you mean '--logfile'?");
        stage.run("exec $agent --logfiel=/x")?.check(1, &[], &["--logfiel", part])
    });
    cases.case("a method that is nearly right is told with the right one", |stage| {
        let choice = deviation("a method that is nearly right is told with the right one");
        let part = choice.pick(stage.kind, "unsupported channel method", "did you mean 'unix-listen'?");
        stage.run("exec $agent -m unix-lisen -p $dir/s -t $dir")?.check(1, &[], &["unix-lisen", part])
    });
    cases.finish();
}

fn check(stage: &Stage, (_, arguments, code, output, errors): Row) -> Result<(), Failure> {
    stage.run(&format!("exec $agent {arguments}"))?.check(code, output, errors)
}
