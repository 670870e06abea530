//! The promises in numbers, each measured beside its reference in the same run: `make bench`.
//!
//! A miss is reported and does not fail: timings say as much about the machine as about aqfs.
//! An argument picks the benchmarks whose name contains it.

#![allow(clippy::print_stdout, reason = "a benchmark's output is its purpose")]

#[path = "../../tests/common/mod.rs"]
mod common;

mod crowd;
mod disk;
mod files;
mod fork;
mod guest;
mod guest_files;
mod hello;
mod measure;
mod nets;
mod shares;
mod warm;

use std::path::Path;

use measure::{LargeFile, Row};

type Benchmark = (&'static str, fn() -> Vec<Row>);

/// What is measured, by name.
const BENCHMARKS: &[Benchmark] = &[
    ("status", files::status),
    ("names", files::names),
    ("listing", files::listing),
    ("listing with running VMs", files::listing_running),
    ("exec", guest::warm_exec),
    ("start", guest::cold_start),
    ("memory", guest::memory),
    ("warm", warm::start),
    ("clones", warm::clones),
    ("crowd", crowd::crowd),
    ("fork", fork::forks),
    ("size", warm::size),
    ("fs", guest_files::files),
    ("shares", shares::shares),
    ("nets", nets::throughput),
    ("copies", disk::off),
    ("pause", disk::running),
];

fn main() {
    if let [argument, file] = &std::env::args().skip(1).collect::<Vec<_>>()[..]
        && argument == LargeFile::ARGUMENT
    {
        return LargeFile::read_at_random(Path::new(file));
    }
    // cargo itself passes `--bench`.
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    for (_, run) in BENCHMARKS.iter().filter(|(name, _)| name.contains(&wanted)) {
        for row in run() {
            println!("{}", row.render());
        }
    }
}
