//! Nets: several VMs on one subnet, each by a network device of its own on a switch. Which there are, who is a
//! member, and under which address; `nets.json` keeps that.
//!
//! Who is a member follows from the setting `nets` of each VM. Not here: the switches that run (`running`), the
//! guests (`follow`), QEMU's devices (`qemu`).

mod follow;
mod running;
mod stored;
mod subnet;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

pub use self::follow::NetAttachment;
use self::running::RunningSwitch;
use self::stored::{Net, Stored};
pub use self::subnet::Subnet;
use super::backend::{NicPlace, Switches};
use super::driver::off_thread;
use super::spec::is_vm_name;
use super::spec::net::Mac;
use super::state;
use super::{Vm, VmError};
use crate::store::failure_log::FailureLog;
use crate::store::layout::Layout;

/// Why something asked of a net was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error's sentence says it")]
pub enum NetError {
    #[error("no net named {0}; `mkdir .nets/{0}` makes it")]
    Absent(String),
    #[error("net {0} exists already")]
    Exists(String),
    #[error(
        "{0:?} is not a net's name: at most 32 lower-case letters, digits and dashes, no dash first"
    )]
    BadName(String),
    #[error("net {net} has members: {members}; `echo none > VM/config/nets` has one leave")]
    HasMembers { net: String, members: String },
    #[error("subnet {text:?}: {why}")]
    Subnet { text: String, why: String },
    #[error("subnet {subnet}: net {other} has a part of it; take another")]
    Overlaps { subnet: Subnet, other: String },
    #[error("no 10.X.Y.0/24 is free for net {0}; remove another net first")]
    NoSubnet(String),
    #[error(
        "the machine has no port for net {0}: four are for nets and disks together; `rmdir` a disk first"
    )]
    NoPort(String),
    #[error("net {net} is full: {subnet} has room for {room} members")]
    Full { net: String, subnet: Subnet, room: u32 },
}

/// The nets of a store.
#[derive(Clone, Debug)]
pub struct Nets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    switches: Arc<dyn Switches>,
    state: Mutex<State>,
    /// Held while the file is written.
    writing: tokio::sync::Mutex<()>,
    /// Held while a switch is started or ended.
    switching: tokio::sync::Mutex<()>,
    /// Counts the changes of what guests are to have.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    stored: Stored,
    vms: BTreeMap<Uuid, Member>,
    /// The switches, by the name of their net.
    running: BTreeMap<String, RunningSwitch>,
    next_switch: u64,
    changed: SystemTime,
}

/// A VM as far as nets need to know it.
#[derive(Debug, Default)]
struct Member {
    name: String,
    runs: bool,
    wanted: Vec<String>,
}

/// A net as its directory shows it.
#[derive(Clone, Debug)]
pub struct NetInfo {
    pub(crate) name: String,
    /// Its addresses.
    pub subnet: Subnet,
    /// Its members with their addresses, by name.
    pub members: Vec<(String, Ipv4Addr)>,
    pub(crate) created: SystemTime,
}

impl NetInfo {
    /// Prints the lines that each member has in its `/etc/hosts`.
    pub fn hosts(&self) -> String {
        let line = |(name, address): &(String, Ipv4Addr)| {
            format!("{address} {name} {name}.{}\n", self.name)
        };
        self.members.iter().map(line).collect()
    }
}

/// What a guest is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::vm) struct Wanted {
    nics: Vec<Nic>,
    hosts: String,
    /// Nets that its VM wants to be a member of and that are not there.
    missing: Vec<String>,
}

/// A network device that a guest is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Nic {
    net: String,
    place: NicPlace,
    mac: Mac,
    address: Ipv4Addr,
    prefix: u8,
}

impl Nets {
    /// Reads those of a store. A file that is damaged is put aside.
    pub fn open(layout: &Layout, switches: Arc<dyn Switches>, failures: &FailureLog) -> Self {
        let stored = Stored::read(&layout.nets_file(), failures);
        let state = State {
            stored,
            vms: BTreeMap::new(),
            running: BTreeMap::new(),
            next_switch: 0,
            changed: SystemTime::now(),
        };
        Self(Arc::new(Inner {
            layout: layout.clone(),
            switches,
            state: Mutex::new(state),
            writing: tokio::sync::Mutex::default(),
            switching: tokio::sync::Mutex::default(),
            changes: watch::Sender::new(0),
        }))
    }

    /// Lists their names.
    pub fn names(&self) -> Vec<String> {
        self.0.state.lock().stored.nets.keys().cloned().collect()
    }

    /// Finds one.
    pub fn get(&self, name: &str) -> Option<NetInfo> {
        let state = self.0.state.lock();
        state.stored.nets.get(name).map(|net| state.info(name, net))
    }

    /// Returns when one last came, went, or changed.
    pub fn changed(&self) -> SystemTime {
        self.0.state.lock().changed
    }

    /// Makes one, with a subnet that nothing else here has.
    ///
    /// # Errors
    /// There is one of that name, it cannot have that name, no subnet is free; or what the disk answered.
    pub async fn make(self, name: String) -> Result<(), VmError> {
        let switches = Arc::clone(&self.0.switches);
        self.change(move |stored| {
            if !is_vm_name(&name) {
                return Err(NetError::BadName(name));
            }
            if stored.nets.contains_key(&name) {
                return Err(NetError::Exists(name));
            }
            let mut taken: Vec<Subnet> = stored.subnets_beside("").collect();
            taken.extend(switches.host_networks().into_iter().map(Subnet::of_host));
            let subnet = Subnet::free(&taken).ok_or_else(|| NetError::NoSubnet(name.clone()))?;
            stored.nets.insert(name, Net::new(subnet));
            Ok(())
        })
        .await
    }

    /// Removes one that has no members.
    ///
    /// # Errors
    /// There is none, or it has members; or what the disk answered.
    pub async fn remove(self, name: String) -> Result<(), VmError> {
        self.admit_removal(&name)?;
        let removed = name.clone();
        let remove = move |stored: &mut Stored| {
            no_members(&removed, stored.get(&removed)?)?;
            stored.nets.remove(&removed);
            Ok(())
        };
        self.clone().change(remove).await?;
        self.end_switch(&name).await;
        Ok(())
    }

    /// Says whether one can be removed now.
    ///
    /// # Errors
    /// There is none, or it has members.
    pub fn admit_removal(&self, name: &str) -> Result<(), NetError> {
        let state = self.0.state.lock();
        let info = state.info(name, state.stored.get(name)?);
        match info.members.is_empty() {
            true => Ok(()),
            false => Err(info.has_members()),
        }
    }

    /// Gives one that has no members another subnet. Empty text changes nothing.
    ///
    /// # Errors
    /// It is not accepted; there is no such net, or it has members; or what the disk answered.
    pub async fn set_subnet(self, name: String, text: String) -> Result<(), VmError> {
        if text.trim().is_empty() {
            return Ok(());
        }
        let subnet: Subnet = text.trim().parse()?;
        if subnet == self.get(&name).ok_or_else(|| NetError::Absent(name.clone()))?.subnet {
            return Ok(());
        }
        self.admit_removal(&name)?;
        self.change(move |stored| {
            no_members(&name, stored.get(&name)?)?;
            let nets = stored.nets.iter().filter(|(other, _)| **other != name);
            let clash = nets.into_iter().find(|(_, net)| net.subnet.overlaps(subnet));
            if let Some((other, _)) = clash {
                return Err(NetError::Overlaps { subnet, other: other.clone() });
            }
            stored.get_mut(&name)?.subnet = subnet;
            Ok(())
        })
        .await
    }

    /// Has a VM be a member of these nets, and of no others.
    ///
    /// # Errors
    /// One of them is not there, or is full; or what the disk answered. It is a member of what it was before.
    pub(in crate::vm) async fn place(&self, vm: &Vm, wanted: &[String]) -> Result<(), VmError> {
        let (uuid, nets, taken) = (vm.uuid(), wanted.to_vec(), vm.disks().ports());
        self.note(vm, wanted);
        self.clone().change(move |stored| stored.place(uuid, &nets, &taken)).await
    }

    /// Frees the addresses of a VM that is removed.
    ///
    /// # Errors
    /// What the disk answered; the next daemon frees them then.
    pub async fn forget(&self, uuid: Uuid) -> Result<(), VmError> {
        self.0.state.lock().vms.remove(&uuid);
        let is_member = |net: &Net| net.leases.contains_key(&uuid);
        if !self.0.state.lock().stored.nets.values().any(is_member) {
            return Ok(());
        }
        self.clone().change(move |stored| stored.place(uuid, &[], &[])).await?;
        self.end_idle_switches().await;
        Ok(())
    }

    /// All VMs of the store are known now: frees the addresses of those that are not there any more, and ends the
    /// switches that an earlier daemon has left and that nobody needs.
    pub async fn settle(&self) {
        let gone: Vec<Uuid> = {
            let state = self.0.state.lock();
            let members = state.stored.nets.values().flat_map(|net| net.leases.keys());
            members.filter(|uuid| !state.vms.contains_key(uuid)).copied().collect()
        };
        for uuid in gone {
            if let Err(error) = self.forget(uuid).await {
                tracing::warn!(%uuid, %error, "its addresses stay taken");
            }
        }
        self.adopt_switches().await;
        self.end_idle_switches().await;
    }

    /// Takes note of a VM's name, of whether it runs, and of the nets that it wants.
    fn note(&self, vm: &Vm, wanted: &[String]) {
        let mut state = self.0.state.lock();
        let member = state.vms.entry(vm.uuid()).or_default();
        member.name = vm.name();
        member.wanted = wanted.to_vec();
    }

    /// Takes note of another name of a VM.
    pub(in crate::vm) fn renamed(&self, uuid: Uuid, name: &str) {
        if let Some(member) = self.0.state.lock().vms.get_mut(&uuid) {
            name.clone_into(&mut member.name);
        }
        self.0.tell();
    }

    /// Takes note of whether a VM runs: a switch is there for those that do.
    pub(in crate::vm) fn runs(&self, uuid: Uuid, runs: bool) {
        self.0.state.lock().vms.entry(uuid).or_default().runs = runs;
        if !runs && !self.0.state.lock().running.is_empty() {
            let nets = self.clone();
            tokio::spawn(async move { nets.end_idle_switches().await });
        }
    }

    /// Returns what the guest of a VM is to have.
    pub(in crate::vm) fn wanted(&self, uuid: Uuid) -> Wanted {
        self.0.state.lock().wanted(uuid)
    }

    /// Lists where the machine of a VM has a device for each of its nets.
    pub(in crate::vm) fn places(&self, uuid: Uuid) -> Vec<NicPlace> {
        self.wanted(uuid).nics.into_iter().map(|nic| nic.place).collect()
    }

    /// Lists a VM's nets with its address in each.
    pub(in crate::vm) fn addresses(&self, uuid: Uuid) -> Vec<(String, Ipv4Addr)> {
        self.wanted(uuid).nics.into_iter().map(|nic| (nic.net, nic.address)).collect()
    }

    /// Changes them on disk, and tells those whom it concerns.
    async fn change(
        self,
        edit: impl FnOnce(&mut Stored) -> Result<(), NetError> + Send + 'static,
    ) -> Result<(), VmError> {
        let _turn = self.0.writing.lock().await;
        let inner = Arc::clone(&self.0);
        let write = move || {
            let old = inner.state.lock().stored.clone();
            let mut new = old.clone();
            if let Err(error) = edit(&mut new) {
                return Ok(Err(error));
            }
            if new != old {
                new.write(&inner.layout.nets_file())?;
                let mut state = inner.state.lock();
                (state.stored, state.changed) = (new, SystemTime::now());
            }
            Ok(Ok(()))
        };
        off_thread(write, "the list of nets").await??;
        self.0.tell();
        Ok(())
    }
}

impl Vm {
    /// Takes its place in its nets, at the start of the daemon or of the VM's life.
    pub(in crate::vm) fn enter_nets(&self) {
        let (nets, spec) = (&self.0.backends.nets, self.spec());
        nets.note(self, &spec.nets);
        let is_broken = matches!(self.state(), state::State::Broken(_));
        if !is_broken && (!spec.nets.is_empty() || !nets.places(self.uuid()).is_empty()) {
            let vm = self.clone();
            tokio::spawn(async move { vm.place_in_nets().await });
        }
    }

    /// Takes its place in its nets, and returns where it has devices for them. A net that is not there, or is
    /// full, is no reason not to start.
    pub(in crate::vm) async fn place_in_nets(&self) -> Vec<NicPlace> {
        let (nets, wanted) = (&self.0.backends.nets, &self.spec().nets);
        let is_there = |net: &&String| nets.get(net).is_some();
        let there: Vec<String> = wanted.iter().filter(is_there).cloned().collect();
        if let Err(error) = nets.place(self, &there).await {
            self.note_outcome(Err::<(), _>(error));
        }
        nets.note(self, wanted);
        nets.places(self.uuid())
    }

    /// Lists its nets, with its address in each.
    pub fn nets(&self) -> Vec<(String, Ipv4Addr)> {
        self.0.backends.nets.addresses(self.uuid())
    }
}

impl Inner {
    fn tell(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn dir(&self, net: &str) -> PathBuf {
        self.layout.nets().join(net)
    }
}

impl State {
    fn info(&self, name: &str, net: &Net) -> NetInfo {
        let member = |(uuid, lease): (&Uuid, &stored::Lease)| {
            let name = self.vms.get(uuid).map(|vm| vm.name.clone());
            (name.unwrap_or_else(|| uuid.to_string()), lease.address)
        };
        let mut members: Vec<_> = net.leases.iter().map(member).collect();
        members.sort_unstable();
        NetInfo { name: name.to_owned(), subnet: net.subnet, members, created: net.created }
    }

    fn wanted(&self, uuid: Uuid) -> Wanted {
        let mut wanted = Wanted::default();
        for (name, net) in &self.stored.nets {
            let Some(lease) = net.leases.get(&uuid) else { continue };
            wanted.nics.push(Nic {
                net: name.clone(),
                place: NicPlace(lease.slot),
                mac: Mac::of_address(lease.address),
                address: lease.address,
                prefix: net.subnet.prefix(),
            });
            wanted.hosts.push_str(&self.info(name, net).hosts());
        }
        let of_vm = self.vms.get(&uuid).map(|vm| vm.wanted.clone()).unwrap_or_default();
        let is_there = |name: &String| self.stored.nets.contains_key(name);
        wanted.missing = of_vm.into_iter().filter(|name| !is_there(name)).collect();
        wanted
    }

    /// Says whether a VM that runs is a member.
    fn is_used(&self, net: &str) -> bool {
        let runs = |uuid: &Uuid| self.vms.get(uuid).is_some_and(|vm| vm.runs);
        self.stored.nets.get(net).is_some_and(|net| net.leases.keys().any(runs))
    }
}

impl NetInfo {
    fn has_members(&self) -> NetError {
        let names: Vec<&str> = self.members.iter().map(|(name, _)| name.as_str()).collect();
        NetError::HasMembers { net: self.name.clone(), members: names.join(", ") }
    }
}

fn no_members(name: &str, net: &Net) -> Result<(), NetError> {
    match net.leases.is_empty() {
        true => Ok(()),
        false => {
            let members = format!("{} of them", net.leases.len());
            Err(NetError::HasMembers { net: name.to_owned(), members })
        }
    }
}
