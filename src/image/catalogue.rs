//! Which images there are, and what each is doing: names are made, defined and removed here.
//!
//! Not here: how an image is built (`builds`) and of what it is made (`source::ImageSource`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use super::blank::Blank;
use super::builds::{move_aside, spawn_thread, under_way};
use super::cloud::{self, CloudDisk, RemoteDisk};
use super::container::Container;
use super::distribution::{self, Distributions};
use super::entry::{BuildPhase, ImageEntry, scan};
use super::fork;
use super::local_disk::DiskFile;
use super::manifest;
use super::publish::{LiveVm, VmDisk};
use super::source::ImageSource;
use super::template;
use super::tiny::Tiny;
use super::versions;
use crate::arch::Arch;
use crate::programs::{self, Program};
use crate::store::failure_log::FailureLog;
use crate::store::file;
use crate::store::layout::{Layout, TEMPLATES, VmDir};
use crate::vm::backend::{BackendError, BootImage, ForkBase, ImageInfo, Images, Recipe, Result};
use crate::vm::one_line;
use crate::vm::origin::Origin;
use crate::vm::spec::ImageSettings;
use crate::vm::stream::{Bell, Listener};
use crate::vm::template::{Capture, Captured, Layer, Template};

/// The images of a store. Clones are the same store.
#[derive(Clone, Debug)]
pub struct ImageStore(Arc<Catalogue>);

#[derive(Debug)]
pub(super) struct Catalogue {
    pub(super) layout: Layout,
    tinies: Vec<Arc<Tiny>>,
    distributions: Distributions,
    /// What is listed although nobody has defined it, by name.
    offers: BTreeMap<String, Arc<dyn ImageSource>>,
    /// Locked while a name is made, defined or removed, and the disk is written.
    names_lock: Mutex<()>,
    /// Locked for a moment only: the threads that serve the kernel read it.
    pub(super) images: Mutex<BTreeMap<String, ImageEntry>>,
    pub(super) bell: Bell,
    /// The templates that forks are being made from, which no disk lies on yet.
    pub(super) forking: Mutex<BTreeSet<String>>,
}

/// An image in the list, which is locked meanwhile.
pub(super) type LockedEntry<'a> = MappedMutexGuard<'a, ImageEntry>;

impl ImageStore {
    /// Opens the images of a store: removes what an earlier daemon left half-built and looks at
    /// what is there. Only the store's daemon may do so.
    pub fn open(layout: Layout, failures: &FailureLog) -> Result<Self> {
        let file = distribution::user_file();
        let (distributions, problem) = Distributions::load(file.as_deref());
        if let Some(text) = problem {
            let error = io::Error::from_raw_os_error(libc::EINVAL);
            failures.note(&file.unwrap_or_default(), &error, text);
        }
        let mirror = distributions.packages().to_owned();
        let tiny = |arch| Arc::new(Tiny::new(layout.cache(), mirror.clone(), arch));
        let tinies = Arch::ALL.map(tiny).to_vec();
        let own = tinies.iter().find(|tiny| tiny.arch == Arch::HOST).cloned();
        let sources = own.into_iter().map(|tiny| ("tiny", tiny as _)).collect();
        Self::with_sources(layout, failures, (tinies, distributions), sources)
    }

    pub(super) fn with_sources(
        layout: Layout,
        failures: &FailureLog,
        (tinies, distributions): (Vec<Arc<Tiny>>, Distributions),
        sources: Vec<(&str, Arc<dyn ImageSource>)>,
    ) -> Result<Self> {
        let dir = layout.images();
        let found = file::private_dir(&dir)
            .and_then(|()| scan(&layout, failures))
            .map_err(BackendError::at(dir.display()))?;
        let mut images = BTreeMap::from_iter(found);
        for image in images.values_mut() {
            let tiny = tinies.iter().find(|tiny| tiny.spec() == image.spec);
            image.source = tiny.map(|tiny| Arc::clone(tiny) as _).or(image.source.take());
        }
        for (name, source) in sources {
            let image: &mut ImageEntry = images.entry(name.to_owned()).or_default();
            (image.source, image.builtin) = (Some(source), true);
        }
        let mut offers = BTreeMap::from_iter(cloud::offers(&distributions, &layout.downloads()));
        for tiny in
            tinies.iter().filter(|tiny| tiny.arch != Arch::HOST && distributions.are_listed())
        {
            offers.insert(format!("tiny-{}", tiny.arch), Arc::clone(tiny) as _);
        }
        let (images, names_lock, bell) = (Mutex::new(images), Mutex::default(), Bell::default());
        let forking = Mutex::default();
        let catalogue =
            Catalogue { layout, tinies, distributions, offers, names_lock, images, bell, forking };
        catalogue.offer();
        catalogue.sweep();
        catalogue.sweep_versions();
        Ok(Self(Arc::new(catalogue)))
    }
}

#[async_trait]
impl Images for ImageStore {
    fn list(&self) -> Vec<ImageInfo> {
        let images = self.0.images.lock();
        images.iter().map(|(name, i)| i.info(name)).collect()
    }

    fn info(&self, name: &str) -> Option<ImageInfo> {
        self.0.entry(name).ok().map(|i| i.info(name))
    }

    fn settings(&self, name: &str) -> ImageSettings {
        self.0.entry(name).map(|i| i.settings()).unwrap_or_default()
    }

    fn settings_of_disk(&self, name: &str) -> ImageSettings {
        self.0.entry(name).map(|i| i.settings_of_disk()).unwrap_or_default()
    }

    fn begin(&self, name: &str) -> Result<()> {
        self.0.begin(name)
    }

    async fn ensure(&self, name: &str) -> Result<BootImage> {
        self.0.ensure(name).await
    }

    fn missing(&self, name: &str) -> Vec<&'static Program> {
        let is_tiny = self.info(name).is_some_and(|image| image.kind == "builtin");
        if !is_tiny || self.boot(name).is_some() {
            return Vec::new();
        }
        programs::missing(&programs::BUILDERS)
    }

    async fn ensure_for(&self, name: &str, dir: &Path) -> Result<BootImage> {
        let vm = VmDir(dir.to_owned());
        if let Some(version) = self.0.version_of(name, &vm) {
            return Ok(version);
        }
        let image = self.0.ensure(name).await?;
        self.0.check_version(&vm, image)
    }

    fn refresh(&self, name: &str) -> Result<()> {
        self.0.refresh(name)
    }

    fn boot_of(&self, name: &str, dir: &Path) -> Option<BootImage> {
        let vm = VmDir(dir.to_owned());
        if let Some(version) = self.0.version_of(name, &vm) {
            return Some(version);
        }
        self.0.check_version(&vm, self.boot(name)?).ok()
    }

    fn boot(&self, name: &str) -> Option<BootImage> {
        self.0.result(name)?.ok()
    }

    fn create(&self, name: &str) -> Result<()> {
        self.0.create(name)
    }

    fn assign(&self, name: &str, recipe: Recipe) -> Result<()> {
        // A download begins when it is asked for.
        let is_local = !recipe.is_download();
        self.0.assign(name, recipe)?;
        if is_local { self.0.begin(name) } else { Ok(()) }
    }

    fn has_distribution(&self, name: &str) -> bool {
        self.0.distributions.find(name).is_some()
    }

    fn cancel(&self, name: &str) -> Result<()> {
        let image = self.0.entry(name)?;
        if !image.is_under_way() {
            return Err(BackendError::NothingUnderWay { name: name.to_owned() });
        }
        image.cancel.cancel();
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.0.remove(name)
    }

    async fn template(&self, name: &str) -> Option<Result<Template, String>> {
        let (inner, name) = (Arc::clone(&self.0), name.to_owned());
        // One that was copied is read whole.
        let check = tokio::task::spawn_blocking(move || inner.check_template(&name));
        check.await.unwrap_or_else(|panic| Some(Err(panic.to_string())))
    }

    fn layers(&self, image: &BootImage, dir: &Path) -> Result<Vec<Layer>> {
        let own = Layer { path: image.disk.clone(), format: image.format };
        let dir = VmDir(dir.to_owned());
        let id = file::if_there(fs::read_to_string(dir.template()));
        let id = match id.map_err(BackendError::at(dir.0.display()))? {
            Some(id) if dir.disk().exists() => id,
            Some(_) | None => return Ok(vec![own]),
        };
        let template = own.path.with_file_name(TEMPLATES).join(id.trim_end());
        Ok(vec![template::disk_in(&template), own])
    }

    fn bind(&self, dir: &Path, image: &BootImage, base: &[Layer]) -> Result<()> {
        let vm = VmDir(dir.to_owned());
        let bound = self.0.bind_version(&vm, image).and_then(|()| bind_template(&vm, base));
        bound.map_err(BackendError::at(dir.display()))
    }

    fn warm(&self, name: &str, machine: Arc<dyn Capture>) -> Result<()> {
        self.0.warm(name, machine)
    }

    fn cool(&self, name: &str) -> Result<()> {
        self.0.cool(name)
    }

    async fn fork_base(&self, image: BootImage, captured: &Captured) -> Result<ForkBase> {
        fork::base(&self.0, image, captured).await
    }

    async fn copy_fork_base(&self, base: &ForkBase, captured: &Captured) -> Result<()> {
        fork::copy(&self.0, base, captured).await
    }

    async fn fork_disk(&self, base: &ForkBase, dir: &Path) -> Result<()> {
        fork::disk(self, base, dir).await
    }

    fn forked(&self, base: ForkBase) {
        let (catalogue, layers) = (Arc::clone(&self.0), base.layers);
        spawn_thread("forked".to_owned(), move || fork::end(&catalogue, &layers)).ok();
    }

    fn sweep(&self) {
        self.0.sweep();
    }

    fn listen(&self) -> Listener {
        self.0.bell.listen()
    }
}

fn bind_template(vm: &VmDir, base: &[Layer]) -> io::Result<()> {
    let [template, _] = base else { return file::remove(&vm.template()) };
    let id = template.path.parent().and_then(Path::file_name).unwrap_or_default();
    file::replace(&vm.template(), format!("{}\n", id.to_string_lossy()).as_bytes())
}

/// Makes, defines and removes names, one at a time: of two callers with the same name, one wins.
/// The list is not locked while the disk is written: all readers would wait for the disk.
impl Catalogue {
    /// Lists what can be pulled, and says how what was pulled is made again. An image of the user's
    /// keeps its name.
    fn offer(&self) {
        let mut images = self.images.lock();
        for (name, source) in &self.offers {
            let offered = || ImageEntry::offered(Arc::clone(source));
            images.entry(name.clone()).or_insert_with(offered);
        }
        for image in images.values_mut().filter(|image| image.source.is_none()) {
            let recipe = match image.spec.parse() {
                Ok(Origin::Distribution { name, version }) => {
                    Recipe::Distribution { name, version }
                }
                Ok(Origin::Url { url, checksum }) => Recipe::Url { url, checksum },
                Ok(of @ (Origin::Registry(_) | Origin::Archive(_) | Origin::RootFs(_))) => {
                    Recipe::Container(of)
                }
                Ok(Origin::Tiny(_) | Origin::Blank | Origin::File(_) | Origin::Vm { .. })
                | Err(_) => {
                    continue;
                }
            };
            match self.source(recipe) {
                Ok(source) => image.source = Some(source),
                Err(error) => {
                    image.progress = one_line(&format!("it cannot be made again: {error}"));
                }
            }
        }
    }

    fn create(&self, name: &str) -> Result<()> {
        let _names = self.names_lock.lock();
        if self.images.lock().contains_key(name) {
            return Err(BackendError::ImageExists { name: name.to_owned() });
        }
        let dir = self.layout.image(name);
        // A directory that is not in the list is damaged.
        let made = fs::create_dir(&dir).and_then(|()| file::sync_dir(&self.layout.images()));
        made.map_err(BackendError::at(dir.display()))?;
        self.images.lock().insert(name.to_owned(), ImageEntry::default());
        self.bell.ring();
        Ok(())
    }

    fn assign(&self, name: &str, recipe: Recipe) -> Result<()> {
        // Dropped after the lock: it may hold a VM, which is released then.
        let source = self.source(recipe)?;
        let _names = self.names_lock.lock();
        if !self.assignable(name, source.spec())?.builtin {
            let (path, text) = (self.layout.image_source(name), format!("{}\n", source.spec()));
            // One that was only offered has none.
            let dir = file::private_dir(&self.layout.image(name));
            let kept = dir.and_then(|()| file::replace(&path, text.as_bytes()));
            kept.map_err(BackendError::at(path.display()))?;
        }
        // It may have been begun meanwhile.
        let mut image = self.assignable(name, source.spec())?;
        source.spec().clone_into(&mut image.spec);
        image.source = Some(source);
        image.set_phase(BuildPhase::Absent);
        drop(image);
        self.bell.ring();
        Ok(())
    }

    fn tiny(&self, arch: Arch) -> Result<&Arc<Tiny>> {
        let none = || BackendError::NoImage { name: format!("tiny-{arch}") };
        self.tinies.iter().find(|tiny| tiny.arch == arch).ok_or_else(none)
    }

    fn source(&self, recipe: Recipe) -> Result<Arc<dyn ImageSource>> {
        Ok(match recipe {
            Recipe::Tiny(arch) => Arc::clone(self.tiny(arch)?) as _,
            Recipe::Blank => Arc::new(Blank),
            Recipe::File(path) => Arc::new(DiskFile::new(path)?),
            Recipe::Distribution { name, version } => {
                let wanted = (&*name, version.as_deref());
                Arc::new(CloudDisk::new(&self.distributions, wanted, self.layout.downloads())?)
            }
            Recipe::Url { url, checksum } => {
                Arc::new(RemoteDisk::new(&url, &checksum, self.layout.downloads())?)
            }
            Recipe::Container(origin) => {
                let refused = || BackendError::BadSource {
                    origin: format!("{origin:?}"),
                    reason: "is no container".to_owned(),
                };
                let insecure = self.distributions.insecure_registries();
                let made = container(&origin, self.tiny(Arch::HOST)?, (&self.layout, insecure));
                Arc::new(made.ok_or_else(refused)??)
            }
            Recipe::Vm(publication) => Arc::new(VmDisk::new(publication)),
            Recipe::Live(publication) => Arc::new(LiveVm(publication)),
        })
    }

    /// One rename, and it is gone; then its files are erased.
    fn remove(&self, name: &str) -> Result<()> {
        let _names = self.names_lock.lock();
        if self.entry(name)?.is_under_way() {
            return Err(under_way(name));
        }
        let dir = self.layout.image(name);
        let removed = move_aside(&dir).map_err(BackendError::at(dir.display()))?;
        let mut images = self.images.lock();
        match images.get_mut(name) {
            // It is being made again already.
            Some(image) if image.is_under_way() => {}
            Some(image) if image.builtin => {
                image.older.clear();
                image.set_phase(BuildPhase::Absent);
            }
            Some(_) | None => drop(images.remove(name)),
        }
        if let Some(source) = self.offers.get(name) {
            let offered = || ImageEntry::offered(Arc::clone(source));
            images.entry(name.to_owned()).or_insert_with(offered);
        }
        drop(images);
        self.bell.ring();
        // What cannot be erased now is erased by the next daemon.
        if let Err(error) = removed.map_or(Ok(()), tempfile::TempDir::close) {
            tracing::warn!(name, %error, "image not erased");
        }
        Ok(())
    }
}

impl Catalogue {
    /// Locks the list, for one image of it.
    pub(super) fn entry(&self, name: &str) -> Result<LockedEntry<'_>> {
        let found = MutexGuard::try_map(self.images.lock(), |images| images.get_mut(name));
        found.map_err(|_| BackendError::NoImage { name: name.to_owned() })
    }

    /// Returns an image that may be given a source.
    fn assignable(&self, name: &str, source: &str) -> Result<LockedEntry<'_>> {
        let image = self.entry(name)?;
        let exists = match &image.phase {
            BuildPhase::UnderWay(_) => return Err(under_way(name)),
            BuildPhase::Absent => false,
            BuildPhase::Ready(_) => true,
            // One that is damaged may have VMs.
            BuildPhase::Failed(_) => {
                !image.builtin && manifest::is_in(&versions::current_dir(&self.layout, name))
            }
        };
        if exists {
            return Err(BackendError::ImageExists { name: name.to_owned() });
        }
        if image.builtin && image.spec() != source {
            let reason = format!("image {name} is always made from {}", image.spec());
            return Err(BackendError::BadSource { origin: source.to_owned(), reason });
        }
        Ok(image)
    }
}

/// Makes the source of a container.
fn container(
    origin: &Origin,
    tiny: &Arc<Tiny>,
    (layout, insecure): (&Layout, &[String]),
) -> Option<Result<Container>> {
    let (tiny, cache) = (Arc::clone(tiny), layout.cache());
    match origin {
        Origin::Registry(reference) => Some(Container::registry(reference, insecure, tiny, cache)),
        Origin::Archive(path) => Some(Container::archive(path.clone(), tiny, cache)),
        Origin::RootFs(path) => Some(Container::root_fs(path.clone(), tiny, cache)),
        Origin::Tiny(_)
        | Origin::Blank
        | Origin::File(_)
        | Origin::Distribution { .. }
        | Origin::Url { .. }
        | Origin::Vm { .. } => None,
    }
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
