//! The data disks of a machine that runs: plugged in and out, and made larger.

use std::time::Duration;

use serde_json::json;
use tokio::time::{sleep, timeout};

use super::RunningQemu;
use crate::qemu::cmdline::data_disks::{device, device_id, node, node_name, place_of};
use crate::qemu::data_disks::check_source;
use crate::vm::backend::{BackendError, DataDisk, DataFile, DiskPlace, Result};
use crate::vm::driver::off_thread;

/// How long a guest may take to give a disk back. One that knows PCI Express alone waits for 5 s by itself, in
/// case the button is pressed again.
const UNPLUG_TIMEOUT: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_millis(50);

impl RunningQemu {
    pub(super) async fn list_disks(&self) -> Result<Vec<DiskPlace>> {
        let all = self.ask_with("qom-list", json!({"path": "/machine/peripheral"})).await?;
        let names = all.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str());
        let mut places: Vec<DiskPlace> = names.filter_map(place_of).collect();
        places.sort_unstable();
        Ok(places)
    }

    pub(super) async fn add_disk(&self, disk: &DataDisk) -> Result<()> {
        let source = disk.clone();
        off_thread(move || Ok(check_source(&source)), "the source of a disk").await??;
        // What a guest has given back late is still open.
        self.close_disk(disk.place.number).await.ok();
        self.ask_with("blockdev-add", node(disk)?).await.map_err(|e| in_use(disk, e))?;
        let device = device(disk, self.parts.facts.hardware);
        let added = self.ask_with("device_add", device).await.map_err(|e| in_use(disk, e));
        if added.is_err() {
            self.close_disk(disk.place.number).await.ok();
        }
        added.map(drop)
    }

    async fn close_disk(&self, number: u32) -> Result<()> {
        self.ask_with("blockdev-del", json!({"node-name": node_name(number)})).await.map(drop)
    }

    /// Takes a disk out. A guest that does not know it lets it go at once.
    pub(super) async fn remove_disk(&self, place: DiskPlace) -> Result<()> {
        match self.ask_with("device_del", json!({"id": device_id(place)})).await {
            // It was asked before, and has not given it back yet.
            Err(BackendError::QmpRefused { text, .. }) if text.contains("in the process") => {}
            Err(BackendError::QmpRefused { text, .. }) if text.contains("not found") => {}
            done => drop(done?),
        }
        let gone = async {
            while self.list_disks().await?.contains(&place) {
                sleep(RETRY).await;
            }
            self.close_left_disk(place.number).await
        };
        timeout(UNPLUG_TIMEOUT, gone).await.map_err(|_| kept())?
    }

    /// QEMU frees a device a moment after it is on its list no more.
    async fn close_left_disk(&self, number: u32) -> Result<()> {
        loop {
            match self.close_disk(number).await {
                Err(BackendError::QmpRefused { text, .. }) if text.contains("in use") => {
                    sleep(RETRY).await;
                }
                done => return done,
            }
        }
    }

    pub(super) async fn resize_data_disk(&self, number: u32, bytes: u64) -> Result<()> {
        let arguments = json!({"node-name": node_name(number), "size": bytes});
        self.ask_with("block_resize", arguments).await.map(drop)
    }

    /// Lists the nodes and the numbers of the disks that it has and that are the VM's own.
    pub(super) async fn own_disks(&self) -> Result<Vec<(String, u32)>> {
        let there = self.list_disks().await?.into_iter().map(|place| place.number);
        let is_own = |number: &u32| self.parts.dir.data_disk(*number).exists();
        Ok(there.filter(is_own).map(|number| (node_name(number), number)).collect())
    }
}

fn kept() -> BackendError {
    let fact = "the guest has not given it back; unmount it there, then try again, or stop the VM";
    BackendError::fact("the disk", fact, libc::EBUSY)
}

/// Recognises the lock by which QEMU keeps two writers apart.
fn in_use(disk: &DataDisk, error: BackendError) -> BackendError {
    match (&error, &disk.file) {
        (BackendError::QmpRefused { text, .. }, DataFile::Source { path, .. })
            if text.contains("lock") =>
        {
            let fact =
                "another program has it open, such as another VM's QEMU; `fuser -v` says which";
            BackendError::fact(format!("source: {}", path.display()), fact, libc::EBUSY)
        }
        _ => error,
    }
}
