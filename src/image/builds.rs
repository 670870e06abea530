//! One build of an image: begun once, on a thread of its own, awaited by many, and published by one rename.
//! It continues when the caller is gone.
//!
//! Not here: which images there are (`catalogue`), how one is made (`source`), versions beside each other
//! (`versions`).

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::catalogue::Catalogue;
use super::entry::{BuildPhase, ImageEntry, ImageVersion};
use super::source::{BuildError, ImageSource, Progress};
use crate::store::file;
use crate::sys;
use crate::vm::backend::{BackendError, BootImage, ImageStatus, Result};
use crate::vm::one_line;

/// What `progress` says after a refresh that has found nothing new.
const UNCHANGED: &str = "nothing has changed since it was made";

impl Catalogue {
    pub(super) fn begin(self: &Arc<Self>, name: &str) -> Result<()> {
        let mut image = self.entry(name)?;
        match &image.phase {
            BuildPhase::UnderWay(_) => return Ok(()),
            BuildPhase::Ready(finished) if finished.is_there() => return Ok(()),
            BuildPhase::Absent | BuildPhase::Ready(_) | BuildPhase::Failed(_) => {}
        }
        let source = image.source_to_use(name)?;
        image.start_building();
        drop(image);
        self.bell.ring();
        self.spawn(name, source)
    }

    pub(super) async fn ensure(self: &Arc<Self>, name: &str) -> Result<BootImage> {
        let mut changes = self.bell.listen();
        self.begin(name)?;
        loop {
            if let Some(result) = self.result(name) {
                return result;
            }
            changes.rung().await;
            // One that is removed meanwhile is made again, or is no more.
            if self.is_absent(name)? {
                self.begin(name)?;
            }
        }
    }

    pub(super) fn spawn(self: &Arc<Self>, name: &str, source: Arc<dyn ImageSource>) -> Result<()> {
        let (catalogue, owned) = (Arc::clone(self), name.to_owned());
        let build = move || {
            let result = catalogue.build(&owned, &*source);
            catalogue.settle(&owned, result);
            drop((catalogue, source));
            sys::give_memory_back();
        };
        let begun = spawn_thread(format!("image {name}"), build);
        begun.inspect_err(|error| self.settle(name, Err(error.clone())))
    }

    fn is_absent(&self, name: &str) -> Result<bool> {
        Ok(matches!(self.entry(name)?.phase, BuildPhase::Absent))
    }

    /// Answers for an image that is neither made nor being made: `None` while it is.
    pub(super) fn result(&self, name: &str) -> Option<Result<BootImage>> {
        match &self.entry(name).ok()?.phase {
            BuildPhase::Absent | BuildPhase::UnderWay(_) => None,
            BuildPhase::Ready(f) => Some(Ok(f.manifest.boot(name, &f.dir))),
            BuildPhase::Failed(error) => Some(Err(error.clone())),
        }
    }

    fn build(self: &Arc<Self>, name: &str, source: &dyn ImageSource) -> Result<ImageVersion> {
        let since = Instant::now();
        let progress = Progress::new({
            let (catalogue, name) = (Arc::clone(self), name.to_owned());
            move |status, line| catalogue.report(&name, status, line)
        })
        .until(self.entry(name)?.cancel.clone());
        let caught = std::panic::AssertUnwindSafe(|| self.make(name, source, &progress));
        let finished = std::panic::catch_unwind(caught).unwrap_or_else(|_| {
            Err(BackendError::ImageFailed {
                name: name.to_owned(),
                reason: "the builder has a bug, see the daemon's log".to_owned(),
            })
        })?;
        tracing::info!(name, seconds = since.elapsed().as_secs_f32(), "image ready");
        Ok(finished)
    }

    fn make(
        &self,
        name: &str,
        source: &dyn ImageSource,
        progress: &Progress,
    ) -> Result<ImageVersion> {
        let images = self.layout.images();
        let failed = |e: BuildError| e.into_backend(name);
        let present = self.entry(name)?.present.clone();
        if let Some(present) = present
            && source.is_current(&present.manifest, progress).map_err(failed)?
        {
            return Ok(present);
        }
        let hidden = tempfile::Builder::new().prefix(&format!(".{name}.")).tempdir_in(&images);
        let hidden = hidden.map_err(BackendError::at(images.display()))?;
        let manifest = source.build(hidden.path(), progress).and_then(|m| m.seal(hidden.path()));
        // What takes no notice of it meanwhile ends here.
        progress.cancel().check().map_err(BuildError::from).map_err(failed)?;
        let manifest = manifest.map_err(failed)?;
        let published = match self.is_versioned(name) {
            true => self.publish_version(name, hidden, manifest),
            false => publish(hidden, &images.join(name))
                .map(|()| ImageVersion::new(manifest, images.join(name))),
        };
        published.map_err(BackendError::at(images.display()))
    }

    fn report(&self, name: &str, status: ImageStatus, line: String) {
        self.change(name, |image| {
            image.phase = BuildPhase::UnderWay(status);
            image.progress = line;
        });
    }

    fn settle(&self, name: &str, result: Result<ImageVersion>) {
        self.change(name, |image| {
            image.progress.clear();
            let present = image.present.take();
            let phase = match (result, present) {
                (Ok(finished), present) => {
                    if present.as_ref().is_some_and(|present| present.dir == finished.dir) {
                        UNCHANGED.clone_into(&mut image.progress);
                    }
                    image.older.extend(present);
                    image.older.retain(|version| version.dir != finished.dir);
                    BuildPhase::Ready(Box::new(finished))
                }
                // The present version stays.
                (Err(error), Some(present)) => {
                    let said = error.to_string().replace("`echo pull >", "`echo refresh >");
                    image.progress = one_line(&format!("refresh failed: {said}"));
                    BuildPhase::Ready(Box::new(present))
                }
                (Err(error), None) => BuildPhase::Failed(error),
            };
            image.set_phase(phase);
        });
        self.sweep();
    }

    pub(super) fn change(&self, name: &str, change: impl FnOnce(&mut ImageEntry)) {
        if let Ok(mut image) = self.entry(name) {
            change(&mut image);
        }
        self.bell.ring();
    }
}

/// Gives a finished image its name, durably. Its definition, or a damaged image, that had the name
/// is erased.
pub(super) fn publish(from: tempfile::TempDir, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    file::sync_dir(from.path())?;
    // The old one is where the new one was, and is erased with that directory.
    if renameat_with(CWD, from.path(), CWD, to, RenameFlags::EXCHANGE).is_err() {
        let old = move_aside(to)?;
        fs::rename(from.keep(), to)?;
        drop(old);
    }
    to.parent().map_or(Ok(()), file::sync_dir)
}

/// Runs work on an image on a thread of its own.
pub(super) fn spawn_thread(name: String, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name).spawn(work);
    thread.map(drop).map_err(BackendError::at("a thread to work on an image"))
}

pub(super) fn under_way(name: &str) -> BackendError {
    let reason = "is being made; wait until its status says ready or failed".to_owned();
    BackendError::ImageBusy { name: name.to_owned(), reason }
}

/// Moves a directory into a hidden one, which is erased when it is dropped; `None` if there was
/// none.
pub(super) fn move_aside(dir: &Path) -> io::Result<Option<tempfile::TempDir>> {
    let parent = dir.parent().unwrap_or(dir);
    let hidden = tempfile::Builder::new().prefix(".removed.").tempdir_in(parent)?;
    let moved = file::if_there(fs::rename(dir, hidden.path().join("image")))?;
    if moved.is_some() {
        file::sync_dir(parent)?;
    }
    Ok(moved.map(|()| hidden))
}
