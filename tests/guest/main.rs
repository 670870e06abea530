//! Real guests in a real QEMU, a module a topic.
//!
//! Not here: the command line (`tests/cli`), and random sequences of everything (`tests/compose`).

#[path = "../common/mod.rs"]
mod common;

mod adoption;
mod arch;
mod bad_input;
mod config;
mod containers;
mod damage;
mod data_disks;
mod debian;
mod disks;
mod events;
mod exec;
mod files;
mod first_boot;
mod fork;
mod full_disk;
mod hardware;
mod images;
mod interrupts;
mod jobs;
mod lifecycle;
mod lifetime;
mod limits;
mod load;
mod logs;
mod nets;
mod others;
mod poll;
mod probes;
mod programs;
mod qmp;
mod restore;
mod saved_clones;
mod shares;
mod snapshots;
mod ssh_client;
mod ssh_config;
mod tiny_image;
mod torture;
mod tty;
mod uefi;
mod undo;
mod warm;
