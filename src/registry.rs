//! The VMs of a store: which there are, under which names, and adopting what an earlier daemon left.
//!
//! - `lifecycle`: creating, renaming, removing a VM and bringing it back; `names`: the locks for that.
//! - [`fork`]: running copies of a VM.
//! - `scan`: a VM's directory, read and written. [`trash`]: removed VMs.
//! - [`images`], [`aliases`], `warmup`: images as far as VMs are concerned.
//!
//! Not here: what a VM does (`vm`), what names look like in the mount (`tree`).

pub mod aliases;
mod autoremove;
mod error;
pub mod expire;
pub mod fork;
pub mod images;
mod lifecycle;
mod names;
mod scan;
#[cfg(test)]
mod tests;
pub mod trash;
mod warmup;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::aliases::Aliases;
pub use self::error::{RegistryError, Result};
use self::fork::NamesHook;
use self::names::NameLocks;
use self::scan::{fallback_name, scan};
use self::trash::Trash;
use crate::store::layout::Layout;
use crate::vm::backend::BackendError;
use crate::vm::driver::{self, NewVm, off_thread};
use crate::vm::events::Event;
use crate::vm::state::Command;
use crate::vm::{Backends, Vm, VmId};

/// How long a mount waits for guests that were found running: a guest that listens answers within
/// a few hundred milliseconds, also under TCG.
const GUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The shortest and the longest time between two sweeps of the trash.
const MIN_SWEEP_INTERVAL: Duration = Duration::from_secs(60);
const MAX_SWEEP_INTERVAL: Duration = Duration::from_secs(3600);

/// The VMs of one store.
#[derive(Debug)]
pub struct Registry {
    layout: Layout,
    backends: Backends,
    trash: Trash,
    aliases: Aliases,
    next_id: AtomicU64,
    vms: RwLock<Vms>,
    /// Held by operations on names: a VM cannot be renamed twice at once, nor while it is removed, and no
    /// two can get one name. Each name has its own lock: a VM that does not answer delays no other.
    name_locks: NameLocks,
    names_hook: Arc<NamesHook>,
}

#[derive(Debug)]
struct Vms {
    by_name: BTreeMap<String, Vm>,
    by_id: HashMap<VmId, Vm>,
    /// When a name last came or went.
    changed: SystemTime,
}

impl Registry {
    /// Opens a store: adopts the machines that run, lists damaged VMs as `broken`, and removes what was not
    /// finished.
    ///
    /// # Errors
    /// Only if the store's own directories cannot be used.
    pub async fn open(layout: Layout, backends: Backends) -> Result<Self> {
        let (at, failures) = (layout.clone(), Arc::clone(&backends.failures));
        let open = move || {
            let trash = Trash::open(at.trash(), &failures);
            Ok((scan(&at, &failures)?, trash, Aliases::open(at.aliases(), &failures)))
        };
        let (found, trash, aliases) = off_thread(open, "the store").await?;
        let vms =
            Vms { by_name: BTreeMap::new(), by_id: HashMap::new(), changed: SystemTime::now() };
        let registry = Self {
            layout,
            backends,
            trash,
            aliases,
            next_id: AtomicU64::new(found.len() as u64 + 1),
            vms: RwLock::new(vms),
            name_locks: NameLocks::default(),
            names_hook: Arc::default(),
        };
        registry.backends.defaults.settle(|image| registry.resolve_alias(image));
        registry.adopt(found).await;
        registry.backends.nets.settle().await;
        registry.reach_guests().await;
        Ok(registry)
    }

    /// Starts the drivers of all VMs at once: a QEMU that hangs does not delay the others.
    async fn adopt(&self, found: Vec<NewVm>) {
        let mut drivers = JoinSet::new();
        for vm in found {
            drivers.spawn(driver::spawn(vm, self.backends.clone()));
        }
        while let Some(vm) = drivers.join_next().await {
            match vm {
                Ok(vm) if self.cleared_half_fork(&vm).await => {}
                Ok(vm) => self.insert_unique(&vm),
                Err(panic) => tracing::error!(%panic, "the driver of a VM has not started"),
            }
        }
    }

    /// Lets guests that run answer before the mount shows them, so that what was `ready` under the
    /// last daemon is `ready` at once.
    async fn reach_guests(&self) {
        let vms = self.list().into_iter().map(|(_, vm)| vm);
        let reached: JoinSet<()> = vms.map(|vm| async move { vm.reached().await }).collect();
        // One that still boots is `running`, which is what it is.
        let _late = timeout(GUEST_TIMEOUT, reached.join_all()).await;
    }

    /// Erases removed VMs as they become due. It never returns, unless the trash cannot be swept any more.
    pub async fn keep_trash(self: Arc<Self>) {
        loop {
            let registry = Arc::clone(&self);
            let sweep = move || {
                registry.trash.sweep(SystemTime::now(), &registry.backends.failures);
                registry.backends.images.sweep();
                Ok(())
            };
            if let Err(error) = off_thread(sweep, "the trash").await {
                tracing::error!(%error, "nothing more is erased");
                return;
            }
            let idle = self.trash.idle(SystemTime::now());
            let due = async {
                match idle {
                    // What cannot be erased now is not tried again at once; a clock may be set.
                    Some(idle) => sleep(idle.clamp(MIN_SWEEP_INTERVAL, MAX_SWEEP_INTERVAL)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.trash.arrived.notified() => sleep(MIN_SWEEP_INTERVAL).await,
            }
        }
    }

    /// Starts the VMs with `autostart`, in the order of their names; a failure is in the VM's `error`.
    pub async fn autostart(self: Arc<Self>) {
        for (name, vm) in self.list() {
            let is_over = vm.expires().is_some_and(|at| at <= SystemTime::now());
            if !vm.spec().autostart || !vm.state().is_off() || is_over {
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
        vm.emit(&Event::Found(vm.state().to_string()));
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

    /// Returns what VMs run on.
    pub fn backends(&self) -> &Backends {
        &self.backends
    }

    /// Returns the paths in the store.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the aliases of images.
    pub fn aliases(&self) -> &Aliases {
        &self.aliases
    }

    /// Returns what has been removed and not erased yet.
    pub fn trash(&self) -> &Trash {
        &self.trash
    }
}

/// Runs a name operation to its end, also if its caller is interrupted: after half of one, the disk and the
/// list of VMs would differ.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(panic) => Err(BackendError::fact("a name operation", panic.to_string(), 0).into()),
    }
}
