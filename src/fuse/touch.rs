//! What the daemon has another process do in the mount: the kernel knows only of what its own system
//! calls change.
//!
//! One process wakes inotify watchers: it sets the times of `VM/status` through the mount whenever a status
//! changes: watchers of the file and of its directory get IN_ATTRIB. The daemon must make no
//! request to its own mount: if it is killed before it has answered itself, the kernel waits for
//! the answer, the process never ends, and with `/dev/fuse` open in it every process that waits in
//! the mount hangs.

use std::fs;
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::registry::Registry;
use crate::registry::expire::Expiries;
use crate::vm::events::Feed;

/// The hidden command under which this program is that process.
pub const COMMAND: &str = "touch-status";
/// How long the process may leave its input unread before it is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// How a line begins that names a VM to remove for good. No name of a VM has a space.
const REMOVE: &str = "remove ";
/// How a line begins that names a VM to remove into the trash.
const EXPIRE: &str = "expire ";
/// How many VMs whose machines have ended may await their removal.
const ENDED: usize = 64;

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

/// Has the VMs removed that have ended and are to be removed then, for the life of the daemon.
pub async fn follow_ends(registry: Arc<Registry>, mount: PathBuf) {
    let events = Arc::clone(&registry.backends().events);
    let (mut listener, mut next, mut child) = (events.listen(), 0, None);
    let mut over = registry.over_before();
    loop {
        let lines: Vec<String> = over.iter().map(|name| format!("{REMOVE}{name}")).collect();
        have_removed(&mut child, &mount, &lines).await;
        listener.rung().await;
        (over, next) = events.status_changes(next);
        over.retain(|name| registry.is_over(name));
    }
}

/// Has the VMs removed whose time is over, for the life of the daemon.
pub async fn follow_expiries(registry: Arc<Registry>, mount: PathBuf) {
    let mut listener = registry.backends().events.listen();
    let (mut known, mut child) = (Expiries::default(), None);
    let (ended, mut names) = mpsc::channel(ENDED);
    loop {
        let (over, due) = registry.due(&mut known);
        for vm in over {
            let ended = ended.clone();
            tokio::spawn(async move {
                if let Some(name) = Registry::end_expired(vm).await {
                    // Without its receiver the daemon ends.
                    drop(ended.send(name).await);
                }
            });
        }
        tokio::select! {
            Some(name) = names.recv() => {
                let word = if registry.is_over(&name) { REMOVE } else { EXPIRE };
                have_removed(&mut child, &mount, &[format!("{word}{name}")]).await;
            }
            () = listener.rung() => {}
            () = sleep(due.unwrap_or_default()), if due.is_some() => {}
        }
    }
}

async fn have_removed(child: &mut Option<Child>, mount: &Path, lines: &[String]) {
    if !lines.is_empty()
        && let Err(error) = hand_over(child, mount, lines).await
    {
        tracing::warn!(%error, "VMs that are to be removed are not");
        *child = None;
    }
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

/// Touches the status of each VM that a line of the input names, or removes it, to the end of the input.
///
/// # Errors
/// What reading answers.
pub fn serve(mount: &Path, names: impl BufRead) -> io::Result<()> {
    names.lines().try_for_each(|name| {
        let name = name?;
        match (name.strip_prefix(REMOVE), name.strip_prefix(EXPIRE)) {
            (Some(name), _) => remove(mount, name),
            // What refuses says so in the VM's `error`.
            (None, Some(name)) => drop(fs::remove_dir(mount.join(name))),
            (None, None) => touch(&mount.join(name).join("status")),
        }
        Ok(())
    })
}

/// Removes a VM for good. What refuses says so in the VM's `error`.
fn remove(mount: &Path, name: &str) {
    let earlier = removed(mount, name);
    if fs::remove_dir(mount.join(name)).is_ok() {
        let now = removed(mount, name).into_iter().filter(|kept| !earlier.contains(kept));
        now.for_each(|kept| drop(fs::remove_dir(kept)));
    }
}

/// Lists what `.trash` has of VMs of a name.
fn removed(mount: &Path, name: &str) -> Vec<PathBuf> {
    let is_of = |path: &PathBuf| {
        let kept = path.file_name().and_then(|kept| kept.to_str());
        kept.and_then(|kept| kept.rsplit_once('@')).is_some_and(|(of, _)| of == name)
    };
    let kept = fs::read_dir(mount.join(".trash")).into_iter().flatten().flatten();
    kept.map(|entry| entry.path()).filter(is_of).collect()
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
