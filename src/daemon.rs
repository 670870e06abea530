//! The daemon from outside: where a store is mounted, starting one in the background, ending it.
//!
//! Not here: what it does once it serves (`run`), what is read and written in the mount
//! (`commands`).

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::config::{MountConfig, default_mount, default_store};
use crate::fuse::mountpoint::{self, MountError};
use crate::store::file;
use crate::store::layout::Layout;
use crate::store::lock;
use crate::sys;

/// How long `aq mount` waits for its daemon: machines that hang are given up on long before.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a daemon may take to notice that its tree is unmounted.
const UMOUNT_DELAY: Duration = Duration::from_secs(1);
/// How long `aq umount` waits for the daemon to end.
const UMOUNT_TIMEOUT: Duration = Duration::from_secs(10);
/// What a background daemon says to its parent.
pub const MOUNTED: &str = "mounted";

/// Why a daemon could not be found, started or ended.
#[expect(missing_docs, reason = "each error's sentence says it")]
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("neither XDG_DATA_HOME nor HOME is set; say where to keep VMs with --store DIR")]
    NoStore,
    #[error("HOME is not set; say where to mount: `aq mount DIR`")]
    NoMount,
    /// It ended before it had mounted; it has said why.
    #[error("the daemon has ended; the reason is above")]
    Ended,
    #[error("the daemon has not mounted within {} s; see {log}", MOUNT_TIMEOUT.as_secs())]
    Slow { log: PathBuf },
    /// It continues after its tree is unmounted.
    #[error("unmounted, but the daemon (pid {pid}) has not ended within {} s", UMOUNT_TIMEOUT.as_secs())]
    Stays { pid: u32 },
    #[error("the daemon has ended, but {} is in the table of mounts: {error}", dir.display())]
    StillMounted { dir: PathBuf, error: MountError },
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
}

impl DaemonError {
    /// Says whether the user has read the reason already, from the daemon that met it.
    pub fn is_reported(&self) -> bool {
        matches!(self, Self::Ended)
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> DaemonError {
    let what = what.into();
    move |error| DaemonError::Io { what, error }
}

// ----- finding it ------------------------------------------------------------------------------

/// Returns the default store: `AQ_STORE`, else the user's own.
///
/// # Errors
/// [`DaemonError::NoStore`].
pub fn wanted_store() -> Result<PathBuf, DaemonError> {
    let store = env::var_os("AQ_STORE").map(PathBuf::from).or_else(default_store);
    let store = store.ok_or(DaemonError::NoStore)?;
    std::path::absolute(&store).map_err(failed("AQ_STORE"))
}

/// Returns the default mount, if it is there: `AQ_MOUNT`; without `AQ_STORE` the mount in which the
/// working directory is; else that of the wanted store.
pub fn find() -> Option<PathBuf> {
    match (env::var_os("AQ_MOUNT"), env::var_os("AQ_STORE")) {
        (Some(dir), _) => served(fs::canonicalize(dir).ok()?),
        (None, None) => mount_around().or_else(|| mount_of(&wanted_store().ok()?)),
        (None, Some(_)) => mount_of(&wanted_store().ok()?),
    }
}

/// Returns the mount in which the working directory is.
fn mount_around() -> Option<PathBuf> {
    let here = env::current_dir().ok()?;
    here.ancestors().find_map(|dir| served(dir.to_owned()))
}

/// Returns where a store is mounted. A store's lock names its daemon and the mount.
pub fn mount_of(store: &Path) -> Option<PathBuf> {
    served(lock::owner(&Layout::new(store).lock())?.mount)
}

/// A mount whose daemon is gone cannot be read.
fn served(dir: PathBuf) -> Option<PathBuf> {
    (mountpoint::is_ours(&dir) && daemon_of(&dir).is_some()).then_some(dir)
}

/// Returns the mount as [`find`] does; where there is none it is made, as `aq mount` would.
///
/// # Errors
/// Why the tree could not be mounted.
pub fn find_or_start() -> Result<PathBuf, DaemonError> {
    if let Some(dir) = find() {
        return Ok(dir);
    }
    let (store, dir) = (wanted_store()?, default_mount().ok_or(DaemonError::NoMount)?);
    // Of several processes here at once, one starts the daemon and the others find it.
    let layout = Layout::new(&store);
    file::private_dir(layout.root()).map_err(failed(store.display().to_string()))?;
    let turn = File::create(layout.turn()).map_err(failed("the store's lock"))?;
    turn.lock().map_err(failed("the store's lock"))?;
    if let Some(dir) = find() {
        return Ok(dir);
    }
    start(&MountConfig::background(dir.clone(), store))?;
    Ok(dir)
}

// ----- starting and ending it ------------------------------------------------------------------

/// Starts a daemon in the background and returns when it has mounted. The default directory is
/// created if it is not there.
///
/// # Errors
/// Why it has not mounted.
pub fn start(config: &MountConfig) -> Result<(), DaemonError> {
    let probed = fs::symlink_metadata(&config.dir);
    let is_absent = probed.is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    if is_absent && default_mount().as_ref() == Some(&config.dir) {
        file::private_dir(&config.dir).map_err(failed(config.dir.display().to_string()))?;
    }
    let mut child = spawn(config)?;
    match first_line(&mut child) {
        Some(line) if line == MOUNTED => Ok(()),
        Some(_) => {
            drop(child.wait());
            Err(DaemonError::Ended)
        }
        None => {
            drop(child.kill());
            drop(child.wait());
            Err(DaemonError::Slow { log: Layout::new(&config.store).daemon_log() })
        }
    }
}

fn spawn(config: &MountConfig) -> Result<Child, DaemonError> {
    let program = env::current_exe().map_err(failed("cannot find aq itself"))?;
    let mut command = Command::new(program);
    command.args(["mount", "--detached"]);
    if let Some(image) = &config.image {
        command.args(["--image", image]);
    }
    command.arg("--store").arg(&config.store).arg("--").arg(&config.dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    sys::in_own_session(&mut command).spawn().map_err(failed("cannot start aq"))
}

/// Returns the first line that a child says, empty if it ends before; `None` if it takes too long.
fn first_line(child: &mut Child) -> Option<String> {
    let out = child.stdout.take()?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        drop(BufReader::new(out).read_line(&mut line));
        drop(sender.send(line.trim_end().to_owned()));
    });
    receiver.recv_timeout(MOUNT_TIMEOUT).ok()
}

/// Unmounts a tree and waits until its daemon has ended; virtual machines run on. Of a daemon that is
/// gone, both mounts are detached.
///
/// # Errors
/// Why it is not unmounted, or that the daemon continues.
pub fn end(dir: &Path) -> Result<(), DaemonError> {
    let daemon = daemon_of(dir);
    let dir = std::path::absolute(dir).map_err(failed(dir.display().to_string()))?;
    // Afterwards its path can no longer be resolved.
    let dir = resolved(dir);
    // Called from within the mount, this very process would keep it busy.
    env::set_current_dir("/").map_err(failed("/"))?;
    let ended = match daemon {
        None if mountpoint::is_dead(&dir) => Ok(mountpoint::detach(&dir)?),
        daemon => end_tree(&dir, daemon),
    };
    match (ended, detach_guest_files(&dir)) {
        // Somebody has unmounted the tree of a daemon that was killed.
        (Err(DaemonError::Mount(MountError::NotOurs(_))), Ok(1..)) => Ok(()),
        (ended, detached) => ended.and(detached.map(drop)),
    }
}

/// The path of a dead mount is resolved up to the mount.
fn resolved(dir: PathBuf) -> PathBuf {
    let in_parent = || Some(fs::canonicalize(dir.parent()?).ok()?.join(dir.file_name()?));
    fs::canonicalize(&dir).ok().or_else(in_parent).unwrap_or(dir)
}

fn end_tree(dir: &Path, daemon: Option<u32>) -> Result<(), DaemonError> {
    let refusal = match mountpoint::unmount(dir) {
        Ok(()) => None,
        // fusermount3 gives up. The daemon can end all the same.
        Err(error @ (MountError::Io { .. } | MountError::NoMtab { .. })) => Some(error),
        Err(error) => return Err(error.into()),
    };
    match (daemon, refusal) {
        (None, None) => Ok(()),
        (None, Some(error)) => Err(error.into()),
        (Some(pid), None) if sys::wait_for_end(pid, UMOUNT_DELAY) => Ok(()),
        // Another mount namespace, as a container has one, keeps the tree that is gone from ours.
        (Some(pid), None) => end_process(pid),
        (Some(pid), Some(error)) => {
            end_process(pid)?;
            if mountpoint::is_ours(dir) {
                Err(DaemonError::StillMounted { dir: dir.to_owned(), error })
            } else {
                Ok(())
            }
        }
    }
}

/// Detaches the mounts of guests' files that a killed daemon of this tree has left, and counts them.
/// The lock of a store names the tree.
fn detach_guest_files(tree: &Path) -> Result<usize, DaemonError> {
    let is_left = |at: &PathBuf| {
        let Some(store) = at.parent().map(Layout::new) else { return false };
        store.guest_files() == *at
            && lock::owner(&store.lock()).is_some_and(|owner| owner.mount == tree)
            && mountpoint::is_dead(at)
    };
    let left: Vec<PathBuf> = mountpoint::list().into_iter().filter(is_left).collect();
    left.iter().try_for_each(|at| mountpoint::detach(at))?;
    Ok(left.len())
}

fn end_process(pid: u32) -> Result<(), DaemonError> {
    sys::ask_to_end(pid);
    if sys::wait_for_end(pid, UMOUNT_TIMEOUT) { Ok(()) } else { Err(DaemonError::Stays { pid }) }
}

/// Reads which daemon serves a mount, from its own `.version`.
fn daemon_of(dir: &Path) -> Option<u32> {
    let version = fs::read_to_string(dir.join(".version")).ok()?;
    version.trim_end().rsplit(' ').next()?.parse().ok()
}
