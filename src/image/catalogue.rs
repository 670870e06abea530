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

use super::disk::DiskFile;
use super::manifest::Manifest;
use super::publish::{LiveVm, VmDisk};
use super::source::{BuildError, Progress, Source};
use super::template::{self, Stored};
use super::tiny::Tiny;
use crate::store::file;
use crate::store::layout::{Layout, VmDir};
use crate::vm::backend::{BackendError, BootImage, ImageInfo, ImageStatus, Images, Recipe};
use crate::vm::origin::Origin;
use crate::vm::stream::{Bell, Listener};
use crate::vm::warm::{Freeze, Layer, Template};

/// The images of a store. Clones are the same store.
#[derive(Clone, Debug)]
pub struct ImageStore(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) layout: Layout,
    tiny: Arc<Tiny>,
    pub(super) images: Mutex<BTreeMap<String, Image>>,
    pub(super) bell: Bell,
}

#[derive(Debug)]
pub(super) struct Image {
    /// `None` for one that has none yet, and for one that cannot be made again just so.
    source: Option<Arc<dyn Source>>,
    /// What `source` says where there is no source to ask.
    spec: String,
    /// It comes with the program, and cannot be redefined or lost.
    builtin: bool,
    pub(super) phase: Phase,
    pub(super) warmth: Warmth,
    progress: String,
    changed: SystemTime,
}

/// Whether a machine is frozen in an image.
#[derive(Clone, Debug, Default)]
pub(super) enum Warmth {
    #[default]
    Cold,
    /// It is being frozen: how far that is.
    Warming(String),
    /// It lies there.
    Warm(PathBuf, Box<Stored>),
    Failed(String),
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    Absent,
    UnderWay(ImageStatus),
    Ready(Box<Finished>),
    Failed(BackendError),
}

#[derive(Clone, Debug)]
pub(super) struct Finished {
    pub(super) manifest: Manifest,
    pub(super) dir: PathBuf,
    size: u64,
}

impl ImageStore {
    /// Opens the images of a store: removes what an earlier daemon left half-built and looks at
    /// what is there. Only the store's daemon may do so.
    ///
    /// # Errors
    /// The store's directories cannot be made or read.
    pub fn open(layout: Layout) -> Result<Self, BackendError> {
        let tiny = Arc::new(Tiny::new(layout.cache()));
        Self::with_sources(layout, Arc::clone(&tiny), vec![("tiny", tiny)])
    }

    fn with_sources(
        layout: Layout,
        tiny: Arc<Tiny>,
        sources: Vec<(&str, Arc<dyn Source>)>,
    ) -> Result<Self, BackendError> {
        let dir = layout.images();
        let found = file::private_dir(&dir)
            .and_then(|()| scan(&layout))
            .map_err(|e| BackendError::io(dir.display().to_string(), &e))?;
        let mut images = BTreeMap::from_iter(found);
        for image in images.values_mut().filter(|i| i.spec == tiny.spec()) {
            image.source = Some(Arc::clone(&tiny) as _);
        }
        for (name, source) in sources {
            let image: &mut Image = images.entry(name.to_owned()).or_default();
            (image.source, image.builtin) = (Some(source), true);
        }
        let (images, bell) = (Mutex::new(images), Bell::default());
        let inner = Inner { layout, tiny, images, bell };
        inner.sweep();
        Ok(Self(Arc::new(inner)))
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
        self.0.ensure(name).await
    }

    fn boot(&self, name: &str) -> Option<BootImage> {
        self.0.result(name)?.ok()
    }

    fn create(&self, name: &str) -> Result<(), BackendError> {
        self.0.create(name)
    }

    fn assign(&self, name: &str, recipe: Recipe) -> Result<(), BackendError> {
        self.0.assign(name, recipe)?;
        self.0.begin(name)
    }

    fn remove(&self, name: &str) -> Result<(), BackendError> {
        self.0.remove(name)
    }

    async fn template(&self, name: &str) -> Option<Result<Template, String>> {
        let (inner, name) = (Arc::clone(&self.0), name.to_owned());
        // One that was copied is read whole.
        let check = tokio::task::spawn_blocking(move || inner.check_template(&name));
        check.await.unwrap_or_else(|panic| Some(Err(panic.to_string())))
    }

    fn layers(&self, image: &BootImage, dir: &Path) -> Result<Vec<Layer>, BackendError> {
        let own = Layer { path: image.disk.clone(), format: image.format };
        let dir = VmDir(dir.to_owned());
        let id = match fs::read_to_string(dir.template()) {
            Ok(id) if dir.disk().exists() => id,
            _ => return Ok(vec![own]),
        };
        let template = self.0.layout.templates(&image.name).join(id.trim_end());
        Ok(vec![template::disk_in(&template), own])
    }

    fn bind(&self, dir: &Path, base: &[Layer]) -> Result<(), BackendError> {
        let path = VmDir(dir.to_owned()).template();
        let [template, _] = base else {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                done => done.map_err(|e| BackendError::io(path.display().to_string(), &e)),
            };
        };
        let id = template.path.parent().and_then(Path::file_name).unwrap_or_default();
        let done = file::replace(&path, format!("{}\n", id.to_string_lossy()).as_bytes());
        done.map_err(|e| BackendError::io(path.display().to_string(), &e))
    }

    fn warm(&self, name: &str, machine: Arc<dyn Freeze>) -> Result<(), BackendError> {
        self.0.warm(name, machine)
    }

    fn cool(&self, name: &str) -> Result<(), BackendError> {
        self.0.cool(name)
    }

    fn listen(&self) -> Listener {
        self.0.bell.listen()
    }
}

/// Names: making, defining and removing them. Each looks at the disk under the lock, for a moment:
/// of two that want the same name at once, one wins.
impl Inner {
    fn create(&self, name: &str) -> Result<(), BackendError> {
        let mut images = self.images.lock();
        if images.contains_key(name) {
            return Err(BackendError::ImageExists { name: name.to_owned() });
        }
        let dir = self.layout.image(name);
        // What is there and not in the list is damaged.
        let made = fs::create_dir(&dir).and_then(|()| file::sync_dir(&self.layout.images()));
        made.map_err(|e| BackendError::io(dir.display().to_string(), &e))?;
        images.insert(name.to_owned(), Image::default());
        drop(images);
        self.bell.ring();
        Ok(())
    }

    fn assign(&self, name: &str, recipe: Recipe) -> Result<(), BackendError> {
        // A VM that is held for this is let go after the lock.
        let source = self.source(recipe)?;
        let mut images = self.images.lock();
        let unknown = || BackendError::NoImage { name: name.to_owned() };
        let image = images.get_mut(name).ok_or_else(unknown)?;
        match &image.phase {
            Phase::UnderWay(_) => return Err(under_way(name)),
            Phase::Ready(_) => return Err(BackendError::ImageExists { name: name.to_owned() }),
            Phase::Absent | Phase::Failed(_) => {}
        }
        if image.builtin && image.spec() != source.spec() {
            let reason = format!("image {name} is always made from {}", image.spec());
            return Err(BackendError::BadSource { origin: source.spec().to_owned(), reason });
        }
        if !image.builtin {
            let (path, text) = (self.layout.image_source(name), format!("{}\n", source.spec()));
            let kept = file::replace(&path, text.as_bytes());
            kept.map_err(|e| BackendError::io(path.display().to_string(), &e))?;
        }
        source.spec().clone_into(&mut image.spec);
        image.source = Some(source);
        image.become_(Phase::Absent);
        drop(images);
        self.bell.ring();
        Ok(())
    }

    fn source(&self, recipe: Recipe) -> Result<Arc<dyn Source>, BackendError> {
        Ok(match recipe {
            Recipe::Tiny => Arc::clone(&self.tiny) as _,
            Recipe::File(path) => Arc::new(DiskFile::new(path)?),
            Recipe::Vm(publication) => Arc::new(VmDisk::new(publication)),
            Recipe::Live(publication) => Arc::new(LiveVm::new(publication)),
        })
    }

    /// One rename, and it is gone; then its files are erased.
    fn remove(&self, name: &str) -> Result<(), BackendError> {
        let mut images = self.images.lock();
        let unknown = || BackendError::NoImage { name: name.to_owned() };
        let image = images.get_mut(name).ok_or_else(unknown)?;
        if matches!(image.phase, Phase::UnderWay(_)) {
            return Err(under_way(name));
        }
        let dir = self.layout.image(name);
        let doomed = doom(&dir).map_err(|e| BackendError::io(dir.display().to_string(), &e))?;
        if image.builtin {
            image.become_(Phase::Absent);
        } else {
            images.remove(name);
        }
        drop(images);
        self.bell.ring();
        // What cannot be erased now is erased by the next daemon.
        if let Err(error) = doomed.map_or(Ok(()), tempfile::TempDir::close) {
            tracing::warn!(name, %error, "image not erased");
        }
        Ok(())
    }
}

pub(super) fn under_way(name: &str) -> BackendError {
    let reason = "is being made; wait until its status says ready or failed".to_owned();
    BackendError::ImageBusy { name: name.to_owned(), reason }
}

/// Moves a directory into a hidden one, which goes when it is dropped; `None` if there was none.
fn doom(dir: &Path) -> io::Result<Option<tempfile::TempDir>> {
    let parent = dir.parent().unwrap_or(dir);
    let hidden = tempfile::Builder::new().prefix(".removed.").tempdir_in(parent)?;
    match fs::rename(dir, hidden.path().join("image")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    }
    file::sync_dir(parent)?;
    Ok(Some(hidden))
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
        let source = image.source_to_use(name)?;
        image.become_(Phase::UnderWay(ImageStatus::Fetching));
        "starting".clone_into(&mut image.progress);
        drop(images);
        self.bell.ring();
        self.spawn(name, source)
    }

    pub(super) async fn ensure(self: &Arc<Self>, name: &str) -> Result<BootImage, BackendError> {
        let mut changes = self.bell.listen();
        self.begin(name)?;
        loop {
            if let Some(result) = self.result(name) {
                return result;
            }
            changes.rung().await;
        }
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
        publish(temporary, &dir).map_err(|e| io(&e))?;
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

    pub(super) fn change(&self, name: &str, change: impl FnOnce(&mut Image)) {
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
            spec: String::new(),
            builtin: false,
            phase: Phase::Absent,
            warmth: Warmth::Cold,
            progress: String::new(),
            changed: SystemTime::now(),
        }
    }
}

impl Image {
    fn found(finished: Finished) -> Self {
        let changed = fs::metadata(&finished.dir).and_then(|m| m.modified());
        Self {
            warmth: Warmth::found(&finished.dir),
            changed: changed.unwrap_or_else(|_| SystemTime::now()),
            spec: finished.manifest.source.clone(),
            phase: Phase::Ready(Box::new(finished)),
            ..Self::default()
        }
    }

    /// One that was defined, and not finished when the last daemon ended.
    fn unfinished(spec: &str) -> Self {
        let source = match spec.parse() {
            Ok(Origin::File(path)) => DiskFile::new(path).map(|d| Arc::new(d) as Arc<dyn Source>),
            _ => return Self { spec: spec.to_owned(), ..Self::default() },
        };
        let (source, phase) = match source {
            Ok(source) => (Some(source), Phase::Absent),
            Err(error) => (None, Phase::Failed(error)),
        };
        Self { source, phase, spec: spec.to_owned(), ..Self::default() }
    }

    fn spec(&self) -> &str {
        self.source.as_ref().map_or(&self.spec, |s| s.spec())
    }

    fn source_to_use(&self, name: &str) -> Result<Arc<dyn Source>, BackendError> {
        if let Some(source) = &self.source {
            return Ok(Arc::clone(source));
        }
        if self.spec.is_empty() {
            return Err(BackendError::NoSource { name: name.to_owned() });
        }
        let reason = format!("not finished; `echo pull > .images/{name}/ctl` makes it anew");
        Err(BackendError::ImageFailed { name: name.to_owned(), reason })
    }

    fn become_(&mut self, phase: Phase) {
        match &phase {
            // It is warmed as soon as it is ready.
            _ if self.warmth.is_under_way() => {}
            Phase::Ready(finished) => self.warmth = Warmth::found(&finished.dir),
            _ => self.warmth = Warmth::Cold,
        }
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
        let kind = self.source.as_ref().map(|s| s.kind());
        let manifest = finished.map(|f| &f.manifest);
        ImageInfo {
            name: name.to_owned(),
            source: self.spec().to_owned(),
            kind: manifest.map(|m| m.kind.as_str()).or(kind).unwrap_or_default().to_owned(),
            parent: manifest.and_then(Manifest::parent).unwrap_or_default().to_owned(),
            digest: manifest.map(|m| m.digest.clone()).unwrap_or_default(),
            size: finished.map_or(0, |f| f.size),
            status,
            progress: self.progress.clone(),
            changed: self.changed,
            warm: self.warmth.status(),
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
fn scan(layout: &Layout) -> io::Result<Vec<(String, Image)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(layout.images())? {
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
            Ok(manifest) => found.push((name, Image::found(Finished::new(manifest, path)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_dir() => {
                file::sweep(&path)?;
                let spec = fs::read_to_string(layout.image_source(&name)).unwrap_or_default();
                found.push((name, Image::unfinished(spec.trim_end())));
            }
            Err(error) => tracing::warn!(name, %error, "image cannot be used"),
        }
    }
    Ok(found)
}

/// Gives a finished image its name, durably. What was there under that name, its definition or
/// something damaged, makes way.
fn publish(from: tempfile::TempDir, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    file::sync_dir(from.path())?;
    // What makes way is then where the new one was, and goes with it.
    if renameat_with(CWD, from.path(), CWD, to, RenameFlags::EXCHANGE).is_err() {
        let old = doom(to)?;
        fs::rename(from.keep(), to)?;
        drop(old);
    }
    to.parent().map_or(Ok(()), file::sync_dir)
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
