//! A mount without guests: `aq mount` and `aq umount`, and all that the tree does with VMs that are
//! off. QEMU is not needed.

#[path = "../common/mod.rs"]
mod common;

mod adoption;
mod bad_input;
mod events;
mod exec;
mod first_run;
mod jobs;
mod mount;
mod semantics;
mod slow_disk;
