//! What goes wrong outside the policy.
//!
//! Not here: the errno of each (`fuse::errno`).

use std::fmt;
use std::io::{self, ErrorKind};

use crate::disk::DiskError;
use crate::programs;

/// What went wrong outside the policy: a variant per fact, so that each has its own errno.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BackendError {
    /// Programs that we start are not installed.
    #[error("{program} {} not installed; {remedy}", if program.contains(", ") { "are" } else { "is" })]
    Missing {
        /// The program's name, or several with commas.
        program: String,
        /// What to do about it.
        remedy: String,
    },
    /// The accelerator that the config demands cannot be used.
    #[error("no {wanted} here: {reason}; `echo auto > config/accel` picks what works")]
    NoAccelerator {
        /// The word in `config/accel`.
        wanted: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// QEMU ended before it was asked to.
    #[error("QEMU ended ({status}): {stderr}")]
    QemuDied {
        /// `exit 1`, `signal KILL`.
        status: String,
        /// Its last line on stderr, or a remark that there was none.
        stderr: String,
    },
    /// What `suspend` has saved cannot be resumed.
    #[error(
        "cannot resume the suspended memory: {reason}; `echo kill > ctl` gives it up, and `start` boots then"
    )]
    CannotResume {
        /// QEMU's words.
        reason: String,
    },
    /// A snapshot's memory is of a machine of another shape.
    #[error(
        "the memory in snapshot {tag} is another machine's: {difference}; set it so and start again, \
         or restore while the VM is off, which brings back the disk alone"
    )]
    OtherMachine {
        /// The snapshot.
        tag: String,
        /// In what they differ.
        difference: String,
    },
    /// Going back failed half-way: the machine has lost its memory, and was ended.
    #[error(
        "the snapshot's memory could not be loaded: {reason}; the disk is back as it was then, and \
         `start` boots from it"
    )]
    HalfRestored {
        /// QEMU's words.
        reason: String,
    },
    /// A clone cannot be given an identity of its own.
    #[error("the guest cannot be given an identity of its own: {reason}")]
    PersonalizationFailed {
        /// What is missing, or the guest's own words.
        reason: String,
    },
    /// The process that may be the VM's QEMU is not surely it, and so not ended.
    #[error("{doubt}; `{look}` shows what runs, and `kill -KILL PID` ends it")]
    NotSurelyOurs {
        /// Which process, and what speaks against it.
        doubt: String,
        /// A command to look with.
        look: String,
    },
    /// QEMU did not do what QMP asked of it.
    #[error("QEMU refused {command}: {text}")]
    QmpRefused {
        /// The QMP command.
        command: String,
        /// QEMU's own description.
        text: String,
    },
    /// QEMU did not answer on QMP in time.
    #[error("QEMU did not answer {command} within {seconds} s; `echo kill > ctl` ends it")]
    QmpTimeout {
        /// The QMP command, or `greeting`.
        command: String,
        /// The bound.
        seconds: u64,
    },
    /// There is no such image.
    #[error("no image named {name}; `ls .images` lists them")]
    NoImage {
        /// The name in `config/image`.
        name: String,
    },
    /// An image has no source.
    #[error("image {name} has no source; `echo SOURCE > .images/{name}/source`")]
    NoSource {
        /// The image.
        name: String,
    },
    /// An image cannot be made from this source.
    #[error("source {origin}: {reason}")]
    BadSource {
        /// The source.
        origin: String,
        /// Why, and what would do.
        reason: String,
    },
    /// There is an image of that name.
    #[error("image {name} exists; `rmdir .images/{name}` removes it")]
    ImageExists {
        /// The image.
        name: String,
    },
    /// An image is in use, or being made.
    #[error("image {name}: {reason}")]
    ImageBusy {
        /// The image.
        name: String,
        /// By whom, and the next step.
        reason: String,
    },
    /// An image could not be built or fetched.
    #[error("image {name}: {reason}")]
    ImageFailed {
        /// The image.
        name: String,
        /// The cause and the next step.
        reason: String,
    },
    /// The guest cannot be reached over SSH.
    #[error("guest unreachable: {reason}")]
    Unreachable {
        /// What was tried and how it failed.
        reason: String,
    },
    /// The guest did not answer within the bound.
    #[error(
        "the guest did not answer over SSH within {seconds} s; `cat console.log` shows how far it got"
    )]
    GuestTimeout {
        /// The bound.
        seconds: u64,
    },
    /// The guest refused our key.
    #[error("the guest refused our key for user {user}; see config/ssh_user")]
    KeyRefused {
        /// The login name tried.
        user: String,
    },
    /// The guest's host key is not the one that we made for it.
    #[error(
        "the guest shows another SSH host key than the one made for it; refusing to talk to it"
    )]
    WrongHostKey,
    /// A command for a terminal is too long to be sent.
    #[error("a command on a terminal has {limit} bytes at the most; copy it into the guest first")]
    TooLong {
        /// The bound.
        limit: usize,
    },
    /// The host's disk is full.
    #[error("no space left for {what}; free some, then try again")]
    NoSpace {
        /// The file or its purpose.
        what: String,
    },
    /// The host does not have the memory.
    #[error("not enough memory: {what}")]
    NoMemory {
        /// Who wanted how much.
        what: String,
    },
    /// The disk's table of snapshots would take more or fewer clusters.
    #[error(
        "the disk's table of snapshots is to the byte full: another name has to be of {length} \
         bytes too, or `rmdir` one snapshot first"
    )]
    NoRoomInTable {
        /// The length of the old name.
        length: usize,
    },
    /// A host port is taken.
    #[error("host port {port} is taken; `ss -lnp` shows by whom, config/ports has the list")]
    PortTaken {
        /// The forward as written in the config.
        port: String,
    },
    /// What a setting names is a directory, a FIFO or a device.
    #[error(
        "config/{key}: {path} is not a regular file; `echo none > config/{key}` does without it"
    )]
    NotAFile {
        /// The setting.
        key: &'static str,
        /// The path.
        path: String,
    },
    /// A file that a setting names is not there.
    #[error("config/{key}: {path}: {reason}; `echo none > config/{key}` does without it")]
    NoFile {
        /// The setting.
        key: &'static str,
        /// The path.
        path: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// Settings that do not fit each other or the image.
    #[error("config/{key}: {reason}")]
    Unfit {
        /// The setting.
        key: &'static str,
        /// Why, and the next step.
        reason: String,
    },
    /// QEMU knows no such key.
    #[error(
        "no key named {key}; names are QEMU's: a to z, 0 to 9, f1 to f12, ctrl, alt, shift, ret, \
         esc, spc, tab, backspace, delete, up, down, left, right …"
    )]
    UnknownKey {
        /// What was asked for.
        key: String,
    },
    /// Anything else that the host's system calls answered.
    #[error("{what}: {error}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The system's own words.
        error: String,
        /// Its errno, 0 if it has none.
        errno: i32,
    },
}

impl BackendError {
    /// Says whether the machine is gone, or on its way out.
    pub fn is_the_end(&self) -> bool {
        matches!(self, Self::QemuDied { .. } | Self::HalfRestored { .. })
    }

    /// Wraps the system errors of what is done with `what`, as [`Self::io`] does.
    pub fn at(what: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::io(what.to_string(), &error)
    }

    /// Wraps a system error, telling a full disk and a lack of memory apart from the rest.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "all other kinds keep the system's own sentence"
    )]
    pub fn io(what: impl Into<String>, error: &io::Error) -> Self {
        let what = what.into();
        // By the kind: a library may have wrapped the system's own error.
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::NoSpace { what },
            ErrorKind::OutOfMemory => Self::NoMemory { what },
            _ => {
                let errno = error.raw_os_error().unwrap_or(0);
                Self::Io { what, error: error.to_string(), errno }
            }
        }
    }
}

impl From<DiskError> for BackendError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Missing { remedy } => {
                Self::Missing { program: programs::QEMU_IMG.name.to_owned(), remedy }
            }
            DiskError::NoSpace { said } => Self::NoSpace { what: said },
            DiskError::QemuImg { what, said } => Self::Io {
                what: format!("{} could not {what}", programs::QEMU_IMG.name),
                error: said,
                errno: 0,
            },
            DiskError::InUse { path } => Self::Io {
                what: format!("the disk {}", path.display()),
                error: "another program uses it; `fuser -v` says which".to_owned(),
                errno: libc::EBUSY,
            },
            DiskError::NoRoomInTable { length } => Self::NoRoomInTable { length },
            DiskError::Io { what, error } => Self::io(what, &error),
        }
    }
}
