//! `.trash`: removed VMs, kept for a day.

use std::sync::Arc;

use super::line;
use crate::registry::Registry;
use crate::registry::trash::Removed;
use crate::tree::descriptor::Descriptor;
use crate::tree::names::{Entry, Names};
use crate::tree::node::Node;
use crate::tree::number::NodeId;
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;
use crate::tree::{Answer, TreeError, render};
use crate::vm::caller::Caller;

/// `.trash`
pub(super) static TRASH: Descriptor<Arc<Registry>> = Descriptor {
    page: Some(".trash/"),
    names: |_, registry| Box::new(TrashNames(Arc::clone(registry))),
    members: &[&REMOVED],
    ..Descriptor::new(6, Scope::host, |_| "/.trash".to_owned(), |registry| registry.changed())
};

/// `.trash/VM@TIME`
static REMOVED: Descriptor<Removed> = Descriptor {
    page: Some(".trash/VM@TIME/"),
    rows: || ROWS,
    ..Descriptor::new(
        7,
        |scope, id| scope.registry.trash().by_id(id).ok_or(TreeError::NotFound),
        |removed| format!("/.trash/{}", removed.name),
        |removed| removed.since,
    )
};

static ROWS: &[Node<Removed>] = &[
    Node::slow_value("disk_bytes", "what its disk takes of the host's", |r| {
        line(&render::disk_bytes(&r.dir).to_string())
    }),
    Node::value("image", "the image that it was made from", |r| {
        line(&r.image.clone().unwrap_or_default())
    }),
    Node::value("removed", "when it was removed, in seconds since 1970", |r| {
        line(&render::seconds(r.since))
    }),
    Node::value("until", "when it may be erased, in seconds since 1970", |r| {
        line(&render::seconds(r.until()))
    }),
];

impl NodeOwner for Removed {
    fn admit_removal(&self) -> Result<(), TreeError> {
        Ok(())
    }
}

pub(super) struct TrashNames(pub(super) Arc<Registry>);

impl Names for TrashNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        self.0.trash().get(name).map(|item| REMOVED.node(item.id))
    }

    fn entries(&self) -> Vec<Entry> {
        let items = self.0.trash().list().into_iter();
        items.map(|item| Entry::directory(REMOVED.node(item.id), item.name)).collect()
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
        Answer::later(Registry::erase(Arc::clone(&self.0), name.to_owned()))
    }

    fn move_out(&self, name: &str, to: (NodeId, &str)) -> Answer<()> {
        if to.0 != NodeId::ROOT {
            return Answer::Now(Err(TreeError::BadRename));
        }
        Answer::later(Registry::restore(Arc::clone(&self.0), name.to_owned(), to.1.to_owned()))
    }
}
