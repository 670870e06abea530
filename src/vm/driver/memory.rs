//! The memory that the host promises the VM.

use super::Driver;
use crate::vm::backend::{BackendError, ImageInfo, LaunchPlan};
use crate::vm::memory::{Check, Need, Ram, Reservation};
use crate::vm::spec::VmSpec;
use crate::vm::template::{Memory, WarmStatus};

impl Driver {
    /// Has the host promise what the next start may come to take.
    pub(super) fn reserve(
        &self,
        spec: &VmSpec,
        image: &ImageInfo,
    ) -> Result<Reservation, BackendError> {
        // As far as is known at once.
        let is_warm = matches!(image.warm, WarmStatus::Warm(_));
        let is_loaded = is_warm && !self.vm.dir().disk().exists();
        let ram = if is_loaded { Ram::CopyOnWrite } else { Ram::Own };
        self.vm.0.backends.memory.reserve(&self.vm, self.need(spec, ram), check(spec))
    }

    /// Has it promise another amount than before: by now it is known how the machine starts, and
    /// settings may have changed.
    pub(super) fn amend(&self, plan: &LaunchPlan) -> Result<(), BackendError> {
        let ram = match plan.memory {
            Memory::Clone(_) => Ram::CopyOnWrite,
            Memory::Own | Memory::CaptureTarget { .. } => Ram::Own,
        };
        let amended =
            |held: &Reservation| held.amend(self.need(&plan.spec, ram), check(&plan.spec));
        self.phase.memory().map_or(Ok(()), amended)
    }

    /// Corrects what a machine that runs was promised.
    pub(super) fn reserve_for_running(&mut self) {
        let Some(running) = self.phase.machine() else { return };
        let spec = match &running.facts.in_force {
            // The balloon may give back what it was started with.
            Some(now) => VmSpec { memory: now.memory, ..now.spec.clone() },
            None => VmSpec::clone(&self.vm.spec()),
        };
        let ram = if running.is_clone() { Ram::CopyOnWrite } else { Ram::Own };
        let need = self.need(&spec, ram);
        let entered = match &running.memory {
            Some(held) => held.amend(need, Check::Waived).map(|()| None),
            None => self.vm.0.backends.memory.reserve(&self.vm, need, Check::Waived).map(Some),
        };
        debug_assert!(entered.is_ok(), "nothing was checked");
        if let (Ok(Some(new)), Some(running)) = (entered, self.phase.machine_mut()) {
            running.memory = Some(new);
        }
    }

    fn need(&self, spec: &VmSpec, ram: Ram) -> Need {
        Need::of(spec.memory, self.vm.0.backends.hypervisor.memory_overhead(spec), ram)
    }
}

fn check(spec: &VmSpec) -> Check {
    if spec.overcommit { Check::Overcommitted } else { Check::Strict }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::future::join_all;
    use uuid::Uuid;

    use super::super::tests::{START, Scratch, set, until, vm_in};
    use crate::vm::backend::BackendError;
    use crate::vm::fake::{Script, backends};
    use crate::vm::memory::Supply;
    use crate::vm::state::{Command, State};
    use crate::vm::{Backends, Vm, VmError};

    struct Host {
        dir: Scratch,
        script: Arc<Script>,
        backends: Backends,
    }

    impl Host {
        fn with(mebibytes: u64) -> Self {
            let script = Arc::<Script>::default();
            *script.memory.lock() = Some(mebibytes << 20);
            let (dir, backends) = (Scratch(tempfile::tempdir().unwrap()), backends(&script));
            Self { dir, script, backends }
        }

        async fn vm(&self, name: &str) -> Vm {
            let dir = self.dir.0.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            let vm = vm_in(&self.backends, &dir, Uuid::new_v4()).await;
            vm.renamed(name.to_owned());
            vm
        }

        /// What is promised and what is free, in MiB.
        fn supply(&self) -> (u64, u64) {
            let supply: Supply = self.backends.memory.supply();
            (supply.promised >> 20, supply.free() >> 20)
        }
    }

    fn is_short(error: &VmError) -> bool {
        matches!(error, VmError::Backend(BackendError::NoMemory { .. }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_the_host_cannot_hold_is_refused_and_nothing_changes() {
        let host = Host::with(255);
        let vm = host.vm("vm1").await;
        let error = vm.perform(START).await.unwrap_err();
        assert!(is_short(&error) && error.to_string().contains("256 MiB are needed"), "{error}");
        assert_eq!((vm.state(), host.supply()), (State::Stopped, (0, 255)));
        set(&vm, "overcommit", "1").await.unwrap();
        vm.perform(START).await.unwrap();
        until(&vm, &State::Ready).await;
        assert_eq!(host.supply(), (256, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_promised_and_not_taken_yet_is_nobody_elses() {
        let host = Host::with(400);
        let (one, two) = (host.vm("one").await, host.vm("two").await);
        one.perform(START).await.unwrap();
        until(&one, &State::Ready).await;
        assert_eq!(host.supply(), (256, 144));
        let error = two.perform(START).await.unwrap_err();
        assert!(is_short(&error) && error.to_string().contains("stop one, "), "{error}");
        set(&two, "memory", "128M").await.unwrap();
        two.perform(START).await.unwrap();
        // What they have taken is no longer among what is available.
        *host.script.taken_memory.lock() = 28 << 20;
        *host.script.memory.lock() = Some((400 - 2 * 28) << 20);
        until(&two, &State::Ready).await;
        assert_eq!(host.supply(), (228 + 100, 16));
        for vm in [&one, &two] {
            vm.perform(Command::Kill).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_promise_ends_with_the_machine_and_with_a_launch_that_fails() {
        let host = Host::with(300);
        let vm = host.vm("vm1").await;
        let died = BackendError::QemuDied { status: "exit 1".into(), stderr: "no".into() };
        *host.script.launch_error.lock() = Some(died);
        vm.perform(START).await.unwrap_err();
        assert_eq!(host.supply(), (0, 300));
        vm.perform(START).await.unwrap();
        until(&vm, &State::Ready).await;
        assert_eq!(host.supply(), (256, 44));
        // A later daemon finds the machine, and promises it the same.
        let later = Host { backends: backends(&host.script), ..host };
        let vm = vm_in(&later.backends, &vm.dir().0, vm.uuid()).await;
        assert_eq!(later.supply(), (256, 44));
        later.script.report_of(vm.uuid(), crate::vm::fake::clean_exit()).await;
        until(&vm, &State::Stopped).await;
        assert_eq!(later.supply(), (0, 300));
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_thousand_that_start_at_once_as_many_do_as_there_is_room_for() {
        let host = Host::with(256 * 70 + 100);
        let mut vms = Vec::new();
        for n in 0..1000 {
            vms.push(host.vm(&format!("vm{n}")).await);
        }
        let started = join_all(vms.iter().map(|vm| vm.perform(START))).await;
        let (yes, no): (Vec<_>, Vec<_>) = started.into_iter().partition(Result::is_ok);
        assert_eq!((yes.len(), no.len()), (70, 930));
        assert!(no.into_iter().all(|e| is_short(&e.unwrap_err())));
        assert_eq!(host.supply(), (256 * 70, 100));
    }
}
