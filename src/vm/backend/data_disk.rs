//! Disks that a machine has beside its own.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::DiskFormat;

/// How many ports of PCI Express a machine keeps free, for data disks and for network devices on nets.
pub const SPARE_PORTS: u8 = 4;

/// Where a machine has a data disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DiskPlace {
    /// The disk's number among those of its VM; no later one gets it.
    pub number: u32,
    /// The port that it is plugged into.
    pub port: u8,
}

/// What a data disk's content is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataFile {
    /// A qcow2 image in the VM's directory.
    Own,
    /// A file or a block device of the user's.
    Source {
        /// Its path, absolute.
        path: PathBuf,
        /// Its format.
        format: DiskFormat,
        /// The guest can only read it.
        read_only: bool,
        /// It is a block device.
        is_device: bool,
    },
}

/// A data disk as a machine is given it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDisk {
    /// Where it is.
    pub place: DiskPlace,
    /// The serial number that the guest sees.
    pub serial: String,
    /// What its content is in.
    pub file: DataFile,
}
