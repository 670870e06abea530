//! `nets.json`: the nets as they are stored, with the addresses of their members.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{NetError, Subnet};
use crate::store::failure_log::FailureLog;
use crate::store::{file, quarantine};
use crate::vm::backend::NicPlace;
use crate::vm::spec::MOST_NETS;

const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    version: u32,
    pub(super) nets: BTreeMap<String, Net>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Net {
    pub(super) subnet: Subnet,
    pub(super) created: SystemTime,
    pub(super) leases: BTreeMap<Uuid, Lease>,
}

/// What a member has for as long as it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    /// Which of its devices for nets is on this one.
    pub(super) slot: u8,
}

impl Default for Stored {
    fn default() -> Self {
        Self { version: VERSION, nets: BTreeMap::new() }
    }
}

impl Net {
    pub(super) fn new(subnet: Subnet) -> Self {
        Self { subnet, created: SystemTime::now(), leases: BTreeMap::new() }
    }
}

impl Stored {
    pub(super) fn read(path: &Path, failures: &FailureLog) -> Self {
        quarantine::read_versioned(path, VERSION, |stored: &Self| stored.version, failures)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        file::replace_json(path, self)
    }

    pub(super) fn get(&self, name: &str) -> Result<&Net, NetError> {
        self.nets.get(name).ok_or_else(|| NetError::Absent(name.to_owned()))
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Result<&mut Net, NetError> {
        self.nets.get_mut(name).ok_or_else(|| NetError::Absent(name.to_owned()))
    }

    /// Lists the subnets of all nets but the one of this name.
    pub(super) fn subnets_beside(&self, name: &str) -> impl Iterator<Item = Subnet> {
        self.nets.iter().filter(move |(other, _)| *other != name).map(|(_, net)| net.subnet)
    }

    /// Has a VM be a member of these nets and of no others. Where it stays, it keeps its address. `taken` are the
    /// ports that its disks have.
    pub(super) fn place(
        &mut self,
        uuid: Uuid,
        wanted: &[String],
        taken: &[u8],
    ) -> Result<(), NetError> {
        for (name, net) in &mut self.nets {
            if !wanted.contains(name) {
                net.leases.remove(&uuid);
            }
        }
        for name in wanted {
            if !self.get(name)?.leases.contains_key(&uuid) {
                let slot = self.free_slot(uuid, taken);
                let slot = slot.ok_or_else(|| NetError::NoPort(name.clone()))?;
                self.get_mut(name)?.lease(name, uuid, slot)?;
            }
        }
        Ok(())
    }

    fn free_slot(&self, uuid: Uuid, taken: &[u8]) -> Option<u8> {
        let leases = || self.nets.values().filter_map(|net| net.leases.get(&uuid));
        let is_free = |slot: &u8| !taken.contains(&NicPlace(*slot).port());
        let mut free = (0..MOST_NETS).filter(is_free);
        free.find(|slot| leases().all(|lease| lease.slot != *slot))
    }
}

impl Net {
    fn lease(&mut self, name: &str, uuid: Uuid, slot: u8) -> Result<(), NetError> {
        if self.leases.contains_key(&uuid) {
            return Ok(());
        }
        let taken: Vec<Ipv4Addr> = self.leases.values().map(|lease| lease.address).collect();
        let free = self.subnet.addresses().find(|address| !taken.contains(address));
        let address = free.ok_or_else(|| NetError::Full {
            net: name.to_owned(),
            subnet: self.subnet,
            room: self.subnet.room(),
        })?;
        self.leases.insert(uuid, Lease { address, slot });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(nets: &[(&str, &str)]) -> Stored {
        let net =
            |(name, subnet): &(&str, &str)| ((*name).to_owned(), Net::new(subnet.parse().unwrap()));
        Stored { nets: nets.iter().map(net).collect(), ..Stored::default() }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_member_keeps_its_address_and_its_device_until_it_leaves() {
        let mut stored = stored(&[("a", "10.77.0.0/24"), ("b", "10.77.1.0/24")]);
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        stored.place(one, &names(&["a", "b"]), &[]).unwrap();
        stored.place(two, &names(&["b"]), &[]).unwrap();
        let lease = |stored: &Stored, net: &str, uuid| stored.nets[net].leases.get(&uuid).copied();
        let before = lease(&stored, "b", one).unwrap();
        assert_eq!((before.address.to_string().as_str(), before.slot), ("10.77.1.1", 1));
        stored.place(one, &names(&["b"]), &[]).unwrap();
        assert_eq!(lease(&stored, "b", one), Some(before));
        assert_eq!(lease(&stored, "a", one), None);
        stored.place(one, &names(&["b", "a"]), &[]).unwrap();
        assert_eq!(lease(&stored, "a", one).unwrap().slot, 0);
        assert_eq!(lease(&stored, "b", two).unwrap().address.to_string(), "10.77.1.2");
    }

    #[test]
    fn a_net_that_is_absent_or_full_is_told() {
        let mut stored = stored(&[("a", "10.77.0.0/30")]);
        let absent = stored.place(Uuid::from_u128(1), &names(&["x"]), &[]).unwrap_err();
        assert_eq!(absent.to_string(), "no net named x; `mkdir .nets/x` makes it");
        for member in [1, 2] {
            stored.place(Uuid::from_u128(member), &names(&["a"]), &[]).unwrap();
        }
        let full = stored.place(Uuid::from_u128(3), &names(&["a"]), &[]).unwrap_err();
        assert!(matches!(full, NetError::Full { room: 2, .. }), "{full}");
    }
}
