//! Images as far as VMs are concerned: which VMs use one, and VMs that are made into one.
//!
//! Not here: how an image is made, and what is there of it (`vm::backend::Images`).

use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::aliases::Aliases;
use super::{Registry, RegistryError, Result, to_its_end};
use crate::vm::backend::{BackendError, Images, LivePublication, Publication, Recipe};
use crate::vm::driver::off_thread;
use crate::vm::origin::Origin;
use crate::vm::spec::ImageSettings;
use crate::vm::state::Refusal;
use crate::vm::template::{Capture, Captured, ProgressFn, Purpose};
use crate::vm::{Vm, VmError};

/// What is asked of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageCommand {
    /// Make it.
    Pull,
    /// Capture a machine that has booted from it, as the template of new VMs.
    Warm,
    /// Remove that template.
    Cold,
    /// Make it again, beside the present one.
    Refresh,
    /// End the work that is under way.
    Cancel,
}

impl Registry {
    /// Returns the name of the image that an alias leads to at this moment; any other name as it is.
    pub fn resolve_alias(&self, name: &str) -> String {
        self.aliases.get(name).map_or_else(|| name.to_owned(), |alias| alias.image)
    }

    /// Lists the VMs whose disk is, or will be, made from an image; those in the trash too, which
    /// could not be restored without it.
    pub fn users_of(&self, image: &str) -> Vec<String> {
        let listed = self.list().into_iter().filter(|(_, vm)| vm.spec().image == image);
        let removed = self.trash().list().into_iter();
        let removed = removed.filter(|removed| removed.image.as_deref() == Some(image));
        let removed = removed.map(|removed| format!(".trash/{}", removed.name));
        listed.map(|(name, _)| name).chain(removed).collect()
    }

    /// Makes an image without a source.
    ///
    /// # Errors
    /// `ImageExists`, or what the disk answered.
    pub async fn create_image(self: Arc<Self>, name: String) -> Result<()> {
        self.backends.limits.admit_growth()?;
        self.with_images(move |images| images.create(&name)).await
    }

    /// Removes an image.
    ///
    /// # Errors
    /// `ImageBusy` while a VM uses it or it is being made, `NoImage`, or what the disk answered.
    pub async fn remove_image(self: Arc<Self>, name: String) -> Result<()> {
        self.admit_image_removal(&name)?;
        let image = name.clone();
        Arc::clone(&self).with_images(move |images| images.remove(&image)).await?;
        self.change_aliases(move |aliases| aliases.forget(&name)).await
    }

    /// Gives an image an alias and returns its number.
    ///
    /// # Errors
    /// `NoImage`, `ImageExists` where the alias is a name already, or what the disk answered.
    pub async fn link_image(self: Arc<Self>, alias: String, name: String) -> Result<u64> {
        let images = &self.backends().images;
        if images.info(&alias).is_some() || self.aliases.get(&alias).is_some() {
            return Err(BackendError::ImageExists { name: alias }.into());
        }
        if images.info(&name).is_none() {
            return Err(BackendError::NoImage { name }.into());
        }
        self.change_aliases(move |aliases| aliases.add(&alias, &name)).await
    }

    /// Renames an alias, and replaces one of the new name.
    ///
    /// # Errors
    /// `ImageExists` where the new name is an image's own, or what the disk answered.
    pub async fn rename_alias(self: Arc<Self>, from: String, to: String) -> Result<()> {
        if self.backends().images.info(&to).is_some() {
            return Err(BackendError::ImageExists { name: to }.into());
        }
        self.change_aliases(move |aliases| aliases.rename(&from, &to)).await
    }

    /// Removes an alias.
    pub async fn unlink_image(self: Arc<Self>, alias: String) -> Result<()> {
        self.change_aliases(move |aliases| aliases.remove(&alias)).await
    }

    async fn change_aliases<T: Send + 'static>(
        self: Arc<Self>,
        change: impl FnOnce(&Aliases) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let work = move || change(&self.aliases);
        to_its_end(async move { Ok(off_thread(work, "the aliases").await?) }).await
    }

    /// Says whether the VMs allow an image to be removed.
    ///
    /// # Errors
    /// `ImageBusy` naming those that use it.
    pub fn admit_image_removal(&self, name: &str) -> Result<()> {
        let users = self.users_of(name);
        if users.is_empty() {
            return Ok(());
        }
        let reason = format!("is used by {}; remove those first", users.join(", "));
        Err(BackendError::ImageBusy { name: name.to_owned(), reason }.into())
    }

    /// Says what an image is made from and begins to make it.
    ///
    /// # Errors
    /// [`RegistryError::Origin`] for what is not understood; why there is no such source, or it
    /// cannot be used now.
    pub async fn set_image_source(self: Arc<Self>, image: String, text: String) -> Result<()> {
        let text = text.trim().to_owned();
        // As for settings: what only truncates changes nothing.
        if text.is_empty() {
            return Ok(());
        }
        let recipe = match text.parse()? {
            Origin::Tiny(arch) => Recipe::Tiny(arch),
            Origin::Blank => Recipe::Blank,
            Origin::File(path) => Recipe::File(path),
            container @ (Origin::Registry(_) | Origin::Archive(_) | Origin::RootFs(_)) => {
                Recipe::Container(container)
            }
            Origin::Distribution { name, version } => Recipe::Distribution { name, version },
            Origin::Url { url, checksum } => Recipe::Url { url, checksum },
            Origin::Vm { vm, tag: None } if self.is_distribution(&vm) => {
                Recipe::Distribution { name: vm, version: None }
            }
            Origin::Vm { vm, tag } => self.recipe_of_vm((&image, text), &vm, tag).await?,
        };
        self.with_images(move |images| images.assign(&image, recipe)).await
    }

    /// Carries out a verb of an image's `ctl`.
    ///
    /// # Errors
    /// As [`Self::set_image_source`]; `NoSource` if there is none.
    pub async fn command_image(self: Arc<Self>, image: String, verb: ImageCommand) -> Result<()> {
        match verb {
            ImageCommand::Warm | ImageCommand::Refresh | ImageCommand::Pull => {
                self.backends.limits.admit_growth()?;
            }
            ImageCommand::Cold | ImageCommand::Cancel => {}
        }
        match verb {
            ImageCommand::Warm => self.warm_image(image).await,
            ImageCommand::Cold => self.with_images(move |images| images.cool(&image)).await,
            ImageCommand::Cancel => self.with_images(move |images| images.cancel(&image)).await,
            ImageCommand::Refresh => self.with_images(move |images| images.refresh(&image)).await,
            ImageCommand::Pull => self.pull_image(image).await,
        }
    }

    async fn pull_image(self: Arc<Self>, image: String) -> Result<()> {
        let images = &self.backends().images;
        let info = images.info(&image);
        let info = info.ok_or_else(|| BackendError::NoImage { name: image.clone() })?;
        let is_vm = matches!(info.source.parse(), Ok(Origin::Vm { .. }));
        if is_vm && images.boot(&image).is_none() {
            return self.set_image_source(image, info.source).await;
        }
        self.with_images(move |images| images.begin(&image)).await
    }

    /// Carries out verbs one after the other until one fails: how many went well, and the failure.
    pub async fn command_image_all(
        self: Arc<Self>,
        image: String,
        commands: Vec<ImageCommand>,
    ) -> (usize, Option<RegistryError>) {
        for (done, command) in commands.iter().enumerate() {
            let registry = Arc::clone(&self);
            if let Err(error) = registry.command_image(image.clone(), *command).await {
                return (done, Some(error));
            }
        }
        (commands.len(), None)
    }

    /// Says whether a word is a distribution's name. A VM of that name comes first.
    fn is_distribution(&self, word: &str) -> bool {
        self.get(word).is_none() && self.backends().images.has_distribution(word)
    }

    /// Makes a recipe of a VM: one that runs is captured with its memory, one that is off is pinned while its
    /// disk is copied.
    async fn recipe_of_vm(
        &self,
        (image, origin): (&str, String),
        name: &str,
        snapshot: Option<String>,
    ) -> Result<Recipe> {
        let vm = self.get(name).ok_or_else(|| RegistryError::Absent(name.to_owned()))?;
        let base = || {
            let image = vm.spec().image.clone();
            let base = self.backends().images.boot_of(&image, &vm.dir().0);
            base.ok_or(BackendError::NoImage { name: image })
        };
        if snapshot.is_none() && !vm.state().is_off() {
            vm.admit_capture(Purpose::Template).map_err(VmError::from)?;
            let base = base()?;
            let machine = Arc::new(LiveVm(vm.clone()));
            return Ok(Recipe::Live(Box::new(LivePublication { origin, machine, base })));
        }
        let hold = Some(vm.pin(image.to_owned()).await?);
        let is_there = |tag: &String| vm.snapshots().iter().any(|s| s.tag == *tag);
        if let Some(tag) = snapshot.clone().filter(|tag| !is_there(tag)) {
            return Err(VmError::from(Refusal::NoSnapshot(tag)).into());
        }
        let base = base()?;
        let layers = self.backends().images.layers(&base, &vm.dir().0)?;
        let (disk, settings) = (vm.dir().disk(), ImageSettings::of_disk(&vm.spec()));
        let publication = Publication { origin, disk, snapshot, base, layers, settings, hold };
        Ok(Recipe::Vm(Box::new(publication)))
    }

    /// Does what looks at the disk off the runtime's own threads, to its end.
    pub(super) async fn with_images(
        self: Arc<Self>,
        work: impl FnOnce(&dyn Images) -> Result<(), BackendError> + Send + 'static,
    ) -> Result<()> {
        to_its_end(async move {
            let images = Arc::clone(&self.backends().images);
            let done = off_thread(move || Ok(work(&*images)), "the images").await?;
            Ok(done?)
        })
        .await
    }
}

/// A user's VM that is captured while it runs.
#[derive(Debug)]
struct LiveVm(Vm);

#[async_trait]
impl Capture for LiveVm {
    async fn capture(
        &self,
        to: &Path,
        progress: &ProgressFn<'_>,
    ) -> Result<Captured, BackendError> {
        progress("capturing");
        self.0.capture(Purpose::Template, to.to_owned()).await.map_err(as_backend_error)
    }
}

/// Images do not know a VM's refusals: only the sentence is kept.
pub(super) fn as_backend_error(error: VmError) -> BackendError {
    match error {
        VmError::Backend(error) => error,
        other @ (VmError::Refused(_)
        | VmError::Spec(_)
        | VmError::Removed
        | VmError::TooLong { .. }
        | VmError::Nul
        | VmError::Job(_)
        | VmError::Share(_)
        | VmError::Net(_)
        | VmError::Disk(_)
        | VmError::Lost(_)) => BackendError::PersonalizationFailed { reason: other.to_string() },
    }
}
