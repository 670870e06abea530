//! The options of a mount, with their defaults. Plain data: no clap, no I/O beyond the environment.

use std::env;
use std::path::PathBuf;

/// How the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `aq mount` returns when the tree is mounted.
    Background,
    /// The daemon is this process.
    Foreground,
    /// The process that a background mount has started: it says `mounted` on its standard output
    /// and writes its log to the store.
    Detached,
}

/// What to mount, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountConfig {
    /// The mount point.
    pub dir: PathBuf,
    /// Where VMs and images are kept.
    pub store: PathBuf,
    /// The image of a new VM, instead of the stored default.
    pub image: Option<String>,
    /// How to run.
    pub mode: Mode,
}

impl MountConfig {
    /// Describes a mount in the background with nothing out of the ordinary.
    pub fn background(dir: PathBuf, store: PathBuf) -> Self {
        Self { dir, store, image: None, mode: Mode::Background }
    }
}

/// Returns `$XDG_DATA_HOME/aqfs`, or what that is by default; `None` without a home.
pub fn default_store() -> Option<PathBuf> {
    let data = absolute("XDG_DATA_HOME");
    let data = data.or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
    Some(data.join("aqfs"))
}

/// Returns the default mount point: `$AQ_MOUNT`, else `~/aq`.
pub fn default_mount() -> Option<PathBuf> {
    let named = env::var_os("AQ_MOUNT").map(PathBuf::from);
    named.or_else(|| Some(absolute("HOME")?.join("aq")))
}

fn absolute(key: &str) -> Option<PathBuf> {
    env::var_os(key).map(PathBuf::from).filter(|p| p.is_absolute())
}
