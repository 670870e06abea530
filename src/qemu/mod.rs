//! QEMU.

pub mod cmdline;
pub mod img;
pub mod process;
pub mod qmp;
