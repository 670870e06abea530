//! Waking inotify watchers: the kernel tells them of what happens through its own calls alone.
//!
//! A thread of its own sets the times of `VM/status` through the mount whenever a status changes:
//! watchers of the file and of its directory get IN_ATTRIB. It is never a thread that serves
//! requests, which would wait for itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use crate::vm::events::Feed;

/// Watches a feed for the life of the daemon.
pub async fn follow(events: Arc<Feed>, mount: PathBuf) {
    let (mut listener, mut next) = (events.listen(), 0);
    loop {
        let names;
        (names, next) = events.status_changes(next);
        if !names.is_empty() {
            let mount = mount.clone();
            let touched = tokio::task::spawn_blocking(move || touch_all(&mount, &names));
            // Nothing here can fail that somebody would want to know of.
            drop(touched.await);
        }
        listener.rung().await;
    }
}

fn touch_all(mount: &Path, names: &[String]) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    for name in names {
        let status = mount.join(name).join("status");
        // A VM that is gone meanwhile has no watchers.
        let _touched = utimensat(CWD, &status, &times, AtFlags::SYMLINK_NOFOLLOW);
    }
}
