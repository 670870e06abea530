//! Finding what an earlier daemon has left: a machine that runs, and what was cut short.
//!
//! Not here: being sure that a QEMU is the VM's own (`qemu::adopt`).

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::task::{Report, Ticket};
use super::{Answer, Driver, recover, suspended};
use crate::store::layout::VmDir;
use crate::vm::Backends;
use crate::vm::backend::{Adoption, SilentMachine};

/// How often a QEMU that does not answer is asked again. While it writes a snapshot of a large memory
/// it answers nobody, for as long as that takes.
const SEARCH_INTERVAL: Duration = Duration::from_secs(3);

/// Finds the VM's machine, and recovers what was cut short.
pub(super) async fn find(backends: &Backends, dir: &VmDir, uuid: Uuid) -> Adoption {
    recover::disk(backends, dir);
    let found = suspended::adopt(&*backends.hypervisor, dir.0.clone(), uuid).await;
    let recovered = recover::machine(backends, dir, found).await;
    recovered.unwrap_or_else(|error| Adoption::Unclear(error.to_string()))
}

impl Driver {
    /// Looks again for a machine that runs and could not be adopted, until it can be or has ended, or
    /// until the user asks for something else.
    pub(super) fn search(&self, ticket: Ticket) {
        let vm = self.vm.clone();
        self.spawn(ticket, |_| async move {
            loop {
                tokio::time::sleep(SEARCH_INTERVAL).await;
                let found = find(&vm.0.backends, vm.dir(), vm.uuid()).await;
                if !matches!(found, Adoption::Unclear(_)) {
                    break Report::Found(found);
                }
            }
        });
    }

    /// Finds the process of a machine that does not answer, if it is surely the VM's.
    pub(super) fn find_silent(&self, answer: Answer) {
        let vm = self.vm.clone();
        self.detach(|_| async move {
            let found = vm.0.backends.hypervisor.silent(vm.dir().0.clone(), vm.uuid()).await;
            Report::Silent(found, answer)
        });
    }

    pub(super) fn end_silent(&self, ticket: Ticket, machine: Arc<dyn SilentMachine>) {
        self.spawn(ticket, |_| async move { Report::SilentEnded(machine.kill().await) });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::super::tests::{START, Scratch, until, vm_in};
    use crate::vm::backend::{BackendError, SnapshotOp};
    use crate::vm::fake::{Script, backends};
    use crate::vm::notice::Notice;
    use crate::vm::state::{Command, Refusal, State};
    use crate::vm::{Vm, VmError};

    /// A VM whose machine does not answer the daemon that finds it.
    async fn silent() -> (Scratch, Arc<Script>, Vm) {
        let dir = Scratch(tempfile::tempdir().unwrap());
        let (script, uuid) = (Arc::<Script>::default(), Uuid::new_v4());
        let earlier = vm_in(&backends(&script), dir.0.path(), uuid).await;
        earlier.perform(START).await.unwrap();
        until(&earlier, &State::Ready).await;
        *script.silent.lock() = true;
        let vm = vm_in(&backends(&script), dir.0.path(), uuid).await;
        assert_eq!(vm.state(), State::Unreachable("fake".into()));
        (dir, script, vm)
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_does_not_answer_is_not_removed_and_can_be_ended() {
        let (_dir, script, vm) = silent().await;
        for command in [START, Command::Stop { seconds: 1 }, SnapshotOp::Take("a".into()).into()] {
            let refused = vm.perform(command).await;
            let is_occupied = matches!(refused, Err(VmError::Refused(Refusal::Occupied { .. })));
            assert!(is_occupied, "{refused:?}");
        }
        let refused = vm.retire(None).await.unwrap_err().to_string();
        assert!(refused.starts_with("rmdir: ") && refused.contains("kill"), "{refused}");
        assert!(Notice::ready(&vm).is_err() && script.runs(vm.uuid()));
        vm.perform(Command::Kill).await.unwrap();
        until(&vm, &State::Stopped).await;
        assert!(!script.runs(vm.uuid()));
        *script.silent.lock() = false;
        vm.perform(START).await.unwrap();
        until(&vm, &State::Ready).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_answers_again_is_taken_up() {
        let (_dir, script, vm) = silent().await;
        *script.silent.lock() = false;
        until(&vm, &State::Ready).await;
        assert!(script.runs(vm.uuid()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_may_be_anybodys_is_left_alone() {
        let (_dir, script, vm) = silent().await;
        let error = BackendError::NotSurelyOurs { doubt: "pid 7".into(), look: "ps".into() };
        *script.silent_error.lock() = Some(error);
        let refused = vm.perform(Command::Kill).await.unwrap_err().to_string();
        assert!(refused.starts_with("pid 7"), "{refused}");
        assert_eq!(vm.state(), State::Unreachable("fake".into()));
        *script.silent.lock() = false;
        until(&vm, &State::Ready).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_ready_of_a_failed_vm_is_told_why_it_failed() {
        let dir = Scratch(tempfile::tempdir().unwrap());
        let script = Arc::<Script>::default();
        let vm = vm_in(&backends(&script), dir.0.path(), Uuid::new_v4()).await;
        let died = BackendError::QemuDied { status: "exit 1".into(), stderr: "-x: bad".into() };
        *script.launch_error.lock() = Some(died);
        vm.perform(START).await.unwrap_err();
        let said = "failed: QEMU ended (exit 1): -x: bad; `echo start > ctl` first";
        assert_eq!(Notice::ready(&vm).unwrap_err().to_string(), format!("ready: {said}"));
        for verb in ["exec", "console"] {
            let refused = vm.expect_on(verb).unwrap_err().to_string();
            assert_eq!(refused, format!("{verb}: {said}"));
        }
        let refused = vm.perform(Command::Pause).await.unwrap_err().to_string();
        assert_eq!(refused, format!("pause: {said}"));
    }
}
