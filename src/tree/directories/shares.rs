//! A VM's `shares`: directories of the host that its guest has. Users make them with `mkdir`.

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
use crate::vm::shares::{Field, Share, is_name};
use crate::vm::{Vm, VmError};

/// `VM/shares`
pub(super) static SHARES: Descriptor<Vm> = Descriptor {
    page: Some("VM/shares/"),
    names: |scope, vm| Box::new(ShareNames { vm: vm.clone(), numbers: scope.numbers.clone() }),
    members: &[&SHARE],
    ..Descriptor::new(30, Scope::vm, |vm| format!("/{}/shares", vm.name()), changed)
};

/// `VM/shares/NAME`
static SHARE: Descriptor<ShareOwner> = Descriptor {
    page: Some("VM/shares/NAME/"),
    rows: || ROWS,
    ..Descriptor::new(
        31,
        ShareOwner::resolve,
        |s| format!("/{}/shares/{}", s.vm.name(), s.share.name),
        |s| s.share.created(),
    )
};

static ROWS: &[Node<ShareOwner>] = &[
    value(
        "cache",
        "seconds for which the guest takes names and attributes to be as they were",
        |s| s.text(Field::Cache),
        |s, text| s.set(Field::Cache, text),
    ),
    value(
        "mode",
        "`rw`, or `ro`: the guest only reads",
        |s| s.text(Field::Mode),
        |s, text| s.set(Field::Mode, text),
    ),
    value(
        "source",
        "the directory of the host, an absolute path: `echo \"$PWD\" > source`",
        |s| s.text(Field::Source),
        |s, text| s.set(Field::Source, text),
    ),
    Node::slow_value("status", "`mounted`, or why the guest does not have it", |s: &ShareOwner| {
        line(&s.share.status(s.vm.state().is_off()))
    })
    .follows(|s| changed(&s.vm)),
    value(
        "target",
        "where the guest has it, an absolute path; by default /mnt/NAME",
        |s| s.text(Field::Target),
        |s, text| s.set(Field::Target, text),
    ),
];

const fn value(
    name: &'static str,
    doc: &'static str,
    render: fn(&ShareOwner) -> String,
    set: fn(&ShareOwner, &str) -> BoxFuture<'static, Result<(), TreeError>>,
) -> Node<ShareOwner> {
    Node::new(name, 0o600, doc, Body::WritableValue(render, set)).follows(|s| changed(&s.vm))
}

/// Returns when a share came, went or changed.
fn changed(vm: &Vm) -> SystemTime {
    vm.shares().changed().max(vm.created())
}

#[derive(Clone)]
struct ShareOwner {
    vm: Vm,
    share: Share,
}

impl ShareOwner {
    fn resolve(scope: &Scope, number: u64) -> Result<Self, TreeError> {
        let Named { object, name, .. } = scope.numbers.named(number).ok_or(TreeError::NotFound)?;
        let vm = scope.vm(object)?;
        let share = vm.shares().get(&name).ok_or(TreeError::NotFound)?;
        Ok(Self { vm, share })
    }

    /// An open file shows what there is when it is read.
    fn text(&self, field: Field) -> String {
        let now = self.vm.shares().get(&self.share.name);
        let text = now.as_ref().unwrap_or(&self.share).text(field);
        if text.is_empty() { text } else { text + "\n" }
    }

    fn set(&self, field: Field, text: &str) -> BoxFuture<'static, Result<(), TreeError>> {
        let shares = self.vm.shares().clone();
        shares.set(self.share.name.clone(), field, text.to_owned()).err_into().boxed()
    }
}

impl NodeOwner for ShareOwner {
    fn vm(&self) -> Option<&Vm> {
        Some(&self.vm)
    }

    fn admit_removal(&self) -> Result<(), TreeError> {
        Ok(())
    }
}

struct ShareNames {
    vm: Vm,
    numbers: Numbers,
}

impl ShareNames {
    fn named(&self, name: &str) -> Named {
        Named { within: SHARES.id, object: self.vm.id().0, name: name.to_owned() }
    }

    fn id(&self, name: &str) -> NodeId {
        SHARE.node(self.numbers.number(self.named(name)))
    }

    fn noted(
        &self,
        done: impl Future<Output = Result<(), VmError>> + Send + 'static,
    ) -> Answer<()> {
        Answer::noted(Some(self.vm.clone()), done)
    }
}

impl Names for ShareNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        self.vm.shares().get(name).map(|_| self.id(name))
    }

    fn entries(&self) -> Vec<Entry> {
        let names = self.vm.shares().names().into_iter();
        names.map(|name| Entry::directory(self.id(&name), name)).collect()
    }

    fn is_possible(&self, name: &str) -> bool {
        is_name(name)
    }

    fn is_stable(&self) -> bool {
        false
    }

    fn make(&self, name: &str) -> Answer<NodeId> {
        if !is_name(name) {
            return Answer::Now(noted(Some(&self.vm), Err(TreeError::BadName(name.to_owned()))));
        }
        let id = self.id(name);
        let made = self.noted(self.vm.shares().clone().make(name.to_owned()));
        made.map(move |done| done.map(|()| id))
    }

    /// In any state of the VM but one in which it is protected.
    fn remove(&self, name: &str, caller: &dyn Fn() -> Caller) -> Answer<()> {
        self.noted(self.vm.shares().clone().remove(name.to_owned(), caller().process()))
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
        let renamed = self.noted(self.vm.shares().clone().rename(from.into(), to.into()));
        // It keeps its number: a process in its directory stays there.
        renamed.map(move |done| done.inspect(|()| numbers.exchange(old, new)))
    }
}
