//! What goes wrong outside the policy.
//!
//! Not here: the errno of each (`fuse::errno`).

use std::fmt;
use std::io::{self, ErrorKind};

use crate::disk::DiskError;
use crate::programs;
use crate::vm::disks::DataDiskError;

/// What went wrong outside the policy: a variant per fact, so that each has its own errno.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each error's sentence says it")]
pub enum BackendError {
    #[error("{program} {} not installed; {remedy}", if program.contains(", ") { "are" } else { "is" })]
    Missing { program: String, remedy: String },
    #[error("no {wanted} here: {reason}; `echo auto > config/accel` picks what works")]
    NoAccelerator { wanted: String, reason: String },
    #[error("QEMU ended ({status}): {stderr}")]
    QemuDied { status: String, stderr: String },
    #[error(
        "cannot resume the suspended memory: {reason}; `echo kill > ctl` gives it up, and `start` boots then"
    )]
    CannotResume { reason: String },
    #[error(
        "the memory in snapshot {tag} is another machine's: {difference}; set it so and start again, \
         or restore while the VM is off, which brings back the disk alone"
    )]
    OtherMachine { tag: String, difference: String },
    /// Going back failed half-way: the machine has lost its memory, and was ended.
    #[error(
        "the snapshot's memory could not be loaded: {reason}; the disk is back as it was then, and \
         `start` boots from it"
    )]
    HalfRestored { reason: String },
    #[error("the fork cannot be started: {reason}; remove it, and fork again")]
    ForkFailed { reason: String },
    #[error("the guest cannot be given an identity of its own: {reason}")]
    PersonalizationFailed { reason: String },
    #[error("{doubt}; `{look}` shows what runs, and `kill -KILL PID` ends it")]
    NotSurelyOurs { doubt: String, look: String },
    #[error(
        "the host's kernel ended QEMU: it had all of config/memory_max, {max}; write more to it or `none`, or \
         lower config/memory, and `start` boots again"
    )]
    MemoryLimit { max: String },
    #[error("QEMU refused {command}: {text}")]
    QmpRefused { command: String, text: String },
    #[error("QEMU did not answer {command} within {seconds} s; `echo kill > ctl` ends it")]
    QmpTimeout { command: String, seconds: u64 },
    #[error("no image named {name}; `ls .images` lists them")]
    NoImage { name: String },
    #[error("image {name} has no source; `echo SOURCE > .images/{name}/source`")]
    NoSource { name: String },
    #[error("source {origin}: {reason}")]
    BadSource { origin: String, reason: String },
    #[error("image {name} exists; `rmdir .images/{name}` removes it")]
    ImageExists { name: String },
    #[error("image {name} is not being made; `cat .images/{name}/status` shows what it is")]
    NothingUnderWay { name: String },
    #[error("image {name}: {reason}")]
    ImageBusy { name: String, reason: String },
    #[error("image {name}: {reason}")]
    ImageFailed { name: String, reason: String },
    #[error("guest unreachable: {reason}")]
    Unreachable { reason: String },
    #[error(
        "the guest did not answer over SSH within {seconds} s; `cat console.log` shows how far it got"
    )]
    GuestTimeout { seconds: u64 },
    #[error(
        "the guest refused our key for user {user}; `echo NAME > config/ssh_user` logs in as its own user, such as debian or alpine"
    )]
    KeyRefused { user: String },
    #[error(
        "the guest shows another SSH host key than the one made for it; refusing to talk to it"
    )]
    WrongHostKey,
    #[error("a command on a terminal has {limit} bytes at the most; copy it into the guest first")]
    TooLong { limit: usize },
    #[error("no space left for {what}; free some, then try again")]
    NoSpace { what: String },
    #[error("{what}")]
    Quota { what: String },
    #[error("not enough memory: {what}")]
    NoMemory { what: String },
    #[error(
        "the disk's table of snapshots is to the byte full: another name has to be of {length} \
         bytes too, or `rmdir` one snapshot first"
    )]
    NoRoomInTable { length: usize },
    #[error("host port {port} is taken; `ss -lnp` shows by whom, config/ports has the list")]
    PortTaken { port: String },
    #[error(
        "config/{key}: {path} is not a regular file; `echo none > config/{key}` does without it"
    )]
    NotAFile { key: &'static str, path: String },
    #[error("config/{key}: {path}: {reason}; `echo none > config/{key}` does without it")]
    NoFile { key: &'static str, path: String, reason: String },
    #[error("config/{key}: {reason}")]
    Unfit { key: &'static str, reason: String },
    #[error(
        "no key named {key}; names are QEMU's: a to z, 0 to 9, f1 to f12, ctrl, alt, shift, ret, \
         esc, spc, tab, backspace, delete, up, down, left, right …"
    )]
    UnknownKey { key: String },
    #[error(transparent)]
    Disks(Box<DataDiskError>),
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

/// What a backend answers.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

impl BackendError {
    /// Says whether the machine is gone, or on its way out.
    pub fn is_the_end(&self) -> bool {
        matches!(self, Self::QemuDied { .. } | Self::HalfRestored { .. } | Self::MemoryLimit { .. })
    }

    /// Says what stands against something, with the errno that goes with it, 0 without one.
    pub fn fact(what: impl Into<String>, fact: impl Into<String>, errno: i32) -> Self {
        Self::Io { what: what.into(), error: fact.into(), errno }
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
            DiskError::QemuImg { what, said } => {
                Self::fact(format!("{} could not {what}", programs::QEMU_IMG.name), said, 0)
            }
            DiskError::InUse { path } => {
                let fact = "another program uses it; `fuser -v` says which";
                Self::fact(format!("the disk {}", path.display()), fact, libc::EBUSY)
            }
            DiskError::NoRoomInTable { length } => Self::NoRoomInTable { length },
            DiskError::Io { what, error } => Self::io(what, &error),
        }
    }
}
