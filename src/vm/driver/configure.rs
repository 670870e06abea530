//! Settings: stored, and given to the running machine where it can be changed. A change is a task of
//! its own: QEMU may take 5 s for each of its steps. What must not run beside it waits in `admission`.

use std::sync::Arc;
use std::time::SystemTime;

use super::task::{Configured, Report, Reporter};
use super::{Answer, Driver, off_thread};
use crate::store::file;
use crate::vm::backend::Machine;
use crate::vm::definition::Definition;
use crate::vm::events::Event;
use crate::vm::idle;
use crate::vm::live::{self, InForce};
use crate::vm::spec::keys::Wanted;
use crate::vm::spec::{Edit, SpecError, VmSettings, VmSpec, render_size};
use crate::vm::state::{Asked, Refusal, State};
use crate::vm::{Vm, VmError};

impl Driver {
    /// Begins a change; `admission` lets one begin at a time.
    pub(super) fn configure(
        &mut self,
        edit: Edit,
        machine: Option<Arc<dyn Machine>>,
        in_force: Option<InForce>,
        answer: Answer,
    ) {
        self.queue.is_changing = true;
        let vm = self.vm.clone();
        self.detach(|to| async move {
            let mut change = Change { vm, machine, in_force, to };
            let done = change.configure(&edit).await;
            let Change { machine, in_force, .. } = change;
            Report::Configured(Box::new(Configured { machine, in_force, done, answer }))
        });
    }

    /// Returns what the machine has of its settings.
    pub(super) fn in_force(&self) -> Option<&InForce> {
        self.phase.machine()?.facts.in_force.as_ref()
    }
}

struct Change {
    vm: Vm,
    /// The machine, if it is to be changed too.
    machine: Option<Arc<dyn Machine>>,
    /// What the machine has.
    in_force: Option<InForce>,
    to: Reporter,
}

impl Change {
    async fn configure(&mut self, edit: &Edit) -> Result<(), VmError> {
        let (settings, old) = (self.vm.settings(), self.vm.spec());
        let image = self.vm.image_settings(&settings);
        let settings = settings.edited(edit, &image, &self.vm.0.backends.defaults.spec())?;
        let new = settings.resolve(&self.vm.image_settings(&settings));
        if new.image != old.image && self.vm.dir().disk().exists() {
            return Err(Refusal::HasDisk(old.image.clone()).into());
        }
        // Its disk is about to be made of the present one.
        if new.image != old.image && self.vm.state() == State::Starting {
            let state = State::Starting.to_string();
            return Err(Refusal::Busy(Asked { verb: "config", state }).into());
        }
        if new.disk != old.disk {
            self.refuse_shrinking(&new)?;
        }
        self.change_machine(&old, &new).await?;
        let placed = match new.nets == old.nets {
            true => Ok(()),
            false => self.vm.0.backends.nets.place(&self.vm, &new.nets).await,
        };
        let stored = match placed {
            Ok(()) => self.store(settings, edit).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            drop(self.vm.0.backends.nets.place(&self.vm, &old.nets).await);
            // What is not stored must not be in force either; the first failure is the one reported.
            drop(self.change_machine(&new, &old).await);
            return Err(error);
        }
        if edit.key() == "idle" {
            idle::begin(&self.vm);
        }
        self.vm.emit(&Event::Config(edit.key()));
        Ok(())
    }

    /// A disk that was enlarged and is not started yet may still be made smaller again.
    fn refuse_shrinking(&self, new: &VmSpec) -> Result<(), VmError> {
        let there = self.vm.0.backends.hypervisor.disk_size(&self.vm.dir().0)?;
        let running = self.in_force.as_ref().map(|i| i.spec.disk);
        match there.max(running).filter(|size| new.disk < *size) {
            None => Ok(()),
            Some(size) => {
                let (wanted, size) = (render_size(new.disk), render_size(size));
                Err(SpecError::Shrinks { wanted, size }.into())
            }
        }
    }

    async fn change_machine(&mut self, old: &VmSpec, new: &VmSpec) -> Result<(), VmError> {
        let (Some(machine), Some(before)) = (&self.machine, &self.in_force) else {
            return Ok(());
        };
        // A guest that is paused or boots would not take new processors into use.
        let session = self.vm.0.exec.session().filter(|_| self.vm.state() == State::Ready);
        let cpus = if session.is_some() { new.cpus } else { old.cpus };
        let new = VmSpec { cpus, ..new.clone() };
        let now = before.follow(&**machine, old, &new).await?;
        if now == *before {
            return Ok(());
        }
        if let Err(error) = machine.keep(&now).await {
            // It is in force all the same; only a later daemon would not know.
            self.to.report(Report::Note(error.to_string())).await;
        }
        let (cpus, before) = (now.spec.cpus, before.spec.cpus);
        self.in_force = Some(now);
        if let Some(session) = session.filter(|_| cpus > before) {
            live::bring_online(&*session, cpus).await;
        }
        Ok(())
    }

    async fn store(&mut self, settings: VmSettings, edit: &Edit) -> Result<(), VmError> {
        let expires = self.expiry(&settings, edit);
        let definition = Definition::new(self.vm.uuid(), self.vm.created(), settings.clone());
        let definition = definition.expiring(expires);
        let path = self.vm.dir().definition();
        off_thread(move || file::replace_json(&path, &definition), "the VM's definition").await?;
        self.vm.set_settings(settings, expires);
        Ok(())
    }

    /// Each write of `expire` begins its time anew, also one that does not change it.
    fn expiry(&self, settings: &VmSettings, edit: &Edit) -> Option<SystemTime> {
        match edit.key() == "expire" && edit.wanted() != Wanted::Nothing {
            true => settings.expiry_from(SystemTime::now()),
            false => self.vm.expires(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::tests::{START, Scratch, set, until, vm_in};
    use crate::vm::backend::{BackendError, SnapshotOp};
    use crate::vm::fake::{Script, backends};
    use crate::vm::state::{Command, Refusal, State};
    use crate::vm::{Vm, VmError};

    /// A VM that is ready, whose machine takes a minute for each change.
    async fn slow() -> (Scratch, Arc<Script>, Vm) {
        let dir = Scratch(tempfile::tempdir().unwrap());
        let script = Arc::<Script>::default();
        let vm = vm_in(&backends(&script), dir.0.path(), uuid::Uuid::new_v4()).await;
        vm.perform(START).await.unwrap();
        until(&vm, &State::Ready).await;
        *script.slow_change.lock() = Duration::from_secs(60);
        (dir, script, vm)
    }

    fn set_later(
        vm: &Vm,
        key: &'static str,
        text: &'static str,
    ) -> tokio::task::JoinHandle<Result<(), VmError>> {
        let vm = vm.clone();
        tokio::spawn(async move { set(&vm, key, text).await })
    }

    #[tokio::test(start_paused = true)]
    async fn kill_and_rmdir_are_heard_while_a_setting_waits_for_qemu() {
        let (_dir, _script, vm) = slow().await;
        let (begun, change) = (Instant::now(), set_later(&vm, "memory", "128M"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let refused = vm.perform(Command::Remove).await;
        assert!(matches!(refused, Err(VmError::Refused(Refusal::InUse { .. }))), "{refused:?}");
        vm.perform(Command::Kill).await.unwrap();
        until(&vm, &State::Stopped).await;
        assert_eq!(begun.elapsed().as_secs(), 1);
        change.await.unwrap().unwrap();
        assert!(vm.view().facts.is_none(), "the next machine is none of its business");
    }

    #[tokio::test(start_paused = true)]
    async fn settings_change_one_after_the_other_and_what_needs_them_waits() {
        let (_dir, script, vm) = slow().await;
        let one = set_later(&vm, "memory", "128M");
        tokio::task::yield_now().await;
        let two = set_later(&vm, "memory", "200M");
        tokio::task::yield_now().await;
        let began = Instant::now();
        vm.perform(SnapshotOp::Take("a".into()).into()).await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 120);
        one.await.unwrap().unwrap();
        two.await.unwrap().unwrap();
        let changes = ["memory 134217728", "memory 209715200"];
        assert_eq!(*script.changes.lock(), changes);
        assert_eq!(vm.spec().memory, 200 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn not_more_wait_than_may() {
        let (_dir, _script, vm) = slow().await;
        let first = set_later(&vm, "memory", "128M");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let more: Vec<_> = (0..65).map(|_| set_later(&vm, "protect", "0")).collect();
        let (mut taken, mut refused) = (0, 0);
        for change in more {
            match change.await.unwrap() {
                Ok(()) => taken += 1,
                Err(VmError::Refused(Refusal::TooMany { .. })) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        first.await.unwrap().unwrap();
        assert_eq!((taken, refused), (64, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_qemu_that_hangs_is_told_with_the_first() {
        let (_dir, script, vm) = slow().await;
        let hangs = BackendError::QmpTimeout { command: "balloon".into(), seconds: 5 };
        *script.change_error.lock() = Some(hangs);
        let first = set_later(&vm, "memory", "128M");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let second = set_later(&vm, "memory", "200M");
        assert!(first.await.unwrap().is_err());
        let error = second.await.unwrap().unwrap_err().to_string();
        assert!(error.ends_with("`echo kill > ctl` ends it"), "{error}");
        assert_eq!(vm.spec().memory, 256 << 20);
    }
}
