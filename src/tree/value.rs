//! Open values: content that is fixed when a file is opened, as in sysfs.
//!
//! What the content is belongs to `directories/`.

use std::sync::Arc;

use parking_lot::Mutex;

use super::handle::Polled;
use crate::vm::stream::Listener;

/// An open value: its content is made when it is opened, and again when it is read from its start
/// again.
pub(crate) struct OpenValue {
    content: Mutex<Content>,
    source: Option<LiveContent>,
    is_slow: bool,
}

struct Content {
    bytes: Arc<[u8]>,
    /// The start has been read: the next read from the start makes the content again.
    begun: bool,
    /// Hears when it may have changed since it was made.
    since: Option<Listener>,
}

impl Content {
    fn make(source: &LiveContent) -> Self {
        let mut since = source.listener.clone();
        // Listening begins before the look, so that no change in between is missed.
        since.forget_past();
        Self { bytes: (source.render)().into(), begun: false, since: Some(since) }
    }
}

/// How to make a value's content again while it stays open.
pub(super) struct LiveContent {
    pub(super) render: Box<dyn Fn() -> Vec<u8> + Send + Sync>,
    pub(super) listener: Listener,
}

impl OpenValue {
    pub(super) fn fixed(bytes: Vec<u8>) -> Self {
        let content = Content { bytes: bytes.into(), begun: false, since: None };
        Self { content: Mutex::new(content), source: None, is_slow: false }
    }

    pub(super) fn live(source: LiveContent) -> Self {
        let content = Mutex::new(Content::make(&source));
        Self { content, source: Some(source), is_slow: false }
    }

    pub(super) fn slow(self) -> Self {
        Self { is_slow: true, ..self }
    }

    pub(super) fn read(&self, offset: u64, max: usize) -> Vec<u8> {
        if offset == 0 && self.is_begun() {
            self.remake();
        }
        let bytes = Arc::clone(&self.content.lock().bytes);
        slice(&bytes, offset, max)
    }

    /// Says whether reading at an offset makes the content again, by a look at the disk.
    pub(super) fn remakes_slowly(&self, offset: u64) -> bool {
        self.is_slow && offset == 0 && self.content.lock().begun
    }

    /// Says whether the start has been read before, and notes that it is read now.
    fn is_begun(&self) -> bool {
        std::mem::replace(&mut self.content.lock().begun, true)
    }

    /// Makes the content again; outside the lock, as that may take long.
    fn remake(&self) {
        if let Some(source) = &self.source {
            let new = Content { begun: true, ..Content::make(source) };
            *self.content.lock() = new;
        }
    }

    pub(super) fn poll(&self) -> Polled {
        let Some(source) = &self.source else { return Polled::ALWAYS };
        let mut listener = source.listener.clone();
        listener.forget_past();
        let changed = match self.is_slow {
            true => self.content.lock().since.as_ref().is_some_and(Listener::has_heard),
            false => (source.render)() != *self.content.lock().bytes,
        };
        Polled { changed, listener: Some(listener), ..Polled::ALWAYS }
    }
}

fn slice(content: &[u8], offset: u64, max: usize) -> Vec<u8> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
    content[start..content.len().min(start.saturating_add(max))].to_vec()
}
