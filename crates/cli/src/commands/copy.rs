//! `qga cp`: files and directories between host and guest.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use qga_client::{AnyAgent, CopyOptions, FileKind, Target, TreeReport};
use serde::Serialize;

use crate::arguments::Copy;
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::interrupts::Interrupts;
use crate::output::text::printable;
use crate::output::{Page, Show, units};
use crate::progress::Progress;
use crate::target::{Selection, short_names};
use crate::visit::Visit;

/// What is copied, the same for every target.
pub struct Job {
    sources: Sources,
    /// Everything is kept, which needs other ways.
    is_archive: bool,
    options: CopyOptions,
    /// The directories that the targets' files go to; empty for a single target.
    places: Vec<(Target, String)>,
}

/// The two sides of a copy.
pub enum Sources {
    ToGuest { host: Vec<PathBuf>, guest: String },
    FromGuest { guest: Vec<String>, host: PathBuf },
}

/// What is on which side.
pub fn sides(options: &Copy) -> Result<Sources> {
    let (last, sources) = options.paths.split_last().ok_or_else(|| Failure::usage("nothing to copy"))?;
    let guest_sources: Vec<String> = sources.iter().filter_map(|path| guest_path(path)).collect();
    match guest_path(last) {
        Some(_) if !guest_sources.is_empty() => {
            Err(Failure::usage("both sides are in the guest: copy there with exec -- cp"))
        }
        Some(guest) => Ok(Sources::ToGuest { host: sources.iter().map(PathBuf::from).collect(), guest }),
        None if guest_sources.len() == sources.len() => {
            Ok(Sources::FromGuest { guest: guest_sources, host: PathBuf::from(last) })
        }
        None => Err(no_guest(&options.paths)),
    }
}

/// What was copied.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    files: u64,
    directories: u64,
    links: u64,
    bytes: u64,
    /// Bytes that an earlier try had copied.
    resumed_bytes: u64,
    seconds: f64,
    /// Of a single file, where checksums were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    skipped: Vec<Skipped>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Skipped {
    path: String,
    why: String,
}

impl Show for Report {
    fn show(&self, page: &mut Page) -> Result<()> {
        self.note_skipped(page);
        let files = if self.files == 1 { "1 file".to_owned() } else { format!("{} files", self.files) };
        let rate = (self.bytes - self.resumed_bytes.min(self.bytes)) as f64 / self.seconds.max(0.001);
        let mut text = format!("{files}, {} in {:.1} s", units::bytes(self.bytes), self.seconds);
        if self.seconds >= 0.1 {
            text.push_str(&format!(" ({}/s)", units::bytes(rate as u64)));
        }
        if self.resumed_bytes > 0 {
            text.push_str(&format!(", {} of it by an earlier try", units::bytes(self.resumed_bytes)));
        }
        if let Some(sum) = &self.sha256 {
            text.push_str(&format!(", SHA-256 {sum}"));
        }
        // Silent in scripts, as cp is.
        if page.is_for_people() || !page.is_alone() { page.line(text) } else { Ok(()) }
    }
}

impl Job {
    pub fn new(options: &Copy, selection: &Selection) -> Result<Self> {
        let sources = sides(options)?;
        if selection.is_open && sources.uses_standard_streams() {
            return Err(Failure::usage("the standard streams are for one target, and there may be several"));
        }
        if options.archive && sources.uses_standard_streams() {
            return Err(Failure::usage(
                "a standard stream has nothing but its content, so there is nothing for -a to keep",
            ));
        }
        let copy_options =
            CopyOptions { resume: options.resume, verify: options.checksum, keep_mode: !options.no_mode };
        let places = if selection.is_open { directories(&selection.targets) } else { Vec::new() };
        Ok(Self { sources, is_archive: options.archive, options: copy_options, places })
    }

    pub fn run(&self, visit: &mut Visit<'_>) -> Result<()> {
        let started = std::time::Instant::now();
        let mut agent = visit.connect()?;
        let progress = Progress::new(!visit.page.is_json(), visit.page.prefix());
        // Not before: who waits for a connection may be ended by the first signal.
        let interrupts = Interrupts::watch()?;
        let mut copying = Copying { job: self, agent: &mut agent, interrupts, progress, report: Report::default() };
        match &self.sources {
            Sources::ToGuest { host, guest } => copying.upload(host, guest)?,
            Sources::FromGuest { guest, host } => {
                let host = self.place_of(visit, host)?;
                copying.download(guest, &host)?;
            }
        }
        let Copying { progress, mut report, .. } = copying;
        progress.finish();
        report.seconds = started.elapsed().as_secs_f64();
        Progress::aside(|| {
            if self.sources.is_to_output() {
                report.note_skipped(&visit.page);
                Ok(())
            } else {
                visit.page.report(&report)
            }
        })?;
        // What it was has been said.
        if report.skipped.is_empty() { Ok(()) } else { Err(Failure::Silent(Code::Failed.number())) }
    }

    /// Files of several guests go to a directory each.
    fn place_of(&self, visit: &Visit<'_>, host: &Path) -> Result<PathBuf> {
        let Some((_, name)) = self.places.iter().find(|(of, _)| of == visit.target) else { return Ok(host.to_owned()) };
        let place = host.join(name);
        std::fs::create_dir_all(&place)
            .map_err(|error| Failure::host(&format!("make the directory {}", place.display()), &error))?;
        Ok(place)
    }
}

struct Copying<'a> {
    job: &'a Job,
    agent: &'a mut AnyAgent,
    interrupts: Interrupts,
    progress: Progress,
    report: Report,
}

impl Copying<'_> {
    fn upload(&mut self, sources: &[PathBuf], guest: &str) -> Result<()> {
        let is_directory = self.is_directory(guest);
        if sources.len() > 1 && !is_directory {
            return Err(Failure::usage(format!(
                "{guest} is no directory of the guest, and there is more to copy than one thing"
            )));
        }
        for source in sources {
            if is_standard_stream(source) {
                if is_directory {
                    return Err(Failure::told(
                        Code::Usage,
                        format!("{guest} is a directory, and standard input has no name"),
                        "Say the name of the file: qga cp - :/srv/backup.tar",
                    ));
                }
                let (interrupts, progress) = (&self.interrupts, &mut self.progress);
                let mut hear = |heard: qga_client::Progress<'_>| hear(interrupts, progress, heard);
                let input = duplicate(&io::stdin()).map_err(|error| Failure::host("read standard input", &error))?;
                let copied = self.agent.upload_from(input, guest, self.job.options, &mut hear)?;
                self.report.add_file(copied);
                continue;
            }
            let place = match source.file_name() {
                Some(name) if is_directory => {
                    let name = name.to_str().ok_or_else(|| no_text(source))?;
                    format!("{}/{name}", guest.trim_end_matches('/'))
                }
                _ => guest.to_owned(),
            };
            let (interrupts, progress) = (&self.interrupts, &mut self.progress);
            let mut hear = |heard: qga_client::Progress<'_>| hear(interrupts, progress, heard);
            if self.job.is_archive {
                let tree = self.agent.upload_archive(source, &place, &mut hear)?;
                self.report.add_tree(tree);
            } else if source.is_dir() {
                let tree = self.agent.upload_tree(source, &place, self.job.options, &mut hear)?;
                self.report.add_tree(tree);
            } else {
                let copied = self.agent.upload(source, &place, self.job.options, &mut hear)?;
                self.report.add_file(copied);
            }
        }
        Ok(())
    }

    fn download(&mut self, sources: &[String], host: &Path) -> Result<()> {
        if is_standard_stream(host) {
            return self.download_to_output(sources);
        }
        let is_directory = host.is_dir() || ends_with_slash(host);
        if sources.len() > 1 && !host.is_dir() {
            return Err(Failure::usage(format!(
                "{} is no directory, and there is more to copy than one thing",
                host.display()
            )));
        }
        for source in sources {
            let trimmed = source.trim_end_matches('/');
            let name = trimmed.rsplit(['/', '\\']).next().filter(|name| !name.is_empty() && *name != "..");
            let place = match name {
                Some(name) if is_directory => host.join(name),
                _ => host.to_owned(),
            };
            let is_tree = !self.job.is_archive && self.is_directory(source);
            let (interrupts, progress) = (&self.interrupts, &mut self.progress);
            let mut hear = |heard: qga_client::Progress<'_>| hear(interrupts, progress, heard);
            if self.job.is_archive {
                let tree = self.agent.download_archive(source, &place, &mut hear)?;
                self.report.add_tree(tree);
            } else if is_tree {
                let tree = self.agent.download_tree(source, &place, self.job.options, &mut hear)?;
                self.report.add_tree(tree);
            } else {
                let copied = self.agent.download(source, &place, self.job.options, &mut hear)?;
                self.report.add_file(copied);
            }
        }
        Ok(())
    }

    fn download_to_output(&mut self, sources: &[String]) -> Result<()> {
        let output = duplicate(&io::stdout()).map_err(|error| Failure::host("write standard output", &error))?;
        for source in sources {
            let (interrupts, progress) = (&self.interrupts, &mut self.progress);
            let mut hear = |heard: qga_client::Progress<'_>| hear(interrupts, progress, heard);
            let copied = self.agent.download_into(source, &output, &mut hear)?;
            self.report.add_file(copied);
        }
        Ok(())
    }

    /// Whether a path is a directory of the guest; one that cannot be looked at is not, and the copy says why.
    fn is_directory(&mut self, path: &str) -> bool {
        path.ends_with('/') || self.agent.stat_file(path, true).is_ok_and(|file| file.kind == FileKind::Directory)
    }
}

impl Report {
    fn note_skipped(&self, page: &Page) {
        for skipped in &self.skipped {
            page.note(format!("left out {}: {}", printable(&skipped.path), printable(&skipped.why)));
        }
    }

    fn add_tree(&mut self, tree: TreeReport) {
        self.files += tree.files;
        self.directories += tree.directories;
        self.links += tree.links;
        self.bytes += tree.bytes;
        let skipped = tree.skipped.into_iter();
        self.skipped.extend(skipped.map(|(path, why)| Skipped { path: path.to_string_lossy().into_owned(), why }));
    }

    fn add_file(&mut self, copied: qga_client::Copied) {
        self.files += 1;
        self.bytes += copied.bytes;
        self.resumed_bytes += copied.resumed_at;
        self.sha256 = copied.sha256.filter(|_| self.files == 1);
    }
}

fn hear(interrupts: &Interrupts, progress: &mut Progress, heard: qga_client::Progress<'_>) -> ControlFlow<()> {
    progress.file(heard.path, heard.copied_bytes, heard.total_bytes);
    if interrupts.count() > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

impl Sources {
    fn is_to_output(&self) -> bool {
        matches!(self, Self::FromGuest { host, .. } if is_standard_stream(host))
    }

    fn uses_standard_streams(&self) -> bool {
        self.is_to_output()
            || matches!(self, Self::ToGuest { host, .. } if host.iter().any(|path| is_standard_stream(path)))
    }
}

/// `-`, as with cat and tar. A file of that name is `./-`.
fn is_standard_stream(path: &Path) -> bool {
    path == Path::new("-")
}

fn duplicate(stream: &impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}

/// Says why there is nothing to copy between, and how scp's way to name a machine is written here.
fn no_guest(paths: &[String]) -> Failure {
    let as_in_scp = |path: &&String| {
        let (machine, rest) = path.split_once(':')?;
        let is_machine = !machine.is_empty() && !machine.contains('/') && !Path::new(path).exists();
        is_machine.then(|| (machine.to_owned(), rest.to_owned()))
    };
    let advice = match paths.iter().find_map(|path| as_in_scp(&path)) {
        Some((machine, rest)) => {
            let written: Vec<String> = paths
                .iter()
                .map(|path| as_in_scp(&path).map_or_else(|| path.clone(), |(_, rest)| format!(":{rest}")))
                .collect();
            format!(
                "The guest is named with -t, and {rest:?} in it has a colon in front: qga -t {machine} cp {}",
                written.join(" ")
            )
        }
        None => "A path in the guest has a colon in front: qga cp notes.txt :/root/".to_owned(),
    };
    Failure::told(Code::Usage, "neither path is in the guest", advice)
}

/// A directory for each target: its short name, where that is one. No two are the same, and none leads elsewhere, whatever
/// the targets are called.
fn directories(targets: &[Target]) -> Vec<(Target, String)> {
    /// A name of a file has 255 bytes at most.
    const LONGEST: usize = 200;
    let mut taken = HashSet::new();
    let named = targets.iter().zip(short_names(targets)).enumerate().map(|(index, (target, name))| {
        let mut place = String::new();
        for character in name.chars() {
            match character {
                '/' | '%' => place.push_str(&format!("%{:02X}", u32::from(character))),
                control if control.is_control() => place.push_str(&format!("%{:02X}", u32::from(control))),
                other => place.push(other),
            }
        }
        if matches!(place.as_str(), "" | "." | "..") {
            place = place.replace('.', "%2E");
        }
        let end = (0..=LONGEST.min(place.len())).rev().find(|&end| place.is_char_boundary(end)).unwrap_or(0);
        let is_cut = end < place.len();
        place.truncate(end);
        // Names that are not UTF-8 may look the same. No name has this in it by itself.
        if is_cut || place.is_empty() || !taken.insert(place.clone()) {
            place.push_str(&format!("%#{index}"));
        }
        (target.clone(), place)
    });
    named.collect()
}

/// The path in the guest, if it is marked as one.
fn guest_path(path: &str) -> Option<String> {
    path.strip_prefix(':').filter(|path| !path.is_empty()).map(str::to_owned)
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

fn no_text(path: &Path) -> Failure {
    Failure::usage(format!("{} is not UTF-8, and the protocol carries text only", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(paths: &[&str]) -> Result<Job> {
        let options = Copy {
            archive: false,
            resume: false,
            checksum: false,
            no_mode: false,
            recursive: false,
            paths: paths.iter().map(ToString::to_string).collect(),
        };
        Job::new(&options, &Selection { targets: Vec::new(), is_open: false })
    }

    #[test]
    fn the_colon_says_which_side_is_the_guest() {
        assert!(
            matches!(job(&["a", "b", ":/tmp/"]).unwrap().sources, Sources::ToGuest { host, guest } if host.len() == 2 && guest == "/tmp/")
        );
        assert!(matches!(job(&[":/a", "b"]).unwrap().sources, Sources::FromGuest { guest, .. } if guest == ["/a"]));
        let advice = |paths: &[&str]| job(paths).err().map(|failure| failure.advice().to_owned()).unwrap_or_default();
        assert!(advice(&["web:/x", "."]).contains("qga -t web cp :/x ."), "{}", advice(&["web:/x", "."]));
        assert!(advice(&["a", "web:"]).contains("qga -t web cp a :"), "{}", advice(&["a", "web:"]));
        for wrong in [&["a", "b"][..], &[":/a", ":/b"], &[":/a", "b", "c"]] {
            assert_eq!(job(wrong).err().map(|failure| failure.exit_code()), Some(64), "{wrong:?}");
        }
    }

    #[test]
    fn every_target_has_a_directory_of_its_own_inside() {
        let names = |targets: &[&str]| -> Vec<String> {
            let targets: Vec<Target> = targets.iter().map(|path| Target::Unix(PathBuf::from(path))).collect();
            directories(&targets).into_iter().map(|(_, name)| name).collect()
        };
        assert_eq!(names(&["k/a.sock", "k/b.sock"]), ["a", "b"]);
        let longest = "x".repeat(250);
        for targets in [
            &["k/a/x.sock", "k/a_x.sock", "k/x.sock"][..],
            &["...sock", "..sock", "./a.sock"],
            &["a/b.sock", "a%2Fb.sock", "b.sock"],
            &["/../..", "/..", "a\nb", "a\rb"],
            &[&format!("{longest}1"), &format!("{longest}2")],
        ] {
            let names = names(targets);
            assert_eq!(names.iter().collect::<HashSet<_>>().len(), targets.len(), "{names:?}");
            for name in &names {
                let is_one = Path::new(name).components().eq([std::path::Component::Normal(name.as_ref())]);
                assert!(is_one && name.len() < 256 && !name.chars().any(char::is_control), "{name:?}");
            }
        }
    }
}
