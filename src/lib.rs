//! aqfs: virtual machines as directories.
//!
//! The layers, outermost first; a layer names only those below it (`tests/rules/layers.rs` holds
//! this):
//!
//! - [`fuse`]: kernel requests in, replies out. The only place that names `fuser`.
//! - [`tree`]: what names exist and what reading or writing each one means, as tables.
//! - [`registry`]: name → VM; creation, removal, adoption after a restart.
//! - [`vm`]: one VM: its states, the task that drives it, and the traits of what it drives.
//! - [`qemu`], [`guest`], [`image`]: implementations of those traits.
//! - [`proxy`]: the web for guests that may reach a part of it.
//! - [`fetch`]: files from the network, resumed and verified.
//! - [`nfs`]: a server of files for one guest.
//! - [`store`]: names and formats on disk.
//!
//! Beside them, a user of the mount as any other: [`commands`], the command line's own programs
//! over the files; [`daemon`] finds or starts what serves them.
//!
//! [`run`] is the composition root, the only file that sees every layer.

pub mod arch;
pub mod cli;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod disk;
pub mod doctor;
pub mod fetch;
pub mod files;
pub mod fuse;
pub mod guest;
pub mod image;
pub mod man;
#[cfg(test)]
mod model;
pub mod nfs;
pub mod proc;
pub mod programs;
pub mod proxy;
pub mod qemu;
pub mod registry;
pub mod run;
pub mod store;
pub mod sys;
pub mod tree;
pub mod vm;
