//! Disks, and files that hold a memory: what is in them, and how they are copied and changed.
//!
//! - [`qcow2`]: the header of a qcow2 image, and the lock that keeps QEMU out of it.
//! - [`snapshot_table`]: the snapshots in an image, and their renaming. [`vmstate`]: the memory in
//!   them.
//! - [`img`]: the program `qemu-img`. [`overlay`]: empty overlays.
//! - [`sparse`]: holes in files. [`fingerprint`]: whether a file still is what it was.
//!
//! Not here: VMs, machines and images, and where they keep their files. `qemu` and `image` both
//! stand on this layer; neither asks the other about a disk.

pub mod fingerprint;
pub mod img;
pub mod overlay;
pub mod qcow2;
pub mod snapshot_table;
pub mod sparse;
#[cfg(test)]
pub(crate) mod testing;
pub mod vmstate;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The format of a disk image: always stated to QEMU, never probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Plain bytes.
    Raw,
    /// QEMU's copy-on-write format, version 3.
    Qcow2,
}

impl DiskFormat {
    /// Returns QEMU's name for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// The format of a disk that is only converted, in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignFormat {
    /// VMware's.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
    /// VirtualBox's.
    Vdi,
}

impl ForeignFormat {
    /// Returns QEMU's name for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
        }
    }
}

/// One file of a disk: what is not in it is in the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The file, absolute.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
}

/// Why something could not be done with a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// `qemu-img` is not installed.
    #[error("qemu-img is not installed; {remedy}")]
    Missing {
        /// The command that installs it.
        remedy: String,
    },
    /// `qemu-img` found the host's disk full.
    #[error("{said}")]
    NoSpace {
        /// Its own last line.
        said: String,
    },
    /// `qemu-img` failed.
    #[error("qemu-img could not {what}: {said}")]
    QemuImg {
        /// What it was run for.
        what: String,
        /// Its own last line.
        said: String,
    },
    /// Another program has the disk open.
    #[error("the disk {}: another program uses it", .path.display())]
    InUse {
        /// The disk.
        path: PathBuf,
    },
    /// With the new name, the table of snapshots would take more or fewer clusters.
    #[error("the disk's table of snapshots has no room for another name of another length")]
    NoRoomInTable {
        /// The length of the old name.
        length: usize,
    },
    /// A system call failed.
    #[error("{what}: {error}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The system's answer.
        error: io::Error,
    },
}

impl DiskError {
    fn io(what: impl Into<String>, error: io::Error) -> Self {
        Self::Io { what: what.into(), error }
    }
}
