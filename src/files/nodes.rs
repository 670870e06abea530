//! The numbers of files: which path each stands for. SFTP has no numbers of its own.
//!
//! A number follows from the path at which a file was first found, so that a file that the kernel has
//! forgotten gets the same one again; it stays with the file when that is renamed through the mount.
//! What the kernel has forgotten is dropped.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::Instant;

use parking_lot::Mutex;

use super::siblings::TTL;
use crate::vm::VmId;

/// A file's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId(pub(crate) u64);

/// The directory of all VMs.
pub(crate) const ROOT: FileId = FileId(1);

/// The bits of a mode that say what a file is.
const KIND: u32 = 0o170_000;

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) vm: VmId,
    /// Absolute.
    pub(crate) path: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Nodes(Mutex<Table>);

type Name = (FileId, Vec<u8>);

#[derive(Debug, Default)]
struct Table {
    nodes: HashMap<FileId, Node>,
    names: HashMap<Name, FileId>,
    /// When the kernel was last told of any.
    told: Option<Instant>,
}

#[derive(Debug)]
struct Node {
    /// Its names, each with its directory; none: it was removed.
    names: Vec<Name>,
    /// The root of this VM.
    vm: Option<VmId>,
    kind: u32,
    /// How often the kernel was told of it.
    lookups: u64,
    /// Nodes in it: their paths lead through it.
    children: usize,
    /// When the kernel was last told its attributes.
    told: Instant,
}

impl Nodes {
    /// Notes that the kernel is told of a VM's root.
    pub(super) fn note_root(&self, vm: VmId) -> FileId {
        let name = vm.0.to_be_bytes().to_vec();
        self.0.lock().note((ROOT, name), 0o040_000, Some(vm))
    }

    /// Notes that the kernel is told of a file.
    pub(super) fn note(&self, directory: FileId, name: &[u8], mode: u32) -> FileId {
        self.0.lock().note((directory, name.to_vec()), mode & KIND, None)
    }

    /// Returns the number that a file would have.
    pub(super) fn number(&self, directory: FileId, name: &[u8]) -> FileId {
        let (table, at) = (self.0.lock(), (directory, name.to_vec()));
        table.names.get(&at).copied().unwrap_or_else(|| table.free(&at))
    }

    /// Notes that the kernel is told of the attributes of a file that it knows.
    pub(super) fn note_attr(&self, id: FileId) {
        let (mut table, now) = (self.0.lock(), Instant::now());
        table.told = Some(now);
        if let Some(node) = table.nodes.get_mut(&id) {
            node.told = now;
        }
    }

    /// Lists the files whose attributes the kernel may remember.
    pub(super) fn remembered(&self) -> Vec<FileId> {
        // A reply takes its time to the kernel, which counts from there.
        let (table, now) = (self.0.lock(), Instant::now());
        let is_remembered = |told: Instant| now.duration_since(told) < 2 * TTL;
        if !table.told.is_some_and(is_remembered) {
            return Vec::new();
        }
        let all = table.nodes.iter().filter(|(_, node)| is_remembered(node.told));
        all.map(|(&id, _)| id).collect()
    }

    /// Takes back so many notes.
    pub(super) fn forget(&self, id: FileId, lookups: u64) {
        let mut table = self.0.lock();
        if let Some(node) = table.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(lookups);
        }
        table.drop_unused(id);
    }

    /// Finds where a file is; `None` for the directory of all VMs and for what is gone.
    pub(super) fn place(&self, id: FileId) -> Option<Place> {
        let table = self.0.lock();
        let (mut names, mut at) = (Vec::new(), table.nodes.get(&id)?);
        while at.vm.is_none() {
            let (directory, name) = at.names.first()?;
            names.push(name.as_slice());
            at = table.nodes.get(directory)?;
        }
        let mut path = Vec::new();
        names.iter().rev().for_each(|name| {
            path.push(b'/');
            path.extend_from_slice(name);
        });
        if path.is_empty() {
            path.push(b'/');
        }
        Some(Place { vm: at.vm?, path })
    }

    /// Says whether a file is what it was: another kind under the same name is another file.
    pub(super) fn is_kind(&self, id: FileId, mode: u32) -> bool {
        self.0.lock().nodes.get(&id).is_none_or(|node| node.kind == mode & KIND)
    }

    /// A name is gone.
    pub(super) fn remove(&self, directory: FileId, name: &[u8]) {
        self.0.lock().detach(&(directory, name.to_vec()));
    }

    pub(super) fn rename(&self, from: (FileId, &[u8]), to: (FileId, &[u8])) {
        let (from, to) = ((from.0, from.1.to_vec()), (to.0, to.1.to_vec()));
        let mut table = self.0.lock();
        if from == to {
            return;
        }
        table.detach(&to);
        let Some(id) = table.names.remove(&from) else { return };
        table.leave(from.0);
        table.enter(to.0);
        table.names.insert(to.clone(), id);
        if let Some(node) = table.nodes.get_mut(&id) {
            node.names.retain(|name| *name != from);
            node.names.push(to);
        }
        table.drop_unused(from.0);
    }

    /// A file has one more name, under which the kernel is told of it next: both have its number, as
    /// programs compare them.
    pub(super) fn link(&self, id: FileId, directory: FileId, name: &[u8]) {
        let (mut table, name) = (self.0.lock(), (directory, name.to_vec()));
        table.detach(&name);
        let Some(node) = table.nodes.get_mut(&id) else { return };
        node.names.push(name.clone());
        table.enter(directory);
        table.names.insert(name, id);
    }
}

impl Table {
    fn note(&mut self, at: (FileId, Vec<u8>), kind: u32, vm: Option<VmId>) -> FileId {
        let told = Instant::now();
        self.told = Some(told);
        if let Some(&id) = self.names.get(&at)
            && let Some(node) = self.nodes.get_mut(&id)
        {
            if node.kind == kind {
                node.lookups += 1;
                node.told = told;
                return id;
            }
            self.detach(&at);
        }
        let id = self.free(&at);
        self.enter(at.0);
        self.names.insert(at.clone(), id);
        self.nodes.insert(id, Node { names: vec![at], vm, kind, lookups: 1, children: 0, told });
        id
    }

    /// Finds a number that is not taken: the first that the path gives.
    fn free(&self, at: &(FileId, Vec<u8>)) -> FileId {
        let number = |attempt: u32| {
            let mut hasher = DefaultHasher::new();
            (at.0, &at.1, attempt).hash(&mut hasher);
            FileId(hasher.finish())
        };
        let taken = |id: &FileId| id.0 <= ROOT.0 || self.nodes.contains_key(id);
        (0..).map(number).find(|id| !taken(id)).unwrap_or(ROOT)
    }

    fn enter(&mut self, directory: FileId) {
        if let Some(node) = self.nodes.get_mut(&directory) {
            node.children += 1;
        }
    }

    fn leave(&mut self, directory: FileId) {
        if let Some(node) = self.nodes.get_mut(&directory) {
            node.children -= 1;
        }
    }

    fn detach(&mut self, at: &(FileId, Vec<u8>)) {
        let Some(id) = self.names.remove(at) else { return };
        self.leave(at.0);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.retain(|name| name != at);
        }
        self.drop_unused(id);
        self.drop_unused(at.0);
    }

    /// Drops a node that neither the kernel nor a path needs, and then those that led to it.
    fn drop_unused(&mut self, id: FileId) {
        let mut unsure = vec![id];
        while let Some(id) = unsure.pop() {
            let is_used = |node: &Node| node.lookups > 0 || node.children > 0;
            if self.nodes.get(&id).is_none_or(is_used) {
                continue;
            }
            let Some(node) = self.nodes.remove(&id) else { continue };
            for name in node.names {
                self.names.remove(&name);
                self.leave(name.0);
                unsure.push(name.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: u32 = 0o040_755;
    const FILE: u32 = 0o100_644;

    fn path(nodes: &Nodes, id: FileId) -> String {
        let place = nodes.place(id);
        place.map_or_else(|| "none".into(), |p| String::from_utf8(p.path).unwrap())
    }

    #[test]
    fn a_renamed_directory_takes_its_files_along() {
        let nodes = Nodes::default();
        let root = nodes.note_root(VmId(3));
        let dir = nodes.note(root, b"etc", DIR);
        let file = nodes.note(dir, b"hosts", FILE);
        assert_eq!((path(&nodes, root), path(&nodes, file)), ("/".into(), "/etc/hosts".into()));
        nodes.rename((root, b"etc"), (root, b"old"));
        assert_eq!(path(&nodes, file), "/old/hosts");
        let other = nodes.note(root, b"etc", DIR);
        assert_ne!(other, dir);
        nodes.rename((root, b"old"), (root, b"etc"));
        assert_eq!((path(&nodes, file), path(&nodes, other)), ("/etc/hosts".into(), "none".into()));
    }

    #[test]
    fn what_is_forgotten_is_dropped_and_gets_its_number_again() {
        let nodes = Nodes::default();
        let root = nodes.note_root(VmId(3));
        let dir = nodes.note(root, b"etc", DIR);
        let file = nodes.note(dir, b"hosts", FILE);
        assert_eq!(nodes.note(dir, b"hosts", FILE), file);
        nodes.forget(dir, 1);
        assert_eq!(path(&nodes, file), "/etc/hosts", "a path leads through it");
        nodes.forget(file, 2);
        nodes.forget(root, 1);
        assert!(nodes.0.lock().nodes.is_empty() && nodes.0.lock().names.is_empty());
        let root = nodes.note_root(VmId(3));
        let dir = nodes.note(root, b"etc", DIR);
        assert_eq!(nodes.note(dir, b"hosts", FILE), file);
    }

    #[test]
    fn a_file_with_two_names_has_one_number_until_both_are_gone() {
        let nodes = Nodes::default();
        let root = nodes.note_root(VmId(3));
        let file = nodes.note(root, b"a", FILE);
        nodes.link(file, root, b"b");
        assert_eq!(nodes.note(root, b"b", FILE), file);
        nodes.remove(root, b"a");
        assert_eq!(path(&nodes, file), "/b");
        nodes.rename((root, b"b"), (root, b"c"));
        assert_eq!(path(&nodes, file), "/c");
        nodes.remove(root, b"c");
        assert_eq!(path(&nodes, file), "none");
        nodes.forget(file, 2);
        nodes.forget(root, 1);
        assert!(nodes.0.lock().nodes.is_empty() && nodes.0.lock().names.is_empty());
    }

    #[test]
    fn what_the_kernel_was_told_of_lately_may_be_remembered() {
        let nodes = Nodes::default();
        assert!(nodes.remembered().is_empty());
        let root = nodes.note_root(VmId(3));
        let file = nodes.note(root, b"x", FILE);
        let mut told = nodes.remembered();
        told.sort_by_key(|id| *id != root);
        assert_eq!(told, [root, file]);
        let long_ago = Instant::now().checked_sub(2 * TTL).unwrap();
        nodes.0.lock().nodes.values_mut().for_each(|node| node.told = long_ago);
        assert!(nodes.remembered().is_empty());
        nodes.note_attr(file);
        assert_eq!(nodes.remembered(), [file]);
    }

    #[test]
    fn another_kind_under_the_same_name_is_another_file() {
        let nodes = Nodes::default();
        let root = nodes.note_root(VmId(3));
        let file = nodes.note(root, b"x", FILE);
        let dir = nodes.note(root, b"x", DIR);
        assert!(file != dir && nodes.is_kind(dir, DIR) && !nodes.is_kind(dir, FILE));
        assert_eq!((path(&nodes, file), path(&nodes, dir)), ("none".into(), "/x".into()));
        nodes.remove(root, b"x");
        assert_eq!(path(&nodes, dir), "none");
        nodes.forget(file, 1);
        nodes.forget(dir, 1);
        nodes.forget(root, 1);
        assert!(nodes.0.lock().nodes.is_empty());
    }
}
