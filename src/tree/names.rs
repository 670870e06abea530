//! Names that users make: what `mkdir`, `rmdir` and `mv` mean in a directory.
//!
//! Names that are rows are not here (`table.rs`). A directory without a [`Names`] of its own takes
//! none.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;

use super::node::{Kind, NodeId, Table, pack_job};
use super::{Answer, TreeError, handle};
use crate::registry::Registry;
use crate::registry::aliases::Alias;
use crate::vm::caller::Caller;
use crate::vm::job::{Job, JobError, is_job_name};
use crate::vm::spec::{is_object_name, is_vm_name};
use crate::vm::state::Command;
use crate::vm::{Snapshot, Vm, VmError, VmId};

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The node.
    pub id: NodeId,
    /// Its kind.
    pub kind: Kind,
}

impl Entry {
    fn directory(name: String, table: Table, object: u64) -> Self {
        Self { name, id: NodeId::directory(table, object), kind: Kind::Directory }
    }
}

/// The names in one directory that are not rows. Each is a directory.
pub(super) trait Names {
    /// Finds one.
    fn find(&self, name: &str) -> Option<NodeId>;

    /// Lists them.
    fn entries(&self) -> Vec<Entry>;

    /// Counts them.
    fn count(&self) -> usize {
        self.entries().len()
    }

    /// Says whether there could ever be such a name: if not, the kernel need not ask again.
    fn is_possible(&self, name: &str) -> bool {
        let _any = name;
        false
    }

    /// Says whether names come and go by requests of the kernel alone, which it then may remember
    /// for as long as it likes.
    fn is_stable(&self) -> bool {
        true
    }

    /// `mkdir`
    fn make(&self, name: &str) -> Answer<NodeId> {
        let _any = name;
        let why = "directories are made at the root, where each is a VM";
        Answer::Now(Err(TreeError::NotOffered(why)))
    }

    /// `rmdir`, by a caller.
    fn remove(&self, name: &str, caller: &dyn Fn() -> Caller) -> Answer<()> {
        let _any = caller;
        Answer::Now(Err(match self.find(name) {
            Some(_) => TreeError::NotOffered("this cannot be removed"),
            None => TreeError::NotFound,
        }))
    }

    /// `ln -s`
    fn link(&self, name: &str, target: &str) -> Answer<NodeId> {
        let _any = (name, target);
        Answer::Now(Err(TreeError::NotOffered("links are made in .images, where each is an alias")))
    }

    /// `rm` of a link that users have made; `None`: there is none of that name.
    fn unlink(&self, name: &str) -> Option<Answer<()>> {
        let _any = name;
        None
    }

    /// `mv` into another directory.
    fn move_out(&self, name: &str, to: (NodeId, &str)) -> Answer<()> {
        let _any = (name, to);
        Answer::Now(Err(TreeError::BadRename))
    }

    /// `mv` within the directory.
    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        let _any = (from, to);
        Answer::Now(Err(TreeError::BadRename))
    }
}

/// No names.
pub(super) struct NoNames;

impl Names for NoNames {
    fn find(&self, _name: &str) -> Option<NodeId> {
        None
    }

    fn entries(&self) -> Vec<Entry> {
        Vec::new()
    }
}

/// VMs, at the root.
pub(super) struct VmNames(pub(super) Arc<Registry>);

impl Names for VmNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        self.0.get(name).map(|vm| NodeId::directory(Table::Vm, vm.id().0))
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |(name, vm): (String, Vm)| Entry::directory(name, Table::Vm, vm.id().0);
        self.0.list().into_iter().map(entry).collect()
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    fn is_possible(&self, name: &str) -> bool {
        is_vm_name(name)
    }

    fn make(&self, name: &str) -> Answer<NodeId> {
        let made = Registry::create(Arc::clone(&self.0), name.to_owned());
        let id = |vm: Vm| NodeId::directory(Table::Vm, vm.id().0);
        Answer::later(made.map(move |vm| vm.map(id).map_err(TreeError::from)))
    }

    fn remove(&self, name: &str, caller: &dyn Fn() -> Caller) -> Answer<()> {
        let Some(vm) = self.0.get(name) else { return Answer::Now(Err(TreeError::NotFound)) };
        let by = caller().process();
        let removed = Registry::remove(Arc::clone(&self.0), name.to_owned(), by);
        let told =
            move |done: Result<(), _>| handle::noted(Some(&vm), done.map_err(TreeError::from));
        Answer::later(removed.map(told))
    }

    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        if self.0.get(from).is_none() {
            return Answer::Now(Err(TreeError::BadRename));
        }
        let done = Registry::rename(Arc::clone(&self.0), from.to_owned(), to.to_owned());
        Answer::later(done.map(|done| done.map_err(TreeError::from)))
    }
}

/// Jobs, in a VM's `jobs`.
pub(super) struct JobNames(pub(super) Vm);

impl JobNames {
    fn id(&self, job: &Job) -> NodeId {
        NodeId::directory(Table::Job, pack_job(self.0.id(), job.id()))
    }

    fn told<T>(&self, done: Result<T, JobError>) -> Result<T, TreeError> {
        handle::noted(Some(&self.0), done.map_err(|e| VmError::from(e).into()))
    }
}

impl Names for JobNames {
    // Commands of `exec` come, and old ones go, without the kernel's doing.
    fn is_stable(&self) -> bool {
        false
    }

    fn find(&self, name: &str) -> Option<NodeId> {
        self.0.jobs().find(name).map(|job| self.id(&job))
    }

    fn entries(&self) -> Vec<Entry> {
        let entry =
            |job: Arc<Job>| Entry { name: job.name(), id: self.id(&job), kind: Kind::Directory };
        self.0.jobs().list().into_iter().map(entry).collect()
    }

    fn is_possible(&self, name: &str) -> bool {
        is_job_name(name)
    }

    fn make(&self, name: &str) -> Answer<NodeId> {
        let made = self.told(self.0.jobs().make(name));
        Answer::Now(made.map(|job| self.id(&job)))
    }

    fn remove(&self, name: &str, _caller: &dyn Fn() -> Caller) -> Answer<()> {
        Answer::Now(self.told(self.0.jobs().remove(name)))
    }

    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        if self.find(from).is_none() {
            return Answer::Now(Err(TreeError::BadRename));
        }
        Answer::Now(self.told(self.0.jobs().rename(from, to)))
    }
}

/// Numbers given to names that have none of their own; never reused.
pub(super) type Numbers = Arc<Mutex<HashMap<String, u64>>>;

/// Images, in `.images`.
pub(super) struct ImageNames {
    pub(super) registry: Arc<Registry>,
    pub(super) numbers: Numbers,
}

impl ImageNames {
    fn id(&self, name: &str) -> NodeId {
        NodeId::directory(Table::Image, number(&self.numbers, name.to_owned()))
    }

    fn alias(&self, name: &str) -> Option<NodeId> {
        self.registry.aliases().get(name).map(|alias| alias_id(alias.id))
    }
}

fn alias_id(id: u64) -> NodeId {
    NodeId::directory(Table::Alias, id).row(0)
}

impl Names for ImageNames {
    fn is_stable(&self) -> bool {
        false
    }

    fn find(&self, name: &str) -> Option<NodeId> {
        if self.registry.backends().images.info(name).is_some() {
            return Some(self.id(name));
        }
        self.alias(name)
    }

    fn is_possible(&self, name: &str) -> bool {
        is_object_name(name)
    }

    fn make(&self, name: &str) -> Answer<NodeId> {
        if !is_object_name(name) {
            return Answer::Now(Err(TreeError::BadName(name.to_owned())));
        }
        let id = self.id(name);
        let made = Arc::clone(&self.registry).create_image(name.to_owned());
        Answer::later(made.map(move |made| made.map(|()| id).map_err(TreeError::from)))
    }

    fn link(&self, name: &str, target: &str) -> Answer<NodeId> {
        if !is_object_name(name) {
            return Answer::Now(Err(TreeError::BadName(name.to_owned())));
        }
        let made = Arc::clone(&self.registry).link_image(name.to_owned(), target.to_owned());
        Answer::later(made.map(|made| made.map(alias_id).map_err(TreeError::from)))
    }

    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        if self.alias(from).is_none() {
            return Answer::Now(Err(TreeError::BadRename));
        }
        if !is_object_name(to) {
            return Answer::Now(Err(TreeError::BadName(to.to_owned())));
        }
        let done = Arc::clone(&self.registry).rename_alias(from.to_owned(), to.to_owned());
        Answer::later(done.map(|done| done.map_err(TreeError::from)))
    }

    fn unlink(&self, name: &str) -> Option<Answer<()>> {
        self.alias(name)?;
        let removed = Arc::clone(&self.registry).unlink_image(name.to_owned());
        Some(Answer::later(removed.map(|done| done.map_err(TreeError::from))))
    }

    fn remove(&self, name: &str, _caller: &dyn Fn() -> Caller) -> Answer<()> {
        if self.alias(name).is_some() {
            return Answer::Now(Err(TreeError::NotADirectory));
        }
        let removed = Arc::clone(&self.registry).remove_image(name.to_owned());
        Answer::later(removed.map(|done| done.map_err(TreeError::from)))
    }

    fn count(&self) -> usize {
        self.registry.backends().images.list().len()
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |name: String| {
            let id = self.id(&name);
            Entry { name, id, kind: Kind::Directory }
        };
        let alias = |(name, alias): (String, Alias)| Entry {
            name,
            id: alias_id(alias.id),
            kind: Kind::Link,
        };
        let images = self.registry.backends().images.list().into_iter().map(|i| entry(i.name));
        images.chain(self.registry.aliases().list().into_iter().map(alias)).collect()
    }
}

/// Gives the names that have no number of their own one, and remembers it.
pub(super) fn number(numbers: &Numbers, name: String) -> u64 {
    let mut numbers = numbers.lock();
    let next = numbers.len() as u64;
    *numbers.entry(name).or_insert(next)
}

/// Has two names change numbers: what was called by the one is now called by the other.
fn exchange(numbers: &Numbers, a: String, b: String) {
    let (of_a, of_b) = (number(numbers, a.clone()), number(numbers, b.clone()));
    numbers.lock().extend([(a, of_b), (b, of_a)]);
}

/// Snapshots, in `VM/snapshots`.
pub(super) struct SnapshotNames {
    pub(super) vm: Vm,
    pub(super) numbers: Numbers,
}

impl SnapshotNames {
    fn id(&self, tag: &str) -> NodeId {
        let key = snapshot_key(self.vm.id(), tag);
        NodeId::directory(Table::Snapshot, number(&self.numbers, key))
    }

    fn command(&self, command: Command) -> impl Future<Output = Result<(), TreeError>> + use<> {
        let vm = self.vm.clone();
        let done = self.vm.clone().carry_out(command);
        done.map(move |done| handle::noted(Some(&vm), done.map_err(TreeError::from)))
    }
}

/// Names a snapshot among those of all VMs.
pub(super) fn snapshot_key(vm: VmId, tag: &str) -> String {
    format!("{}/{tag}", vm.0)
}

impl Names for SnapshotNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        self.vm.all_snapshots().iter().any(|s| s.tag == name).then(|| self.id(name))
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |s: Snapshot| {
            let id = self.id(&s.tag);
            Entry { name: s.tag, id, kind: Kind::Directory }
        };
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
        Answer::later(self.command(Command::Take(name.to_owned())).map(move |d| d.map(|()| id)))
    }

    fn remove(&self, name: &str, caller: &dyn Fn() -> Caller) -> Answer<()> {
        if self.vm.forget_failed_snapshot(name) {
            return Answer::Now(Ok(()));
        }
        let vm = self.vm.clone();
        let dropped = vm.clone().drop_snapshot(name.to_owned(), caller().process());
        let told = move |done: Result<(), VmError>| {
            handle::noted(Some(&vm), done.map_err(TreeError::from))
        };
        Answer::later(dropped.map(told))
    }

    fn move_out(&self, _name: &str, to: (NodeId, &str)) -> Answer<()> {
        let another = matches!(to.0.parts(), Some((Table::Snapshots, _, None)));
        let why = if another { TreeError::OthersSnapshot } else { TreeError::BadRename };
        Answer::Now(handle::noted(Some(&self.vm), Err(why)))
    }

    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        if self.find(from).is_none() {
            return Answer::Now(Err(TreeError::BadRename));
        }
        if !is_object_name(to) {
            return Answer::Now(Err(TreeError::BadName(to.to_owned())));
        }
        let (numbers, vm) = (Arc::clone(&self.numbers), self.vm.id());
        let (old, new) = (snapshot_key(vm, from), snapshot_key(vm, to));
        let (from, to) = (from.to_owned(), to.to_owned());
        let renamed = self.command(Command::RenameSnapshot { from, to });
        // It keeps its number: who is in its directory stays there.
        Answer::later(renamed.map(move |done| done.inspect(|()| exchange(&numbers, old, new))))
    }
}

/// Removed VMs, in `.trash`.
pub(super) struct TrashNames(pub(super) Arc<Registry>);

impl Names for TrashNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        self.0.trash().get(name).map(|item| NodeId::directory(Table::Removed, item.id))
    }

    fn entries(&self) -> Vec<Entry> {
        let items = self.0.trash().list().into_iter();
        items.map(|item| Entry::directory(item.name, Table::Removed, item.id)).collect()
    }

    fn is_possible(&self, name: &str) -> bool {
        name.contains('@')
    }

    fn is_stable(&self) -> bool {
        false
    }

    fn make(&self, _name: &str) -> Answer<NodeId> {
        Answer::Now(Err(TreeError::NotOffered("`rmdir` of a VM puts it here")))
    }

    fn remove(&self, name: &str, _caller: &dyn Fn() -> Caller) -> Answer<()> {
        let erased = Registry::erase(Arc::clone(&self.0), name.to_owned());
        Answer::later(erased.map(|done| done.map_err(TreeError::from)))
    }

    fn move_out(&self, name: &str, to: (NodeId, &str)) -> Answer<()> {
        if to.0 != NodeId::ROOT {
            return Answer::Now(Err(TreeError::BadRename));
        }
        let restored = Registry::restore(Arc::clone(&self.0), name.to_owned(), to.1.to_owned());
        Answer::later(restored.map(|done| done.map_err(TreeError::from)))
    }
}
