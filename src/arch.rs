//! Architectures of guests: the one table of what differs between them in QEMU, in Debian and in
//! the guest.
//!
//! Data only. Whether KVM runs a guest here is `qemu::accel`'s.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::programs::Program;

/// The architecture of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// 64-bit PCs.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

/// What is particular to an architecture.
#[derive(Debug)]
pub struct Platform {
    /// What `uname -m` says in the guest.
    pub name: &'static str,
    /// What Debian calls it.
    pub debian: &'static str,
    /// QEMU's program.
    pub emulator: Program,
    /// The machine type without a version.
    pub machine: &'static str,
    /// What stands before a machine type's version.
    pub machine_prefix: &'static str,
    /// Properties of the machine.
    pub machine_options: &'static str,
    /// The processor under TCG.
    pub tcg_cpu: &'static str,
    /// The processors to try under KVM, best first.
    pub kvm_cpus: &'static [&'static str],
    /// The serial line's name in the guest.
    pub console: &'static str,
    /// What a small kernel's command line has besides.
    pub cmdline: &'static str,
    /// The machine has a generation that a clone's kernel notices.
    pub has_vmgenid: bool,
    /// Processors can be added to a running machine.
    pub has_spare_cpus: bool,
}

/// Not `qemu64` under TCG: its random numbers would not be seeded when an SSH server needs them,
/// and `max` boots as fast. `-arch-capabilities`: QEMU aborts where the host's KVM does not know
/// that register.
static X86_64: Platform = Platform {
    name: "x86_64",
    debian: "amd64",
    emulator: Program { name: "qemu-system-x86_64", package: "qemu-system-x86" },
    machine: "q35",
    machine_prefix: "pc-q35-",
    // Nothing hangs on USB, SATA and SMBus, and a guest would spend its boot probing.
    machine_options: "usb=off,vmport=off,smbus=off,sata=off",
    tcg_cpu: "max",
    kvm_cpus: &["host", "host,-arch-capabilities", "qemu64"],
    console: "ttyS0",
    cmdline: "no_timer_check",
    has_vmgenid: true,
    has_spare_cpus: true,
};

/// Pointer authentication by QEMU's own algorithm: the architected one takes a third of the time
/// that TCG has. `virt` has no ACPI without firmware, and so no power button and no vmgenid.
static AARCH64: Platform = Platform {
    name: "aarch64",
    debian: "arm64",
    emulator: Program { name: "qemu-system-aarch64", package: "qemu-system-arm" },
    machine: "virt",
    machine_prefix: "virt-",
    machine_options: "gic-version=max",
    tcg_cpu: "max,pauth-impdef=on",
    kvm_cpus: &["host"],
    console: "ttyAMA0",
    cmdline: "",
    has_vmgenid: false,
    has_spare_cpus: false,
};

impl Arch {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];
    /// The host's; on a host of another kind, the one that most images are made for.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// Returns its row.
    pub fn platform(self) -> &'static Platform {
        match self {
            Self::X86_64 => &X86_64,
            Self::Aarch64 => &AARCH64,
        }
    }

    /// Says whether the host's processor runs its code.
    pub fn is_native(self) -> bool {
        self.platform().name == std::env::consts::ARCH
    }
}

impl Default for Arch {
    fn default() -> Self {
        Self::HOST
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.platform().name)
    }
}

/// Reads its name, or Debian's.
impl FromStr for Arch {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is = |arch: &Self| [arch.platform().name, arch.platform().debian].contains(&text);
        Self::ALL.into_iter().find(is).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_name_that_reads_back_and_is_stored_by_it() {
        for arch in Arch::ALL {
            assert_eq!(arch.to_string().parse(), Ok(arch));
            assert_eq!(arch.platform().debian.parse(), Ok(arch));
            let stored = serde_json::to_string(&arch).unwrap();
            assert_eq!(stored, format!("\"{arch}\""));
        }
        assert_eq!("riscv64".parse::<Arch>(), Err(()));
        assert_eq!(Arch::default(), Arch::HOST);
    }
}
