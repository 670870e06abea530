//! Shares: directories of the host that a VM's guest has. What there are, what they may be, and how it goes
//! with each; `shares.json` keeps them.
//!
//! They are the host's, as settings are: no snapshot, image or suspended state has them. Not here: which values
//! are accepted (`value`), the file (`stored`), getting them into the guest (`follow`), the server (`nfs`).

mod follow;
mod stored;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;

pub use self::follow::Attachment;
use self::stored::{Settings, Stored};
pub use self::value::{Field, ShareError};
use super::Backends;
use super::backend::{ByteStream, FileServer, Mount, PortServer};
use super::dropped::Remover;
use super::spec::is_object_name;
use super::{VmError, driver::off_thread};
use crate::nfs::{Export, Server};
use crate::store::layout::VmDir;

/// Shares of a VM.
const MOST: usize = 64;
/// For how long a share that was removed comes back with the VM that its remover removes.
const REMOVED_LASTS: Duration = Duration::from_secs(60);

/// The shares of one VM.
#[derive(Clone, Debug)]
pub struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    own_dirs: Arc<[PathBuf]>,
    server: Arc<Server>,
    state: Mutex<State>,
    /// Held while the file is written.
    writing: tokio::sync::Mutex<()>,
    /// Counts the changes of what the guest is to have.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    stored: Stored,
    /// How it went with each in the guest that is connected.
    outcomes: BTreeMap<String, Result<(), String>>,
    /// Shares that were removed shortly ago.
    removed: Vec<Removed>,
    changed: SystemTime,
}

#[derive(Debug)]
struct Removed {
    name: String,
    settings: Settings,
    by: Remover,
    at: Instant,
}

/// A share as its directory shows it.
#[derive(Clone, Debug)]
pub struct Share {
    pub(crate) name: String,
    settings: Settings,
    /// How it went with it in the guest; `None` while no guest is connected.
    pub outcome: Option<Result<(), String>>,
}

impl Shares {
    /// Reads those of the VM with this directory. A file that is damaged is put aside.
    pub(super) fn open(dir: &VmDir, backends: &Backends) -> Self {
        let path = dir.shares();
        let stored = Stored::read(&path, &backends.failures);
        let (key, state) = (stored.key, State::new(stored));
        let shares = Self(Arc::new(Inner {
            path,
            own_dirs: Arc::clone(&backends.own_dirs),
            server: Arc::new(Server::new(key)),
            state: Mutex::new(state),
            writing: tokio::sync::Mutex::default(),
            changes: watch::Sender::new(0),
        }));
        shares.0.offer(&Stored::default());
        shares
    }

    /// Lists their names.
    pub fn names(&self) -> Vec<String> {
        self.0.state.lock().stored.shares.keys().cloned().collect()
    }

    /// Finds one.
    pub fn get(&self, name: &str) -> Option<Share> {
        let state = self.0.state.lock();
        let settings = state.stored.shares.get(name)?.clone();
        let outcome = state.outcomes.get(name).cloned();
        Some(Share { name: name.to_owned(), settings, outcome })
    }

    /// Returns when one last came, went, or changed.
    pub fn changed(&self) -> SystemTime {
        self.0.state.lock().changed
    }

    /// Makes one, which has no source yet.
    ///
    /// # Errors
    /// There is one of that name, or there are too many; or what the disk answered.
    pub async fn make(self, name: String) -> Result<(), VmError> {
        self.change(move |stored| {
            match stored.shares.contains_key(&name) {
                true => return Err(ShareError::Exists(name)),
                false if stored.shares.len() >= MOST => return Err(ShareError::TooMany(MOST)),
                false => stored.shares.insert(name.clone(), Settings::new()),
            };
            stored.check_target(&name)
        })
        .await
    }

    /// Removes one for a process.
    ///
    /// # Errors
    /// There is none, or what the disk answered.
    pub async fn remove(self, name: String, by: Remover) -> Result<(), VmError> {
        let old = self.get(&name).map(|share| share.settings);
        let removed = name.clone();
        let take = move |stored: &mut Stored| {
            stored.shares.remove(&name).map(drop).ok_or(ShareError::Absent)
        };
        self.clone().change(take).await?;
        let mut state = self.0.state.lock();
        state.removed.retain(|removed| removed.at.elapsed() < REMOVED_LASTS);
        state.removed.extend(old.map(|settings| Removed {
            name: removed,
            settings,
            by,
            at: Instant::now(),
        }));
        Ok(())
    }

    /// Gives one another name.
    ///
    /// # Errors
    /// There is none, or one of the new name already; or what the disk answered.
    pub async fn rename(self, from: String, to: String) -> Result<(), VmError> {
        self.change(move |stored| {
            if from != to && stored.shares.contains_key(&to) {
                return Err(ShareError::Exists(to));
            }
            let settings = stored.shares.remove(&from).ok_or(ShareError::Absent)?;
            stored.shares.insert(to.clone(), settings);
            stored.check_target(&to)
        })
        .await
    }

    /// Sets a value of one.
    ///
    /// # Errors
    /// It is not accepted, or what the disk answered; nothing changes then.
    pub async fn set(self, name: String, field: Field, text: String) -> Result<(), VmError> {
        let own = Arc::clone(&self.0.own_dirs);
        self.change(move |stored| {
            let settings = stored.shares.get_mut(&name).ok_or(ShareError::Absent)?;
            settings.set(field, &text, &own)?;
            stored.check_target(&name)
        })
        .await
    }

    /// Changes them: on disk, at the server, in the guest. The source is looked at and the file written by a
    /// thread that may wait for disks.
    async fn change(
        self,
        edit: impl FnOnce(&mut Stored) -> Result<(), ShareError> + Send + 'static,
    ) -> Result<(), VmError> {
        let _turn = self.0.writing.lock().await;
        let inner = Arc::clone(&self.0);
        let write = move || {
            let mut new = inner.state.lock().stored.clone();
            if let Err(error) = edit(&mut new) {
                return Ok(Err(error));
            }
            new.write(&inner.path)?;
            inner.take(new);
            Ok(Ok(()))
        };
        Ok(off_thread(write, "the VM's shares").await??)
    }

    /// The VM is removed by a process: what that has removed of its shares shortly before stays with it.
    pub(super) fn bring_back(&self, by: Remover) -> io::Result<()> {
        let mut stored = self.0.state.lock().stored.clone();
        let before = stored.shares.len();
        for removed in std::mem::take(&mut self.0.state.lock().removed) {
            if removed.by == by && removed.at.elapsed() < REMOVED_LASTS {
                stored.shares.entry(removed.name).or_insert(removed.settings);
            }
        }
        if stored.shares.len() > before {
            stored.write(&self.0.path)?;
            self.0.take(stored);
        }
        Ok(())
    }
}

impl State {
    fn new(stored: Stored) -> Self {
        let changed = stored.shares.values().map(Settings::created).max();
        Self {
            stored,
            outcomes: BTreeMap::new(),
            removed: Vec::new(),
            changed: changed.unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }
}

impl Inner {
    fn take(&self, new: Stored) {
        let old = {
            let mut state = self.state.lock();
            state.changed = SystemTime::now();
            std::mem::replace(&mut state.stored, new)
        };
        self.offer(&old);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Has the server offer what there is, in place of what there was.
    fn offer(&self, old: &Stored) {
        let new = self.state.lock().stored.clone();
        let numbers = |stored: &Stored| -> BTreeSet<u64> {
            let offered = stored.shares.values().filter(|share| share.source.is_some());
            offered.map(|share| share.number).collect()
        };
        let (before, now) = (numbers(old), numbers(&new));
        before.difference(&now).for_each(|number| self.server.remove(*number));
        for share in new.shares.values() {
            let Some(source) = &share.source else { continue };
            match before.contains(&share.number) {
                true => self.server.set_read_only(share.number, share.read_only),
                false => {
                    let export = Export::new(share.number, source.into(), share.read_only);
                    self.server.add(Arc::new(export));
                }
            }
        }
    }

    /// Lists what the guest is to mount, and notes of the others why not.
    fn wanted(&self) -> Vec<Mount> {
        let shares = self.state.lock().stored.shares.clone();
        let mut mounts = Vec::new();
        for (name, share) in shares {
            match share.source.as_ref().map(|source| check(Path::new(source))) {
                Some(Ok(())) => mounts.push(share.mount(&name)),
                Some(Err(why)) => self.note(&name, Err(why)),
                None => {}
            }
        }
        mounts
    }

    /// Lists files that the guest reads and the host has changed, by their paths in the guest.
    fn changed_files(&self) -> Vec<String> {
        let changed = self.server.changed_files();
        let shares = self.state.lock().stored.shares.clone();
        let path = |(number, path): (u64, PathBuf)| {
            let (name, share) = shares.iter().find(|(_, share)| share.number == number)?;
            // In a script there are no other names.
            Some(format!("{}/{}", share.mount(name).target, path.to_str()?))
        };
        changed.into_iter().filter_map(path).collect()
    }

    fn note(&self, name: &str, outcome: Result<(), String>) {
        self.state.lock().outcomes.insert(name.to_owned(), outcome);
    }
}

/// Says whether a source is there and can be read.
fn check(source: &Path) -> Result<(), String> {
    let export = Export::new(0, source.to_owned(), true);
    export.check().map_err(|error| format!("{} on the host: {error}", source.display()))
}

impl Share {
    /// Returns a value as it is read.
    pub fn text(&self, field: Field) -> String {
        self.settings.text(field, &self.name)
    }

    pub(crate) fn created(&self) -> SystemTime {
        self.settings.created()
    }

    /// Says in a line whether the guest has it, and why not. It looks at the source.
    pub fn status(&self, is_off: bool) -> String {
        let Some(source) = &self.settings.source else {
            return "no source: `echo \"$PWD\" > source` says which directory it is".to_owned();
        };
        match (check(Path::new(source)), &self.outcome) {
            (Err(why), _) => format!("failed: {why}"),
            (Ok(()), Some(Ok(()))) => "mounted".to_owned(),
            (Ok(()), Some(Err(why))) => format!("failed: {why}"),
            (Ok(()), None) if is_off => "off: the VM does not run".to_owned(),
            (Ok(()), None) => "waiting: the guest has not answered over SSH".to_owned(),
        }
    }
}

/// Says whether a share can have this name.
pub fn is_name(name: &str) -> bool {
    is_object_name(name)
}

/// The server as a guest's connections reach it.
#[derive(Debug)]
struct GuestConnections(Arc<Server>);

impl FileServer for GuestConnections {
    fn set_guest_user(&self, user: u32, group: u32) {
        self.0.set_guest_user(user, group);
    }
}

impl PortServer for GuestConnections {
    fn accept(self: Arc<Self>, stream: Box<dyn ByteStream>, from_port: u32) {
        let server = Arc::clone(&self.0);
        tokio::spawn(async move {
            if let Err(error) = server.serve(stream, from_port).await {
                tracing::info!(%error, "a guest's connection to its shares has ended");
            }
        });
    }
}

#[cfg(test)]
mod tests;
