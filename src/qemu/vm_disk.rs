//! A VM's own disk: made as an overlay on its image at the first start, made larger, removed.
//!
//! Not here: what is done to disks without knowing of VMs (`disk`).

use std::fs::File;
use std::path::{Path, PathBuf};

use super::{nvram, run_record};
use crate::disk::qcow2::{self, Header};
use crate::disk::{DiskError, DiskFormat, Layer, img, overlay};
use crate::store::file::{self, sync_dir};
use crate::store::layout::{VmDir, names};
use crate::vm::backend::{BackendError, LaunchPlan, Result};
use crate::vm::driver::off_thread;

/// A disk with less room than this is full: QEMU writes memory in pieces, each of which fits or
/// not.
const ROOM: u64 = 1 << 20;

/// Makes the VM's disk, an overlay on the plan's base and at least as large as it asks for, unless
/// it is there. It becomes visible whole and on disk.
///
/// # Errors
/// `Missing` without `qemu-img`, `NoSpace`, or its own last line.
pub(super) async fn ensure(dir: &VmDir, plan: &LaunchPlan) -> Result<()> {
    if dir.disk().exists() {
        return Ok(());
    }
    let (what, partial) = ("create the disk", dir.0.join(names::DISK_PARTIAL));
    let size = plan.spec.disk.max(plan.image.disk_size);
    let no_base =
        || DiskError::QemuImg { what: what.to_owned(), said: "it has no base".to_owned() };
    let base = plan.base.first().ok_or_else(no_base)?;
    overlay::create(what, &partial, (&base.path, base.format), size).await?;
    let (disk, directory) = (dir.disk(), dir.0.clone());
    let publish = move || {
        File::open(&partial)?.sync_all()?;
        std::fs::rename(&partial, disk)?;
        sync_dir(&directory)
    };
    off_thread(publish, "the disk").await
}

pub(super) async fn discard(dir: &VmDir) -> Result<()> {
    let files = [dir.disk(), dir.nvram()];
    off_thread(move || files.iter().try_for_each(|path| file::remove(path)), "the disk").await
}

/// Makes the VM's disk at least `size` bytes large.
pub(super) async fn grow(dir: &VmDir, size: u64) -> Result<()> {
    // A disk with another header is QEMU's to refuse.
    if virtual_size(dir)?.is_some_and(|present| present < size) {
        img::resize(&dir.disk(), size).await?;
    }
    Ok(())
}

/// Reads the size that the guest sees; `None` without a disk, or if it is no qcow2 image.
pub(super) fn virtual_size(dir: &VmDir) -> Result<Option<u64>> {
    let disk = dir.disk();
    let size = qcow2::virtual_size(&disk);
    size.map_err(|e| BackendError::io(format!("the disk {}", disk.display()), &e))
}

/// A file that has a name only until this is dropped: QEMU has opened it by then, and the kernel
/// frees it when QEMU ends, whether a daemon runs or not.
#[derive(Debug)]
pub(super) struct TemporaryDisk(PathBuf);

impl Drop for TemporaryDisk {
    fn drop(&mut self) {
        run_record::remove_if_there(&self.0);
    }
}

/// Makes an overlay on the VM's disk that takes what the guest writes, of at least `size` bytes.
pub(super) async fn temporary(dir: &VmDir, size: u64) -> Result<TemporaryDisk> {
    let path = dir.0.join(names::TEMPORARY_DISK);
    let size = size.max(virtual_size(dir)?.unwrap_or(0));
    let base = (Path::new(names::DISK), DiskFormat::Qcow2);
    overlay::create("create the temporary disk", &path, base, size).await?;
    Ok(TemporaryDisk(path))
}

/// Makes an overlay on the VM's UEFI variables that takes what is written to them.
pub(super) async fn temporary_nvram(dir: &VmDir) -> Result<TemporaryDisk> {
    let path = dir.0.join(names::TEMPORARY_NVRAM);
    let size = nvram::virtual_size(dir).unwrap_or(0);
    let base = (Path::new(names::NVRAM), DiskFormat::Qcow2);
    overlay::create("create the temporary UEFI variables", &path, base, size).await?;
    Ok(TemporaryDisk(path))
}

/// Refuses an image whose headers would make QEMU open another file of the host.
pub(super) fn check_base(image: &str, base: &[Layer]) -> Result<()> {
    let refused = |reason: String| BackendError::ImageFailed { name: image.to_owned(), reason };
    for layer in base.iter().filter(|layer| layer.format == DiskFormat::Qcow2) {
        let header = Header::of(&layer.path);
        let unreadable = |e| refused(format!("cannot read {}: {e}", layer.path.display()));
        if header.map_err(unreadable)?.has_data_file() {
            return Err(refused("its qcow2 header names another data file".to_owned()));
        }
    }
    Ok(())
}

/// Recognises a full disk, of which QEMU has only seen that something could not be written in
/// `dir`.
pub(super) fn cause_of(error: BackendError, dir: &Path, what: &str) -> BackendError {
    let free = rustix::fs::statvfs(dir).map(|s| s.f_bavail * s.f_frsize);
    match free {
        Ok(free) if free < ROOM => BackendError::NoSpace { what: what.to_owned() },
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::testing::qemu_img;
    use crate::qemu::cmdline::tests::plan_on;

    fn layer(disk: &Path, format: DiskFormat) -> Layer {
        Layer { path: disk.into(), format }
    }

    fn plan(base: &str, size: u64) -> LaunchPlan {
        let mut plan = plan_on(vec![layer(Path::new(base), DiskFormat::Raw)]);
        (plan.spec.disk, plan.image.disk_size) = (size, 64 << 20);
        plan
    }

    #[tokio::test]
    async fn a_disk_is_as_large_as_the_larger_wish_and_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmDir(dir.path().to_owned());
        ensure(&vm, &plan("/nowhere/base, 1.raw", 1 << 20)).await.unwrap();
        let bytes = std::fs::read(vm.disk()).unwrap();
        assert_eq!(virtual_size(&vm).unwrap(), Some(64 << 20));
        ensure(&vm, &plan("/nowhere/base.raw", 1 << 30)).await.unwrap();
        assert_eq!(std::fs::read(vm.disk()).unwrap(), bytes);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_disk_grows_and_never_shrinks_and_what_is_temporary_goes() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmDir(dir.path().to_owned());
        assert_eq!(virtual_size(&vm).unwrap(), None);
        ensure(&vm, &plan("/nowhere/base.raw", 1 << 20)).await.unwrap();
        grow(&vm, 1 << 20).await.unwrap();
        assert_eq!(virtual_size(&vm).unwrap(), Some(64 << 20));
        grow(&vm, 128 << 20).await.unwrap();
        assert_eq!(virtual_size(&vm).unwrap(), Some(128 << 20));
        let overlay = temporary(&vm, 1 << 20).await.unwrap();
        assert_eq!(qcow2::virtual_size(&overlay.0).unwrap(), Some(128 << 20));
        drop(overlay);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_base_that_names_another_file_for_its_data_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = format!("data_file={}", dir.path().join("data").display());
        qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "plain", "1M"]);
        qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "-o", &data, "external", "1M"]);
        let check = |name| check_base("x", &[layer(&dir.path().join(name), DiskFormat::Qcow2)]);
        check("plain").unwrap();
        let error = check("external").unwrap_err();
        assert!(error.to_string().contains("another data file"), "{error}");
        assert!(check("data").is_err());
    }
}
