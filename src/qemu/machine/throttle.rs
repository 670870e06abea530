//! How much a machine's disks may transfer: QEMU's own throttling, with all disks in one group.
//!
//! What the guest asks of its disks is throttled, and nothing else: QEMU saves and loads memory at full speed, and a
//! request that waits ends at once when the processors are stopped.

use serde_json::{Value, json};

use super::RunningQemu;
use crate::qemu::qmp::Qmp;
use crate::vm::backend::{BackendError, Result};
use crate::vm::spec::IoLimit;

/// The group that all disks are in: they share what it allows.
const GROUP: &str = "disks";
/// Where QEMU has the devices that were asked for: not the flash memory, which is part of the machine.
const DEVICES: &str = "/machine/peripheral";

impl RunningQemu {
    pub(super) async fn throttle_disks(&self, limit: Option<IoLimit>) -> Result<()> {
        match set(&self.parts.qmp, limit).await {
            Err(BackendError::QemuDied { .. }) => Err(self.death().await),
            done => done,
        }
    }
}

/// Limits all disks that the machine has at this moment. Whoever plugs another one in calls this again.
pub async fn set(qmp: &Qmp, limit: Option<IoLimit>) -> Result<()> {
    let all = qmp.execute("query-block", json!({})).await?;
    for disk in all.as_array().into_iter().flatten().filter_map(Disk::of) {
        if !disk.has(limit) {
            qmp.execute("block_set_io_throttle", arguments(disk.id, limit)).await?;
        }
    }
    Ok(())
}

/// A disk of the machine, as `query-block` has it.
struct Disk<'a> {
    id: &'a str,
    inserted: &'a Value,
}

impl<'a> Disk<'a> {
    /// A drive whose disc can be changed is none: it loses its limit with the disc.
    fn of(block: &'a Value) -> Option<Self> {
        let id = block["qdev"].as_str().filter(|id| id.starts_with(DEVICES))?;
        let is_disk = block["removable"] == false && block["inserted"].is_object();
        is_disk.then(|| Self { id, inserted: &block["inserted"] })
    }

    fn has(&self, limit: Option<IoLimit>) -> bool {
        let number = |key: &str| self.inserted[key].as_u64().unwrap_or_default();
        let now = (number("bps"), number("iops"));
        now == limit.map_or((0, 0), |limit| (limit.bytes, limit.operations))
    }
}

/// All zero takes the disk out of the group.
fn arguments(id: &str, limit: Option<IoLimit>) -> Value {
    let mut arguments = json!({"id": id, "bps_rd": 0, "bps_wr": 0, "iops_rd": 0, "iops_wr": 0, "bps": 0, "iops": 0});
    if let Some(IoLimit { bytes, operations }) = limit {
        arguments["bps"] = json!(bytes);
        arguments["iops"] = json!(operations);
        arguments["group"] = json!(GROUP);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_limited_and_neither_drives_nor_flash_memory() {
        let inserted = json!({"bps": 5, "iops": 0});
        let block = |qdev: &str, removable: bool, inserted: &Value| json!({"qdev": qdev, "removable": removable, "inserted": inserted});
        let table = [
            (block("/machine/peripheral/disk0/virtio-backend", false, &inserted), true),
            (block("/machine/peripheral-anon/device[3]", false, &inserted), true),
            (block("/machine/system.flash0", false, &inserted), false),
            (block("/machine/peripheral/cdrom0", true, &inserted), false),
            (block("/machine/peripheral/cdrom0", true, &Value::Null), false),
            (json!({"device": "x", "removable": false, "inserted": inserted}), false),
        ];
        for (block, expected) in table {
            assert_eq!(Disk::of(&block).is_some(), expected, "{block}");
        }
        let disk = Disk { id: "x", inserted: &inserted };
        assert!(disk.has(Some(IoLimit { bytes: 5, operations: 0 })) && !disk.has(None));
    }
}
