//! Programs in the guest of a real agent: their output, their input, their end.

mod stage;

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use qga_client::{
    Account, Agent, Arguments, Capacity, Console, CopyOptions, Error, Exit, Input, Kind, OutputStream, Patience,
    Program, RunOptions, Terminal, Ticket, Timeouts, Transport, Wish,
};
use stage::{Guest, Recorder, leftovers, no_progress, noise, shell};

#[test]
fn a_program_gives_its_output_and_its_exit() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let mut seen = Recorder::default();
    let program = Program { input: Some(b"given".to_vec()), ..shell("cat; echo wrong >&2; umask; exit 3") };
    let ended = agent.run_live(&program, &RunOptions::default(), &mut seen).unwrap();
    assert_eq!(ended.exit, Exit::Code(3));
    assert!(ended.was_live && !ended.timed_out);
    let umask = agent.run("sh", &["-c", "umask"], None).unwrap().stdout;
    assert_eq!(seen.stdout, [b"given".as_slice(), &umask].concat(), "the program has the agent's umask");
    assert_eq!(seen.stderr, b"wrong\n");
}

#[test]
fn a_program_gets_its_environment_as_it_was_given() {
    let Some(guest) = Guest::start() else { return };
    let environment: Vec<String> = ["b=1", "i=2", "k=3", "m=4"].map(str::to_owned).into();
    let program =
        Program { environment: Some(environment.clone()), ..shell("echo $b$i$k$m; exec 2>&-; ls /proc/$$/fd") };
    let mut seen = Recorder::default();
    guest.connect().run_live(&program, &RunOptions::default(), &mut seen).unwrap();
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(text.starts_with("1234\n0\n1\n"), "{text}");
    assert!(!text.contains("\n3\n"), "the shell's own descriptors are not the program's: {text}");
}

#[test]
fn output_may_be_taken_at_the_end() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let options = RunOptions { live: false, time_limit: Some(Duration::from_secs(60)), ..RunOptions::default() };
    let mut run = |program: &Program| {
        let mut seen = Recorder::default();
        let ended = agent.run_live(program, &options, &mut seen).unwrap();
        (ended, seen)
    };
    // It is the agent's own child, with no shell and no files in between.
    let program =
        Program { input: Some(b"given".to_vec()), ..shell("cat; readlink /proc/$$/fd/1; echo wrong >&2; exit 3") };
    let (ended, seen) = run(&program);
    assert_eq!((ended.exit, ended.was_live, ended.is_cut), (Exit::Code(3), false, false));
    assert!(seen.stdout.starts_with(b"givenpipe:["), "{}", String::from_utf8_lossy(&seen.stdout));
    assert_eq!(seen.stderr, b"wrong\n");

    let (ended, seen) = run(&shell("head -c 17000000 /dev/zero"));
    assert_eq!((ended.exit, ended.is_cut, seen.stdout.len()), (Exit::Code(0), true, 16 << 20));

    let (ended, seen) = run(&Program { input: Some(noise(200_000)), ..shell("wc -c") });
    assert!(ended.was_live, "long input needs the shell all the same");
    assert_eq!(seen.stdout, b"200000\n");
}

#[test]
fn an_agent_that_opens_no_files_gives_the_output_at_the_end() {
    let Some(guest) = Guest::start_with(&["-b", "guest-file-open"]) else { return };
    let mut agent = guest.connect();
    let mut seen = Recorder::default();
    let ended = agent.run_live(&shell("echo out; echo wrong >&2; exit 5"), &RunOptions::default(), &mut seen).unwrap();
    assert_eq!((ended.exit, ended.was_live), (Exit::Code(5), false));
    assert_eq!((seen.stdout.as_slice(), seen.stderr.as_slice()), (b"out\n".as_slice(), b"wrong\n".as_slice()));
    assert_eq!(agent.read_file("/etc/hostname").unwrap_err().kind(), Kind::CommandRefused);
}

#[test]
fn an_agent_that_starts_no_programs_gives_its_files() {
    let Some(guest) = Guest::start_with(&["-b", "guest-exec"]) else { return };
    let mut agent = guest.connect();
    fs::write(guest.path("source"), noise(100_000)).unwrap();
    agent.download(&guest.text("source"), &guest.path("copy"), CopyOptions::default(), &mut no_progress).unwrap();
    assert_eq!(fs::read(guest.path("copy")).unwrap(), noise(100_000));
    let refused = agent.upload(&guest.path("source"), &guest.text("up"), CopyOptions::default(), &mut no_progress);
    assert_eq!(refused.unwrap_err().kind(), Kind::CommandRefused);
    assert_eq!(fs::read_dir(guest.directory.path()).unwrap().count(), 2, "nothing half-written is left");
}

#[test]
fn a_program_that_a_signal_ends_says_so_and_a_missing_one_is_127() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let mut exit = |program: &Program| {
        let mut seen = Recorder::default();
        agent.run_live(program, &RunOptions::default(), &mut seen).unwrap().exit
    };
    assert_eq!(exit(&shell("kill -9 $$")), Exit::Signal(9));
    assert_eq!(exit(&Program { path: "/nonexistent/program".to_owned(), ..Program::default() }), Exit::Code(127));
    assert_eq!(exit(&shell("exit 73")), Exit::Code(73));
}

#[test]
fn output_comes_while_the_program_runs() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    // It ends only when its output has been seen: the test hangs where output comes at the end alone.
    let sign = guest.path("seen");
    let script = format!("echo first; while [ ! -e {} ]; do sleep 0.02; done; echo second", sign.display());
    let mut pieces = Vec::new();
    let mut take = |_: OutputStream, bytes: &[u8]| {
        pieces.push(bytes.to_vec());
        fs::write(&sign, "")
    };
    let options = RunOptions { time_limit: Some(Duration::from_secs(60)), ..RunOptions::default() };
    let ended = agent.run_live(&shell(&script), &options, &mut take).unwrap();
    assert_eq!(ended.exit, Exit::Code(0));
    assert_eq!(pieces, [b"first\n", b"second\n".as_slice()]);
}

#[test]
fn large_output_comes_whole_and_nothing_is_left_in_the_guest() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let mut seen = Recorder::default();
    let size = 40 << 20;
    let script = format!("head -c {size} /dev/zero; head -c 100000 /dev/zero >&2");
    let before = leftovers();
    let ended = agent.run_live(&shell(&script), &RunOptions::default(), &mut seen).unwrap();
    assert_eq!((ended.exit, ended.is_cut), (Exit::Code(0), false));
    assert_eq!((seen.stdout.len(), seen.stderr.len()), (size, 100_000));
    gone(&before);
}

/// Nothing is left that was not there before.
fn gone(before: &[PathBuf]) {
    // Other tests of this file have files of their own there for a moment.
    let mut left: Vec<PathBuf> = leftovers().into_iter().filter(|path| !before.contains(path)).collect();
    for _ in 0..200 {
        left.retain(|path| path.exists());
        std::thread::sleep(Duration::from_millis(if left.is_empty() { 0 } else { 50 }));
    }
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn input_is_fed_while_the_program_reads() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let pieces: Vec<Vec<u8>> = vec![noise(300_000), b"line\n".to_vec(), Vec::new(), noise(5000)];
    let mut seen = Recorder { input: pieces.iter().rev().cloned().collect(), ..Recorder::default() };
    let options = RunOptions { interactive_input: true, ..RunOptions::default() };
    let ended = agent.run_live(&shell("sleep 0.1; cat"), &options, &mut seen).unwrap();
    assert_eq!(ended.exit, Exit::Code(0));
    assert!(seen.stdout == pieces.concat(), "{} bytes came back", seen.stdout.len());
}

#[test]
fn large_input_that_nobody_reads_does_no_harm() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let mut seen = Recorder::default();
    let program = Program { input: Some(noise(1 << 20)), ..shell("head -c 3 | wc -c") };
    let ended = agent.run_live(&program, &RunOptions::default(), &mut seen).unwrap();
    assert_eq!(ended.exit, Exit::Code(0));
    assert_eq!(String::from_utf8_lossy(&seen.stdout).trim(), "3");
    agent.call_raw("guest-ping", serde_json::Value::Null).unwrap();
}

#[test]
fn a_program_is_ended_at_its_time_limit_and_on_wish() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let limited = RunOptions { time_limit: Some(Duration::from_millis(100)), ..RunOptions::default() };
    let ended = agent.run_live(&shell("exec sleep 600"), &limited, &mut Recorder::default()).unwrap();
    assert_eq!((ended.exit, ended.timed_out), (Exit::Signal(15), true));

    let deaf = RunOptions { grace: Duration::from_millis(100), ..RunOptions::default() };
    let script = "trap '' TERM; echo deaf; while :; do sleep 0.05; done";
    let mut seen = Recorder { then: Some(Wish::Terminate), ..Recorder::default() };
    let ended = agent.run_live(&shell(script), &deaf, &mut seen).unwrap();
    assert_eq!((ended.exit, ended.timed_out), (Exit::Signal(9), false));
}

#[test]
fn a_program_whose_output_nobody_takes_is_ended() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let gone = guest.path("gone");
    let script = format!("trap 'echo > {}; exit' TERM; echo x; while :; do sleep 0.05; done", gone.display());
    let mut refuse = |_: OutputStream, _: &[u8]| Err(std::io::ErrorKind::BrokenPipe.into());
    let error = agent.run_live(&shell(&script), &RunOptions::default(), &mut refuse).unwrap_err();
    assert!(error.to_string().starts_with("cannot take the program's output: "), "{error}");
    while !gone.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    agent.call_raw("guest-ping", serde_json::Value::Null).unwrap();
}

/// Removes the files that the program's own output goes to, as one does that clears /tmp.
const CLEAR: &str = "files=$(readlink /proc/$$/fd/1); rm -f \"${files%.out}\".*";

#[test]
fn a_program_that_removes_the_files_of_its_output_is_an_error_and_runs_once() {
    let Some(guest) = Guest::start() else { return };
    for code in [0, 73] {
        let sign = guest.path(&format!("cleared-{code}"));
        let (count, done) = (guest.text("count"), sign.display());
        let script = format!("echo once >>{count}; {CLEAR}; echo lost; : >{done}; exit {code}");
        // Nothing is opened before they are gone.
        let transport = guest.target().connect(Timeouts::default()).unwrap();
        let mut agent = Agent::over(Slow { transport, quick: 0, sign: Some(sign) });
        agent.sync().unwrap();
        let error = agent.run_live(&shell(&script), &RunOptions::default(), &mut Recorder::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Guest);
        assert!(error.to_string().contains(&format!("it has run and ended (exit code {code})")), "{error}");
    }
    assert_eq!(fs::read_to_string(guest.path("count")).unwrap(), "once\nonce\n");
}

#[test]
fn a_run_ends_with_its_program_though_others_go_on_writing() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let mut seen = Recorder::default();
    let (pid, stop) = (guest.text("pid"), guest.text("stop"));
    // Faster than it can be read.
    let writer = format!("until [ -e {stop} ]; do head -c 3000000 /dev/zero; done");
    let script = format!("( {writer} ) & echo $! >{pid}; sleep 0.3; echo last >&2");
    let ended = agent.run_live(&shell(&script), &RunOptions::default(), &mut seen).unwrap();
    fs::write(stop, "").unwrap();
    // It must not outlive the directory in which it looks for the end.
    let pid = fs::read_to_string(pid).unwrap();
    while !is_gone(&pid) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((ended.exit, ended.is_cut), (Exit::Code(0), false));
    assert_eq!(seen.stderr, b"last\n");
}

#[test]
fn a_program_whose_output_nobody_takes_is_killed_if_it_does_not_end() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let pid = guest.path("pid");
    let script = format!("trap '' TERM; echo $$ >{}; echo x; while :; do sleep 0.05; done", pid.display());
    let mut refuse = |_: OutputStream, _: &[u8]| Err(std::io::ErrorKind::BrokenPipe.into());
    let options = RunOptions { grace: Duration::from_millis(100), ..RunOptions::default() };
    agent.run_live(&shell(&script), &options, &mut refuse).unwrap_err();
    assert!(is_gone(&fs::read_to_string(pid).unwrap()));
}

fn is_gone(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap_or_default();
    status.is_empty() || status.contains("State:\tZ")
}

/// What stands in the files of input of all programs that run.
fn input_in_files() -> Vec<u8> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|process| process.path().join("fd"));
    let descriptors = processes.filter_map(|process| fs::read_dir(process).ok()).flatten().flatten();
    let of_input = descriptors.filter(|descriptor| {
        let name = fs::read_link(descriptor.path()).unwrap_or_default().display().to_string();
        name.contains("/.qga-") && name.contains(".in")
    });
    of_input.filter_map(|descriptor| fs::read(descriptor.path()).ok()).flatten().collect()
}

/// Gives a secret, and ends the input when the program has read it and it stands nowhere any more.
struct Secretive {
    is_given: bool,
    has_arrived: bool,
}

const SECRET: &[u8] = b"a secret that only this test types\n";

impl Console for Secretive {
    fn output(&mut self, _: OutputStream, bytes: &[u8]) -> std::io::Result<()> {
        assert_eq!(bytes, b"read\n");
        self.has_arrived = true;
        Ok(())
    }

    fn input(&mut self) -> std::io::Result<Input> {
        if !std::mem::replace(&mut self.is_given, true) {
            return Ok(Input::Bytes(SECRET.to_vec()));
        }
        // That it stands there for good hangs the test.
        let stands = || input_in_files().windows(SECRET.len()).any(|window| window == SECRET);
        Ok(if self.has_arrived && !stands() { Input::End } else { Input::NotYet })
    }
}

#[test]
fn input_that_was_read_stands_in_no_file() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let options = RunOptions { interactive_input: true, ..RunOptions::default() };
    let mut console = Secretive { is_given: false, has_arrived: false };
    let ended = agent.run_live(&shell("read -r secret; echo read; cat"), &options, &mut console).unwrap();
    assert_eq!(ended.exit, Exit::Code(0));
    assert!(console.has_arrived);
}

/// A host that stops for good, as one that was killed.
struct Stopped {
    go_on: mpsc::Receiver<()>,
    is_running: mpsc::Sender<()>,
}

impl Console for Stopped {
    fn output(&mut self, _: OutputStream, _: &[u8]) -> std::io::Result<()> {
        let _ = self.is_running.send(());
        let _ = self.go_on.recv();
        Ok(())
    }

    fn input(&mut self) -> std::io::Result<Input> {
        Ok(Input::NotYet)
    }
}

#[test]
fn a_program_with_input_ends_when_its_host_is_gone_and_nothing_is_left() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    agent.set_patience(Patience { silent_host: Duration::from_secs(2), ..Patience::default() });
    let (go, go_on) = mpsc::channel();
    let (is_running, running) = mpsc::channel();
    let pid = guest.path("pid");
    let script = format!("trap '' TERM; echo $$ $(readlink /proc/$$/fd/1) >{}; echo up; sleep 600", pid.display());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let options = RunOptions { interactive_input: true, ..RunOptions::default() };
            // What it comes to when the host goes on after all is not what this is about.
            let _ = agent.run_live(&shell(&script), &options, &mut Stopped { go_on, is_running });
        });
        running.recv().unwrap();
        let text = fs::read_to_string(&pid).unwrap();
        let (pid, output) = text.trim().split_once(' ').unwrap();
        let base = output.trim_end_matches(" (deleted)").trim_end_matches(".out");
        while !is_gone(pid) {
            std::thread::sleep(Duration::from_millis(50));
        }
        for name in ["out", "err", "in", "ctl", "tty", "fifo"] {
            assert!(!fs::exists(format!("{base}.{name}")).unwrap(), "{base}.{name} is left");
        }
        go.send(()).unwrap();
    });
}

#[test]
fn what_was_not_started_is_told_from_what_ended_with_the_same_code() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let script = guest.path("script");
    fs::write(&script, "#!/nonexistent/interpreter\n").unwrap();
    let plain = guest.text("plain");
    fs::write(&plain, "echo never\n").unwrap();
    let mut run = |program: &Program, live: bool| {
        let mut seen = Recorder::default();
        let ended = agent.run_live(program, &RunOptions { live, ..RunOptions::default() }, &mut seen).unwrap();
        (ended.exit, ended.not_started.unwrap_or_default(), String::from_utf8(seen.stderr).unwrap())
    };
    let named = |path: &str| Program { path: path.to_owned(), ..Program::default() };
    for live in [true, false] {
        let (exit, cause, stderr) = run(&named("nosuchprog"), live);
        assert_eq!((exit, cause.as_str(), stderr.as_str()), (Exit::Code(127), "no such program in PATH", ""));
        let (exit, cause, stderr) = run(&named(&plain), live);
        assert_eq!((exit, cause.as_str(), stderr.as_str()), (Exit::Code(126), "Permission denied", ""));
        let program = Program { directory: Some("/nope".to_owned()), ..named("true") };
        let (exit, cause, stderr) = run(&program, live);
        assert_eq!((exit, cause.as_str(), stderr.as_str()), (Exit::Code(126), "there is no directory /nope", ""));
        let account = Some(Account { name: "no-such-user".to_owned(), ..Account::default() });
        let (exit, cause, stderr) = run(&Program { account, ..named("true") }, live);
        assert_eq!((exit, cause.as_str(), stderr.as_str()), (Exit::Code(126), "there is no user no-such-user", ""));
        let (exit, cause, stderr) = run(&shell("echo qga-1: not found >&2; exit 127"), live);
        assert_eq!((exit, cause.as_str(), stderr.as_str()), (Exit::Code(127), "", "qga-1: not found\n"));
    }
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (exit, cause, stderr) = run(&named(script.to_str().unwrap()), true);
    assert_eq!((exit, stderr.as_str()), (Exit::Code(127), ""));
    assert!(cause.contains("first line"), "{cause}");
}

#[test]
fn a_program_runs_as_a_user_and_in_a_directory() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let mut said = |program: &Program, live: bool| {
        let mut seen = Recorder::default();
        agent.run_live(program, &RunOptions { live, ..RunOptions::default() }, &mut seen).unwrap();
        assert!(seen.stderr.is_empty(), "{}", String::from_utf8_lossy(&seen.stderr));
        String::from_utf8(seen.stdout).unwrap()
    };
    // Who is not root can become nobody else.
    let is_root = rustix::process::geteuid().is_root();
    let name = if is_root { "nobody".to_owned() } else { rustix::process::geteuid().as_raw().to_string() };
    let database = std::process::Command::new("getent").args(["passwd", &name]).output().unwrap();
    let database = String::from_utf8(database.stdout).unwrap();
    let fields: Vec<&str> = database.trim().split(':').collect();
    let account = Some(Account { name, kept_variables: vec!["LOGNAME".to_owned()], login: false });
    let script = "id -u; id -ru; id -g; echo $USER $HOME $SHELL; pwd; echo \"$1\"";
    let arguments = ["-c", script, "sh", "a 'b'  c"].map(str::to_owned).into();
    let program =
        Program { path: "sh".into(), arguments, account, directory: Some("/usr".to_owned()), ..Program::default() };
    let [name, _, user, group, _, home, login_shell] = fields[..] else { panic!("{database:?}") };
    let wanted = format!("{user}\n{user}\n{group}\n{name} {home} {login_shell}\n/usr\na 'b'  c\n");
    assert_eq!(said(&program, true), wanted);
    assert_eq!(said(&program, false), wanted);
}

/// Tells the window's size, another one when there has been output.
struct Window {
    seen: Vec<u8>,
}

impl Console for Window {
    fn output(&mut self, _: OutputStream, bytes: &[u8]) -> std::io::Result<()> {
        self.seen.extend(bytes);
        Ok(())
    }

    fn input(&mut self) -> std::io::Result<Input> {
        Ok(Input::NotYet)
    }

    fn window(&mut self) -> Option<(u16, u16)> {
        Some(if self.seen.is_empty() { (31, 97) } else { (41, 113) })
    }
}

#[test]
fn a_program_has_a_terminal_whose_size_follows() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    // It ends only when the size has followed.
    let script = "test -t 0 && test -t 2; echo $? $TERM; stty size; until [ \"$(stty size)\" = '41 113' ]; do sleep 0.05; done; exit 9";
    let terminal = Some(Terminal { rows: 31, columns: 97, kind: "vt100".to_owned() });
    let mut console = Window { seen: Vec::new() };
    let options = RunOptions { interactive_input: true, ..RunOptions::default() };
    let ended = agent.run_live(&Program { terminal, ..shell(script) }, &options, &mut console).unwrap();
    assert_eq!((ended.exit, ended.not_started), (Exit::Code(9), None));
    assert!(console.seen.starts_with(b"0 vt100\r\n31 97\r\n"), "{}", String::from_utf8_lossy(&console.seen));
}

/// A way that takes its time before it opens a file, as one does that starts a process for each request; not for the
/// first `quick` of them. With a `sign` it waits for that file instead.
#[derive(Debug)]
struct Slow<T> {
    transport: T,
    quick: usize,
    sign: Option<PathBuf>,
}

impl<T: Transport> Transport for Slow<T> {
    fn sync(&mut self) -> Result<(), Error> {
        self.transport.sync()
    }

    fn start(&mut self, command: &str, arguments: Option<Arguments<'_>>) -> Result<Ticket, Error> {
        if command == "guest-file-open" {
            match (self.quick.checked_sub(1), &self.sign) {
                (Some(left), _) => self.quick = left,
                (None, None) => std::thread::sleep(Duration::from_millis(400)),
                (None, Some(sign)) => {
                    while !sign.exists() {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
            }
        }
        self.transport.start(command, arguments)
    }

    fn receive(&mut self, command: &str, ticket: Option<Ticket>) -> Result<&[u8], Error> {
        self.transport.receive(command, ticket)
    }

    fn set_silence(&mut self, silence: Duration) -> Result<(), Error> {
        self.transport.set_silence(silence)
    }

    fn capacity(&self) -> Capacity {
        self.transport.capacity()
    }
}

#[test]
fn a_slow_way_loses_nothing_of_a_short_program_with_input_or_a_terminal() {
    let Some(guest) = Guest::start() else { return };
    let before = leftovers();
    for quick in [0, 1, 2] {
        let transport = guest.target().connect(Timeouts::default()).unwrap();
        let mut agent = Agent::over(Slow { transport, quick, sign: None });
        agent.sync().unwrap();
        let options = RunOptions { interactive_input: true, ..RunOptions::default() };
        for (script, output) in [("echo out; echo wrong >&2; exit 3", "out\n"), ("cat; echo wrong >&2; exit 3", "in\n")]
        {
            let mut seen = Recorder { input: vec![b"in\n".to_vec()], ..Recorder::default() };
            let ended = agent.run_live(&shell(script), &options, &mut seen).unwrap();
            assert_eq!(ended.exit, Exit::Code(3), "{quick}, {script}");
            assert_eq!((seen.stdout.as_slice(), seen.stderr.as_slice()), (output.as_bytes(), b"wrong\n".as_slice()));
        }
        let terminal = Some(Terminal { rows: 24, columns: 80, kind: "vt100".to_owned() });
        let mut seen = Window { seen: Vec::new() };
        let program = Program { terminal, ..shell("echo out; exit 4") };
        let ended = agent.run_live(&program, &options, &mut seen).unwrap();
        assert_eq!((ended.exit, seen.seen.as_slice()), (Exit::Code(4), b"out\r\n".as_slice()), "{quick}");
    }
    gone(&before);
}
