//! Having a guest on its VM's nets, and keeping it there: for each connection to the guest, however the guest has
//! come to be what it is.
//!
//! A device is connected to its switch last, when the guest has the address that is its own: the memory that a
//! fork, a clone or a snapshot comes from may have another one's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::{NetError, Nets, Nic, Wanted};
use crate::vm::backend::{BackendError, GuestNic, GuestSession, Machine, NicOutcome, NicPlace};
use crate::vm::events::Event;
use crate::vm::hardware::Hardware;
use crate::vm::{Vm, VmError};

/// How long a guest that answers is not `ready` because it is not on its nets yet.
const SETTLED_TIMEOUT: Duration = Duration::from_secs(20);
/// After how long what has failed is tried again: the first time, and at the most.
const RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How long a guest may take to find a device that was plugged in just now, and one that it should have found.
const FOUND_TIMEOUT: Duration = Duration::from_secs(10);
const KNOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// A guest that is on its nets as long as this lives.
#[derive(Debug)]
pub struct NetAttachment {
    task: AbortHandle,
    tried: watch::Receiver<bool>,
}

impl NetAttachment {
    /// Waits until it is on its nets, has none, or cannot be, but not for long.
    pub async fn settled(&self) {
        let mut tried = self.tried.clone();
        // A task that has ended has no more to say.
        drop(timeout(SETTLED_TIMEOUT, tried.wait_for(|tried| *tried)).await);
    }
}

impl Drop for NetAttachment {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Vm {
    /// Has the guest of a new connection, in this machine, be on the VM's nets.
    pub(in crate::vm) fn attach_nets(
        &self,
        session: &Arc<dyn GuestSession>,
        machine: &Arc<dyn Machine>,
    ) -> NetAttachment {
        let (done, tried) = watch::channel(false);
        let follower = Follower {
            vm: self.clone(),
            nets: self.0.backends.nets.clone(),
            session: Arc::clone(session),
            machine: Arc::clone(machine),
            applied: None,
            connected: BTreeMap::new(),
        };
        let task = tokio::spawn(follower.run(done)).abort_handle();
        NetAttachment { task, tried }
    }
}

struct Follower {
    vm: Vm,
    nets: Nets,
    session: Arc<dyn GuestSession>,
    machine: Arc<dyn Machine>,
    /// What the guest has.
    applied: Option<Wanted>,
    /// The net, and the number of its switch, that each device is connected to.
    connected: BTreeMap<NicPlace, (String, u64)>,
}

impl Follower {
    async fn run(mut self, done: watch::Sender<bool>) {
        let mut changes = self.nets.0.changes.subscribe();
        let mut pause = RETRY;
        loop {
            changes.borrow_and_update();
            let failed = match self.follow().await {
                Ok(()) => false,
                Err(error) => self.failed(&error),
            };
            done.send_replace(true);
            let changed = tokio::select! {
                changed = changes.changed() => changed.is_ok(),
                () = sleep(pause), if failed => true,
            };
            if !changed {
                return;
            }
            pause = if failed { (pause * 2).min(LONGEST_RETRY) } else { RETRY };
        }
    }

    /// Reports a failure, once.
    fn failed(&self, error: &VmError) -> bool {
        let why = format!("the guest is not on its nets: {error}");
        if self.vm.failure().as_ref() != Some(&why) {
            self.vm.note_outcome(Err(why));
        }
        true
    }

    async fn follow(&mut self) -> Result<(), VmError> {
        let wanted = self.nets.wanted(self.vm.uuid());
        let there = self.machine.nics().await?;
        if there.is_empty() && wanted.nics.is_empty() && self.applied.is_none() {
            return missing(&wanted);
        }
        self.leave(&there, &wanted).await?;
        if self.applied.as_ref() != Some(&wanted) {
            self.configure(&there, &wanted).await?;
            self.applied = Some(wanted.clone());
        }
        for nic in &wanted.nics {
            self.connect(nic).await?;
        }
        missing(&wanted)
    }

    /// Takes devices off the switches of nets that they are not to be on.
    async fn leave(&mut self, there: &[NicPlace], wanted: &Wanted) -> Result<(), BackendError> {
        let stays = |place: &NicPlace, net: &String| {
            wanted.nics.iter().any(|nic| nic.place == *place && nic.net == *net)
        };
        for place in there {
            match self.connected.get(place) {
                Some((net, _)) if stays(place, net) => {}
                Some(_) | None => {
                    self.machine.disconnect_nic(*place).await?;
                    if let Some((net, _)) = self.connected.remove(place) {
                        self.vm.emit(&Event::Net(format!("{net} left")));
                    }
                }
            }
        }
        Ok(())
    }

    /// Has the machine have the devices, and the guest their addresses and the members' names.
    async fn configure(&self, there: &[NicPlace], wanted: &Wanted) -> Result<(), VmError> {
        let mut plugged = Vec::new();
        for nic in wanted.nics.iter().filter(|nic| !there.contains(&nic.place)) {
            self.plug(nic).await?;
            plugged.push(nic.place);
        }
        let wait = if plugged.is_empty() { KNOWN_TIMEOUT } else { FOUND_TIMEOUT };
        let unseen = self.give(there, wanted, wait).await?;
        // A memory that was saved before the device came knows nothing of it.
        let again: Vec<&Nic> = wanted.nics.iter().filter(|n| unseen.contains(&n.place)).collect();
        if again.is_empty() {
            return Ok(());
        }
        for nic in &again {
            self.machine.unplug_nic(nic.place).await?;
            self.plug(nic).await?;
        }
        match self.give(there, wanted, FOUND_TIMEOUT).await?.first() {
            None => Ok(()),
            Some(_) => Err(VmError::Backend(unseen_nic())),
        }
    }

    async fn plug(&self, nic: &Nic) -> Result<(), BackendError> {
        if self.machine.facts().hardware < Hardware::WITH_ROOM {
            return Err(no_room());
        }
        self.machine.plug_nic(nic.place, nic.mac).await
    }

    /// Returns the devices that the guest does not see.
    async fn give(
        &self,
        there: &[NicPlace],
        wanted: &Wanted,
        wait: Duration,
    ) -> Result<Vec<NicPlace>, BackendError> {
        let nics: Vec<GuestNic> = wanted.nics.iter().map(Nic::of_guest).collect();
        let is_idle = |place: &&NicPlace| !wanted.nics.iter().any(|nic| nic.place == **place);
        let idle: Vec<NicPlace> = there.iter().filter(is_idle).copied().collect();
        let outcomes = self.session.set_nets(&nics, &idle, &wanted.hosts, wait).await?;
        let mut unseen = Vec::new();
        for (nic, outcome) in wanted.nics.iter().zip(outcomes) {
            match outcome {
                NicOutcome::Set => {}
                NicOutcome::Unseen => unseen.push(nic.place),
                NicOutcome::Failed(why) => {
                    let what = format!("net {}", nic.net);
                    return Err(BackendError::fact(what, why, libc::EREMOTEIO));
                }
            }
        }
        Ok(unseen)
    }

    async fn connect(&mut self, nic: &Nic) -> Result<(), BackendError> {
        let switch = self.nets.switch(&nic.net).await?;
        let now = (nic.net.clone(), switch.number);
        let before = self.connected.get(&nic.place);
        if before == Some(&now) {
            return Ok(());
        }
        let again =
            if before.is_some() { ": its switch had ended, and another is there" } else { "" };
        self.machine.connect_nic(nic.place, &switch.sockets).await?;
        self.vm.emit(&Event::Net(format!("{} {}{again}", nic.net, nic.address)));
        self.connected.insert(nic.place, now);
        Ok(())
    }
}

impl Nic {
    fn of_guest(&self) -> GuestNic {
        GuestNic { place: self.place, mac: self.mac, address: self.address, prefix: self.prefix }
    }
}

fn missing(wanted: &Wanted) -> Result<(), VmError> {
    wanted.missing.first().map_or(Ok(()), |net| Err(NetError::Absent(net.clone()).into()))
}

fn no_room() -> BackendError {
    let why = "this machine has no room for a network device, which hardware 1 has not; \
        `echo newest > config/hardware`, then stop and start";
    BackendError::fact("a net", why, libc::EOPNOTSUPP)
}

fn unseen_nic() -> BackendError {
    let why = "the guest does not see its new network device; it does after `stop` and `start`";
    BackendError::fact("a net", why, libc::EREMOTEIO)
}
