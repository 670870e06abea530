//! `builtin:blank`: an empty disk. A VM's is as large as its `config/disk`; what is installed on it comes from
//! the disc in `config/cdrom`.

use std::fs::File;
use std::path::Path;

use super::manifest::{self, Manifest};
use super::source::{BuildError, ImageSource, Progress, Result};
use crate::disk::DiskFormat;
use crate::vm::backend::SeedKind;
use crate::vm::spec::MIN_DISK;

const FORMAT: DiskFormat = DiskFormat::Raw;

/// The source.
#[derive(Debug)]
pub(super) struct Blank;

impl ImageSource for Blank {
    fn spec(&self) -> &'static str {
        "builtin:blank"
    }

    fn kind(&self) -> &'static str {
        "blank"
    }

    /// A hole. With a seed, as an installer's own system may be set up by it too.
    fn build(&self, dir: &Path, _progress: &Progress) -> Result<Manifest> {
        let path = dir.join(manifest::disk_name(FORMAT));
        let made = File::create(&path).and_then(|file| file.set_len(MIN_DISK));
        made.map_err(BuildError::at(&path))?;
        Ok(Manifest { seed: SeedKind::Nocloud, ..Manifest::of_disk(self, FORMAT, MIN_DISK) })
    }
}
