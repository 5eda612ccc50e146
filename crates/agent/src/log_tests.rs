use super::*;
use std::os::unix::fs::PermissionsExt as _;

/// A logger into a file, and the file's lines without their times.
struct Fixture {
    directory: tempfile::TempDir,
    system_log: UnixDatagram,
    logger: Logger,
}

impl Fixture {
    fn new(verbose: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket_path = directory.path().join("syslog");
        let system_log = UnixDatagram::bind(&socket_path).unwrap();
        system_log.set_nonblocking(true).unwrap();
        // A test's logger lives as long as the test; the product's path is a constant.
        let logger = Logger::new(socket_path.to_str().unwrap().to_owned().leak());
        logger.open(Some(&directory.path().join("log")), verbose).unwrap();
        Self { directory, system_log, logger }
    }

    fn say(&self, target: &str, level: Level, text: fmt::Arguments<'_>) {
        self.logger.log(&Record::builder().target(target).level(level).args(text).build());
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.directory.path().join("log")).unwrap();
        text.lines().map(|line| line.split_once(": ").unwrap().1.to_owned()).collect()
    }

    fn system_log_lines(&self) -> Vec<String> {
        let mut buffer = [0; 8192];
        let mut lines = Vec::new();
        while let Ok(length) = self.system_log.recv(&mut buffer) {
            lines.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        lines
    }
}

#[test]
fn a_line_is_time_level_and_text() {
    let line = Line {
        since_epoch: Duration::new(1_795_263_272, 149_471_999),
        level: "critical",
        text: "x".into(),
        is_audit: false,
    };
    assert_eq!(line.for_log(), "1795263272.149471: critical: x\n");
    let line = Line { since_epoch: Duration::new(1, 7_000), ..line };
    assert_eq!(line.for_log(), "1.000007: critical: x\n");
}

#[test]
fn without_verbose_warnings_and_errors_are_shown() {
    for (verbose, shown) in [
        (false, &["critical: E", "warning: W"][..]),
        (true, &["critical: E", "warning: W", "info: I", "debug: D", "debug: T"]),
    ] {
        let fixture = Fixture::new(verbose);
        for (level, text) in
            [(Level::Error, "E"), (Level::Warn, "W"), (Level::Info, "I"), (Level::Debug, "D"), (Level::Trace, "T")]
        {
            fixture.say("qemu_ga", level, format_args!("{text}"));
        }
        assert_eq!(fixture.lines(), shown);
        assert!(fixture.system_log_lines().is_empty());
    }
}

#[test]
fn what_the_host_asked_for_goes_to_the_system_log_always() {
    let fixture = Fixture::new(false);
    fixture.say(AUDIT, Level::Info, format_args!("guest-ping called"));
    assert_eq!(fixture.system_log_lines(), ["<14>qemu-ga: info: guest-ping called"]);
    assert!(fixture.lines().is_empty());
    let verbose = Fixture::new(true);
    verbose.say(AUDIT, Level::Info, format_args!("guest-ping called"));
    assert_eq!(verbose.lines(), ["info: guest-ping called"]);
}

#[test]
fn a_system_log_that_is_absent_or_full_stops_nobody() {
    let fixture = Fixture::new(false);
    for number in 0..2000 {
        fixture.say(AUDIT, Level::Info, format_args!("{number}"));
    }
    let Fixture { directory: _directory, system_log, logger } = fixture;
    drop(system_log);
    logger.log(&Record::builder().target(AUDIT).level(Level::Info).args(format_args!("x")).build());
}

#[test]
fn a_text_cannot_begin_a_line_of_its_own() {
    let fixture = Fixture::new(false);
    fixture.say("x", Level::Warn, format_args!("a\nb\r\x1b[2J\u{7f}\u{85}\u{e9}"));
    fixture.say(AUDIT, Level::Info, format_args!("a\n<11>root: b"));
    assert_eq!(fixture.lines(), ["warning: a\\nb\\r\\u{1b}[2J\\u{7f}\\u{85}\u{e9}"]);
    assert_eq!(fixture.system_log_lines(), ["<14>qemu-ga: info: a\\n<11>root: b"]);
}

#[test]
fn a_long_text_is_cut_and_says_so() {
    let fixture = Fixture::new(false);
    fixture.say("x", Level::Warn, format_args!("{}{}", "\u{e9}".repeat(500_000), "x".repeat(7)));
    let line = &fixture.lines()[0];
    assert!(line.len() < MAX_LINE_BYTES - 32, "{}", line.len());
    let (kept, rest) = line.rsplit_once(" [and ").unwrap();
    let kept_bytes = kept.trim_start_matches("warning: ").len();
    assert_eq!(rest, format!("{} bytes more]", 1_000_007 - kept_bytes));
}

#[test]
fn what_is_said_while_frozen_is_written_after_the_thaw() {
    let fixture = Fixture::new(false);
    fixture.logger.hold(true);
    fixture.say("x", Level::Warn, format_args!("one"));
    fixture.say(AUDIT, Level::Info, format_args!("two"));
    fixture.logger.hold(true);
    assert!(fixture.lines().is_empty() && fixture.system_log_lines().is_empty());
    fixture.logger.hold(false);
    assert_eq!(fixture.lines(), ["warning: one"]);
    assert_eq!(fixture.system_log_lines(), ["<14>qemu-ga: info: two"]);
    fixture.say("x", Level::Warn, format_args!("three"));
    fixture.logger.hold(false);
    assert_eq!(fixture.lines(), ["warning: one", "warning: three"]);
}

#[test]
fn what_is_held_is_bounded_and_what_was_dropped_is_counted() {
    let many = Fixture::new(false);
    many.logger.hold(true);
    for number in 0..MAX_HELD_LINES + 5 {
        many.say("x", Level::Warn, format_args!("{number}"));
    }
    many.logger.hold(false);
    let lines = many.lines();
    assert_eq!(lines.len(), MAX_HELD_LINES + 1);
    assert_eq!(lines[..2], ["warning: 5 older messages were dropped while file systems were frozen", "warning: 5"]);

    let large = Fixture::new(false);
    large.logger.hold(true);
    for _ in 0..100 {
        large.say("x", Level::Warn, format_args!("{}", "x".repeat(10_000)));
    }
    assert!(large.logger.state().held.as_ref().unwrap().bytes <= MAX_HELD_BYTES);
}

#[test]
fn a_rotated_file_is_left_and_a_new_one_begun() {
    let fixture = Fixture::new(false);
    fixture.say("x", Level::Warn, format_args!("old"));
    let path = fixture.directory.path().join("log");
    std::fs::rename(&path, fixture.directory.path().join("log.1")).unwrap();
    fixture.say("x", Level::Warn, format_args!("still old"));
    fixture.logger.reopen().unwrap();
    fixture.say("x", Level::Warn, format_args!("new"));
    assert_eq!(fixture.lines(), ["warning: new"]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let text = fixture.logger.reopen().unwrap_err().text;
    assert_eq!(text, format!("cannot open the log file '{}': Is a directory", path.display()));
}

#[test]
fn a_file_is_neither_created_nor_rotated_while_frozen() {
    let fixture = Fixture::new(false);
    let path = fixture.directory.path().join("log");
    fixture.logger.hold(true);
    std::fs::remove_file(&path).unwrap();
    fixture.logger.reopen().unwrap();
    fixture.logger.open(Some(&path), false).unwrap();
    fixture.say("x", Level::Warn, format_args!("held"));
    assert!(!path.exists());
    fixture.logger.hold(false);
    assert_eq!(fixture.lines(), ["warning: held"]);
}

#[test]
fn lines_that_cannot_be_written_are_counted() {
    let fixture = Fixture::new(false);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    fixture.logger.state().destination = Destination::File { path: PathBuf::new(), file: Some(writer) };
    for _ in 0..100 {
        fixture.say("x", Level::Warn, format_args!("{}", "x".repeat(3000)));
    }
    let lost = fixture.logger.state().lost;
    assert!(lost > 0);
    let mut buffer = vec![0; 1 << 20];
    rustix::io::read(&reader, &mut buffer).unwrap();
    fixture.say("x", Level::Warn, format_args!("again"));
    let length = rustix::io::read(&reader, &mut buffer).unwrap();
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    assert!(
        text.contains(&format!(": warning: {lost} messages were lost because the log could not be written\n")),
        "{text}"
    );
    assert!(text.ends_with(": warning: again\n"), "{text}");
}

#[test]
fn a_log_that_cannot_be_opened_is_named() {
    let failure = Logger::new("/nonexistent").open(Some(Path::new("/nonexistent/log")), false).unwrap_err();
    assert_eq!(failure.text, "cannot open the log file '/nonexistent/log': No such file or directory");
}
