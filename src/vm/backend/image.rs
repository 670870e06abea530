//! Images: what they offer for booting, and how they are made and captured.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{BackendError, DiskFormat};
use crate::arch::Arch;
use crate::programs::Program;
use crate::vm::origin::Origin;
use crate::vm::spec::ImageSettings;
use crate::vm::stream::Listener;
use crate::vm::template::{Capture, Captured, Layer, Template, WarmStatus};

/// What an image offers for booting. Every source of images ends in this shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootImage {
    /// Its name under `.images`.
    pub name: String,
    /// `sha256:…` over its contents.
    pub digest: String,
    /// The immutable base disk, absolute.
    pub disk: PathBuf,
    /// The base disk's format.
    pub format: DiskFormat,
    /// The base disk's virtual size in bytes: a VM's disk is never smaller.
    pub disk_size: u64,
    /// A kernel for direct boot; `None` boots from the disk.
    pub kernel: Option<PathBuf>,
    /// The same kernel as UEFI starts it.
    #[serde(default)]
    pub efi_kernel: Option<PathBuf>,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub cmdline: String,
    /// The guest opens the virtio-serial port `org.aqfs.ready` when SSH listens, and keeps it open.
    pub announces: bool,
    /// How the guest gets its name and keys.
    #[serde(default)]
    pub seed: SeedKind,
    /// What a VM's UEFI variables are at first, a qcow2 image; `None`: what the firmware has.
    #[serde(default)]
    pub nvram: Option<PathBuf>,
}

/// How a guest gets its name and its keys at boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeedKind {
    /// A tar file in fw_cfg: images of ours.
    #[default]
    FwCfg,
    /// A disk labelled `cidata`, which cloud-init reads: stock cloud images.
    Nocloud,
}

/// What an image is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageStatus {
    /// Known, and nothing is on disk.
    Absent,
    /// Its inputs are being fetched.
    Fetching,
    /// It is being put together.
    Building,
    /// It can be booted.
    Ready,
    /// The last attempt failed.
    Failed(String),
}

/// The word of an image's `status`, with its reason.
impl fmt::Display for ImageStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Fetching => f.write_str("fetching"),
            Self::Building => f.write_str("building"),
            Self::Ready => f.write_str("ready"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

/// What `.images/NAME` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its name.
    pub name: String,
    /// Where it comes from: `builtin:tiny`.
    pub source: String,
    /// `builtin`, `disk`, `cloud`, …
    pub kind: String,
    /// The image that the VM it was made from used; empty for others.
    pub parent: String,
    /// `sha256:…`, empty until it is ready.
    pub digest: String,
    /// Bytes on disk.
    pub size: u64,
    /// What it is doing.
    pub status: ImageStatus,
    /// One line for people: `building root file system 3/5`.
    pub progress: String,
    /// Last change.
    pub changed: SystemTime,
    /// Whether it has a template.
    pub warm: WarmStatus,
    /// What it carries to its VMs.
    pub settings: ImageSettings,
    /// By which recipe it was made; `None` for one without.
    pub recipe: Option<Recipes>,
    /// What it was made of, and how that was verified.
    pub inputs: Vec<String>,
}

/// The number of the recipe that an image was made by, and that of the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipes {
    /// 0: by one that had no number yet.
    pub made_by: u32,
    /// The present one.
    pub present: u32,
}

impl fmt::Display for Recipes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { made_by, present } = self;
        match made_by == present {
            true => write!(f, "{made_by}"),
            false => write!(f, "{made_by}, this aqfs has {present}"),
        }
    }
}

/// Keeps a VM that is off from being started or removed; dropping it releases the VM.
#[derive(Debug)]
pub struct Pin(
    #[expect(dead_code, reason = "its end is its message")] pub(in crate::vm) oneshot::Sender<()>,
);

/// A VM's disk that is to become an image.
#[derive(Debug)]
pub struct Publication {
    /// `vm1@clean`
    pub origin: String,
    /// The VM's disk.
    pub disk: PathBuf,
    /// The snapshot in it; `None`: as it is.
    pub snapshot: Option<String>,
    /// The image that the VM was made from.
    pub base: BootImage,
    /// What the disk is an overlay on, top first.
    pub layers: Vec<Layer>,
    /// What the image carries to its VMs.
    pub settings: ImageSettings,
    /// Keeps the disk as it is meanwhile.
    pub hold: Option<Pin>,
}

/// A VM that runs and is to become an image.
#[derive(Debug)]
pub struct LivePublication {
    /// `vm1`
    pub origin: String,
    /// The VM.
    pub machine: Arc<dyn Capture>,
    /// The image that it was made from.
    pub base: BootImage,
}

/// What the disks of forks are made from.
#[derive(Debug)]
pub struct ForkBase {
    /// The version of an image that the parent's disk was made from.
    pub image: BootImage,
    /// What each fork's disk is an overlay on, top first.
    pub layers: Vec<Layer>,
    /// What each fork's disk is at first: a file that shares its blocks with this one; `None`: empty.
    pub reflink: Option<PathBuf>,
    /// Their virtual size.
    pub size: u64,
    /// Their data disks: the number of each, and the file that each fork gets a copy of.
    pub data: Vec<(u32, PathBuf)>,
}

/// What an image is made from.
#[derive(Debug)]
pub enum Recipe {
    /// `builtin:tiny`
    Tiny(Arch),
    /// `builtin:blank`
    Blank,
    /// A disk image on this host.
    File(PathBuf),
    /// A distribution's disk: this release, or the newest.
    Distribution {
        /// `alpine`
        name: String,
        /// `3.22`
        version: Option<String>,
    },
    /// A disk at an address.
    Url {
        /// Where it is.
        url: String,
        /// `sha256=…`
        checksum: String,
    },
    /// A container image, or an archive of a root file system.
    Container(Origin),
    /// The disk of a VM that is off.
    Vm(Box<Publication>),
    /// A VM that runs: its disk and its memory.
    Live(Box<LivePublication>),
}

impl Recipe {
    /// Says whether it is fetched from elsewhere: that begins at `pull`, or at the first start.
    pub fn is_download(&self) -> bool {
        match self {
            Self::Container(origin) => matches!(origin, Origin::Registry(_)),
            Self::Distribution { .. } | Self::Url { .. } => true,
            Self::Tiny(_) | Self::Blank | Self::File(_) | Self::Vm(_) | Self::Live(_) => false,
        }
    }
}

/// The images.
#[async_trait]
pub trait Images: fmt::Debug + Send + Sync {
    /// Lists them by name, also those that are not on disk yet.
    fn list(&self) -> Vec<ImageInfo>;
    /// Describes one.
    fn info(&self, name: &str) -> Option<ImageInfo>;
    /// Returns the settings that an image carries to its VMs; none of one that is not ready.
    fn settings(&self, name: &str) -> ImageSettings;
    /// Returns those that it would carry without a template.
    fn settings_of_disk(&self, name: &str) -> ImageSettings;
    /// Starts building or fetching in the background; does nothing if it is ready or under way.
    fn begin(&self, name: &str) -> Result<(), BackendError>;
    /// Returns the programs that making this image takes and that are not installed, at once; none
    /// if it is made.
    fn missing(&self, name: &str) -> Vec<&'static Program>;
    /// Begins to make an image again beside the present one, which stays for the disks made from it.
    fn refresh(&self, name: &str) -> Result<(), BackendError>;
    /// Returns an image that is ready.
    fn boot(&self, name: &str) -> Option<BootImage>;
    /// Returns the version of an image that the disk in a VM's directory was made from; without a
    /// disk the one that it would be made from.
    fn boot_of(&self, name: &str, dir: &Path) -> Option<BootImage>;
    /// Makes an image without a source. Looks at the disk, as the next two do.
    fn create(&self, name: &str) -> Result<(), BackendError>;
    /// Says what an image is made from and begins to make it.
    fn assign(&self, name: &str, recipe: Recipe) -> Result<(), BackendError>;
    /// Says whether there is a distribution of this name.
    fn has_distribution(&self, _name: &str) -> bool {
        false
    }
    /// Ends the work on an image that is under way.
    fn cancel(&self, _name: &str) -> Result<(), BackendError> {
        Ok(())
    }
    /// Removes an image that nothing uses.
    fn remove(&self, name: &str) -> Result<(), BackendError>;
    /// Returns the image, building it first if need be. Builders of one image share one build.
    async fn ensure(&self, name: &str) -> Result<BootImage, BackendError>;
    /// Returns the version of an image for the VM in this directory, as [`Self::boot_of`] and
    /// [`Self::ensure`] do.
    async fn ensure_for(&self, name: &str, dir: &Path) -> Result<BootImage, BackendError>;
    /// Returns the template of an image, once it has been checked; `None` if there is none, and what
    /// is wrong with it if it is not what was captured.
    async fn template(&self, name: &str) -> Option<Result<Template, String>>;
    /// Returns what the disk in a VM's directory is an overlay on, top first; what a new one would
    /// be if there is none.
    fn layers(&self, image: &BootImage, dir: &Path) -> Result<Vec<Layer>, BackendError>;
    /// Notes what the disk that is going to be made in a VM's directory is an overlay on.
    fn bind(&self, dir: &Path, image: &BootImage, base: &[Layer]) -> Result<(), BackendError>;
    /// Begins to make the template of an image, of a machine that boots from it.
    fn warm(&self, name: &str, machine: Arc<dyn Capture>) -> Result<(), BackendError>;
    /// Removes the template of an image.
    fn cool(&self, name: &str) -> Result<(), BackendError>;
    /// Makes what the disks of forks of a captured VM are made from. The captured disk is free then.
    async fn fork_base(
        &self,
        image: BootImage,
        captured: &Captured,
    ) -> Result<ForkBase, BackendError>;
    /// Copies what they are made from, where it is a copy. The parent's disk is free then.
    async fn copy_fork_base(
        &self,
        base: &ForkBase,
        captured: &Captured,
    ) -> Result<(), BackendError>;
    /// Makes a fork's disk in its new directory; the copy may not be there yet.
    async fn fork_disk(&self, base: &ForkBase, dir: &Path) -> Result<(), BackendError>;
    /// No more disks are made from this base: erases what no disk needs.
    fn forked(&self, base: ForkBase);
    /// Erases the templates that no disk needs any more. Looks at the disk.
    fn sweep(&self);
    /// Returns a listener that hears every change of status and progress.
    fn listen(&self) -> Listener;
}
