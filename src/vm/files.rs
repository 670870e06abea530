//! The way to a guest's files: one for a connection with the guest, opened when it is first used.
//!
//! Not here: what is asked of it (`files`), how the guest is asked (`guest::sftp`).

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::VmId;
use super::backend::{BackendError, GuestFiles, GuestSession, NoFiles};
use super::exec::Link;
use super::{VmError, idle};

/// How long a request waits for a guest that boots, or for its server to start.
pub const TIMEOUT: Duration = Duration::from_secs(15);
/// How long a guest without a server is not asked again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// How long a server stays in the guest that nobody asks, with nothing open.
const IDLE: Duration = Duration::from_secs(300);

/// Why a guest's files are not reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// No QEMU runs.
    #[error("the VM is off; `echo start > ctl` first")]
    Off,
    /// The VM is removed.
    #[error("the VM has been removed")]
    Removed,
    /// It was suspended because nobody used it, and does not start, for this reason.
    #[error("{0}")]
    Start(String),
    /// It has not answered.
    #[error("the guest has not answered within {} s", TIMEOUT.as_secs())]
    Late,
    /// It has no server, or the connection is lost.
    #[error(transparent)]
    None(#[from] NoFiles),
}

/// Hears of a guest whose files may have changed otherwise than through `fs`: a command of ours has
/// ended in it, or it answers anew, perhaps from a snapshot.
#[derive(Default)]
pub struct FileChanges(OnceLock<Box<dyn Fn(VmId) + Send + Sync>>);

impl FileChanges {
    /// Has `hear` called from now on. Only the first one is.
    pub(crate) fn follow(&self, hear: impl Fn(VmId) + Send + Sync + 'static) {
        let _first = self.0.set(Box::new(hear));
    }

    /// Tells of it, before whoever waits for the command hears of its end.
    pub(super) fn tell(&self, vm: VmId) {
        if let Some(hear) = self.0.get() {
            hear(vm);
        }
    }
}

impl fmt::Debug for FileChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileChanges")
    }
}

/// The files of one VM's guest.
#[derive(Debug)]
pub(super) struct Files {
    link: watch::Receiver<Link>,
    current: Arc<Mutex<Option<Current>>>,
}

/// What the newest connection with the guest gave.
#[derive(Debug)]
struct Current {
    session: Arc<dyn GuestSession>,
    files: Result<Arc<dyn GuestFiles>, (NoFiles, Instant)>,
    /// When it was asked for last.
    used: LastUse,
}

type LastUse = Arc<parking_lot::Mutex<Instant>>;

impl Current {
    /// Returns what it is good for still; `None`: the guest is to be asked.
    fn good(
        &self,
        session: &Arc<dyn GuestSession>,
    ) -> Option<Result<Arc<dyn GuestFiles>, FilesError>> {
        match &self.files {
            _ if !Arc::ptr_eq(&self.session, session) => None,
            Ok(files) if files.is_lost() => None,
            Ok(files) => {
                *self.used.lock() = Instant::now();
                Some(Ok(Arc::clone(files)))
            }
            Err((_, since)) if since.elapsed() > RETRY_INTERVAL => None,
            Err((error, _)) => Some(Err(error.clone().into())),
        }
    }
}

impl Files {
    pub(super) fn new(link: watch::Receiver<Link>) -> Self {
        Self { link, current: Arc::default() }
    }

    /// Returns the way there. `report` hears why a guest that answers has none.
    pub(super) async fn connected(
        &self,
        report: impl FnOnce(String),
    ) -> Result<Arc<dyn GuestFiles>, FilesError> {
        let opened = timeout(TIMEOUT, async {
            let session = self.session().await?;
            self.of(session, report).await
        });
        opened.await.unwrap_or(Err(FilesError::Late))
    }

    async fn session(&self) -> Result<Arc<dyn GuestSession>, FilesError> {
        let mut link = self.link.clone();
        match idle::settled(&mut link).await {
            Ok(Link::Up(session)) => Ok(session),
            Err(VmError::Removed) => Err(FilesError::Removed),
            Ok(Link::Off | Link::Coming | Link::Asleep(_)) => Err(FilesError::Off),
            Err(error) => Err(FilesError::Start(error.to_string())),
        }
    }

    /// Says whether somebody has files open, or asks for some.
    pub(super) fn are_open(&self) -> bool {
        let Ok(current) = self.current.try_lock() else { return true };
        let files = current.as_ref().and_then(|current| current.files.as_ref().ok());
        files.is_some_and(|files| Arc::strong_count(files) > 1)
    }

    async fn of(
        &self,
        session: Arc<dyn GuestSession>,
        report: impl FnOnce(String),
    ) -> Result<Arc<dyn GuestFiles>, FilesError> {
        let mut current = self.current.lock().await;
        if let Some(good) = current.as_ref().and_then(|current| current.good(&session)) {
            return good;
        }
        // What the last one has open is closed with it.
        *current = None;
        let files = session.files().await;
        if let Err(error @ NoFiles::NoServer { .. }) = &files {
            report(error.to_string());
        }
        let kept = files.clone().map_err(|error| (error, Instant::now()));
        let used = LastUse::new(parking_lot::Mutex::new(Instant::now()));
        if let Ok(files) = &files {
            let closing =
                close_when_idle(Arc::downgrade(&self.current), Arc::downgrade(files), used.clone());
            tokio::spawn(closing);
        }
        *current = Some(Current { session, files: kept, used });
        Ok(files?)
    }
}

/// Closes a server's connection when it is idle: it takes a process of the guest, and a connection.
async fn close_when_idle(
    current: Weak<Mutex<Option<Current>>>,
    files: Weak<dyn GuestFiles>,
    used: LastUse,
) {
    loop {
        idle(&files, &used).await;
        let Some(current) = current.upgrade() else { return };
        let mut current = current.lock().await;
        match files.strong_count() {
            // Another one has taken its place.
            0 => return,
            1 => return *current = None,
            // Somebody came meanwhile.
            _ => {}
        }
    }
}

/// Waits until nobody but its keeper has something, and has not asked for it for [`IDLE`].
async fn idle<T: ?Sized>(of: &Weak<T>, used: &LastUse) {
    let mut look = *used.lock() + IDLE;
    loop {
        sleep_until(look).await;
        let last = *used.lock();
        let is_in_use = of.strong_count() > 1;
        if !is_in_use && last.elapsed() >= IDLE {
            return;
        }
        look = if is_in_use { Instant::now() } else { last } + IDLE;
    }
}

impl From<BackendError> for FilesError {
    fn from(error: BackendError) -> Self {
        Self::None(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_open_or_was_asked_for_stays() {
        let (kept, used) = (Arc::new(()), LastUse::new(parking_lot::Mutex::new(Instant::now())));
        let of = Arc::downgrade(&kept);
        let stays = |seconds| {
            let (of, used) = (of.clone(), used.clone());
            async move { timeout(Duration::from_secs(seconds), idle(&of, &used)).await.is_err() }
        };
        let open = Arc::clone(&kept);
        assert!(stays(1000).await, "it is open");
        drop(open);
        *used.lock() = Instant::now();
        assert!(stays(299).await, "it was asked for");
        assert!(!stays(2).await);
        drop(kept);
        assert!(!stays(1).await, "it is gone");
    }
}
