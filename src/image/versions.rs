//! Versions of an image. An image that is made again (`refresh`) keeps the version before, which
//! disks of VMs are overlays on: the first in the image's own directory, each later one in
//! `versions/ID`, where ID comes from its digest. The file `current` names the one that new VMs are
//! made from; a VM's file `image_version` names the one that its disk is an overlay on, and is
//! absent for the first.
//!
//! No version moves, so that the name in a disk's header stays right. One that is not current and
//! that no disk needs is erased when the store is opened: no start can be under way then.
//!
//! Not here: how an image is made (`source`), templates (`warming`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::builds::{publish, under_way};
use super::catalogue::Catalogue;
use super::entry::ImageVersion;
use super::manifest::Manifest;
use crate::store::file;
use crate::store::layout::{Layout, TEMPLATES, VmDir};
use crate::vm::backend::{BackendError, BootImage, Result};
use crate::vm::definition::Definition;

/// The hexadecimal digits of a digest that make a version's name.
const DIGITS: usize = 16;

/// Returns the directory of the version that new VMs are made from.
pub(super) fn current_dir(layout: &Layout, name: &str) -> PathBuf {
    let id = fs::read_to_string(layout.current_version(name)).unwrap_or_default();
    version_dir(layout, name, id.trim_end())
}

fn version_dir(layout: &Layout, name: &str, id: &str) -> PathBuf {
    let plain = !id.is_empty() && id.bytes().all(|c| c.is_ascii_hexdigit());
    if plain { layout.image_versions(name).join(id) } else { layout.image(name) }
}

/// Lists the directories of all versions of an image, the first one's too.
pub(super) fn dirs(layout: &Layout, name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(layout.image_versions(name)).into_iter().flatten();
    let later = entries.filter_map(Result::ok).map(|entry| entry.path());
    std::iter::once(layout.image(name)).chain(later).collect()
}

/// Finds the versions beside the current one, which is in `current`.
pub(super) fn older(layout: &Layout, name: &str, current: &Path) -> Vec<ImageVersion> {
    let others = dirs(layout, name).into_iter().filter(|dir| dir != current);
    let read = |dir: PathBuf| Some(ImageVersion::new(Manifest::read(&dir).ok()?, dir));
    others.filter_map(read).collect()
}

impl Catalogue {
    /// Begins to make an image again, beside the present version. One that is not there is made.
    pub(super) fn refresh(self: &Arc<Self>, name: &str) -> Result<()> {
        let mut image = self.entry(name)?;
        if image.is_under_way() || image.warmth.is_under_way() {
            return Err(under_way(name));
        }
        let Some(present) = image.ready().cloned() else {
            drop(image);
            return self.begin(name);
        };
        let source = image.source.clone().filter(|source| source.is_renewable());
        let Some(source) = source else {
            let reason = "it is not made again; `mkdir` another image beside it".to_owned();
            return Err(BackendError::BadSource { origin: image.spec().to_owned(), reason });
        };
        image.present = Some(present);
        image.start_building();
        drop(image);
        self.bell.ring();
        self.spawn(name, source)
    }

    /// Gives a new version its place, and makes it the current one.
    pub(super) fn publish_version(
        &self,
        name: &str,
        from: tempfile::TempDir,
        manifest: Manifest,
    ) -> io::Result<ImageVersion> {
        if let Some(same) = self.same_content(name, &manifest) {
            // Nothing has changed but what is known of it.
            let ImageVersion { manifest: mut known, dir, .. } = same;
            (known.recipe, known.inputs) = (manifest.recipe, manifest.inputs);
            known.write(&dir)?;
            self.make_current(name, &dir)?;
            return Ok(ImageVersion::new(known, dir));
        }
        let id = manifest.digest.trim_start_matches("sha256:").chars().take(DIGITS);
        let dir = version_dir(&self.layout, name, &id.collect::<String>());
        file::private_dir(&self.layout.image_versions(name))?;
        publish(from, &dir)?;
        self.make_current(name, &dir)?;
        Ok(ImageVersion::new(manifest, dir))
    }

    fn same_content(&self, name: &str, manifest: &Manifest) -> Option<ImageVersion> {
        let image = self.entry(name).ok()?;
        let mut present = image.versions().filter(|version| version.is_there());
        present.find(|version| version.manifest.digest == manifest.digest).cloned()
    }

    fn make_current(&self, name: &str, dir: &Path) -> io::Result<()> {
        let id = self.id_of(name, dir).unwrap_or_default();
        file::replace(&self.layout.current_version(name), format!("{id}\n").as_bytes())
    }

    /// Returns the name of the version in `dir`; the first has none.
    fn id_of(&self, name: &str, dir: &Path) -> Option<String> {
        let later = dir.parent() == Some(&self.layout.image_versions(name));
        later.then(|| dir.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// Says whether an image has, or is about to have, more than the version in its own directory.
    pub(super) fn is_versioned(&self, name: &str) -> bool {
        self.entry(name).is_ok_and(|image| image.present.is_some())
            || self.layout.current_version(name).exists()
    }

    /// Returns the version that the disk in a VM's directory is an overlay on; `None` if there is
    /// no disk, or no such version.
    pub(super) fn version_of(&self, name: &str, vm: &VmDir) -> Option<BootImage> {
        let dir = version_dir(&self.layout, name, &version_file(vm).ok()??);
        let image = self.entry(name).ok()?;
        let version = image.versions().find(|v| v.dir == dir && v.is_there())?;
        Some(version.manifest.boot(name, &version.dir))
    }

    /// Checks that a VM's disk is, or will be, an overlay on this version: on another one its data
    /// would be damaged.
    pub(super) fn check_version(&self, vm: &VmDir, image: BootImage) -> Result<BootImage> {
        let id = version_file(vm).map_err(BackendError::at(vm.0.display()))?;
        let Some(id) = id else { return Ok(image) };
        if image.disk.parent() == Some(&version_dir(&self.layout, &image.name, &id)) {
            return Ok(image);
        }
        let reason =
            "the version that the disk was made from is gone; the disk cannot be read without it";
        Err(BackendError::ImageFailed { name: image.name, reason: reason.to_owned() })
    }

    /// Notes which version the disk that is going to be made in a VM's directory is an overlay on.
    pub(super) fn bind_version(&self, vm: &VmDir, image: &BootImage) -> io::Result<()> {
        let dir = image.disk.parent().unwrap_or(&image.disk);
        match self.id_of(&image.name, dir) {
            Some(id) => file::replace(&vm.image_version(), format!("{id}\n").as_bytes()),
            None => file::remove(&vm.image_version()),
        }
    }

    /// Erases the versions that are not current and that no disk needs, removed VMs' included.
    pub(super) fn sweep_versions(&self) {
        let mut older = Vec::new();
        for (name, image) in &*self.images.lock() {
            older.extend(image.older.iter().map(|version| (name.clone(), version.clone())));
        }
        if older.is_empty() {
            return;
        }
        let needed = match self.needed_versions() {
            Ok(needed) => needed,
            // A VM that cannot be read may need any of them.
            Err(error) => return tracing::warn!(%error, "old versions of images stay"),
        };
        for (name, version) in older.into_iter().filter(|(_, v)| !needed.contains(&v.dir)) {
            match self.erase_version(&name, &version) {
                Ok(()) => self.change(&name, |image| image.older.retain(|v| v.dir != version.dir)),
                Err(error) => tracing::warn!(name, %error, "an old version is not erased"),
            }
        }
    }

    /// Lists the directories of all VMs, removed ones included.
    pub(super) fn vm_dirs(&self) -> io::Result<Vec<VmDir>> {
        let mut dirs = Vec::new();
        for parent in [self.layout.vms(), self.layout.trash()] {
            for entry in file::if_there(fs::read_dir(parent))?.into_iter().flatten() {
                let entry = entry?;
                // One that is not finished is nobody's yet.
                if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                    dirs.push(VmDir(entry.path()));
                }
            }
        }
        Ok(dirs)
    }

    fn needed_versions(&self) -> io::Result<BTreeSet<PathBuf>> {
        let mut needed = BTreeSet::new();
        for vm in self.vm_dirs()? {
            let Some(id) = version_file(&vm)? else { continue };
            let definition: Definition = file::read_json(&vm.definition())?;
            needed.insert(version_dir(&self.layout, definition.settings.image(), &id));
        }
        Ok(needed)
    }

    fn erase_version(&self, name: &str, version: &ImageVersion) -> io::Result<()> {
        if self.id_of(name, &version.dir).is_some() {
            return fs::remove_dir_all(&version.dir);
        }
        let own = version.manifest.names().map(|name| version.dir.join(name));
        own.collect::<Vec<_>>().iter().try_for_each(|path| file::remove(path))?;
        file::if_there(fs::remove_dir_all(version.dir.join(TEMPLATES))).map(drop)
    }
}

/// Returns the name of the version that a VM's disk is an overlay on, which is empty for the first;
/// `None` without a disk.
fn version_file(vm: &VmDir) -> io::Result<Option<String>> {
    if !vm.disk().try_exists()? {
        return Ok(None);
    }
    let id = file::if_there(fs::read_to_string(vm.image_version()))?.unwrap_or_default();
    Ok(Some(id.trim_end().to_owned()))
}

#[cfg(test)]
#[path = "versions_tests.rs"]
mod tests;
