//! A VM's `snapshots`: points in its past, as qemu-img lists them. Users take them with `mkdir`.

use std::time::SystemTime;

use super::line;
use crate::tree::control::noted;
use crate::tree::descriptor::Descriptor;
use crate::tree::names::{Entry, Names};
use crate::tree::node::Node;
use crate::tree::number::{Named, NodeId, Numbers};
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;
use crate::tree::{Answer, TreeError, render};
use crate::vm::backend::{SnapshotInfo, SnapshotOp};
use crate::vm::caller::Caller;
use crate::vm::spec::is_object_name;
use crate::vm::state::Command;
use crate::vm::{Snapshot, Vm};

/// `VM/snapshots`
pub(super) static SNAPSHOTS: Descriptor<Vm> = Descriptor {
    page: Some("VM/snapshots/"),
    names: |scope, vm| Box::new(SnapshotNames { vm: vm.clone(), numbers: scope.numbers.clone() }),
    members: &[&SNAPSHOT],
    is_slow: true,
    ..Descriptor::new(12, Scope::vm, |vm| format!("/{}/snapshots", vm.name()), Vm::created)
};

/// `VM/snapshots/TAG`
static SNAPSHOT: Descriptor<SnapshotOwner> = Descriptor {
    page: Some("VM/snapshots/TAG/"),
    rows: || ROWS,
    is_slow: true,
    ..Descriptor::new(
        13,
        SnapshotOwner::resolve,
        |s| format!("/{}/snapshots/{}", s.vm.name(), s.snapshot.tag),
        SnapshotOwner::mtime,
    )
};

static ROWS: &[Node<SnapshotOwner>] = &[
    Node::value("created", "when it was taken, in seconds since 1970", |s| {
        line(&s.show(|info| render::seconds(info.created)))
    }),
    Node::value("memory", "bytes of memory in it; 0 if the VM was off", |s| {
        line(&s.show(|info| info.memory.to_string()))
    }),
    Node::value("size", "the disk's virtual size at that time, in bytes", |s| {
        line(&s.show(|info| info.disk_size.to_string()))
    }),
    Node::value("status", "creating, ok, or failed with the reason", |s| line(&s.snapshot.status)),
];

#[derive(Clone)]
struct SnapshotOwner {
    vm: Vm,
    snapshot: Snapshot,
}

impl SnapshotOwner {
    fn resolve(scope: &Scope, number: u64) -> Result<Self, TreeError> {
        let Named { object, name, .. } = scope.numbers.named(number).ok_or(TreeError::NotFound)?;
        let vm = scope.vm(object)?;
        let snapshot = vm.all_snapshots().into_iter().find(|s| s.tag == name);
        Ok(Self { vm, snapshot: snapshot.ok_or(TreeError::NotFound)? })
    }

    fn mtime(&self) -> SystemTime {
        self.snapshot.info.as_ref().map_or_else(|| self.vm.view().since, |info| info.created)
    }

    /// Shows a fact about the snapshot in the disk; nothing for one that is not in there.
    fn show(&self, what: fn(&SnapshotInfo) -> String) -> String {
        self.snapshot.info.as_ref().map(what).unwrap_or_default()
    }
}

impl NodeOwner for SnapshotOwner {
    fn vm(&self) -> Option<&Vm> {
        Some(&self.vm)
    }

    fn admit_removal(&self) -> Result<(), TreeError> {
        let drop = SnapshotOp::Drop(self.snapshot.tag.clone()).into();
        match &self.snapshot.info {
            Some(_) => Ok(self.vm.would_admit(&drop)?),
            // One that could not be taken is not in the disk: dropping it needs nothing of the VM.
            None => Ok(()),
        }
    }
}

struct SnapshotNames {
    vm: Vm,
    numbers: Numbers,
}

impl SnapshotNames {
    fn named(&self, tag: &str) -> Named {
        Named { within: SNAPSHOTS.id, object: self.vm.id().0, name: tag.to_owned() }
    }

    fn id(&self, tag: &str) -> NodeId {
        SNAPSHOT.node(self.numbers.number(self.named(tag)))
    }

    fn command(&self, command: Command) -> Answer<()> {
        Answer::noted(Some(self.vm.clone()), self.vm.clone().carry_out(command))
    }
}

impl Names for SnapshotNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        self.vm.all_snapshots().iter().any(|s| s.tag == name).then(|| self.id(name))
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |s: Snapshot| Entry::directory(self.id(&s.tag), s.tag);
        // What others have called by what cannot be a file's name can only be seen by qemu-img.
        let nameable = |s: &Snapshot| !s.tag.is_empty() && !s.tag.contains(['/', '\0']);
        self.vm.all_snapshots().into_iter().filter(nameable).map(entry).collect()
    }

    fn is_possible(&self, name: &str) -> bool {
        !name.is_empty()
    }

    fn is_stable(&self) -> bool {
        false
    }

    fn make(&self, name: &str) -> Answer<NodeId> {
        if !is_object_name(name) {
            return Answer::Now(Err(TreeError::BadName(name.to_owned())));
        }
        let id = self.id(name);
        self.command(SnapshotOp::Take(name.to_owned()).into()).map(move |done| done.map(|()| id))
    }

    fn remove(&self, name: &str, caller: &dyn Fn() -> Caller) -> Answer<()> {
        if self.vm.forget_failed_snapshot(name) {
            return Answer::Now(Ok(()));
        }
        self.command(Command::Snapshot(SnapshotOp::Drop(name.to_owned()), caller().process()))
    }

    fn move_out(&self, _name: &str, to: (NodeId, &str)) -> Answer<()> {
        let another =
            to.0.parts().is_some_and(|(kind, _, row)| kind == SNAPSHOTS.id && row.is_none());
        let why = if another { TreeError::OthersSnapshot } else { TreeError::BadRename };
        Answer::Now(noted(Some(&self.vm), Err(why)))
    }

    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        if self.find(from).is_none() {
            return Answer::Now(Err(TreeError::BadRename));
        }
        if !is_object_name(to) {
            return Answer::Now(Err(TreeError::BadName(to.to_owned())));
        }
        let numbers = self.numbers.clone();
        let (old, new) = (self.named(from), self.named(to));
        let (from, to) = (from.to_owned(), to.to_owned());
        let renamed = self.command(SnapshotOp::Rename { from, to }.into());
        // It keeps its number: a process in its directory stays there.
        renamed.map(move |done| done.inspect(|()| numbers.exchange(old, new)))
    }
}
