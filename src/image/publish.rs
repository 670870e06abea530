//! A VM as a source: its disk, flattened, with the kernel of the image that it was made from, so
//! that a clone boots as the VM did (`doc/adr/` says why flattened); of one that runs, its memory
//! too.

use std::fs;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use uuid::Uuid;

use super::manifest::{self, Manifest};
use super::source::{BuildError, ImageSource, Progress, Result};
use super::template::{self, StoredTemplate};
use crate::disk::img::Conversion;
use crate::disk::qcow2::Header;
use crate::disk::{DiskFormat, Layer, snapshot_table};
use crate::store::layout::{TEMPLATES, names};
use crate::vm::backend::{BootImage, LivePublication, Pin, Publication};
use crate::vm::spec::ImageSettings;

const FORMAT: DiskFormat = DiskFormat::Qcow2;

/// The disk of a VM that is off.
#[derive(Debug)]
pub(super) struct VmDisk {
    publication: Box<Publication>,
    /// Released after the first attempt: the VM may then change.
    hold: Mutex<Option<Pin>>,
}

impl VmDisk {
    /// Takes a VM that is held.
    pub(super) fn new(mut publication: Box<Publication>) -> Self {
        let hold = Mutex::new(publication.hold.take());
        Self { publication, hold }
    }
}

impl ImageSource for VmDisk {
    fn spec(&self) -> &str {
        &self.publication.origin
    }

    fn kind(&self) -> &'static str {
        "vm"
    }

    fn build(&self, dir: &Path, progress: &Progress) -> Result<Manifest> {
        let Some(_hold) = self.hold.lock().take() else {
            return Err(BuildError::Unavailable {
                what: format!("{} may have changed", self.spec()),
                remedy: "`echo pull > ctl` in the image's directory makes it of what there is now",
            });
        };
        let Publication { disk, snapshot, base, layers, settings, .. } = &*self.publication;
        let own = Layer { path: disk.clone(), format: FORMAT };
        let layers = [vec![own], layers.clone()].concat();
        flatten(&layers, snapshot.as_deref(), dir, progress)?;
        let nvram = copy_nvram(disk, snapshot.as_deref(), dir)?;
        Ok(Manifest { nvram, ..manifest(self, (base, settings.clone()), dir)? })
    }
}

/// A VM that runs, and is ready to be captured.
#[derive(Debug)]
pub(super) struct LiveVm(pub(super) Box<LivePublication>);

impl ImageSource for LiveVm {
    fn spec(&self) -> &str {
        &self.0.origin
    }

    fn kind(&self) -> &'static str {
        "vm"
    }

    fn build(&self, dir: &Path, progress: &Progress) -> Result<Manifest> {
        let warm = dir.join(TEMPLATES).join(Uuid::new_v4().simple().to_string());
        fs::create_dir_all(&warm).map_err(BuildError::at(&warm))?;
        let report = |words: &str| progress.building(words);
        let (captured, _work) = template::capture(&*self.0.machine, &warm, &report)?;
        flatten(&captured.disk, captured.snapshot.as_deref(), dir, progress)?;
        let disk = captured.disk.first().map_or(Path::new(""), |own| &own.path);
        let nvram = copy_nvram(disk, captured.snapshot.as_deref(), dir)?;
        progress.building("computing the digest");
        StoredTemplate::seal(&warm, &captured, false)?;
        let settings = captured.settings.without_machine();
        Ok(Manifest { nvram, ..manifest(self, (&self.0.base, settings), dir)? })
    }
}

fn flatten(
    layers: &[Layer],
    snapshot: Option<&str>,
    dir: &Path,
    progress: &Progress,
) -> Result<()> {
    let to = Layer { path: dir.join(manifest::disk_name(FORMAT)), format: FORMAT };
    progress.copying(&Conversion { layers, snapshot, to: &to, base: None })?;
    progress.building("computing the digest");
    Ok(())
}

/// Copies the UEFI variables that are beside a VM's disk, as they were at a snapshot. A snapshot that they
/// do not have was taken before there were any.
fn copy_nvram(disk: &Path, snapshot: Option<&str>, dir: &Path) -> Result<Option<PathBuf>> {
    let from = Layer { path: disk.with_file_name(names::NVRAM), format: FORMAT };
    if !from.path.exists() {
        return Ok(None);
    }
    let known = snapshot_table::list(&from.path).map_err(BuildError::at(&from.path))?;
    if snapshot.is_some_and(|wanted| !known.iter().any(|s| s.tag == wanted)) {
        return Ok(None);
    }
    let to = Layer { path: dir.join(manifest::NVRAM), format: FORMAT };
    Conversion { layers: &[from], snapshot, to: &to, base: None }.run(|_| ())?;
    Ok(Some(manifest::NVRAM.into()))
}

fn manifest(
    source: &dyn ImageSource,
    (base, settings): (&BootImage, ImageSettings),
    dir: &Path,
) -> Result<Manifest> {
    let disk = dir.join(manifest::disk_name(FORMAT));
    let disk_size = Header::of(&disk).map_err(BuildError::at(&disk))?.virtual_size;
    Ok(Manifest {
        kernel: keep(base.kernel.as_deref(), dir)?,
        efi_kernel: keep_other(base, dir)?,
        initrd: keep(base.initrd.as_deref(), dir)?,
        cmdline: base.cmdline.clone(),
        announces: base.announces,
        seed: base.seed,
        inputs: vec![format!("{} {}", base.name, base.digest)],
        settings,
        ..Manifest::of_disk(source, FORMAT, disk_size)
    })
}

/// Keeps the kernel for UEFI, where that is a file of its own.
fn keep_other(base: &BootImage, dir: &Path) -> Result<Option<PathBuf>> {
    keep(base.efi_kernel.as_deref().filter(|own| base.kernel.as_deref() != Some(own)), dir)
}

/// Gives a file of the base image a second name; it never changes, under either.
fn keep(file: Option<&Path>, dir: &Path) -> Result<Option<PathBuf>> {
    let Some(file) = file else { return Ok(None) };
    let name = PathBuf::from(file.file_name().unwrap_or_default());
    let to = dir.join(&name);
    fs::hard_link(file, &to)
        .or_else(|_| fs::copy(file, &to).map(drop))
        .map_err(BuildError::at(file))?;
    Ok(Some(name))
}
