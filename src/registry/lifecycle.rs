//! Operations on names: creating a VM, renaming and removing it, bringing it back, erasing it.
//!
//! Each takes the locks of its names first, runs to its end even if its caller is interrupted, and either
//! changes the disk and the list of VMs or neither.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::timeout;
use uuid::Uuid;

use super::scan::{read_vm, write_new};
use super::{Registry, RegistryError, Result, names, to_its_end};
use crate::store::file;
use crate::store::layout::VmDir;
use crate::vm::Vm;
use crate::vm::backend::Lifetime;
use crate::vm::definition::Definition;
use crate::vm::driver::{self, NewVm, off_thread};
use crate::vm::dropped::Remover;
use crate::vm::events::Event;
use crate::vm::spec::{VmSettings, is_vm_name};

impl Registry {
    /// Makes a VM: its definition, and nothing else.
    ///
    /// # Errors
    /// [`RegistryError::Exists`], [`RegistryError::BadName`], or what the disk answered; nothing
    /// is left behind then.
    pub async fn create(self: Arc<Self>, name: String) -> Result<Vm> {
        to_its_end(async move {
            let _order = self.name_locks.take(&[&name]).await?;
            self.check_free(&name)?;
            self.backends.limits.admit_growth()?;
            let (uuid, now) = (Uuid::new_v4(), SystemTime::now());
            let settings = VmSettings::new(self.backends.defaults.spec());
            let definition = Definition::new(uuid, now, settings);
            let dir = self.layout.vm(uuid);
            let (at, stored, text) = (dir.clone(), definition.clone(), format!("{name}\n"));
            off_thread(move || write_new(&at, &stored, &text), "the VM's definition").await?;
            let (id, definition, lifetime) = (self.fresh_id(), Ok(definition), Lifetime::Own);
            let new_vm = NewVm { id, uuid, dir, name: name.clone(), definition, lifetime };
            let vm = driver::spawn(new_vm, self.backends.clone()).await;
            self.insert(name, &vm);
            vm.emit(&Event::Created);
            Ok(vm)
        })
        .await
    }

    /// Checks that a VM can get a name, whose lock is held.
    pub(super) fn check_free(&self, name: &str) -> Result<()> {
        match self.get(name) {
            _ if !is_vm_name(name) => Err(RegistryError::BadName(name.to_owned())),
            Some(_) => Err(RegistryError::Exists(name.to_owned())),
            None => Ok(()),
        }
    }

    /// Removes a VM for a process: into the trash if it ever ran, for good if not.
    ///
    /// # Errors
    /// [`RegistryError::Absent`], the VM's own refusal, or what the disk answered; the VM is there
    /// then as it was.
    pub async fn remove(self: Arc<Self>, name: String, by: Remover) -> Result<()> {
        to_its_end(async move {
            let _order = self.name_locks.take(&[&name]).await?;
            let vm = self.get(&name).ok_or_else(|| RegistryError::Absent(name.clone()))?;
            let seconds = names::TIMEOUT.as_secs();
            let late = |_| RegistryError::NoAnswer { name: name.clone(), seconds };
            let removal = timeout(names::TIMEOUT, vm.retire(by)).await.map_err(late)??;
            let (dir, kept, registry) = (vm.dir().clone(), name.clone(), Arc::clone(&self));
            let put = move || registry.trash.put(&dir, &kept, SystemTime::now());
            off_thread(put, "cannot move the VM to the trash").await?;
            removal.done();
            self.forget(&name, &vm);
            vm.emit(&Event::Removed);
            self.free_addresses(&vm).await;
            Ok(())
        })
        .await
    }

    /// Erases a removed VM for good.
    ///
    /// # Errors
    /// [`RegistryError::Absent`], or what the disk answered.
    pub async fn erase(self: Arc<Self>, removed: String) -> Result<()> {
        let _order = self.name_locks.take(&[&removed]).await?;
        let absent = RegistryError::Absent(removed.clone());
        let registry = Arc::clone(&self);
        let erase = move || {
            let erased = registry.trash.erase(&removed)?;
            registry.backends.images.sweep();
            Ok(erased)
        };
        let erased = off_thread(erase, "the trash").await?;
        erased.then_some(()).ok_or(absent)
    }

    /// Brings a removed VM back under a name.
    ///
    /// # Errors
    /// [`RegistryError::Absent`], [`RegistryError::Exists`], [`RegistryError::BadName`], or what
    /// the disk answered; it stays in the trash then.
    pub async fn restore(self: Arc<Self>, removed: String, to: String) -> Result<()> {
        to_its_end(async move {
            let _order = self.name_locks.take(&[&to, &removed]).await?;
            self.check_free(&to)?;
            let item = self.trash.get(&removed).ok_or(RegistryError::Absent(removed))?;
            let (registry, text, id) = (Arc::clone(&self), to.clone(), self.fresh_id());
            let take = move || {
                file::replace(&item.dir.name(), format!("{text}\n").as_bytes())?;
                // A VM that was broken is broken again.
                let stored = file::read_json::<Definition>(&item.dir.definition());
                let expired = stored.as_ref().is_ok_and(|stored| stored.expires.is_some());
                let uuid = match stored {
                    Ok(stored) if expired => keep_for_good(&item.dir, stored)?,
                    Ok(stored) => stored.uuid,
                    Err(_) => Uuid::new_v4(),
                };
                let dir = registry.layout.vm(uuid);
                registry.trash.take(&item, &dir)?;
                Ok((read_vm(id, uuid, dir), expired))
            };
            let (found, expired) = off_thread(take, "the removed VM").await?;
            let vm = driver::spawn(found, self.backends.clone()).await;
            self.insert(to, &vm);
            vm.emit(&Event::Created);
            if expired {
                vm.emit(&Event::Expires(None));
            }
            Ok(())
        })
        .await
    }

    /// The VM is removed all the same if that fails: the next daemon tries again.
    pub(super) async fn free_addresses(&self, vm: &Vm) {
        if let Err(error) = self.backends.nets.forget(vm.uuid()).await {
            tracing::warn!(vm = %vm.name(), %error, "its addresses on nets stay taken");
        }
    }

    fn forget(&self, name: &str, vm: &Vm) {
        let mut vms = self.vms.write();
        vms.by_name.remove(name);
        vms.by_id.remove(&vm.id());
        vms.changed = SystemTime::now();
    }

    /// Gives a VM another name, in any state.
    ///
    /// # Errors
    /// [`RegistryError::Absent`], [`RegistryError::Exists`], [`RegistryError::BadName`], or what
    /// the disk answered.
    pub async fn rename(self: Arc<Self>, from: String, to: String) -> Result<()> {
        to_its_end(async move {
            let _order = self.name_locks.take(&[&from, &to]).await?;
            let vm = self.get(&from).ok_or_else(|| RegistryError::Absent(from.clone()))?;
            if from == to {
                return Ok(());
            }
            self.check_free(&to)?;
            let (path, text) = (vm.dir().name(), format!("{to}\n"));
            off_thread(move || file::replace(&path, text.as_bytes()), "the VM's name").await?;
            vm.renamed(to.clone());
            self.backends.events.add(vm.id(), &from, &Event::Renamed(to.clone()));
            let mut vms = self.vms.write();
            vms.by_name.remove(&from);
            vms.by_name.insert(to, vm);
            vms.changed = SystemTime::now();
            drop(vms);
            Ok(())
        })
        .await
    }
}

/// Stores that a VM has no time after which it is removed: it would be removed again at once.
fn keep_for_good(dir: &VmDir, stored: Definition) -> io::Result<Uuid> {
    let Definition { uuid, created, settings, .. } = stored;
    let kept = Definition::new(uuid, created, settings.without_expiry());
    file::replace_json(&dir.definition(), &kept)?;
    Ok(uuid)
}
