//! The mount's root: our dot files, and a directory for each VM.

use std::sync::Arc;
use std::time::SystemTime;

use futures::TryFutureExt;

use super::config::DEFAULTS;
use super::docs::DOCS;
use super::images::IMAGES;
use super::limits::LIMITS;
use super::nets::NETS;
use super::trash::TRASH;
use super::vm::VM;
use crate::registry::Registry;
use crate::tree::descriptor::Descriptor;
use crate::tree::names::{Entry, Names};
use crate::tree::node::Node;
use crate::tree::number::NodeId;
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;
use crate::tree::{Answer, TreeError, metrics, render};
use crate::vm::Vm;
use crate::vm::caller::Caller;
use crate::vm::spec::is_vm_name;

/// The root. Names that are not among its rows are VMs.
pub(in crate::tree) static ROOT: Descriptor<Arc<Registry>> = Descriptor {
    page: Some(""),
    rows: || ROWS,
    names: |_, registry| Box::new(VmNames(Arc::clone(registry))),
    members: &[&VM],
    ..Descriptor::new(0, Scope::host, |_| String::new(), |registry| registry.changed())
};

static ROWS: &[Node<Arc<Registry>>] = &[
    Node::directory(".defaults", "what a new VM's settings start from, a file each", &DEFAULTS),
    Node {
        mode: 0o555,
        ..Node::directory(".docs", "the documentation, a page for each file", &DOCS)
    },
    Node::value(
        ".error",
        "the newest 64 failures: time, pid, path, errno, sentence",
        |registry: &Arc<Registry>| registry.backends().failures.print(),
    )
    .follows(failed),
    Node::stream(
        ".events",
        0o444,
        "what happens to VMs from now on, a line each",
        |registry, _| Ok(registry.backends().events.open(None)),
    ),
    Node::slow_value(
        ".host",
        "the host: accelerator and why, QEMU, processors, memory, store",
        render::host,
    ),
    Node::directory(
        ".images",
        "what new VMs are made from: mkdir makes one, rmdir removes it",
        &IMAGES,
    ),
    Node::directory(".limits", "what all VMs together may have, a file each", &LIMITS),
    Node::slow_value(".metrics", "figures for Prometheus", metrics::print),
    Node::directory(".nets", "subnets that VMs share: mkdir makes one, rmdir removes it", &NETS),
    Node::directory(".trash", "removed VMs, kept for a day: mv one back, or rmdir it", &TRASH),
    Node::value(".version", "the program's version and the daemon's pid", |_| render::version()),
];

fn failed(registry: &Arc<Registry>) -> SystemTime {
    registry.backends().failures.changed().unwrap_or_else(|| registry.changed())
}

impl NodeOwner for Arc<Registry> {}

pub(super) struct VmNames(pub(super) Arc<Registry>);

impl Names for VmNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        self.0.get(name).map(|vm| VM.node(vm.id().0))
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |(name, vm): (String, Vm)| Entry::directory(VM.node(vm.id().0), name);
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
        Answer::later(made.map_ok(|vm| VM.node(vm.id().0)))
    }

    fn remove(&self, name: &str, caller: &dyn Fn() -> Caller) -> Answer<()> {
        let Some(vm) = self.0.get(name) else { return Answer::Now(Err(TreeError::NotFound)) };
        let (registry, by) = (Arc::clone(&self.0), caller().process());
        Answer::noted(Some(vm), Registry::remove(registry, name.to_owned(), by))
    }

    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        if self.0.get(from).is_none() {
            return Answer::Now(Err(TreeError::BadRename));
        }
        Answer::later(Registry::rename(Arc::clone(&self.0), from.to_owned(), to.to_owned()))
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
