//! Disks of forks. Where the store's file system shares blocks between files, a fork's disk is a file that
//! shares the parent's, on the same layers. Elsewhere what the parent and the layers between have changed
//! of the image is copied once, into the place of a template's disk, and each fork's disk is an overlay on that.
//!
//! Data disks are copied whole for each fork, where they cannot share blocks.
//!
//! Not here: how the parent's disk is held meanwhile (`qemu::capture`).

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::catalogue::{Catalogue, ImageStore};
use super::template;
use crate::disk::img::Conversion;
use crate::disk::{DiskFormat, Layer, img, overlay, qcow2, snapshot_table, sparse};
use crate::store::file;
use crate::store::layout::{TEMPLATES, VmDir};
use crate::vm::backend::{BackendError, BootImage, ForkBase, Images, Result};
use crate::vm::driver::off_thread;
use crate::vm::template::{Captured, CapturedData};

const DISK: &str = "the forks' disk";

/// Decides what the disks of forks are made from. A copy is made by [`copy`]: an overlay needs to know
/// only where it is going to be.
pub(super) async fn base(
    catalogue: &Catalogue,
    image: BootImage,
    captured: &Captured,
) -> Result<ForkBase> {
    let size = captured.shape.disk;
    let Some((own, below)) = captured.disk.split_first() else { return Err(no_layers()) };
    let data = data_disks(captured).await?;
    if captured.snapshot.is_some() {
        let layers = place_of_copy(catalogue, &image);
        return Ok(ForkBase { image, layers, reflink: None, size, data });
    }
    // The parent's past is not the forks'.
    forget_past(&own.path).await?;
    Ok(ForkBase { image, layers: below.to_vec(), reflink: Some(own.path.clone()), size, data })
}

async fn forget_past(disk: &Path) -> Result<()> {
    for snapshot in snapshot_table::list(disk).map_err(BackendError::at(DISK))? {
        img::drop_snapshot(disk, &snapshot.tag).await?;
    }
    Ok(())
}

/// Makes a file of each data disk that holds it as it was captured, and nothing of the past.
async fn data_disks(captured: &Captured) -> Result<Vec<(u32, PathBuf)>> {
    let mut made = Vec::new();
    for disk in &captured.data {
        match captured.snapshot.clone() {
            None => forget_past(&disk.copy).await?,
            Some(snapshot) => convert(disk.clone(), snapshot).await?,
        }
        made.push((disk.number, disk.copy.clone()));
    }
    Ok(made)
}

async fn convert(disk: CapturedData, snapshot: String) -> Result<()> {
    let convert = move || {
        let layer = |path| Layer { path, format: DiskFormat::Qcow2 };
        let (layers, to) = ([layer(disk.from)], layer(disk.copy));
        let copy = Conversion { layers: &layers, snapshot: Some(&snapshot), to: &to, base: None };
        Ok(copy.run(|_| ()))
    };
    Ok(off_thread(convert, DISK).await??)
}

fn no_layers() -> BackendError {
    BackendError::fact(DISK, "it has no layers", 0)
}

fn place_of_copy(catalogue: &Catalogue, image: &BootImage) -> Vec<Layer> {
    let id = Uuid::new_v4().simple().to_string();
    catalogue.forking.lock().insert(id.clone());
    let dir = image.disk.with_file_name(TEMPLATES).join(&id);
    let below = Layer { path: image.disk.clone(), format: image.format };
    vec![template::disk_in(&dir), below]
}

/// Copies the captured disk, as far as it differs from the image. Half a copy is erased before this returns: the
/// parent's disk may need the room.
pub(super) async fn copy(
    catalogue: &Arc<Catalogue>,
    base: &ForkBase,
    captured: &Captured,
) -> Result<()> {
    let copied = match &*base.layers {
        [own, below] if base.reflink.is_none() => copy_into(own, below, captured).await,
        _ => Ok(()),
    };
    if copied.is_err() {
        let (catalogue, layers) = (Arc::clone(catalogue), base.layers.clone());
        let erase = move || {
            end(&catalogue, &layers);
            Ok(())
        };
        off_thread(erase, DISK).await.ok();
    }
    copied
}

/// A template between the disk and the image becomes a part of the copy.
async fn copy_into(to: &Layer, base: &Layer, captured: &Captured) -> Result<()> {
    let (layers, snapshot) = (captured.disk.clone(), captured.snapshot.clone());
    let between = match &*layers {
        [_, between, _] => Some(between.path.clone()),
        _ => None,
    };
    let (at, from) = (to.path.clone(), between.clone());
    off_thread(move || prepare(&at, from.as_deref()), DISK).await?;
    if between.is_some()
        && qcow2::virtual_size(&to.path).map_err(BackendError::at(DISK))?
            < Some(captured.shape.disk)
    {
        img::resize(&to.path, captured.shape.disk).await?;
    }
    let (to, base) = (to.clone(), base.clone());
    let copy = move || {
        let snapshot = snapshot.as_deref();
        let copy = Conversion { layers: &layers, snapshot, to: &to, base: Some(&base) };
        let done = if between.is_some() { copy.run_over(|_| ()) } else { copy.run(|_| ()) };
        if done.is_ok() {
            File::open(&to.path)?.sync_all()?;
        }
        Ok(done)
    };
    Ok(off_thread(copy, DISK).await??)
}

/// Makes the directory of the copy, and a copy of the layer that it begins with.
fn prepare(to: &Path, between: Option<&Path>) -> io::Result<()> {
    file::private_dir(to.parent().unwrap_or(to))?;
    let Some(between) = between else { return Ok(()) };
    let (from, to) = (File::open(between)?, new_file(to)?);
    to.set_len(from.metadata()?.len())?;
    sparse::copy(&from, to)
}

fn new_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes a fork's disk in its new directory.
pub(super) async fn disk(images: &ImageStore, base: &ForkBase, dir: &Path) -> Result<()> {
    let disk = VmDir(dir.to_owned()).disk();
    if base.reflink.is_none() {
        let below = base.layers.first().ok_or_else(no_layers)?;
        let on = (&*below.path, below.format);
        overlay::create("create the fork's disk", &disk, on, base.size).await?;
    }
    let (images, dir, from) = (images.clone(), dir.to_owned(), base.reflink.clone());
    let (image, layers, data) = (base.image.clone(), base.layers.clone(), base.data.clone());
    let complete = move || {
        copy_data_disks(&VmDir(dir.clone()), &data)?;
        match from {
            Some(from) => reflink(&from, &disk)?,
            None => File::open(disk)?.sync_all()?,
        }
        Ok(images.bind(&dir, &image, &layers))
    };
    off_thread(complete, DISK).await?
}

/// Gives a fork copies of its parent's data disks, which share their blocks where that is possible.
fn copy_data_disks(dir: &VmDir, data: &[(u32, PathBuf)]) -> io::Result<()> {
    if !data.is_empty() {
        file::private_dir(&dir.data_disks())?;
    }
    for (number, from) in data {
        let (from, to) = (File::open(from)?, new_file(&dir.data_disk(*number))?);
        if sparse::reflink(&from, &to).is_err() {
            to.set_len(from.metadata()?.len())?;
            sparse::copy(&from, &to)?;
        }
        to.sync_all()?;
    }
    Ok(())
}

fn reflink(from: &Path, to: &Path) -> io::Result<()> {
    let to = new_file(to)?;
    sparse::reflink(&File::open(from)?, &to)?;
    to.sync_all()
}

/// No more forks are made from a disk: erases it if none was.
pub(super) fn end(catalogue: &Catalogue, layers: &[Layer]) {
    let [own, _] = layers else { return };
    let id = own.path.parent().and_then(Path::file_name).unwrap_or_default();
    if catalogue.forking.lock().remove(&*id.to_string_lossy()) {
        catalogue.sweep();
    }
}
