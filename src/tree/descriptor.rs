//! Descriptors: all that the tree knows of one kind of directory.
//!
//! `directories/` has them. Lookup, listing, attributes, paths and the documentation follow from a
//! descriptor, so that a new kind of directory is one static value and a row that leads to it.

use std::sync::LazyLock;
use std::time::SystemTime;

use super::TreeError;
use super::directories::ROOT;
use super::directory::{Bound, Directory};
use super::manual::Row;
use super::names::{Names, NoNames};
use super::node::{Keep, Node};
use super::number::{DirectoryId, NodeId};
use super::owner::NodeOwner;
use super::scope::Scope;

/// One kind of directory, about a `T`.
pub(super) struct Descriptor<T: 'static> {
    /// Its part of the number of every node in it. No two kinds share one.
    pub(super) id: DirectoryId,
    /// Its path in the documentation, such as `VM/jobs/NAME/`; `None`: its rows are not listed.
    pub(super) page: Option<&'static str>,
    pub(super) mode: u16,
    pub(super) rows: fn() -> &'static [Node<T>],
    /// Finds what the directory with this object number is about.
    pub(super) resolve: fn(&Scope, u64) -> Result<T, TreeError>,
    /// Returns its path in the mount, without a slash at the end.
    pub(super) path: fn(&T) -> String,
    /// When the directory itself last changed.
    pub(super) mtime: fn(&T) -> SystemTime,
    /// The names in it that users make.
    pub(super) names: fn(&Scope, &T) -> Box<dyn Names>,
    /// The kinds of directories that those names can be.
    pub(super) members: &'static [&'static dyn AnyDescriptor],
    /// Its names, and what is below them, need a look at the disk.
    pub(super) is_slow: bool,
}

impl<T: 'static> Descriptor<T> {
    /// Describes a directory in which nobody makes a name. What else it has is said beside this, as
    /// `Descriptor { rows: || ROWS, ..Descriptor::new(…) }`.
    pub(super) const fn new(
        id: u8,
        resolve: fn(&Scope, u64) -> Result<T, TreeError>,
        path: fn(&T) -> String,
        mtime: fn(&T) -> SystemTime,
    ) -> Self {
        Self {
            id: DirectoryId(id),
            page: None,
            mode: 0o700,
            rows: || &[],
            resolve,
            path,
            mtime,
            names: |_, _| Box::new(NoNames),
            members: &[],
            is_slow: false,
        }
    }

    pub(super) fn node(&self, object: u64) -> NodeId {
        NodeId::directory(self.id, object)
    }
}

/// A [`Descriptor`] without the type of its object, so that the tree treats all of them alike.
pub(super) trait AnyDescriptor: Sync {
    fn id(&self) -> DirectoryId;
    fn bind(&'static self, scope: &Scope, object: u64) -> Result<Box<dyn Directory>, TreeError>;
    fn path(&self, scope: &Scope, object: u64) -> Result<String, TreeError>;
    fn is_slow(&self) -> bool;
    fn row(&self, row: usize) -> Option<RowInfo>;
    fn manual(&self) -> Vec<Row>;
    /// Lists the kinds of directories that are in it: what users make first, then the rows.
    fn below(&self) -> Vec<&'static dyn AnyDescriptor>;
}

/// What is the same for a row whatever the object is.
pub(super) struct RowInfo {
    pub(super) name: &'static str,
    /// Its attributes or content need a look at the disk.
    pub(super) is_slow: bool,
    pub(super) keep: Keep,
}

impl<T: NodeOwner> AnyDescriptor for Descriptor<T> {
    fn id(&self) -> DirectoryId {
        self.id
    }

    fn bind(&'static self, scope: &Scope, object: u64) -> Result<Box<dyn Directory>, TreeError> {
        let owner = (self.resolve)(scope, object)?;
        let names = (self.names)(scope, &owner);
        Ok(Box::new(Bound { kind: self, object, owner, names, scope: scope.clone() }))
    }

    fn path(&self, scope: &Scope, object: u64) -> Result<String, TreeError> {
        (self.resolve)(scope, object).map(|owner| (self.path)(&owner))
    }

    fn is_slow(&self) -> bool {
        self.is_slow
    }

    fn row(&self, row: usize) -> Option<RowInfo> {
        let node = (self.rows)().get(row)?;
        Some(RowInfo { name: node.name, is_slow: node.body.is_slow(), keep: node.body.keep() })
    }

    fn manual(&self) -> Vec<Row> {
        let Some(page) = self.page else { return Vec::new() };
        let row = |node: &Node<T>| Row {
            path: format!("{page}{}", node.name),
            mode: node.mode,
            kind: node.body.kind().name(),
            doc: node.doc,
        };
        (self.rows)().iter().map(row).collect()
    }

    fn below(&self) -> Vec<&'static dyn AnyDescriptor> {
        let rows = (self.rows)().iter().filter_map(|node| node.body.directory());
        self.members.iter().copied().chain(rows).collect()
    }
}

/// All kinds, in the order of the documentation: what is reachable from the root.
pub(super) static KINDS: LazyLock<Vec<&'static dyn AnyDescriptor>> = LazyLock::new(|| {
    fn walk(kind: &'static dyn AnyDescriptor, found: &mut Vec<&'static dyn AnyDescriptor>) {
        found.push(kind);
        kind.below().into_iter().for_each(|kind| walk(kind, found));
    }
    let mut found = Vec::new();
    walk(&ROOT, &mut found);
    found
});

/// The kinds by their number: every request that names a node looks here.
static BY_ID: LazyLock<[Option<&'static dyn AnyDescriptor>; 256]> = LazyLock::new(|| {
    let mut by_id = [None; 256];
    KINDS.iter().for_each(|kind| by_id[usize::from(kind.id().0)] = Some(*kind));
    by_id
});

pub(super) fn find(id: DirectoryId) -> Option<&'static dyn AnyDescriptor> {
    BY_ID[usize::from(id.0)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_kinds_share_a_number() {
        let numbers: BTreeSet<u8> = KINDS.iter().map(|kind| kind.id().0).collect();
        assert_eq!(numbers.len(), KINDS.len());
        assert_eq!(ROOT.node(0), NodeId::ROOT);
    }
}
