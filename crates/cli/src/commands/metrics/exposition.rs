//! Prometheus' text format: each metric once with its help and type, its samples together.

use std::collections::BTreeMap;

use crate::output::text::printable;

/// Name, help. What ends with `_total` is a counter, the rest gauges.
const HELP: [(&str, &str); 34] = [
    ("qga_up", "Whether the guest's agent answered."),
    ("qga_failure", "Why it did not, as a word."),
    ("qga_scrape_duration_seconds", "How long it took to ask the guest."),
    ("qga_agent_info", "The agent's version."),
    ("qga_guest_info", "The guest's name and system."),
    ("qga_frozen", "Whether the guest's file systems are frozen."),
    ("qga_uptime_seconds", "Seconds since the guest started."),
    ("qga_clock_offset_seconds", "How much the guest's clock is ahead of this host's."),
    ("qga_users", "Users logged in."),
    ("qga_load1", "Load, averaged over one minute."),
    ("qga_load5", "Load, averaged over five minutes."),
    ("qga_load15", "Load, averaged over fifteen minutes."),
    ("qga_cpu_seconds_total", "Seconds that a processor of the guest spent in a mode."),
    ("qga_memory_total_bytes", "Memory of the guest."),
    ("qga_memory_available_bytes", "Memory that programs could get without swapping."),
    ("qga_swap_total_bytes", "Swap space of the guest."),
    ("qga_swap_free_bytes", "Swap space that is free."),
    ("qga_filesystem_size_bytes", "Size of a file system."),
    ("qga_filesystem_used_bytes", "Used bytes of a file system."),
    ("qga_disk_read_bytes_total", "Bytes read from a disk."),
    ("qga_disk_written_bytes_total", "Bytes written to a disk."),
    ("qga_disk_reads_completed_total", "Read requests of a disk."),
    ("qga_disk_writes_completed_total", "Write requests of a disk."),
    ("qga_disk_io_time_seconds_total", "Seconds during which any request was under way."),
    ("qga_network_receive_bytes_total", "Bytes received."),
    ("qga_network_receive_packets_total", "Packets received."),
    ("qga_network_receive_errors_total", "Packets received with an error."),
    ("qga_network_receive_dropped_total", "Packets received and dropped."),
    ("qga_network_transmit_bytes_total", "Bytes sent."),
    ("qga_network_transmit_packets_total", "Packets sent."),
    ("qga_network_transmit_errors_total", "Packets not sent for an error."),
    ("qga_network_transmit_dropped_total", "Packets dropped instead of sent."),
    ("qga_targets", "Targets that were asked."),
    ("qga_discovery_failed", "Whether the targets could not be found out."),
];

/// What a sample takes beside its name and labels: its value, a blank, a line end.
const BYTES_BESIDE: usize = 26;

/// Longest value of a label, in characters; more is cut off.
const LONGEST_LABEL: usize = 512;

/// Samples by metric and labels: a series stands once, since one that stands twice makes the whole page worthless.
#[derive(Debug, Default)]
pub struct Exposition {
    metrics: BTreeMap<&'static str, BTreeMap<String, f64>>,
    bytes: usize,
}

impl Exposition {
    /// Adds a sample.
    pub fn put(&mut self, name: &'static str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let bytes = name.len() + labels.len() + BYTES_BESIDE;
        if self.metrics.entry(name).or_default().insert(labels, value).is_none() {
            self.bytes += bytes;
        }
    }

    /// About how long its text is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a sample if there is a value.
    pub fn put_some(&mut self, name: &'static str, labels: &[(&str, &str)], value: Option<u64>) {
        if let Some(value) = value {
            self.put(name, labels, value as f64);
        }
    }

    pub fn append(&mut self, other: Self) {
        self.bytes += other.bytes;
        for (name, samples) in other.metrics {
            self.metrics.entry(name).or_default().extend(samples);
        }
    }

    pub fn text(&self) -> String {
        let mut text = String::with_capacity(self.bytes);
        for (name, samples) in &self.metrics {
            if let Some((_, help)) = HELP.iter().find(|(known, _)| known == name) {
                text.push_str(&format!("# HELP {name} {help}\n"));
            }
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            text.push_str(&format!("# TYPE {name} {kind}\n"));
            for (labels, value) in samples {
                text.push_str(&format!("{name}{labels} {value}\n"));
            }
        }
        text
    }
}

/// A value for a label, which may have any character. What steers a terminal is written out, since people look at the page
/// too.
fn escape(value: &str) -> String {
    let value: String = value.chars().take(LONGEST_LABEL).collect();
    let lines = value.split('\n').map(|line| printable(line).replace('\\', "\\\\").replace('"', "\\\""));
    lines.collect::<Vec<_>>().join("\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_metric_stand_together_under_its_help() {
        let mut page = Exposition::default();
        page.put("qga_up", &[("target", "/a\"\\\n")], 1.0);
        // Said twice, it stands once.
        page.put("qga_up", &[("target", "/a\"\\\n")], 1.0);
        let mut other = Exposition::default();
        other.put("qga_up", &[("target", "b")], 0.0);
        other.put_some("qga_disk_read_bytes_total", &[], Some(5));
        other.put_some("qga_disk_written_bytes_total", &[], None);
        page.append(other);
        let expected = concat!(
            "# HELP qga_disk_read_bytes_total Bytes read from a disk.\n",
            "# TYPE qga_disk_read_bytes_total counter\n",
            "qga_disk_read_bytes_total 5\n",
            "# HELP qga_up Whether the guest's agent answered.\n",
            "# TYPE qga_up gauge\n",
            "qga_up{target=\"/a\\\"\\\\\\n\"} 1\n",
            "qga_up{target=\"b\"} 0\n",
        );
        assert_eq!(page.text(), expected);
    }
}
