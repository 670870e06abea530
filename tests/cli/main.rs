//! The command line: what users type and scripts read.
//!
//! Modules and tests that boot guests are there with the feature `qemu_tests`.

#[path = "../common/mod.rs"]
mod common;

#[cfg(feature = "qemu_tests")]
mod cp;
mod environment;
#[cfg(feature = "qemu_tests")]
mod exec;
mod images;
mod pull;
mod shell;
#[cfg(feature = "qemu_tests")]
mod sync;
#[cfg(feature = "qemu_tests")]
mod terminal;
mod vms;
