//! Installs Debian packages on the machine that tests, where that is possible; else says what is missing and why.

use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};

/// Whether a program can be started by its name.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin".into(), "/sbin".into()];
    std::env::split_paths(&path).chain(system).any(|folder| folder.join(program).is_file())
}

/// Installs packages; with `release` from that part of the archive.
pub fn install(packages: &[&str], release: Option<&str>) -> Result<()> {
    let names = packages.join(" ");
    if !is_installed("apt-get") {
        bail!("{names} not installed, and there is no apt-get to do it");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("{names} not installed, and only root can: apt-get install {names}");
    }
    read_lists(release.is_some())?;
    println!("installing {names}");
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    if let Some(release) = release {
        arguments.extend(["-t", release]);
    }
    arguments.extend(packages);
    apt_get(&arguments)
}

/// Reads the package lists, once a run: without them apt knows no package, or old ones. A new entry needs them anew.
fn read_lists(anew: bool) -> Result<()> {
    static READ: OnceLock<()> = OnceLock::new();
    if !anew && READ.get().is_some() {
        return Ok(());
    }
    println!("reading the package lists");
    apt_get(&["update"])?;
    let _ = READ.set(());
    Ok(())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    // apt refuses to run beside itself.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .arg("-q")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("cannot start apt-get")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        bail!("apt-get {} ended with {}: {last}", arguments.join(" "), output.status);
    }
    Ok(())
}
