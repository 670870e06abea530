//! Which images there are, and what each is doing. One build per image at a time, on a thread of
//! its own: whoever asked may go away and the build goes on. An image appears by one rename.
//!
//! Not here: how an image is made (`source::Source`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::manifest::Manifest;
use super::source::{BuildError, Progress, Source};
use super::tiny::Tiny;
use crate::store::file;
use crate::store::layout::Layout;
use crate::vm::backend::{BackendError, BootImage, ImageInfo, ImageStatus, Images};
use crate::vm::stream::{Bell, Listener};

/// The images of a store. Clones are the same store.
#[derive(Clone, Debug)]
pub struct ImageStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    images: Mutex<BTreeMap<String, Image>>,
    bell: Bell,
}

#[derive(Debug)]
struct Image {
    /// `None` for an image that is on disk and cannot be made again.
    source: Option<Arc<dyn Source>>,
    phase: Phase,
    progress: String,
    changed: SystemTime,
}

#[derive(Clone, Debug)]
enum Phase {
    Absent,
    UnderWay(ImageStatus),
    Ready(Box<Finished>),
    Failed(BackendError),
}

#[derive(Clone, Debug)]
struct Finished {
    manifest: Manifest,
    dir: PathBuf,
    size: u64,
}

impl ImageStore {
    /// Opens the images of a store: removes what an earlier daemon left half-built and looks at
    /// what is there. Only the store's daemon may do so.
    ///
    /// # Errors
    /// The store's directories cannot be made or read.
    pub fn open(layout: Layout) -> Result<Self, BackendError> {
        let tiny = Tiny::new(layout.cache());
        Self::with_sources(layout, vec![("tiny", Arc::new(tiny))])
    }

    fn with_sources(
        layout: Layout,
        sources: Vec<(&str, Arc<dyn Source>)>,
    ) -> Result<Self, BackendError> {
        let dir = layout.images();
        let found = file::private_dir(&dir)
            .and_then(|()| scan(&dir))
            .map_err(|e| BackendError::io(dir.display().to_string(), &e))?;
        let mut images: BTreeMap<_, _> =
            found.into_iter().map(|(name, finished)| (name, Image::found(finished))).collect();
        for (name, source) in sources {
            images.entry(name.to_owned()).or_default().source = Some(source);
        }
        Ok(Self(Arc::new(Inner { layout, images: Mutex::new(images), bell: Bell::default() })))
    }
}

#[async_trait]
impl Images for ImageStore {
    fn list(&self) -> Vec<ImageInfo> {
        let images = self.0.images.lock();
        images.iter().map(|(name, i)| i.info(name)).collect()
    }

    fn info(&self, name: &str) -> Option<ImageInfo> {
        self.0.images.lock().get(name).map(|i| i.info(name))
    }

    fn begin(&self, name: &str) -> Result<(), BackendError> {
        self.0.begin(name)
    }

    async fn ensure(&self, name: &str) -> Result<BootImage, BackendError> {
        let mut changes = self.0.bell.listen();
        self.0.begin(name)?;
        loop {
            if let Some(result) = self.0.result(name) {
                return result;
            }
            changes.rung().await;
        }
    }

    fn listen(&self) -> Listener {
        self.0.bell.listen()
    }
}

impl Inner {
    fn begin(self: &Arc<Self>, name: &str) -> Result<(), BackendError> {
        let unknown = || BackendError::NoImage { name: name.to_owned() };
        let mut images = self.images.lock();
        let image = images.get_mut(name).ok_or_else(unknown)?;
        match &image.phase {
            Phase::UnderWay(_) => return Ok(()),
            Phase::Ready(finished) if finished.is_there() => return Ok(()),
            Phase::Absent | Phase::Ready(_) | Phase::Failed(_) => {}
        }
        let source = image.source.clone().ok_or_else(unknown)?;
        image.become_(Phase::UnderWay(ImageStatus::Fetching));
        "starting".clone_into(&mut image.progress);
        drop(images);
        self.bell.ring();
        self.spawn(name, source)
    }

    fn spawn(self: &Arc<Self>, name: &str, source: Arc<dyn Source>) -> Result<(), BackendError> {
        let (inner, owned) = (Arc::clone(self), name.to_owned());
        let build = move || {
            let result = inner.build(&owned, &*source);
            inner.settle(&owned, result);
        };
        let thread = std::thread::Builder::new().name(format!("image {name}"));
        thread.spawn(build).map(drop).map_err(|e| {
            let error = BackendError::io("a thread to build an image", &e);
            self.settle(name, Err(error.clone()));
            error
        })
    }

    /// Answers for an image that is neither made nor being made: `None` while it is.
    fn result(&self, name: &str) -> Option<Result<BootImage, BackendError>> {
        let images = self.images.lock();
        match &images.get(name)?.phase {
            Phase::Absent | Phase::UnderWay(_) => None,
            Phase::Ready(f) => Some(Ok(f.manifest.boot(name, &f.dir))),
            Phase::Failed(error) => Some(Err(error.clone())),
        }
    }

    fn build(self: &Arc<Self>, name: &str, source: &dyn Source) -> Result<Finished, BackendError> {
        let since = Instant::now();
        let progress = Progress::new({
            let (inner, name) = (Arc::clone(self), name.to_owned());
            move |status, line| inner.report(&name, status, line)
        });
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
        source: &dyn Source,
        progress: &Progress,
    ) -> Result<Finished, BackendError> {
        let images = self.layout.images();
        let io = |e: &io::Error| BackendError::io(images.display().to_string(), e);
        let temporary = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .tempdir_in(&images)
            .map_err(|e| io(&e))?;
        let manifest = source
            .build(temporary.path(), progress)
            .and_then(|m| m.seal(temporary.path()))
            .map_err(|e: BuildError| e.into_backend(name))?;
        let dir = images.join(name);
        publish(temporary.path(), &dir).map_err(|e| io(&e))?;
        // It has its own name now; nothing is left to remove.
        drop(temporary.keep());
        Ok(Finished::new(manifest, dir))
    }

    fn report(&self, name: &str, status: ImageStatus, line: String) {
        self.change(name, |image| {
            image.phase = Phase::UnderWay(status);
            image.progress = line;
        });
    }

    fn settle(&self, name: &str, result: Result<Finished, BackendError>) {
        self.change(name, |image| {
            image.progress.clear();
            image.become_(match result {
                Ok(finished) => Phase::Ready(Box::new(finished)),
                Err(error) => Phase::Failed(error),
            });
        });
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Image)) {
        if let Some(image) = self.images.lock().get_mut(name) {
            change(image);
        }
        self.bell.ring();
    }
}

impl Default for Image {
    fn default() -> Self {
        Self {
            source: None,
            phase: Phase::Absent,
            progress: String::new(),
            changed: SystemTime::now(),
        }
    }
}

impl Image {
    fn found(finished: Finished) -> Self {
        let changed = fs::metadata(&finished.dir).and_then(|m| m.modified());
        Self {
            changed: changed.unwrap_or_else(|_| SystemTime::now()),
            phase: Phase::Ready(Box::new(finished)),
            ..Self::default()
        }
    }

    fn become_(&mut self, phase: Phase) {
        self.phase = phase;
        self.changed = SystemTime::now();
    }

    fn info(&self, name: &str) -> ImageInfo {
        let (finished, status) = match &self.phase {
            Phase::Absent => (None, ImageStatus::Absent),
            Phase::UnderWay(status) => (None, status.clone()),
            Phase::Ready(finished) => (Some(finished), ImageStatus::Ready),
            Phase::Failed(error) => (None, ImageStatus::Failed(error.to_string())),
        };
        let source = self.source.as_ref();
        let manifest = finished.map(|f| &f.manifest);
        let word = |ours: Option<&str>, told: Option<&String>| {
            ours.or(told.map(String::as_str)).unwrap_or_default().to_owned()
        };
        ImageInfo {
            name: name.to_owned(),
            source: word(source.map(|s| s.spec()), manifest.map(|m| &m.source)),
            kind: word(source.map(|s| s.kind()), manifest.map(|m| &m.kind)),
            digest: word(None, manifest.map(|m| &m.digest)),
            size: finished.map_or(0, |f| f.size),
            status,
            progress: self.progress.clone(),
            changed: self.changed,
        }
    }
}

impl Finished {
    fn new(manifest: Manifest, dir: PathBuf) -> Self {
        Self { size: manifest.size(&dir), manifest, dir }
    }

    fn is_there(&self) -> bool {
        self.dir.join(&self.manifest.disk).exists()
    }
}

/// Removes half-built images and reads the finished ones. A damaged image is left alone, and is
/// replaced if its source can make it again.
fn scan(images: &Path) -> io::Result<Vec<(String, Finished)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(images)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(name) = name.into_string() else {
            continue;
        };
        if name.starts_with('.') {
            fs::remove_dir_all(&path)?;
            continue;
        }
        match Manifest::read(&path) {
            Ok(manifest) => found.push((name, Finished::new(manifest, path))),
            Err(error) => tracing::warn!(name, %error, "image cannot be used"),
        }
    }
    Ok(found)
}

/// Gives a finished image its name, durably. Something damaged under that name makes way.
fn publish(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    file::sync_dir(from)?;
    fs::rename(from, to)?;
    to.parent().map_or(Ok(()), file::sync_dir)
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
