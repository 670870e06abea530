//! Looks at a store from outside: disks by `qemu-img`, files by their names, processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aqfs::store::layout::{Layout, VmDir};
use aqfs::store::operation;

use super::{BOOT, Mounted, eventually};

/// Whether leaked clusters are an error, which `qemu-img check` ends with 3 for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaks {
    /// The next start repairs them.
    Tolerated,
    /// They should have been repaired.
    Found,
}

/// Checks every disk and every image.
pub(crate) fn disks(aq: &Mounted, leaks: Leaks, found: &mut Vec<String>) {
    let vms = names(&aq.store().vms()).into_iter().flat_map(|vm| {
        let dir = VmDir(aq.store().vms().join(vm));
        let data = fs::read_dir(dir.data_disks()).into_iter().flatten().flatten();
        let data = data.map(|entry| entry.path());
        [dir.disk(), dir.nvram()].into_iter().chain(data)
    });
    let images =
        names(&aq.store().images()).into_iter().map(|i| aq.store().image(&i).join("disk.qcow2"));
    for disk in vms.chain(images).filter(|disk| disk.exists()) {
        let said = Command::new("qemu-img").arg("check").arg(&disk).output().expect("qemu-img");
        match said.status.code() {
            Some(0) => {}
            Some(2 | 3) if leaks == Leaks::Tolerated && is_harmless(&said.stderr) => {}
            code => {
                let text = String::from_utf8_lossy(&said.stderr).into_owned();
                found.push(format!("{}: check ends with {code:?}: {text}", disk.display()));
            }
        }
    }
}

/// The UEFI variables have the snapshots that the disk has, of VMs that had them from the start.
pub(crate) fn variables(aq: &Mounted, found: &mut Vec<String>) {
    let tags = |path: &Path| {
        let list = aqfs::disk::snapshot_table::list(path).expect("a table of snapshots");
        list.into_iter().map(|snapshot| snapshot.tag).collect::<Vec<_>>()
    };
    for vm in names(&aq.store().vms()) {
        let dir = VmDir(aq.store().vms().join(vm));
        if dir.nvram().exists() && dir.disk().exists() && tags(&dir.disk()) != tags(&dir.nvram()) {
            let (disk, nvram) = (tags(&dir.disk()), tags(&dir.nvram()));
            found.push(format!("snapshots of the disk {disk:?}, of the variables {nvram:?}"));
        }
    }
}

/// Says whether `qemu-img check` found only leaked clusters and COPIED flags that differ from the
/// reference counts. QEMU writes both in two steps, each safe; a kill between them leaves this, and a
/// repair mends it.
fn is_harmless(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(said);
    let mut faults = said.lines().filter(|l| l.starts_with("ERROR"));
    faults.all(|l| l.contains("OFLAG_COPIED"))
}

/// No unfinished image is listed or left, and the counts of users agree with the disks.
pub(crate) fn images(aq: &Mounted, found: &mut Vec<String>) {
    for image in aq.sh("ls .images").ok().lines() {
        let status = aq.read(&format!(".images/{image}/status"));
        let whole = current(aq.store(), image).join("image.json").exists();
        let agrees = match status.split(':').next() {
            Some("ready") => whole,
            Some("absent" | "failed") => !whole,
            _ => false,
        };
        if !agrees {
            found.push(format!("image {image} is {status}, its manifest there: {whole}"));
        }
        let refs = aq.read(&format!(".images/{image}/refs"));
        let users = users(aq, image);
        if status == "ready" && refs != users.to_string() {
            found.push(format!("image {image} has refs {refs}, and {users} disks or settings"));
        }
    }
    let hidden = names(&aq.store().images()).into_iter().filter(|n| n.starts_with('.'));
    found.extend(hidden.map(|name| format!("images/{name} is left")));
    for image in names(&aq.store().images()) {
        let templates = aq.store().templates(&image);
        let there = if templates.exists() { names(&templates) } else { Vec::new() };
        let half = there.into_iter().filter(|name| !is_whole(&templates.join(name)));
        found.extend(half.map(|name| format!("images/{image}/warm/{name} is left")));
    }
}

/// The directory of the version of an image that new VMs are made from.
fn current(store: &Layout, image: &str) -> PathBuf {
    match fs::read_to_string(store.current_version(image)).unwrap_or_default().trim_end() {
        "" => store.image(image),
        id => store.image_versions(image).join(id),
    }
}

/// A template, or what is kept of one for its clones' disks.
fn is_whole(template: &Path) -> bool {
    let has = |name: &str| template.join(name).exists();
    has("disk.qcow2") && has("template.json") == has("ram") && has("ram") == has("state")
        || has("template.json") && has("ram") && has("state")
}

/// Counts the VMs whose disk is an overlay on an image or, while they have none, will be.
fn users(aq: &Mounted, image: &str) -> usize {
    let uses = |vm: &String| {
        let dir = VmDir(aq.store().vms().join(vm));
        let base = aq.store().image(image);
        match backing(&dir.disk()) {
            Some(backing) => Path::new(&backing).starts_with(base),
            None => fs::read_to_string(dir.definition())
                .expect("a definition")
                .contains(&format!("\"image\": \"{image}\"")),
        }
    };
    names(&aq.store().vms()).iter().filter(|vm| uses(vm)).count()
}

fn backing(disk: &Path) -> Option<String> {
    let said = Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(disk).output();
    let text = String::from_utf8(said.expect("qemu-img").stdout).expect("JSON");
    let (_, rest) = text.split_once("\"backing-filename\": \"")?;
    rest.split('"').next().map(str::to_owned)
}

/// Nothing runs: all VMs are off. A `qemu-img` may outlive its daemon, to end what it has begun.
pub(crate) fn processes(aq: &Mounted, found: &mut Vec<String>) {
    eventually("the end of qemu-img", BOOT, || aq.qemu_imgs().is_empty());
    eventually("the end of switches", BOOT, || aq.switches().is_empty());
    let left = [("QEMU", aq.qemus()), ("qemu-img", aq.qemu_imgs())];
    found.extend(
        left.into_iter()
            .filter(|(_, pids)| !pids.is_empty())
            .map(|(what, pids)| format!("{what} still runs: {pids:?}")),
    );
}

/// Every file in the store has a name that the layout knows.
pub(crate) fn files(aq: &Mounted, found: &mut Vec<String>) {
    let store = aq.store();
    unknown(store.root(), Layout::NAMES, found);
    unknown(&store.trash(), &[], found);
    for vm in names(&store.vms()) {
        unknown(&store.vms().join(vm), VmDir::NAMES, found);
    }
    for image in names(&store.images()) {
        unknown(
            &store.image(&image),
            &[
                "image.json",
                "disk.raw",
                "disk.qcow2",
                "vmlinux",
                "vmlinuz",
                "initrd",
                "nvram.qcow2",
                "source",
                "warm",
                "versions",
                "current",
            ],
            found,
        );
    }
}

fn unknown(dir: &Path, owned: &[&str], found: &mut Vec<String>) {
    let unknown = names(dir).into_iter().filter(|name| !owned.contains(&name.as_str()));
    found.extend(
        unknown.map(|name| format!("unknown file {}/{name}{}", dir.display(), unfinished(dir))),
    );
}

/// Says which operations have not ended, if the directory is a VM's.
fn unfinished(dir: &Path) -> String {
    match operation::list(&VmDir(dir.to_owned())) {
        Ok(operations) if operations.is_empty() => String::new(),
        operations => format!(": {operations:?}"),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory of the store").flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}
