//! The machine that has the data disks: from its start, plugged in and out while it runs, and when a memory is
//! saved or loaded.
//!
//! A memory fits only a machine with the devices that it was saved with. A disk that the machine has beside
//! these is unknown to the guest, and is plugged out and in again.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::stored::{Settings, Stored};
use super::{DataDiskError, Disks};
use crate::vm::backend::{BackendError, DataDisk, DiskPlace, Machine, NicPlace};
use crate::vm::hardware::Hardware;
use crate::vm::state::State as VmState;
use crate::vm::{Vm, VmError};

impl Disks {
    /// No machine runs any more.
    pub(in crate::vm) fn detached(&self) {
        self.0.state.lock().outcomes.clear();
    }

    fn note(&self, number: u32, outcome: Result<(), String>) {
        self.0.state.lock().outcomes.insert(number, outcome);
    }

    fn forget(&self, number: u32) {
        self.0.state.lock().outcomes.remove(&number);
    }

    /// Finds the disks of the VM's own that are at these places.
    pub(in crate::vm) fn at(&self, places: &[DiskPlace]) -> Vec<DataDisk> {
        let stored = self.stored();
        let disk = |place: &DiskPlace| {
            let (name, settings) = stored.numbered(place.number)?;
            let disk = settings.disk(name).filter(|_| settings.is_own())?;
            Some(DataDisk { place: *place, ..disk })
        };
        places.iter().filter_map(disk).collect()
    }
}

impl Vm {
    fn running_machine(&self) -> Option<Arc<dyn Machine>> {
        self.0.machine.read().clone()
    }

    /// Lists the disks of its own that a machine that boots has from its start: without those whose port one of
    /// these devices has. What is a source's is plugged in then, so that one that is gone does not keep the VM
    /// from starting.
    pub(in crate::vm) async fn disks_at_boot(
        &self,
        hardware: Hardware,
        nics: &[NicPlace],
    ) -> Vec<DataDisk> {
        let _turn = self.disks().hold().await;
        if hardware < Hardware::WITH_ROOM {
            return Vec::new();
        }
        let ports: Vec<u8> = nics.iter().map(|place| place.port()).collect();
        let stored = self.disks().stored();
        let own = stored.present().filter(|(_, disk)| disk.is_own() && !ports.contains(&disk.port));
        let is_there = |disk: &&Settings| self.dir().data_disk(disk.number).exists();
        let own = own.filter(|(_, disk)| is_there(disk));
        own.filter_map(|(name, settings)| settings.disk(name)).collect()
    }

    /// Lists the disks that the machine with the suspended memory has.
    ///
    /// # Errors
    /// One of them was removed.
    pub(in crate::vm) fn disks_of_memory(&self, tag: &str) -> Result<Vec<DataDisk>, BackendError> {
        let saved = self.0.backends.hypervisor.saved_disks(&self.dir().0, tag);
        let saved = saved.unwrap_or_else(|| self.disks_with_snapshot(tag));
        let stored = self.disks().stored();
        let is_missing = |place: &&DiskPlace| stored.numbered(place.number).is_none();
        match saved.iter().find(is_missing) {
            None => Ok(self.disks().at(&saved)),
            Some(place) => {
                let (disk, aside) = name_of(&stored, *place);
                let reason = format!(
                    "its guest has the disk {disk}, which was removed; `mv disks/{aside} disks/{disk}` has it again"
                );
                Err(BackendError::CannotResume { reason })
            }
        }
    }

    /// A memory that is not listed is that of a machine with the disks that have the snapshot.
    fn disks_with_snapshot(&self, tag: &str) -> Vec<DiskPlace> {
        let has = |place: &DiskPlace| self.has_snapshot(place.number, tag);
        let stored = self.disks().stored();
        stored.present().map(|(_, disk)| disk.place()).filter(has).collect()
    }

    /// Has a machine that has come have the disks that it is to have.
    pub(in crate::vm) fn follow_disks(&self, machine: &Arc<dyn Machine>) {
        // A VM that never had any costs nothing.
        if self.disks().names().is_empty() {
            return;
        }
        let (vm, machine) = (self.clone(), Arc::clone(machine));
        tokio::spawn(async move {
            let _turn = vm.disks().hold().await;
            vm.settle_disks(&*machine).await;
        });
    }

    /// Plugs in what is missing, and gives each of its own the size that is wanted: a snapshot brings back that of
    /// then.
    async fn settle_disks(&self, machine: &dyn Machine) {
        let there = match machine.data_disks().await {
            Ok(there) => there,
            Err(error) => return self.note_outcome(Err(error)),
        };
        let there: BTreeSet<u32> = there.into_iter().map(|place| place.number).collect();
        let stored = self.disks().stored();
        for (name, settings) in stored.present() {
            let Some(disk) = settings.disk(name) else { continue };
            let done = match there.contains(&settings.number) {
                true => self.grow_behind(machine, settings).await,
                false => self.plug(machine, name, &disk).await,
            };
            self.disks().note(settings.number, done.map_err(|error| error.to_string()));
        }
        self.0.bell.ring();
    }

    async fn grow_behind(
        &self,
        machine: &dyn Machine,
        settings: &Settings,
    ) -> Result<(), BackendError> {
        let (hypervisor, dir) = (&self.0.backends.hypervisor, &self.dir().0);
        let (Some(wanted), Some(size)) =
            (settings.size, hypervisor.data_disk_size(dir, settings.number)?)
        else {
            return Ok(());
        };
        match size < wanted {
            true => machine.grow_data_disk(settings.number, wanted).await,
            false => Ok(()),
        }
    }

    async fn plug(
        &self,
        machine: &dyn Machine,
        name: &str,
        disk: &DataDisk,
    ) -> Result<(), BackendError> {
        let done = match machine.facts().hardware < Hardware::WITH_ROOM {
            true => Err(no_room()),
            false => self.plug_limited(machine, disk).await,
        };
        match &done {
            Ok(()) => self.tell_of_disk(format!("{name} attached")),
            Err(error) => {
                self.note_outcome(Err(format!("the disk {name} is not in the guest: {error}")));
            }
        }
        done
    }

    /// What holds for all disks holds for one more.
    async fn plug_limited(
        &self,
        machine: &dyn Machine,
        disk: &DataDisk,
    ) -> Result<(), BackendError> {
        machine.plug_disk(disk).await?;
        match self.spec().io_limit {
            None => Ok(()),
            limit @ Some(_) => machine.limit_io(limit).await,
        }
    }

    /// Has the machine that runs have a disk. The caller has the turn.
    pub(super) async fn attach_disk(&self, name: &str) -> Result<(), VmError> {
        let settings = self.disks().settings(name)?;
        let (Some(machine), Some(disk)) = (self.running_machine(), settings.disk(name)) else {
            return Ok(());
        };
        if machine.data_disks().await?.iter().any(|place| place.number == settings.number) {
            self.disks().note(settings.number, Ok(()));
            return Ok(());
        }
        let done = self.plug(&*machine, name, &disk).await;
        self.disks().note(settings.number, done.clone().map_err(|error| error.to_string()));
        done?;
        self.until_guest_has(name, &disk.serial).await;
        Ok(())
    }

    /// Takes a disk out of the machine that runs. The caller has the turn.
    pub(super) async fn detach_disk(&self, name: &str, settings: &Settings) -> Result<(), VmError> {
        let Some(machine) = self.running_machine() else { return Ok(()) };
        let there = machine.data_disks().await?;
        if let Some(place) = there.iter().find(|place| place.number == settings.number) {
            let taken_out = machine.unplug_disk(*place).await;
            if let Err(error) = &taken_out {
                // The guest may give it back later.
                self.disks().note(settings.number, Err(error.to_string()));
            }
            taken_out?;
            self.tell_of_disk(format!("{name} detached"));
        }
        self.disks().forget(settings.number);
        Ok(())
    }

    /// Makes a disk larger, in the machine or as a file. The caller has the turn.
    pub(super) async fn grow_disk(&self, number: u32, bytes: u64) -> Result<(), VmError> {
        if self.state() == VmState::Starting {
            return Err(DataDiskError::Starting.into());
        }
        if let Some(machine) = self.running_machine()
            && machine.data_disks().await?.iter().any(|place| place.number == number)
        {
            return Ok(machine.grow_data_disk(number, bytes).await?);
        }
        let hypervisor = &self.0.backends.hypervisor;
        Ok(hypervisor.grow_data_disk(&self.dir().0, number, bytes).await?)
    }

    // ----- memories ----------------------------------------------------------------------------

    /// Refuses to save or to give up the memory of a guest with a disk of the user's: its file changes without
    /// the memory. The caller has the turn.
    pub(in crate::vm) async fn check_disks_of_memory(
        &self,
        machine: &dyn Machine,
    ) -> Result<(), BackendError> {
        let there = machine.data_disks().await?;
        let stored = self.disks().stored();
        let is_there = |disk: &Settings| there.iter().any(|place| place.number == disk.number);
        let source = stored.disks.iter().find(|(_, d)| d.source.is_some() && is_there(d));
        match source {
            None => Ok(()),
            Some((name, _)) => Err(DataDiskError::SavesSource(name.clone()).into()),
        }
    }

    /// Makes the machine that runs one that can load the memory of a snapshot; returns the places of its disks.
    /// The caller has the turn.
    pub(in crate::vm) async fn fit_disks(
        &self,
        machine: &dyn Machine,
        tag: &str,
    ) -> Result<Vec<DiskPlace>, BackendError> {
        self.check_disks_of_memory(machine).await?;
        let saved = self.0.backends.hypervisor.saved_disks(&self.dir().0, tag);
        let saved = saved.unwrap_or_else(|| self.disks_with_snapshot(tag));
        let (stored, there) = (self.disks().stored(), machine.data_disks().await?);
        for place in &saved {
            check_place(&stored, *place, tag)?;
            if !self.has_snapshot(place.number, tag) {
                return Err(DataDiskError::NoSnapshot(tag.to_owned()).into());
            }
        }
        for disk in self.disks().at(&saved).iter().filter(|disk| !there.contains(&disk.place)) {
            self.plug_limited(machine, disk).await?;
        }
        Ok(saved)
    }

    /// A guest was brought back: it knows nothing of the disks that its memory has not. The caller has the turn.
    pub(in crate::vm) async fn refit_disks(&self, machine: &dyn Machine, saved: &[DiskPlace]) {
        for place in machine.data_disks().await.unwrap_or_default() {
            if saved.contains(&place) {
                continue;
            }
            if let Err(error) = machine.unplug_disk(place).await {
                // It has it as a disk that it does not see.
                self.note_outcome(Err(error));
            }
        }
        self.settle_disks(machine).await;
    }
}

fn check_place(stored: &Stored, place: DiskPlace, tag: &str) -> Result<(), DataDiskError> {
    let tag = tag.to_owned();
    match stored.disks.iter().find(|(_, disk)| disk.number == place.number) {
        Some((_, disk)) if disk.removed.is_none() && disk.place() == place => Ok(()),
        Some((disk, settings)) if settings.removed.is_none() => {
            Err(DataDiskError::Elsewhere { tag, disk: disk.clone() })
        }
        Some(_) | None => {
            let (disk, aside) = name_of(stored, place);
            Err(DataDiskError::Lacks { tag, disk, aside })
        }
    }
}

/// Returns the name that a removed disk had, and the one that it has.
fn name_of(stored: &Stored, place: DiskPlace) -> (String, String) {
    let found = stored.disks.iter().find(|(_, disk)| disk.number == place.number);
    let Some((aside, _)) = found else {
        return (format!("number {}", place.number), "NAME".to_owned());
    };
    let name = aside.trim_start_matches('.');
    let name = name.rsplit_once('@').map_or(name, |(name, _)| name);
    (name.to_owned(), aside.clone())
}

fn no_room() -> BackendError {
    let why = "this machine has no room for another disk, which hardware 1 has not; \
        `echo newest > config/hardware`, then stop and start";
    BackendError::fact("a disk", why, libc::EOPNOTSUPP)
}

/// What is refused of a machine is said in the words of its disks.
impl From<DataDiskError> for BackendError {
    fn from(error: DataDiskError) -> Self {
        Self::Disks(Box::new(error))
    }
}
