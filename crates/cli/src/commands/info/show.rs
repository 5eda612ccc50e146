//! The screen of `qga info`.

use qga_protocol::storage::{DiskInfo, FilesystemInfo};

use super::{Clock, Info};
use crate::commands::network::Interface;
use crate::failure::Result;
use crate::output::bar::{bar, style_of};
use crate::output::table::{Cell, Table};
use crate::output::text::{fit, printable};
use crate::output::{BAD, BOLD, FAINT, GOOD, NAME, Page, Show, WARNING, styled, units};

const BAR_COLUMNS: usize = 20;

/// A clock that differs by more is worth a colour.
const CLOCK_TOLERANCE_SECONDS: f64 = 2.0;

impl Show for Info {
    fn show(&self, page: &mut Page) -> Result<()> {
        for line in self.lines(page.columns()) {
            page.line(line)?;
        }
        Ok(())
    }
}

impl Info {
    /// The screen, for a width.
    pub fn lines(&self, columns: usize) -> Vec<String> {
        let within = columns.saturating_sub(4);
        let mut lines = self.head();
        let mut field =
            |name: &str, text: String| lines.push(format!("  {}  {text}", styled(FAINT, format!("{name:<9}"))));
        if let Some(address) = &self.address {
            field("address", self.addresses(address, columns.saturating_sub(13)));
        }
        if let Some(users) = &self.users {
            let names: Vec<String> = users.iter().map(|user| printable(&user.user)).collect();
            let text = if names.is_empty() { styled(FAINT, "nobody is logged in") } else { names.join(", ") };
            field("users", text);
        }
        if let Some(clock) = self.clock {
            let offset = self.time_zone.as_ref().map_or(0, |zone| i32::try_from(zone.offset).unwrap_or(0));
            field("clock", clock_line(clock, offset));
        }
        if let Some(processors) = &self.processors {
            let mut text = if processors.online == processors.all {
                processors.all.to_string()
            } else {
                format!("{} of {} online", processors.online, processors.all)
            };
            if let Some(load) = &self.load {
                let load = format!("load {:.2} {:.2} {:.2}", load.load1m, load.load5m, load.load15m);
                text = format!("{text}  {}", styled(FAINT, load));
            }
            field("cpus", text);
        }
        if let Some(memory) = self.memory {
            field("memory", usage(memory.used_bytes(), memory.total_bytes));
            if memory.swap_total_bytes > 0 {
                field("swap", usage(memory.swap_used_bytes(), memory.swap_total_bytes));
            }
        }
        field("agent", self.agent_line(columns.saturating_sub(13)));
        Self::add_table(&mut lines, within, "file systems", self.file_systems.as_deref().map(file_systems));
        Self::add_table(&mut lines, within, "network", self.interfaces.as_deref().map(interfaces));
        Self::add_table(&mut lines, within, "disks", self.disks.as_deref().map(disks));
        lines
    }

    fn head(&self) -> Vec<String> {
        let name = self.host_name.as_deref().unwrap_or(&self.target);
        let system = self.system.as_ref();
        let pretty = system.and_then(|system| system.pretty_name.clone().or_else(|| system.name.clone()));
        let mut head = styled(BOLD, styled(NAME, printable(name)));
        if let Some(pretty) = pretty {
            head.push_str(&format!("  {}", styled(BOLD, printable(&pretty))));
        }
        if self.frozen == Some(true) {
            head.push_str(&format!("  {}", styled(BAD, "FROZEN: most cannot be asked until it is thawed")));
        }
        let mut second = Vec::new();
        if let Some(system) = system {
            let kernel = system.kernel_release.iter().chain(&system.machine).map(|part| printable(part));
            second.push(kernel.collect::<Vec<_>>().join(" "));
        }
        if let Some(uptime) = self.uptime_seconds {
            second.push(format!("up {}", units::span(uptime as u64)));
        }
        second.push(printable(&self.target));
        vec![head, styled(FAINT, second.join(" · ")), String::new()]
    }

    fn addresses(&self, main: &str, columns: usize) -> String {
        let all = self.interfaces.iter().flatten().flat_map(|interface| &interface.addresses);
        let others = all.filter(|address| address.is_global && address.address != main);
        let others: Vec<String> = others.map(|address| printable(&address.address)).collect();
        let rest = columns.saturating_sub(main.len() + 2);
        let others = if others.is_empty() || rest < 8 { String::new() } else { fit(&others.join(", "), rest) };
        format!("{}  {}", styled(GOOD, main), styled(FAINT, others))
    }

    fn agent_line(&self, columns: usize) -> String {
        let mut text = format!("{}, {} commands", printable(&self.agent.version), self.agent.commands);
        if !self.agent.disabled.is_empty() {
            let disabled = format!(", {} disabled: {}", self.agent.disabled.len(), self.agent.disabled.join(", "));
            let disabled = fit(&printable(&disabled), columns.saturating_sub(text.len()));
            text.push_str(&styled(WARNING, disabled));
        }
        text
    }

    fn add_table(lines: &mut Vec<String>, columns: usize, title: &str, table: Option<Table>) {
        let Some(table) = table else { return };
        lines.push(String::new());
        lines.push(format!("  {}", styled(BOLD, title)));
        lines.extend(table.within(columns).into_iter().map(|line| format!("    {line}")));
    }
}

fn clock_line(clock: Clock, offset_seconds: i32) -> String {
    let moment = units::moment(clock.guest_seconds as i64, offset_seconds);
    let ahead = clock.ahead_seconds;
    if ahead.abs() <= clock.uncertainty_seconds.max(0.01) {
        return format!("{moment}  {}", styled(GOOD, "as on this host"));
    }
    let style = if ahead.abs() > CLOCK_TOLERANCE_SECONDS { WARNING } else { FAINT };
    let difference = if ahead.abs() < 60.0 { format!("{:.2} s", ahead.abs()) } else { units::span(ahead.abs() as u64) };
    format!("{moment}  {}", styled(style, format!("{difference} {}", if ahead > 0.0 { "ahead" } else { "behind" })))
}

/// A bar with the numbers behind it.
pub fn usage(used: u64, total: u64) -> String {
    let part = if total == 0 { 0.0 } else { used as f64 / total as f64 };
    let percent = styled(style_of(part), format!("{:>3.0} %", part * 100.0));
    format!("{} {percent}  {} of {}", bar(part, BAR_COLUMNS), units::bytes(used), units::bytes(total))
}

/// The table of file systems, as `qga fs` shows it too.
pub fn file_systems(file_systems: &[FilesystemInfo]) -> Table {
    let mut table = Table::new(&["mounted at", "type", "used", "", "of", "device"]);
    let mut sorted: Vec<&FilesystemInfo> = file_systems.iter().collect();
    sorted.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    for file_system in sorted {
        let (used, total) = (file_system.used_bytes, file_system.total_bytes);
        let gauge = used.zip(total).filter(|(_, total)| *total > 0).map(|(used, total)| {
            let part = used as f64 / total as f64;
            let percent = format!("{:.0}%", part * 100.0);
            Cell::both(
                format!("{} {}", bar(part, BAR_COLUMNS), styled(style_of(part), format!("{percent:>4}"))),
                percent,
            )
        });
        table.row(vec![
            Cell::text(&file_system.mountpoint),
            Cell::text(&file_system.r#type).in_style(FAINT),
            Cell::or_dash(used, Cell::bytes),
            Cell::or_dash(gauge, |gauge| gauge),
            Cell::or_dash(total, Cell::bytes),
            Cell::text(&file_system.name).in_style(FAINT),
        ]);
    }
    table
}

/// The table of interfaces, as `qga ip` shows it too.
pub fn interfaces(interfaces: &[Interface]) -> Table {
    let mut table = Table::new(&["interface", "address", "hardware", "received", "sent", ""]);
    for interface in interfaces {
        let addresses: Vec<String> =
            interface.addresses.iter().map(|address| format!("{}/{}", address.address, address.prefix)).collect();
        let statistics = interface.statistics.as_ref();
        let lines = addresses.len().max(1);
        for line in 0..lines {
            let is_first = line == 0;
            let only_first = |cell: Cell| if is_first { cell } else { cell.only_plain() };
            table.row(vec![
                only_first(Cell::text(&interface.name).in_style(NAME)),
                Cell::or_dash(addresses.get(line), Cell::text),
                only_first(Cell::or_dash(interface.hardware_address.as_ref(), Cell::text).in_style(FAINT)),
                only_first(Cell::or_dash(statistics.map(|statistics| statistics.rx_bytes), Cell::bytes)),
                only_first(Cell::or_dash(statistics.map(|statistics| statistics.tx_bytes), Cell::bytes)),
                only_first(Cell::text(if interface.is_default_route { "default route" } else { "" }).in_style(GOOD)),
            ]);
        }
    }
    table
}

/// The table of disks, as `qga disks` shows it too: each with what is on it.
pub fn disks(disks: &[DiskInfo]) -> Table {
    let mut table = Table::new(&["disk", "bus", "serial", "holds"]);
    for disk in disks.iter().filter(|disk| !disk.partition) {
        let holds: Vec<&str> = disks
            .iter()
            .filter(|other| other.dependencies.iter().flatten().any(|dependency| *dependency == disk.name))
            .map(|other| other.alias.as_deref().unwrap_or(&other.name))
            .map(|name| name.strip_prefix("/dev/").unwrap_or(name))
            .collect();
        let address = disk.address.as_ref();
        let bus = address.map(|address| serde_json::to_value(&address.bus_type));
        let bus = bus.and_then(std::result::Result::ok).and_then(|bus| bus.as_str().map(str::to_owned));
        table.row(vec![
            Cell::text(&disk.name).in_style(NAME),
            Cell::or_dash(bus, Cell::text),
            Cell::or_dash(address.and_then(|address| address.serial.as_ref()), Cell::text).in_style(FAINT),
            Cell::text(holds.join(" ")),
        ]);
    }
    table
}
