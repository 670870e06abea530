//! The UEFI variables of a VM: a qcow2 image beside the disk, whose snapshots have the names of the disk's
//! (`doc/adr/0027-uefi-variables.md`).
//!
//! The disk's table says which snapshots there are. One that the variables alone have is what a crash has
//! left of a snapshot that was being taken or dropped, or was dropped by another program; it goes before the
//! disk is next changed. One that the disk alone has was taken before there were variables, and leaves
//! them as they are when it is restored.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use super::firmware::{self, Uefi};
use super::process::argument_of;
use super::vm_disk::{self, TemporaryDisk};
use crate::disk::img::{self, Conversion};
use crate::disk::{DiskError, DiskFormat, Layer, qcow2, snapshot_table};
use crate::store::layout::{VmDir, names};
use crate::store::operation::{self, Operation};
use crate::vm::backend::{BackendError, LaunchPlan, Result, RunFacts};
use crate::vm::driver::off_thread;

/// What a machine with UEFI needs.
#[derive(Debug)]
pub(super) struct Flash {
    /// The firmware's program.
    pub(super) code: Layer,
    /// What an ephemeral VM writes to its variables.
    _temporary: Option<TemporaryDisk>,
}

/// Finds the firmware of a machine with UEFI, and makes the VM's variables unless they are there: as the
/// image has them, else as the firmware has. `machine` is the machine type with its version.
///
/// # Errors
/// `Missing` or `Unfit` without firmware, or why the variables cannot be made.
pub(super) async fn prepare(
    dir: &VmDir,
    plan: &LaunchPlan,
    machine: &str,
) -> Result<Option<Flash>> {
    if !plan.spec.has_uefi() {
        return Ok(None);
    }
    let (at, image, machine) = (dir.clone(), plan.image.nvram.clone(), machine.to_owned());
    let uefi = off_thread(move || Ok(ensure(&at, image, &machine)), "the UEFI variables").await??;
    let temporary = match plan.spec.ephemeral {
        true => Some(vm_disk::temporary_nvram(dir).await?),
        false => None,
    };
    Ok(Some(Flash { code: uefi.code, _temporary: temporary }))
}

fn ensure(dir: &VmDir, image: Option<PathBuf>, machine: &str) -> Result<Uefi> {
    let own = Layer { path: dir.nvram(), format: DiskFormat::Qcow2 };
    if own.path.exists() {
        return firmware::find(machine, firmware::size_of(&own));
    }
    let from = image.map(|path| Layer { path, format: DiskFormat::Qcow2 });
    let uefi = firmware::find(machine, from.as_ref().and_then(firmware::size_of))?;
    let from = from.unwrap_or_else(|| uefi.template.clone());
    let partial = Layer { path: dir.0.join(names::NVRAM_PARTIAL), ..own.clone() };
    let copy = Conversion { layers: &[from], snapshot: None, to: &partial, base: None };
    copy.run(|_| ())?;
    let publish = || {
        File::open(&partial.path)?.sync_all()?;
        std::fs::rename(&partial.path, &own.path)?;
        crate::store::file::sync_dir(&dir.0)
    };
    publish().map_err(BackendError::at("the UEFI variables"))?;
    Ok(uefi)
}

/// Says whether a machine that runs has variables. One whose settings are not on record tells by its
/// command line.
pub(super) fn is_in(facts: &RunFacts) -> bool {
    let has_flash = || {
        let machine = argument_of(facts.pid, "-machine");
        machine.is_some_and(|machine| machine.contains(",pflash1="))
    };
    facts.in_force.as_ref().map_or_else(has_flash, |now| now.spec.has_uefi())
}

/// Drops what the variables have of a snapshot that is about to be taken of a machine without them: the
/// two would not belong together.
pub(super) async fn forget(dir: &VmDir, tag: &str) -> Result<()> {
    if has(dir, tag) {
        img::drop_snapshot(&dir.nvram(), tag).await?;
    }
    Ok(())
}

/// Says whether the variables have a snapshot of this name. QEMU may run.
pub(super) fn has(dir: &VmDir, tag: &str) -> bool {
    tags(dir).iter().any(|known| known == tag)
}

fn tags(dir: &VmDir) -> Vec<String> {
    // Without variables there are none; damaged ones show themselves when they are used.
    let known = snapshot_table::list(&dir.nvram()).unwrap_or_default();
    known.into_iter().map(|snapshot| snapshot.tag).collect()
}

/// Takes a snapshot of a VM that is off: of the variables first, as one that these alone have is dropped
/// again.
pub(super) async fn take(dir: &VmDir, tag: &str) -> Result<(), DiskError> {
    if dir.nvram().exists() {
        img::take_snapshot(&dir.nvram(), tag).await?;
    }
    img::take_snapshot(&dir.disk(), tag).await
}

/// Drops a snapshot of a VM that is off.
pub(super) async fn drop_snapshot(dir: &VmDir, tag: &str) -> Result<(), DiskError> {
    img::drop_snapshot(&dir.disk(), tag).await?;
    match has(dir, tag) {
        true => img::drop_snapshot(&dir.nvram(), tag).await,
        false => Ok(()),
    }
}

/// Brings a VM that is off back to a snapshot. What a crash interrupts is completed before the disk is used.
pub(super) async fn restore(dir: &VmDir, tag: &str) -> Result<(), DiskError> {
    if !has(dir, tag) {
        return img::restore_snapshot(&dir.disk(), tag).await;
    }
    let io = |error| DiskError::Io { what: format!("restore the snapshot {tag}"), error };
    let operation = Operation::RestoreSnapshot { tag: tag.to_owned() };
    operation::begin(dir, operation.clone()).map_err(io)?;
    let disk = img::restore_snapshot(&dir.disk(), tag).await;
    if disk.is_ok() {
        // What fails here is completed before the disk is used again.
        img::restore_snapshot(&dir.nvram(), tag).await?;
    }
    operation::end(dir, &operation).map_err(io)?;
    disk
}

async fn restore_both(dir: &VmDir, tag: &str) -> Result<(), DiskError> {
    img::restore_snapshot(&dir.disk(), tag).await?;
    img::restore_snapshot(&dir.nvram(), tag).await
}

/// Makes disk and variables agree: completes a restore that was cut short, and drops the snapshots that the
/// variables alone have.
pub(super) async fn recover(dir: &VmDir) -> Result<(), DiskError> {
    if !dir.nvram().exists() {
        return Ok(());
    }
    let failed = |error| DiskError::Io { what: "the UEFI variables".to_owned(), error };
    if let Some(tag) = interrupted(dir).map_err(failed)? {
        if has(dir, &tag) && known(dir).map_err(failed)?.contains(&tag) {
            restore_both(dir, &tag).await?;
        }
        operation::end(dir, &Operation::RestoreSnapshot { tag }).map_err(failed)?;
    }
    let known = known(dir).map_err(failed)?;
    for tag in tags(dir).iter().filter(|tag| !known.contains(tag)) {
        img::drop_snapshot(&dir.nvram(), tag).await?;
    }
    Ok(())
}

fn known(dir: &VmDir) -> io::Result<Vec<String>> {
    Ok(snapshot_table::list(&dir.disk())?.into_iter().map(|snapshot| snapshot.tag).collect())
}

fn interrupted(dir: &VmDir) -> io::Result<Option<String>> {
    Ok(operation::list(dir)?.into_iter().find_map(|operation| match operation {
        Operation::RestoreSnapshot { tag } => Some(tag),
        Operation::Personalize
        | Operation::Fork
        | Operation::PausedByDaemon
        | Operation::ChangeDisk
        | Operation::RenameSnapshot(_) => None,
    }))
}

/// Frees what a program that was killed has leaked of the variables.
pub(super) async fn repair(dir: &VmDir) -> Result<(), DiskError> {
    match dir.nvram().exists() {
        true => img::repair_leaks(&dir.nvram()).await,
        false => Ok(()),
    }
}

/// Returns the virtual size of a VM's variables; `None` without any.
pub(super) fn virtual_size(dir: &VmDir) -> Option<u64> {
    qcow2::virtual_size(&dir.nvram()).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::testing::qemu_img;

    fn vm() -> (tempfile::TempDir, VmDir) {
        let keep = tempfile::tempdir().unwrap();
        let dir = VmDir(keep.path().to_owned());
        for name in [names::DISK, names::NVRAM] {
            qemu_img(&dir.0, &["create", "-q", "-f", "qcow2", name, "1M"]);
        }
        (keep, dir)
    }

    fn lists(dir: &VmDir) -> (Vec<String>, Vec<String>) {
        (known(dir).unwrap(), tags(dir))
    }

    #[tokio::test]
    async fn both_files_have_the_same_snapshots() {
        let (_keep, dir) = vm();
        take(&dir, "a").await.unwrap();
        take(&dir, "b").await.unwrap();
        drop_snapshot(&dir, "a").await.unwrap();
        restore(&dir, "b").await.unwrap();
        assert_eq!(lists(&dir), (vec!["b".to_owned()], vec!["b".to_owned()]));
        assert!(operation::list(&dir).unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_only_the_variables_have_goes_and_what_only_the_disk_has_stays() {
        let (_keep, dir) = vm();
        img::take_snapshot(&dir.nvram(), "half").await.unwrap();
        img::take_snapshot(&dir.disk(), "early").await.unwrap();
        recover(&dir).await.unwrap();
        assert_eq!(lists(&dir), (vec!["early".to_owned()], vec![]));
        restore(&dir, "early").await.unwrap();
        drop_snapshot(&dir, "early").await.unwrap();
    }

    #[tokio::test]
    async fn a_restore_that_was_cut_short_is_completed() {
        let (_keep, dir) = vm();
        take(&dir, "a").await.unwrap();
        // The size tells whether the variables are as they were.
        img::resize(&dir.nvram(), 2 << 20).await.unwrap();
        let operation = Operation::RestoreSnapshot { tag: "a".to_owned() };
        operation::begin(&dir, operation).unwrap();
        recover(&dir).await.unwrap();
        assert_eq!(virtual_size(&dir), Some(1 << 20));
        assert!(operation::list(&dir).unwrap().is_empty());
    }
}
