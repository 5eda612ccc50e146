//! Who the guest is and who uses it: `guest-get-osinfo`, `guest-get-host-name`, `guest-get-users`.
//!
//! The family only reads. Changing accounts is in `accounts.rs`; addresses are in `network.rs`.

use crate::command::{Command, Family};
use crate::{command, object};

/// The family's commands.
pub const FAMILY: Family = Family { name: "identity", commands: &[GetOsInfo::INFO, GetHostName::INFO, GetUsers::INFO] };

command! {
    "guest-get-osinfo", since "2.10", reply OsInfo,
    /// Returns what operating system the guest runs.
    ///
    /// The kernel's part comes from uname(2); the rest from `/etc/os-release`, or `/usr/lib/os-release` if there is no
    /// such file. A missing file or key is no error: the members are absent then. `QGA_OS_RELEASE` in the agent's
    /// environment names another file.
    pub struct GetOsInfo {}
}

object! {
    /// What `guest-get-osinfo` returns.
    pub struct OsInfo as "GuestOSInfo" {
        /// The kernel's release, as `uname -r`; on Windows the build number.
        #[serde(skip_serializing_if = "Option::is_none")]
        kernel_release: Option<String>,
        /// The kernel's version, as `uname -v`; on Windows its major and minor number, `10.0`.
        #[serde(skip_serializing_if = "Option::is_none")]
        kernel_version: Option<String>,
        /// The hardware, as `uname -m`: `x86_64`, `aarch64`.
        #[serde(skip_serializing_if = "Option::is_none")]
        machine: Option<String>,
        /// `ID` of os-release: `debian`; `mswindows` on Windows.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// `NAME` of os-release; `Microsoft Windows` on Windows.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// `PRETTY_NAME` of os-release; on Windows the registry's product name.
        #[serde(skip_serializing_if = "Option::is_none")]
        pretty_name: Option<String>,
        /// `VERSION` of os-release; on Windows the name with its version, `Microsoft Windows Server 2022`.
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        /// `VERSION_ID` of os-release; on Windows the version alone, `2022`.
        #[serde(skip_serializing_if = "Option::is_none")]
        version_id: Option<String>,
        /// `VARIANT` of os-release; on Windows `client` or `server`.
        #[serde(skip_serializing_if = "Option::is_none")]
        variant: Option<String>,
        /// `VARIANT_ID` of os-release; on Windows as `variant`.
        #[serde(skip_serializing_if = "Option::is_none")]
        variant_id: Option<String>,
    }
}

command! {
    "guest-get-host-name", since "2.10", reply HostName,
    /// Returns the guest's host name, read at each call and as it is set: not completed to a domain name.
    pub struct GetHostName {}
}

object! {
    /// What `guest-get-host-name` returns.
    pub struct HostName as "GuestHostName" {
        /// The name; may be empty. On Windows the short name of at most 15 characters.
        host_name: String,
    }
}

command! {
    "guest-get-users", since "2.10", reply Vec<User>,
    /// Lists the users who are logged in, each once.
    ///
    /// An empty list also means that the guest keeps no record of logins.
    pub struct GetUsers {}
}

object! {
    /// A user in the reply of `guest-get-users`.
    pub struct User as "GuestUser" {
        /// The user's name.
        user: String,
        /// When the oldest of the user's sessions began, in seconds since 1970-01-01 00:00:00 UTC, with a fraction.
        login_time: f64,
        /// The user's domain, on Windows.
        #[serde(skip_serializing_if = "Option::is_none")]
        domain: Option<String>,
    }
}
