//! The program `qemu-img`: overlays, snapshots, copies.
//!
//! It never runs on the disk of a running machine but to copy a snapshot out of it. Formats and
//! backing files are always stated, so that no file is opened which a header names.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{DiskError, DiskFormat, ForeignFormat, Layer, snapshot_table};
use crate::{programs, sys};

/// The program.
const PROGRAM: &str = programs::QEMU_IMG.name;
/// How long one run may take, copies apart: it takes about 10 ms; a slow disk that is busy with
/// something else must not fail it.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Makes an overlay of `size` bytes on a base. `what` is said of it if that fails.
///
/// # Errors
/// `Missing` without `qemu-img`, `NoSpace`, or its own last line.
pub(super) async fn create_overlay(
    what: &str,
    overlay: &Path,
    base: (&Path, DiskFormat),
    size: u64,
) -> Result<(), DiskError> {
    // `-u`: the base is not opened, and so nothing that its header names.
    let mut args = words(["create", "-q", "-u", "-f", "qcow2", "-F", base.1.word(), "-b"]);
    args.extend([base.0.into(), overlay.into(), size.to_string().into()]);
    run(what, &args).await
}

/// Makes an empty qcow2 image of `size` bytes.
pub async fn create(disk: &Path, size: u64) -> Result<(), DiskError> {
    let mut args = words(["create", "-q", "-f", "qcow2"]);
    args.extend([disk.into(), size.to_string().into()]);
    run("make the disk", &args).await
}

/// Gives a disk another size.
pub async fn resize(disk: &Path, size: u64) -> Result<(), DiskError> {
    let args = words(["resize", "-q", &without_backing(disk), &size.to_string()]);
    run("make the disk larger", &args).await
}

/// Takes a snapshot in a disk that no QEMU uses.
pub async fn take_snapshot(disk: &Path, tag: &str) -> Result<(), DiskError> {
    snapshot(disk, "take the snapshot", "-c", tag).await
}

/// Brings a disk that no QEMU uses back to a snapshot.
pub async fn restore_snapshot(disk: &Path, tag: &str) -> Result<(), DiskError> {
    let known = snapshot_table::list(disk).map_err(|e| DiskError::io("the snapshots", e))?;
    // A name that is also some snapshot's number would be taken for that number.
    let id = known.iter().find(|s| s.tag == tag).map_or(tag, |s| &s.id);
    snapshot(disk, "restore the snapshot", "-a", id).await
}

/// Drops a snapshot in a disk that no QEMU uses.
pub async fn drop_snapshot(disk: &Path, tag: &str) -> Result<(), DiskError> {
    snapshot(disk, "drop the snapshot", "-d", tag).await
}

async fn snapshot(disk: &Path, what: &str, flag: &str, tag: &str) -> Result<(), DiskError> {
    run(what, &words(["snapshot", "-q", flag, tag, &without_backing(disk)])).await
}

/// Frees the clusters that count as used in a disk and are not.
///
/// # Errors
/// Its own last line, also if there is more to repair than that.
pub async fn repair_leaks(disk: &Path) -> Result<(), DiskError> {
    run("repair the disk", &words(["check", "-q", "-r", "leaks", &without_backing(disk)])).await
}

/// Names a qcow2 image such that its backing file is not opened.
fn without_backing(path: &Path) -> String {
    // What becomes free goes back to the host.
    let file = json!({"driver": "file", "filename": path.to_string_lossy(), "discard": "unmap"});
    let node = json!({"driver": "qcow2", "backing": null, "discard": "unmap", "file": file});
    format!("json:{node}")
}

fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.map(OsString::from).into()
}

async fn run(what: &str, args: &[OsString]) -> Result<(), DiskError> {
    let mut command = tokio::process::Command::from(command());
    command.args(args).kill_on_drop(true);
    let late = || failed(what, &format!("no answer within {} s", TIMEOUT.as_secs()));
    let output = timeout(TIMEOUT, command.output()).await.map_err(|_| late())?;
    checked(what, &output.map_err(|e| not_started(what, e))?)
}

fn checked(what: &str, output: &Output) -> Result<(), DiskError> {
    match output.status.success() {
        true => Ok(()),
        false => Err(refusal(what, &output.stderr)),
    }
}

/// A copy of a disk in a new file.
#[derive(Clone, Copy, Debug)]
pub struct Conversion<'a> {
    /// The disk, top first. A QEMU may write to it if it is copied as it is at a snapshot: what
    /// that holds does not change, and is found when the file is opened.
    pub layers: &'a [Layer],
    /// The snapshot that is copied.
    pub snapshot: Option<&'a str>,
    /// The new file.
    pub to: &'a Layer,
    /// What the copy is made an overlay on: only what the first layer has is copied, as `qemu-img` takes this
    /// for all that is below that. Without one the copy needs no other file.
    pub base: Option<&'a Layer>,
}

impl Conversion<'_> {
    /// Carries it out, and blocks for as long as that takes. `progress` gets how many percent are
    /// copied.
    ///
    /// # Errors
    /// As [`create_overlay`]. The new file may be there in part.
    pub fn run(&self, progress: impl FnMut(&str)) -> Result<(), DiskError> {
        let mut args = self.arguments()?;
        args.push(self.to.path.clone().into());
        convert(&args, progress)
    }

    /// Writes what the first layer alone has over a disk that is there, with that of the layers between the
    /// first and `base`: it is then as if those two had been one. It is at least as large.
    ///
    /// # Errors
    /// As [`Self::run`]; what is there is of no use then.
    pub fn run_over(&self, progress: impl FnMut(&str)) -> Result<(), DiskError> {
        let mut args = self.arguments()?;
        let layers: Vec<_> = [self.to].into_iter().chain(self.base).cloned().collect();
        args.extend(["-n".into(), format!("json:{}", node(&layers)?).into()]);
        convert(&args, progress)
    }

    fn arguments(&self) -> Result<Vec<OsString>, DiskError> {
        let mut args = words(["convert", "-p", "-O", self.to.format.word()]);
        if let Some(tag) = self.snapshot {
            args.extend(words(["-U", "-l", &format!("snapshot.name={tag}")]));
        }
        if let Some(base) = self.base {
            args.extend(words(["-F", base.format.word(), "-B"]));
            args.push(base.path.clone().into());
        }
        let node = node(self.layers)?;
        args.push(format!("json:{node}").into());
        Ok(args)
    }
}

/// Converts a disk that stands alone in one file of another format into a new qcow2 image; blocks and reports
/// as [`Conversion::run`].
///
/// # Errors
/// As there.
pub fn import(
    (from, format): (&Path, ForeignFormat),
    to: &Path,
    progress: impl FnMut(&str),
) -> Result<(), DiskError> {
    let file = json!({"driver": "file", "filename": utf8(from)?, "read-only": true});
    let mut node = json!({"driver": format.word(), "file": file});
    if format == ForeignFormat::Vmdk {
        node["backing"] = Value::Null;
    }
    let mut args = words(["convert", "-p", "-O", DiskFormat::Qcow2.word()]);
    args.extend([format!("json:{node}").into(), to.into()]);
    convert(&args, progress)
}

/// Writes a disk to a new file in the format that `qemu-img` calls `word`; blocks and reports as
/// [`Conversion::run`].
///
/// # Errors
/// As there.
pub fn export(
    from: &Layer,
    (to, word): (&Path, &str),
    progress: impl FnMut(&str),
) -> Result<(), DiskError> {
    let node = node(std::slice::from_ref(from))?;
    let mut args = words(["convert", "-p", "-O", word]);
    args.extend([format!("json:{node}").into(), to.into()]);
    convert(&args, progress)
}

fn convert(args: &[OsString], mut progress: impl FnMut(&str)) -> Result<(), DiskError> {
    let what = "copy the disk";
    let mut command = command();
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = sys::dying_with_us(&mut command).spawn();
    let mut child = child.map_err(|e| not_started(what, e))?;
    if let Some(mut out) = child.stdout.take() {
        follow(&mut out, &mut progress);
    }
    checked(what, &child.wait_with_output().map_err(|e| DiskError::io(PROGRAM, e))?)
}

fn utf8(path: &Path) -> Result<&str, DiskError> {
    path.to_str().ok_or_else(|| {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8");
        DiskError::io(path.display().to_string(), error)
    })
}

/// Spells a disk out with all its layers, so that nothing is taken from its headers; null without
/// layers.
fn node(layers: &[Layer]) -> Result<Value, DiskError> {
    let Some((Layer { path, format }, below)) = layers.split_first() else {
        return Ok(Value::Null);
    };
    let filename = utf8(path)?;
    let mut node = json!({"driver": format, "file": {"driver": "file", "filename": filename}});
    if *format == DiskFormat::Qcow2 {
        node["backing"] = self::node(below)?;
    }
    Ok(node)
}

/// Reports `    (42.10/100%)` as it comes, a carriage return after each.
fn follow(out: &mut impl Read, progress: &mut impl FnMut(&str)) {
    let mut buffer = [0; 256];
    // A read that fails ends the reports; what went wrong is in the program's last words.
    while let Ok(n @ 1..) = out.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..n]);
        if let Some(percent) = text.rsplit('\r').find_map(percent) {
            progress(percent);
        }
    }
}

fn percent(text: &str) -> Option<&str> {
    let number = text.trim().strip_prefix('(')?.split_once("/100%)")?.0;
    number.split('.').next()
}

/// Prepares a call. The locale is fixed: what it says of a full disk is recognised.
fn command() -> std::process::Command {
    let mut command = std::process::Command::new(PROGRAM);
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    command
}

fn not_started(what: &str, error: io::Error) -> DiskError {
    if programs::is_absent(&error) {
        return DiskError::Missing { remedy: programs::remedy(&[&programs::QEMU_IMG]) };
    }
    DiskError::io(format!("{PROGRAM}: {what}"), error)
}

fn refusal(what: &str, stderr: &[u8]) -> DiskError {
    let line = programs::last_line(stderr).unwrap_or_else(|| "it gave no reason".to_owned());
    let without_name = line.strip_prefix(PROGRAM).and_then(|l| l.strip_prefix(": "));
    let said = without_name.unwrap_or(&line).to_owned();
    if said.contains("No space left on device") || said.contains("Disk quota exceeded") {
        return DiskError::NoSpace { said };
    }
    failed(what, &said)
}

fn failed(what: &str, said: &str) -> DiskError {
    DiskError::QemuImg { what: what.to_owned(), said: said.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::qcow2;
    use crate::disk::testing::qemu_img;

    #[tokio::test]
    async fn a_name_is_not_taken_for_the_number_of_another() {
        let dir = tempfile::tempdir().unwrap();
        qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "disk", "1M"]);
        let disk = dir.path().join("disk");
        // The first one has the number 1.
        for tag in ["2", "1"] {
            take_snapshot(&disk, tag).await.unwrap();
            let size = qcow2::virtual_size(&disk).unwrap().unwrap();
            resize(&disk, size + (1 << 20)).await.unwrap();
        }
        restore_snapshot(&disk, "1").await.unwrap();
        assert_eq!(qcow2::virtual_size(&disk).unwrap(), Some(2 << 20));
    }

    #[tokio::test]
    async fn a_failure_carries_the_last_line() {
        let overlay = Path::new("/nowhere/disk");
        let base = (Path::new("/nowhere/base"), DiskFormat::Raw);
        let error = create_overlay("create the disk", overlay, base, 0).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("qemu-img could not create the disk: "), "{text}");
        assert!(text.contains("No such file or directory"), "{text}");
        assert_eq!(text.matches("qemu-img").count(), 1, "{text}");
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let error = refusal("x", b"qemu-img: a.qcow2: Could not write: No space left on device\n");
        assert!(matches!(error, DiskError::NoSpace { .. }), "{error}");
        assert!(refusal("x", b"").to_string().contains("gave no reason"));
    }

    #[test]
    fn progress_is_read_from_what_qemu_img_prints() {
        assert_eq!(percent("    (42.10/100%)"), Some("42"));
        assert_eq!(percent("qemu-img: no"), None);
    }

    #[test]
    fn two_layers_become_one() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str, format| Layer { path: dir.path().join(name), format };
        let fill = |name: &str, format: &str, byte, at| {
            let write = format!("write -P {byte} {at} 64k");
            let args = ["-f", format, "-c", &write, name];
            let wrote = std::process::Command::new("qemu-io").args(args).current_dir(&dir).output();
            assert!(wrote.unwrap().status.success());
        };
        let create = |name: &str, below: &Path, format, size| {
            let below = below.display().to_string();
            qemu_img(
                dir.path(),
                &["create", "-q", "-f", "qcow2", "-b", &below, "-F", format, name, size],
            );
        };
        let base = layer("base", DiskFormat::Raw);
        std::fs::write(&base.path, [1; 1 << 20]).unwrap();
        let (middle, top) = (layer("middle", DiskFormat::Qcow2), layer("top", DiskFormat::Qcow2));
        create("middle", &base.path, "raw", "1M");
        fill("middle", "qcow2", 2, "64k");
        fill("middle", "qcow2", 2, "128k");
        create("top", &middle.path, "qcow2", "1088k");
        fill("top", "qcow2", 3, "128k");
        fill("top", "qcow2", 3, "1M");
        qemu_img(dir.path(), &["snapshot", "-c", "then", "top"]);
        fill("top", "qcow2", 4, "0");
        let one = layer("one", DiskFormat::Qcow2);
        std::fs::copy(&middle.path, &one.path).unwrap();
        qemu_img(dir.path(), &["resize", "-q", "one", "1088k"]);
        let layers = [top, middle, base.clone()];
        let copy =
            Conversion { layers: &layers, snapshot: Some("then"), to: &one, base: Some(&base) };
        copy.run_over(|_| ()).unwrap();
        let raw = layer("raw", DiskFormat::Raw);
        let look = [one, base];
        Conversion { layers: &look, snapshot: None, to: &raw, base: None }.run(|_| ()).unwrap();
        let bytes = std::fs::read(&raw.path).unwrap();
        let at = |kib: usize| bytes[kib << 10];
        assert_eq!([at(0), at(64), at(128), at(192), at(1024)], [1, 2, 3, 1, 3]);
    }

    #[test]
    fn a_copy_of_a_disk_has_what_all_its_layers_have() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str, format| Layer { path: dir.path().join(name), format };
        let (base, top) = (layer("base", DiskFormat::Raw), layer("top", DiskFormat::Qcow2));
        std::fs::write(&base.path, [7; 1 << 20]).unwrap();
        qemu_img(
            dir.path(),
            &["create", "-q", "-u", "-f", "qcow2", "-b", "x", "-F", "raw", "top", "1M"],
        );
        let to = layer("copy", DiskFormat::Raw);
        let layers = [top, base];
        let mut reports = 0;
        let copy = Conversion { layers: &layers, snapshot: None, to: &to, base: None };
        copy.run(|_| reports += 1).unwrap();
        assert!(reports > 0);
        assert!(std::fs::read(&to.path).unwrap() == [7; 1 << 20]);
    }
}
