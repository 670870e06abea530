//! A VM's disk as a source: flattened, with the kernel of the image that it was made from, so that
//! a clone boots as the VM did. `doc/adr/` says why flattened.

use std::fs;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::convert::{self, Input};
use super::manifest::{self, Manifest};
use super::source::{BuildError, Progress, Source};
use crate::vm::backend::{DiskFormat, Hold, Publication};

const FORMAT: DiskFormat = DiskFormat::Qcow2;

/// The source.
#[derive(Debug)]
pub(super) struct VmDisk {
    publication: Box<Publication>,
    /// Gone after the first attempt: from then on the VM may do what it likes.
    hold: Mutex<Option<Hold>>,
}

impl VmDisk {
    /// Takes a VM that is held.
    pub(super) fn new(mut publication: Box<Publication>) -> Self {
        let hold = Mutex::new(publication.hold.take());
        Self { publication, hold }
    }
}

impl Source for VmDisk {
    fn spec(&self) -> &str {
        &self.publication.origin
    }

    fn kind(&self) -> &'static str {
        "vm"
    }

    fn build(&self, dir: &Path, progress: &Progress) -> Result<Manifest, BuildError> {
        let Some(_hold) = self.hold.lock().take() else {
            return Err(BuildError::Unavailable {
                what: format!("{} may have changed", self.spec()),
                remedy: "`echo pull > ctl` in the image's directory makes it of what there is now",
            });
        };
        progress.building("copying");
        let Publication { disk, snapshot, base, .. } = &*self.publication;
        let backing = Input { path: base.disk.clone(), format: base.format, backing: None };
        let input = Input { path: disk.clone(), format: FORMAT, backing: Some(backing.into()) };
        let name = manifest::disk_name(FORMAT);
        convert::convert(&input, snapshot.as_deref(), (&dir.join(name), FORMAT), progress)?;
        progress.building("computing the digest");
        Ok(Manifest {
            version: manifest::VERSION,
            source: self.spec().to_owned(),
            kind: self.kind().to_owned(),
            digest: String::new(),
            disk: name.into(),
            format: FORMAT,
            disk_size: virtual_size(&dir.join(name))?,
            kernel: keep(base.kernel.as_deref(), dir)?,
            initrd: keep(base.initrd.as_deref(), dir)?,
            cmdline: base.cmdline.clone(),
            announces: base.announces,
            seed: base.seed,
            inputs: vec![format!("{} {}", base.name, base.digest)],
        })
    }
}

/// Gives a file of the base image a second name; it never changes, under either.
fn keep(file: Option<&Path>, dir: &Path) -> Result<Option<PathBuf>, BuildError> {
    let Some(file) = file else { return Ok(None) };
    let name = PathBuf::from(file.file_name().unwrap_or_default());
    let to = dir.join(&name);
    fs::hard_link(file, &to)
        .or_else(|_| fs::copy(file, &to).map(drop))
        .map_err(|e| BuildError::io(file, &e))?;
    Ok(Some(name))
}

fn virtual_size(disk: &Path) -> Result<u64, BuildError> {
    use std::os::unix::fs::FileExt;
    let mut size = [0; 8];
    let read = fs::File::open(disk).and_then(|f| f.read_exact_at(&mut size, 24));
    read.map_err(|e| BuildError::io(disk, &e))?;
    Ok(u64::from_be_bytes(size))
}
