//! Templates: the disk, memory and device state of a machine, from which new machines are loaded.
//!
//! Here is what is known of one, and the comparison of shapes: pure. Capturing is `qemu::capture`,
//! its files are the image store's, and a clone's identity is `guest::identity`'s.

use std::fmt::{self, Debug};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{BoxFuture, Shared};
use serde::{Deserialize, Serialize};

use super::backend::{AccelKind, BackendError, DiskPlace, NicPlace, Pin};
use super::hardware::Devices;
use super::spec::{ImageSettings, VmSpec, render_size};
pub use crate::disk::Layer;

/// What a machine's memory and device state depend on: another machine cannot load them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// QEMU's version: `7.2.22`.
    pub qemu: String,
    /// The machine type with its version.
    pub machine: String,
    /// How it runs.
    pub accel: AccelKind,
    /// QEMU's `-cpu` argument.
    pub cpu: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// The disk's virtual size in bytes.
    pub disk: u64,
    /// Everything else that the guest sees as hardware.
    pub devices: Devices,
    /// The network devices for nets, which are plugged in where they are missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicPlace>,
    /// The data disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskPlace>,
}

/// A name and the words for it.
type Fact = (&'static str, fn(&Shape) -> String);

impl Shape {
    /// Says in what `wanted` differs from this template, first thing first; `None` if in nothing.
    /// `whose` names the template's owner: "the image's".
    pub fn difference(&self, wanted: &Self, whose: &str) -> Option<String> {
        let facts: [Fact; 9] = [
            ("QEMU", |s| s.qemu.clone()),
            ("machine", |s| s.machine.clone()),
            ("accel", |s| s.accel.word().to_owned()),
            ("cpu", |s| s.cpu.clone()),
            ("cpus", |s| s.cpus.to_string()),
            ("memory", |s| render_size(s.memory)),
            ("disk", |s| render_size(s.disk)),
            ("hardware", |s| s.devices.hardware.to_string()),
            ("devices", |s| s.devices.words.clone()),
        ];
        let (what, of) = facts.into_iter().find(|(_, of)| of(self) != of(wanted))?;
        Some(format!("{what} is {}, {whose} is {}", of(wanted), of(self)))
    }

    /// Describes it in one line.
    pub fn summary(&self) -> String {
        let Self { qemu, machine, cpus, memory, disk, .. } = self;
        let accel = self.accel.word();
        let (memory, disk) = (render_size(*memory), render_size(*disk));
        format!("cpus {cpus} memory {memory} disk {disk} accel {accel} qemu {qemu} {machine}")
    }
}

/// Names the setting that asks for a boot, if one does: another value than that with which the
/// template's guest has booted would have no effect on it.
pub fn asks_for_a_boot(spec: &VmSpec, captured: &VmSpec) -> Option<&'static str> {
    let settings = [
        ("kernel", spec.kernel != captured.kernel),
        ("initrd", spec.initrd != captured.initrd),
        ("cmdline", spec.cmdline != captured.cmdline),
        ("firmware", spec.firmware != captured.firmware),
        ("ssh_user", spec.ssh_user != captured.ssh_user),
        ("user_data", spec.user_data != captured.user_data),
        ("network_data", spec.network_data != captured.network_data),
        ("ignition", spec.ignition != captured.ignition),
        ("credentials", spec.credentials != captured.credentials),
    ];
    settings.into_iter().find(|(_, differs)| *differs).map(|(key, _)| key)
}

/// Whether an image has a template, as `.images/NAME/warm` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WarmStatus {
    /// There is none.
    #[default]
    Cold,
    /// It is being made: how far that is.
    Warming(String),
    /// What it is like.
    Warm(String),
    /// Why the last attempt failed.
    Failed(String),
}

impl fmt::Display for WarmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cold => f.write_str("no"),
            Self::Warming(how_far) => write!(f, "warming: {how_far}"),
            Self::Warm(summary) => write!(f, "yes: {summary}"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

/// A template, checked and ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Its name among those of its image; of a machine that is forked, that machine's name.
    pub id: String,
    /// The memory, which clones map copy-on-write, and the state of processors and devices.
    pub saved: Saved,
    /// What a clone's disk is an overlay on, top first.
    pub base: Vec<Layer>,
    /// What a clone must be like.
    pub shape: Shape,
}

/// Where a captured machine's memory and device state are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saved {
    /// In files, which stay.
    Files {
        /// The memory.
        ram: PathBuf,
        /// The state of processors and devices.
        state: PathBuf,
    },
    /// In memory of the host that has no name: it is free when no machine maps it any more.
    Nameless(Arc<NamelessMemory>),
}

impl Saved {
    /// Names the two files in a directory.
    pub fn in_dir(dir: &Path) -> Self {
        Self::Files { ram: dir.join(names::RAM), state: dir.join(names::STATE) }
    }

    /// Waits until nobody can change it any more. No guest that is loaded from it may run before that.
    ///
    /// # Errors
    /// Why it has not come to that.
    pub async fn is_final(&self) -> Result<(), BackendError> {
        match self {
            Self::Files { .. } => Ok(()),
            Self::Nameless(memory) => memory.is_final.clone().await,
        }
    }
}

/// A captured machine's memory and device state in two memfds.
pub struct NamelessMemory {
    /// The memory.
    pub ram: Arc<OwnedFd>,
    /// The state of processors and devices.
    pub state: OwnedFd,
    /// Resolves when both are final: nobody can change them any more.
    pub is_final: Shared<BoxFuture<'static, Result<(), BackendError>>>,
}

impl Debug for NamelessMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamelessMemory").field("ram", &self.ram).finish_non_exhaustive()
    }
}

/// No two are alike.
impl PartialEq for NamelessMemory {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for NamelessMemory {}

/// Where a machine's memory comes from.
#[expect(clippy::large_enum_variant, reason = "there is one for each start of a machine")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// It is its own, and empty: the machine boots.
    #[default]
    Own,
    /// It is a file, and what another machine sends is taken in before anything runs.
    CaptureTarget {
        /// The file; `None`: a descriptor that QEMU inherits.
        ram: Option<PathBuf>,
        /// Whether all its pages are made before the machine greets.
        prepared: bool,
    },
    /// It is a template's, of which it changes its own copy only.
    Clone(Template),
}

/// What a machine is captured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A template of an image: files, which stay.
    Template,
    /// Forks, which are loaded at once.
    Fork,
}

/// What a machine has written of itself.
#[derive(Debug)]
pub struct SavedMachine {
    /// How long its processors were stopped.
    pub pause: Duration,
    /// Its memory and state.
    pub saved: Saved,
    /// Its disk.
    pub disk: SavedDisk,
}

/// The disk of a captured machine, as it was at that instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavedDisk {
    /// A snapshot in it.
    Snapshot,
    /// This file, which shares its blocks with the disk.
    Reflink(PathBuf),
}

/// What a capture has written: memory, state, and what keeps the disk as it was.
#[derive(Debug)]
pub struct Captured {
    /// What it was like.
    pub shape: Shape,
    /// The settings that it ran with, as far as its image carries them.
    pub settings: ImageSettings,
    /// How long its processors were stopped.
    pub pause: Duration,
    /// Its memory and state.
    pub saved: Saved,
    /// Its disk, top first.
    pub disk: Vec<Layer>,
    /// The snapshot of the first layer that is the captured content, and is dropped with `hold`;
    /// `None` if it is that file as a whole.
    pub snapshot: Option<String>,
    /// Its data disks.
    pub data: Vec<CapturedData>,
    /// Keeps the disk as it is.
    pub hold: Pin,
}

/// A data disk of a captured machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedData {
    /// Its number.
    pub number: u32,
    /// The file that has it, in the same snapshot as the disk.
    pub from: PathBuf,
    /// Where a copy of it alone is made, unless that is the file that has it.
    pub copy: PathBuf,
}

/// The names of the files that a capture writes.
pub mod names {
    /// The memory.
    pub const RAM: &str = "ram";
    /// The state of processors and devices.
    pub const STATE: &str = "state";

    /// The copy of the data disk with this number.
    pub fn data(number: u32) -> String {
        format!("data-{number}.qcow2")
    }
}

/// Takes in how far a capture is, in a few words.
pub type ProgressFn<'a> = dyn Fn(&str) + Send + Sync + 'a;

/// A machine that can be captured.
#[async_trait]
pub trait Capture: Debug + Send + Sync {
    /// Writes its memory and state into an empty directory. `progress` takes words for people.
    async fn capture(&self, to: &Path, progress: &ProgressFn<'_>)
    -> Result<Captured, BackendError>;
}

#[cfg(test)]
impl Shape {
    /// A small machine, as the fake hypervisor makes them.
    pub(crate) fn sample() -> Self {
        Self {
            qemu: "7.2.22".into(),
            machine: "pc-q35-7.2".into(),
            accel: AccelKind::Tcg,
            cpu: "max".into(),
            cpus: 1,
            memory: 256 << 20,
            disk: 2 << 30,
            devices: Devices::default(),
            nics: Vec::new(),
            disks: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_in_the_words_of_the_settings() {
        let captured = Shape::sample();
        assert_eq!(captured.difference(&Shape::sample(), "the image's"), None);
        let larger = Shape { memory: 512 << 20, cpus: 2, ..Shape::sample() };
        assert_eq!(
            captured.difference(&larger, "the image's").unwrap(),
            "cpus is 2, the image's is 1"
        );
        let larger = Shape { memory: 512 << 20, ..Shape::sample() };
        assert_eq!(
            captured.difference(&larger, "the image's").unwrap(),
            "memory is 512M, the image's is 256M"
        );
        let kvm = Shape { accel: AccelKind::Kvm, ..Shape::sample() };
        assert_eq!(
            captured.difference(&kvm, "the image's").unwrap(),
            "accel is kvm, the image's is tcg"
        );
        let newer = Shape { qemu: "10.0.2".into(), ..Shape::sample() };
        assert!(captured.difference(&newer, "the image's").unwrap().starts_with("QEMU is 10.0.2"));
    }

    #[test]
    fn settings_of_a_boot_are_named() {
        let (plain, spec) =
            (VmSpec::default(), VmSpec { cmdline: Some("quiet".into()), ..VmSpec::default() });
        assert_eq!(asks_for_a_boot(&plain, &plain), None);
        assert_eq!(asks_for_a_boot(&spec, &plain), Some("cmdline"));
        assert_eq!(asks_for_a_boot(&plain, &spec), Some("cmdline"));
        assert_eq!(asks_for_a_boot(&spec, &spec), None);
        let told = VmSpec { user_data: Some("#cloud-config".into()), ..VmSpec::default() };
        assert_eq!(asks_for_a_boot(&told, &plain), Some("user_data"));
    }
}
