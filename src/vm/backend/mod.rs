//! What a VM's driver needs from the backends, as traits: a hypervisor, a way into the guest, a serial
//! line, images. `qemu`, `guest` and `image` implement them; tests use fakes.
//!
//! No policy here (`state.rs`), and no names of files on disk (`store::layout`).

mod data_disk;
mod error;
mod files;
mod guest;
mod hypervisor;
mod image;
mod machine;
mod shares;
mod switch;

pub use data_disk::*;
pub use error::*;
pub use files::*;
pub use guest::*;
pub use hypervisor::*;
pub use image::*;
pub use machine::*;
pub use shares::*;
pub use switch::*;

pub use crate::disk::DiskFormat;
pub use crate::disk::snapshot_table::SnapshotInfo;
