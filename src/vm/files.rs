//! The way to a guest's files: one for a connection with the guest, opened when it is first used.
//!
//! Not here: what is asked of it (`files`), how the guest is asked (`guest::sftp`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

use super::backend::{BackendError, GuestFiles, GuestSession, NoFiles};
use super::exec::Link;

/// How long a request waits for a guest that boots, or for its server to start.
pub const TIMEOUT: Duration = Duration::from_secs(15);
/// How long a guest without a server is not asked again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Why a guest's files are not reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// No QEMU runs.
    #[error("the VM is off; `echo start > ctl` first")]
    Off,
    /// The VM is removed.
    #[error("the VM has been removed")]
    Removed,
    /// It has not answered.
    #[error("the guest has not answered within {} s", TIMEOUT.as_secs())]
    Late,
    /// It has no server, or the connection is lost.
    #[error(transparent)]
    None(#[from] NoFiles),
}

/// The files of one VM's guest.
#[derive(Debug)]
pub(super) struct Files {
    link: watch::Receiver<Link>,
    current: Mutex<Option<Current>>,
}

/// What the newest connection with the guest gave.
#[derive(Debug)]
struct Current {
    session: Arc<dyn GuestSession>,
    files: Result<Arc<dyn GuestFiles>, (NoFiles, Instant)>,
}

impl Current {
    /// Returns what it is good for still; `None`: the guest is to be asked.
    fn good(
        &self,
        session: &Arc<dyn GuestSession>,
    ) -> Option<Result<Arc<dyn GuestFiles>, FilesError>> {
        match &self.files {
            _ if !Arc::ptr_eq(&self.session, session) => None,
            Ok(files) if files.is_lost() => None,
            Ok(files) => Some(Ok(Arc::clone(files))),
            Err((_, since)) if since.elapsed() > RETRY_INTERVAL => None,
            Err((error, _)) => Some(Err(error.clone().into())),
        }
    }
}

impl Files {
    pub(super) fn new(link: watch::Receiver<Link>) -> Self {
        Self { link, current: Mutex::default() }
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
        let settled = link.wait_for(|link| !matches!(link, Link::Coming)).await;
        match settled.map(|link| link.clone()) {
            Ok(Link::Up(session)) => Ok(session),
            Ok(Link::Off | Link::Coming) => Err(FilesError::Off),
            Err(_) => Err(FilesError::Removed),
        }
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
        *current = Some(Current { session, files: kept });
        Ok(files?)
    }
}

impl From<BackendError> for FilesError {
    fn from(error: BackendError) -> Self {
        Self::None(error.into())
    }
}
