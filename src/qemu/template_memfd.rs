//! A sealed memfd with a template's memory, for a QEMU that opens the file for writing.
//!
//! Before 8.2, QEMU opens the file of a private mapping for writing, and punches what the guest's
//! balloon gives back out of the file itself: any guest could destroy the memory of all clones. A
//! sealed memfd can be opened for writing and not be changed. All clones of a template share one.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::disk::sparse;
use crate::vm::backend::Result;
use crate::vm::driver::off_thread;
use crate::vm::template::Template;

/// How long a copy is kept for the next clone. To make it again takes some 50 ms; it takes as much
/// of the host's memory as the captured guest had in use.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// The copy that was used last. QEMU keeps the memfd of a running clone open; this one is for the
/// next clone.
#[derive(Debug, Default)]
pub(super) struct TemplateMemfd(Arc<Mutex<Option<LastCopy>>>);

#[derive(Debug)]
struct LastCopy {
    template: String,
    copy: Arc<OwnedFd>,
    used: Instant,
}

impl TemplateMemfd {
    /// Returns the sealed copy of a template's memory, which is in the file `ram`.
    pub(super) async fn of(&self, template: &Template, ram: &Path) -> Result<Arc<OwnedFd>> {
        let mut last = self.0.lock().await;
        if let Some(kept) = last.as_mut().filter(|kept| kept.template == template.id) {
            kept.used = Instant::now();
            return Ok(Arc::clone(&kept.copy));
        }
        // Concurrent starts wait for the lock: a copy for each would waste as much memory again.
        let ram = ram.to_owned();
        let copied = off_thread(move || copy(&ram), "a copy of the template's memory").await?;
        let (copy, template, used) = (Arc::new(copied), template.id.clone(), Instant::now());
        if last.replace(LastCopy { template, copy: Arc::clone(&copy), used }).is_none() {
            tokio::spawn(expire(Arc::downgrade(&self.0)));
        }
        Ok(copy)
    }
}

/// Drops the copy when it has not been used for [`KEPT_FOR`].
async fn expire(kept: Weak<Mutex<Option<LastCopy>>>) {
    let mut idle = Duration::ZERO;
    loop {
        sleep(KEPT_FOR - idle).await;
        let Some(kept) = kept.upgrade() else { return };
        let mut last = kept.lock().await;
        match last.as_ref().map(|kept| kept.used.elapsed()) {
            Some(since) if since < KEPT_FOR => idle = since,
            _ => {
                *last = None;
                return;
            }
        }
    }
}

fn copy(from: &Path) -> io::Result<OwnedFd> {
    let from = File::open(from)?;
    let to = sealable(from.metadata()?.len())?;
    sparse::copy(&from, &to)?;
    seal(&to)?;
    Ok(to)
}

/// Makes a memfd of this length, which can be sealed later.
pub(super) fn sealable(length: u64) -> io::Result<OwnedFd> {
    let to = memfd_create("aqfs-template", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&to, length)?;
    Ok(to)
}

/// Seals a memfd: nobody changes it any more.
///
/// # Errors
/// `EBUSY` while a process maps it and can write to it.
pub(super) fn seal(memfd: &OwnedFd) -> io::Result<()> {
    let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE | SealFlags::SEAL;
    Ok(fcntl_add_seals(memfd, seals)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::vm::template::{Saved, Shape};

    fn template(dir: &Path, id: &str) -> Template {
        let ram = dir.join("ram");
        File::create(&ram).unwrap().set_len(64 << 20).unwrap();
        let (saved, base) = (Saved::in_dir(dir), Vec::new());
        Template { id: id.to_owned(), saved, base, shape: Shape::sample() }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_clones_at_once_share_one_copy() {
        let dir = tempfile::tempdir().unwrap();
        let (template, sealed) = (template(dir.path(), "1"), TemplateMemfd::default());
        let ram = dir.path().join("ram");
        let copies = futures::future::join_all((0..16).map(|_| sealed.of(&template, &ram))).await;
        let first = copies[0].as_ref().unwrap();
        assert!(copies.iter().all(|copy| Arc::ptr_eq(copy.as_ref().unwrap(), first)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_is_kept_while_it_is_used_and_a_while_longer() {
        let dir = tempfile::tempdir().unwrap();
        let (template, sealed) = (template(dir.path(), "1"), TemplateMemfd::default());
        let ram = dir.path().join("ram");
        let first = Arc::downgrade(&sealed.of(&template, &ram).await.unwrap());
        for _ in 0..3 {
            sleep(KEPT_FOR - Duration::from_secs(1)).await;
            assert!(first.ptr_eq(&Arc::downgrade(&sealed.of(&template, &ram).await.unwrap())));
        }
        sleep(KEPT_FOR + Duration::from_secs(1)).await;
        assert!(first.upgrade().is_none());
        sealed.of(&template, &ram).await.unwrap();
    }

    #[test]
    fn a_copy_has_the_same_content_and_cannot_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[7; 5000], 1 << 20).unwrap();
        let copy = File::from(copy(&path).unwrap());
        let mut both = [vec![0; 8 << 20], vec![1; 8 << 20]];
        File::open(&path).unwrap().read_exact_at(&mut both[0], 0).unwrap();
        copy.read_exact_at(&mut both[1], 0).unwrap();
        assert!(both[0] == both[1]);
        assert!(copy.write_all_at(b"x", 0).is_err());
        assert!(copy.set_len(1).is_err());
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert!(rustix::fs::fallocate(&copy, hole, 0, 4096).is_err());
    }
}
