//! The configuration file: its syntax, which file is read, what the command line changes, and the dump of it all.

#[allow(dead_code, reason = "each test file uses its own part of it")]
#[path = "lifecycle/stage.rs"]
mod stage;

use qga_compliance::{Failure, deviation};

use self::stage::{Cases, Stage, expect};

#[test]
fn syntax() {
    // A name, a file, and a part of the dump made from it.
    let rows: &[(&str, &str, &str)] = &[
        (
            "every key is read",
            "[general]\ndaemon=true\nmethod=isa-serial\npath=/p\nlogfile=/l\npidfile=/nonexistent/i\nfsfreeze-hook=/h\nstatedir=/s\nverbose=true\nretry-path=true\nblock-rpcs=a,b\nallow-rpcs=c\n",
            "daemon=true\nmethod=isa-serial\npath=/p\nlogfile=/l\npidfile=/nonexistent/i\nfsfreeze-hook=/h\nstatedir=/s\nverbose=true\nretry-path=true\nblock-rpcs=b,a\nallow-rpcs=c\n",
        ),
        ("an empty file changes nothing", "", "method=virtio-serial\n"),
        ("an empty group changes nothing", "[general]\n", "method=virtio-serial\n"),
        ("comments and empty lines are passed over", "# one\n\n[general]\n  # two\n\npath=/x\n", "path=/x\n"),
        ("blanks around the equals sign are dropped", "[general]\npath =   /x\n", "path=/x\n"),
        ("blanks before a key are dropped", "[general]\n   path=/x\n", "path=/x\n"),
        ("blanks behind a value belong to it", "[general]\npath=/x  \nlogfile=/y\n", "path=/x  \n"),
        ("lines may end as on Windows", "[general]\r\npath=/x\r\n", "path=/x\n"),
        ("the last line needs no end", "[general]\npath=/x", "path=/x\n"),
        ("of a repeated key the last one counts", "[general]\npath=/x\npath=/y\n", "path=/y\n"),
        ("a repeated list is not added up", "[general]\nblock-rpcs=a\nblock-rpcs=b\n", "block-rpcs=b\n"),
        (
            "a repeated group goes on",
            "[general]\npath=/x\n[other]\npath=/z\n[general]\nlogfile=/y\n",
            "path=/x\nlogfile=/y\n",
        ),
        (
            "an unknown key changes nothing",
            "[general]\ndaemonize=0\npath=/x\n",
            "daemon=false\nmethod=virtio-serial\npath=/x\n",
        ),
        ("an unknown group changes nothing", "[other]\npath=/x\n", "path=/dev/virtio-ports/"),
        ("a key in another language is an unknown key", "[general]\npath[de]=/x\n", "path=/dev/virtio-ports/"),
        ("a sign that begins a comment elsewhere belongs to the value", "[general]\npath=/x # y\n", "path=/x # y\n"),
        ("quotes belong to the value", "[general]\npath=\"/x\"\n", "path=\"/x\"\n"),
        ("an equals sign belongs to the value", "[general]\npath=a=b\n", "path=a=b\n"),
        ("an escaped blank begins a value", "[general]\npath=\\s/x\n", "path=\\s/x\n"),
        (
            "escaped letters are resolved and written back",
            "[general]\npath=a\\sb\\n\\\\c\\r\n",
            "path=a b\\n\\\\c\\r\n",
        ),
        ("a character beyond ASCII is kept", "[general]\npath=/\u{e4}\n", "path=/\u{e4}\n"),
        ("true is true", "[general]\nverbose=true\n", "verbose=true\n"),
        ("1 is true", "[general]\nverbose=1\n", "verbose=true\n"),
        ("false is false", "[general]\nverbose=false\n", "verbose=false\n"),
        ("0 is false", "[general]\nverbose=0\n", "verbose=false\n"),
        ("a blank behind a truth value does not matter", "[general]\nverbose=true \n", "verbose=true\n"),
    ];
    let mut cases = Cases::new("syntax of the configuration");
    for (name, file, dumped) in rows {
        cases.case(name, |stage| {
            stage.write("conf", file)?;
            stage.run("exec $agent -c $dir/conf -D")?.check(0, &[dumped], &[])
        });
    }
    cases.case("an old block list still blocks", |stage| {
        stage.write("conf", "[general]\nblacklist=guest-exec\n")?;
        let choice = deviation("an old block list still blocks");
        let part = choice.pick(stage.kind, "block-rpcs=\n", "block-rpcs=guest-exec\n");
        stage.run("exec $agent -c $dir/conf -D")?.check(0, &[part], &[])
    });
    cases.finish();
}

#[test]
fn mistakes() {
    // A name, a file, and what the error must name.
    let rows: &[(&str, &[u8], &str)] = &[
        ("yes is no truth value", b"[general]\nverbose=yes\n", "verbose"),
        ("a truth value in upper case is none", b"[general]\nverbose=TRUE\n", "verbose"),
        ("nothing is no truth value", b"[general]\ndaemon=\n", "daemon"),
        ("2 is no truth value", b"[general]\nretry-path=2\n", "retry-path"),
        ("a key before any group is an error", b"path=/x\n", "group"),
        ("a line that is neither key nor group is an error", b"[general]\nnonsense\n", "nonsense"),
        ("a comment of another dialect is an error", b"[general]\n;path=/x comment\n;c\n", ";c"),
        ("an unknown escape is an error", b"[general]\npath=\\q\n", "path"),
        ("a backslash at the end is an error", b"[general]\npath=x\\\n", "path"),
        ("a value that is no UTF-8 is an error", b"[general]\npath=\xff\n", "path"),
        ("a group that is not closed is an error", b"[general\npath=/x\n", "[general"),
        ("a byte order mark is an error", b"\xef\xbb\xbf[general]\npath=/x\n", "conf"),
    ];
    let mut cases = Cases::new("mistakes in the configuration");
    for (name, file, named) in rows {
        cases.case(name, |stage| {
            stage.write("conf", file)?;
            let ended = stage.run("exec $agent -c $dir/conf -D")?;
            ended.check(1, &[], &["$dir/conf", named])?;
            expect(ended.output.is_empty(), || ended.output.clone())
        });
    }
    cases.case("a mistake is told with its line", |stage| {
        stage.write("conf", "[general]\n\nverbose=yes\n")?;
        let choice = deviation("a mistake is told with its line");
        let part = choice.pick(stage.kind, "error loading configuration from path: $dir/conf", "$dir/conf:3:");
        stage.run("exec $agent -c $dir/conf -D")?.check(1, &[], &[part])
    });
    cases.case("an unknown key is warned about", |stage| {
        stage.write("conf", "[general]\nverbos=1\n")?;
        let ended = stage.run("exec $agent -c $dir/conf -m unix-listen -p $dir/missing/s -t $dir")?;
        ended.check(1, &[], &["$dir/missing/s"])?;
        let warned = deviation("an unknown key is warned about").pick(stage.kind, false, true);
        expect(ended.errors.contains("did you mean 'verbose'?") == warned, || ended.errors.clone())
    });
    cases.case("an unknown group is warned about", |stage| {
        stage.write("conf", "[Genral]\nverbose=1\n")?;
        let ended = stage.run("exec $agent -c $dir/conf -m unix-listen -p $dir/missing/s -t $dir")?;
        ended.check(1, &[], &["$dir/missing/s"])?;
        let warned = deviation("an unknown group is warned about").pick(stage.kind, false, true);
        expect(ended.errors.contains("[Genral]") == warned, || ended.errors.clone())
    });
    cases.case("a method with a blank behind it is refused", |stage| {
        stage.write("conf", "[general]\nmethod=unix-listen \npath=/nonexistent/s\n")?;
        stage.run("exec $agent -c $dir/conf -t $dir")?.check(1, &[], &["unix-listen "])
    });
    cases.case("a file that is named must be there", |stage| {
        stage.run("exec $agent -c $dir/missing -D")?.check(1, &[], &["$dir/missing", "No such file or directory"])
    });
    cases.case("a directory is no file", |stage| {
        stage.run("exec $agent -c $dir -D")?.check(1, &[], &["$dir", "egular file"])
    });
    cases.case("a device that never ends is no file", |stage| {
        stage.run("exec $agent -c /dev/zero -D")?.check(1, &[], &["/dev/zero", "egular file"])
    });
    cases.finish();
}

#[test]
fn precedence() {
    let mut cases = Cases::new("precedence of the configuration");
    let mut dumps = |name: &str, line: &str, files: &[(&str, &str)], parts: &[&str]| {
        cases.case(name, |stage| {
            for (file, text) in files {
                stage.write(file, text)?;
            }
            stage.run(line)?.check(0, parts, &[])
        });
    };
    let one: (&str, &str) = ("one", "[general]\npath=/one\nblock-rpcs=a,b\nverbose=true\n");
    let two: (&str, &str) = ("two", "[general]\npath=/two\n");
    dumps("the environment names the file", "QGA_CONF=$dir/one exec $agent -D", &[one], &["path=/one\n"]);
    dumps(
        "the option beats the environment",
        "QGA_CONF=$dir/one exec $agent -c $dir/two -D",
        &[one, two],
        &["path=/two\n", "verbose=false\n"],
    );
    dumps(
        "only the last file named is read",
        "exec $agent -c $dir/one -c $dir/two -D",
        &[one, two],
        &["path=/two\n", "verbose=false\n"],
    );
    dumps("the command line beats the file", "exec $agent -c $dir/one -p /mine -D", &[one], &["path=/mine\n"]);
    dumps(
        "the command line beats a file that is named behind it",
        "exec $agent -p /mine -c $dir/one -D",
        &[one],
        &["path=/mine\n"],
    );
    dumps(
        "the lists of file and command line add up",
        "exec $agent -b c,d -c $dir/one -b e -D",
        &[one],
        &["block-rpcs=b,a,d,c,e\n"],
    );
    let odd_lists: [(&str, &str, &str); 6] = [
        ("semicolons", "guest-ping;guest-get-time", "guest-ping;guest-get-time"),
        ("blanks", "guest-ping guest-get-time ", "guest-ping guest-get-time "),
        ("blanks behind commas", "guest-ping, guest-info;a ,b", "b, guest-info;a ,guest-ping"),
        ("commas without a name between", "guest-ping,,guest-info,", ",guest-info,,guest-ping"),
        ("a name twice", "guest-ping,guest-ping", "guest-ping,guest-ping"),
        ("escapes", "x\\s\\ty,a\\\\b,\\sz", "\\sz,a\\\\b,x \ty"),
    ];
    for (what, list, dumped) in odd_lists {
        for key in ["block-rpcs", "allow-rpcs"] {
            dumps(
                &format!("{key} with {what} is dumped letter for letter"),
                "exec $agent -c $dir/conf -D",
                &[("conf", &format!("[general]\n{key}={list}\n"))],
                &[&format!("\n{key}={dumped}\n")],
            );
        }
    }
    dumps("a list of a blank is dumped", "exec $agent -a ' ' -b '' -b , -D", &[], &["block-rpcs=,\nallow-rpcs=\\s\n"]);
    dumps(
        "the environment may name a file that is not there",
        "QGA_CONF=$dir/missing exec $agent -D",
        &[],
        &["method=virtio-serial\n"],
    );
    dumps(
        "a file that only the environment names is not read when an option names one",
        "QGA_CONF=$dir exec $agent -c $dir/two -D",
        &[two],
        &["path=/two\n"],
    );
    cases.case("the environment may not name a wrong file", |stage| {
        stage.write("conf", "nonsense\n")?;
        stage.run("QGA_CONF=$dir/conf exec $agent -D")?.check(1, &[], &["$dir/conf"])
    });
    cases.case("an empty name in the environment is a file that is not there", |stage| {
        stage.run("QGA_CONF= exec $agent -D")?.check(0, &["method=virtio-serial\n"], &[])
    });
    cases.case("the dump of a dump is the same", |stage| {
        round_trip(stage, "-m isa-serial -p ' /a b ' -l '\\x' -F -t /s -vr -f /nonexistent/pid -b a,b -a c,d")
    });
    cases.case("the dump of a dump with defaults is the same", |stage| round_trip(stage, ""));
    cases.case("the dump of a dump with lists of one name, semicolons or blanks is the same at once", |stage| {
        let first = stage.run("exec $agent -b 'guest-ping;guest-get-time' -a 'guest-info guest-sync ' -D")?;
        first.check(0, &["block-rpcs=guest-ping;guest-get-time\nallow-rpcs=guest-info guest-sync \n"], &[])?;
        stage.write("conf", &first.output)?;
        let second = stage.run("exec $agent -c $dir/conf -D")?.output;
        expect(second == first.output, || format!("first:\n{}then:\n{second}", first.output))
    });
    cases.case("the agent runs by its file", |stage| {
        let text =
            stage.expand("[general]\nmethod=unix-listen\npath=$dir/socket\nstatedir=$dir\nblock-rpcs=guest-exec\n");
        stage.write("conf", text)?;
        let mut serving = stage.start("exec $agent -c $dir/conf")?;
        serving.wait_until_it_listens("socket")?;
        let reply = serving.connect()?.ask(r#"{"execute":"guest-exec","arguments":{"path":"true"}}"#)?;
        expect(reply.error_class() == Some("CommandNotFound"), || reply.shown())
    });
    cases.finish();
}

/// The lists come out reversed, so they are the same after two more rounds.
fn round_trip(stage: &Stage, options: &str) -> Result<(), Failure> {
    let first = stage.run(&format!("exec $agent {options} -D"))?;
    first.check(0, &["[general]\n"], &[])?;
    let mut previous = first.output.clone();
    for _ in 0..2 {
        stage.write("conf", &previous)?;
        previous = stage.run("exec $agent -c $dir/conf -D")?.output;
    }
    expect(previous == first.output, || format!("first:\n{}then:\n{previous}", first.output))
}
