//! The block devices on the command line: flash memory, disk, seed and CD-ROM, and the nodes below them.
//!
//! Not here: what is in these files, and who makes them (`launch`, `vm_disk`, `nvram`).

use std::path::Path;

use serde_json::{Value, json};

use super::{Args, CODE_NODE, DISC_NODES, DISK_NODE, DRIVE_ID, NVRAM_NODE};
use crate::store::layout::names;
use crate::vm::backend::{BackendError, DiskFormat, LaunchPlan, Result};
use crate::vm::hardware::Hardware;
use crate::vm::template::Layer;

/// UEFI in flash memory, as `pflash0`, and what it keeps, as `pflash1`.
pub(super) fn flash(args: &mut Args, plan: &LaunchPlan, code: &Layer) -> Result<()> {
    let mut node = base(std::slice::from_ref(code))?;
    node["node-name"] = json!(CODE_NODE);
    args.pair("-blockdev", node.to_string());
    let file = json!({"driver": "file", "filename": names::NVRAM, "read-only": true});
    let kept = json!({"driver": "qcow2", "read-only": true, "file": file, "backing": null});
    let (filename, backing) = match plan.spec.ephemeral {
        false => (names::NVRAM, Value::Null),
        true => (names::TEMPORARY_NVRAM, kept),
    };
    args.pair("-blockdev", written(NVRAM_NODE, filename, &backing).to_string());
    Ok(())
}

/// Every node is spelled out down to the base: QEMU then takes no backing file from an image's own
/// header, which might name any file of the host.
pub(super) fn disk(args: &mut Args, plan: &LaunchPlan) -> Result<()> {
    let base = base(&plan.base)?;
    let node = match plan.spec.ephemeral {
        false => written(DISK_NODE, names::DISK, &base),
        true => {
            let file = json!({"driver": "file", "filename": names::DISK, "read-only": true});
            let mut kept =
                json!({"driver": "qcow2", "node-name": "kept", "read-only": true, "file": file});
            kept["backing"] = base;
            written(DISK_NODE, names::TEMPORARY_DISK, &kept)
        }
    };
    args.pair("-blockdev", node.to_string());
    // A full disk of the host pauses the guest, which resumes when there is room again.
    let policy = "werror=enospc,rerror=report";
    let first = if has_boot_order(plan) { ",bootindex=0" } else { "" };
    let queues = queues(plan);
    args.pair("-device", format!("virtio-blk-pci,drive=disk,id=disk0,{policy}{queues}{first}"));
    Ok(())
}

/// Without a number, QEMU gives a disk as many queues as there are processors at the start.
pub(super) const ONE_QUEUE: &str = ",num-queues=1";

fn queues(plan: &LaunchPlan) -> &'static str {
    if one_queue(plan.hardware).is_some() { ONE_QUEUE } else { "" }
}

/// Returns how many queues a disk has in this hardware; `None`: QEMU decides.
pub(super) fn one_queue(hardware: Hardware) -> Option<u8> {
    (hardware >= Hardware::ONE_QUEUE).then_some(1)
}

/// Says whether a boot loader is looked for, and where first matters: a disk is empty before its installation,
/// and boots after it; UEFI else tries the network too. A kernel of ours has the first place itself.
fn has_boot_order(plan: &LaunchPlan) -> bool {
    let is_direct = plan.spec.kernel.is_some() || plan.image.kernel.is_some();
    !is_direct && (plan.spec.cdrom.is_some() || plan.spec.has_uefi())
}

/// Read-only, and after the disk, from which firmware then boots.
pub(super) fn cidata(args: &mut Args, plan: &LaunchPlan) {
    let file = json!({"driver": "file", "filename": names::CIDATA, "read-only": true});
    let node = json!({"driver": "raw", "node-name": "cidata", "read-only": true, "file": file});
    args.pair("-blockdev", node.to_string());
    let queues = queues(plan);
    args.pair("-device", format!("virtio-blk-pci,drive=cidata,id=cidata0{queues}"));
}

/// The node that takes what the guest writes.
fn written(name: &str, filename: &str, backing: &Value) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": name,
        "discard": "unmap",
        "file": {"driver": "file", "filename": filename, "discard": "unmap"},
        "backing": backing,
    })
}

/// A drive only where a disc is wanted at the start: every guest would spend its boot probing the
/// controller.
pub(super) fn drive(args: &mut Args, plan: &LaunchPlan) -> Result<()> {
    let Some(path) = &plan.spec.cdrom else { return Ok(()) };
    let [node, ..] = DISC_NODES;
    args.pair("-blockdev", disc(path, node)?.to_string());
    args.pair("-device", "ich9-ahci,id=ahci");
    let second = if has_boot_order(plan) { ",bootindex=1" } else { "" };
    args.pair("-device", format!("ide-cd,bus=ahci.0,drive={node},id={DRIVE_ID}{second}"));
    Ok(())
}

/// Returns the node of a disc, as `-blockdev` and QMP's `blockdev-add` take it.
pub fn disc(path: &Path, node: &str) -> Result<Value> {
    let file = json!({"driver": "file", "filename": utf8(path)?, "read-only": true});
    Ok(json!({"driver": "raw", "node-name": node, "read-only": true, "file": file}))
}

pub(super) fn utf8(path: &Path) -> Result<&str> {
    let fact = "QEMU cannot be given a path that is not UTF-8; move the store";
    let odd = || BackendError::fact(format!("the file {}", path.display()), fact, libc::EINVAL);
    path.to_str().ok_or_else(odd)
}

fn base(layers: &[Layer]) -> Result<Value> {
    let Some((layer, below)) = layers.split_first() else { return Ok(Value::Null) };
    let file = json!({"driver": "file", "filename": utf8(&layer.path)?, "read-only": true});
    let name = if below.is_empty() { "base" } else { "warm" };
    let mut node =
        json!({"driver": layer.format, "node-name": name, "read-only": true, "file": file});
    if layer.format == DiskFormat::Qcow2 {
        node["backing"] = base(below)?;
    }
    Ok(node)
}
