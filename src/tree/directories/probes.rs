//! A VM's `probes`: files whose reading looks at a service in the guest. Every valid name is there;
//! listed are those that were read.
//!
//! A path in the guest's web server is one name, with `%2F` for each slash: the kernel asks whether a
//! name is a directory before it says that more follows (`doc/adr/0024-probes.md`).

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::tree::control::noted;
use crate::tree::descriptor::Descriptor;
use crate::tree::handle::OpenRequest;
use crate::tree::names::{Entry, Names};
use crate::tree::node::{Kind, Node};
use crate::tree::number::{NodeId, pack_in_vm, unpack_in_vm};
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;
use crate::tree::{Answer, TreeError};
use crate::vm::Vm;
use crate::vm::caller::Caller;
use crate::vm::probe::{self, Probe};
use crate::vm::state::Command;
use crate::vm::stream::{Nothing, Stream};

/// `VM/probes`
pub(super) static PROBES: Descriptor<Vm> =
    Descriptor { page: Some("VM/probes/"), rows: || ROWS, ..directory(15, |vm| under(vm, "")) };

/// `VM/probes/http`. Its names are ports.
static HTTP: Descriptor<Vm> = Descriptor {
    names: |_, vm| Box::new(PortNames(vm.clone())),
    members: &[&HTTP_PORT],
    ..directory(16, |vm| under(vm, "/http"))
};

/// `VM/probes/http/PORT`. Its names are paths. Its object is a VM's number and the port, packed.
static HTTP_PORT: Descriptor<WebServer> = Descriptor {
    names: |_, WebServer { vm, port }| {
        let port = *port;
        ProbeNames::of(vm, move |name| Probe::http(port, name), &HTTP_FILE)
    },
    members: &[&HTTP_FILE],
    ..Descriptor::new(
        17,
        WebServer::resolve,
        |server| under(&server.vm, &format!("/http/{}", server.port)),
        |server| server.vm.created(),
    )
};

/// `VM/probes/tcp`
static TCP: Descriptor<Vm> = Descriptor {
    names: |_, vm| ProbeNames::of(vm, Probe::tcp, &TCP_FILE),
    members: &[&TCP_FILE],
    ..directory(18, |vm| under(vm, "/tcp"))
};

/// `VM/probes/unit`
static UNIT: Descriptor<Vm> = Descriptor {
    names: |_, vm| ProbeNames::of(vm, Probe::unit, &UNIT_FILE),
    members: &[&UNIT_FILE],
    ..directory(19, |vm| under(vm, "/unit"))
};

static HTTP_FILE: Descriptor<ProbeOwner> = file(20, "VM/probes/http/PORT/PATH", || HTTP_ROW);
static TCP_FILE: Descriptor<ProbeOwner> = file(21, "VM/probes/tcp/PORT", || TCP_ROW);
static UNIT_FILE: Descriptor<ProbeOwner> = file(22, "VM/probes/unit/NAME", || UNIT_ROW);

static ROWS: &[Node<Vm>] = &[
    Node::directory("http", "web servers in the guest, by port", &HTTP),
    Node::directory("tcp", "ports in the guest; `ls` shows those that were read", &TCP),
    Node::directory("unit", "services of the guest, by name", &UNIT),
];
static HTTP_ROW: &[Node<ProbeOwner>] =
    &[row("asks the guest's web server for a path (`%2F` is a slash): `ok 200 12ms`, or why not")];
static TCP_ROW: &[Node<ProbeOwner>] =
    &[row("connects to a port of the guest's 127.0.0.1: `ok 3ms`, or why not")];
static UNIT_ROW: &[Node<ProbeOwner>] =
    &[row("asks systemd, OpenRC, runit or /etc/init.d for a service: `ok active 9ms`, or why not")];

const fn directory(id: u8, path: fn(&Vm) -> String) -> Descriptor<Vm> {
    Descriptor::new(id, Scope::vm, path, Vm::created)
}

/// A file with a name of its own is the one row, without a name, of a directory that has none.
const fn file(
    id: u8,
    page: &'static str,
    rows: fn() -> &'static [Node<ProbeOwner>],
) -> Descriptor<ProbeOwner> {
    Descriptor {
        page: Some(page),
        rows,
        ..Descriptor::new(
            id,
            ProbeOwner::resolve,
            |owner| under(&owner.vm, &format!("/{}", owner.probe)),
            |owner| owner.vm.created(),
        )
    }
}

const fn row(doc: &'static str) -> Node<ProbeOwner> {
    Node::stream("", 0o444, doc, ProbeOwner::open)
}

/// Says where a probe is, in one word: events and `.error` have a line for each.
fn under(vm: &Vm, path: &str) -> String {
    let odd = |c: char| c.is_whitespace() || c.is_control();
    format!("/{}/probes{}", vm.name(), path.replace(odd, "?"))
}

/// A probe as its file sees it.
#[derive(Clone)]
struct ProbeOwner {
    vm: Vm,
    probe: Probe,
}

impl ProbeOwner {
    fn resolve(scope: &Scope, object: u64) -> Result<Self, TreeError> {
        let (vm, id) = unpack_in_vm(object);
        let vm = scope.vm(vm.0)?;
        let probe = vm.probes().by_id(id).ok_or(TreeError::NotFound)?;
        Ok(Self { vm, probe })
    }

    /// A program that walks over everything asks no guest anything.
    fn open(&self, open: &OpenRequest<'_>) -> Result<Arc<dyn Stream>, TreeError> {
        match open.crawler {
            true => Ok(Arc::new(Nothing)),
            false => Ok(self.vm.open_probe(&self.probe)?),
        }
    }
}

impl NodeOwner for ProbeOwner {
    fn vm(&self) -> Option<&Vm> {
        Some(&self.vm)
    }
}

/// A port of a guest.
#[derive(Clone)]
struct WebServer {
    vm: Vm,
    port: u16,
}

impl WebServer {
    fn resolve(scope: &Scope, object: u64) -> Result<Self, TreeError> {
        let (vm, port) = unpack_in_vm(object);
        let port = u16::try_from(port).map_err(|_| TreeError::NotFound)?;
        Ok(Self { vm: scope.vm(vm.0)?, port })
    }
}

impl NodeOwner for WebServer {
    fn vm(&self) -> Option<&Vm> {
        Some(&self.vm)
    }
}

/// Reads a name.
type Parse = Box<dyn Fn(&str) -> Option<Probe>>;

/// Names of files that are probes.
struct ProbeNames {
    vm: Vm,
    parse: Parse,
    file: &'static Descriptor<ProbeOwner>,
}

impl ProbeNames {
    fn of(
        vm: &Vm,
        parse: impl Fn(&str) -> Option<Probe> + 'static,
        file: &'static Descriptor<ProbeOwner>,
    ) -> Box<dyn Names> {
        Box::new(Self { vm: vm.clone(), parse: Box::new(parse), file })
    }

    fn id(&self, probe: Probe) -> NodeId {
        self.file.node(pack_in_vm(self.vm.id(), self.vm.probes().id(probe))).row(0)
    }
}

impl Names for ProbeNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        (self.parse)(name).map(|probe| self.id(probe))
    }

    fn entries(&self) -> Vec<Entry> {
        let own = |probe: &Probe| (self.parse)(&probe.name()).as_ref() == Some(probe);
        let entry = |probe: Probe| {
            let name = probe.name();
            Entry { name, id: self.id(probe), kind: Kind::Stream }
        };
        self.vm.probes().list().into_iter().filter(own).map(entry).collect()
    }

    fn is_stable(&self) -> bool {
        false
    }
}

/// Names of directories that are ports.
struct PortNames(Vm);

impl PortNames {
    fn id(&self, port: u16) -> NodeId {
        HTTP_PORT.node(pack_in_vm(self.0.id(), u64::from(port)))
    }
}

impl Names for PortNames {
    fn find(&self, name: &str) -> Option<NodeId> {
        probe::port(name).map(|port| self.id(port))
    }

    fn entries(&self) -> Vec<Entry> {
        let port = |probe| match probe {
            Probe::Http { port, .. } => Some(port),
            Probe::Tcp(_) | Probe::Unit(_) => None,
        };
        let ports: BTreeSet<u16> = self.0.probes().list().into_iter().filter_map(port).collect();
        let entry = |port: u16| Entry::directory(self.id(port), port.to_string());
        ports.into_iter().map(entry).collect()
    }

    fn is_stable(&self) -> bool {
        false
    }

    /// As every part of a VM: nothing happens if the VM could be removed.
    fn remove(&self, _name: &str, _caller: &dyn Fn() -> Caller) -> Answer<()> {
        let admitted = self.0.would_admit(&Command::Remove);
        Answer::Now(noted(Some(&self.0), admitted.map_err(TreeError::from)))
    }
}
