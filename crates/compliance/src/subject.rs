//! Finds out which agent is to be tested, from the environment.
//!
//! | value of `AGENT_UNDER_TEST`, `AGENT_PEER` | agent |
//! |---|---|
//! | `qemu-ga` (default for `AGENT_UNDER_TEST`) | the original, from `PATH` or `/usr/sbin` |
//! | `ours` | `QGA_OURS`, else the newest `qemu-ga` in the target directory |
//! | an absolute path | that program |
//! | `socket:PATH` | an agent that runs already, behind this unix socket |
//!
//! Where the original and ours differ on purpose, the cases must know whom they ask: a program named `qemu-ga` without
//! a directory or with `/usr/sbin` is the original, everything else is ours. `AGENT_KIND` (`AGENT_PEER_KIND`) =
//! `original` | `ours` overrides that, and is needed with `socket:`.

use std::env;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Whose answers to expect where the two differ on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// QEMU's own agent.
    Original,
    /// The agent of this workspace.
    Ours,
}

/// How the agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// A program that each test starts for itself.
    Program(PathBuf),
    /// A unix socket behind which an agent runs already, perhaps in another machine.
    Socket(PathBuf),
}

/// An agent that can be tested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Whose answers to expect.
    pub kind: Kind,
    /// How it is reached.
    pub access: Access,
}

impl Subject {
    /// The agent named by `AGENT_UNDER_TEST`.
    ///
    /// # Panics
    /// When the variables name no agent that can be run: the text says what to do.
    #[must_use]
    pub fn under_test() -> Self {
        let name = env::var("AGENT_UNDER_TEST").unwrap_or_else(|_| "qemu-ga".to_owned());
        Self::named(&name, env::var("AGENT_KIND").ok().as_deref())
    }

    /// The agent named by `AGENT_PEER`, which must answer as the one under test does.
    #[must_use]
    pub fn peer() -> Option<Self> {
        let name = env::var("AGENT_PEER").ok().filter(|name| !name.is_empty())?;
        Some(Self::named(&name, env::var("AGENT_PEER_KIND").ok().as_deref()))
    }

    /// The program, or nothing for an agent that runs already.
    #[must_use]
    pub fn program(&self) -> Option<&Path> {
        match &self.access {
            Access::Program(path) => Some(path),
            Access::Socket(_) => None,
        }
    }

    fn named(name: &str, kind: Option<&str>) -> Self {
        let access = match name.strip_prefix("socket:") {
            Some(path) => Access::Socket(PathBuf::from(path)),
            None => Access::Program(program(name)),
        };
        let kind = match kind {
            Some("original") => Kind::Original,
            Some("ours") => Kind::Ours,
            Some(other) => panic!("the kind of an agent is `original` or `ours`, not `{other}`"),
            None if matches!(access, Access::Socket(_)) => {
                panic!("say with AGENT_KIND=original or AGENT_KIND=ours whose answers to expect from {name}")
            }
            None if name == "qemu-ga" || name.ends_with("/usr/sbin/qemu-ga") => Kind::Original,
            None => Kind::Ours,
        };
        Self { kind, access }
    }
}

fn program(name: &str) -> PathBuf {
    match name {
        "ours" => ours(),
        "qemu-ga" => original(),
        path if Path::new(path).is_absolute() => {
            assert!(Path::new(path).is_file(), "no agent to test: there is no file {path}");
            PathBuf::from(path)
        }
        other => panic!(
            "`{other}` names no agent: write `qemu-ga` (the original), `ours`, an absolute path, or `socket:PATH`"
        ),
    }
}

fn original() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join("qemu-ga"))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| {
            panic!(
                "no original agent to test: `qemu-ga` is neither in PATH nor in /usr/sbin. Install the package \
                 qemu-guest-agent, or test ours with AGENT_UNDER_TEST=ours"
            )
        })
}

fn ours() -> PathBuf {
    if let Some(path) = env::var_os("QGA_OURS") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "no agent to test: QGA_OURS={} is no file", path.display());
        return path;
    }
    // A test runs as TARGET/PROFILE/deps/NAME-HASH; a stale build of the other profile must not win.
    let own_path = env::current_exe().unwrap_or_default();
    let own_target = own_path.ancestors().nth(3).map(Path::to_path_buf);
    let workspace_target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    own_target
        .into_iter()
        .chain([workspace_target])
        .flat_map(|target| [target.join("release/qemu-ga"), target.join("debug/qemu-ga")])
        .filter_map(|candidate| Some((modified(&candidate)?, candidate)))
        .max()
        .map_or_else(
            || {
                panic!(
                    "our agent is not built: run `cargo build --release -p qga-agent`, or name a binary with \
                     QGA_OURS=/path/to/qemu-ga"
                )
            },
            |(_, path)| path,
        )
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok()
}
