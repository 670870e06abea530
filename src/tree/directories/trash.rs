//! `.trash`: removed VMs, kept for a day.

use std::sync::Arc;

use futures::FutureExt;

use super::line;
use crate::registry::Registry;
use crate::registry::trash::Removed;
use crate::tree::descriptor::{Descriptor, no_names};
use crate::tree::host::Host;
use crate::tree::names::{Entry, Names};
use crate::tree::node::{Body, Node};
use crate::tree::number::{DirectoryId, NodeId};
use crate::tree::owner::NodeOwner;
use crate::tree::{Answer, TreeError, render};
use crate::vm::Vm;
use crate::vm::caller::Caller;

/// `.trash`
pub(super) static TRASH: Descriptor<Host> = Descriptor {
    id: DirectoryId(6),
    page: Some(".trash/"),
    mode: 0o700,
    rows: || &[],
    resolve: |scope, _| Ok(scope.host.clone()),
    path: |_| "/.trash".to_owned(),
    mtime: Host::mtime,
    names: |_, host| Box::new(TrashNames(Arc::clone(&host.registry))),
    members: &[&REMOVED],
    is_slow: false,
};

/// `.trash/VM@TIME`
static REMOVED: Descriptor<Removed> = Descriptor {
    id: DirectoryId(7),
    page: Some(".trash/VM@TIME/"),
    mode: 0o700,
    rows: || ROWS,
    resolve: |scope, id| scope.host.registry.trash().by_id(id).ok_or(TreeError::NotFound),
    path: |removed| format!("/.trash/{}", removed.name),
    mtime: |removed| removed.since,
    names: no_names,
    members: &[],
    is_slow: false,
};

static ROWS: &[Node<Removed>] = &[
    Node {
        name: "disk_bytes",
        mode: 0o444,
        mtime: |r| r.since,
        doc: "what its disk takes of the host's",
        body: Body::SlowValue(|r| line(&render::disk_bytes(&r.dir).to_string())),
    },
    Node {
        name: "image",
        mode: 0o444,
        mtime: |r| r.since,
        doc: "the image that it was made from",
        body: Body::Value(|r| line(&r.image().unwrap_or_default())),
    },
    Node {
        name: "removed",
        mode: 0o444,
        mtime: |r| r.since,
        doc: "when it was removed, in seconds since 1970",
        body: Body::Value(|r| line(&render::seconds(r.since))),
    },
    Node {
        name: "until",
        mode: 0o444,
        mtime: |r| r.since,
        doc: "when it may be erased, in seconds since 1970",
        body: Body::Value(|r| line(&render::seconds(r.until()))),
    },
];

impl NodeOwner for Removed {
    fn vm(&self) -> Option<&Vm> {
        None
    }

    fn admit_removal(&self) -> Result<(), TreeError> {
        Ok(())
    }
}

/// Removed VMs, in `.trash`.
pub(super) struct TrashNames(pub(super) Arc<Registry>);

impl Names for TrashNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        self.0.trash().get(name).map(|item| REMOVED.node(item.id))
    }

    fn entries(&self) -> Vec<Entry> {
        let items = self.0.trash().list().into_iter();
        items.map(|item| Entry::directory(item.name, REMOVED.node(item.id))).collect()
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
