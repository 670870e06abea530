//! What a VM should be: its settings ([`VmSpec`]), how each is written and read ([`keys`]), checked
//! ([`parse`], [`text`]), which of several values holds ([`resolve`]), what an address and a forward
//! are ([`net`]), how a length of time is written ([`span`]), and what a limit is ([`limit`]).
//!
//! No I/O here: whether a file that a setting names is there is asked when the VM starts.

pub mod container;
pub mod keys;
pub mod limit;
pub mod net;
mod parse;
pub mod resolve;
pub mod span;
pub mod text;
pub mod yaml;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::container::ContainerProcess;
pub use self::keys::{Edit, Form, KEYS, Key, Takes};
pub use self::limit::{CpuLimit, HostLimits, IoLimit};
use self::net::{Destination, Forward, Mac, Network};
pub use self::resolve::{ImageSettings, VmSettings};
use super::hardware::Hardware;
use crate::arch::Arch;

/// Smallest memory that a guest is given, in bytes.
pub const MIN_MEMORY: u64 = 32 << 20;
/// Largest memory that can be asked for, in bytes.
pub const MAX_MEMORY: u64 = 4 << 40;
/// Smallest disk, in bytes.
pub const MIN_DISK: u64 = 16 << 20;
/// Largest disk, in bytes.
pub const MAX_DISK: u64 = 64 << 40;
/// Nets that a VM can be on: each takes one of the ports that the machine keeps free.
pub const MOST_NETS: u8 = 4;
/// Most processors.
pub const MAX_CPUS: u32 = 255;

/// The accelerator a VM asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// KVM where it has been shown to work, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Translation.
    Tcg,
}

/// The firmware that a machine starts with, instead of QEMU's BIOS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Firmware {
    /// The host's UEFI, with variables of the VM's own.
    Uefi,
    /// This file, which keeps nothing.
    File(PathBuf),
}

/// The word for UEFI.
const UEFI: &str = "uefi";

impl From<String> for Firmware {
    fn from(text: String) -> Self {
        if text == UEFI { Self::Uefi } else { Self::File(text.into()) }
    }
}

impl From<Firmware> for String {
    fn from(firmware: Firmware) -> Self {
        match firmware {
            Firmware::Uefi => UEFI.to_owned(),
            Firmware::File(path) => path.display().to_string(),
        }
    }
}

impl Firmware {
    /// Returns the file that the user names.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Uefi => None,
            Self::File(path) => Some(path),
        }
    }
}

/// A VM's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmSpec {
    /// The image that the disk is made from.
    pub image: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory in bytes.
    pub memory: u64,
    /// The disk's virtual size in bytes; the image's own size if that is larger.
    pub disk: u64,
    /// The guest's host name; `None` is the VM's name.
    pub hostname: Option<String>,
    /// The network address; `None` is derived from the VM's identity.
    pub mac: Option<Mac>,
    /// Ports of the host that lead into the guest.
    pub ports: Vec<Forward>,
    /// What the guest reaches.
    pub net: Network,
    /// Where it may go with [`Network::Allow`].
    pub allow: Vec<Destination>,
    /// The nets that it is a member of.
    pub nets: Vec<String>,
    /// The processor's architecture.
    pub arch: Arch,
    /// How to run.
    pub accel: AccelChoice,
    /// The login name for SSH.
    pub ssh_user: String,
    /// Public keys that open the guest beside ours, as lines of `authorized_keys`.
    pub ssh_key: Vec<String>,
    /// The kernel instead of the image's.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk that goes with it.
    pub initrd: Option<PathBuf>,
    /// What is added to the image's kernel command line.
    pub cmdline: Option<String>,
    /// The firmware instead of QEMU's own.
    pub firmware: Option<Firmware>,
    /// The machine type with its version; `None` is the newest that QEMU has for the architecture.
    pub machine: Option<String>,
    /// The version of the hardware; `None` is the newest, or that of the memory that is loaded.
    pub hardware: Option<Hardware>,
    /// What a container of the image runs; `None` for an image that is no container.
    pub container: Option<ContainerProcess>,
    /// The disc in the CD-ROM drive.
    pub cdrom: Option<PathBuf>,
    /// What the guest writes to its disk is gone when the VM ends.
    pub ephemeral: bool,
    /// What cloud-init or tiny-cloud reads at the first boot.
    pub user_data: Option<String>,
    /// The network configuration that cloud-init reads at the first boot.
    pub network_data: Option<String>,
    /// What Ignition reads at the first boot.
    pub ignition: Option<String>,
    /// Credentials for the guest's systemd: `NAME=VALUE`.
    pub credentials: Vec<String>,
    /// It is started although the host may not have the memory for it.
    pub overcommit: bool,
    /// The VM is started when the tree is mounted.
    pub autostart: bool,
    /// The VM is removed for good when it has run and is off.
    pub autoremove: bool,
    /// So long after this was written, or the VM was made, the VM is removed.
    pub expire: Option<Duration>,
    /// The VM is suspended when it was not used for so long.
    pub idle: Option<Duration>,
    /// How much its QEMU gets of the host's processors.
    pub cpu_limit: Option<CpuLimit>,
    /// From so many bytes of the host's memory on, its QEMU is slowed down.
    pub memory_high: Option<u64>,
    /// Its QEMU never has more bytes of the host's memory.
    pub memory_max: Option<u64>,
    /// How much its disks may transfer.
    pub io_limit: Option<IoLimit>,
    /// The VM cannot be removed.
    pub protect: bool,
    /// Further arguments for QEMU, one word each.
    pub qemu_args: Vec<String>,
}

impl Default for VmSpec {
    fn default() -> Self {
        Self {
            image: "tiny".to_owned(),
            cpus: 1,
            memory: 256 << 20,
            disk: 2 << 30,
            hostname: None,
            mac: None,
            ports: Vec::new(),
            net: Network::User,
            allow: Vec::new(),
            nets: Vec::new(),
            arch: Arch::HOST,
            accel: AccelChoice::Auto,
            ssh_user: "root".to_owned(),
            ssh_key: Vec::new(),
            kernel: None,
            initrd: None,
            cmdline: None,
            firmware: None,
            machine: None,
            hardware: None,
            container: None,
            cdrom: None,
            ephemeral: false,
            user_data: None,
            network_data: None,
            ignition: None,
            credentials: Vec::new(),
            overcommit: false,
            autostart: false,
            autoremove: false,
            expire: None,
            idle: None,
            cpu_limit: None,
            memory_high: None,
            memory_max: None,
            io_limit: None,
            protect: false,
            qemu_args: Vec::new(),
        }
    }
}

impl VmSpec {
    /// Says whether the machine has UEFI, with variables of its own.
    pub fn has_uefi(&self) -> bool {
        self.firmware == Some(Firmware::Uefi)
    }

    /// Returns the version of the hardware with which a VM boots.
    pub fn hardware_at_boot(&self) -> Hardware {
        self.hardware.unwrap_or(Hardware::NEWEST)
    }
}

/// Why a value was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error's sentence says it")]
pub enum SpecError {
    #[error("{key}: {value:?} is not {expected}")]
    Malformed {
        key: &'static str,
        value: String,
        /// What would be right, with an example.
        expected: &'static str,
    },
    #[error("{key}: line {line}: {reason}")]
    Text {
        key: &'static str,
        /// Its number, from 1.
        line: usize,
        /// What is wrong, and the next step.
        reason: String,
    },
    #[error("{key}: {value} is out of range ({range})")]
    OutOfRange { key: &'static str, value: String, range: &'static str },
    #[error("{key}: {value} is there already")]
    Duplicate {
        key: &'static str,
        /// What was written, or what it collides with.
        value: String,
    },
    #[error("{key}: {value} is not in the list; `cat config/{key}` shows it")]
    NotThere { key: &'static str, value: String },
    #[error(
        "disk: {wanted} is smaller than the disk, which has {size}; shrinking would cut off the \
         guest's file system"
    )]
    Shrinks { wanted: String, size: String },
}

impl VmSpec {
    /// Adds a forward.
    ///
    /// # Errors
    /// [`SpecError::Duplicate`] if the host's port is in the list.
    pub fn add_port(&mut self, forward: Forward) -> Result<(), SpecError> {
        if let Some(there) = self.ports.iter().find(|f| f.collides(&forward)) {
            return Err(SpecError::Duplicate { key: "ports", value: there.to_string() });
        }
        self.ports.push(forward);
        Ok(())
    }

    /// Takes a forward out.
    pub fn remove_port(&mut self, forward: &Forward) -> Result<(), SpecError> {
        let at = self.ports.iter().position(|f| f == forward);
        let value = forward.to_string();
        let at = at.ok_or(SpecError::NotThere { key: "ports", value })?;
        self.ports.remove(at);
        Ok(())
    }
}

/// Says whether a string is a VM's name, which is also its host name: `[a-z0-9][a-z0-9-]{0,31}`.
pub fn is_vm_name(name: &str) -> bool {
    let rest = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    name.len() <= 32 && !name.starts_with('-') && !name.is_empty() && name.bytes().all(rest)
}

/// Says whether a string names an image, a tag or a job: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
pub fn is_object_name(name: &str) -> bool {
    let rest = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    name.len() <= 64
        && name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && name.bytes().all(rest)
}

/// Reads a size: a whole number of bytes, or one with `K`, `M`, `G` or `T` (powers of 1024, also
/// `k`, `KiB` and so on).
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// Prints a size with the largest unit that divides it: `2048M` is `2G`.
pub fn render_size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    units
        .iter()
        .find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift))
        .map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// Prints an accelerator's word.
pub fn render_accel(accel: AccelChoice) -> &'static str {
    match accel {
        AccelChoice::Auto => "auto",
        AccelChoice::Kvm => "kvm",
        AccelChoice::Tcg => "tcg",
    }
}

#[cfg(test)]
mod tests;
