//! Limits of all VMs of the mount together, as `.limits` shows them: what they are, what the store takes, and which start
//! or making is refused.
//!
//! Not here: what VMs have been promised (`memory`), and who holds processor time (`qemu::limits`).

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::VmError;
use super::backend::{BackendError, Hypervisor};
use super::driver::off_thread;
use super::memory::Need;
use super::spec::limit::{NONE, memory, render_size_or_none};
use super::spec::{CpuLimit, SpecError, parse_size, render_size};
use crate::store::failure_log::FailureLog;
use crate::store::layout::Layout;
use crate::store::{file, quarantine};

/// How often the store is measured while it has a limit. Guests write without asking.
const MEASURED_EVERY: Duration = Duration::from_secs(10);

/// The limits; `None` is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TotalLimits {
    /// What all get of the host's processors.
    pub cpus: Option<CpuLimit>,
    /// The sum of `config/memory` of those that run, in bytes.
    pub memory: Option<u64>,
    /// What the store may take, in bytes.
    pub disk: Option<u64>,
    /// How many may run at once.
    pub vms: Option<u32>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the fields of TotalLimits")]
pub enum Total {
    Cpus,
    Memory,
    Disk,
    Vms,
}

impl TotalLimits {
    fn set(&mut self, which: Total, text: &str) -> Result<(), SpecError> {
        let text = if text.is_empty() { NONE } else { text };
        match which {
            Total::Cpus => self.cpus = CpuLimit::parse("cpus", text)?,
            Total::Memory => self.memory = memory("memory", text)?,
            Total::Disk => self.disk = of_disk(text)?,
            Total::Vms => self.vms = of_vms(text)?,
        }
        Ok(())
    }

    fn render(&self, which: Total) -> String {
        match which {
            Total::Cpus => CpuLimit::render_or_none(self.cpus),
            Total::Memory => render_size_or_none(self.memory),
            Total::Disk => render_size_or_none(self.disk),
            Total::Vms => self.vms.map_or_else(|| NONE.to_owned(), |n| n.to_string()),
        }
    }
}

fn of_disk(text: &str) -> Result<Option<u64>, SpecError> {
    let expected = "a size such as 20G, or none";
    let malformed = || SpecError::Malformed { key: "disk", value: text.to_owned(), expected };
    match text {
        NONE => Ok(None),
        _ => parse_size(text).map(Some).ok_or_else(malformed),
    }
}

fn of_vms(text: &str) -> Result<Option<u32>, SpecError> {
    let expected = "a number of VMs such as 4, or none";
    let malformed = |_| SpecError::Malformed { key: "vms", value: text.to_owned(), expected };
    match text {
        NONE => Ok(None),
        _ => text.parse().map(Some).map_err(malformed),
    }
}

/// What VMs that run have, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// How many they are.
    pub vms: u32,
    /// Their memory, as `config/memory` has it.
    pub memory: u64,
}

/// The limits of a mount.
#[derive(Debug)]
pub struct Limits {
    layout: Layout,
    hypervisor: Arc<dyn Hypervisor>,
    state: RwLock<Current>,
    /// One writer at a time, over the write to disk.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    stored: TotalLimits,
    changed: SystemTime,
    /// What the store took when it was measured last.
    disk: u64,
}

impl Limits {
    /// Reads the stored limits.
    pub fn open(
        layout: &Layout,
        hypervisor: Arc<dyn Hypervisor>,
        failures: &FailureLog,
    ) -> Arc<Self> {
        let stored = quarantine::read_json(&layout.limits(), failures).unwrap_or_default();
        let state = Current { stored, changed: SystemTime::now(), disk: 0 };
        Arc::new(Self {
            layout: layout.clone(),
            hypervisor,
            state: RwLock::new(state),
            turn: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Has the host hold what it holds, and measures the store as long as it has a limit.
    pub async fn keep(self: Arc<Self>) {
        loop {
            let has_limit = self.state.read().stored.disk.is_some();
            if has_limit {
                self.measure().await;
            }
            let interval = if has_limit { MEASURED_EVERY } else { Duration::MAX };
            drop(timeout(interval, self.changed.notified()).await);
        }
    }

    /// Puts the stored limit of processors into force, before there is a machine.
    pub async fn begin(&self) {
        let cpus = self.state.read().stored.cpus;
        if cpus.is_some() {
            self.hypervisor.limit_all_cpus(cpus).await;
        }
    }

    /// Prints one.
    pub fn render(&self, which: Total) -> String {
        self.state.read().stored.render(which)
    }

    /// Returns when one was last changed.
    pub fn changed(&self) -> SystemTime {
        self.state.read().changed
    }

    /// Writes one: a value, `none` or an empty text.
    ///
    /// # Errors
    /// [`VmError::Spec`], or what the disk answered; nothing changes then.
    pub async fn set(self: Arc<Self>, which: Total, text: String) -> Result<(), VmError> {
        let _turn = self.turn.lock().await;
        let mut next = self.state.read().stored;
        next.set(which, text.trim())?;
        let path = self.layout.limits();
        off_thread(move || file::replace_json(&path, &next), "the limits").await?;
        {
            let mut state = self.state.write();
            (state.stored, state.changed) = (next, SystemTime::now());
        }
        match which {
            Total::Cpus => self.hypervisor.limit_all_cpus(next.cpus).await,
            Total::Disk => {
                self.measure().await;
                self.changed.notify_one();
            }
            Total::Memory | Total::Vms => {}
        }
        Ok(())
    }

    async fn measure(&self) {
        let root = self.layout.root().to_owned();
        if let Ok(bytes) = off_thread(move || Ok(bytes_in(&root)), "the store").await {
            self.state.write().disk = bytes;
        }
    }

    /// Says what is used of each, as `.limits/used` shows it. Looks at the whole store.
    pub fn print(&self, used: Used) -> String {
        let Used { vms, memory } = used;
        let mut text = format!(
            "vms {vms}\nmemory {}\ndisk {}\n",
            render_size(memory),
            render_size(bytes_in(self.layout.root()))
        );
        if let Some(limit) = self.state.read().stored.cpus {
            let how = match self.hypervisor.holds_cpus() {
                Ok(()) => "by cgroup".to_owned(),
                Err(reason) => format!("not held: {reason}"),
            };
            text.push_str(&format!("cpus {limit}, {how}\n"));
        }
        text
    }

    /// Refuses what would take more than all VMs may have.
    ///
    /// # Errors
    /// `Quota`
    pub fn admit(&self, used: Used, need: &Need) -> Result<(), BackendError> {
        let limits = self.state.read().stored;
        let vms = used.vms.saturating_add(need.machines);
        if let Some(limit) = limits.vms.filter(|limit| vms > *limit) {
            let what = format!(
                "{limit} VMs may run at once (.limits/vms), {} do; stop one, or write a larger number there",
                used.vms
            );
            return Err(BackendError::Quota { what });
        }
        let memory = used.memory.saturating_add(need.memory);
        if let Some(limit) = limits.memory.filter(|limit| memory > *limit) {
            let what = format!(
                "all VMs that run may have {} of memory (.limits/memory), they have {}, and {} more are needed; \
                 stop one, lower config/memory, or write a larger size there",
                render_size(limit),
                render_size(used.memory),
                render_size(need.memory)
            );
            return Err(BackendError::Quota { what });
        }
        Ok(())
    }

    /// Refuses what would make the store larger, once it has all that it may.
    ///
    /// # Errors
    /// `Quota`
    pub fn admit_growth(&self) -> Result<(), BackendError> {
        let Current { stored, disk, .. } = *self.state.read();
        let Some(limit) = stored.disk.filter(|limit| disk >= *limit) else { return Ok(()) };
        let what = format!(
            "the store may take {} (.limits/disk), and takes {}; remove VMs, snapshots or images, `rmdir .trash/*`, \
             or write a larger size there",
            render_size(limit),
            render_size(disk)
        );
        Err(BackendError::Quota { what })
    }
}

/// Returns what the files in a directory take of the disk, without other file systems that are mounted there. What has
/// several names counts once.
fn bytes_in(root: &Path) -> u64 {
    let Ok(device) = fs::symlink_metadata(root).map(|meta| meta.dev()) else { return 0 };
    let (mut dirs, mut seen, mut blocks) = (vec![root.to_owned()], HashSet::new(), 0);
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            blocks += blocks_of(path, device, &mut seen, &mut dirs);
        }
    }
    blocks * 512
}

fn blocks_of(path: PathBuf, device: u64, seen: &mut HashSet<u64>, dirs: &mut Vec<PathBuf>) -> u64 {
    match fs::symlink_metadata(&path) {
        Ok(meta) if meta.dev() == device => {
            if meta.is_dir() {
                dirs.push(path);
            }
            let is_first = meta.is_dir() || meta.nlink() == 1 || seen.insert(meta.ino());
            if is_first { meta.blocks() } else { 0 }
        }
        Ok(_) | Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::fake::{Script, fake};
    use crate::vm::memory::Ram;

    fn limits(dir: &Path) -> Arc<Limits> {
        Limits::open(&Layout::new(dir), fake(&Arc::<Script>::default()), &FailureLog::default())
    }

    #[tokio::test]
    async fn they_are_stored_and_empty_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let all = [Total::Cpus, Total::Memory, Total::Disk, Total::Vms];
        let now = || all.map(|which| limits(dir.path()).render(which));
        assert_eq!(now(), ["none"; 4]);
        for (which, text) in all.into_iter().zip(["1.50", "2048M", "20g", "3"]) {
            limits(dir.path()).set(which, format!("{text}\n")).await.unwrap();
        }
        assert_eq!(now(), ["1.5", "2G", "20G", "3"]);
        for (which, text) in all.into_iter().zip(["50%", "1K", "much", "-1"]) {
            assert!(limits(dir.path()).set(which, text.to_owned()).await.is_err(), "{text}");
        }
        assert_eq!(now(), ["1.5", "2G", "20G", "3"]);
        for (which, text) in all.into_iter().zip(["", "none", "\n", "none"]) {
            limits(dir.path()).set(which, text.to_owned()).await.unwrap();
        }
        assert_eq!(now(), ["none"; 4]);
    }

    #[tokio::test]
    async fn what_is_over_is_refused_with_the_numbers_and_the_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let limits = limits(dir.path());
        let need = Need::of(256 << 20, 0, Ram::Own);
        let used = Used { vms: 2, memory: 512 << 20 };
        limits.admit(used, &need).unwrap();
        Arc::clone(&limits).set(Total::Vms, "2".to_owned()).await.unwrap();
        let error = limits.admit(used, &need).unwrap_err().to_string();
        assert!(
            error.starts_with("2 VMs may run at once (.limits/vms), 2 do; stop one"),
            "{error}"
        );
        Arc::clone(&limits).set(Total::Vms, "3".to_owned()).await.unwrap();
        limits.admit(used, &need).unwrap();
        Arc::clone(&limits).set(Total::Memory, "600M".to_owned()).await.unwrap();
        let error = limits.admit(used, &need).unwrap_err().to_string();
        assert!(error.contains("(.limits/memory), they have 512M, and 256M more are"), "{error}");
        limits.admit_growth().unwrap();
        fs::write(dir.path().join("file"), vec![1; 100_000]).unwrap();
        fs::hard_link(dir.path().join("file"), dir.path().join("same")).unwrap();
        assert!(bytes_in(dir.path()) < 200_000, "{}", bytes_in(dir.path()));
        Arc::clone(&limits).set(Total::Disk, "64K".to_owned()).await.unwrap();
        let error = limits.admit_growth().unwrap_err().to_string();
        assert!(error.starts_with("the store may take 64K (.limits/disk), and takes 1"), "{error}");
        limits.set(Total::Disk, "1G".to_owned()).await.unwrap();
    }
}
