//! Empty overlays: made by qemu-img, the next ones on the same base by copying.
//!
//! What an empty overlay holds follows from the name, the format and the size of its base alone, and running
//! qemu-img takes a twentieth of a clone's start.
//!
//! Not here: what is written into overlays (QEMU).

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{DiskError, DiskFormat, img};

/// Overlays that are remembered, those used last.
const REMEMBERED: usize = 8;
/// The largest that is remembered. One for a disk of some terabytes is larger.
const LARGEST: u64 = 512 << 10;

/// Held while qemu-img runs: of several that are wanted at once on a new base, one is made by it.
static MAKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

static KNOWN: Mutex<VecDeque<Known>> = Mutex::new(VecDeque::new());

#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    path: PathBuf,
    format: DiskFormat,
    size: u64,
}

#[derive(Debug)]
struct Known {
    base: Base,
    bytes: Arc<[u8]>,
}

/// Makes an overlay of `size` bytes on a base. `what` is said of it if that fails. Nothing waits for the
/// disk.
///
/// # Errors
/// `Missing` without `qemu-img`, `NoSpace`, or its own last line.
pub async fn create(
    what: &str,
    overlay: &Path,
    (path, format): (&Path, DiskFormat),
    size: u64,
) -> Result<(), DiskError> {
    let base = Base { path: path.to_owned(), format, size };
    if copy_of_known(&base, overlay).await {
        return Ok(());
    }
    let _turn = MAKING.lock().await;
    if copy_of_known(&base, overlay).await {
        return Ok(());
    }
    // Of what failed, qemu-img says why.
    img::create_overlay(what, overlay, (path, format), size).await?;
    let made = overlay.to_owned();
    let read = tokio::task::spawn_blocking(move || read(&made)).await;
    if let Ok(Ok(Some(bytes))) = read {
        remember(Known { base, bytes });
    }
    Ok(())
}

async fn copy_of_known(base: &Base, overlay: &Path) -> bool {
    match known(base) {
        Some(bytes) => write(overlay.to_owned(), bytes).await.is_ok(),
        None => false,
    }
}

fn known(base: &Base) -> Option<Arc<[u8]>> {
    let mut all = KNOWN.lock();
    let at = all.iter().position(|known| known.base == *base)?;
    let known = all.remove(at)?;
    let bytes = Arc::clone(&known.bytes);
    all.push_back(known);
    Some(bytes)
}

fn remember(known: Known) {
    let mut all = KNOWN.lock();
    all.retain(|other| other.base != known.base);
    all.push_back(known);
    let surplus = all.len().saturating_sub(REMEMBERED);
    all.drain(..surplus);
}

fn read(overlay: &Path) -> io::Result<Option<Arc<[u8]>>> {
    let is_small = fs::metadata(overlay)?.len() <= LARGEST;
    is_small.then(|| fs::read(overlay).map(Arc::from)).transpose()
}

async fn write(overlay: PathBuf, bytes: Arc<[u8]>) -> io::Result<()> {
    let written = tokio::task::spawn_blocking(move || fs::write(overlay, bytes)).await;
    written.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::testing::qemu_img;

    #[tokio::test]
    async fn the_second_overlay_is_the_first_ones_copy_and_qemu_takes_it() {
        let dir = tempfile::tempdir().unwrap();
        qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "base", "3M"]);
        let base = dir.path().join("base");
        let on = |name: &str| dir.path().join(name);
        let make = async |name: &str, size| {
            create("x", &on(name), (&base, DiskFormat::Qcow2), size).await.unwrap();
            fs::read(on(name)).unwrap()
        };
        let first = make("first", 5 << 20).await;
        fs::write(on("first"), "the guest has written").unwrap();
        assert_eq!(make("second", 5 << 20).await, first);
        qemu_img(dir.path(), &["check", "-q", "second"]);
        let larger = make("larger", 9 << 20).await;
        assert!(larger != first && make("again", 9 << 20).await == larger);
        // One that cannot be written is an error, and not remembered as anything.
        let absent = create("x", &on("no/where"), (&base, DiskFormat::Qcow2), 9 << 20).await;
        assert!(absent.is_err());
    }
}
