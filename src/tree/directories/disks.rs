//! A VM's `disks`: what it has beside its own disk. Users make them with `mkdir`.

use std::time::SystemTime;

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};

use super::line;
use crate::tree::control::noted;
use crate::tree::descriptor::Descriptor;
use crate::tree::names::{Entry, Names};
use crate::tree::node::{Body, Node};
use crate::tree::number::{Named, NodeId, Numbers};
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;
use crate::tree::{Answer, TreeError};
use crate::vm::caller::Caller;
use crate::vm::disks::{Disk, Field, is_name};
use crate::vm::{Vm, VmError};

/// `VM/disks`
pub(super) static DISKS: Descriptor<Vm> = Descriptor {
    page: Some("VM/disks/"),
    names: |scope, vm| Box::new(DiskNames { vm: vm.clone(), numbers: scope.numbers.clone() }),
    members: &[&DISK],
    ..Descriptor::new(34, Scope::vm, |vm| format!("/{}/disks", vm.name()), changed)
};

/// `VM/disks/NAME`
static DISK: Descriptor<DiskOwner> = Descriptor {
    page: Some("VM/disks/NAME/"),
    rows: || ROWS,
    ..Descriptor::new(
        35,
        DiskOwner::resolve,
        |d| format!("/{}/disks/{}", d.vm.name(), d.disk.name),
        |d| d.disk.created(),
    )
};

static ROWS: &[Node<DiskOwner>] = &[
    value(
        "serial",
        "what the guest knows it by, as /dev/disk/by-id/virtio-SERIAL; by default NAME",
        |d| d.text(Field::Serial),
        |d, text| d.set(Field::Serial, text),
    ),
    value(
        "size",
        "its size: writing makes the disk, or makes it larger, also while the VM runs",
        |d| d.text(Field::Size),
        |d, text| d.set(Field::Size, text),
    ),
    value(
        "source",
        "a file or a block device of the host instead, an absolute path",
        |d| d.text(Field::Source),
        |d, text| d.set(Field::Source, text),
    ),
    Node::value(
        "status",
        "`attached: SIZE`, or why the guest does not have it",
        |d: &DiskOwner| line(&d.now().status(d.vm.state().is_off())),
    )
    .follows(|d| changed(&d.vm)),
];

const fn value(
    name: &'static str,
    doc: &'static str,
    render: fn(&DiskOwner) -> String,
    set: fn(&DiskOwner, &str) -> BoxFuture<'static, Result<(), TreeError>>,
) -> Node<DiskOwner> {
    Node::new(name, 0o600, doc, Body::WritableValue(render, set)).follows(|d| changed(&d.vm))
}

/// Returns when a disk came, went or changed.
fn changed(vm: &Vm) -> SystemTime {
    vm.disks().changed().max(vm.created())
}

#[derive(Clone)]
struct DiskOwner {
    vm: Vm,
    disk: Disk,
}

impl DiskOwner {
    fn resolve(scope: &Scope, number: u64) -> Result<Self, TreeError> {
        let Named { object, name, .. } = scope.numbers.named(number).ok_or(TreeError::NotFound)?;
        let vm = scope.vm(object)?;
        let disk = vm.disks().get(&name).ok_or(TreeError::NotFound)?;
        Ok(Self { vm, disk })
    }

    /// An open file shows what there is when it is read.
    fn now(&self) -> Disk {
        self.vm.disks().get(&self.disk.name).unwrap_or_else(|| self.disk.clone())
    }

    fn text(&self, field: Field) -> String {
        let text = self.now().text(field);
        if text.is_empty() { text } else { text + "\n" }
    }

    fn set(&self, field: Field, text: &str) -> BoxFuture<'static, Result<(), TreeError>> {
        let (name, text) = (self.disk.name.clone(), text.to_owned());
        self.vm.clone().set_disk(name, field, text).err_into().boxed()
    }
}

impl NodeOwner for DiskOwner {
    fn vm(&self) -> Option<&Vm> {
        Some(&self.vm)
    }
}

struct DiskNames {
    vm: Vm,
    numbers: Numbers,
}

impl DiskNames {
    fn named(&self, name: &str) -> Named {
        Named { within: DISKS.id, object: self.vm.id().0, name: name.to_owned() }
    }

    fn id(&self, name: &str) -> NodeId {
        DISK.node(self.numbers.number(self.named(name)))
    }

    fn noted(
        &self,
        done: impl Future<Output = Result<(), VmError>> + Send + 'static,
    ) -> Answer<()> {
        Answer::noted(Some(self.vm.clone()), done)
    }
}

impl Names for DiskNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        self.vm.disks().get(name).map(|_| self.id(name))
    }

    fn entries(&self) -> Vec<Entry> {
        let names = self.vm.disks().names().into_iter();
        names.map(|name| Entry::directory(self.id(&name), name)).collect()
    }

    /// A removed one begins with a dot.
    fn is_possible(&self, name: &str) -> bool {
        is_name(name) || name.starts_with('.')
    }

    fn is_stable(&self) -> bool {
        false
    }

    fn make(&self, name: &str) -> Answer<NodeId> {
        if !is_name(name) {
            return Answer::Now(noted(Some(&self.vm), Err(TreeError::BadName(name.to_owned()))));
        }
        let id = self.id(name);
        let made = self.noted(self.vm.clone().make_disk(name.to_owned()));
        made.map(move |done| done.map(|()| id))
    }

    fn remove(&self, name: &str, caller: &dyn Fn() -> Caller) -> Answer<()> {
        self.noted(self.vm.clone().remove_disk(name.to_owned(), caller().process()))
    }

    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        if self.find(from).is_none() {
            return Answer::Now(Err(TreeError::BadRename));
        }
        if !is_name(to) {
            return Answer::Now(Err(TreeError::BadName(to.to_owned())));
        }
        let numbers = self.numbers.clone();
        let (old, new) = (self.named(from), self.named(to));
        let renamed = self.noted(self.vm.clone().rename_disk(from.into(), to.into()));
        // It keeps its number: a process in its directory stays there.
        renamed.map(move |done| done.inspect(|()| numbers.exchange(old, new)))
    }
}
