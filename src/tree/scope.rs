//! The scope: what directories are found in, and how a node is found by its number.

use std::sync::Arc;

use super::TreeError;
use super::descriptor;
use super::directory::Directory;
use super::node::Attr;
use super::number::{NodeId, Numbers};
use crate::registry::Registry;
use crate::vm::{Vm, VmId};

#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) registry: Arc<Registry>,
    /// Numbers given to names that have none of their own.
    pub(super) numbers: Numbers,
}

impl Scope {
    /// Finds what the files at the root are about: all VMs, of which there is one number.
    pub(super) fn host(&self, _: u64) -> Result<Arc<Registry>, TreeError> {
        Ok(Arc::clone(&self.registry))
    }

    pub(super) fn vm(&self, id: u64) -> Result<Vm, TreeError> {
        self.registry.by_id(VmId(id)).ok_or(TreeError::NotFound)
    }

    pub(super) fn directory(&self, id: NodeId) -> Result<Box<dyn Directory>, TreeError> {
        match id.parts() {
            Some((kind, object, None)) => {
                descriptor::find(kind).ok_or(TreeError::NotFound)?.bind(self, object)
            }
            Some(_) => Err(TreeError::NotADirectory),
            None => Err(TreeError::NotFound),
        }
    }

    /// Finds the directory that a row's number belongs to, and the row.
    pub(super) fn row(&self, id: NodeId) -> Result<(Box<dyn Directory>, usize), TreeError> {
        match id.parts() {
            Some((kind, object, Some(row))) => {
                let kind = descriptor::find(kind).ok_or(TreeError::NotFound)?;
                Ok((kind.bind(self, object)?, row))
            }
            Some(_) => Err(TreeError::IsADirectory),
            None => Err(TreeError::NotFound),
        }
    }

    pub(super) fn attr(&self, id: NodeId) -> Result<Attr, TreeError> {
        match id.parts() {
            Some((_, _, None)) => Ok(self.directory(id)?.own_attr()),
            Some((_, _, Some(_))) | None => {
                self.row(id).and_then(|(directory, row)| directory.attr(row))
            }
        }
    }

    /// Returns a node's path in the mount; `?` for a directory whose object is gone.
    pub(super) fn path(&self, id: NodeId) -> String {
        let Some((kind, object, row)) = id.parts() else { return "/".to_owned() };
        let Some(kind) = descriptor::find(kind) else { return "?".to_owned() };
        let directory = kind.path(self, object).unwrap_or_else(|_| "?".to_owned());
        match row.and_then(|row| kind.row(row)) {
            // A row without a name is all that there is at this path.
            Some(row) if !row.name.is_empty() => format!("{directory}/{}", row.name),
            Some(_) | None => directory,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::registry::Registry;
    use crate::store::layout::Layout;
    use crate::tree::Tree;
    use crate::tree::node::Kind;
    use crate::tree::number::NodeId;
    use crate::vm::backend::SnapshotOp;
    use crate::vm::fake::{Script, backends};
    use crate::vm::state::Command;

    /// Compares the path of every node below a directory with the names that lead to it.
    fn compare(tree: &Tree, dir: NodeId, path: &str, seen: &mut Vec<String>) {
        let opened = tree.open_directory(dir).unwrap();
        for entry in tree.listing(opened.handle).unwrap().entries.iter() {
            let at = format!("{path}/{}", entry.name);
            assert_eq!(tree.lookup(dir, &entry.name).unwrap().attr.id, entry.id, "{at}");
            assert_eq!(tree.scope.path(entry.id), at);
            if entry.kind == Kind::Directory {
                compare(tree, entry.id, &at, seen);
            }
            seen.push(at);
        }
        tree.release_directory(opened.handle);
    }

    #[tokio::test]
    async fn every_node_is_found_by_its_name_and_has_its_path() {
        let (store, script) = (tempfile::tempdir().unwrap(), Arc::<Script>::default());
        let registry = Registry::open(Layout::new(store.path()), backends(&script)).await.unwrap();
        let registry = Arc::new(registry);
        let vm = Arc::clone(&registry).create("vm1".to_owned()).await.unwrap();
        vm.exec().make("build").unwrap();
        vm.perform(Command::Start { paused: false }).await.unwrap();
        vm.perform(SnapshotOp::Take("clean".to_owned()).into()).await.unwrap();
        let (tree, mut seen) = (Tree::new(registry), Vec::new());
        compare(&tree, NodeId::ROOT, "", &mut seen);
        for path in ["/vm1/config/cpus", "/vm1/jobs/build/cmd", "/vm1/snapshots/clean/status"] {
            assert!(seen.iter().any(|p| p == path), "{path} is not listed: {seen:?}");
        }
    }
}
