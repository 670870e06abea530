//! `.nets`: subnets that VMs share. Users make them with `mkdir`; `config/nets` of a VM has it join.

use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};

use super::line;
use crate::registry::Registry;
use crate::tree::descriptor::Descriptor;
use crate::tree::names::{Entry, Names};
use crate::tree::node::{Body, Node};
use crate::tree::number::{Named, NodeId, Numbers};
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;
use crate::tree::{Answer, TreeError};
use crate::vm::VmError;
use crate::vm::caller::Caller;
use crate::vm::nets::{NetInfo, Nets};
use crate::vm::spec::is_vm_name;

/// `.nets`
pub(super) static NETS: Descriptor<Arc<Registry>> = Descriptor {
    page: Some(".nets/"),
    names: |scope, registry| {
        let (nets, numbers) = (registry.backends().nets.clone(), scope.numbers.clone());
        Box::new(NetNames { nets, numbers })
    },
    members: &[&NET],
    ..Descriptor::new(
        32,
        Scope::host,
        |_| "/.nets".to_owned(),
        |registry| registry.backends().nets.changed(),
    )
};

/// `.nets/NAME`
static NET: Descriptor<NetOwner> = Descriptor {
    page: Some(".nets/NAME/"),
    rows: || ROWS,
    ..Descriptor::new(
        33,
        NetOwner::resolve,
        |net| format!("/.nets/{}", net.info.name),
        |net| net.info.created,
    )
};

static ROWS: &[Node<NetOwner>] = &[
    Node::value("hosts", "the lines that each member has in its /etc/hosts", |net: &NetOwner| {
        net.info.hosts()
    })
    .follows(NetOwner::changed),
    Node::value("members", "its members, `VM ADDRESS` a line", |net: &NetOwner| {
        net.info.members.iter().map(|(name, address)| format!("{name} {address}\n")).collect()
    })
    .follows(NetOwner::changed),
    Node::new(
        "subnet",
        0o600,
        "its addresses: 10.77.0.0/24; it can be written while there is no member",
        Body::WritableValue(NetOwner::subnet, NetOwner::set_subnet),
    )
    .follows(NetOwner::changed),
];

#[derive(Clone)]
struct NetOwner {
    nets: Nets,
    info: NetInfo,
}

impl NetOwner {
    fn resolve(scope: &Scope, number: u64) -> Result<Self, TreeError> {
        let nets = scope.registry.backends().nets.clone();
        let named = scope.numbers.named(number).ok_or(TreeError::NotFound)?;
        let info = nets.get(&named.name).ok_or(TreeError::NotFound)?;
        Ok(Self { nets, info })
    }

    fn changed(&self) -> SystemTime {
        self.nets.changed()
    }

    /// An open file shows what there is when it is read.
    fn subnet(&self) -> String {
        let now = self.nets.get(&self.info.name);
        line(&now.as_ref().unwrap_or(&self.info).subnet.to_string())
    }

    fn set_subnet(&self, text: &str) -> BoxFuture<'static, Result<(), TreeError>> {
        let nets = self.nets.clone();
        nets.set_subnet(self.info.name.clone(), text.to_owned()).err_into().boxed()
    }
}

impl NodeOwner for NetOwner {
    fn admit_removal(&self) -> Result<(), TreeError> {
        Ok(self.nets.admit_removal(&self.info.name).map_err(VmError::from)?)
    }
}

struct NetNames {
    nets: Nets,
    numbers: Numbers,
}

impl NetNames {
    fn id(&self, name: &str) -> NodeId {
        let named = Named { within: NETS.id, object: 0, name: name.to_owned() };
        NET.node(self.numbers.number(named))
    }
}

impl Names for NetNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        self.nets.get(name).map(|_| self.id(name))
    }

    fn entries(&self) -> Vec<Entry> {
        let names = self.nets.names().into_iter();
        names.map(|name| Entry::directory(self.id(&name), name)).collect()
    }

    fn is_possible(&self, name: &str) -> bool {
        is_vm_name(name)
    }

    fn make(&self, name: &str) -> Answer<NodeId> {
        let id = self.id(name);
        Answer::later(self.nets.clone().make(name.to_owned()).map_ok(move |()| id))
    }

    fn remove(&self, name: &str, _caller: &dyn Fn() -> Caller) -> Answer<()> {
        if self.nets.get(name).is_none() {
            return Answer::Now(Err(TreeError::NotFound));
        }
        Answer::later(self.nets.clone().remove(name.to_owned()))
    }
}
