//! The guest's devices and their drivers: `guest-get-devices`, on Windows alone.
//!
//! It answers which version of the virtio drivers a guest has. Disks are in `storage.rs`, network cards in
//! `network.rs`.

use serde::{Deserialize, Serialize};

use crate::command::{Command, Family, Platforms, Type, Wire};
use crate::{command, object};

/// The family's commands.
pub const FAMILY: Family = Family { name: "devices", commands: &[GetDevices::INFO] };

command! {
    "guest-get-devices", since "5.2", reply Vec<DeviceInfo>, rules { platforms: Platforms::WINDOWS },
    /// Lists the devices that have a driver: the PCI devices of the vendors 0x1AF4 (virtio) and 0x1B36 (QEMU).
    ///
    /// Errors: a device tree that cannot be read.
    pub struct GetDevices {}
}

object! {
    /// A device in the reply of `guest-get-devices`.
    pub struct DeviceInfo as "GuestDeviceInfo" {
        /// The name under which the system shows the device, which its driver gives.
        driver_name: String,
        /// The driver's date in nanoseconds since 1970-01-01 00:00:00 UTC.
        #[serde(skip_serializing_if = "Option::is_none")]
        driver_date: Option<i64>,
        /// The driver's version.
        #[serde(skip_serializing_if = "Option::is_none")]
        driver_version: Option<String>,
        /// What the device is.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<DeviceId>,
    }
}

/// What a device is: on the wire an object whose member `type` names the bus, beside that bus's own members.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum DeviceId {
    /// `pci`: a PCI device.
    Pci(PciDeviceId),
    /// Another bus, which this library does not know. No agent of this project says so.
    #[serde(other)]
    Other,
}

impl Wire for DeviceId {
    const TYPE: Type = Type::Named("GuestDeviceId");
}

object! {
    /// The numbers of a PCI device.
    pub struct PciDeviceId as "GuestDeviceIdPCI" {
        /// The vendor.
        vendor_id: u16,
        /// The vendor's number for the device.
        device_id: u16,
    }
}

#[cfg(test)]
mod tests {
    use super::{DeviceId, PciDeviceId};

    #[test]
    fn the_bus_stands_beside_its_members() {
        let text = r#"{"type":"pci","vendor-id":6900,"device-id":4096}"#;
        let device = DeviceId::Pci(PciDeviceId { vendor_id: 0x1af4, device_id: 0x1000 });
        assert_eq!(serde_json::to_string(&device).unwrap(), text);
        assert_eq!(serde_json::from_str::<DeviceId>(text).unwrap(), device);
    }
}
