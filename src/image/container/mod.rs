//! Container images and archives of root file systems as images: their layers become one ext4 file
//! system, which boots with the kernel of `tiny` and an init of ours that needs nothing of what is
//! inside. `doc/adr/0029-containers-as-vms.md` gives the reasons.
//!
//! [`registry`] and [`archive`] find the layers and the configuration, [`layer`] applies them to a
//! [`root_tree`], [`disk`] writes it, [`boot`] makes kernel and initramfs. The guest's files are in
//! `guest/`.

mod archive;
mod boot;
mod config;
mod disk;
mod layer;
mod registry;
mod root_tree;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_client::Reference;

use self::config::Config;
use self::layer::Hashing;
use self::registry::Transport;
use self::root_tree::{EntryError, Limits, RootTree};
use super::manifest::{self, Manifest};
use super::source::{BuildError, ImageSource, Progress};
use super::tiny::Tiny;
use crate::store::file::open_regular;
use crate::vm::backend::{BackendError, DiskFormat};
use crate::vm::spec::ImageSettings;
use crate::vm::spec::container::ContainerProcess;

/// As many files as the layers of one image may have.
const MOST_ENTRIES: usize = 2_000_000;
/// Room on the store's disk that layers leave free.
const RESERVE: u64 = 256 << 20;
/// A content larger than this needs a larger disk than a VM has by default.
const SMALL: u64 = 1 << 30;

/// The source.
#[derive(Debug)]
pub(super) struct Container {
    spec: String,
    origin: ContainerOrigin,
    tiny: Arc<Tiny>,
    cache: PathBuf,
}

/// Where a container's layers are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ContainerOrigin {
    Registry(Box<Reference>, Transport),
    Archive(PathBuf),
    RootFs(PathBuf),
}

/// A layer, in a file.
#[derive(Debug)]
struct Layer {
    /// For errors.
    name: String,
    path: PathBuf,
    size: u64,
    /// Of the file, or of what it unpacks to.
    digest: Option<String>,
    /// A copy that is removed when it has been read.
    is_ours: bool,
}

/// What an image consists of.
#[derive(Debug)]
struct Parts {
    layers: Vec<Layer>,
    config: Config,
}

impl Container {
    /// An image in a registry, `oci:REF`.
    ///
    /// # Errors
    /// `BadSource` for what is no reference.
    pub(super) fn registry(
        reference: &str,
        insecure: &[String],
        tiny: Arc<Tiny>,
        cache: PathBuf,
    ) -> Result<Self, BackendError> {
        let spec = format!("oci:{reference}");
        let parsed: Reference = reference.parse().map_err(|e: oci_client::ParseError| {
            let reason = format!("is no name of a container image: {e}; such are docker.io/library/alpine:3.22 and 127.0.0.1:5000/x");
            BackendError::BadSource { origin: spec.clone(), reason }
        })?;
        let transport = Transport::to(parsed.resolve_registry(), insecure);
        Ok(Self {
            spec,
            origin: ContainerOrigin::Registry(Box::new(parsed), transport),
            tiny,
            cache,
        })
    }

    /// An image in a file, `oci-archive:FILE`.
    ///
    /// # Errors
    /// What opening answers.
    pub(super) fn archive(
        path: PathBuf,
        tiny: Arc<Tiny>,
        cache: PathBuf,
    ) -> Result<Self, BackendError> {
        let spec = format!("oci-archive:{}", path.display());
        open_regular(&path).map_err(|e| BackendError::io(&spec, &e))?;
        Ok(Self { spec, origin: ContainerOrigin::Archive(path), tiny, cache })
    }

    /// An archive of a root file system.
    ///
    /// # Errors
    /// What opening answers.
    pub(super) fn root_fs(
        path: PathBuf,
        tiny: Arc<Tiny>,
        cache: PathBuf,
    ) -> Result<Self, BackendError> {
        let spec = path.display().to_string();
        open_regular(&path).map_err(|e| BackendError::io(&spec, &e))?;
        Ok(Self { spec, origin: ContainerOrigin::RootFs(path), tiny, cache })
    }

    fn parts(&self, scratch: &Path, progress: &Progress) -> Result<Parts, BuildError> {
        match &self.origin {
            ContainerOrigin::Registry(reference, transport) => {
                registry::parts((reference, *transport), &self.cache.join("layers"), progress)
            }
            ContainerOrigin::Archive(path) => archive::parts(path, scratch, progress),
            ContainerOrigin::RootFs(path) => root_fs_parts(path),
        }
    }
}

fn root_fs_parts(path: &Path) -> Result<Parts, BuildError> {
    let size = fs::metadata(path).map_err(BuildError::at(path))?.len();
    let name = "the archive".to_owned();
    let layer = Layer { name, path: path.to_owned(), size, digest: None, is_ours: false };
    Ok(Parts { layers: vec![layer], config: Config::default() })
}

impl ImageSource for Container {
    fn spec(&self) -> &str {
        &self.spec
    }

    fn kind(&self) -> &'static str {
        match self.origin {
            ContainerOrigin::Registry(..) | ContainerOrigin::Archive(_) => "container",
            ContainerOrigin::RootFs(_) => "rootfs",
        }
    }

    /// What a tag names, and a file, may be another image by now.
    fn is_renewable(&self) -> bool {
        true
    }

    fn build(&self, dir: &Path, progress: &Progress) -> Result<Manifest, BuildError> {
        let scratch = dir.join("scratch");
        fs::create_dir(&scratch).map_err(BuildError::at(&scratch))?;
        let parts = self.parts(&scratch, progress)?;
        config::expect_architecture(&self.spec, &parts.config)?;
        let tree = self.unpack(&parts.layers, &scratch, progress)?;
        let boot = boot::make(&self.tiny, &self.cache, dir, progress)?;
        progress.building("making the root file system");
        let disk = dir.join(manifest::disk_name(DiskFormat::Raw));
        let size = disk::make(&tree, &disk, boot.time, &scratch)?;
        drop(tree);
        fs::remove_dir_all(&scratch).map_err(BuildError::at(&scratch))?;
        progress.building("computing the digest");
        Ok(Manifest {
            kernel: Some(boot.kernel.into()),
            efi_kernel: boot.efi_kernel.map(Into::into),
            initrd: Some(boot.initrd.into()),
            cmdline: boot.cmdline,
            announces: true,
            inputs: boot.inputs,
            settings: settings(&parts.config.process(), size),
            ..Manifest::of_disk(self, DiskFormat::Raw, size)
        })
    }
}

/// What the image passes to its VMs.
fn settings(process: &ContainerProcess, size: u64) -> ImageSettings {
    let disk = (size > SMALL).then(|| (2 * size).next_multiple_of(1 << 30));
    ImageSettings::of_container(process, disk)
}

impl Container {
    fn unpack(
        &self,
        layers: &[Layer],
        scratch: &Path,
        progress: &Progress,
    ) -> Result<RootTree, BuildError> {
        let limits = Limits { entries: MOST_ENTRIES, bytes: room(scratch)? };
        let mut tree = RootTree::new(scratch.to_owned(), limits);
        for (layer, number) in layers.iter().zip(1..) {
            progress.building(format!("unpacking layer {number}/{}", layers.len()));
            let applied = self.apply(layer, &mut tree);
            if layer.is_ours {
                drop(fs::remove_file(&layer.path));
            }
            applied?;
        }
        if tree.is_empty() {
            return Err(BuildError::malformed(&self.spec, "it holds no files; name another image"));
        }
        Ok(tree)
    }

    fn apply(&self, layer: &Layer, tree: &mut RootTree) -> Result<(), BuildError> {
        let file = File::open(&layer.path).map_err(BuildError::at(&layer.path))?;
        let mut hashing = Hashing::new(file);
        let applied = layer::apply(&mut hashing, layer.size, tree);
        let found = hashing.finish().map_err(BuildError::at(&layer.path))?;
        // Damage explains everything else.
        if let Some(expected) = &layer.digest
            && *expected != found
        {
            if matches!(self.origin, ContainerOrigin::Registry(..)) {
                // It is in the cache, and would be found damaged again.
                drop(fs::remove_file(&layer.path));
            }
            let reason = format!(
                "{} is damaged: its digest is {found}, not {expected}; `echo pull > ctl` tries again",
                layer.name
            );
            return Err(BuildError::malformed(&self.spec, reason));
        }
        applied.map_err(|error| self.explain(layer, &error))
    }

    fn explain(&self, layer: &Layer, error: &EntryError) -> BuildError {
        let next = match error {
            EntryError::Io(io) if is_full(io) => {
                return BackendError::io(self.spec.clone(), io).into();
            }
            EntryError::TooLarge(_) => "free some room there, then `echo pull > ctl`",
            EntryError::Io(_) => "it is cut off or damaged; get it again",
            EntryError::Escapes(_)
            | EntryError::ThroughFile(_)
            | EntryError::Loop(_)
            | EntryError::NoTarget(..)
            | EntryError::Name(_)
            | EntryError::TooMany(_)
            | EntryError::Bomb(_) => "name another image",
        };
        BuildError::malformed(&self.spec, format_args!("{}: {error}; {next}", layer.name))
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// How much may be unpacked: the contents are there twice for a moment.
fn room(dir: &Path) -> Result<u64, BuildError> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| BuildError::at(dir)(e.into()))?;
    Ok((stat.f_bavail * stat.f_frsize).saturating_sub(RESERVE) / 2)
}
