//! What users do to data disks: they are made, given sizes, sources and names, put aside and erased.
//!
//! Not here: the machine that follows (`attach`), the list and its file (`super`, `stored`).

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::stored::{Settings, Stored};
use super::{DataDiskError, Field, Removed, is_name, value};
use crate::vm::backend::NicPlace;
use crate::vm::driver::off_thread;
use crate::vm::dropped::Remover;
use crate::vm::events::Event;
use crate::vm::state::State as VmState;
use crate::vm::{Vm, VmError};

impl Vm {
    /// Makes a data disk, which has no content yet.
    ///
    /// # Errors
    /// It cannot have that name, there is one, or no port is free; or what the disk answered.
    pub async fn make_disk(self, name: String) -> Result<(), VmError> {
        let _turn = self.disks().hold().await;
        let taken = self.ports_of_nets();
        let add = move |stored: &mut Stored| match is_name(&name) {
            true => stored.add(name, &taken),
            false => Err(DataDiskError::BadName(name)),
        };
        self.disks().change(add).await
    }

    /// Lists the ports that its machine has, or is to have, for nets.
    fn ports_of_nets(&self) -> Vec<u8> {
        let places = self.0.backends.nets.places(self.uuid());
        places.into_iter().map(NicPlace::port).collect()
    }

    /// Removes a data disk for a process. One that has data is put aside; of one that was, the data are erased.
    ///
    /// # Errors
    /// There is none, the guest does not give it back, or it is needed; or what the disk answered.
    pub async fn remove_disk(self, name: String, by: Remover) -> Result<(), VmError> {
        let _turn = self.disks().hold().await;
        let settings = self.disks().settings(&name)?;
        if settings.removed.is_some() {
            return self.erase_disk(name, &settings).await;
        }
        if self.state() == VmState::Starting {
            return Err(DataDiskError::Starting.into());
        }
        self.detach_disk(&name, &settings).await?;
        let aside = match settings.is_own() && !self.is_empty_disk(&settings) {
            true => {
                let from = name.clone();
                let put = move |stored: &mut Stored| stored.put_aside(&from, SystemTime::now());
                Some(self.disks().change(put).await?)
            }
            false => {
                self.forget_disk(name.clone(), &settings).await?;
                None
            }
        };
        // What is erased does not come back.
        if aside.is_some() || !settings.is_own() {
            let removed = Removed { name, aside, settings, by, at: Instant::now() };
            self.disks().note_removed(removed);
        }
        Ok(())
    }

    /// Says whether a disk of the VM's own has a snapshot.
    pub(super) fn has_snapshot(&self, number: u32, tag: &str) -> bool {
        let (hypervisor, dir) = (&self.0.backends.hypervisor, &self.dir().0);
        hypervisor.data_disk_snapshots(dir, number).iter().any(|snapshot| snapshot.tag == tag)
    }

    /// Says whether nothing was ever written to a disk: its image is as long as it was when it was made.
    fn is_empty_disk(&self, settings: &Settings) -> bool {
        let length = fs::metadata(self.dir().data_disk(settings.number)).map(|file| file.len());
        match length {
            Ok(length) => Some(length) == settings.empty,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    async fn erase_disk(&self, name: String, settings: &Settings) -> Result<(), VmError> {
        let (hypervisor, dir) = (&self.0.backends.hypervisor, &self.dir().0);
        let known = hypervisor.data_disk_snapshots(dir, settings.number);
        if !known.is_empty() {
            let tags: Vec<String> = known.into_iter().map(|snapshot| snapshot.tag).collect();
            return Err(DataDiskError::Held(tags.join(", ")).into());
        }
        self.forget_disk(name, settings).await
    }

    async fn forget_disk(&self, name: String, settings: &Settings) -> Result<(), VmError> {
        let forget = move |stored: &mut Stored| {
            stored.disks.remove(&name).map(drop).ok_or(DataDiskError::Absent)
        };
        self.disks().change(forget).await?;
        let (hypervisor, dir) = (&self.0.backends.hypervisor, &self.dir().0);
        match settings.is_own() {
            true => Ok(hypervisor.erase_data_disk(dir, settings.number).await?),
            false => Ok(()),
        }
    }

    /// Gives a data disk another name. One that was removed is there again.
    ///
    /// # Errors
    /// There is none, or one of the new name already, or no port is free; or what the disk answered.
    pub async fn rename_disk(self, from: String, to: String) -> Result<(), VmError> {
        let _turn = self.disks().hold().await;
        let before = self.disks().settings(&from)?;
        let (taken, name) = (self.ports_of_nets(), to.clone());
        self.disks().change(move |stored| stored.rename(&from, name, &taken)).await?;
        match before.removed {
            Some(_) => self.attach_disk(&to).await,
            None => Ok(()),
        }
    }

    /// Sets a value of a data disk. An empty one changes nothing.
    ///
    /// # Errors
    /// It is not accepted, the machine does not follow, or what the disk answered.
    pub async fn set_disk(self, name: String, field: Field, text: String) -> Result<(), VmError> {
        let text = text.strip_suffix('\n').unwrap_or(&text).to_owned();
        if text.is_empty() {
            return Ok(());
        }
        let _turn = self.disks().hold().await;
        let settings = self.disks().settings(&name)?;
        if settings.removed.is_some() {
            return Err(DataDiskError::Removed(name).into());
        }
        match field {
            Field::Serial => {
                let serial = value::serial(&text)?;
                let set = move |stored: &mut Stored| {
                    stored.get_mut(&name)?.serial = serial;
                    Ok(())
                };
                self.disks().change(set).await
            }
            Field::Size => self.set_disk_size(name, settings, value::size(&text)?, text).await,
            Field::Source => self.set_disk_source(name, settings, text).await,
        }
    }

    async fn set_disk_size(
        &self,
        name: String,
        settings: Settings,
        bytes: u64,
        text: String,
    ) -> Result<(), VmError> {
        if settings.source.is_some() {
            return Err(DataDiskError::HasSource(name).into());
        }
        if settings.size.is_none_or(|size| bytes > size) {
            self.0.backends.limits.admit_growth()?;
        }
        let number = settings.number;
        let empty = match settings.size {
            None => Some(self.make_disk_file(number, bytes).await?),
            Some(size) if bytes < size => {
                return Err(DataDiskError::Shrinks { wanted: text, size }.into());
            }
            Some(size) if bytes > size => {
                self.grow_disk(number, bytes).await?;
                None
            }
            Some(_) => settings.empty,
        };
        let at = name.clone();
        let set = move |stored: &mut Stored| {
            let settings = stored.get_mut(&at)?;
            (settings.size, settings.empty) = (Some(bytes), empty);
            Ok(())
        };
        self.disks().change(set).await?;
        self.attach_disk(&name).await
    }

    /// Makes the file of a disk; returns how long it is.
    async fn make_disk_file(&self, number: u32, bytes: u64) -> Result<u64, VmError> {
        let (hypervisor, dir) = (&self.0.backends.hypervisor, self.dir());
        hypervisor.make_data_disk(&dir.0, number, bytes).await?;
        let path = dir.data_disk(number);
        let length = move || Ok(fs::metadata(path)?.len());
        Ok(off_thread(length, "the disk").await?)
    }

    async fn set_disk_source(
        &self,
        name: String,
        settings: Settings,
        text: String,
    ) -> Result<(), VmError> {
        if settings.is_own() {
            return Err(DataDiskError::IsOwn(name).into());
        }
        let (own, path) = (Arc::clone(&self.disks().0.own_dirs), text.clone());
        let look = move || Ok(value::source(&path, &own));
        let source = off_thread(look, "the source of a disk").await??;
        if let Some(other) = self.disk_of(&source.path).filter(|other| *other != name) {
            return Err(DataDiskError::Twice { path: text, other }.into());
        }
        if settings.source.as_ref().is_some_and(|old| *old != source) {
            self.detach_disk(&name, &settings).await?;
        }
        let at = name.clone();
        let set = move |stored: &mut Stored| {
            stored.get_mut(&at)?.source = Some(source);
            Ok(())
        };
        self.disks().change(set).await?;
        self.attach_disk(&name).await
    }

    /// Names the disk that has a source.
    fn disk_of(&self, path: &Path) -> Option<String> {
        let stored = self.disks().stored();
        let has = |disk: &Settings| disk.source.as_ref().is_some_and(|source| source.path == path);
        stored.disks.into_iter().find(|(_, disk)| has(disk)).map(|(name, _)| name)
    }

    pub(super) fn tell_of_disk(&self, words: String) {
        self.emit(&Event::Disk(words));
        self.0.bell.ring();
    }
}
