//! `qga metrics`: measurements of guests in Prometheus' text format, printed once or served.

mod exposition;
mod server;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use qga_client::{Agent, AnyAgent, ConnectOptions, Limits, Target};
use qga_protocol::fsfreeze::{FreezeStatus, Status};
use qga_protocol::identity::{GetHostName, GetUsers};

use super::{guest, info, sample};
use crate::arguments::Metrics;
use crate::failure::{Failure, Result};
use crate::general_options::General;
use crate::target::{Selection, select};
use crate::visit::optional;

use exposition::Exposition;

/// What is an outage of the agent, not of the scrape.
pub fn run(options: &Metrics, general: &General) -> Result<()> {
    if let Some(address) = &options.listen {
        server::serve(address, general)
    } else {
        let selection = select(&general.targets, general.all)?;
        let text = scrape(&selection, general);
        std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())
            .map_err(|error| Failure::host("write the output", &error))
    }
}

/// Asks all targets, several at a time. One that does not answer is down, and no error.
fn scrape(selection: &Selection, general: &General) -> String {
    let started = Instant::now();
    let page = Mutex::new(Exposition::default());
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        loop {
            let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(target) = selection.targets.get(index) else { break };
            let mut own = measure(target, general, started);
            let mut page = page.lock().unwrap_or_else(PoisonError::into_inner);
            if page.bytes() + own.bytes() > LONGEST_PAGE_BYTES {
                own = too_much(target);
            }
            page.append(own);
        }
    };
    thread::scope(|scope| {
        for _ in 0..general.jobs.min(selection.targets.len()) {
            scope.spawn(work);
        }
    });
    page.into_inner().unwrap_or_else(PoisonError::into_inner).text()
}

/// What stands for a target that says more than a page takes.
fn too_much(target: &Target) -> Exposition {
    let name = target.to_string();
    let mut page = Exposition::default();
    page.put("qga_up", &[("target", name.as_str())], 0.0);
    page.put("qga_failure", &[("target", name.as_str()), ("reason", "too-much")], 1.0);
    page
}

/// The measurements of one target, or why there are none.
fn measure(target: &Target, general: &General, scrape_started: Instant) -> Exposition {
    let started = Instant::now();
    let name = target.to_string();
    // An agent that always says a little never times out; the others' measurements are not to wait for it.
    let left = general.timeout.saturating_mul(2).saturating_sub(scrape_started.elapsed());
    let measured = measure_in_time(target.clone(), general.connection(), general.timeout.min(left));
    let labels = [("target", name.as_str())];
    let mut page = Exposition::default();
    page.put("qga_up", &labels, if measured.is_ok() { 1.0 } else { 0.0 });
    page.put("qga_scrape_duration_seconds", &labels, started.elapsed().as_secs_f64());
    match measured {
        // What it says of itself counts: that it said too much.
        Ok(own) => page.append(own),
        Err(failure) => {
            let word = failure.word();
            page.put("qga_failure", &[("target", name.as_str()), ("reason", word.as_str())], 1.0);
        }
    }
    page
}

/// The longest reply that is taken from a guest: ten thousand file systems have room in it, and what is made of it takes
/// some times as much.
const LONGEST_REPLY_BYTES: usize = 4 << 20;
/// The longest text of one guest's measurements, and of all together.
const LONGEST_PART_BYTES: usize = 8 << 20;
const LONGEST_PAGE_BYTES: usize = 64 << 20;

/// Measures within a time. A target that is late is not asked again until the late question has ended.
fn measure_in_time(target: Target, connection: ConnectOptions, limit: Duration) -> Result<Exposition> {
    static LATE: Mutex<BTreeMap<String, Weak<()>>> = Mutex::new(BTreeMap::new());
    let late = || LATE.lock().unwrap_or_else(PoisonError::into_inner);
    let name = target.to_string();
    let too_late = || qga_client::Error::TimedOut { command: "all questions".to_owned(), after: limit };
    {
        let mut late = late();
        late.retain(|_, question| question.strong_count() > 0);
        if limit.is_zero() || late.contains_key(&name) {
            return Err(too_late().into());
        }
    }
    let question = Arc::new(());
    let asked = Arc::downgrade(&question);
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || {
        let mut page = Exposition::default();
        let deadline = Instant::now() + limit.min(Duration::from_secs(24 * 3600));
        let measured = Agent::connect_by(&target, connection, deadline).map_err(Failure::from).and_then(|mut agent| {
            agent.set_limits(Limits { reply_bytes: LONGEST_REPLY_BYTES, ..Limits::default() });
            measure_agent(&mut agent, &target.to_string(), &mut page)
        });
        let is_too_much = page.bytes() > LONGEST_PART_BYTES;
        // Nobody listens any more if it is late.
        let _ = sender.send(measured.map(|()| if is_too_much { too_much(&target) } else { page }));
        drop(question);
    });
    answer.recv_timeout(limit).unwrap_or_else(|_| {
        late().insert(name.clone(), asked);
        Err(too_late().into())
    })
}

fn measure_agent(agent: &mut AnyAgent, target: &str, page: &mut Exposition) -> Result<()> {
    let labels = [("target", target)];
    if let Some(about) = optional(agent.info().cloned())? {
        page.put("qga_agent_info", &[("target", target), ("version", &about.version)], 1.0);
    }
    if let Some(status) = optional(agent.call(&Status {}))? {
        page.put("qga_frozen", &labels, if status == FreezeStatus::Frozen { 1.0 } else { 0.0 });
        if status == FreezeStatus::Frozen {
            // Nothing else is served.
            return Ok(());
        }
    }
    let host_name = optional(agent.call(&GetHostName {}))?.map(|name| name.host_name).unwrap_or_default();
    let system = guest::system(agent)?;
    let text = |of: fn(&qga_protocol::identity::OsInfo) -> Option<&String>| {
        system.as_ref().and_then(of).cloned().unwrap_or_default()
    };
    let (pretty, kernel) = (text(|system| system.pretty_name.as_ref()), text(|system| system.kernel_release.as_ref()));
    let labelled = [("target", target), ("host_name", &host_name), ("system", &pretty), ("kernel", &kernel)];
    page.put("qga_guest_info", &labelled, 1.0);
    if let Some(clock) = optional(info::clock(agent))? {
        page.put("qga_clock_offset_seconds", &labels, clock.ahead_seconds);
    }
    if let Some(users) = optional(agent.call(&GetUsers {}))? {
        page.put("qga_users", &labels, users.len() as f64);
    }
    counters(&sample::take(agent)?, target, page);
    Ok(())
}

fn counters(sample: &sample::Sample, target: &str, page: &mut Exposition) {
    let labels = [("target", target)];
    if let Some(uptime) = sample.uptime_seconds {
        page.put("qga_uptime_seconds", &labels, uptime);
    }
    if let Some(load) = &sample.load {
        page.put("qga_load1", &labels, load.load1m);
        page.put("qga_load5", &labels, load.load5m);
        page.put("qga_load15", &labels, load.load15m);
    }
    for processor in sample.processors.iter().flatten() {
        let number = processor.cpu.to_string();
        for (mode, milliseconds) in sample::modes(processor) {
            let labels = [("target", target), ("cpu", number.as_str()), ("mode", mode)];
            page.put("qga_cpu_seconds_total", &labels, milliseconds as f64 / 1000.0);
        }
    }
    if let Some(memory) = sample.memory {
        page.put("qga_memory_total_bytes", &labels, memory.total_bytes as f64);
        page.put("qga_memory_available_bytes", &labels, memory.available_bytes as f64);
        page.put("qga_swap_total_bytes", &labels, memory.swap_total_bytes as f64);
        page.put("qga_swap_free_bytes", &labels, memory.swap_free_bytes as f64);
    }
    for file_system in sample.file_systems.iter().flatten() {
        let labels = [
            ("target", target),
            ("mountpoint", file_system.mountpoint.as_str()),
            ("device", file_system.name.as_str()),
            ("fstype", file_system.r#type.as_str()),
        ];
        page.put_some("qga_filesystem_size_bytes", &labels, file_system.total_bytes);
        page.put_some("qga_filesystem_used_bytes", &labels, file_system.used_bytes);
    }
    for disk in sample.disks.iter().flatten() {
        let labels = [("target", target), ("device", disk.name.as_str())];
        let stats = &disk.stats;
        page.put_some(
            "qga_disk_read_bytes_total",
            &labels,
            stats.read_sectors.map(|sectors| sectors.saturating_mul(512)),
        );
        page.put_some(
            "qga_disk_written_bytes_total",
            &labels,
            stats.write_sectors.map(|sectors| sectors.saturating_mul(512)),
        );
        page.put_some("qga_disk_reads_completed_total", &labels, stats.read_ios);
        page.put_some("qga_disk_writes_completed_total", &labels, stats.write_ios);
        if let Some(milliseconds) = stats.total_ticks {
            page.put("qga_disk_io_time_seconds_total", &labels, milliseconds as f64 / 1000.0);
        }
    }
    for interface in sample.interfaces.iter().flatten() {
        let labels = [("target", target), ("interface", interface.name.as_str())];
        let Some(statistics) = &interface.statistics else { continue };
        for (name, value) in [
            ("qga_network_receive_bytes_total", statistics.rx_bytes),
            ("qga_network_receive_packets_total", statistics.rx_packets),
            ("qga_network_receive_errors_total", statistics.rx_errs),
            ("qga_network_receive_dropped_total", statistics.rx_dropped),
            ("qga_network_transmit_bytes_total", statistics.tx_bytes),
            ("qga_network_transmit_packets_total", statistics.tx_packets),
            ("qga_network_transmit_errors_total", statistics.tx_errs),
            ("qga_network_transmit_dropped_total", statistics.tx_dropped),
        ] {
            page.put(name, &labels, value as f64);
        }
    }
}
