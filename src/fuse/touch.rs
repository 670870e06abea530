//! Waking inotify watchers: the kernel reports to them only what its own system calls change.
//!
//! A process for this alone sets the times of `VM/status` through the mount whenever a status
//! changes: watchers of the file and of its directory get IN_ATTRIB. The daemon must make no
//! request to its own mount: if it is killed before it has answered itself, the kernel waits for
//! the answer, the process never ends, and with `/dev/fuse` open in it every process that waits in
//! the mount hangs.

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::vm::events::Feed;

/// The hidden command under which this program is that process.
pub const COMMAND: &str = "touch-status";
/// How long the process may leave its input unread before it is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Watches a feed for the life of the daemon. The process is started with the first change.
pub async fn follow(events: Arc<Feed>, mount: PathBuf) {
    let (mut listener, mut next, mut child) = (events.listen(), 0, None);
    loop {
        let names;
        (names, next) = events.status_changes(next);
        if !names.is_empty()
            && let Err(error) = hand_over(&mut child, &mount, &names).await
        {
            tracing::warn!(%error, "watchers of status files are not woken");
            // The next change starts another one.
            child = None;
        }
        listener.rung().await;
    }
}

async fn hand_over(child: &mut Option<Child>, mount: &Path, names: &[String]) -> io::Result<()> {
    let child = match child {
        Some(child) => child,
        None => child.insert(start(mount)?),
    };
    let input = child.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
    let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
    timeout(WRITE_TIMEOUT, input.write_all(lines.as_bytes())).await?
}

/// Its input ends with the daemon, however that ends.
fn start(mount: &Path) -> io::Result<Child> {
    let mut command = Command::new(this_program());
    command.arg0("aq").arg(COMMAND).arg(mount).current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// By its path, so that `ps` has its name; after an upgrade there is another program at that path,
/// or none.
fn this_program() -> PathBuf {
    let installed = std::env::current_exe().ok().filter(|path| path.exists());
    installed.unwrap_or_else(|| "/proc/self/exe".into())
}

/// Touches the status of each VM that a line of the input names, to the end of the input.
///
/// # Errors
/// What reading answers.
pub fn serve(mount: &Path, names: impl BufRead) -> io::Result<()> {
    names.lines().try_for_each(|name| {
        touch(&mount.join(name?).join("status"));
        Ok(())
    })
}

fn touch(status: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    // A VM that is gone meanwhile has no watchers.
    let _touched = utimensat(CWD, status, &times, AtFlags::SYMLINK_NOFOLLOW);
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn each_status_that_is_named_is_touched_and_one_that_is_gone_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let status = dir.path().join("vm1/status");
        std::fs::create_dir(dir.path().join("vm1")).unwrap();
        let file = std::fs::File::create(&status).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        serve(dir.path(), &b"gone\nvm1\n"[..]).unwrap();
        assert!(file.metadata().unwrap().modified().unwrap() > SystemTime::UNIX_EPOCH);
    }
}
