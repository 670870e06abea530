//! Templates of warm images: captured, found, forgotten, erased.
//!
//! Not here: their files (`template`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::builds::{spawn_thread, under_way};
use super::catalogue::Catalogue;
use super::entry::TemplateStatus;
use super::source::{BuildError, Progress};
use super::template::{self, StoredTemplate};
use super::versions;
use crate::store::file;
use crate::store::layout::TEMPLATES;
use crate::vm::backend::{BackendError, Result};
use crate::vm::one_line;
use crate::vm::template::{Capture, Layer, Template, WarmStatus};

impl TemplateStatus {
    /// Finds the newest template of the image in `dir`.
    pub(super) fn found(dir: &Path) -> Self {
        let newest = template::list(&dir.join(TEMPLATES)).into_iter().next();
        newest.map_or(Self::Cold, |(path, stored)| Self::Warm(path, Box::new(stored)))
    }

    pub(super) fn is_under_way(&self) -> bool {
        matches!(self, Self::Warming(_))
    }

    /// Returns the template that there is, and its directory.
    pub(super) fn newest(&self) -> Option<(&Path, &StoredTemplate)> {
        match self {
            Self::Warm(dir, stored) => Some((dir, stored)),
            Self::Cold | Self::Warming(_) | Self::Failed(_) => None,
        }
    }

    pub(super) fn status(&self) -> WarmStatus {
        match self {
            Self::Cold => WarmStatus::Cold,
            Self::Warming(how_far) => WarmStatus::Warming(how_far.clone()),
            Self::Warm(_, stored) => WarmStatus::Warm(stored.summary()),
            Self::Failed(reason) => WarmStatus::Failed(reason.clone()),
        }
    }
}

impl Catalogue {
    /// Checks the newest template of an image that is ready; `None` if there is none.
    pub(super) fn check_template(&self, name: &str) -> Option<Result<Template, String>> {
        let (dir, mut stored, below) = self.template_in(name)?;
        let before = stored.clone();
        let checked = stored.check(&dir, below);
        if stored != before {
            self.change(name, |image| {
                if let TemplateStatus::Warm(there, noted) = &mut image.warmth
                    && *there == dir
                {
                    **noted = stored;
                }
            });
        }
        Some(checked)
    }

    fn template_in(&self, name: &str) -> Option<(PathBuf, StoredTemplate, Layer)> {
        let image = self.entry(name).ok()?;
        let (finished, (dir, stored)) = image.ready().zip(image.warmth.newest())?;
        let boot = finished.manifest.boot(name, &finished.dir);
        let below = Layer { path: boot.disk, format: boot.format };
        Some((dir.to_owned(), stored.clone(), below))
    }

    pub(super) fn warm(self: &Arc<Self>, name: &str, machine: Arc<dyn Capture>) -> Result<()> {
        let mut image = self.entry(name)?;
        if image.is_under_way() || image.warmth.is_under_way() {
            return Err(under_way(name));
        }
        image.warmth = TemplateStatus::Warming("starting".to_owned());
        drop(image);
        self.bell.ring();
        let (catalogue, owned) = (Arc::clone(self), name.to_owned());
        let work = move || {
            let captured = catalogue.capture(&owned, &*machine);
            drop(machine);
            catalogue.settle_warmth(&owned, captured);
        };
        let begun = spawn_thread(format!("warm {name}"), work);
        begun.inspect_err(|error| self.settle_warmth(name, Err(error.clone())))
    }

    /// Captures a machine into a hidden directory, which gets its name when it is whole.
    fn capture(self: &Arc<Self>, name: &str, machine: &dyn Capture) -> Result<()> {
        futures::executor::block_on(self.ensure(name))?;
        let all = versions::current_dir(&self.layout, name).join(TEMPLATES);
        let io = |e| BackendError::at(all.display())(e);
        file::private_dir(&all).map_err(io)?;
        let hidden = tempfile::Builder::new().prefix(".").tempdir_in(&all).map_err(io)?;
        let report = |words: &str| self.report_warming(name, words);
        let failed = |e: BuildError| e.into_backend(name);
        let (captured, work) =
            template::capture(machine, hidden.path(), &report).map_err(failed)?;
        let progress = Progress::new({
            let (catalogue, name) = (Arc::clone(self), name.to_owned());
            move |_, line| catalogue.report_warming(&name, &line)
        });
        template::copy_disk(&captured, hidden.path(), &progress).map_err(failed)?;
        report("computing the digest");
        StoredTemplate::seal(hidden.path(), &captured, true).map_err(failed)?;
        drop(captured);
        work.close().map_err(io)?;
        let to = all.join(Uuid::new_v4().simple().to_string());
        fs::rename(hidden.keep(), &to).and_then(|()| file::sync_dir(&all)).map_err(io)
    }

    fn report_warming(&self, name: &str, words: &str) {
        self.change(name, |image| image.warmth = TemplateStatus::Warming(words.to_owned()));
    }

    fn settle_warmth(&self, name: &str, captured: Result<()>) {
        let found = match captured {
            Ok(()) => TemplateStatus::found(&versions::current_dir(&self.layout, name)),
            Err(error) => TemplateStatus::Failed(one_line(&error.to_string())),
        };
        self.change(name, |image| image.warmth = found);
        self.sweep();
    }

    pub(super) fn cool(&self, name: &str) -> Result<()> {
        let mut image = self.entry(name)?;
        if image.warmth.is_under_way() {
            return Err(under_way(name));
        }
        image.warmth = TemplateStatus::Cold;
        drop(image);
        self.bell.ring();
        let all = versions::current_dir(&self.layout, name).join(TEMPLATES);
        for (dir, _) in template::list(&all) {
            template::forget(&dir).map_err(BackendError::at(dir.display()))?;
        }
        self.sweep();
        Ok(())
    }

    /// Erases templates that no clone can be made from any more, except disks that clones' disks
    /// are overlays on. The list of images is not locked meanwhile: large files take long to erase.
    pub(super) fn sweep(&self) {
        let old = self.old_templates();
        if old.is_empty() {
            return;
        }
        match self.needed() {
            Ok(needed) => old.iter().for_each(|dir| sweep_one(dir, &needed)),
            // A VM that cannot be read may need any of them.
            Err(error) => tracing::warn!(%error, "old templates stay"),
        }
    }

    /// Lists what is beside the newest template of each image that is not being warmed.
    fn old_templates(&self) -> Vec<PathBuf> {
        let images = self.images.lock();
        // Until an image is ready, as while it is made again, it is not known which template counts.
        let settled =
            images.iter().filter(|(_, i)| i.ready().is_some() && !i.warmth.is_under_way());
        let old = settled.flat_map(|(name, image)| {
            let newest = image.warmth.newest().map(|(dir, _)| dir);
            let all = versions::dirs(&self.layout, name).into_iter().map(|dir| dir.join(TEMPLATES));
            let entries = all.filter_map(|dir| fs::read_dir(dir).ok()).flatten();
            let dirs = entries.filter_map(Result::ok).map(|e| e.path());
            dirs.filter(move |dir| Some(&**dir) != newest)
        });
        old.collect()
    }

    /// Lists the templates that disks of VMs are overlays on, removed VMs' too.
    fn needed(&self) -> io::Result<BTreeSet<String>> {
        // First: those that are not in it any more are noted beside a disk.
        let mut needed = self.forking.lock().clone();
        for vm in self.vm_dirs()? {
            let id = file::if_there(fs::read_to_string(vm.template()))?;
            needed.extend(id.map(|id| id.trim_end().to_owned()));
        }
        Ok(needed)
    }
}

fn sweep_one(dir: &Path, needed: &BTreeSet<String>) {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let swept = match needed.contains(&*name) {
        true => template::forget(dir),
        false => fs::remove_dir_all(dir),
    };
    if let Err(error) = swept {
        tracing::warn!(dir = %dir.display(), %error, "not erased");
    }
}
