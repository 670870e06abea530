//! A template of a warm image: `warm/ID/template.json`, and memory, device state and disk beside
//! it. A damaged one is noticed before a guest runs on it.
//!
//! Not here: capturing (`qemu::capture`), and which VMs can be its clones (`vm::template`).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::source::{BuildError, Progress, Result};
use crate::disk::fingerprint::Fingerprint;
use crate::disk::img::Conversion;
use crate::disk::{DiskFormat, Layer};
use crate::store::file;
use crate::vm::spec::ImageSettings;
use crate::vm::template::{Capture, Captured, ProgressFn, Saved, Shape, Template, names};

const NAME: &str = "template.json";
const DISK: &str = "disk.qcow2";
const VERSION: u32 = 1;

/// A template as described on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredTemplate {
    version: u32,
    created: SystemTime,
    shape: Shape,
    /// The settings that it ran with; earlier versions did not store them.
    settings: Option<ImageSettings>,
    /// How long its vCPUs were paused.
    pause: Duration,
    /// It has a disk of its own, an overlay on the image's.
    has_disk: bool,
    ram: Fingerprint,
    state: Fingerprint,
}

impl StoredTemplate {
    /// Describes what was captured into `dir`, and makes it durable.
    pub(super) fn seal(dir: &Path, captured: &Captured, has_disk: bool) -> Result<Self> {
        let seal = |name| {
            let path = dir.join(name);
            Fingerprint::of(&path).map_err(BuildError::at(&path))
        };
        let stored = Self {
            version: VERSION,
            created: SystemTime::now(),
            shape: captured.shape.clone(),
            settings: Some(captured.settings.clone()),
            pause: captured.pause,
            has_disk,
            ram: seal(names::RAM)?,
            state: seal(names::STATE)?,
        };
        stored.write(dir)?;
        Ok(stored)
    }

    fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(NAME);
        file::replace_json(&path, self).map_err(BuildError::at(&path))
    }

    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        let stored: Self = file::read_json(&dir.join(NAME))?;
        match stored.version {
            VERSION => Ok(stored),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a template of another version")),
        }
    }

    pub(super) fn summary(&self) -> String {
        let pause = self.pause.as_secs_f64() * 1000.0;
        format!("{} pause {pause:.0}ms", self.shape.summary())
    }

    /// Returns the settings that its clones must have, as far as they are known.
    pub(super) fn settings(&self) -> ImageSettings {
        let Shape { cpus, memory, disk, .. } = self.shape;
        let of_shape = || ImageSettings::of_shape(cpus, memory, disk);
        self.settings.clone().unwrap_or_else(of_shape)
    }

    /// Checks what is in `dir` for clones on the image `below`. Files that were copied get new
    /// stamps.
    pub(super) fn check(&mut self, dir: &Path, below: Layer) -> Result<Template, String> {
        let (ram, state) = (dir.join(names::RAM), dir.join(names::STATE));
        let now =
            Self { ram: self.ram.check(&ram)?, state: self.state.check(&state)?, ..self.clone() };
        if now != *self {
            // Copied, as by a backup; if the stamps cannot be written, the next daemon reads the
            // files again.
            drop(now.write(dir));
            *self = now;
        }
        let own = self.has_disk.then(|| disk_in(dir));
        let id = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let base = own.into_iter().chain([below]).collect();
        Ok(Template { id, saved: Saved::in_dir(dir), base, shape: self.shape.clone() })
    }
}

/// Captures a machine: its memory and device state go to `dir`. What the capture needs beside them
/// is in the directory that is returned, until the disk is copied.
pub(super) fn capture(
    machine: &dyn Capture,
    dir: &Path,
    report: &ProgressFn<'_>,
) -> Result<(Captured, TempDir)> {
    let io = BuildError::at(dir);
    let work = tempfile::Builder::new().prefix(".work").tempdir_in(dir).map_err(io)?;
    let captured = futures::executor::block_on(machine.capture(work.path(), report));
    let captured = captured.map_err(BuildError::Backend)?;
    for name in [names::RAM, names::STATE] {
        fs::rename(work.path().join(name), dir.join(name)).map_err(io)?;
    }
    Ok((captured, work))
}

/// Returns the disk of the template in `dir`.
pub(super) fn disk_in(dir: &Path) -> Layer {
    Layer { path: dir.join(DISK), format: DiskFormat::Qcow2 }
}

/// Copies the disk of a captured machine, as far as it differs from the image below.
pub(super) fn copy_disk(captured: &Captured, dir: &Path, progress: &Progress) -> Result<()> {
    let Some(base) = captured.disk.last() else {
        return Err(BuildError::malformed("the disk of the capture", "it has no layers"));
    };
    let to = disk_in(dir);
    let (layers, snapshot) = (&captured.disk, captured.snapshot.as_deref());
    progress.copying(&Conversion { layers, snapshot, to: &to, base: Some(base) })?;
    File::open(&to.path).and_then(|f| f.sync_all()).map_err(BuildError::at(&to.path))
}

/// Lists the templates below `dir`, newest first. Other directories are skipped.
pub(super) fn list(dir: &Path) -> Vec<(PathBuf, StoredTemplate)> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<_> = entries
        .map(|e| e.path())
        .filter_map(|p| StoredTemplate::read(&p).ok().map(|s| (p, s)))
        .collect();
    found.sort_by_key(|(_, stored)| std::cmp::Reverse(stored.created));
    found
}

/// Forgets the template in `dir`; its disk stays for those whose disks are overlays on it.
pub(super) fn forget(dir: &Path) -> io::Result<()> {
    for name in [NAME, names::RAM, names::STATE] {
        file::remove(&dir.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn stored(dir: &Path) -> StoredTemplate {
        let ram = File::create(dir.join(names::RAM)).unwrap();
        ram.set_len(1 << 20).unwrap();
        ram.write_all_at(b"memory", 300_000).unwrap();
        fs::write(dir.join(names::STATE), "state").unwrap();
        let seal = |name| Fingerprint::of(&dir.join(name)).unwrap();
        let stored = StoredTemplate {
            version: VERSION,
            created: SystemTime::now(),
            shape: Shape::sample(),
            settings: None,
            pause: Duration::from_millis(12),
            has_disk: true,
            ram: seal(names::RAM),
            state: seal(names::STATE),
        };
        stored.write(dir).unwrap();
        stored
    }

    fn image() -> Layer {
        Layer { path: "/images/x/disk.raw".into(), format: DiskFormat::Raw }
    }

    #[test]
    fn what_is_as_it_was_is_not_read_and_what_was_copied_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut stored = stored(dir.path());
        let before = stored.ram.clone();
        let template = stored.check(dir.path(), image()).unwrap();
        assert_eq!(template.base.len(), 2);
        let (ram, copy) = (dir.path().join(names::RAM), dir.path().join("copy"));
        // A copy without holes, put in its place.
        fs::write(&copy, fs::read(&ram).unwrap()).unwrap();
        fs::rename(&copy, &ram).unwrap();
        stored.check(dir.path(), image()).unwrap();
        let noted = StoredTemplate::read(dir.path()).unwrap();
        assert_ne!(noted.ram, before);
        assert_eq!(noted, stored);
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        for (name, at) in [(names::RAM, 300_001), (names::RAM, 999_999), (names::STATE, 0)] {
            let dir = tempfile::tempdir().unwrap();
            let mut stored = stored(dir.path());
            let file = File::options().write(true).open(dir.path().join(name)).unwrap();
            file.write_all_at(b"X", at).unwrap();
            let error = stored.check(dir.path(), image()).unwrap_err();
            assert!(error.contains("damaged"), "{name} {at}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut stored = stored(dir.path());
        File::options().write(true).open(dir.path().join(names::RAM)).unwrap().set_len(9).unwrap();
        assert!(stored.check(dir.path(), image()).is_err());
        fs::remove_file(dir.path().join(names::RAM)).unwrap();
        assert!(stored.check(dir.path(), image()).unwrap_err().contains("No such file"));
    }

    #[test]
    fn one_that_is_forgotten_keeps_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("1");
        fs::create_dir(&own).unwrap();
        stored(&own);
        fs::write(own.join(DISK), "").unwrap();
        assert_eq!(list(dir.path()).len(), 1);
        forget(&own).unwrap();
        assert!(list(dir.path()).is_empty());
        assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
        forget(&own).unwrap();
    }
}
