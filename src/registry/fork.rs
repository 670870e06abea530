//! `fork`: running copies of a VM that runs (`doc/adr/0033-forks.md`).
//!
//! The parent is captured once. Each fork is a VM of its own from then on: a directory that has the
//! disk before it gets its name, and a first start that loads the parent's memory. All forks are
//! defined, or none. Until a fork is loaded, [`Operation::Fork`] is open in its directory: its memory
//! ends with the daemon, so a later daemon removes what it finds then.
//!
//! Not here: how the parent is captured (`vm::driver::capture`), where disks come from (`vm::backend::Images`).

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use futures::future::{join, join_all};
use tempfile::TempDir;
use uuid::Uuid;

use super::scan::{new_dir, publish_new};
use super::{Registry, RegistryError, Result, to_its_end};
use crate::store::file;
use crate::store::layout::VmDir;
use crate::store::operation::{self, Operation};
use crate::vm::backend::{BackendError, ForkBase, Lifetime};
use crate::vm::definition::Definition;
use crate::vm::disks::DisksOfCopy;
use crate::vm::driver::{self, NewVm, off_thread};
use crate::vm::events::Event;
use crate::vm::spec::{ImageSettings, VmSettings};
use crate::vm::state::Command;
use crate::vm::template::{Captured, Purpose, Saved, Template};
use crate::vm::{Vm, VmError};

/// What a user asks of a VM by its `ctl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmCommand {
    /// Something that the VM itself does.
    One(Command),
    /// Make running copies of it, of these names.
    Fork(Vec<String>),
}

impl From<Command> for VmCommand {
    fn from(command: Command) -> Self {
        Self::One(command)
    }
}

/// What is called with the names of VMs that have been made without a request of the kernel.
#[derive(Default)]
pub(super) struct NamesHook(OnceLock<Box<Hook>>);

type Hook = dyn Fn(&[String]) + Send + Sync;

impl fmt::Debug for NamesHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NamesHook")
    }
}

/// What forks are made of.
struct Source {
    settings: VmSettings,
    carried: ImageSettings,
    base: ForkBase,
    template: Template,
    disks: DisksOfCopy,
}

impl Registry {
    /// Has `hook` called whenever VMs have been made that the kernel did not ask for.
    pub fn on_names_made(&self, hook: impl Fn(&[String]) + Send + Sync + 'static) {
        // There is one mount.
        drop(self.names_hook.0.set(Box::new(hook)));
    }

    /// Carries out verbs of a VM one after the other until one fails: how many went well, and the failure.
    pub async fn command_vm_all(
        self: Arc<Self>,
        vm: Vm,
        commands: Vec<VmCommand>,
    ) -> (usize, Option<RegistryError>) {
        for (done, command) in commands.iter().enumerate() {
            let carried_out = match command.clone() {
                VmCommand::One(command) => vm.perform(command).await.map_err(Into::into),
                VmCommand::Fork(names) => Arc::clone(&self).fork(vm.clone(), names).await,
            };
            if let Err(error) = carried_out {
                return (done, Some(error));
            }
        }
        (commands.len(), None)
    }

    /// Makes running copies of a VM that runs. Returns when they are there and start: a name that is not
    /// there yet could not be waited for.
    ///
    /// # Errors
    /// [`RegistryError::Exists`], [`RegistryError::BadName`], the parent's refusal, or why it could not be
    /// captured: no fork is made then. Why the first fork that did not start has not.
    pub async fn fork(self: Arc<Self>, parent: Vm, names: Vec<String>) -> Result<()> {
        to_its_end(async move {
            let taken: Vec<&str> = names.iter().map(String::as_str).collect();
            let order = self.name_locks.take(&taken).await?;
            self.check_all_free(&names)?;
            parent.admit_capture(Purpose::Fork).map_err(VmError::from)?;
            parent.check_room_for_forks(names.len())?;
            self.backends.limits.admit_growth()?;
            let vms = self.make_forks(&parent, &names).await?;
            // The kernel holds the root for a `mkdir` that waits for one of these names.
            drop(order);
            self.tell_of_names(names).await;
            start_all(&vms).await
        })
        .await
    }

    fn check_all_free(&self, names: &[String]) -> Result<()> {
        let mut seen = BTreeSet::new();
        for name in names {
            self.check_free(name)?;
            if !seen.insert(name) {
                return Err(RegistryError::Exists(name.clone()));
            }
        }
        Ok(())
    }

    /// Captures the parent and makes the forks: all, or none.
    async fn make_forks(&self, parent: &Vm, names: &[String]) -> Result<Vec<Vm>> {
        let begun = Instant::now();
        let work = self.work_dir().await?;
        let captured = parent.capture(Purpose::Fork, work.path().to_owned()).await?;
        tracing::debug!(elapsed = ?begun.elapsed(), "fork: captured");
        let pause = captured.pause;
        let source = self.source(parent, &captured).await?;
        let defined = self.define_on_copy(&source, captured, names).await;
        tracing::debug!(elapsed = ?begun.elapsed(), "fork: the disk is copied, all are defined");
        self.backends.images.forked(source.base);
        clear_away(work, source.template.saved.clone());
        let vms = self.spawn_all(defined?, &source.template);
        parent.emit(&Event::Forked { names: names.to_vec(), pause });
        Ok(vms)
    }

    /// Defines the forks while what their disks lie on is copied. The parent's disk is let go last: what failed is
    /// erased by then, and a full disk has room again.
    async fn define_on_copy(
        &self,
        source: &Source,
        captured: Captured,
        names: &[String],
    ) -> Result<Vec<NewVm>> {
        let copy = self.backends.images.copy_fork_base(&source.base, &captured);
        let defining = join_all(names.iter().map(|name| self.define(source, name)));
        let (copied, defined) = join(copy, defining).await;
        match copied {
            Ok(()) => all_or_none(defined).await,
            Err(error) => {
                erase_all(defined).await;
                Err(error.into())
            }
        }
    }

    /// Makes a directory that a later daemon removes.
    async fn work_dir(&self) -> Result<TempDir> {
        let vms = self.layout.vms();
        let make = move || tempfile::Builder::new().prefix(".fork.").tempdir_in(vms);
        Ok(off_thread(make, "a directory to fork in").await?)
    }

    async fn source(&self, parent: &Vm, captured: &Captured) -> Result<Source> {
        let (images, name) = (&self.backends.images, parent.spec().image.clone());
        let image = images.boot_of(&name, &parent.dir().0);
        let image = image.ok_or(BackendError::NoImage { name })?;
        let base = images.fork_base(image, captured).await?;
        let numbers: Vec<u32> = base.data.iter().map(|(number, _)| *number).collect();
        let disks = parent.disks().of_copy(&numbers);
        let (shape, saved) = (captured.shape.clone(), captured.saved.clone());
        let template = Template { id: parent.name(), saved, base: base.layers.clone(), shape };
        let settings = VmSettings::of_fork(&parent.settings(), &self.backends.defaults.spec());
        Ok(Source { settings, carried: captured.settings.clone(), base, template, disks })
    }

    /// Makes a fork's directory: whole, or not at all.
    async fn define(&self, source: &Source, name: &str) -> Result<NewVm> {
        let (uuid, now) = (Uuid::new_v4(), SystemTime::now());
        let dir = self.layout.vm(uuid);
        let at = dir.clone();
        let hidden = off_thread(move || new_dir(&at), "the fork's directory").await?;
        self.backends.images.fork_disk(&source.base, hidden.path()).await?;
        let definition = Definition::new(uuid, now, source.settings.clone());
        let (stored, carried) = (definition.clone(), source.carried.clone());
        let (at, text, disks) = (dir.clone(), format!("{name}\n"), source.disks.clone());
        let write = move || {
            let new = VmDir(hidden.path().to_owned());
            file::replace_json(&new.image_settings(), &carried)?;
            if !disks.is_empty() {
                file::replace_json(&new.disks_file(), &disks)?;
            }
            operation::write_first(&new, Operation::Fork)?;
            publish_new(hidden, &at, &stored, &text)
        };
        off_thread(write, "the fork's definition").await?;
        let (id, name, lifetime) = (self.fresh_id(), name.to_owned(), Lifetime::Own);
        Ok(NewVm { id, uuid, dir, name, definition: Ok(definition), lifetime })
    }

    fn spawn_all(&self, defined: Vec<NewVm>, template: &Template) -> Vec<Vm> {
        let mut vms = Vec::new();
        for new_vm in defined {
            let name = new_vm.name.clone();
            let vm = driver::spawn_fork(new_vm, template.clone(), &self.backends);
            self.insert(name, &vm);
            vm.emit(&Event::Created);
            vms.push(vm);
        }
        vms
    }

    /// The kernel remembers which names are in the root, and which are not.
    async fn tell_of_names(&self, names: Vec<String>) {
        let hook = Arc::clone(&self.names_hook);
        let tell = move || {
            if let Some(hook) = hook.0.get() {
                hook(&names);
            }
            Ok(())
        };
        if let Err(error) = off_thread(tell, "the kernel's list of VMs").await {
            tracing::warn!(%error, "new VMs may not be listed yet");
        }
    }

    /// Removes a fork that an earlier daemon has not loaded; says whether it was one.
    pub(super) async fn cleared_half_fork(&self, vm: &Vm) -> bool {
        let is_half = operation::is_open(vm.dir(), &Operation::Fork).unwrap_or(false);
        if !is_half || !vm.state().is_off() {
            return false;
        }
        let text =
            format!("{}: the daemon ended before this fork was loaded; it is removed", vm.name());
        let interrupted = std::io::Error::from_raw_os_error(libc::EINTR);
        self.backends.failures.note(&vm.dir().0, &interrupted, text);
        let removed = self.discard(vm).await;
        if let Err(error) = &removed {
            tracing::warn!(vm = %vm.name(), %error, "half a fork stays");
        }
        removed.is_ok()
    }

    async fn discard(&self, vm: &Vm) -> Result<()> {
        let removal = vm.retire(None).await?;
        let dir = vm.dir().0.clone();
        off_thread(move || erase(&dir), "a fork that was not loaded").await?;
        removal.done();
        self.free_addresses(vm).await;
        Ok(())
    }
}

/// Removes what a capture was made in when nothing of it is in use any more.
fn clear_away(work: TempDir, saved: Saved) {
    tokio::spawn(async move {
        // Forks tell why it failed.
        saved.is_final().await.ok();
        tokio::task::spawn_blocking(|| drop(work)).await.ok();
    });
}

async fn all_or_none(defined: Vec<Result<NewVm>>) -> Result<Vec<NewVm>> {
    if defined.iter().all(Result::is_ok) {
        return defined.into_iter().collect();
    }
    let (made, failed): (Vec<_>, Vec<_>) = defined.into_iter().partition(Result::is_ok);
    erase_all(made).await;
    failed.into_iter().collect()
}

async fn erase_all(defined: Vec<Result<NewVm>>) {
    for new_vm in defined.into_iter().flatten() {
        let dir = new_vm.dir.0;
        let removed = off_thread(move || erase(&dir), "a fork that is not needed").await;
        if let Err(error) = removed {
            // Its operation is open: a later daemon removes it.
            tracing::warn!(vm = %new_vm.name, %error, "half a fork stays");
        }
    }
}

fn erase(dir: &Path) -> std::io::Result<()> {
    fs::remove_dir_all(dir)?;
    file::sync_dir(dir.parent().unwrap_or(dir))
}

/// Starts forks; each failure is in that fork's `error`.
async fn start_all(vms: &[Vm]) -> Result<()> {
    let start = Command::Start { paused: false };
    let started = join_all(vms.iter().map(|vm| vm.perform(start.clone()))).await;
    let mut first = Ok(());
    for (vm, started) in vms.iter().zip(started) {
        let Err(error) = started else { continue };
        vm.note_outcome(Err::<(), _>(&error));
        first = first.and(Err(error.into()));
    }
    first
}
