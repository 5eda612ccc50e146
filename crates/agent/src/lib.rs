//! The guest agent: what is done when a host asks. The binary `qemu-ga` is [`main`] and nothing else.
//!
//! This file starts it: options, log, state, channel, in this order; then one thread supervises signals and
//! programs while others serve the host. ARCHITECTURE.md has the map.
//!
//! It is a library only so that tests and fuzzers reach the readers of the system's files; nothing of it is stable.

mod agent;
mod commands;
mod dispatch;
mod freeze;
#[doc(hidden)]
pub mod fuzzing;
mod limits;
mod process;
mod session;
mod startup;
mod system;
mod transport;

#[doc(hidden)]
pub use self::system::root;

use std::convert::Infallible;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use self::agent::Agent;
use self::freeze::hooks::Hooks;
use self::freeze::linux::guardian;
use self::freeze::{Freezer, freezer};
use self::process::client_programs::Programs;
use self::process::keeper;
use self::process::supervisor::Supervisor;
use self::startup::command_line::{Action, Environment};
use self::startup::config::{Configuration, Method};
use self::startup::daemon::{self, Detached};
use self::startup::pid_file::PidFile;
use self::startup::policy::Policy;
use self::system::blocking::STACK_BYTES;
use self::system::error::StartFailure;
use self::system::error::cause_text;
use self::system::root::Root;
use self::system::state_directory::State;
use self::system::{log, state_directory as state};
use self::transport::device::{Device, Kind};
use self::transport::line_writer::LineWriter;
use self::transport::listener::Listener;
use self::transport::{Channel, Link};

/// Runs the agent with the process's arguments and environment.
#[must_use]
pub fn main() -> ExitCode {
    if std::env::args_os().skip(1).eq([guardian::process::ARGUMENT]) {
        return guardian::process::main();
    }
    if std::env::args_os().nth(1).is_some_and(|first| first == keeper::process::ARGUMENT) {
        return keeper::process::main();
    }
    qga_sys::allocator::give_back_large_buffers();
    let names: Vec<&str> = commands::entries().map(|entry| entry.info.name).collect();
    let action = Action::from_arguments(std::env::args_os().skip(1), &Environment::of_process(), &names);
    let ended = match action {
        Ok(Action::Run(configuration)) => run(&configuration),
        // A reader that has closed its end has read what it wanted.
        Ok(Action::Print(text)) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(())
        }
        Err(failure) => Err(failure),
    };
    log::finish();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartFailure { text }) => {
            eprintln!("qemu-ga: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal ends it; returns earlier in the parent of a daemon, or if the start fails.
fn run(configuration: &Configuration) -> Result<(), StartFailure> {
    if !configuration.daemon {
        return serve(configuration, None, || ()).map(|never| match never {});
    }
    let readiness = match daemon::detach()? {
        Detached::Parent => return Ok(()),
        Detached::Daemon(readiness) => readiness,
    };
    // Its lock comes before all else: a second agent must fail before it touches anything.
    let mut readiness = Some(readiness);
    let result = PidFile::create(&configuration.pidfile).and_then(|pid_file| {
        serve(configuration, Some(pid_file), || {
            if let Some(readiness) = readiness.take() {
                readiness.ready();
            }
        })
    });
    match (result, readiness) {
        // The parent says why.
        (Err(failure), Some(readiness)) => {
            readiness.failed(&failure);
            log::finish();
            std::process::exit(1);
        }
        (Err(failure), None) => Err(failure),
    }
}

fn serve(
    configuration: &Configuration,
    pid_file: Option<PidFile>,
    ready: impl FnOnce(),
) -> Result<Infallible, StartFailure> {
    // A log file may be on what an earlier agent has left frozen.
    let marker = state::frozen_marker(&configuration.statedir);
    log::hold(marker.symlink_metadata().is_ok());
    log::open(configuration.logfile.as_deref(), configuration.verbose)?;
    keeper::turn_on(Some(&configuration.statedir));
    let (supervisor, channel, agent) = prepare(configuration)?;
    ready();
    agent.freezer.settle();
    let ending = Arc::clone(&agent);
    let started = std::thread::Builder::new().name("supervisor".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        supervisor.run();
        ending.freezer.end(&ending.root);
        ending.programs.hand_over();
        drop(pid_file);
        if !log::finish() {
            let_go();
        }
        std::process::exit(0);
    });
    started.map_err(|error| StartFailure::of("cannot start a thread", &error))?;
    // On the process's first thread, so that the first client need not wait for another one to start.
    channel.serve(Box::new(move |line_writer, first| session::serve(&agent, line_writer, first)))
}

/// Lets go of the channel and the locks, which the next agent needs: a thread that hangs in a write may keep this process
/// for longer than the process would have them. Closing a file may hang as well.
fn let_go() {
    const PATIENCE: std::time::Duration = std::time::Duration::from_millis(200);
    let (sender, receiver) = std::sync::mpsc::channel();
    let closing = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        #[cfg(target_os = "linux")]
        let _ = qga_sys::descriptor::let_go_of_all();
        let _ = sender.send(());
    });
    if closing.is_ok() {
        let _ = receiver.recv_timeout(PATIENCE);
    }
}

/// Serves one client of a machine that is recorded below a directory, until the client hangs up.
pub fn serve_recorded(root: Root, state_directory: &Path, client: UnixStream) -> std::io::Result<()> {
    let state = State::open(state_directory).map_err(|failure| std::io::Error::other(failure.text))?;
    let settings = freezer::Settings::of_recorded(state::frozen_marker(state_directory));
    let freezer = Freezer::new(settings, &root);
    let agent = Agent { root, ..Agent::new(Policy::default(), state, Programs::default(), freezer) };
    session::serve(&Arc::new(agent), &LineWriter::new(Arc::new(Link::from(client))), &[])
}

/// Opens everything that can fail, so that a start either succeeds or says what is wrong.
fn prepare(configuration: &Configuration) -> Result<(Supervisor, Channel, Arc<Agent>), StartFailure> {
    for warning in &configuration.warnings {
        ::log::warn!("{warning}");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = qga_sys::descriptor::close_all_on_exec() {
        ::log::debug!("descriptors from before the start may pass on to programs: {}", cause_text(&error));
    }
    let state = State::open(&configuration.statedir)?;
    let programs = Programs::default();
    let supervisor =
        Supervisor::new(&programs).map_err(|error| StartFailure::of("cannot take over the signals", &error))?;
    let channel = open_channel(configuration)?;
    // After the channel: an agent that cannot serve must not take a freeze over.
    let freezer = Freezer::new(freeze_settings(configuration), &Root::host());
    if freezer.is_frozen() {
        log::tell_at_once(format!(
            "'{}' says that an earlier agent has left file systems frozen: only what a frozen machine can do is answered \
             until guest-fsfreeze-thaw{}",
            state::frozen_marker(&configuration.statedir).display(),
            if configuration.logfile.is_some() { "; the log file waits for it too" } else { "" }
        ));
    } else {
        log::hold(false);
        keeper::tidy(&configuration.statedir);
    }
    Ok((supervisor, channel, Arc::new(Agent::new(configuration.policy.clone(), state, programs, freezer))))
}

fn freeze_settings(configuration: &Configuration) -> freezer::Settings {
    freezer::Settings {
        marker: state::frozen_marker(&configuration.statedir),
        timeout: configuration.fsfreeze_timeout,
        hooks: Hooks::new(
            configuration.fsfreeze_hook.clone(),
            configuration.fsfreeze_hook_dir.clone(),
            configuration.fsfreeze_hook_timeout,
        ),
    }
}

fn open_channel(configuration: &Configuration) -> Result<Channel, StartFailure> {
    if configuration.socket_activation.is_some() {
        let socket = qga_sys::daemon::activated_socket()
            .map_err(|error| StartFailure::of("Socket activation failed: no descriptor 3", &error))?;
        return Listener::passed(socket, configuration.vsock_peers.clone())
            .map(Channel::Listener)
            .map_err(StartFailure::new);
    }
    let path = configuration.path.as_deref().unwrap_or_default();
    let device = |kind: Kind| {
        Device::open(kind, Path::new(path), configuration.retry_path).map(Channel::Device).map_err(|error| {
            StartFailure::new(format!("error opening channel '{path}': {}{}", cause_text(&error), advice(kind, &error)))
        })
    };
    match configuration.method {
        Method::VirtioSerial => device(Kind::Virtio),
        Method::IsaSerial => device(Kind::Serial),
        Method::UnixListen => Listener::unix(Path::new(path)).map(Channel::Listener).map_err(StartFailure::new),
        Method::VsockListen => {
            Listener::vsock(path, configuration.vsock_peers.clone()).map(Channel::Listener).map_err(StartFailure::new)
        }
    }
}

/// What to do about a port that cannot be opened.
fn advice(kind: Kind, error: &std::io::Error) -> &'static str {
    match (kind, error.kind()) {
        (Kind::Virtio, std::io::ErrorKind::NotFound) => {
            " (has the virtual machine a virtio-serial port of this name? -p names another one, -r waits for it)"
        }
        (Kind::Virtio, std::io::ErrorKind::ResourceBusy) => " (another process, perhaps another agent, has it open)",
        _ => "",
    }
}
