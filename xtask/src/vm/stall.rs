//! How long a freeze stops a program that does nothing but write to a disk which is not busy, while another disk, a slow
//! one, has much to write: the case for which the order of a freeze matters most.
//!
//! The program writes and syncs every 5 ms, and notes when each write came back. The host freezes both file systems and
//! thaws them at once, so what is measured is the freeze alone.

use super::disk::DiskOptions;
use super::guest::Guest;
use super::stage::Kind;
use anyhow::{Context as _, Result, ensure};
use serde_json::json;

/// What the slow disk lets through.
const SLOW_BYTES_PER_SECOND: u64 = 20 << 20;
/// What waits to be written to it.
const DIRTY_MEBIBYTES: u64 = 120;

/// The program in the guest: prints the seconds since its start at which each write was done.
const PROGRAM: &str = "
import os, sys, time
file = os.open(sys.argv[1] + '/written', os.O_CREAT | os.O_WRONLY)
start = time.monotonic()
done = []
while not os.path.exists('/run/enough'):
    os.pwrite(file, b'x' * 512, 0)
    os.fsync(file)
    done.append(time.monotonic() - start)
    time.sleep(0.005)
print('\\n'.join('%.4f' % moment for moment in done))
";

/// When the writes of the program came back.
pub struct Stall {
    /// Seconds since its start, ascending.
    pub written_at: Vec<f64>,
    /// How long the host waited for the freeze.
    pub freeze_seconds: f64,
}

impl Stall {
    /// The longest time between two writes, in seconds.
    pub fn longest_seconds(&self) -> f64 {
        self.written_at.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
    }
}

/// Measures both agents in the same guest: the original, then ours.
pub fn measure(guest: &mut Guest) -> Result<[Stall; 2]> {
    // The original freezes what was mounted last first: the quick one, which then waits for the slow one.
    let options = DiskOptions { bytes: 400 << 20, bytes_per_second: Some(SLOW_BYTES_PER_SECOND) };
    let slow = guest.make_file_system_on(Kind::Xfs, options)?;
    let quick = guest.make_file_system(Kind::Ext4)?;
    guest.shell("echo 400000000 > /proc/sys/vm/dirty_background_bytes; echo 800000000 > /proc/sys/vm/dirty_bytes")?;
    let original = measure_one(guest, false, &slow, &quick).context("the original")?;
    let ours = measure_one(guest, true, &slow, &quick).context("ours")?;
    guest.shell("echo 10 > /proc/sys/vm/dirty_background_ratio; echo 20 > /proc/sys/vm/dirty_ratio")?;
    Ok([original, ours])
}

/// Each agent finds a new file to be written out: xfs writes one that is overwritten when it is closed.
fn measure_one(guest: &mut Guest, is_ours: bool, slow: &str, quick: &str) -> Result<Stall> {
    guest.shell(&format!(
        "rm -f /run/enough /run/moments; cat > /run/writer.py <<'END'{PROGRAM}END
         sync; setsid python3 /run/writer.py {quick} > /run/moments.new 2> /run/writer.log < /dev/null &
         sleep 1; dd if=/dev/zero of={slow}/large.{is_ours} bs=1M count={DIRTY_MEBIBYTES} 2> /dev/null; sleep 1"
    ))?;
    let mut host = if is_ours { guest.talk_to_ours()? } else { guest.talk_to_original()? };
    let asked = std::time::Instant::now();
    let frozen = host.call("guest-fsfreeze-freeze-list", &json!({"mountpoints": [slow, quick]}))?;
    let freeze_seconds = asked.elapsed().as_secs_f64();
    host.call("guest-fsfreeze-thaw", &json!({}))?;
    drop(host);
    ensure!(frozen == 2, "{frozen} of 2 file systems were frozen");
    let text = guest.shell(
        "sleep 2; touch /run/enough; while pgrep -x python3 > /dev/null; do sleep 0.1; done; cat /run/writer.log >&2; cat /run/moments.new",
    )?;
    let written_at: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    ensure!(written_at.len() > 20, "the program has written {} times only", written_at.len());
    Ok(Stall { written_at, freeze_seconds })
}
