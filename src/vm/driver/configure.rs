//! Settings: stored, and given to the running machine where it can be changed.

use std::sync::Arc;

use super::{Driver, off_thread};
use crate::store::file;
use crate::vm::VmError;
use crate::vm::definition::Definition;
use crate::vm::events::Event;
use crate::vm::live::InForce;
use crate::vm::spec::{Edit, SpecError, VmSettings, VmSpec, render_size};
use crate::vm::state::{Refusal, State};

impl Driver {
    pub(super) async fn configure(&mut self, edit: &Edit) -> Result<(), VmError> {
        if let State::Broken(reason) = self.state() {
            return Err(Refusal::Broken { verb: "config", reason }.into());
        }
        let (settings, old) = (self.vm.settings(), self.vm.spec());
        let image = self.vm.image_settings(&settings);
        let settings = settings.edited(edit, &image, &self.world.defaults.spec())?;
        let new = settings.resolve(&self.vm.image_settings(&settings));
        if new.image != old.image && self.vm.dir().disk().exists() {
            return Err(Refusal::HasDisk { image: old.image.clone() }.into());
        }
        if new.disk != old.disk {
            self.refuse_shrinking(&new)?;
        }
        self.change_machine(&old, &new).await?;
        if let Err(error) = self.store(settings).await {
            // What is not stored must not be in force either; the first failure is the one told.
            drop(self.change_machine(&new, &old).await);
            return Err(error);
        }
        self.vm.tell(&Event::Config(edit.key()));
        Ok(())
    }

    /// A disk that was enlarged and is not started yet may still be made smaller again.
    fn refuse_shrinking(&self, new: &VmSpec) -> Result<(), VmError> {
        let there = self.world.hypervisor.disk_size(&self.vm.dir().0)?;
        let running = self.in_force().map(|i| i.spec.disk);
        match there.max(running).filter(|size| new.disk < *size) {
            None => Ok(()),
            Some(size) => {
                let (wanted, size) = (render_size(new.disk), render_size(size));
                Err(SpecError::Shrinks { wanted, size }.into())
            }
        }
    }

    pub(super) fn in_force(&self) -> Option<InForce> {
        self.vm.view().facts?.in_force
    }

    /// In a transition nothing is changed: the settings then wait for the next start.
    async fn change_machine(&mut self, old: &VmSpec, new: &VmSpec) -> Result<(), VmError> {
        let steady = matches!(self.state(), State::Running | State::Ready | State::Paused);
        let (Some(running), Some(before), true) = (&self.running, self.in_force(), steady) else {
            return Ok(());
        };
        let machine = Arc::clone(&running.machine);
        let now = before.follow(&*machine, old, new).await?;
        if now == before {
            return Ok(());
        }
        if let Err(error) = machine.keep(&now).await {
            // It is in force all the same; only a later daemon would not know.
            self.note(&error.to_string());
        }
        self.publish(|view| {
            if let Some(facts) = &mut view.facts {
                facts.in_force = Some(now);
            }
        });
        Ok(())
    }

    async fn store(&mut self, settings: VmSettings) -> Result<(), VmError> {
        let definition = Definition::new(self.vm.uuid(), self.vm.created(), settings.clone());
        let path = self.vm.dir().definition();
        off_thread(move || file::replace_json(&path, &definition), "the VM's definition").await?;
        self.vm.set_settings(settings);
        Ok(())
    }
}
