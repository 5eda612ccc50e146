//! Disks, the file systems on them, and giving free space back: `guest-fstrim`, `guest-get-fsinfo`, `guest-get-disks`,
//! `guest-get-diskstats`.
//!
//! The family leaves out freezing, which is in `fsfreeze.rs`, and the content of files, which is in `file.rs`. It
//! mounts nothing and changes no file.

use serde::{Deserialize, Serialize};

use crate::command::{Command, Family, Open, Platforms, Type, Wire};
use crate::{command, enumeration, object};

/// The family's commands.
pub const FAMILY: Family =
    Family { name: "storage", commands: &[Trim::INFO, GetFsInfo::INFO, GetDisks::INFO, GetDiskStats::INFO] };

command! {
    "guest-fstrim", since "1.2", reply TrimReport, rules { exclusive: true, platforms: Platforms::NOT_BSD },
    /// Tells the disks which blocks the mounted file systems do not use, so that the host can reclaim them.
    ///
    /// On Linux it covers the file systems that `guest-get-fsinfo` lists; on Windows the fixed volumes. It can take
    /// long. A file system that fails does not end it, nor is it an error of the command.
    ///
    /// Errors: file systems that cannot be listed.
    pub struct Trim {
        /// The shortest run of free bytes to discard; 0, which is every one, if absent. A file system may raise it to
        /// its block size, or refuse one that is too large. Ignored on Windows.
        #[serde(skip_serializing_if = "Option::is_none")]
        minimum: Option<i64>,
    }
}

object! {
    /// What `guest-fstrim` returns (since 2.4; nothing before).
    pub struct TrimReport as "GuestFilesystemTrimResponse" {
        /// A result for each file system.
        #[serde(default)]
        paths: Vec<TrimResult>,
    }
}

object! {
    /// What became of a file system in `guest-fstrim` (since 2.4).
    pub struct TrimResult as "GuestFilesystemTrimResult" {
        /// Its mount point.
        path: String,
        /// Bytes discarded, on Linux. The file system may leave out what it has discarded before.
        #[serde(skip_serializing_if = "Option::is_none")]
        trimmed: Option<i64>,
        /// The shortest run of free bytes that was discarded, on Linux: the one asked for or the file system's own.
        #[serde(skip_serializing_if = "Option::is_none")]
        minimum: Option<i64>,
        /// Why it failed, or that the file system or its disk does not support it; absent after a success.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    }
}

command! {
    "guest-get-fsinfo", since "2.2", reply Vec<FilesystemInfo>, rules { platforms: Platforms::NOT_BSD },
    /// Lists the mounted file systems and the disks beneath each.
    ///
    /// On Linux these are the ones with a block device, each once, the last mounted first; network and memory file
    /// systems, and others without a device, are left out. On Windows these are the volumes.
    ///
    /// A file system that does not say its sizes in time lacks those three members.
    ///
    /// Errors: mounts or volumes that cannot be listed.
    pub struct GetFsInfo {}
}

object! {
    /// A file system in the reply of `guest-get-fsinfo`.
    pub struct FilesystemInfo as "GuestFilesystemInfo" {
        /// The kernel's name of the block device: `vda1`, `dm-0`; on Windows the volume's name.
        name: String,
        /// Where it is mounted; what `guest-fsfreeze-freeze-list` takes. `System Reserved` for a Windows volume that is
        /// mounted nowhere.
        mountpoint: String,
        /// The file system: `ext4`, `NTFS`.
        r#type: String,
        /// Bytes in use (since 3.0); absent with the next two if the system does not tell.
        #[serde(skip_serializing_if = "Option::is_none")]
        used_bytes: Option<u64>,
        /// Bytes in all for ordinary users, without what is kept for root (since 3.0).
        #[serde(skip_serializing_if = "Option::is_none")]
        total_bytes: Option<u64>,
        /// Bytes in all for root (since 9.1). Not on Windows.
        #[serde(skip_serializing_if = "Option::is_none")]
        total_bytes_privileged: Option<u64>,
        /// The real disks beneath, through logical volumes, encryption and RAID; empty if none is known.
        disk: Vec<DiskAddress>,
    }
}

object! {
    /// Where a disk is attached. The host finds its own disk by this.
    pub struct DiskAddress as "GuestDiskAddress" {
        /// The PCI function of the controller; -1 in all its members if there is none or it is not known.
        pci_controller: PciAddress,
        /// How the disk is attached.
        bus_type: Open<DiskBusType>,
        /// The controller's bus or channel; 0 where there is no such thing.
        bus: i64,
        /// The target on it; 0 where there is no such thing.
        target: i64,
        /// The unit, which is the LUN of a SCSI disk and the port of a SATA disk; 0 where there is no such thing.
        unit: i64,
        /// The serial number, together with the model where the system knows the disk by both (since 3.1).
        #[serde(skip_serializing_if = "Option::is_none")]
        serial: Option<String>,
        /// The device node: `/dev/vda1`, `\\.\PhysicalDrive0` (since 3.1).
        #[serde(skip_serializing_if = "Option::is_none")]
        dev: Option<String>,
        /// The channel device, on s390x alone (since 6.0).
        #[serde(skip_serializing_if = "Option::is_none")]
        ccw_address: Option<CcwAddress>,
    }
}

object! {
    /// The address of a PCI function; all -1 if not known.
    pub struct PciAddress as "GuestPCIAddress" {
        /// The domain, or segment.
        domain: i64,
        /// The bus.
        bus: i64,
        /// The slot, or device.
        slot: i64,
        /// The function.
        function: i64,
    }
}

object! {
    /// The address of a channel device of s390x (since 6.0).
    pub struct CcwAddress as "GuestCCWAddress" {
        /// The channel subsystem image.
        cssid: i64,
        /// The subchannel set.
        ssid: i64,
        /// The subchannel.
        subchno: i64,
        /// The device number.
        devno: i64,
    }
}

enumeration! {
    /// How a disk is attached. Linux guests report `ide`, `scsi`, `virtio`, `usb`, `sata`, `nvme` and `unknown`.
    pub enum DiskBusType as "GuestDiskBusType" {
        /// IDE, or parallel ATA.
        Ide,
        /// A floppy disk controller.
        Fdc,
        /// SCSI, virtio-scsi included.
        Scsi,
        /// virtio-blk.
        Virtio,
        /// Xen.
        Xen,
        /// USB.
        Usb,
        /// User mode Linux.
        Uml,
        /// SATA.
        Sata,
        /// An SD card.
        Sd,
        /// Not known (since 2.4, as all that follow but `nvme`).
        Unknown,
        /// IEEE 1394, or `FireWire`.
        Ieee1394,
        /// Serial Storage Architecture.
        Ssa,
        /// Fibre Channel.
        Fibre,
        /// A RAID controller.
        Raid,
        /// iSCSI.
        Iscsi,
        /// Serial Attached SCSI.
        Sas,
        /// A multimedia card.
        Mmc,
        /// A virtual disk of the guest's own.
        Virtual,
        /// A virtual disk of the guest's own, kept in a file.
        FileBackedVirtual,
        /// NVM Express (since 7.1).
        Nvme,
    }
}

command! {
    "guest-get-disks", since "5.2", reply Vec<DiskInfo>, rules { platforms: Platforms::NOT_BSD },
    /// Lists the disks and, on Linux, their partitions and what is built upon them, mounted or not.
    ///
    /// What the kernel lists last comes first on Linux; partitions stand directly before their disk. Disks of size 0, such as an empty
    /// drive or an unused loop device, are left out.
    ///
    /// Errors: disks that cannot be listed.
    pub struct GetDisks {}
}

object! {
    /// A disk or partition in the reply of `guest-get-disks`.
    pub struct DiskInfo as "GuestDiskInfo" {
        /// The device node: `/dev/vda`, `\\.\PhysicalDrive0`.
        name: String,
        /// Whether it is a partition.
        partition: bool,
        /// Device nodes that it is built upon: the disk of a partition, the parts of a logical volume or RAID. Not on
        /// Windows.
        #[serde(skip_serializing_if = "Option::is_none")]
        dependencies: Option<Vec<String>>,
        /// Where it is attached; absent for partitions and for what is built upon other disks.
        #[serde(skip_serializing_if = "Option::is_none")]
        address: Option<DiskAddress>,
        /// Another name, which for a device mapper's device is the mapper's: `vg0-home`.
        #[serde(skip_serializing_if = "Option::is_none")]
        alias: Option<String>,
        /// What the disk says of its health (since 7.1); NVM Express disks on Linux alone.
        #[serde(skip_serializing_if = "Option::is_none")]
        smart: Option<Open<DiskSmart, serde_json::Value>>,
    }
}

/// What a disk says of its health (since 7.1): on the wire an object whose member `type`, a bus type, says what other
/// members it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum DiskSmart {
    /// `nvme`: the SMART log page of an NVM Express disk. Other bus types have none.
    Nvme(NvmeSmart),
}

impl Wire for DiskSmart {
    const TYPE: Type = Type::Named("GuestDiskSmart");
}

object! {
    /// The SMART log page of an NVM Express disk (since 7.1), as its specification describes it. Counters have 128
    /// bits: `-lo` is the lower half, `-hi` the upper.
    pub struct NvmeSmart as "GuestNVMeSmart" {
        /// Warnings, a bit each: 1 spare space low, 2 temperature, 4 reliability, 8 read-only, 16 backup of volatile
        /// memory.
        critical_warning: i64,
        /// The temperature in kelvin.
        temperature: i64,
        /// The spare space that is left, in percent.
        available_spare: i64,
        /// The percentage of spare space below which the first warning is given.
        available_spare_threshold: i64,
        /// The estimated life that is used up, in percent; may exceed 100, ends at 255.
        percentage_used: i64,
        /// Units of 512000 bytes read, lower half.
        data_units_read_lo: u64,
        /// Units of 512000 bytes read, upper half.
        data_units_read_hi: u64,
        /// Units of 512000 bytes written, lower half.
        data_units_written_lo: u64,
        /// Units of 512000 bytes written, upper half.
        data_units_written_hi: u64,
        /// Read commands, lower half.
        host_read_commands_lo: u64,
        /// Read commands, upper half.
        host_read_commands_hi: u64,
        /// Write commands, lower half.
        host_write_commands_lo: u64,
        /// Write commands, upper half.
        host_write_commands_hi: u64,
        /// Minutes in which the controller was busy, lower half.
        controller_busy_time_lo: u64,
        /// Minutes in which the controller was busy, upper half.
        controller_busy_time_hi: u64,
        /// Power cycles, lower half.
        power_cycles_lo: u64,
        /// Power cycles, upper half.
        power_cycles_hi: u64,
        /// Hours under power, lower half.
        power_on_hours_lo: u64,
        /// Hours under power, upper half.
        power_on_hours_hi: u64,
        /// Power losses without a shutdown, lower half.
        unsafe_shutdowns_lo: u64,
        /// Power losses without a shutdown, upper half.
        unsafe_shutdowns_hi: u64,
        /// Errors of the medium that could not be corrected, lower half.
        media_errors_lo: u64,
        /// Errors of the medium that could not be corrected, upper half.
        media_errors_hi: u64,
        /// Entries of the error log over the controller's life, lower half.
        number_of_error_log_entries_lo: u64,
        /// Entries of the error log over the controller's life, upper half.
        number_of_error_log_entries_hi: u64,
    }
}

command! {
    "guest-get-diskstats", since "7.1", reply Vec<DiskStatsInfo>, rules { platforms: Platforms::LINUX },
    /// Lists the counters of all block devices, partitions included, from `/proc/diskstats` and in its order.
    pub struct GetDiskStats {}
}

object! {
    /// A block device in the reply of `guest-get-diskstats`.
    pub struct DiskStatsInfo as "GuestDiskStatsInfo" {
        /// The kernel's name: `vda1`.
        name: String,
        /// The major device number.
        major: u64,
        /// The minor device number.
        minor: u64,
        /// The counters.
        stats: DiskStats,
    }
}

object! {
    /// The counters of a block device since the guest started. Sectors are of 512 bytes, ticks are milliseconds; a
    /// request's ticks are its whole time, queue included. Members that the kernel is too old to count are absent.
    pub struct DiskStats as "GuestDiskStats" {
        /// Sectors read.
        #[serde(skip_serializing_if = "Option::is_none")]
        read_sectors: Option<u64>,
        /// Reads finished.
        #[serde(skip_serializing_if = "Option::is_none")]
        read_ios: Option<u64>,
        /// Reads merged with a neighbour.
        #[serde(skip_serializing_if = "Option::is_none")]
        read_merges: Option<u64>,
        /// Sectors written.
        #[serde(skip_serializing_if = "Option::is_none")]
        write_sectors: Option<u64>,
        /// Writes finished.
        #[serde(skip_serializing_if = "Option::is_none")]
        write_ios: Option<u64>,
        /// Writes merged with a neighbour.
        #[serde(skip_serializing_if = "Option::is_none")]
        write_merges: Option<u64>,
        /// Sectors discarded (kernel 4.18).
        #[serde(skip_serializing_if = "Option::is_none")]
        discard_sectors: Option<u64>,
        /// Discards finished (kernel 4.18).
        #[serde(skip_serializing_if = "Option::is_none")]
        discard_ios: Option<u64>,
        /// Discards merged with a neighbour (kernel 4.18).
        #[serde(skip_serializing_if = "Option::is_none")]
        discard_merges: Option<u64>,
        /// Flushes finished (kernel 5.5).
        #[serde(skip_serializing_if = "Option::is_none")]
        flush_ios: Option<u64>,
        /// Milliseconds of all reads together.
        #[serde(skip_serializing_if = "Option::is_none")]
        read_ticks: Option<u64>,
        /// Milliseconds of all writes together.
        #[serde(skip_serializing_if = "Option::is_none")]
        write_ticks: Option<u64>,
        /// Milliseconds of all discards together (kernel 4.18).
        #[serde(skip_serializing_if = "Option::is_none")]
        discard_ticks: Option<u64>,
        /// Milliseconds of all flushes together (kernel 5.5).
        #[serde(skip_serializing_if = "Option::is_none")]
        flush_ticks: Option<u64>,
        /// Requests under way now.
        #[serde(skip_serializing_if = "Option::is_none")]
        ios_pgr: Option<u64>,
        /// Milliseconds during which any request was under way.
        #[serde(skip_serializing_if = "Option::is_none")]
        total_ticks: Option<u64>,
        /// Milliseconds of all requests together.
        #[serde(skip_serializing_if = "Option::is_none")]
        weight_ticks: Option<u64>,
    }
}

#[cfg(test)]
mod tests {
    use super::{DiskBusType, DiskSmart, TrimReport};

    #[test]
    fn smart_values_stand_beside_the_bus_type() {
        let text = concat!(
            r#"{"type":"nvme","critical-warning":0,"temperature":323,"available-spare":100,"#,
            r#""available-spare-threshold":10,"percentage-used":3,"data-units-read-lo":18446744073709551615,"#,
            r#""data-units-read-hi":1,"data-units-written-lo":2,"data-units-written-hi":3,"host-read-commands-lo":4,"#,
            r#""host-read-commands-hi":5,"host-write-commands-lo":6,"host-write-commands-hi":7,"#,
            r#""controller-busy-time-lo":8,"controller-busy-time-hi":9,"power-cycles-lo":10,"power-cycles-hi":11,"#,
            r#""power-on-hours-lo":12,"power-on-hours-hi":13,"unsafe-shutdowns-lo":14,"unsafe-shutdowns-hi":15,"#,
            r#""media-errors-lo":16,"media-errors-hi":17,"number-of-error-log-entries-lo":18,"#,
            r#""number-of-error-log-entries-hi":19}"#,
        );
        let smart: DiskSmart = serde_json::from_str(text).unwrap();
        let DiskSmart::Nvme(values) = &smart;
        assert_eq!(values.data_units_read_lo, u64::MAX);
        assert_eq!(serde_json::to_string(&smart).unwrap(), text);
    }

    #[test]
    fn bus_types_are_spelt_as_in_the_schema() {
        let spelling = |bus: DiskBusType| serde_json::to_value(bus).unwrap();
        assert_eq!(spelling(DiskBusType::Ieee1394), "ieee1394");
        assert_eq!(spelling(DiskBusType::FileBackedVirtual), "file-backed-virtual");
    }

    #[test]
    fn a_bus_type_of_next_year_is_what_it_says() {
        let text = concat!(
            r#"{"pci-controller":{"domain":0,"bus":0,"slot":0,"function":0},"bus-type":"ufs","#,
            r#""bus":0,"target":0,"unit":0}"#
        );
        let address: super::DiskAddress = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&address).unwrap(), text);
        assert!(address.bus_type != DiskBusType::Virtio && address.bus_type.known().is_none());
        let smart = r#"{"name":"/dev/sda","partition":false,"smart":{"type":"ufs","wear":3}}"#;
        let disk: super::DiskInfo = serde_json::from_str(smart).unwrap();
        assert_eq!(serde_json::to_string(&disk).unwrap(), smart);
        // What is no text is no value of an enumeration.
        assert!(serde_json::from_str::<super::DiskAddress>(&text.replace("\"ufs\"", "7")).is_err());
    }

    #[test]
    fn trim_reply_of_old_agents_is_understood() {
        assert!(serde_json::from_str::<TrimReport>("{}").unwrap().paths.is_empty());
    }
}
