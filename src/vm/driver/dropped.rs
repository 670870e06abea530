//! When snapshots that were dropped while the VM was off really go.
//!
//! Whoever is about to use the disk of a VM that is off has the marked snapshots dropped first. Left
//! alone, they are dropped after a minute. A state other than off is entered before the lock is
//! taken, and looked at under the lock: so nothing is dropped while a machine uses the disk.
//!
//! Not here: the marks themselves (`vm::dropped`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::off_thread;
use crate::vm::Vm;
use crate::vm::backend::{BackendError, SnapshotOp};
use crate::vm::dropped::{Mark, Remover};
use crate::vm::state::State;

/// How long a dropped snapshot stays in the disk while nothing else happens.
const KEPT: Duration = Duration::from_secs(60);

/// What is being done with marks, for error sentences.
pub(super) const MARKS: &str = "the marks of dropped snapshots";

/// Marks a snapshot as dropped, and has it dropped in a minute.
pub(super) async fn mark(vm: &Vm, tag: &str, by: Remover) -> Result<(), BackendError> {
    let _disk = vm.0.dropped.disk().lock_owned().await;
    let found = vm.snapshots().into_iter().find(|s| s.tag == tag);
    // Somebody else has dropped it in this very moment.
    let Some(found) = found else { return Ok(()) };
    let marked = vm.clone();
    off_thread(move || marked.0.dropped.mark(&found, by), MARKS).await?;
    drop_later(vm);
    Ok(())
}

/// Has what is marked dropped after a minute in which no snapshot is marked.
pub(super) fn drop_later(vm: &Vm) {
    if vm.0.dropped.is_empty() {
        return;
    }
    let (changes, weak) = (vm.0.dropped.changes(), Arc::downgrade(&vm.0));
    drop(tokio::spawn(async move {
        sleep(KEPT).await;
        let Some(vm) = weak.upgrade().map(Vm) else { return };
        if vm.0.dropped.changes() == changes {
            drop_if_off(&vm).await;
        }
    }));
}

async fn drop_if_off(vm: &Vm) {
    let _disk = vm.0.dropped.disk().lock_owned().await;
    if vm.0.dropped.is_removing() || !matches!(vm.state(), State::Stopped | State::Failed(_)) {
        return;
    }
    if let Err(error) = drop_marked(vm).await {
        vm.note_outcome(Err::<(), _>(error));
    }
}

/// Drops what is marked, before the disk is used for something else. Who gives up waiting does not
/// interrupt it.
///
/// # Errors
/// Why one could not be dropped: it is listed again.
pub(super) async fn drop_now(vm: &Vm) -> Result<(), BackendError> {
    if vm.0.dropped.is_empty() {
        return Ok(());
    }
    let vm = vm.clone();
    let work = tokio::spawn(async move {
        let _disk = vm.0.dropped.disk().lock_owned().await;
        drop_marked(&vm).await
    });
    work.await.unwrap_or_else(|e| Err(BackendError::io(MARKS, &io::Error::other(e))))
}

async fn drop_marked(vm: &Vm) -> Result<(), BackendError> {
    let mut done = Ok(());
    let marks = vm.0.dropped.list();
    for mark in &marks {
        let dropped = drop_one(vm, mark).await;
        if let Err(error) = &dropped {
            let tag = &mark.tag;
            log(vm, &format!("snapshot {tag} cannot be dropped and is listed again: {error}"));
        }
        done = done.and(dropped);
    }
    forget(vm, marks).await;
    done
}

async fn drop_one(vm: &Vm, mark: &Mark) -> Result<(), BackendError> {
    let dir = vm.dir().0.clone();
    if !vm.0.backends.hypervisor.snapshots(&dir).iter().any(|s| mark.is_of(s)) {
        return Ok(());
    }
    vm.0.backends.hypervisor.snapshot(dir, &SnapshotOp::Drop(mark.tag.clone())).await
}

/// Lifts the marks of a VM whose machine was found running: its snapshots are QEMU's to drop.
pub(super) fn lift_all(vm: &Vm) {
    let marks = vm.0.dropped.list();
    if !marks.is_empty() {
        let tags: Vec<&str> = marks.iter().map(|mark| mark.tag.as_str()).collect();
        log(vm, &format!("not dropped, as the VM runs: snapshots {}", tags.join(", ")));
        let vm = vm.clone();
        drop(tokio::spawn(async move {
            let _disk = vm.0.dropped.disk().lock_owned().await;
            forget(&vm, marks).await;
        }));
    }
}

async fn forget(vm: &Vm, marks: Vec<Mark>) {
    let owner = vm.clone();
    let forgotten = move || {
        owner.0.dropped.forget(&marks);
        Ok(())
    };
    // It has no error of its own.
    drop(off_thread(forgotten, MARKS).await);
    vm.0.bell.ring();
}

fn log(vm: &Vm, text: &str) {
    tracing::warn!(vm = %vm.name(), "{text}");
    vm.note(text);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::super::tests::{START, Scratch, until, vm_in};
    use super::*;
    use crate::vm::caller::ProcessId;
    use crate::vm::fake::{Script, backends, clean_exit};
    use crate::vm::state::Command;

    const ME: Remover = Some(ProcessId { pid: 7, start: 7 });
    const OTHER: Remover = Some(ProcessId { pid: 8, start: 8 });

    struct Fixture {
        _dir: Scratch,
        script: Arc<Script>,
        vm: Vm,
    }

    /// A VM that is off, with snapshots.
    async fn off(tags: &[&str]) -> Fixture {
        let (dir, script) = (Scratch(tempfile::tempdir().unwrap()), Arc::<Script>::default());
        let vm = vm_in(&backends(&script), dir.0.path(), Uuid::new_v4()).await;
        vm.perform(START).await.unwrap();
        until(&vm, &State::Ready).await;
        script.report(clean_exit()).await;
        until(&vm, &State::Stopped).await;
        for tag in tags {
            vm.perform(SnapshotOp::Take((*tag).to_owned()).into()).await.unwrap();
        }
        script.calls.lock().clear();
        Fixture { _dir: dir, script, vm }
    }

    fn listed(vm: &Vm) -> Vec<String> {
        vm.all_snapshots().into_iter().map(|s| s.tag).collect()
    }

    fn in_disk(vm: &Vm) -> Vec<String> {
        vm.0.backends.hypervisor.snapshots(&vm.dir().0).into_iter().map(|s| s.tag).collect()
    }

    async fn drop_snapshot(vm: &Vm, tag: &str) {
        vm.perform(Command::Snapshot(SnapshotOp::Drop(tag.to_owned()), ME)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_is_hidden_and_goes_after_a_minute() {
        let Fixture { _dir, vm, script } = off(&["a", "b"]).await;
        drop_snapshot(&vm, "a").await;
        assert_eq!((listed(&vm), in_disk(&vm)), (vec!["b".into()], vec!["a".into(), "b".into()]));
        assert!(vm.perform(Command::Snapshot(SnapshotOp::Drop("a".into()), ME)).await.is_err());
        assert!(vm.perform(SnapshotOp::Restore("a".into()).into()).await.is_err());
        sleep(Duration::from_secs(50)).await;
        drop_snapshot(&vm, "b").await;
        sleep(Duration::from_secs(50)).await;
        assert_eq!(in_disk(&vm).len(), 2);
        sleep(Duration::from_secs(11)).await;
        assert!(in_disk(&vm).is_empty() && !vm.dir().dropped_snapshots().exists());
        assert_eq!(*script.calls.lock(), ["snapshot, off", "snapshot, off"]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_before_the_disk_is_changed() {
        let changes: [(&str, Command); 4] = [
            ("a b", SnapshotOp::Take("a".into()).into()),
            ("b", SnapshotOp::Restore("b".into()).into()),
            ("c", SnapshotOp::Rename { from: "b".into(), to: "c".into() }.into()),
            ("b", START),
        ];
        for (after, change) in changes {
            let Fixture { _dir, vm, .. } = off(&["a", "b"]).await;
            drop_snapshot(&vm, "a").await;
            vm.perform(change.clone()).await.unwrap();
            let mut tags = in_disk(&vm);
            tags.sort();
            assert_eq!(tags.join(" "), after, "{change:?}");
            assert_eq!(listed(&vm), tags, "{change:?}");
        }
        let Fixture { _dir, vm, .. } = off(&["a", "b"]).await;
        drop_snapshot(&vm, "a").await;
        let hold = vm.pin("x".into()).await.unwrap();
        assert_eq!(in_disk(&vm), ["b"]);
        drop(hold);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_dropped_is_listed_again_and_told() {
        let Fixture { _dir, vm, script } = off(&["a"]).await;
        let full = || Some(BackendError::NoSpace { what: "the snapshot".into() });
        drop_snapshot(&vm, "a").await;
        *script.disk_error.lock() = full();
        sleep(Duration::from_secs(61)).await;
        assert_eq!(listed(&vm), ["a"]);
        assert!(vm.failure().unwrap().contains("no space"), "{:?}", vm.failure());
        drop_snapshot(&vm, "a").await;
        *script.disk_error.lock() = full();
        assert!(vm.perform(SnapshotOp::Take("a".into()).into()).await.is_err());
        assert!(in_disk(&vm).len() == 1);
        // It does not keep a guest from starting.
        drop_snapshot(&vm, "a").await;
        *script.disk_error.lock() = full();
        vm.perform(START).await.unwrap();
        until(&vm, &State::Ready).await;
        assert_eq!(listed(&vm), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_daemon_drops_it() {
        let Fixture { _dir, vm, script } = off(&["a"]).await;
        drop_snapshot(&vm, "a").await;
        let dir = vm.dir().0.clone();
        drop(vm);
        let vm = vm_in(&backends(&script), &dir, Uuid::new_v4()).await;
        assert!(listed(&vm).is_empty() && in_disk(&vm).len() == 1);
        sleep(Duration::from_secs(61)).await;
        assert!(in_disk(&vm).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_vm_that_runs_it_goes_at_once() {
        let Fixture { _dir, vm, script } = off(&["a"]).await;
        vm.perform(START).await.unwrap();
        until(&vm, &State::Ready).await;
        drop_snapshot(&vm, "a").await;
        assert!(in_disk(&vm).is_empty());
        assert_eq!(script.calls.lock().last(), Some(&"snapshot"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_removal_brings_back_what_its_process_has_dropped_and_no_more() {
        let Fixture { _dir, vm, .. } = off(&["a", "b"]).await;
        drop_snapshot(&vm, "a").await;
        vm.perform(Command::Snapshot(SnapshotOp::Drop("b".into()), OTHER)).await.unwrap();
        let removal = vm.retire(ME).await.unwrap();
        assert_eq!(listed(&vm), ["a"]);
        // The removal has failed.
        drop(removal);
        vm.perform(Command::Kill).await.unwrap_err();
        assert!(listed(&vm).is_empty());
        let removal = vm.retire(ME).await.unwrap();
        sleep(Duration::from_secs(100)).await;
        assert_eq!((listed(&vm), in_disk(&vm).len()), (vec!["a".to_owned()], 2));
        removal.done();
        let gone = vm.perform(START).await.unwrap_err();
        assert!(matches!(gone, crate::vm::VmError::Removed), "{gone}");
    }
}
