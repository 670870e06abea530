//! The tiny image for tests: built once per machine and build of aq, then shared.
//!
//! It is built by aq itself in a store under `/var/tmp` (`AQFS_TEST_CACHE` names another place)
//! and hard-linked into the store of each test.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aqfs::store::layout::Layout;

use super::mounted::{AQ, Mounted};

/// What a build from nothing may take, with packages to be fetched.
const BUILD: Duration = Duration::from_secs(300);

/// Puts the image, and the verdict on accelerators, into the store at `store`.
pub(crate) fn install(store: &Path) {
    let cache = cache();
    let lock = cache.join("lock-of-tests");
    fs::create_dir_all(&cache).expect("the cache of tests");
    let lock = File::create(&lock).expect("the lock of the cache");
    lock.lock().expect("the lock of the cache");
    let (from, to) = (Layout::new(cache.join("store")), Layout::new(store));
    if !is_current(&cache, &from) {
        build(&cache, &from);
    }
    link_tree(&from.images().join("tiny"), &to.images().join("tiny")).expect("linking the image");
    aqfs::store::file::private_dir(&to.cache()).expect("the store's cache");
    for boot in boot_dirs(&from) {
        let name = boot.file_name().expect("a name");
        link_tree(&boot, &to.cache().join(name)).expect("linking the kernel of containers");
    }
    // There is no verdict where hints alone have decided.
    drop(fs::copy(from.accel_verdict(), to.accel_verdict()));
}

/// Lists what containers boot with.
fn boot_dirs(store: &Layout) -> Vec<PathBuf> {
    let entries = fs::read_dir(store.cache()).into_iter().flatten().flatten();
    let names = entries.filter(|e| e.file_name().to_string_lossy().starts_with("boot-"));
    names.map(|e| e.path()).collect()
}

/// Returns where the images of all checkouts are.
pub(crate) fn place() -> PathBuf {
    let uid = rustix::process::getuid().as_raw();
    std::env::var_os("AQFS_TEST_CACHE")
        .map_or_else(|| format!("/var/tmp/aqfs-test-cache-{uid}").into(), PathBuf::from)
}

/// Each checkout has its own, so that two of them do not take turns in building.
fn cache() -> PathBuf {
    place().join(AQ.replace('/', "-").trim_start_matches('-'))
}

/// An image made by another build of aq may be another image.
fn is_current(cache: &Path, store: &Layout) -> bool {
    let stamp = fs::read_to_string(cache.join("stamp")).unwrap_or_default();
    stamp == stamp_of(AQ) && store.images().join("tiny").is_dir()
}

fn stamp_of(program: &str) -> String {
    let meta = fs::metadata(program).expect("the program");
    format!("{program} {} {}.{}", meta.len(), meta.mtime(), meta.mtime_nsec())
}

fn build(cache: &Path, store: &Layout) {
    // What an earlier attempt left: the packages that it fetched are kept.
    for dir in [store.images(), store.vms(), store.trash()] {
        drop(fs::remove_dir_all(dir));
    }
    let mounted = Mounted::on(store.root().to_owned());
    // A start that needs an image builds it; it also finds the accelerator, which is kept as well.
    let script = "
        mkdir image && echo 'start paused' > image/ctl && cat image/wait
        cat .images/tiny/status image/error
        echo kill > image/ctl && cat image/wait && rmdir image";
    let said = mounted.sh_within(script, BUILD);
    assert!(said.stdout.starts_with("paused\nready\n"), "no image: {said:?}");
    // An image of an archive, for what all of them boot with.
    let script = "
        touch $SCRATCH/file && tar -C $SCRATCH -cf $SCRATCH/a.tar file && mkdir .images/a
        echo $SCRATCH/a.tar > .images/a/source; cat .images/a/wait; rmdir .images/a";
    let said = mounted.sh_within(script, BUILD);
    assert_eq!(said.stdout, "ready\n", "no kernel for containers: {said:?}");
    drop(mounted);
    fs::write(cache.join("stamp"), stamp_of(AQ)).expect("the stamp of the cache");
}

/// Makes `to` a tree of hard links to the files of `from`, or of copies on another file system.
pub(crate) fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    aqfs::store::file::private_dir(to)?;
    let Ok(entries) = fs::read_dir(from) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            link_tree(&entry.path(), &target)?;
        } else if fs::hard_link(entry.path(), &target).is_err() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
