//! Snapshots of fake disks: a line each in the file that stands for the disk, so that they go where
//! the VM's directory goes.

use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::vm::backend::{SnapshotInfo, SnapshotOp};

const DISK: &str = "disk.qcow2";

/// Makes a disk without snapshots, unless there is one.
pub(super) fn make_disk(dir: &Path) {
    if !dir.join(DISK).exists() {
        fs::write(dir.join(DISK), b"").unwrap();
    }
}

/// Lists the snapshots in the disk.
pub(super) fn list(dir: &Path) -> Vec<SnapshotInfo> {
    let text = fs::read_to_string(dir.join(DISK)).unwrap_or_default();
    text.lines().map(parse).collect()
}

fn parse(line: &str) -> SnapshotInfo {
    let words: Vec<&str> = line.split(' ').collect();
    let id: u64 = words[0].parse().unwrap();
    SnapshotInfo {
        id: id.to_string(),
        memory: words[1].parse().unwrap(),
        tag: words[2].to_owned(),
        created: UNIX_EPOCH + Duration::from_secs(id),
        disk_size: 1,
    }
}

/// Does something with a snapshot, as QEMU and `qemu-img` do; one with memory if a machine runs.
pub(super) fn perform(dir: &Path, op: &SnapshotOp, memory: u64) {
    let mut all = list(dir);
    match op {
        SnapshotOp::Take(tag) => {
            assert!(all.iter().all(|s| s.tag != *tag), "two snapshots named {tag}");
            let last = all.iter().filter_map(|s| s.id.parse::<u64>().ok()).max();
            all.push(parse(&format!("{} {memory} {tag}", last.unwrap_or(0) + 1)));
        }
        SnapshotOp::Restore(tag) => assert!(all.iter().any(|s| s.tag == *tag), "no {tag}"),
        SnapshotOp::Drop(tag) => {
            let before = all.len();
            all.retain(|s| s.tag != *tag);
            assert!(all.len() < before, "no {tag}");
        }
        SnapshotOp::Rename { from, to } => {
            all.iter_mut().filter(|s| s.tag == *from).for_each(|s| to.clone_into(&mut s.tag));
        }
    }
    let lines = all.iter().map(|s| format!("{} {} {}\n", s.id, s.memory, s.tag));
    fs::write(dir.join(DISK), lines.collect::<String>()).unwrap();
}
