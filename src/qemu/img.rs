//! `qemu-img`: making a VM's disk and describing it; and the look at a qcow2 header that tells
//! whether QEMU may open it.
//!
//! `qemu-img` never runs on the disk of a running machine, and never follows a backing file that
//! a header names.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::process::Command;
use tokio::time::timeout;

use super::process::strip_program;
use super::qcow2;
use crate::programs;
use crate::store::file::sync_dir;
use crate::store::layout::{VmDir, names};
use crate::vm::backend::{BackendError, DiskFormat, LaunchPlan};
use crate::vm::warm::Layer;

/// The program.
const PROGRAM: &str = programs::QEMU_IMG.name;
/// How long one run may take: making or describing an image takes about 10 ms; a slow disk that
/// is busy with something else must not fail it.
pub(super) const BOUND: Duration = Duration::from_secs(30);
/// A disk with less room than this is full: QEMU writes memory in pieces, each of which fits or not.
const ROOM: u64 = 1 << 20;
/// The bit among the incompatible features of a qcow2 header that says that the data are in
/// another file, which the header names.
const EXTERNAL_DATA: u64 = 1 << 2;

/// What `qemu-img info` says of an image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageFacts {
    /// The size that a guest sees, in bytes.
    pub virtual_size: u64,
    /// The bytes that it takes on disk.
    pub actual_size: u64,
}

/// Makes the VM's disk, an overlay on the plan's base and at least as large as it asks for, unless
/// it is there. It becomes visible whole and on disk.
///
/// # Errors
/// `Missing` without `qemu-img`, `NoSpace`, or its own last line.
pub async fn ensure_overlay(dir: &VmDir, plan: &LaunchPlan) -> Result<(), BackendError> {
    if dir.disk().exists() {
        return Ok(());
    }
    let partial = dir.0.join(names::DISK_PARTIAL);
    let size = plan.spec.disk.max(plan.image.disk_size);
    let base = plan.base.first().ok_or_else(|| failed("create the disk", "it has no base"))?;
    run("create the disk", &create_arguments(base, &partial, size)).await?;
    let (disk, directory) = (dir.disk(), dir.0.clone());
    let publish = move || {
        File::open(&partial)?.sync_all()?;
        std::fs::rename(&partial, disk)?;
        sync_dir(&directory)
    };
    crate::vm::driver::off_thread(publish, "the disk").await
}

/// `-u`: the backing file is not opened, so that nothing which its header names is.
fn create_arguments(base: &Layer, disk: &Path, size: u64) -> Vec<OsString> {
    let format = match base.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    let mut args: Vec<OsString> =
        ["create", "-q", "-u", "-f", "qcow2", "-F", format, "-b"].map(OsString::from).into();
    args.extend([base.path.clone().into(), disk.into(), size.to_string().into()]);
    args
}

/// Removes the VM's disk, if there is one.
///
/// # Errors
/// What the file system answers.
pub async fn discard(dir: &VmDir) -> Result<(), BackendError> {
    let disk = dir.disk();
    let remove = move || match std::fs::remove_file(disk) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    };
    crate::vm::driver::off_thread(remove, "the disk").await
}

/// Makes the VM's disk at least `size` bytes large.
///
/// # Errors
/// As [`ensure_overlay`].
pub async fn grow(dir: &VmDir, size: u64) -> Result<(), BackendError> {
    // A disk with another header is QEMU's to refuse.
    if virtual_size(&dir.disk())?.is_none_or(|has| has >= size) {
        return Ok(());
    }
    let args = ["resize", "-q", &without_backing(&dir.disk()), &size.to_string()];
    let args = args.map(OsString::from);
    run("make the disk larger", &args).await.map(drop)
}

/// Reads the size that a guest sees from a qcow2 header, which takes no other program; `None`
/// without a file or with another header.
///
/// # Errors
/// What reading answers.
pub fn virtual_size(path: &Path) -> Result<Option<u64>, BackendError> {
    let mut header = [0; 32];
    match File::open(path).and_then(|mut f| f.read_exact(&mut header)) {
        Ok(()) => Ok(size_in(&header)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
            Ok(None)
        }
        Err(e) => Err(BackendError::io(format!("the disk {}", path.display()), &e)),
    }
}

fn size_in(header: &[u8]) -> Option<u64> {
    let size = u64::from_be_bytes(header.get(24..32)?.try_into().ok()?);
    header.starts_with(b"QFI\xfb").then_some(size)
}

/// A file that has a name only until this is dropped: QEMU has opened it by then, and the kernel
/// frees it when QEMU ends, whoever sees that.
#[derive(Debug)]
pub struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove");
        }
    }
}

/// Makes an overlay on the VM's disk that takes what the guest writes, of at least `size` bytes.
///
/// # Errors
/// As [`ensure_overlay`].
pub async fn temporary_overlay(dir: &VmDir, size: u64) -> Result<Temporary, BackendError> {
    let path = dir.0.join(names::TEMPORARY_DISK);
    let size = size.max(virtual_size(&dir.disk())?.unwrap_or(0));
    let mut args: Vec<OsString> =
        ["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"].map(OsString::from).into();
    args.extend([names::DISK.into(), path.clone().into(), size.to_string().into()]);
    run("create the temporary disk", &args).await?;
    Ok(Temporary(path))
}

/// Takes a snapshot in a disk that no QEMU uses.
///
/// # Errors
/// `NoSpace`, or its own last line.
pub async fn take_snapshot(disk: &Path, tag: &str) -> Result<(), BackendError> {
    snapshot(disk, "take the snapshot", "-c", tag).await
}

/// Brings a disk that no QEMU uses back to a snapshot.
///
/// # Errors
/// As [`take_snapshot`].
pub async fn restore_snapshot(disk: &Path, tag: &str) -> Result<(), BackendError> {
    let known = qcow2::snapshots(disk).map_err(|e| BackendError::io("the snapshots", &e))?;
    // A name that is also some snapshot's number would be taken for that number.
    let id = known.iter().find(|s| s.tag == tag).map_or(tag, |s| &s.id);
    snapshot(disk, "restore the snapshot", "-a", id).await
}

/// Drops a snapshot in a disk that no QEMU uses.
///
/// # Errors
/// As [`take_snapshot`].
pub async fn drop_snapshot(disk: &Path, tag: &str) -> Result<(), BackendError> {
    snapshot(disk, "drop the snapshot", "-d", tag).await
}

/// Gives clusters back that a disk counts as used and does not use.
///
/// # Errors
/// Its own last line, also if there is more to repair than that.
pub async fn repair_leaks(disk: &Path) -> Result<(), BackendError> {
    let args = ["check", "-q", "-r", "leaks", &without_backing(disk)].map(OsString::from);
    run("repair the disk", &args).await.map(drop)
}

async fn snapshot(disk: &Path, what: &str, flag: &str, tag: &str) -> Result<(), BackendError> {
    let args = ["snapshot", "-q", flag, tag, &without_backing(disk)].map(OsString::from);
    run(what, &args).await.map(drop)
}

/// Names a qcow2 image such that its backing file is not opened.
fn without_backing(path: &Path) -> String {
    // What becomes free goes back to the host.
    let file = json!({"driver": "file", "filename": path.to_string_lossy(), "discard": "unmap"});
    let node = json!({"driver": "qcow2", "backing": null, "discard": "unmap", "file": file});
    format!("json:{node}")
}

/// Describes a qcow2 image without opening its backing file.
///
/// # Errors
/// As [`ensure_overlay`].
pub async fn info(path: &Path) -> Result<ImageFacts, BackendError> {
    let what = format!("look at {}", path.display());
    let args = ["info", "--output=json", &without_backing(path)].map(OsString::from);
    let output = run(&what, &args).await?;
    serde_json::from_slice(&output).map_err(|e| failed(&what, &e.to_string()))
}

/// Refuses an image whose headers would make QEMU open another file of the host.
///
/// # Errors
/// `ImageFailed` saying so, or why it cannot be read.
pub fn check_base(image: &str, base: &[Layer]) -> Result<(), BackendError> {
    let refused = |reason: String| BackendError::ImageFailed { name: image.to_owned(), reason };
    for layer in base.iter().filter(|layer| layer.format == DiskFormat::Qcow2) {
        let mut header = [0; 80];
        File::open(&layer.path)
            .and_then(|mut f| f.read_exact(&mut header))
            .map_err(|e| refused(format!("cannot read {}: {e}", layer.path.display())))?;
        match names_external_data(&header) {
            Some(false) => {}
            Some(true) => {
                return Err(refused("its qcow2 header names another data file".to_owned()));
            }
            None => return Err(refused("it is not a qcow2 image".to_owned())),
        }
    }
    Ok(())
}

/// Reads a qcow2 header's word on external data; `None` if it is no such header.
fn names_external_data(header: &[u8]) -> Option<bool> {
    let version = u32::from_be_bytes(header.get(4..8)?.try_into().ok()?);
    let features = u64::from_be_bytes(header.get(72..80)?.try_into().ok()?);
    match (header.get(..4)?, version) {
        // Version 2 has no features; there the bytes belong to something else.
        (b"QFI\xfb", 2) => Some(false),
        (b"QFI\xfb", 3) => Some(features & EXTERNAL_DATA != 0),
        _ => None,
    }
}

/// Tells a full disk apart, of which QEMU has only seen that something could not be written in `dir`.
pub(super) fn cause_of(error: BackendError, dir: &Path, what: &str) -> BackendError {
    let free = rustix::fs::statvfs(dir).map(|s| s.f_bavail * s.f_frsize);
    match free {
        Ok(free) if free < ROOM => BackendError::NoSpace { what: what.to_owned() },
        _ => error,
    }
}

async fn run(what: &str, args: &[OsString]) -> Result<Vec<u8>, BackendError> {
    let mut command = Command::new(PROGRAM);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true).env("LC_ALL", "C");
    let output = timeout(BOUND, command.output())
        .await
        .map_err(|_| failed(what, &format!("no answer within {} s", BOUND.as_secs())))?
        .map_err(|e| not_started(what, &e))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(refusal(what, &String::from_utf8_lossy(&output.stderr)))
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "all other kinds are told in the system's words"
)]
fn not_started(what: &str, error: &io::Error) -> BackendError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => BackendError::Missing {
            program: PROGRAM.to_owned(),
            remedy: programs::remedy(&[&programs::QEMU_IMG]),
        },
        _ => BackendError::io(format!("{PROGRAM}: {what}"), error),
    }
}

fn refusal(what: &str, stderr: &str) -> BackendError {
    let line = stderr.lines().rev().find(|l| !l.trim().is_empty());
    let line = strip_program(line.unwrap_or("it gave no reason"));
    if line.contains("No space left on device") || line.contains("Disk quota exceeded") {
        return BackendError::NoSpace { what: line.to_owned() };
    }
    failed(what, line)
}

fn failed(what: &str, error: &str) -> BackendError {
    BackendError::Io {
        what: format!("{PROGRAM} could not {what}"),
        error: error.to_owned(),
        errno: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::cmdline::tests::plan_on;

    fn layer(disk: &Path, format: DiskFormat) -> Layer {
        Layer { path: disk.into(), format }
    }

    fn plan(base: &str, size: u64) -> LaunchPlan {
        let mut plan = plan_on(vec![layer(Path::new(base), DiskFormat::Raw)]);
        (plan.spec.disk, plan.image.disk_size) = (size, 64 << 20);
        plan
    }

    #[tokio::test]
    async fn an_overlay_is_as_large_as_the_larger_wish_and_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmDir(dir.path().to_owned());
        ensure_overlay(&vm, &plan("/nowhere/base, 1.raw", 1 << 20)).await.unwrap();
        let facts = info(&vm.disk()).await.unwrap();
        assert_eq!(facts.virtual_size, 64 << 20);
        ensure_overlay(&vm, &plan("/nowhere/base.raw", 1 << 30)).await.unwrap();
        assert_eq!(info(&vm.disk()).await.unwrap(), facts);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_disk_grows_and_never_shrinks_and_what_is_temporary_goes() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmDir(dir.path().to_owned());
        assert_eq!(virtual_size(&vm.disk()).unwrap(), None);
        ensure_overlay(&vm, &plan("/nowhere/base.raw", 1 << 20)).await.unwrap();
        grow(&vm, 1 << 20).await.unwrap();
        assert_eq!(virtual_size(&vm.disk()).unwrap(), Some(64 << 20));
        grow(&vm, 128 << 20).await.unwrap();
        assert_eq!(info(&vm.disk()).await.unwrap().virtual_size, 128 << 20);
        let overlay = temporary_overlay(&vm, 1 << 20).await.unwrap();
        assert_eq!(virtual_size(&overlay.0).unwrap(), Some(128 << 20));
        drop(overlay);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_failure_carries_the_last_line_and_leaves_no_disk() {
        let vm = VmDir("/nowhere/vm".into());
        let error =
            ensure_overlay(&vm, &plan("/nowhere/base.raw", 0)).await.unwrap_err().to_string();
        assert!(error.contains("No such file or directory"), "{error}");
        assert!(!error.contains("qemu-img: "), "{error}");
    }

    #[tokio::test]
    async fn a_name_is_not_taken_for_the_number_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        let create = ["create", "-q", "-f", "qcow2"].map(OsString::from);
        run("x", &[&create[..], &[disk.clone().into(), "1M".into()]].concat()).await.unwrap();
        // The first one has the number 1.
        for tag in ["2", "1"] {
            take_snapshot(&disk, tag).await.unwrap();
            let args = ["resize", "-q", &without_backing(&disk), "+1M"].map(OsString::from);
            run("x", &args).await.unwrap();
        }
        restore_snapshot(&disk, "1").await.unwrap();
        assert_eq!(virtual_size(&disk).unwrap(), Some(2 << 20));
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let error = refusal("x", "qemu-img: a.qcow2: Could not write: No space left on device\n");
        assert!(matches!(error, BackendError::NoSpace { .. }), "{error}");
        assert!(refusal("x", "").to_string().contains("gave no reason"));
    }

    #[tokio::test]
    async fn a_base_that_names_another_file_for_its_data_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, external) = (dir.path().join("plain"), dir.path().join("external"));
        let data = format!("data_file={}", dir.path().join("data").display());
        let create = ["create", "-q", "-f", "qcow2"].map(OsString::from);
        let size = OsString::from("1M");
        run("x", &[&create[..], &[plain.clone().into(), size.clone()]].concat()).await.unwrap();
        let option = ["-o".into(), data.into(), external.clone().into(), size];
        run("x", &[&create[..], &option].concat()).await.unwrap();
        let check = |path: &Path| check_base("x", &[layer(path, DiskFormat::Qcow2)]);
        check(&plain).unwrap();
        let error = check(&external).unwrap_err();
        assert!(error.to_string().contains("another data file"), "{error}");
        assert!(check(&dir.path().join("data")).is_err());
    }

    #[test]
    fn a_short_or_foreign_header_is_none() {
        assert_eq!(names_external_data(b"QFI\xfb"), None);
        assert_eq!(names_external_data(&[0; 80]), None);
    }
}
