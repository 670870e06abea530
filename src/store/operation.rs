//! `operation.json` in a VM's directory: the operations on the VM that have begun and not ended.
//!
//! An operation that a killed daemon would leave half done is written here before its first step and
//! removed after its last one. The next daemon reads the file and finishes or undoes what it lists;
//! the variants of [`Operation`] say how. Without an open operation there is no file. Several can be
//! open at once: [`Operation::ChangeDisk`] is, as long as a VM runs.
//!
//! The file has one writer at a time, and each change writes it as a whole. It is synced only where
//! an operation has to be known after the host has lost power ([`Operation::is_durable`]): the start of a
//! VM must not wait for the disk once more.
//!
//! Not here: the recovery itself (`vm::driver::recover`, `qemu::repair`, `qemu::rename`).

mod markers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::mem::discriminant;
use std::os::unix::fs::FileExt;
use std::path::Path;

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use super::file;
use super::layout::VmDir;
use crate::disk::snapshot_table::SnapshotRename;

const VERSION: u32 = 1;

/// An operation on a VM, with what its recovery needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum Operation {
    /// A clone starts, and its guest still has the identity of the template. Recovery ends the machine
    /// and discards the disk, on which nothing was written yet.
    Personalize,
    /// A fork was made and is not loaded yet: its disk is of no use without the memory, which ends with the
    /// daemon. Recovery removes the VM.
    Fork,
    /// The daemon has paused the guest, or is about to, and resumes it itself. Recovery resumes it:
    /// no user has asked for the pause.
    PausedByDaemon,
    /// A program writes to the disk. Recovery gives back the clusters that it had allocated and not
    /// used yet, before the disk is changed again.
    ChangeDisk,
    /// The disk's table of snapshots is rewritten. Recovery puts the old bytes back.
    RenameSnapshot(SnapshotRenames),
    /// The disk, and what is beside it, go back to a snapshot, one after the other. Recovery has all go back.
    RestoreSnapshot {
        /// Its name.
        tag: String,
    },
}

/// A rename of a snapshot in each file that has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRenames {
    /// In the disk.
    #[serde(flatten)]
    pub disk: SnapshotRename,
    /// In the UEFI variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvram: Option<SnapshotRename>,
    /// In the data disks, by the names of their files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, SnapshotRename>,
}

impl From<SnapshotRename> for SnapshotRenames {
    fn from(disk: SnapshotRename) -> Self {
        Self { disk, nvram: None, data: BTreeMap::new() }
    }
}

impl Operation {
    /// Says whether both are of one kind, whatever their data. At most one of each kind is open.
    fn is_like(&self, other: &Self) -> bool {
        discriminant(self) == discriminant(other)
    }

    /// Says whether it has to be known after the host has lost power. Others concern a machine, which
    /// is gone then, or disk space alone.
    fn is_durable(&self) -> bool {
        match self {
            Self::Personalize | Self::PausedByDaemon | Self::ChangeDisk => false,
            Self::Fork | Self::RenameSnapshot(_) | Self::RestoreSnapshot { .. } => true,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    operations: Vec<Operation>,
}

/// Lists the open operations of a VM, the earliest first.
///
/// # Errors
/// `InvalidData` for a file that cannot be read or is not understood, with what is to be done.
pub fn list(dir: &VmDir) -> io::Result<Vec<Operation>> {
    let _whole = writer(dir);
    read(dir)
}

fn read(dir: &VmDir) -> io::Result<Vec<Operation>> {
    let path = dir.operation();
    let bytes = file::if_there(fs::read(&path)).map_err(|error| unreadable(&path, &error))?;
    let operations = bytes.map_or_else(|| Ok(Vec::new()), |bytes| parse(&bytes));
    let mut operations = operations.map_err(|damage| unreadable(&path, &damage))?;
    let mut of_markers = markers::read(dir)?;
    of_markers.retain(|found| !holds(&operations, found));
    operations.append(&mut of_markers);
    Ok(operations)
}

/// Says whether an operation of this kind is open.
pub fn is_open(dir: &VmDir, operation: &Operation) -> io::Result<bool> {
    Ok(holds(&list(dir)?, operation))
}

/// Writes down that an operation begins. Returns the one of its kind that was open before, which a
/// killed daemon or program has not ended.
///
/// # Errors
/// As [`list`], or what writing answers; the operation is not open then.
pub fn begin(dir: &VmDir, operation: Operation) -> io::Result<Option<Operation>> {
    update(dir, |open| {
        let earlier = take(open, &operation);
        open.push(operation);
        earlier
    })
}

/// Writes down that the operation of this kind has ended, if one is open.
///
/// # Errors
/// As [`list`], or what writing answers; the operation is still open then.
pub fn end(dir: &VmDir, operation: &Operation) -> io::Result<()> {
    update(dir, |open| take(open, operation)).map(drop)
}

/// Moves what the files of an earlier version say into `operation.json`. Until that is done, [`list`]
/// reads them where they are.
pub fn convert(dir: &VmDir) -> io::Result<()> {
    if markers::exist(dir) { update(dir, |_| ()) } else { Ok(()) }
}

fn holds(operations: &[Operation], wanted: &Operation) -> bool {
    operations.iter().any(|operation| operation.is_like(wanted))
}

fn take(operations: &mut Vec<Operation>, wanted: &Operation) -> Option<Operation> {
    let at = operations.iter().position(|operation| operation.is_like(wanted))?;
    Some(operations.remove(at))
}

/// Writes the list of a new VM's directory, which has none yet.
pub fn write_first(dir: &VmDir, operation: Operation) -> io::Result<()> {
    write(dir, &[], &[operation])
}

fn parse(bytes: &[u8]) -> Result<Vec<Operation>, String> {
    // A file that was not synced is empty, or full of zeros, after the host has lost power. Of the
    // operations that are not synced, only this one still matters then.
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(vec![Operation::ChangeDisk]);
    }
    let stored: Stored = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    match stored.version {
        VERSION => Ok(stored.operations),
        other => Err(format!("version {other} is of a later aqfs")),
    }
}

fn unreadable(path: &Path, fact: &dyn fmt::Display) -> io::Error {
    let text = format!(
        "cannot read {}: {fact}; it lists what was not finished when a daemon ended: check the disk \
         with `qemu-img check`, and remove the file while nothing is mounted",
        path.display()
    );
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Changes the list of open operations.
fn update<T>(dir: &VmDir, change: impl FnOnce(&mut Vec<Operation>) -> T) -> io::Result<T> {
    let _only = writer(dir);
    let before = read(dir)?;
    let mut after = before.clone();
    let changed = change(&mut after);
    if after != before || markers::exist(dir) {
        write(dir, &before, &after)?;
        markers::remove(dir)?;
    }
    Ok(changed)
}

/// Keeps other threads from changing the file of the same VM: the end of a machine and the end of a
/// request are written down by different tasks. Other processes do not write: the store is locked.
fn writer(dir: &VmDir) -> MutexGuard<'static, ()> {
    static WRITERS: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];
    let mut hasher = DefaultHasher::new();
    dir.0.hash(&mut hasher);
    let at = usize::try_from(hasher.finish() % WRITERS.len() as u64).unwrap_or_default();
    WRITERS[at].lock()
}

fn write(dir: &VmDir, before: &[Operation], after: &[Operation]) -> io::Result<()> {
    let is_durable = before.iter().chain(after).any(Operation::is_durable);
    let path = dir.operation();
    if after.is_empty() {
        file::remove(&path)?;
        return if is_durable { file::sync_dir(&dir.0) } else { Ok(()) };
    }
    let stored = Stored { version: VERSION, operations: after.to_vec() };
    let mut bytes = serde_json::to_vec(&stored)?;
    bytes.push(b'\n');
    match path.exists() {
        _ if is_durable => file::replace(&path, &bytes),
        true => overwrite(&path, bytes),
        false => file::replace_unsynced(&path, &bytes),
    }
}

/// Writes a list over another one. To rename a file over it would make ext4 write that file to the disk at
/// once, which delays a start; and a shorter list fits on a full disk too. White space fills the rest, so
/// that a single write does it: one of less than a page is whole even if the daemon is killed.
fn overwrite(path: &Path, mut bytes: Vec<u8>) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    bytes.resize(length.max(bytes.len()), b'\n');
    file.write_all_at(&bytes, 0)
}
