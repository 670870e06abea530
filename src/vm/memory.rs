//! Whether the host can hold one more guest: what it has, what it has promised, and the decision.
//!
//! A guest takes its memory only bit by bit, so what the host has free says little: a VM is
//! promised all that it may come to take, from its start to its end, and what it has not taken yet
//! is not given to another. What there is, and what QEMU takes, is the hypervisor's to say.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Vm;
use super::backend::{BackendError, Hypervisor};
use super::limits::{Limits, Used};

/// What a guest's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ram {
    /// Pages of its own, all of them.
    Own,
    /// An image's pages, and its own in place of those that it changes.
    CopyOnWrite,
}

/// What a VM may come to take, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// For the guest.
    pub guest: u64,
    /// For QEMU itself.
    pub overhead: u64,
    /// What the guest's is made of.
    pub ram: Ram,
    /// The guest's, as its settings have it.
    pub memory: u64,
    /// How many machines it is for.
    pub machines: u32,
}

impl Need {
    /// Returns what a VM with so much memory needs. One that shares its pages was measured to have
    /// some 30 MB of its own, QEMU's included, and a tenth of its memory is ample for what it then
    /// changes.
    pub fn of(memory: u64, overhead: u64, ram: Ram) -> Self {
        match ram {
            Ram::Own => Self { guest: memory, overhead, ram, memory, machines: 1 },
            Ram::CopyOnWrite => {
                Self { guest: memory / 10, overhead: 32 << 20, ram, memory, machines: 1 }
            }
        }
    }

    pub(crate) fn total(self) -> u64 {
        self.guest.saturating_add(self.overhead)
    }
}

/// What the host has for VMs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supply {
    /// What could be taken now.
    pub available: u64,
    /// What of it VMs are promised and have not taken yet.
    pub promised: u64,
}

impl Supply {
    /// Returns what can be promised to another VM.
    pub fn free(self) -> u64 {
        self.available.saturating_sub(self.promised)
    }
}

/// The host cannot hold another VM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} MiB are needed ({} for the guest, {} for QEMU) and {} MiB are free ({} available, {} of \
     them promised to VMs); {}lower config/memory, or `echo 1 > config/overcommit`",
    mebi(need.total()), mebi(need.guest), mebi(need.overhead), mebi(supply.free()),
    mebi(supply.available), mebi(supply.promised), stop(largest.as_ref())
)]
pub struct Shortage {
    need: Need,
    supply: Supply,
    /// The name of the VM that is promised most, and how many bytes.
    largest: Option<(String, u64)>,
}

fn mebi(bytes: u64) -> u64 {
    bytes >> 20
}

fn stop(largest: Option<&(String, u64)>) -> String {
    let advice = |(name, bytes): &(_, _)| format!("stop {name}, which has {} MiB, ", mebi(*bytes));
    largest.map_or_else(String::new, advice)
}

/// Decides whether there is room for what is needed.
fn admit(need: Need, supply: Supply, largest: Option<(String, u64)>) -> Result<(), Shortage> {
    if need.total() <= supply.free() {
        return Ok(());
    }
    Err(Shortage { need, supply, largest })
}

/// Whether a VM waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// It is refused where there is none.
    Strict,
    /// It takes of the host what it needs, as its settings say, within the limits of all VMs.
    Overcommitted,
    /// It runs already.
    Waived,
}

/// What VMs have been promised.
#[derive(Debug)]
pub struct Ledger {
    hypervisor: Arc<dyn Hypervisor>,
    limits: Arc<Limits>,
    promises: Mutex<Promises>,
}

#[derive(Debug, Default)]
struct Promises {
    by_number: BTreeMap<u64, Promise>,
    last: u64,
}

impl Promises {
    fn used_beside(&self, own: Option<u64>) -> Used {
        let others = self.by_number.iter().filter(|(n, _)| Some(**n) != own);
        others.fold(Used::default(), |used, (_, promise)| Used {
            vms: used.vms + promise.need.machines,
            memory: used.memory + promise.need.memory,
        })
    }
}

#[derive(Debug)]
struct Promise {
    vm: Vm,
    need: Need,
}

impl Ledger {
    pub(crate) fn new(hypervisor: Arc<dyn Hypervisor>, limits: Arc<Limits>) -> Arc<Self> {
        Arc::new(Self { hypervisor, limits, promises: Mutex::default() })
    }

    /// Returns what the VMs have together that run or start.
    pub(crate) fn used(&self) -> Used {
        self.promises.lock().used_beside(None)
    }

    pub(crate) fn supply(&self) -> Supply {
        self.supply_beside(&self.promises.lock(), None)
    }

    /// Promises a VM what it may come to take. Of several that ask at once, none is promised what
    /// another has been.
    pub fn reserve(
        self: &Arc<Self>,
        vm: &Vm,
        need: Need,
        check: Check,
    ) -> Result<Reservation, BackendError> {
        let mut promises = self.promises.lock();
        self.check(&promises, None, need, check)?;
        promises.last += 1;
        let number = promises.last;
        promises.by_number.insert(number, Promise { vm: vm.clone(), need });
        Ok(Reservation { ledger: Arc::clone(self), number })
    }

    /// Says whether there is room, and promises nothing.
    pub fn check_room(&self, need: Need, check: Check) -> Result<(), BackendError> {
        self.check(&self.promises.lock(), None, need, check)
    }

    fn check(
        &self,
        promises: &Promises,
        own: Option<u64>,
        need: Need,
        check: Check,
    ) -> Result<(), BackendError> {
        match check {
            Check::Strict => self.limits.admit(promises.used_beside(own), &need)?,
            Check::Overcommitted => return self.limits.admit(promises.used_beside(own), &need),
            Check::Waived => return Ok(()),
        }
        let others = promises.by_number.iter().filter(|(n, _)| Some(**n) != own);
        let largest = others.map(|(_, p)| p).max_by_key(|p| p.need.total());
        let largest = largest.map(|p| (p.vm.name(), p.need.total()));
        admit(need, self.supply_beside(promises, own), largest)
            .map_err(|shortage| BackendError::NoMemory { what: shortage.to_string() })
    }

    /// Looks at the host after the machines: what one takes in between counts twice rather than
    /// not at all.
    fn supply_beside(&self, promises: &Promises, own: Option<u64>) -> Supply {
        let others = promises.by_number.iter().filter(|(n, _)| Some(**n) != own);
        let promised = others.map(|(_, promise)| self.outstanding(promise)).sum();
        Supply { available: self.hypervisor.memory_available(), promised }
    }

    /// What a VM has been promised and has not taken yet.
    fn outstanding(&self, promise: &Promise) -> u64 {
        let facts = promise.vm.view().facts;
        let taken = facts.map_or(0, |f| self.hypervisor.memory_taken(&f, promise.need.ram));
        promise.need.total().saturating_sub(taken)
    }
}

/// What a VM has been promised; dropping it gives it back.
#[derive(Debug)]
#[must_use]
pub struct Reservation {
    ledger: Arc<Ledger>,
    number: u64,
}

impl Reservation {
    /// Changes what is promised.
    ///
    /// # Errors
    /// `NoMemory`; the promise is then as it was.
    pub fn amend(&self, need: Need, check: Check) -> Result<(), BackendError> {
        let mut promises = self.ledger.promises.lock();
        self.ledger.check(&promises, Some(self.number), need, check)?;
        if let Some(promise) = promises.by_number.get_mut(&self.number) {
            promise.need = need;
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.ledger.promises.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn supply(available: u64, promised: u64) -> Supply {
        Supply { available: available * MIB, promised: promised * MIB }
    }

    #[test]
    fn there_is_room_or_not() {
        // memory, QEMU's own, whose pages; available, promised; room
        let table = [
            (256, 100, Ram::Own, 356, 0, true),
            (256, 100, Ram::Own, 355, 0, false),
            (256, 100, Ram::Own, 1000, 644, true),
            (256, 100, Ram::Own, 1000, 645, false),
            (256, 0, Ram::Own, 1000, 2000, false),
            (0, 0, Ram::Own, 0, 1, true),
            (1000, 100, Ram::CopyOnWrite, 132, 0, true),
            (1000, 100, Ram::CopyOnWrite, 131, 0, false),
        ];
        for (memory, overhead, ram, available, promised, room) in table {
            let need = Need::of(memory * MIB, overhead * MIB, ram);
            let decided = admit(need, supply(available, promised), None);
            assert_eq!(decided.is_ok(), room, "{need:?} {available} {promised}");
        }
        let all = Need::of(u64::MAX, 1, Ram::Own);
        assert!(admit(all, supply(1000, 0), None).is_err());
    }

    #[test]
    fn a_refusal_has_the_numbers_and_the_next_step() {
        let need = Need::of(2048 * MIB, 160 * MIB, Ram::Own);
        let refusal = |largest| admit(need, supply(3072, 2000), largest).unwrap_err().to_string();
        let alone = "2208 MiB are needed (2048 for the guest, 160 for QEMU) and 1072 MiB are free \
            (3072 available, 2000 of them promised to VMs); lower config/memory, or `echo 1 > \
            config/overcommit`";
        assert_eq!(refusal(None), alone);
        let largest = ("web".into(), 1500 * MIB);
        let text = refusal(Some(largest));
        assert!(text.contains("; stop web, which has 1500 MiB, lower config/memory"), "{text}");
    }
}
