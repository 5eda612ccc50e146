//! The guest's processors and how busy they are: `guest-get-vcpus`, `guest-set-vcpus`, `guest-get-cpustats`,
//! `guest-get-load`.
//!
//! The family switches processors off and on inside the guest; plugging them is the host's business. Memory is in
//! `memory.rs`.

use serde::{Deserialize, Serialize};

use crate::command::{Command, Family, Platforms, Type, Wire};
use crate::{command, object};

/// The family's commands.
pub const FAMILY: Family =
    Family { name: "cpu", commands: &[GetVcpus::INFO, SetVcpus::INFO, GetCpuStats::INFO, GetLoad::INFO] };

command! {
    "guest-get-vcpus", since "1.5", reply Vec<LogicalProcessor>, rules { platforms: Platforms::NOT_BSD },
    /// Lists the guest's processors; on Linux in the order of the kernel's directory of them.
    ///
    /// Windows reports all as online and none as switchable.
    ///
    /// Errors: a processor whose state cannot be read.
    pub struct GetVcpus {}
}

command! {
    "guest-set-vcpus", since "1.5", reply i64, rules { exclusive: true, platforms: Platforms::LINUX },
    /// Switches processors on and off, one after the other in the order of the list, and returns how many went well.
    ///
    /// The first that fails ends it. If it is the very first of the list, its error is reported; otherwise the count of
    /// those before it is returned: a client then sends the rest again to learn the error. A processor that has the
    /// wanted state already counts. An empty list returns 0.
    ///
    /// Errors: an unknown processor; one that cannot be switched off; what the kernel reports.
    pub struct SetVcpus {
        /// The processors to change; those that are not in the list keep their state.
        vcpus: Vec<LogicalProcessor>,
    }
}

object! {
    /// A processor of the guest.
    pub struct LogicalProcessor as "GuestLogicalProcessor" {
        /// The system's number for it, from 0; numbers may be missing in between.
        logical_id: i64,
        /// Whether it is, or is to be, switched on.
        online: bool,
        /// Whether it can be switched off. Always sent by `guest-get-vcpus`, ignored by `guest-set-vcpus`.
        #[serde(skip_serializing_if = "Option::is_none")]
        can_offline: Option<bool>,
    }
}

command! {
    "guest-get-cpustats", since "7.1", reply Vec<CpuStats>, rules { platforms: Platforms::LINUX },
    /// Lists how each processor spent its time since the guest started, from `/proc/stat`.
    ///
    /// Processors that are switched off are left out.
    pub struct GetCpuStats {}
}

/// How a processor spent its time: on the wire an object whose member `type` names the system, beside that system's own
/// members.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum CpuStats {
    /// `linux`: as Linux counts it.
    Linux(LinuxCpuStats),
    /// Another system's, which this library does not know. No agent of this project says so.
    #[serde(other)]
    Other,
}

impl Wire for CpuStats {
    const TYPE: Type = Type::Named("GuestCpuStats");
}

object! {
    /// A processor's time on Linux, in milliseconds since the guest started. Members that the kernel is too old to
    /// count are absent.
    pub struct LinuxCpuStats as "GuestLinuxCpuStats" {
        /// The processor's number.
        cpu: i64,
        /// Running programs.
        user: u64,
        /// Running programs of lowered priority.
        nice: u64,
        /// Running the kernel.
        system: u64,
        /// Idle.
        idle: u64,
        /// Idle while a disk request is under way.
        #[serde(skip_serializing_if = "Option::is_none")]
        iowait: Option<u64>,
        /// Serving interrupts.
        #[serde(skip_serializing_if = "Option::is_none")]
        irq: Option<u64>,
        /// Serving soft interrupts.
        #[serde(skip_serializing_if = "Option::is_none")]
        softirq: Option<u64>,
        /// Ready to run but not let run by the host.
        #[serde(skip_serializing_if = "Option::is_none")]
        steal: Option<u64>,
        /// Running virtual machines of the guest's own; also contained in `user`.
        #[serde(skip_serializing_if = "Option::is_none")]
        guest: Option<u64>,
        /// Running such virtual machines of lowered priority; also contained in `nice`.
        #[serde(skip_serializing_if = "Option::is_none")]
        guestnice: Option<u64>,
    }
}

command! {
    "guest-get-load", since "10.0", reply LoadAverage,
    /// Returns the load: how many processes ran or waited to run, averaged over time.
    ///
    /// On Linux processes that wait for a disk count too. Windows has it since 10.2.
    pub struct GetLoad {}
}

object! {
    /// What `guest-get-load` returns.
    pub struct LoadAverage as "GuestLoadAverage" {
        /// The average over one minute.
        load1m: f64,
        /// The average over five minutes.
        load5m: f64,
        /// The average over fifteen minutes.
        load15m: f64,
    }
}

#[cfg(test)]
mod tests {
    use super::{CpuStats, LinuxCpuStats, LoadAverage};

    fn check(text: &str, stats: LinuxCpuStats) {
        let stats = CpuStats::Linux(stats);
        assert_eq!(serde_json::to_string(&stats).unwrap(), text);
        assert_eq!(serde_json::from_str::<CpuStats>(text).unwrap(), stats);
    }

    #[test]
    fn the_system_stands_beside_its_members() {
        let oldest = LinuxCpuStats {
            cpu: 0,
            user: u64::MAX,
            nice: 2,
            system: 3,
            idle: 4,
            iowait: None,
            irq: None,
            softirq: None,
            steal: None,
            guest: None,
            guestnice: None,
        };
        check(r#"{"type":"linux","cpu":0,"user":18446744073709551615,"nice":2,"system":3,"idle":4}"#, oldest.clone());
        check(
            r#"{"type":"linux","cpu":0,"user":18446744073709551615,"nice":2,"system":3,"idle":4,"steal":8}"#,
            LinuxCpuStats { steal: Some(8), ..oldest },
        );
    }

    #[test]
    fn load_members_have_no_hyphen() {
        let load = LoadAverage { load1m: 0.5, load5m: 0.25, load15m: 0.125 };
        assert_eq!(serde_json::to_string(&load).unwrap(), r#"{"load1m":0.5,"load5m":0.25,"load15m":0.125}"#);
    }
}
