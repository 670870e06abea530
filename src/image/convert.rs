//! `qemu-img convert`: a disk into a new file, with progress. Formats and backing files are always
//! told, never found out by QEMU.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::command::Tool;
use super::source::{BuildError, Progress};
use crate::sys;
use crate::vm::backend::DiskFormat;
use crate::vm::warm::Layer;

const QEMU_IMG: Tool =
    Tool { name: "qemu-img", remedy: "`apt install qemu-utils` or your system's package of it" };

/// A disk to read.
#[derive(Clone, Debug)]
pub(super) struct Input {
    /// Its file.
    pub(super) path: PathBuf,
    /// Its format.
    pub(super) format: DiskFormat,
    /// What it is an overlay on.
    pub(super) backing: Option<Box<Self>>,
}

/// What a copy is made an overlay on: what is there is not copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overlay<'a> {
    /// The disk below.
    pub(super) base: &'a Layer,
}

impl Input {
    /// Takes a disk of several layers, top first; `None` if it has none.
    pub(super) fn of(layers: &[Layer]) -> Option<Self> {
        let (top, below) = layers.split_first()?;
        let backing = Self::of(below).map(Box::new);
        Some(Self { path: top.path.clone(), format: top.format, backing })
    }

    /// Spells the disk out, so that nothing is taken from its header.
    fn node(&self) -> Result<Value, BuildError> {
        let path = self.path.to_str().ok_or_else(|| {
            BuildError::malformed(self.path.display().to_string(), "the path is not UTF-8")
        })?;
        let mut node = json!({"driver": self.format, "file": {"driver": "file", "filename": path}});
        if self.format == DiskFormat::Qcow2 {
            let backing = self.backing.as_ref().map(|b| b.node()).transpose()?;
            node["backing"] = backing.unwrap_or(Value::Null);
        }
        Ok(node)
    }
}

/// Writes `from`, as it is at `snapshot`, to a new file that needs no other but that of `on`. A
/// QEMU may be writing to it: what a snapshot holds does not change, and is found when the file is
/// opened.
pub(super) fn convert(
    from: &Input,
    snapshot: Option<&str>,
    to: (&Path, DiskFormat),
    on: Option<Overlay<'_>>,
    progress: &Progress,
) -> Result<(), BuildError> {
    let mut command = QEMU_IMG.command();
    command.args(["convert", "-p", "-O", word(to.1)]);
    if let Some(tag) = snapshot {
        command.args(["-U", "-l", &format!("snapshot.name={tag}")]);
    }
    if let Some(Overlay { base }) = on {
        command.args(["-F", word(base.format), "-B"]).arg(&base.path);
    }
    command.arg(format!("json:{}", from.node()?)).arg(to.0);
    let mut running = QEMU_IMG.stream(sys::dying_with_us(&mut command))?;
    if let Some(mut out) = running.stdout() {
        follow(&mut out, progress);
    }
    running.finish()
}

fn word(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

/// Reports `    (42.10/100%)` as it comes, a carriage return after each.
fn follow(out: &mut impl Read, progress: &Progress) {
    let mut buffer = [0; 256];
    // A read that fails ends the reports; what went wrong is said by the program's end.
    while let Ok(n @ 1..) = out.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..n]);
        if let Some(percent) = text.rsplit('\r').find_map(percent) {
            progress.building(format!("copying {percent} %"));
        }
    }
}

fn percent(text: &str) -> Option<&str> {
    let number = text.trim().strip_prefix('(')?.split_once("/100%)")?.0;
    number.split('.').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_what_qemu_img_prints() {
        assert_eq!(percent("    (42.10/100%)"), Some("42"));
        assert_eq!(percent("qemu-img: no"), None);
    }
}
