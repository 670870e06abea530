//! The files by which earlier versions said that an operation was open, one per kind.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::Operation;
use crate::disk::snapshot_table::SnapshotRename;
use crate::store::file;
use crate::store::layout::VmDir;

const PERSONALIZE: &str = "unborn";
const PAUSED_BY_DAEMON: &str = "still";
const CHANGE_DISK: &str = "disk.changing";
/// The only one with content.
const RENAME_SNAPSHOT: &str = "snapshots.journal";

const ALL: [&str; 4] = [PERSONALIZE, PAUSED_BY_DAEMON, CHANGE_DISK, RENAME_SNAPSHOT];

/// Says whether there is any.
pub(super) fn exist(dir: &VmDir) -> bool {
    present(dir).next().is_some()
}

/// Reads them as operations.
pub(super) fn read(dir: &VmDir) -> io::Result<Vec<Operation>> {
    let mut operations = Vec::new();
    for name in present(dir) {
        operations.extend(match name {
            PERSONALIZE => Some(Operation::Personalize),
            PAUSED_BY_DAEMON => Some(Operation::PausedByDaemon),
            CHANGE_DISK => Some(Operation::ChangeDisk),
            _ => snapshot_rename(dir)?.map(|disk| Operation::RenameSnapshot(disk.into())),
        });
    }
    Ok(operations)
}

/// A journal that cannot be parsed is worth nothing: it was synced before the disk was touched.
fn snapshot_rename(dir: &VmDir) -> io::Result<Option<SnapshotRename>> {
    match file::read_json(&path(dir, RENAME_SNAPSHOT)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes them.
pub(super) fn remove(dir: &VmDir) -> io::Result<()> {
    present(dir).try_for_each(|name| file::remove(&path(dir, name)))
}

fn present(dir: &VmDir) -> impl Iterator<Item = &'static str> {
    ALL.into_iter().filter(|name| fs::symlink_metadata(path(dir, name)).is_ok())
}

fn path(dir: &VmDir, name: &str) -> PathBuf {
    dir.0.join(name)
}
