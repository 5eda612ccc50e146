//! What the protocol cannot say of the guest's files (size, kind, mode, names in a directory), asked of the guest's own
//! programs. They are those that every POSIX guest has, be it a small one.

use std::fmt;
use std::time::Duration;

use qga_protocol::Command;
use qga_protocol::exec::Exec;

use crate::agent::Agent;
use crate::copy::{local, stopped};
use crate::error::Error;
use crate::program::{Exit, Output, Program, Waited};
use crate::transport::Transport;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A socket.
    Socket,
    /// A FIFO.
    Fifo,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// Something that this library does not know.
    Other,
}

/// A file of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// Its path, as bytes: it need not be text.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: FileKind,
    /// Bytes; 0 for what has none, as files of `/proc`.
    pub size: u64,
    /// Permission bits, the upper three included.
    pub mode: u32,
    /// Name or number of the owner.
    pub owner: String,
    /// Name or number of the group.
    pub group: String,
    /// When it was written last, in seconds since 1970.
    pub modified_seconds: i64,
    /// How many names it has.
    pub links: u64,
    /// Bytes that it takes on its disk; less than its size where it has holes.
    pub allocated_bytes: u64,
    /// Inode and times as the guest writes them: differs when the file was changed in between.
    pub stamp: String,
}

impl GuestFile {
    /// The path, if it is text: the protocol carries no other.
    pub fn path_text(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.path).map_err(|_| Error::Guest {
            act: format!("name {} to the agent", String::from_utf8_lossy(&self.path)),
            cause: "the name is not UTF-8, and the protocol carries text only".to_owned(),
        })
    }
}

impl fmt::Display for GuestFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.path))
    }
}

/// Fields of `stat`; owner and group have lines of their own, because there are names with blanks (`domain users`). A
/// path cannot hold what begins a record, two slashes, unless it was given with them; so any name can be told from the
/// next record.
const RECORD: &str = "//%f %s %Y %h %b %B %i,%y,%z\n%U\n%G\n%n";

impl<T: Transport> Agent<T> {
    /// Looks at one file; a link is followed if asked for.
    pub fn stat_file(&mut self, path: &str, follow: bool) -> Result<GuestFile, Error> {
        let path = single_slashes(path);
        let mut arguments = vec!["-c", RECORD, "--", &path];
        if follow {
            arguments.insert(0, "-L");
        }
        let output = self.run_tool("stat", &arguments, &format!("look at {path} in the guest"))?;
        parse(&output)?.into_iter().next().ok_or_else(|| no_sense(&output))
    }

    /// The files in a directory, unsorted, or all files below it, in an order in which a directory stands before what is
    /// in it. The directory itself is left out.
    pub fn list_directory(&mut self, path: &str, with_all_below: bool) -> Result<Vec<GuestFile>, Error> {
        self.list_while(path, with_all_below, &mut || true)
    }

    /// As [`list_directory`](Self::list_directory), and asks now and then whether to go on.
    pub(crate) fn list_while(
        &mut self,
        path: &str,
        with_all_below: bool,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<GuestFile>, Error> {
        let path = single_slashes(path);
        // A link to a directory is entered, a link inside is not.
        let inside = if path.ends_with('/') { path.clone() } else { format!("{path}/") };
        let mut arguments = vec![inside.as_str(), "-mindepth", "1"];
        if !with_all_below {
            arguments.extend(["-maxdepth", "1"]);
        }
        arguments.extend(["-exec", "stat", "-c", RECORD, "--", "{}", "+"]);
        let patience = if with_all_below { self.patience().tree } else { self.patience().program };
        let output = self.run_tool_within(patience, "find", &arguments, &format!("list {path} in the guest"), go_on)?;
        parse(&output)
    }

    /// Where a symbolic link leads.
    pub fn read_link(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        let mut target = self.run_tool("readlink", &["--", path], &format!("read the link {path} in the guest"))?;
        if target.last() == Some(&b'\n') {
            target.pop();
        }
        Ok(target)
    }

    /// Removes a file; that there is none is no error.
    pub fn remove_file(&mut self, path: &str) -> Result<(), Error> {
        self.run_tool("rm", &["-f", "--", path], &format!("remove {path} in the guest")).map(|_| ())
    }

    /// The output of a program that must succeed. `act` names in an error what it was for.
    pub(crate) fn run_tool(&mut self, program: &str, arguments: &[&str], act: &str) -> Result<Vec<u8>, Error> {
        self.run_tool_within(self.patience().program, program, arguments, act, &mut || true)
    }

    fn run_tool_within(
        &mut self,
        patience: Duration,
        program: &str,
        arguments: &[&str],
        act: &str,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<u8>, Error> {
        let output = match self.run_while(&Program::captured(program, arguments, None), patience, go_on)? {
            Waited::Ended(output) => output,
            Waited::TooLong => {
                let cause = format!("{program} has not ended in {} s", patience.as_secs_f64());
                return Err(Error::Guest { act: act.to_owned(), cause });
            }
            Waited::Unwanted => return Err(local(act, stopped())),
        };
        check(act, &output)?;
        if output.stdout_truncated {
            let cause = format!("{program} says more than the agent keeps");
            return Err(Error::Guest { act: act.to_owned(), cause });
        }
        Ok(output.stdout)
    }

    /// As [`run_tool`](Self::run_tool), for a script of `/bin/sh`. `None` if the guest has no shell.
    pub(crate) fn run_script(&mut self, script: &str, arguments: &[&str], act: &str) -> Result<Option<Vec<u8>>, Error> {
        self.run_script_within(self.patience().program, script, arguments, act)
    }

    /// As [`run_script`](Self::run_script), for one that takes another time.
    pub(crate) fn run_script_within(
        &mut self,
        patience: Duration,
        script: &str,
        arguments: &[&str],
        act: &str,
    ) -> Result<Option<Vec<u8>>, Error> {
        self.run_script_while(patience, script, arguments, act, &mut || true)
    }

    /// As [`run_script_within`](Self::run_script_within), and asks now and then whether to go on. If not, the script is
    /// ended, and the error is one of [`stopped`].
    pub(crate) fn run_script_while(
        &mut self,
        patience: Duration,
        script: &str,
        arguments: &[&str],
        act: &str,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut all = vec!["-c", script, "qga"];
        all.extend(arguments);
        match self.run_tool_within(patience, "/bin/sh", &all, act, go_on) {
            Ok(output) => Ok(Some(output)),
            Err(Error::Agent { command, error })
                if command == Exec::INFO.name
                    && !error.class.starts_with("Command")
                    && error.desc.contains("/bin/sh") =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

pub(crate) fn check(act: &str, output: &Output) -> Result<(), Error> {
    if output.exit.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let cause = match (said.trim(), output.exit) {
        ("", Exit::Code(code)) => format!("exit code {code}"),
        ("", exit) => exit.to_string(),
        (said, _) => said.to_owned(),
    };
    Err(Error::Guest { act: act.to_owned(), cause })
}

fn no_sense(output: &[u8]) -> Error {
    let cause =
        format!("its output is not understood: {:?}", String::from_utf8_lossy(&output[..output.len().min(200)]));
    Error::Guest { act: "use stat in the guest".to_owned(), cause }
}

fn single_slashes(path: &str) -> String {
    let mut single = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !single.ends_with('/') {
            single.push(character);
        }
    }
    single
}

/// The records of `stat`. A file that was passed over would be missing in a copy, so what is no record is an error.
fn parse(output: &[u8]) -> Result<Vec<GuestFile>, Error> {
    let mut starts: Vec<usize> = memchr::memmem::find_iter(output, b"\n//").map(|at| at + 1).collect();
    if output.starts_with(b"//") {
        starts.insert(0, 0);
    } else if !output.is_empty() {
        return Err(no_sense(output));
    }
    let ends = starts.iter().skip(1).copied().chain([output.len()]);
    let records = starts.iter().zip(ends).map(|(&start, end)| &output[start + 2..end]);
    records.map(|record| parse_record(record).ok_or_else(|| no_sense(record))).collect()
}

fn parse_record(record: &[u8]) -> Option<GuestFile> {
    let mut lines = record.splitn(4, |&byte| byte == b'\n');
    let mut fields = std::str::from_utf8(lines.next()?).ok()?.splitn(7, ' ');
    let owner = String::from_utf8_lossy(lines.next()?).into_owned();
    let group = String::from_utf8_lossy(lines.next()?).into_owned();
    let path = lines.next()?;
    let path = path.strip_suffix(b"\n").unwrap_or(path);
    let mode = u32::from_str_radix(fields.next()?, 16).ok()?;
    Some(GuestFile {
        path: path.to_vec(),
        kind: match mode >> 12 {
            0o10 => FileKind::File,
            0o04 => FileKind::Directory,
            0o12 => FileKind::Link,
            0o14 => FileKind::Socket,
            0o01 => FileKind::Fifo,
            0o02 => FileKind::CharacterDevice,
            0o06 => FileKind::BlockDevice,
            _ => FileKind::Other,
        },
        mode: mode & 0o7777,
        size: fields.next()?.parse().ok()?,
        owner,
        group,
        modified_seconds: fields.next()?.parse().ok()?,
        links: fields.next()?.parse().ok()?,
        allocated_bytes: {
            let (blocks, block_bytes): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            blocks.saturating_mul(block_bytes)
        },
        stamp: fields.next()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_line_ends_stays_whole() {
        let output = b"//81a4 5 17 2 8 512 9,x y,z\nroot\ndomain users\n/a/b\nc\n//a1ff 0 -3 1 0 512 9,a\n0\n0\n/a/\n";
        let files = parse(output).unwrap();
        assert_eq!(files.len(), 2, "{files:?}");
        assert_eq!(files[0].path, b"/a/b\nc");
        assert_eq!((files[0].kind, files[0].size, files[0].mode), (FileKind::File, 5, 0o644));
        assert_eq!((files[0].stamp.as_str(), files[0].links), ("9,x y,z", 2));
        assert_eq!((files[0].owner.as_str(), files[0].group.as_str()), ("root", "domain users"));
        assert_eq!(files[0].allocated_bytes, 4096);
        assert_eq!((files[1].kind, files[1].modified_seconds), (FileKind::Link, -3));
    }

    #[test]
    fn a_record_that_makes_no_sense_is_no_missing_file() {
        assert_eq!(parse(b"").unwrap(), []);
        parse(b"//81a4 5 17 1 8 512 9\nroot\nroot\n/a\n//x\nroot\nroot\n/b\n").unwrap_err();
        parse(b"stat: usage\n//81a4 5 17 1 8 512 9\nroot\nroot\n/a\n").unwrap_err();
    }

    #[test]
    fn a_path_has_single_slashes() {
        assert_eq!(single_slashes("//a///b/"), "/a/b/");
    }
}
