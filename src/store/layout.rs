//! Every name that aqfs puts on disk, in one place.
//!
//! ```text
//! STORE/                       $XDG_DATA_HOME/aqfs
//!   lock                       flock of the daemon; holds its pid and mount
//!   turn                       flock of the process that is about to start the daemon
//!   daemon.log                 the log of a daemon in the background
//!   daemon.log.old             the log before that, which was full
//!   defaults.json              what a new VM's settings start from
//!   aliases.json               aliases of images
//!   ssh/id_ed25519{,.pub}      the key that opens every guest
//!   vms/UUID/                  one VM: named by UUID, so that renaming a VM moves nothing
//!     vm.json                  its definition: settings
//!     format                   the version of this directory's format, since 2
//!     name                     its name, apart so that damage to the definition does not lose it
//!     disk.qcow2               its disk, made at the first start
//!     nvram.qcow2              its UEFI variables, where it has UEFI: with the disk's snapshots
//!     disks.json               its data disks (vm::disks)
//!     disks/N.qcow2            those of its own, with the disk's snapshots; N.removed.qcow2: a removed one
//!     dropped.json             snapshots to be dropped, which the disk still has
//!     temporary.qcow2          what an ephemeral VM writes, until QEMU has opened it
//!     host_key{,.pub}          its SSH host key
//!     known_hosts              that key as other SSH clients want it
//!     seed.tar                 its configuration at boot (guest::seed)
//!     cidata.img               the same for cloud-init (guest::nocloud), where the image has it
//!     ignition.json            its configuration for Ignition, if it has one
//!     credentials/N            its credentials for systemd, a file each
//!     template                 whose disk its disk is an overlay on, if it is a clone
//!     image_settings.json      what the image carried to the VM when its disk was made
//!     image_version            which version of the image its disk is an overlay on; none: the first
//!     operation.json           operations that have begun and not ended (store::operation)
//!     run.json                 the QEMU that runs it, for adoption
//!     shares.json              directories of the host that its guest has (vm::shares), and the key of
//!                              their file handles
//!     qmp  serial  identity    QEMU's sockets
//!     console.log  qemu.log    the serial line's scrollback; QEMU's stderr and our notes
//!   images/NAME/               a finished image: `image.json` and what it names
//!   images/NAME/warm/ID/       a template: `template.json` and what it names
//!   images/NAME/versions/ID/   the same, made again by `refresh`, of the same form
//!   images/NAME/current        of an image made again: the version that new VMs are made from
//!   images/NAME/source         of one that is not finished: what it is to be made from
//!   images/.NAME.XXXX/         one being made: never listed, removed at the next start
//!   trash/NAME@TIME/           a removed VM
//!   limits.json                what all VMs together may have (vm::limits)
//!   nets.json                  the nets, and their members' addresses (vm::nets)
//!   nets/NAME/                 the switch of one that runs: its record, its log, and `s`, its sockets
//!   fs/                        where the guests' files are mounted, NAME/ for each VM
//!   cache/                     packages fetched, accelerator verdict: may be deleted at any time
//! ```
//!
//! No I/O here.

use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Defines a method for each name in a directory, which returns its path.
macro_rules! paths {
    ($dir:ty { $($(#[$doc:meta])* $method:ident = $name:expr,)* }) => {
        impl $dir {$(
            $(#[$doc])*
            pub fn $method(&self) -> PathBuf {
                self.0.join($name)
            }
        )*}
    };
}

/// The store's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(PathBuf);

impl Layout {
    /// All names there can be in the root.
    pub const NAMES: &[&str] = &[
        "lock",
        "turn",
        "daemon.log",
        "daemon.log.old",
        "defaults.json",
        "aliases.json",
        "limits.json",
        "nets.json",
        "nets",
        "ssh",
        "vms",
        "images",
        "trash",
        "cache",
        "fs",
    ];

    /// Describes a store at an absolute path.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// Returns the root itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// Lists the directories that hold files of the store itself, beside VMs and images.
    pub fn plain_dirs(&self) -> [PathBuf; 3] {
        [self.0.clone(), self.0.join("ssh"), self.cache()]
    }

    /// Returns one VM's directory.
    pub fn vm(&self, uuid: Uuid) -> VmDir {
        VmDir(self.vms().join(uuid.to_string()))
    }

    /// Returns an image's directory.
    pub fn image(&self, name: &str) -> PathBuf {
        self.images().join(name)
    }

    /// Returns what an image that is not made yet is to be made from.
    pub fn image_source(&self, name: &str) -> PathBuf {
        self.image(name).join("source")
    }

    /// Returns the directory of the versions of an image but for the first, which is its own.
    pub fn image_versions(&self, image: &str) -> PathBuf {
        self.image(image).join("versions")
    }

    /// Returns the file that names the version of an image that new VMs are made from; without it,
    /// or where it is empty, that is the first.
    pub fn current_version(&self, image: &str) -> PathBuf {
        self.image(image).join("current")
    }

    /// Returns the directory of the templates of an image's first version.
    pub fn templates(&self, image: &str) -> PathBuf {
        self.image(image).join(TEMPLATES)
    }
}

paths! {
    Layout {
        /// The file whose lock means "a daemon serves this store".
        lock = "lock",
        /// The file that is locked by the process that is about to start a daemon.
        turn = "turn",
        /// The log of a daemon in the background.
        daemon_log = "daemon.log",
        /// What a new VM's settings start from.
        defaults = "defaults.json",
        /// Our private key; the public one lies beside it with `.pub`.
        client_key = "ssh/id_ed25519",
        /// The directory of all VMs.
        vms = "vms",
        /// The directory of all images.
        images = "images",
        /// The aliases of images.
        aliases = "aliases.json",
        /// What all VMs together may have.
        limits = "limits.json",
        /// The nets.
        nets_file = "nets.json",
        /// The directory of the switches of nets.
        nets = "nets",
        /// The directory of removed VMs.
        trash = "trash",
        /// The directory on which the guests' files are mounted.
        guest_files = "fs",
        /// The directory of what can be made again.
        cache = "cache",
        /// The directory of downloads that are not complete.
        downloads = "cache/downloads",
        /// The accelerator verdict of the host's current boot.
        accel_verdict = "cache/accel.json",
    }
}

/// The directory of templates in that of their image.
pub const TEMPLATES: &str = "warm";

/// One VM's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDir(pub PathBuf);

impl VmDir {
    /// All names there can be in it while no QEMU runs.
    pub const NAMES: &[&str] = &[
        "vm.json",
        "format",
        "name",
        names::DISK,
        names::NVRAM,
        names::DATA_DISKS,
        "disks.json",
        "host_key",
        "host_key.pub",
        "known_hosts",
        names::SEED,
        names::CIDATA,
        names::IGNITION,
        names::CREDENTIALS,
        "run.json",
        "qemu.log",
        names::CONSOLE_LOG,
        names::QMP,
        names::SERIAL,
        names::IDENTITY,
        "template",
        "image_settings.json",
        "image_version",
        "memories.json",
        "dropped.json",
        "shares.json",
        "asleep",
    ];

    /// Returns the store that it is in.
    pub fn store(&self) -> Layout {
        Layout::new(self.0.ancestors().nth(2).unwrap_or(&self.0))
    }

    /// Returns the file of a data disk of its own.
    pub fn data_disk(&self, number: u32) -> PathBuf {
        self.data_disks().join(format!("{number}.qcow2"))
    }

    /// Returns the file of a data disk that was removed.
    pub fn removed_disk(&self, number: u32) -> PathBuf {
        self.data_disks().join(format!("{number}.removed.qcow2"))
    }

    /// Returns the path by which to reach one of QEMU's sockets through `dir`, an open descriptor
    /// of this directory: the address of a Unix socket has room for 108 bytes only, so a deep
    /// store cannot be named in full.
    pub fn socket(dir: std::os::fd::RawFd, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{dir}/{name}"))
    }
}

paths! {
    VmDir {
        /// The definition.
        definition = "vm.json",
        /// The file that says which version made the directory what it is; version 1 made none.
        format = "format",
        /// The file that holds the VM's name.
        name = "name",
        /// The disk.
        disk = names::DISK,
        /// The UEFI variables.
        nvram = names::NVRAM,
        /// The directory of the data disks.
        data_disks = names::DATA_DISKS,
        /// The list of the data disks.
        disks_file = "disks.json",
        /// The list of operations that have begun and not ended.
        operation = "operation.json",
        /// The list of which machine the memory in each snapshot is.
        memories = "memories.json",
        /// The marks of snapshots to be dropped, which the disk still has.
        dropped_snapshots = "dropped.json",
        /// The directories of the host that its guest has.
        shares = "shares.json",
        /// The note that the VM was suspended because nobody used it.
        asleep = "asleep",
        /// The guest's private SSH host key; the public one lies beside it with `.pub`.
        host_key = "host_key",
        /// The file that has the guest's host key for other SSH clients.
        known_hosts = "known_hosts",
        /// The seed.
        seed = names::SEED,
        /// The seed of a stock cloud image.
        cidata = names::CIDATA,
        /// The configuration for Ignition.
        ignition = names::IGNITION,
        /// The directory of the credentials.
        credentials = names::CREDENTIALS,
        /// The file that names the template whose disk this VM's disk is an overlay on.
        template = "template",
        /// The file that says what the image carried when the disk was made.
        image_settings = "image_settings.json",
        /// The file that names the version of its image that its disk is an overlay on.
        image_version = "image_version",
        /// The record of the running QEMU.
        run = "run.json",
        /// Returns QEMU's stderr and our notes.
        log = "qemu.log",
        /// The serial line's scrollback.
        console_log = names::CONSOLE_LOG,
    }
}

/// Names inside a VM's directory as QEMU sees them: it runs there, so they are relative.
pub mod names {
    /// The disk.
    pub const DISK: &str = "disk.qcow2";
    /// The disk while it is being made.
    pub const DISK_PARTIAL: &str = ".disk.qcow2";
    /// What an ephemeral VM writes: it has this name only until QEMU has opened it.
    pub const TEMPORARY_DISK: &str = "temporary.qcow2";
    /// The UEFI variables.
    pub const NVRAM: &str = "nvram.qcow2";
    /// The UEFI variables while they are being made.
    pub const NVRAM_PARTIAL: &str = ".nvram.qcow2";
    /// The directory of the data disks.
    pub const DATA_DISKS: &str = "disks";
    /// What an ephemeral VM writes to its UEFI variables, as [`TEMPORARY_DISK`].
    pub const TEMPORARY_NVRAM: &str = "temporary-nvram.qcow2";
    /// The seed.
    pub const SEED: &str = "seed.tar";
    /// The seed as a disk that cloud-init finds.
    pub const CIDATA: &str = "cidata.img";
    /// What Ignition finds in fw_cfg.
    pub const IGNITION: &str = "ignition.json";
    /// What systemd finds in SMBIOS, a file each, named by its number.
    pub const CREDENTIALS: &str = "credentials";
    /// The QMP socket.
    pub const QMP: &str = "qmp";
    /// The serial line's socket.
    pub const SERIAL: &str = "serial";
    /// The socket of the virtio-serial port over which a clone is personalized.
    pub const IDENTITY: &str = "identity";
    /// The serial line's scrollback.
    pub const CONSOLE_LOG: &str = "console.log";
}
