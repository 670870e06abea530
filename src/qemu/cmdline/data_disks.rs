//! Data disks: their names in QEMU, their nodes and devices, and those that a machine has from its start.

use serde_json::{Value, json};

use super::Args;
use super::blocks::{one_queue, utf8};
use crate::store::layout::names;
use crate::vm::backend::{DataDisk, DataFile, DiskPlace, LaunchPlan, Result};
use crate::vm::hardware::Hardware;

const NODE: &str = "data";
const PORT: &str = "-port";

/// Names the node of the disk with this number.
pub fn node_name(number: u32) -> String {
    format!("{NODE}{number}")
}

/// Names the device at this place.
pub fn device_id(place: DiskPlace) -> String {
    format!("{NODE}{}{PORT}{}", place.number, place.port)
}

/// Returns where the device with this name is; `None` if it is another device.
pub fn place_of(device: &str) -> Option<DiskPlace> {
    let (number, port) = device.strip_prefix(NODE)?.split_once(PORT)?;
    Some(DiskPlace { number: number.parse().ok()?, port: port.parse().ok()? })
}

/// Names the file of a disk of the VM's own, from the VM's directory.
fn own_file(number: u32) -> String {
    format!("{}/{number}.qcow2", names::DATA_DISKS)
}

/// Returns the node of a disk. No other file is opened than the one that it names.
pub fn node(disk: &DataDisk) -> Result<Value> {
    let name = node_name(disk.place.number);
    let (driver, protocol, filename, read_only) = match &disk.file {
        DataFile::Own => ("qcow2", "file", own_file(disk.place.number), false),
        DataFile::Source { path, format, read_only, is_device } => {
            let protocol = if *is_device { "host_device" } else { "file" };
            (format.word(), protocol, utf8(path)?.to_owned(), *read_only)
        }
    };
    let mut file = json!({"driver": protocol, "filename": filename, "read-only": read_only});
    let mut node = json!({"driver": driver, "node-name": name, "read-only": read_only});
    if driver == "qcow2" {
        node["backing"] = Value::Null;
    }
    if !read_only {
        (node["discard"], file["discard"]) = (json!("unmap"), json!("unmap"));
    }
    node["file"] = file;
    Ok(node)
}

/// Returns the device of a disk.
pub fn device(disk: &DataDisk, hardware: Hardware) -> Value {
    let mut device = json!({
        "driver": "virtio-blk-pci", "id": device_id(disk.place), "drive": node_name(disk.place.number),
        "bus": format!("spare{}", disk.place.port), "serial": disk.serial,
        "werror": "enospc", "rerror": "report",
    });
    if let Some(queues) = one_queue(hardware) {
        device["num-queues"] = json!(queues);
    }
    device
}

/// The disks that are there from the start.
pub(super) fn data_disks(args: &mut Args, plan: &LaunchPlan) -> Result<()> {
    for disk in &plan.disks {
        args.pair("-blockdev", node(disk)?.to_string());
        args.pair("-device", device(disk, plan.hardware).to_string());
    }
    Ok(())
}
