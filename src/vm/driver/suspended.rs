//! What `suspend` saves: a snapshot with a name that no user can give, which the next start resumes.
//! Where it is in the disk, how it is loaded, and when it is dropped.
//!
//! Earlier versions called it `suspended`, which now is a name like any other. The file `format` in a
//! VM's directory says that `suspended` is the user's there; a directory without it is an earlier
//! version's, and is converted when a daemon finds the VM.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use super::{off_thread, paused_by_daemon};
use crate::store::layout::VmDir;
use crate::vm::Backends;
use crate::vm::backend::{
    Adoption, BackendError, Hypervisor, LaunchPlan, Launched, Machine, SnapshotOp,
};
use crate::vm::hardware::Hardware;

/// The snapshot's name.
pub(crate) const SUSPENDED: &str = ".suspended";
/// What earlier versions called it.
const EARLIER: &str = "suspended";
/// What the file `format` says.
pub(crate) const FORMAT: &str = "2\n";

/// Returns the name of the snapshot that a VM's next start resumes, if there is one.
pub(crate) fn saved(hypervisor: &dyn Hypervisor, dir: &VmDir) -> Option<&'static str> {
    let known = hypervisor.snapshots(&dir.0);
    let has = |tag| known.iter().any(|s| s.tag == tag && s.memory > 0);
    if has(SUSPENDED) {
        return Some(SUSPENDED);
    }
    (has(EARLIER) && !dir.format().exists()).then_some(EARLIER)
}

/// Saves the machine's memory; what was saved before (`stale`) makes way.
pub(super) async fn save(
    machine: &dyn Machine,
    stale: Option<&'static str>,
) -> Result<(), BackendError> {
    forget(machine, stale).await?;
    machine.snapshot(&SnapshotOp::Take(SUSPENDED.to_owned())).await
}

/// Resumes the processors, and first drops what a `suspend` that failed has saved: a later start
/// would resume it, and lose what the guest does from now on.
pub(super) async fn resume(
    machine: &dyn Machine,
    saved: Option<&'static str>,
) -> Result<(), BackendError> {
    forget(machine, saved).await?;
    machine.resume().await
}

/// Drops what was saved of a machine that is to run.
pub(super) async fn forget(
    machine: &dyn Machine,
    saved: Option<&'static str>,
) -> Result<(), BackendError> {
    match saved {
        Some(tag) => machine.snapshot(&SnapshotOp::Drop(tag.to_owned())).await,
        None => Ok(()),
    }
}

/// Finds the machine that an earlier daemon started. One that was to resume what `suspend` has
/// saved, and has not run, is ended: nothing is lost, and the next start does it.
pub(super) async fn adopt(hypervisor: &dyn Hypervisor, dir: PathBuf, uuid: Uuid) -> Adoption {
    let found = hypervisor.adopt(dir.clone(), uuid).await;
    let dir = VmDir(dir);
    let adoption = match ended_if_it_has_not_run(hypervisor, found, &dir).await {
        Ok(adoption) => adoption,
        Err(error) => return Adoption::Unclear(error.to_string()),
    };
    if !matches!(adoption, Adoption::Unclear(_))
        && let Err(error) = convert(hypervisor, &adoption, &dir).await
    {
        // It is found under its old name, and the next daemon tries again.
        tracing::warn!(dir = %dir.0.display(), %error, "what was suspended keeps its old name");
    }
    adoption
}

async fn ended_if_it_has_not_run(
    hypervisor: &dyn Hypervisor,
    adoption: Adoption,
    dir: &VmDir,
) -> Result<Adoption, BackendError> {
    let Adoption::Running(launched) = &adoption else { return Ok(adoption) };
    let is_half_resumed = launched.paused && saved(hypervisor, dir).is_some();
    if is_half_resumed && matches!(launched.machine.has_run().await, Ok(false)) {
        launched.machine.kill().await?;
        return Ok(Adoption::NeverRan);
    }
    Ok(adoption)
}

/// Makes `suspended` an ordinary name in the directory of a VM that an earlier version has made.
async fn convert(
    hypervisor: &dyn Hypervisor,
    adoption: &Adoption,
    dir: &VmDir,
) -> Result<(), BackendError> {
    if dir.format().exists() {
        return Ok(());
    }
    match (saved(hypervisor, dir), adoption) {
        // A machine that has run since is ahead of what was saved.
        (Some(EARLIER), Adoption::Running(launched)) => {
            forget(&*launched.machine, Some(EARLIER)).await?;
        }
        (Some(EARLIER), Adoption::NeverRan | Adoption::Ended(_)) => {
            let (from, to) = (EARLIER.to_owned(), SUSPENDED.to_owned());
            hypervisor.snapshot(dir.0.clone(), &SnapshotOp::Rename { from, to }).await?;
        }
        (Some(_) | None, _) => {}
    }
    let format = dir.format();
    off_thread(move || fs::write(format, FORMAT), "the format of the VM's directory").await
}

/// Resumes from what `suspend` has saved, in the hardware that it was saved of. Where that is not
/// known, a memory that does not fit is refused before anything has run, and the disk is as it was.
pub(super) async fn start(
    backends: &Backends,
    plan: LaunchPlan,
    saved: &'static str,
    paused: bool,
) -> Result<Launched, BackendError> {
    let (first, others) = match backends.hypervisor.saved_hardware(&plan.dir, saved) {
        Some(hardware) if !hardware.is_known() => return Err(saved_by_a_later_one(hardware)),
        Some(hardware) => (hardware, Vec::new()),
        None => (plan.hardware, plan.hardware.earlier().collect()),
    };
    let of = |hardware| LaunchPlan { hardware, ..plan.clone() };
    let mut resumed = start_in(backends, of(first), saved, paused).await;
    for hardware in others {
        // A launch that has failed says nothing of the memory.
        let Err(error @ BackendError::CannotResume { .. }) = resumed else { break };
        resumed = start_in(backends, of(hardware), saved, paused).await.map_err(|_| error);
    }
    resumed
}

fn saved_by_a_later_one(hardware: Hardware) -> BackendError {
    let newest = Hardware::NEWEST;
    let reason =
        format!("it was saved of hardware {hardware}, this aqfs has {newest}; use a later one");
    BackendError::CannotResume { reason }
}

/// Loads what was saved, which is of no use from then on, and resumes the processors unless `paused`.
async fn start_in(
    backends: &Backends,
    plan: LaunchPlan,
    saved: &'static str,
    paused: bool,
) -> Result<Launched, BackendError> {
    let (dir, disk, hypervisor) = (VmDir(plan.dir.clone()), plan.spec.disk, &*backends.hypervisor);
    let mut launched = hypervisor.launch(plan).await?;
    let machine = Arc::clone(&launched.machine);
    let loaded = async {
        machine.snapshot(&SnapshotOp::Restore(saved.to_owned())).await?;
        grow(hypervisor, &*machine, &dir, disk).await?;
        if !paused {
            // Without the snapshot, nothing else says that this one is to run.
            paused_by_daemon::begin(&dir).await?;
        }
        forget(&*machine, Some(saved)).await
    };
    launched.clock_is_behind = true;
    if let Err(error) = loaded.await {
        // It has not run: nothing is lost, and the next start tries again.
        drop(machine.kill().await);
        paused_by_daemon::end(&dir);
        return Err(BackendError::CannotResume { reason: error.to_string() });
    }
    if !paused {
        // One that QEMU does not run is paused, which its status tells.
        launched.paused = machine.resume().await.is_err();
        paused_by_daemon::end(&dir);
    }
    Ok(launched)
}

/// Gives the disk of a machine the size that its settings say: a snapshot brings back that of then.
pub(super) async fn grow(
    hypervisor: &dyn Hypervisor,
    machine: &dyn Machine,
    dir: &VmDir,
    bytes: u64,
) -> Result<(), BackendError> {
    match hypervisor.disk_size(&dir.0)? {
        Some(size) if size < bytes => machine.grow_disk(bytes).await,
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{START, Scratch, until, vm_in};
    use super::*;
    use crate::vm::Vm;
    use crate::vm::fake::{Script, backends, clean_exit};
    use crate::vm::state::{Command, State};

    fn in_disk(vm: &Vm) -> Vec<String> {
        vm.0.backends.hypervisor.snapshots(&vm.dir().0).into_iter().map(|s| s.tag).collect()
    }

    /// A VM that an earlier version has left, with its `suspended` of a machine that runs.
    async fn earlier(script: &Arc<Script>, dir: &Scratch) -> Vm {
        let vm = vm_in(&backends(script), dir.0.path(), Uuid::new_v4()).await;
        vm.perform(START).await.unwrap();
        until(&vm, &State::Ready).await;
        vm.perform(SnapshotOp::Take(EARLIER.into()).into()).await.unwrap();
        fs::remove_file(vm.dir().format()).unwrap();
        vm
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_vm_that_is_off_the_name_is_changed_once() {
        let (dir, script) = (Scratch(tempfile::tempdir().unwrap()), Arc::<Script>::default());
        let vm = earlier(&script, &dir).await;
        script.report_of(vm.uuid(), clean_exit()).await;
        until(&vm, &State::Stopped).await;
        assert!(vm.is_suspended());
        let vm = vm_in(&backends(&script), dir.0.path(), vm.uuid()).await;
        assert!(vm.is_suspended() && vm.snapshots().is_empty());
        assert_eq!(in_disk(&vm), [SUSPENDED]);
        vm.perform(START).await.unwrap();
        until(&vm, &State::Ready).await;
        vm.perform(SnapshotOp::Take(EARLIER.into()).into()).await.unwrap();
        let vm = vm_in(&backends(&script), dir.0.path(), vm.uuid()).await;
        assert_eq!(in_disk(&vm), [EARLIER]);
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_machine_that_has_run_since_it_is_of_no_use() {
        let (dir, script) = (Scratch(tempfile::tempdir().unwrap()), Arc::<Script>::default());
        let vm = earlier(&script, &dir).await;
        let vm = vm_in(&backends(&script), dir.0.path(), vm.uuid()).await;
        assert!(in_disk(&vm).is_empty() && vm.dir().format().exists());
    }

    #[tokio::test(start_paused = true)]
    async fn a_kill_gives_it_up_and_a_restore_does() {
        for give_up in [Command::Kill, SnapshotOp::Restore("a".into()).into()] {
            let (dir, script) = (Scratch(tempfile::tempdir().unwrap()), Arc::<Script>::default());
            let vm = vm_in(&backends(&script), dir.0.path(), Uuid::new_v4()).await;
            vm.perform(START).await.unwrap();
            until(&vm, &State::Ready).await;
            vm.perform(SnapshotOp::Take("a".into()).into()).await.unwrap();
            vm.perform(Command::Suspend).await.unwrap();
            until(&vm, &State::Stopped).await;
            assert!(vm.is_suspended());
            vm.perform(give_up).await.unwrap();
            assert_eq!((vm.is_suspended(), in_disk(&vm)), (false, vec!["a".to_owned()]));
            assert!(vm.perform(Command::Kill).await.is_err());
        }
    }

    /// Suspends a VM and has it start where its memory is said to be of this hardware.
    async fn resumed(saved: Option<Hardware>, errors: usize) -> (Vm, Arc<Script>, Scratch) {
        let (dir, script) = (Scratch(tempfile::tempdir().unwrap()), Arc::<Script>::default());
        let vm = vm_in(&backends(&script), dir.0.path(), Uuid::new_v4()).await;
        vm.perform(START).await.unwrap();
        until(&vm, &State::Ready).await;
        vm.perform(Command::Suspend).await.unwrap();
        until(&vm, &State::Stopped).await;
        *script.saved_hardware.lock() = saved;
        if errors > 0 {
            let refused = BackendError::HalfRestored { reason: "no".to_owned() };
            *script.snapshot_error.lock() = Some(refused);
        }
        drop(vm.perform(START).await);
        (vm, script, dir)
    }

    #[tokio::test(start_paused = true)]
    async fn a_vm_resumes_in_the_hardware_of_its_memory() {
        let table = [
            (Some(Hardware::FIRST), 0, Hardware::FIRST),
            (Some(Hardware::NEWEST), 0, Hardware::NEWEST),
            (None, 0, Hardware::NEWEST),
            // Refused once, it is tried in the one before.
            (None, 1, Hardware::WITH_ROOM),
        ];
        for (saved, errors, expected) in table {
            let (vm, _script, _dir) = resumed(saved, errors).await;
            until(&vm, &State::Ready).await;
            assert_eq!(vm.view().facts.unwrap().hardware, expected, "{saved:?} {errors}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_launch_that_fails_is_told_and_not_tried_in_other_hardware() {
        let (vm, script, _dir) = resumed(None, 1).await;
        until(&vm, &State::Ready).await;
        vm.perform(Command::Suspend).await.unwrap();
        until(&vm, &State::Stopped).await;
        let died = BackendError::QemuDied { status: "exit 1".into(), stderr: "no".into() };
        *script.launch_error.lock() = Some(died);
        vm.perform(START).await.unwrap_err();
        assert!(vm.is_suspended() && matches!(vm.state(), State::Failed(_)), "{}", vm.state());
    }

    #[tokio::test(start_paused = true)]
    async fn a_memory_of_a_later_aqfs_stays_and_is_refused_with_the_next_step() {
        let later = serde_json::from_str("7").unwrap();
        let (vm, _script, _dir) = resumed(Some(later), 0).await;
        let text = vm.failure().unwrap_or_default() + &vm.state().to_string();
        assert!(text.contains("of hardware 7, this aqfs has 3; use a later one"), "{text}");
        assert!(vm.is_suspended());
    }
}
