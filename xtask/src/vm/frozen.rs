//! What a test needs around a freeze: who is frozen really, agents with other options, programs that write, and a way
//! out that depends on nobody in the guest.

use super::conversation::patience;
use super::guest::{Guest, OUR_UNIT};
use anyhow::{Result, bail, ensure};
use serde_json::json;

/// What the kernel says of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeState {
    /// Writers wait.
    Frozen,
    /// Writers write.
    Thawed,
    /// This kind cannot be frozen.
    Impossible,
}

/// The original's unit, as systemd calls it.
pub const ORIGINAL_UNIT: &str = "original-agent.service";

/// Where changes of a unit stand that go with the case.
fn drop_in_folder(unit: &str) -> String {
    format!("/run/systemd/system/{unit}.d")
}

impl Guest {
    /// Whether a file system is frozen: the kernel is asked for a freeze, which a frozen one refuses and another is
    /// given back at once. What lies on a frozen one of another kind must not be asked: it would wait.
    pub fn freeze_state(&mut self, mountpoint: &str) -> Result<FreezeState> {
        Ok(self.freeze_states(&[mountpoint])?[0])
    }

    /// Like [`Guest::freeze_state`], for several in turn.
    pub fn freeze_states(&mut self, mountpoints: &[&str]) -> Result<Vec<FreezeState>> {
        let names: Vec<String> = mountpoints.iter().map(|mountpoint| format!("'{mountpoint}'")).collect();
        let script = format!(
            "export LC_ALL=C; for place in {}; do
                 told=$(fsfreeze -f \"$place\" 2>&1) && fsfreeze -u \"$place\"; echo \"told: $told\"; done",
            names.join(" ")
        );
        let told = self.shell(&script)?;
        let states: Vec<FreezeState> = told
            .lines()
            .map(|line| match line {
                "told:" | "told: " => Ok(FreezeState::Thawed),
                line if line.contains("resource busy") => Ok(FreezeState::Frozen),
                line if line.contains("not supported") => Ok(FreezeState::Impossible),
                line => bail!("asking for a freeze: {line}"),
            })
            .collect::<Result<_>>()?;
        ensure!(states.len() == mountpoints.len(), "of {mountpoints:?} is told:\n{told}");
        Ok(states)
    }

    /// Whether a write to a place comes back; else it waits for a thaw, as the kernel says. The program that waits cannot
    /// be killed and is left behind.
    pub fn takes_writes(&mut self, place: &str) -> Result<bool> {
        // Where the kernel's stack does not say it, a sleep that lasts does.
        let script = format!(
            "touch {place}/probe > /dev/null 2>&1 < /dev/null & writer=$!; looks=0
             while sleep 0.1; do
                 case $(cat /proc/$writer/stat 2> /dev/null) in
                     *') Z '* | '') wait $writer && echo comes back; exit ;;
                     *') D '*) looks=$((looks + 1)) ;;
                     *) looks=0 ;;
                 esac
                 case $(cat /proc/$writer/stack 2> /dev/null) in
                     *percpu_rwsem_wait* | *percpu_down_read*) echo waits; exit ;;
                 esac
                 [ $looks -lt 100 ] || {{ echo waits; exit; }}
             done"
        );
        match self.shell(&script)?.as_str() {
            "comes back" => Ok(true),
            "waits" => Ok(false),
            other => bail!("a write to {place}: {other:?}"),
        }
    }

    /// Makes sure of [`Guest::takes_writes`] for each place.
    pub fn expect_writes(&mut self, places: &[&str], expected: bool) -> Result<()> {
        for place in places {
            let found = self.takes_writes(place)?;
            ensure!(found == expected, "{place} {} writes", if found { "takes" } else { "does not take" });
        }
        Ok(())
    }

    /// Seconds since the guest booted, by its own clock.
    pub fn uptime_seconds(&mut self) -> Result<f64> {
        Ok(self.shell("cut -d ' ' -f 1 /proc/uptime")?.parse()?)
    }

    /// Thaws everything through the machine's keyboard: works when no program of the guest can.
    pub fn thaw_from_outside(&mut self) -> Result<()> {
        let key = json!({"command-line": "sendkey alt-sysrq-j"});
        self.machine().qmp("human-monitor-command", &key).map(drop)
    }

    /// Lets agents that take the guest for frozen thaw it.
    pub(super) fn thaw_agents(&mut self) -> Result<()> {
        for mut host in [self.talk_to_ours()?, self.talk_to_original()?] {
            if host.call("guest-fsfreeze-status", &json!({}))? == "frozen" {
                host.call("guest-fsfreeze-thaw", &json!({}))?;
            }
        }
        Ok(())
    }

    /// Changes a unit until the case ends or [`Guest::restore_units`], and restarts it: `Restart=no` for an agent that
    /// stays dead, another `ExecStart` for other options.
    pub fn change_unit(&mut self, unit: &str, service_lines: &str) -> Result<()> {
        self.changed_units().push(unit.to_owned());
        let folder = drop_in_folder(unit);
        self.shell(&format!(
            "mkdir -p {folder} && printf '%s\n' '[Service]' '{service_lines}' > {folder}/case.conf &&
             systemctl daemon-reload && systemctl restart {unit}"
        ))
        .map(drop)
    }

    /// Restarts our agent with other arguments, until the case ends.
    pub fn restart_our_agent_with(&mut self, arguments: &str) -> Result<()> {
        self.change_unit(OUR_UNIT, &format!("ExecStart=\nExecStart=/usr/sbin/qemu-ga {arguments}"))?;
        self.talk_to_ours().map(drop)
    }

    /// Restarts the original with further arguments, until the case ends.
    pub fn restart_original_with(&mut self, arguments: &str) -> Result<()> {
        let command = self.shell(&format!("sed -n s/^ExecStart=//p /etc/systemd/system/{ORIGINAL_UNIT}"))?;
        self.change_unit(ORIGINAL_UNIT, &format!("ExecStart=\nExecStart={command} {arguments}"))?;
        self.talk_to_original().map(drop)
    }

    /// Undoes [`Guest::change_unit`].
    pub fn restore_units(&mut self) -> Result<()> {
        for unit in std::mem::take(self.changed_units()) {
            let folder = drop_in_folder(&unit);
            self.shell(&format!("rm -rf {folder}; systemctl daemon-reload && systemctl restart {unit}"))?;
        }
        Ok(())
    }

    /// Starts a program that writes and syncs without end into `mountpoint`, or waits while that is frozen. Returns
    /// its unit, which the case stops.
    pub fn start_writer(&mut self, mountpoint: &str) -> Result<String> {
        let name = mountpoint.trim_matches('/').replace(|character: char| !character.is_ascii_alphanumeric(), "-");
        let unit = format!("writer-{name}.service");
        let script = format!(
            "number=0; while :; do number=$((number + 1)); echo $number > {mountpoint}/.writer-new
             sync {mountpoint}/.writer-new; mv {mountpoint}/.writer-new {mountpoint}/writer
             echo $number > /run/{unit}; done"
        );
        self.shell(&format!("systemd-run --quiet --collect --unit {unit} sh -ec '{script}'"))?;
        self.wait_until("the writer writes", |guest| Ok(guest.writes_of(&unit).ok().filter(|count| *count > 0)))?;
        Ok(unit)
    }

    /// How often the writer has written so far.
    pub fn writes_of(&mut self, unit: &str) -> Result<u64> {
        let count = self.shell(&format!("cat /run/{unit}"))?;
        ensure!(!count.is_empty(), "caught between two numbers");
        Ok(count.parse()?)
    }

    /// Waits until the writer has written again.
    pub fn wait_for_writes(&mut self, unit: &str) -> Result<()> {
        let before = self.wait_until("the writer's count", |guest| Ok(guest.writes_of(unit).ok()))?;
        let what = format!("{unit} writes again, within {} s", patience().as_secs());
        self.wait_until(&what, |guest| Ok(guest.writes_of(unit).ok().filter(|count| *count > before))).map(drop)
    }
}
