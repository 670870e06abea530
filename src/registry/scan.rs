//! A VM's directory, read when a daemon starts and when a removed VM comes back, and written when a VM is
//! created.
//!
//! Not here: what becomes of the VMs that are found (`registry`).

use std::fs;
use std::io;
use std::path::Path;

use tempfile::TempDir;
use uuid::Uuid;

use crate::store::failure_log::FailureLog;
use crate::store::file;
use crate::store::layout::{Layout, VmDir};
use crate::store::operation;
use crate::vm::VmId;
use crate::vm::backend::Lifetime;
use crate::vm::definition::Definition;
use crate::vm::driver::{self, NewVm};
use crate::vm::spec::is_vm_name;

/// Returns the name of a VM that has no name of its own.
pub(super) fn fallback_name(uuid: Uuid) -> String {
    format!("broken-{}", &uuid.simple().to_string()[..8])
}

/// Finds the VMs of a store, numbered from 1, and removes what was not finished when it was written.
pub(super) fn scan(layout: &Layout, failures: &FailureLog) -> io::Result<Vec<NewVm>> {
    file::private_dir(&layout.vms())?;
    // These can be made again; without them the mount is slower, or requests that need them fail.
    for dir in [layout.images(), layout.cache()] {
        note_failed(file::private_dir(&dir), &dir, failures);
    }
    for dir in layout.plain_dirs() {
        note_failed(file::sweep(&dir), &dir, failures);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(layout.vms())? {
        let (path, id) = (entry?.path(), VmId(found.len() as u64 + 1));
        match uuid_of(&path) {
            Some(uuid) => found.push(read_vm(id, uuid, VmDir(path))),
            None if is_unfinished(&path) => note_failed(remove(&path), &path, failures),
            None => tracing::warn!(path = %path.display(), "not a VM: left alone"),
        }
    }
    Ok(found)
}

fn note_failed(done: io::Result<()>, path: &Path, failures: &FailureLog) {
    if let Err(error) = done {
        failures.note(path, &error, format!("cannot clear away in {}: {error}", path.display()));
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn uuid_of(path: &Path) -> Option<Uuid> {
    path.file_name()?.to_str()?.parse().ok()
}

fn is_unfinished(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Reads a VM's directory; one that is damaged is a VM that is broken.
pub(super) fn read_vm(id: VmId, uuid: Uuid, dir: VmDir) -> NewVm {
    if let Err(error) = file::sweep(&dir.0) {
        tracing::warn!(%uuid, %error, "temporary files stay");
    }
    let name = fs::read_to_string(dir.name()).unwrap_or_default();
    let name = name.trim_end();
    let definition = file::read_json::<Definition>(&dir.definition());
    let definition = definition.map_err(|e| format!("{}: {e}", dir.definition().display()));
    let definition = definition.and_then(|definition| check_operations(&dir).map(|()| definition));
    let name = if is_vm_name(name) { name.to_owned() } else { fallback_name(uuid) };
    NewVm { id, uuid, dir, name, definition, lifetime: Lifetime::Own }
}

/// Checks that the list of open operations can be read: the VM must not be started without what an earlier
/// daemon has not finished.
fn check_operations(dir: &VmDir) -> Result<(), String> {
    if let Err(error) = operation::convert(dir) {
        // They are read where they are.
        tracing::warn!(dir = %dir.0.display(), %error, "files of an earlier version stay");
    }
    operation::list(dir).map(drop).map_err(|error| error.to_string())
}

/// Writes a new VM's directory under a hidden name and renames it: it is whole or absent.
pub(super) fn write_new(dir: &VmDir, definition: &Definition, name: &str) -> io::Result<()> {
    publish_new(new_dir(dir)?, dir, definition, name)
}

/// Makes the hidden directory of a new VM.
pub(super) fn new_dir(dir: &VmDir) -> io::Result<TempDir> {
    let parent = dir.0.parent().unwrap_or(&dir.0);
    tempfile::Builder::new().prefix(".new").tempdir_in(parent)
}

/// Completes a hidden directory and gives it its name.
pub(super) fn publish_new(
    hidden: TempDir,
    dir: &VmDir,
    definition: &Definition,
    name: &str,
) -> io::Result<()> {
    let parent = dir.0.parent().unwrap_or(&dir.0);
    let new = VmDir(hidden.path().to_owned());
    fs::write(new.format(), driver::suspended::FORMAT)?;
    file::replace(&new.name(), name.as_bytes())?;
    file::replace_json(&new.definition(), definition)?;
    fs::rename(&new.0, &dir.0)?;
    // The directory has its final name now.
    drop(hidden.keep());
    file::sync_dir(parent)
}
