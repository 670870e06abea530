//! `image.json`: what an image consists of. Paths are relative to it, so that a store may be
//! moved and an image copied.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::source::{BuildError, ImageSource, Result};
use crate::disk::DiskFormat;
use crate::disk::fingerprint::hash_file;
use crate::store::file;
use crate::vm::backend::{BootImage, SeedKind};
use crate::vm::spec::ImageSettings;

/// An image as described on disk; `BootImage` says what most of it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) version: u32,
    /// `builtin:tiny`.
    pub(super) source: String,
    /// `builtin`, `disk`, …
    pub(super) kind: String,
    /// `sha256:…` over the contents; empty until sealed.
    pub(super) digest: String,
    pub(super) disk: PathBuf,
    pub(super) format: DiskFormat,
    pub(super) disk_size: u64,
    pub(super) kernel: Option<PathBuf>,
    #[serde(default)]
    pub(super) efi_kernel: Option<PathBuf>,
    pub(super) initrd: Option<PathBuf>,
    pub(super) cmdline: String,
    pub(super) announces: bool,
    #[serde(default)]
    pub(super) seed: SeedKind,
    #[serde(default)]
    pub(super) nvram: Option<PathBuf>,
    /// What it was made of, for people.
    pub(super) inputs: Vec<String>,
    /// The number of the recipe that it was made by; 0: it had none.
    #[serde(default)]
    pub(super) recipe: u32,
    #[serde(default)]
    pub(super) settings: ImageSettings,
}

/// The version of the format that is written and understood.
const VERSION: u32 = 1;
const NAME: &str = "image.json";
/// The name of a kernel that is an ELF file.
pub(super) const VMLINUX: &str = "vmlinux";
/// The name of the UEFI variables.
pub(super) const NVRAM: &str = "nvram.qcow2";

/// Says whether a directory has one, damaged or not.
pub(super) fn is_in(dir: &Path) -> bool {
    dir.join(NAME).exists()
}

impl Manifest {
    /// Describes an image of `source` that consists of a disk alone.
    pub(super) fn of_disk(source: &dyn ImageSource, format: DiskFormat, disk_size: u64) -> Self {
        Self {
            version: VERSION,
            source: source.spec().to_owned(),
            kind: source.kind().to_owned(),
            digest: String::new(),
            disk: disk_name(format).into(),
            format,
            disk_size,
            kernel: None,
            efi_kernel: None,
            initrd: None,
            cmdline: String::new(),
            announces: false,
            seed: SeedKind::default(),
            nvram: None,
            inputs: Vec::new(),
            recipe: source.recipe().unwrap_or(0),
            settings: ImageSettings::default(),
        }
    }

    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        let manifest: Self = file::read_json(&dir.join(NAME))?;
        let foreign = manifest.version != VERSION;
        if foreign || !manifest.files().all(is_plain) {
            let what = "the manifest is of another version or names files outside of its image";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(manifest)
    }

    /// Makes the files in `dir` immutable, computes the digest and writes the manifest.
    pub(super) fn seal(mut self, dir: &Path) -> Result<Self> {
        self.digest = self.compute_digest(dir)?;
        for path in self.files().map(|p| dir.join(p)) {
            let failed = BuildError::at(&path);
            let file = File::open(&path).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            file.set_permissions(Permissions::from_mode(0o444)).map_err(failed)?;
        }
        self.write(dir).map_err(BuildError::at(&dir.join(NAME)))?;
        Ok(self)
    }

    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let path = dir.join(NAME);
        file::replace_json(&path, self)?;
        fs::set_permissions(&path, Permissions::from_mode(0o444))
    }

    /// Lists the names of the image's files and of the manifest.
    pub(super) fn names(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(Path::new(NAME)).chain(self.files())
    }

    /// Describes the image in `dir` for a launch.
    pub(super) fn boot(&self, name: &str, dir: &Path) -> BootImage {
        BootImage {
            name: name.to_owned(),
            digest: self.digest.clone(),
            disk: dir.join(&self.disk),
            format: self.format,
            disk_size: self.disk_size,
            kernel: self.kernel.as_ref().map(|p| dir.join(p)),
            efi_kernel: self.efi_kernel().map(|p| dir.join(p)),
            initrd: self.initrd.as_ref().map(|p| dir.join(p)),
            cmdline: self.cmdline.clone(),
            announces: self.announces,
            seed: self.seed,
            nvram: self.nvram.as_ref().map(|p| dir.join(p)),
        }
    }

    /// A bzImage, unlike an ELF file, starts either way.
    fn efi_kernel(&self) -> Option<&PathBuf> {
        let compressed =
            || self.kernel.as_ref().filter(|name| name.as_path() != Path::new(VMLINUX));
        self.efi_kernel.as_ref().or_else(compressed)
    }

    /// Returns the image that the VM which this one was made from used.
    pub(super) fn parent(&self) -> Option<&str> {
        let input = self.inputs.first().filter(|_| self.kind == "vm")?;
        input.split(' ').next()
    }

    /// Returns the bytes that the image's files take on disk.
    pub(super) fn size(&self, dir: &Path) -> u64 {
        self.files().filter_map(|p| fs::metadata(dir.join(p)).ok()).map(|m| m.blocks() * 512).sum()
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let boot = [&self.kernel, &self.efi_kernel, &self.initrd, &self.nvram];
        let boot = boot.into_iter().filter_map(|p| p.as_deref());
        std::iter::once(self.disk.as_path()).chain(boot)
    }

    /// Covers every byte that reaches a guest, and nothing that does not (`inputs`, names).
    fn compute_digest(&self, dir: &Path) -> Result<String> {
        let mut digest = Sha256::new();
        for path in self.files().map(|p| dir.join(p)) {
            let failed = BuildError::at(&path);
            let length = fs::metadata(&path).map_err(failed)?.len();
            digest.update(length.to_le_bytes());
            hash_file(&mut digest, &path).map_err(failed)?;
        }
        digest.update(self.cmdline.as_bytes());
        Ok(format!("sha256:{:x}", digest.finalize()))
    }
}

pub(super) fn disk_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "disk.raw",
        DiskFormat::Qcow2 => "disk.qcow2",
    }
}

fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            version: VERSION,
            source: "builtin:test".into(),
            kind: "builtin".into(),
            digest: String::new(),
            disk: "disk.raw".into(),
            format: DiskFormat::Raw,
            disk_size: 3,
            kernel: None,
            efi_kernel: None,
            initrd: None,
            cmdline: "quiet".into(),
            announces: true,
            seed: SeedKind::FwCfg,
            nvram: None,
            inputs: vec![],
            recipe: 0,
            settings: ImageSettings::default(),
        }
    }

    #[test]
    fn a_sealed_image_is_read_only_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("disk.raw"), "abc").unwrap();
        let sealed = manifest().seal(dir.path()).unwrap();
        assert!(sealed.digest.starts_with("sha256:"));
        assert_eq!(Manifest::read(dir.path()).unwrap(), sealed);
        for name in ["disk.raw", NAME] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o444, "{name}");
        }
    }

    #[test]
    fn a_manifest_cannot_name_files_outside_of_its_image() {
        let dir = tempfile::tempdir().unwrap();
        for disk in ["/etc/passwd", "../disk.raw", "a/b"] {
            let mut bad = manifest();
            bad.disk = disk.into();
            file::replace_json(&dir.path().join(NAME), &bad).unwrap();
            assert!(Manifest::read(dir.path()).is_err(), "{disk}");
        }
    }
}
