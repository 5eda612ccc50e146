use super::*;
use std::os::unix::fs::PermissionsExt as _;

/// A hang is a failure.
const LONG: Duration = Duration::from_secs(60);

/// A logger into a file, and the file's lines without their times.
struct Fixture {
    directory: tempfile::TempDir,
    system_log: UnixDatagram,
    logger: &'static Logger,
}

impl Fixture {
    fn new(verbose: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket_path = directory.path().join("syslog");
        let system_log = UnixDatagram::bind(&socket_path).unwrap();
        system_log.set_nonblocking(true).unwrap();
        // A test's logger lives as long as the test; the product's path is a constant.
        let logger: &Logger = Box::leak(Box::new(Logger::new(socket_path.to_str().unwrap().to_owned().leak())));
        logger.open(Some(&directory.path().join("log")), verbose, LONG).unwrap();
        Self { directory, system_log, logger }
    }

    fn say(&self, target: &str, level: Level, text: fmt::Arguments<'_>) {
        Handle(self.logger).log(&Record::builder().target(target).level(level).args(text).build());
    }

    fn lines(&self) -> Vec<String> {
        assert!(self.logger.settles_within(LONG), "it is not written");
        let text = std::fs::read_to_string(self.directory.path().join("log")).unwrap();
        text.lines().map(|line| line.split_once(": ").unwrap().1.to_owned()).collect()
    }

    fn system_log_lines(&self) -> Vec<String> {
        assert!(self.logger.settles_within(LONG), "it is not written");
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
    Handle(logger).log(&Record::builder().target(AUDIT).level(Level::Info).args(format_args!("x")).build());
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
    for number in 0..MAX_WAITING_LINES + 5 {
        many.say("x", Level::Warn, format_args!("{number}"));
    }
    many.logger.hold(false);
    let lines = many.lines();
    assert_eq!(lines.len(), MAX_WAITING_LINES + 1);
    assert_eq!(lines[..2], ["warning: 5 older messages were dropped while file systems were frozen", "warning: 5"]);

    let large = Fixture::new(false);
    large.logger.hold(true);
    for _ in 0..100 {
        large.say("x", Level::Warn, format_args!("{}", "x".repeat(10_000)));
    }
    assert!(large.logger.queue().bytes <= MAX_WAITING_BYTES);
}

#[test]
fn a_rotated_file_is_left_and_a_new_one_begun() {
    let fixture = Fixture::new(false);
    fixture.say("x", Level::Warn, format_args!("old"));
    let path = fixture.directory.path().join("log");
    std::fs::rename(&path, fixture.directory.path().join("log.1")).unwrap();
    fixture.say("x", Level::Warn, format_args!("still old"));
    fixture.logger.reopen();
    fixture.say("x", Level::Warn, format_args!("new"));
    assert_eq!(fixture.lines(), ["warning: new"]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let rotated = fixture.directory.path().join("log.2");
    std::fs::rename(&path, &rotated).unwrap();
    std::fs::create_dir(&path).unwrap();
    fixture.logger.reopen();
    assert!(fixture.logger.settles_within(LONG));
    let text = std::fs::read_to_string(rotated).unwrap();
    let expected = format!(
        ": warning: cannot open the log file '{}': Is a directory; the log goes on into the file that was open\n",
        path.display()
    );
    assert!(text.ends_with(&expected), "{text}");
}

#[test]
fn a_file_is_neither_created_nor_rotated_while_frozen() {
    let fixture = Fixture::new(false);
    let path = fixture.directory.path().join("log");
    fixture.logger.hold(true);
    std::fs::remove_file(&path).unwrap();
    fixture.logger.reopen();
    fixture.logger.open(Some(&path), false, LONG).unwrap();
    fixture.say("x", Level::Warn, format_args!("held"));
    assert!(!path.exists());
    fixture.logger.hold(false);
    assert_eq!(fixture.lines(), ["warning: held"]);
}

#[test]
fn lines_that_cannot_be_written_are_counted() {
    let fixture = Fixture::new(false);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    *fixture.logger.destination() = Destination::File { path: PathBuf::new(), file: Some(writer) };
    for _ in 0..100 {
        fixture.say("x", Level::Warn, format_args!("{}", "x".repeat(3000)));
    }
    assert!(fixture.logger.settles_within(LONG));
    let lost = fixture.logger.queue().missing.otherwise;
    assert!(lost > 0);
    let mut buffer = vec![0; 1 << 20];
    rustix::io::read(&reader, &mut buffer).unwrap();
    fixture.say("x", Level::Warn, format_args!("again"));
    assert!(fixture.logger.settles_within(LONG));
    let length = rustix::io::read(&reader, &mut buffer).unwrap();
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    assert!(
        text.contains(&format!(": warning: {lost} messages were lost because the log could not be written\n")),
        "{text}"
    );
    assert!(text.ends_with(": warning: again\n"), "{text}");
}

#[test]
fn a_writer_that_hangs_holds_nobody_up_and_what_was_lost_is_told_in_the_end() {
    let fixture = Fixture::new(true);
    // As a write to a disk that hangs keeps it.
    let hung = fixture.logger.destination();
    for number in 0..2 * MAX_WAITING_LINES {
        fixture.say("x", Level::Warn, format_args!("{number}"));
    }
    fixture.say(AUDIT, Level::Info, format_args!("asked"));
    assert!(!fixture.logger.settles_within(Duration::ZERO));
    let mut buffer = [0; 100];
    let length = fixture.system_log.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"<14>qemu-ga: info: asked", "the system's log waits for the file");
    fixture.logger.reopen();
    fixture.logger.hold(true);
    fixture.say("x", Level::Warn, format_args!("frozen"));
    fixture.logger.hold(false);
    drop(hung);
    let lines = fixture.lines();
    assert_eq!(lines.last().unwrap(), "warning: frozen");
    let numbers = lines.iter().filter(|line| line["warning: ".len()..].parse::<usize>().is_ok()).count();
    let lost =
        lines.iter().find_map(|line| line.strip_suffix(" messages were lost because the log could not be written"));
    let lost: usize = lost.unwrap().strip_prefix("warning: ").unwrap().parse().unwrap();
    let dropped = lines.iter().filter(|line| line.ends_with("dropped while file systems were frozen")).count();
    assert_eq!(numbers + lost + dropped, 2 * MAX_WAITING_LINES, "{lines:?}");
}

#[test]
fn a_burst_costs_no_line_where_the_disk_takes_them() {
    let fixture = Fixture::new(true);
    for number in 0..5 * MAX_WAITING_LINES {
        fixture.say("x", Level::Debug, format_args!("{number}"));
    }
    let lines = fixture.lines();
    // A disk that is too slow for it is told of.
    let told = lines.iter().any(|line| line.ends_with("messages were lost because the log could not be written"));
    assert!(lines.len() == 5 * MAX_WAITING_LINES || told, "{} lines", lines.len());
}

#[test]
fn a_file_that_does_not_open_in_time_is_left_for_later() {
    let fixture = Fixture::new(false);
    let hung = fixture.logger.destination();
    let path = fixture.directory.path().join("log");
    std::fs::remove_file(&path).unwrap();
    fixture.logger.open(Some(&path), false, Duration::ZERO).unwrap();
    fixture.say("x", Level::Warn, format_args!("early"));
    drop(hung);
    assert_eq!(fixture.lines(), ["warning: early"]);
}

#[test]
fn a_log_that_cannot_be_opened_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("missing/log");
    let logger: &Logger = Box::leak(Box::new(Logger::new("/nonexistent")));
    let failure = logger.open(Some(&path), false, LONG).unwrap_err();
    assert_eq!(failure.text, format!("cannot open the log file '{}': No such file or directory", path.display()));
}
