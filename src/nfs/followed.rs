//! Files that the guest has read lately: programs of the guest may have them open, and the guest's kernel, which
//! remembers what it knows of them, does not ask by itself whether the host has changed them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::export::FileId;
use super::facts::{Facts, Time};
use super::handle::Handle;

/// Files of a share, at the most.
const MOST: usize = 256;
/// Of these the next guest is told in any case, as it may have them open.
const MOST_DOUBTED: usize = 32;
/// For how long after it was read.
const FOLLOWED_FOR: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
pub(super) struct Followed(Mutex<HashMap<FileId, Follow>>);

#[derive(Clone, Copy, Debug)]
struct Follow {
    handle: Handle,
    /// The time of change that the guest was told; `None` if that is not known.
    told: Option<Time>,
    read: Instant,
}

impl Followed {
    /// The guest reads a file.
    pub(super) fn reads(&self, handle: &Handle, facts: &Facts) {
        let mut files = self.0.lock();
        if files.len() >= MOST && !files.contains_key(&handle.file) {
            let oldest = files.iter().min_by_key(|(_, follow)| follow.read).map(|(id, _)| *id);
            oldest.map(|id| files.remove(&id));
        }
        let follow = Follow { handle: *handle, told: Some(facts.ctime), read: Instant::now() };
        files.insert(handle.file, follow);
    }

    /// The guest is told attributes.
    pub(super) fn told(&self, file: FileId, facts: &Facts) {
        if let Some(follow) = self.0.lock().get_mut(&file) {
            follow.told = Some(facts.ctime);
        }
    }

    pub(super) fn forget(&self, file: FileId) {
        self.0.lock().remove(&file);
    }

    /// What the guest knows of them is uncertain. Only those that were read last stay.
    pub(super) fn doubt(&self) {
        let mut files = self.0.lock();
        let mut read: Vec<Instant> = files.values().map(|follow| follow.read).collect();
        read.sort_unstable_by(|a, b| b.cmp(a));
        if let Some(oldest) = read.get(MOST_DOUBTED) {
            files.retain(|_, follow| follow.read > *oldest);
        }
        files.values_mut().for_each(|follow| follow.told = None);
    }

    /// Lists them, and which time of change the guest knows of each.
    pub(super) fn all(&self) -> Vec<(Handle, Option<Time>)> {
        let mut files = self.0.lock();
        files.retain(|_, follow| follow.read.elapsed() < FOLLOWED_FOR);
        files.values().map(|follow| (follow.handle, follow.told)).collect()
    }
}
