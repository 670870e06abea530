//! The directories: one module each, with its descriptor, its rows, and what users make in it.
//!
//! These modules are the only place with names of files, their modes and their one-line docs. What
//! is the same for all directories is in `descriptor.rs` and `directory.rs`.

mod aliases;
mod config;
mod disks;
mod docs;
mod images;
mod jobs;
mod limits;
mod nets;
mod probes;
mod root;
mod shares;
mod snapshots;
mod trash;
mod vm;

pub(super) use self::root::ROOT;

/// A value's text: one line.
fn line(text: &str) -> String {
    format!("{text}\n")
}
