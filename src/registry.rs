//! name → VM: creation, renaming, removal, and finding again what an earlier daemon left.
//!
//! Not here: what a VM does (`vm`), what names look like in the mount (`tree`).

pub mod aliases;
pub mod images;
mod names;
#[cfg(test)]
mod tests;
pub mod trash;
mod warm;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use self::aliases::Aliases;
use self::names::NameLocks;
use self::trash::Trash;
use crate::store::failures::Failures;
use crate::store::file;
use crate::store::layout::{Layout, VmDir};
use crate::store::operation;
use crate::vm::backend::{BackendError, Lifetime};
use crate::vm::definition::Definition;
use crate::vm::driver::{self, NewVm};
use crate::vm::dropped::Remover;
use crate::vm::events::Event;
use crate::vm::origin::OriginError;
use crate::vm::spec::{VmSettings, is_vm_name};
use crate::vm::state::Command;
use crate::vm::{Backends, Vm, VmError, VmId};

/// How long a mount waits for guests that were found running: a guest that listens answers within
/// a few hundred milliseconds, also under TCG.
const GUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the trash is left alone between two looks, at the least and at the most.
const SWEEP_PAUSE: Duration = Duration::from_secs(60);
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);

/// Why a name operation was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// There is no such VM.
    #[error("no VM named {0}")]
    Absent(String),
    /// An earlier operation on this name is not done yet.
    #[error("{name}: an earlier mkdir, mv or rmdir of this name is not done yet; try again")]
    NameBusy {
        /// The name.
        name: String,
    },
    /// The VM does not answer.
    #[error(
        "rmdir: {name} does not answer within {seconds} s and stays as it is; `cat {name}/status`, \
         then try again"
    )]
    NoAnswer {
        /// The VM.
        name: String,
        /// The bound.
        seconds: u64,
    },
    /// The name is not a VM's name.
    #[error(
        "{0:?} is not a VM's name: at most 32 lower-case letters, digits and dashes, no dash first"
    )]
    BadName(String),
    /// An image's source is not understood.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The VM itself refused.
    #[error(transparent)]
    Vm(#[from] VmError),
}

impl From<BackendError> for RegistryError {
    fn from(error: BackendError) -> Self {
        Self::Vm(error.into())
    }
}

/// The VMs of one store.
#[derive(Debug)]
pub struct Registry {
    layout: Layout,
    backends: Backends,
    trash: Trash,
    aliases: Aliases,
    next_id: AtomicU64,
    vms: RwLock<Vms>,
    /// Names being made or renamed to: taken, and not yet anybody's.
    reserved: Mutex<HashSet<String>>,
    /// Held by what gives names or takes them away: a VM cannot be renamed twice at once, nor while
    /// it is removed. Each name has its own: one VM that does not answer holds up no other.
    naming: NameLocks,
}

#[derive(Debug)]
struct Vms {
    by_name: BTreeMap<String, Vm>,
    by_id: HashMap<VmId, Vm>,
    /// When a name last came or went.
    changed: SystemTime,
}

/// A name held for a VM on its way; dropping it gives the name up.
struct Reservation<'a> {
    registry: &'a Registry,
    name: String,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.registry.reserved.lock().remove(&self.name);
    }
}

impl Registry {
    /// Opens a store: adopts the machines that run, lists damaged VMs as such, clears away what
    /// was half made.
    ///
    /// # Errors
    /// Only if the store's own directories cannot be used; one VM's damage is its own.
    pub async fn open(layout: Layout, backends: Backends) -> Result<Self, RegistryError> {
        let (at, failures) = (layout.clone(), Arc::clone(&backends.failures));
        let open = move || {
            let trash = Trash::open(at.trash(), &failures);
            Ok((scan(&at, &failures)?, trash, Aliases::open(at.aliases(), &failures)))
        };
        let (found, trash, aliases) = on_disk("the store", open).await?;
        let registry = Self {
            layout,
            backends,
            trash,
            aliases,
            next_id: AtomicU64::new(1),
            vms: RwLock::new(Vms {
                by_name: BTreeMap::new(),
                by_id: HashMap::new(),
                changed: SystemTime::now(),
            }),
            reserved: Mutex::default(),
            naming: NameLocks::default(),
        };
        registry.backends.defaults.settle(|image| registry.resolve_alias(image));
        registry.adopt(found).await;
        registry.reach_guests().await;
        Ok(registry)
    }

    /// Brings all VMs to life at once: one whose QEMU hangs does not hold up the others.
    async fn adopt(&self, found: Vec<Found>) {
        let mut births = JoinSet::new();
        for vm in found {
            births.spawn(driver::spawn(vm.new_vm(self.fresh_id()), self.backends.clone()));
        }
        while let Some(vm) = births.join_next().await {
            match vm {
                Ok(vm) => self.insert_unique(&vm),
                Err(panic) => tracing::error!(%panic, "a VM could not be taken up"),
            }
        }
    }

    /// Lets guests that run answer before the mount shows them, so that what was `ready` under the
    /// last daemon is `ready` at once.
    async fn reach_guests(&self) {
        let vms = self.list().into_iter().map(|(_, vm)| vm);
        let reached: JoinSet<()> = vms.map(|vm| async move { vm.reached().await }).collect();
        // One that still boots is `running`, which is what it is.
        let _late = tokio::time::timeout(GUEST_TIMEOUT, reached.join_all()).await;
    }

    /// Erases what has been in the trash for long, as it becomes due. It never ends.
    pub async fn keep_trash(self: Arc<Self>) {
        loop {
            let registry = Arc::clone(&self);
            let sweep = move || {
                registry.trash.sweep(SystemTime::now(), &registry.backends.failures);
                Ok(())
            };
            if let Err(error) = on_disk("the trash", sweep).await {
                tracing::error!(%error, "nothing more is erased");
                return;
            }
            let idle = self.trash.idle(SystemTime::now());
            let due = async {
                match idle {
                    // What cannot be erased now is not tried again at once; a clock may be set.
                    Some(idle) => sleep(idle.clamp(SWEEP_PAUSE, SWEEP_INTERVAL)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.trash.arrived.notified() => sleep(SWEEP_PAUSE).await,
            }
        }
    }

    /// Starts the VMs that want it, in the order of their names; a failure is in the VM's `error`.
    pub async fn autostart(self: Arc<Self>) {
        for (name, vm) in self.list() {
            if !vm.spec().autostart || !vm.state().is_off() {
                continue;
            }
            if let Err(error) = vm.perform(Command::Start { paused: false }).await {
                tracing::warn!(vm = %name, %error, "autostart");
                vm.note_outcome(Err::<(), _>(error));
            }
        }
    }

    /// Lists a VM found on disk. Two of one name can only come from tampering: the second is
    /// listed under its UUID's first digits, so that nothing is hidden.
    fn insert_unique(&self, vm: &Vm) {
        let mut name = vm.name();
        if self.vms.read().by_name.contains_key(&name) {
            name = fallback_name(vm.uuid());
        }
        self.insert(name, vm);
        vm.tell(&Event::Found(vm.state().to_string()));
    }

    fn insert(&self, name: String, vm: &Vm) {
        let mut vms = self.vms.write();
        vms.by_id.insert(vm.id(), vm.clone());
        vms.by_name.insert(name, vm.clone());
        vms.changed = SystemTime::now();
    }

    fn fresh_id(&self) -> VmId {
        VmId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns the VM of a name.
    pub fn get(&self, name: &str) -> Option<Vm> {
        self.vms.read().by_name.get(name).cloned()
    }

    /// Returns the VM of a number, also after it was renamed.
    pub fn by_id(&self, id: VmId) -> Option<Vm> {
        self.vms.read().by_id.get(&id).cloned()
    }

    /// Lists all VMs by name.
    pub fn list(&self) -> Vec<(String, Vm)> {
        self.vms.read().by_name.iter().map(|(n, v)| (n.clone(), v.clone())).collect()
    }

    /// Returns how many VMs there are.
    pub fn len(&self) -> usize {
        self.vms.read().by_name.len()
    }

    /// Says whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns when a name last came or went.
    pub fn changed(&self) -> SystemTime {
        self.vms.read().changed
    }

    /// Returns what VMs are run with.
    pub fn backends(&self) -> &Backends {
        &self.backends
    }

    /// Returns where things lie on disk.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes a VM: its definition, and nothing else.
    ///
    /// # Errors
    /// [`RegistryError::Exists`], [`RegistryError::BadName`], or what the disk answered; nothing
    /// is left behind then.
    pub async fn create(self: Arc<Self>, name: String) -> Result<Vm, RegistryError> {
        to_its_end(async move { self.do_create(name).await }).await
    }

    async fn do_create(&self, name: String) -> Result<Vm, RegistryError> {
        let _order = self.naming.take(&[&name]).await?;
        let reservation = self.reserve(&name)?;
        let (uuid, now) = (Uuid::new_v4(), SystemTime::now());
        let settings = VmSettings::new(self.backends.defaults.spec());
        let definition = Definition::new(uuid, now, settings);
        let dir = self.layout.vm(uuid);
        let (at, stored, text) = (dir.clone(), definition.clone(), format!("{name}\n"));
        on_disk("the VM's definition", move || write_new(&at, &stored, &text)).await?;
        let new_vm = NewVm {
            id: self.fresh_id(),
            uuid,
            dir,
            name: name.clone(),
            definition: Ok(definition),
            lifetime: Lifetime::Own,
        };
        let vm = driver::spawn(new_vm, self.backends.clone()).await;
        self.insert(name, &vm);
        vm.tell(&Event::Created);
        drop(reservation);
        Ok(vm)
    }

    fn reserve(&self, name: &str) -> Result<Reservation<'_>, RegistryError> {
        if !is_vm_name(name) {
            return Err(RegistryError::BadName(name.to_owned()));
        }
        let mut reserved = self.reserved.lock();
        if self.get(name).is_some() || !reserved.insert(name.to_owned()) {
            return Err(RegistryError::Exists(name.to_owned()));
        }
        Ok(Reservation { registry: self, name: name.to_owned() })
    }

    /// Removes a VM for a process: into the trash if it ever ran, for good if not.
    ///
    /// # Errors
    /// [`RegistryError::Absent`], the VM's own refusal, or what the disk answered; the VM is there
    /// then as it was.
    pub async fn remove(self: Arc<Self>, name: String, by: Remover) -> Result<(), RegistryError> {
        to_its_end(async move { self.do_remove(name, by).await }).await
    }

    async fn do_remove(self: &Arc<Self>, name: String, by: Remover) -> Result<(), RegistryError> {
        let _order = self.naming.take(&[&name]).await?;
        let vm = self.get(&name).ok_or_else(|| RegistryError::Absent(name.clone()))?;
        let seconds = names::TIMEOUT.as_secs();
        let late = |_| RegistryError::NoAnswer { name: name.clone(), seconds };
        let removal = timeout(names::TIMEOUT, vm.retire(by)).await.map_err(late)??;
        let (dir, kept, registry) = (vm.dir().clone(), name.clone(), Arc::clone(self));
        let put = move || registry.trash.put(&dir, &kept, SystemTime::now());
        on_disk("cannot move the VM to the trash", put).await?;
        removal.done();
        self.forget(&name, &vm);
        vm.tell(&Event::Removed);
        Ok(())
    }

    /// Returns the second names of images.
    pub fn aliases(&self) -> &Aliases {
        &self.aliases
    }

    /// Returns what has been removed and not erased yet.
    pub fn trash(&self) -> &Trash {
        &self.trash
    }

    /// Erases a removed VM for good.
    ///
    /// # Errors
    /// [`RegistryError::Absent`], or what the disk answered.
    pub async fn erase(self: Arc<Self>, removed: String) -> Result<(), RegistryError> {
        let _order = self.naming.take(&[&removed]).await?;
        let absent = RegistryError::Absent(removed.clone());
        let registry = Arc::clone(&self);
        let erased = on_disk("the trash", move || registry.trash.erase(&removed)).await?;
        erased.then_some(()).ok_or(absent)
    }

    /// Brings a removed VM back under a name.
    ///
    /// # Errors
    /// [`RegistryError::Absent`], [`RegistryError::Exists`], [`RegistryError::BadName`], or what
    /// the disk answered; it stays in the trash then.
    pub async fn restore(
        self: Arc<Self>,
        removed: String,
        to: String,
    ) -> Result<(), RegistryError> {
        to_its_end(async move { self.do_restore(removed, to).await }).await
    }

    async fn do_restore(
        self: &Arc<Self>,
        removed: String,
        to: String,
    ) -> Result<(), RegistryError> {
        let _order = self.naming.take(&[&to, &removed]).await?;
        let reservation = self.reserve(&to)?;
        let item = self.trash.get(&removed).ok_or(RegistryError::Absent(removed))?;
        let (registry, text) = (Arc::clone(self), to.clone());
        let found = on_disk("the removed VM", move || {
            file::replace(&item.dir.name(), format!("{text}\n").as_bytes())?;
            // One that was broken is broken again.
            let stored = file::read_json::<Definition>(&item.dir.definition());
            let uuid = stored.map_or_else(|_| Uuid::new_v4(), |stored| stored.uuid);
            let dir = registry.layout.vm(uuid);
            registry.trash.take(&item, &dir)?;
            Ok(read_vm(uuid, dir))
        });
        let vm = driver::spawn(found.await?.new_vm(self.fresh_id()), self.backends.clone()).await;
        self.insert(to, &vm);
        vm.tell(&Event::Created);
        drop(reservation);
        Ok(())
    }

    fn forget(&self, name: &str, vm: &Vm) {
        let mut vms = self.vms.write();
        vms.by_name.remove(name);
        vms.by_id.remove(&vm.id());
        vms.changed = SystemTime::now();
    }

    /// Gives a VM another name, in any state.
    ///
    /// # Errors
    /// [`RegistryError::Absent`], [`RegistryError::Exists`], [`RegistryError::BadName`], or what
    /// the disk answered.
    pub async fn rename(self: Arc<Self>, from: String, to: String) -> Result<(), RegistryError> {
        to_its_end(async move { self.do_rename(from, to).await }).await
    }

    async fn do_rename(&self, from: String, to: String) -> Result<(), RegistryError> {
        let _order = self.naming.take(&[&from, &to]).await?;
        let vm = self.get(&from).ok_or_else(|| RegistryError::Absent(from.clone()))?;
        if from == to {
            return Ok(());
        }
        let reservation = self.reserve(&to)?;
        let (path, text) = (vm.dir().name(), format!("{to}\n"));
        on_disk("the VM's name", move || file::replace(&path, text.as_bytes())).await?;
        vm.renamed(to.clone());
        self.backends.events.add(vm.id(), &from, &Event::Renamed(to.clone()));
        let mut vms = self.vms.write();
        vms.by_name.remove(&from);
        vms.by_name.insert(to, vm);
        vms.changed = SystemTime::now();
        drop(vms);
        drop(reservation);
        Ok(())
    }
}

/// A VM as it lies on disk.
#[derive(Debug)]
struct Found {
    uuid: Uuid,
    dir: VmDir,
    name: String,
    definition: Result<Definition, String>,
}

impl Found {
    fn new_vm(self, id: VmId) -> NewVm {
        let Self { uuid, dir, name, definition } = self;
        NewVm { id, uuid, dir, name, definition, lifetime: Lifetime::Own }
    }
}

fn fallback_name(uuid: Uuid) -> String {
    format!("broken-{}", &uuid.simple().to_string()[..8])
}

fn scan(layout: &Layout, failures: &Failures) -> io::Result<Vec<Found>> {
    file::private_dir(&layout.vms())?;
    // What can be made again: without it the mount is slower, or tells who needs it.
    for dir in [layout.images(), layout.cache()] {
        note_failed(file::private_dir(&dir), &dir, failures);
    }
    for dir in layout.plain_dirs() {
        note_failed(file::sweep(&dir), &dir, failures);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(layout.vms())? {
        let path = entry?.path();
        match uuid_of(&path) {
            Some(uuid) => found.push(read_vm(uuid, VmDir(path))),
            None if is_half_made(&path) => note_failed(remove(&path), &path, failures),
            None => tracing::warn!(path = %path.display(), "not a VM: left alone"),
        }
    }
    Ok(found)
}

fn note_failed(done: io::Result<()>, path: &Path, failures: &Failures) {
    if let Err(error) = done {
        failures.note(path, &error, format!("cannot clear away in {}: {error}", path.display()));
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn uuid_of(path: &Path) -> Option<Uuid> {
    path.file_name()?.to_str()?.parse().ok()
}

fn is_half_made(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn read_vm(uuid: Uuid, dir: VmDir) -> Found {
    if let Err(error) = file::sweep(&dir.0) {
        tracing::warn!(%uuid, %error, "half written files stay");
    }
    let name = fs::read_to_string(dir.name()).unwrap_or_default();
    let name = name.trim_end();
    let definition = read_operations(&dir).and_then(|()| {
        let definition = file::read_json::<Definition>(&dir.definition());
        definition.map_err(|e| format!("{}: {e}", dir.definition().display()))
    });
    let name = if is_vm_name(name) { name.to_owned() } else { fallback_name(uuid) };
    Found { uuid, dir, name, definition }
}

/// Looks whether it can be known what an earlier daemon has not finished: without that nothing may be
/// done with the VM.
fn read_operations(dir: &VmDir) -> Result<(), String> {
    if let Err(error) = operation::convert(dir) {
        // They are read where they are.
        tracing::warn!(dir = %dir.0.display(), %error, "files of an earlier version stay");
    }
    operation::list(dir).map(drop).map_err(|error| error.to_string())
}

/// Writes a new VM's directory under a hidden name and renames it: it is whole or absent.
fn write_new(dir: &VmDir, definition: &Definition, name: &str) -> io::Result<()> {
    let parent = dir.0.parent().unwrap_or(&dir.0);
    let hidden = tempfile::Builder::new().prefix(".new").tempdir_in(parent)?;
    let half = VmDir(hidden.path().to_owned());
    fs::write(half.format(), driver::suspended::FORMAT)?;
    file::replace(&half.name(), name.as_bytes())?;
    file::replace_json(&half.definition(), definition)?;
    fs::rename(&half.0, &dir.0)?;
    // The directory lives on under its new name.
    drop(hidden.keep());
    file::sync_dir(parent)
}

/// Runs a name operation to its end, also when the caller is interrupted and gives it up: one done
/// by half would leave the disk and the names disagreeing.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, RegistryError>> + Send + 'static,
) -> Result<T, RegistryError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(panic) => {
            let (what, error) = ("a name operation".to_owned(), panic.to_string());
            Err(BackendError::Io { what, error, errno: 0 }.into())
        }
    }
}

async fn on_disk<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, BackendError> {
    driver::off_thread(work, what).await
}
