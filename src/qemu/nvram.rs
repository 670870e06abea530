//! The UEFI variables of a VM: a qcow2 image beside the disk (`doc/adr/0027-uefi-variables.md`).
//!
//! Not here: their snapshots (`companions`).

use std::fs::File;
use std::path::PathBuf;

use super::firmware::{self, Uefi};
use super::process::argument_of;
use super::vm_disk::{self, TemporaryDisk};
use crate::disk::img::Conversion;
use crate::disk::{DiskFormat, Layer, qcow2};
use crate::store::layout::{VmDir, names};
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

/// Returns the virtual size of a VM's variables; `None` without any.
pub(super) fn virtual_size(dir: &VmDir) -> Option<u64> {
    qcow2::virtual_size(&dir.nvram()).ok().flatten()
}
