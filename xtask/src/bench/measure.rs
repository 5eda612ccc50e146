//! The measurements of single commands. Each starts fresh agents and lets them take turns.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use qga_client::{Connection, Program};

use super::process::{cpu_time, holdings};
use super::table::{Row, Target, Unit, median};
use super::{Effort, Programs};
use crate::launch::Agent;

/// An agent under measurement, with its one connection.
pub struct Subject {
    pub agent: Agent,
    pub connection: Connection<UnixStream>,
}

impl Subject {
    pub fn start(program: &Path) -> Result<Self> {
        let mut agent = Agent::spawn(program, &[])?;
        let connection = agent.wait_for_first_answer(Duration::from_micros(500))?;
        Ok(Self { agent, connection })
    }

    /// Sends a line and checks that the answer is a success; nothing is parsed, so that the client stays cheap.
    pub fn ask(&mut self, line: &[u8]) -> Result<usize> {
        self.connection.send_line("a request", line)?;
        let reply = self.connection.receive_line("a request")?;
        if !reply.starts_with(b"{\"return\":") {
            bail!("the agent answered {}", String::from_utf8_lossy(&reply[..reply.len().min(300)]));
        }
        Ok(reply.len())
    }
}

/// What one round took.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub wall: f64,
    pub cpu: f64,
}

/// The medians of both agents' rounds.
pub struct Medians {
    pub original: Sample,
    pub ours: Sample,
}

/// Lets both take turns; who begins changes from round to round. `units` divides the times: calls, bytes.
pub fn take_turns<T>(
    rounds: u32,
    units: f64,
    subjects: &mut [T; 2],
    mut round: impl FnMut(&mut T) -> Result<Sample>,
) -> Result<Medians> {
    let mut samples = [Vec::new(), Vec::new()];
    // The first round warms both up and does not count.
    for number in 0..=rounds {
        let order = if number % 2 == 0 { [0, 1] } else { [1, 0] };
        for index in order {
            let sample = round(&mut subjects[index])?;
            if number > 0 {
                samples[index].push(sample);
            }
        }
    }
    let [original, ours] = samples.map(|samples| {
        let middle = |value: fn(&Sample) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(value).collect();
            median(&mut values).unwrap_or(f64::NAN) / units
        };
        Sample { wall: middle(|sample| sample.wall), cpu: middle(|sample| sample.cpu) }
    });
    Ok(Medians { original, ours })
}

/// A fresh agent of each.
pub fn both(programs: &Programs) -> Result<[Subject; 2]> {
    Ok([Subject::start(&programs.original)?, Subject::start(&programs.ours)?])
}

/// Wall and processor time of what `work` makes the agent do.
pub fn timed(subject: &mut Subject, work: impl FnOnce(&mut Subject) -> Result<()>) -> Result<Sample> {
    let cpu_before = cpu_time(subject.agent.pid())?;
    let started = Instant::now();
    work(subject)?;
    let wall = started.elapsed();
    let cpu = cpu_time(subject.agent.pid())?.saturating_sub(cpu_before);
    Ok(Sample { wall: wall.as_secs_f64(), cpu: cpu.as_secs_f64() })
}

/// A row of two numbers.
pub fn row(name: &str, unit: Unit, original: f64, ours: f64, target: Target) -> Row {
    Row { name: name.to_owned(), unit, original: Some(original), ours: Some(ours), target }
}

/// From the start of the process to its first answer.
pub fn start(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    let mut paths = [programs.original.as_path(), programs.ours.as_path()];
    let medians = take_turns(effort.rounds(40), 1.0, &mut paths, |program| {
        let mut agent = Agent::spawn(program, &[])?;
        agent.wait_for_first_answer(Duration::from_micros(20))?;
        Ok(Sample { wall: agent.age().as_secs_f64(), cpu: cpu_time(agent.pid())?.as_secs_f64() })
    })?;
    let Medians { original, ours } = medians;
    Ok(vec![
        row("start to first answer", Unit::Seconds, original.wall, ours.wall, Target::RatioAtMost(1.0)),
        row("start: processor time", Unit::Seconds, original.cpu, ours.cpu, Target::None),
    ])
}

/// After start and one answer, when everything has settled. Memory divided among those who share it is not told: it
/// depends on how many copies of either agent happen to run on the machine that measures.
pub fn idle_memory(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    let measure = |program: &Path| -> Result<f64> {
        let mut resident = Vec::new();
        for _ in 0..effort.rounds(5) {
            let subject = Subject::start(program)?;
            std::thread::sleep(Duration::from_millis(200));
            resident.push(holdings(subject.agent.pid())?.resident);
        }
        median(&mut resident).context("no round")
    };
    let (original, ours) = (measure(&programs.original)?, measure(&programs.ours)?);
    Ok(vec![row("memory at rest", Unit::Bytes, original, ours, Target::RatioAtMost(0.5))])
}

/// Small requests, one after the other.
pub fn calls(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    const CALLS: u32 = 500;
    let mut rows = Vec::new();
    for command in ["guest-ping", "guest-info"] {
        let request = format!("{{\"execute\":\"{command}\"}}");
        let medians = take_turns(effort.rounds(40), CALLS.into(), &mut both(programs)?, |subject| {
            timed(subject, |subject| {
                for _ in 0..CALLS {
                    subject.ask(request.as_bytes())?;
                }
                Ok(())
            })
        })?;
        let Medians { original, ours } = medians;
        let cpu_name = format!("{command}: processor time");
        rows.push(row(command, Unit::Seconds, original.wall, ours.wall, Target::RatioAtMost(1.0)));
        rows.push(row(&cpu_name, Unit::Seconds, original.cpu, ours.cpu, Target::RatioAtMost(0.8)));
    }
    Ok(rows)
}

/// Between two questions after a program. Clients pause too; without, the questions keep the program from running.
const QUESTION_PAUSE: Duration = Duration::from_micros(200);

/// Starting a program, and asking for its end.
pub fn programs_run(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    const RUNS: u32 = 25;
    let program = Program { path: "/bin/true".to_owned(), ..Program::default() };
    let mut started = [Vec::new(), Vec::new()];
    let [original, ours] = both(programs)?;
    let mut subjects = [(0, original), (1, ours)];
    let medians = take_turns(effort.rounds(40), RUNS.into(), &mut subjects, |(index, subject)| {
        timed(subject, |subject| {
            for _ in 0..RUNS {
                let before = Instant::now();
                let pid = subject.connection.start_program(&program)?;
                started[*index].push(before.elapsed().as_secs_f64());
                while subject.connection.program_output(pid)?.is_none() {
                    std::thread::sleep(QUESTION_PAUSE);
                }
            }
            Ok(())
        })
    })?;
    let Medians { original, ours } = medians;
    let [original_start, our_start] = started.map(|mut times| median(&mut times).unwrap_or(f64::NAN));
    Ok(vec![
        row("guest-exec", Unit::Seconds, original_start, our_start, Target::RatioAtMost(0.8)),
        row("guest-exec until exited", Unit::Seconds, original.wall, ours.wall, Target::RatioAtMost(0.8)),
        row("guest-exec: processor time", Unit::Seconds, original.cpu, ours.cpu, Target::None),
    ])
}

const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;

/// The most that the protocol reads at once.
const LARGEST_READ: usize = 48 * MIB;
/// The most that fits into the original's 64 MiB of text.
const LARGEST_WRITE: usize = 47 * MIB;

/// A subject with a file of the largest size open.
struct WithFile {
    subject: Subject,
    handle: i64,
}

impl WithFile {
    fn open(program: &Path, mode: &str) -> Result<Self> {
        let mut subject = Subject::start(program)?;
        let path = subject.agent.folder().join("data");
        std::fs::write(&path, noise(LARGEST_READ)).context("cannot write the file to read")?;
        let handle = subject.connection.open(&path.to_string_lossy(), mode)?;
        Ok(Self { subject, handle })
    }

    fn rewind(&mut self) -> Result<()> {
        let request = format!(
            "{{\"execute\":\"guest-file-seek\",\"arguments\":{{\"handle\":{},\"offset\":0,\"whence\":0}}}}",
            self.handle
        );
        self.subject.ask(request.as_bytes()).map(|_| ())
    }
}

/// Bytes that no file system and no codec treats specially.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Name, bytes at once, times a round, rounds.
type Size = (&'static str, usize, usize, u32);

fn transfer_rows(act: &str, size: &str, medians: &Medians, targets: [Target; 2]) -> Vec<Row> {
    let Medians { original, ours } = medians;
    let cpu_name = format!("{act} {size}: processor time");
    let (original_speed, our_speed) = (1.0 / original.wall, 1.0 / ours.wall);
    vec![
        row(&format!("{act} {size}"), Unit::BytesPerSecond, original_speed, our_speed, targets[0]),
        row(&cpu_name, Unit::SecondsPerGigabyte, original.cpu * 1e9, ours.cpu * 1e9, targets[1]),
    ]
}

/// Reading a file that is in the page cache.
pub fn reads(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    const SIZES: [Size; 3] = [("64 kB", 64 * KIB, 64, 20), ("1 MB", MIB, 16, 20), ("48 MB", LARGEST_READ, 1, 7)];
    let mut rows = Vec::new();
    let mut subjects = [WithFile::open(&programs.original, "r")?, WithFile::open(&programs.ours, "r")?];
    for (name, size, times, rounds) in SIZES {
        let medians = take_turns(effort.rounds(rounds), (size * times) as f64, &mut subjects, |with_file| {
            with_file.rewind()?;
            let handle = with_file.handle;
            let request =
                format!("{{\"execute\":\"guest-file-read\",\"arguments\":{{\"handle\":{handle},\"count\":{size}}}}}");
            timed(&mut with_file.subject, |subject| {
                for _ in 0..times {
                    let length = subject.ask(request.as_bytes())?;
                    ensure!(length > size.div_ceil(3) * 4, "a read of {size} bytes gave a reply of {length}");
                }
                Ok(())
            })
        })?;
        rows.extend(transfer_rows("read", name, &medians, [Target::None, Target::RatioAtMost(0.2)]));
    }
    Ok(rows)
}

/// Writing over a file.
pub fn writes(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    const SIZES: [Size; 3] = [("64 kB", 64 * KIB, 64, 20), ("1 MB", MIB, 16, 20), ("47 MB", LARGEST_WRITE, 1, 7)];
    let mut rows = Vec::new();
    let mut subjects = [WithFile::open(&programs.original, "r+")?, WithFile::open(&programs.ours, "r+")?];
    for (name, size, times, rounds) in SIZES {
        let content = base64_simd::STANDARD.encode_to_string(noise(size));
        let mut request = Vec::new();
        let medians = take_turns(effort.rounds(rounds), (size * times) as f64, &mut subjects, |with_file| {
            with_file.rewind()?;
            write_request(&mut request, with_file.handle, &content);
            timed(&mut with_file.subject, |subject| {
                for _ in 0..times {
                    subject.ask(&request)?;
                }
                Ok(())
            })
        })?;
        rows.extend(transfer_rows("write", name, &medians, [Target::RatioAtLeast(10.0), Target::None]));
    }
    Ok(rows)
}

fn write_request(request: &mut Vec<u8>, handle: i64, content: &str) {
    let head = format!("{{\"execute\":\"guest-file-write\",\"arguments\":{{\"handle\":{handle},\"buf-b64\":\"");
    request.clear();
    request.extend_from_slice(head.as_bytes());
    request.extend_from_slice(content.as_bytes());
    request.extend_from_slice(b"\"}}");
}

/// The most memory that the largest read and the largest write ever took, each in a fresh agent.
pub fn peak_memory(programs: &Programs) -> Result<Vec<Row>> {
    let content = base64_simd::STANDARD.encode_to_string(noise(LARGEST_WRITE));
    let mut peaks = [[0.0; 2]; 2];
    for (index, program) in [&programs.original, &programs.ours].into_iter().enumerate() {
        let mut reader = WithFile::open(program, "r")?;
        let handle = reader.handle;
        let request = format!(
            "{{\"execute\":\"guest-file-read\",\"arguments\":{{\"handle\":{handle},\"count\":{LARGEST_READ}}}}}"
        );
        reader.subject.ask(request.as_bytes())?;
        let mut writer = WithFile::open(program, "r+")?;
        let mut request = Vec::new();
        write_request(&mut request, writer.handle, &content);
        writer.subject.ask(&request)?;
        peaks[index] = [holdings(reader.subject.agent.pid())?.peak, holdings(writer.subject.agent.pid())?.peak];
    }
    let [original, ours] = peaks;
    Ok(vec![
        row("peak memory, read 48 MB", Unit::Bytes, original[0], ours[0], Target::RatioAtMost(0.08)),
        row("peak memory, write 47 MB", Unit::Bytes, original[1], ours[1], Target::None),
    ])
}
