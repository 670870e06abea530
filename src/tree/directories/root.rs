//! The mount's root: our dot files, and a directory for each VM.

use std::sync::Arc;
use std::time::SystemTime;

use futures::FutureExt;

use super::config::DEFAULTS;
use super::docs::DOCS;
use super::images::IMAGES;
use super::trash::TRASH;
use super::vm::VM;
use crate::registry::Registry;
use crate::tree::control::noted;
use crate::tree::descriptor::Descriptor;
use crate::tree::host::Host;
use crate::tree::names::{Entry, Names};
use crate::tree::node::{Body, Node};
use crate::tree::number::{DirectoryId, NodeId};
use crate::tree::owner::NodeOwner;
use crate::tree::{Answer, TreeError, metrics, render};
use crate::vm::Vm;
use crate::vm::caller::Caller;
use crate::vm::spec::is_vm_name;

/// The root. Names that are not among its rows are VMs.
pub(in crate::tree) static ROOT: Descriptor<Host> = Descriptor {
    id: DirectoryId(0),
    page: Some(""),
    mode: 0o700,
    rows: || ROWS,
    resolve: |scope, _| Ok(scope.host.clone()),
    path: |_| String::new(),
    mtime: Host::mtime,
    names: |_, host| Box::new(VmNames(Arc::clone(&host.registry))),
    members: &[&VM],
    is_slow: false,
};

static ROWS: &[Node<Host>] = &[
    Node {
        name: ".defaults",
        mode: 0o700,
        mtime: Host::mtime,
        doc: "what a new VM's settings start from, a file each",
        body: Body::Directory(&DEFAULTS),
    },
    Node {
        name: ".docs",
        mode: 0o555,
        mtime: Host::mtime,
        doc: "the documentation, a page for each file",
        body: Body::Directory(&DOCS),
    },
    Node {
        name: ".error",
        mode: 0o444,
        mtime: Host::failed,
        doc: "the newest 64 failures: time, pid, path, errno, sentence",
        body: Body::Value(|host| host.failures.print()),
    },
    Node {
        name: ".events",
        mode: 0o444,
        mtime: Host::mtime,
        doc: "what happens to VMs from now on, a line each",
        body: Body::Stream(|host, _| Ok(host.registry.backends().events.open(None))),
    },
    Node {
        name: ".host",
        mode: 0o444,
        mtime: Host::mtime,
        doc: "the host: accelerator and why, QEMU, processors, memory, store",
        body: Body::SlowValue(render::host),
    },
    Node {
        name: ".images",
        mode: 0o700,
        mtime: Host::mtime,
        doc: "what new VMs are made from: mkdir makes one, rmdir removes it",
        body: Body::Directory(&IMAGES),
    },
    Node {
        name: ".metrics",
        mode: 0o444,
        mtime: Host::mtime,
        doc: "figures for Prometheus",
        body: Body::SlowValue(metrics::print),
    },
    Node {
        name: ".trash",
        mode: 0o700,
        mtime: Host::mtime,
        doc: "removed VMs, kept for a day: mv one back, or rmdir it",
        body: Body::Directory(&TRASH),
    },
    Node {
        name: ".version",
        mode: 0o444,
        mtime: Host::mtime,
        doc: "the program's version and the daemon's pid",
        body: Body::Value(|_| render::version()),
    },
];

impl Host {
    /// Returns when a VM last came or went.
    pub(super) fn mtime(&self) -> SystemTime {
        self.registry.changed()
    }

    /// Returns when a request last failed.
    fn failed(&self) -> SystemTime {
        self.failures.changed().unwrap_or_else(|| self.mtime())
    }
}

impl NodeOwner for Host {
    fn vm(&self) -> Option<&Vm> {
        None
    }
}

/// VMs, at the root.
pub(super) struct VmNames(pub(super) Arc<Registry>);

impl Names for VmNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        self.0.get(name).map(|vm| VM.node(vm.id().0))
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |(name, vm): (String, Vm)| Entry::directory(name, VM.node(vm.id().0));
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
        let id = |vm: Vm| VM.node(vm.id().0);
        Answer::later(made.map(move |vm| vm.map(id).map_err(TreeError::from)))
    }

    fn remove(&self, name: &str, caller: &dyn Fn() -> Caller) -> Answer<()> {
        let Some(vm) = self.0.get(name) else { return Answer::Now(Err(TreeError::NotFound)) };
        let by = caller().process();
        let removed = Registry::remove(Arc::clone(&self.0), name.to_owned(), by);
        let outcome = move |done: Result<(), _>| noted(Some(&vm), done.map_err(TreeError::from));
        Answer::later(removed.map(outcome))
    }

    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        if self.0.get(from).is_none() {
            return Answer::Now(Err(TreeError::BadRename));
        }
        let done = Registry::rename(Arc::clone(&self.0), from.to_owned(), to.to_owned());
        Answer::later(done.map(|done| done.map_err(TreeError::from)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_names_at_the_root_start_with_a_dot() {
        assert!(ROWS.iter().all(|row| row.name.starts_with('.')));
    }
}
