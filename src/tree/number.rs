//! Numbers of nodes: how they are packed, and which are given to names that have none of their own.
//!
//! A number follows from what a node is, and is never reused: a program that holds one never gets
//! another file by it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::vm::VmId;
use crate::vm::job::JobId;

/// A kind of directory: a part of the number of every node in directories of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DirectoryId(pub(crate) u8);

/// The number of a node: directory, object and row packed together. The root is 1, as FUSE
/// requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(pub(crate) u64);

const ROW_BITS: u32 = 12;
const OBJECT_BITS: u32 = 44;
const OBJECT_MASK: u64 = (1 << OBJECT_BITS) - 1;
const ROW_MASK: u64 = (1 << ROW_BITS) - 1;

impl NodeId {
    pub(crate) const ROOT: Self = Self(1);

    pub(crate) fn directory(kind: DirectoryId, object: u64) -> Self {
        let object = object & OBJECT_MASK;
        Self((u64::from(kind.0) << (OBJECT_BITS + ROW_BITS) | object << ROW_BITS) + 1)
    }

    pub(crate) fn row(self, row: usize) -> Self {
        Self(self.0 + 1 + row as u64)
    }

    /// Returns directory, object and row (`None`: the directory itself).
    pub(crate) fn parts(self) -> Option<(DirectoryId, u64, Option<usize>)> {
        let packed = self.0.checked_sub(1)?;
        let kind = DirectoryId(u8::try_from(packed >> (OBJECT_BITS + ROW_BITS)).ok()?);
        let row = usize::try_from(packed & ROW_MASK).ok()?;
        Some((kind, (packed >> ROW_BITS) & OBJECT_MASK, row.checked_sub(1)))
    }
}

/// The bits of a number within a VM, such as a job's, in the object of a directory.
const BITS_IN_VM: u32 = 24;

/// Packs a VM and the number of something in it into one object. These numbers return after 2^24 of
/// one VM, those of VMs after 2^20: the kernel has long forgotten the first ones by then.
pub(super) fn pack_in_vm(vm: VmId, number: u64) -> u64 {
    vm.0 << BITS_IN_VM | number & ((1 << BITS_IN_VM) - 1)
}

/// Unpacks it.
pub(super) fn unpack_in_vm(object: u64) -> (VmId, u64) {
    (VmId(object >> BITS_IN_VM), object & ((1 << BITS_IN_VM) - 1))
}

/// Packs a VM and one of its jobs into one object.
pub(super) fn pack_job(vm: VmId, job: JobId) -> u64 {
    pack_in_vm(vm, job.0)
}

pub(super) fn unpack_job(object: u64) -> (VmId, JobId) {
    let (vm, job) = unpack_in_vm(object);
    (vm, JobId(job))
}

/// What is named: a name, in a directory of a kind, about an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Named {
    pub(super) within: DirectoryId,
    /// The object that this directory is about; 0 where there is only one such directory.
    pub(super) object: u64,
    pub(super) name: String,
}

/// The numbers of names that have none of their own, such as images and snapshots.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers(Arc<Mutex<Given>>);

#[derive(Debug, Default)]
struct Given {
    numbers: HashMap<Named, u64>,
    /// What has each number: a number is an index.
    named: Vec<Named>,
}

impl Numbers {
    /// Returns the number of a name, which keeps it from now on.
    pub(super) fn number(&self, named: Named) -> u64 {
        let Given { numbers, named: all } = &mut *self.0.lock();
        *numbers.entry(named).or_insert_with_key(|named| {
            all.push(named.clone());
            all.len() as u64 - 1
        })
    }

    pub(super) fn named(&self, number: u64) -> Option<Named> {
        self.0.lock().named.get(usize::try_from(number).ok()?).cloned()
    }

    /// Exchanges two names' numbers: what had the one name has the other now, under the same
    /// number.
    pub(super) fn exchange(&self, a: Named, b: Named) {
        let (of_a, of_b) = (self.number(a.clone()), self.number(b.clone()));
        let Given { numbers, named } = &mut *self.0.lock();
        for (name, number) in [(a, of_b), (b, of_a)] {
            if let Some(of) = usize::try_from(number).ok().and_then(|at| named.get_mut(at)) {
                of.clone_from(&name);
            }
            numbers.insert(name, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_root_is_one() {
        assert_eq!(NodeId::directory(DirectoryId(0), 0), NodeId::ROOT);
        assert_eq!(NodeId(0).parts(), None);
    }

    #[test]
    fn a_job_is_found_by_its_vm_and_its_number() {
        assert_eq!(unpack_job(pack_job(VmId(7), JobId(9))), (VmId(7), JobId(9)));
    }

    #[test]
    fn a_renamed_name_keeps_its_number() {
        let numbers = Numbers::default();
        let named = |name: &str| Named { within: DirectoryId(3), object: 7, name: name.into() };
        let number = numbers.number(named("a"));
        numbers.exchange(named("a"), named("b"));
        assert_eq!(numbers.named(number), Some(named("b")));
        assert_eq!(numbers.number(named("b")), number);
        assert_ne!(numbers.number(named("a")), number);
    }

    proptest! {
        #[test]
        fn numbers_pack_and_unpack(kind: u8, object in 0..=OBJECT_MASK, row in 0usize..4000) {
            let kind = DirectoryId(kind);
            let dir = NodeId::directory(kind, object);
            prop_assert_eq!(dir.parts(), Some((kind, object, None)));
            prop_assert_eq!(dir.row(row).parts(), Some((kind, object, Some(row))));
        }
    }
}
