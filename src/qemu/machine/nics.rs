//! The network devices of a machine that are on nets: plugged in and out while it runs.
//!
//! Each device is a port of a hub of its own. The switch is another port, which comes and goes while the device
//! stays: QEMU connects to a switch once, and does not notice its end. A hub without a second port would keep what
//! the guest sends, and never send again; so a port that leads nowhere is always there.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::time::{sleep, timeout};

use super::RunningQemu;
use crate::qemu::cmdline::nics::{NicIds, place_of};
use crate::qemu::qmp::timed_out;
use crate::qemu::snapshot_shapes;
use crate::vm::backend::{BackendError, NicPlace, Result};
use crate::vm::spec::net::Mac;

/// How long a guest may take to give a device back.
const UNPLUG_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(50);

impl RunningQemu {
    pub(super) async fn list_nics(&self) -> Result<Vec<NicPlace>> {
        let all = self.ask_with("qom-list", json!({"path": "/machine/peripheral"})).await?;
        let names = all.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str());
        let mut places: Vec<NicPlace> = names.filter_map(place_of).collect();
        places.sort_unstable();
        Ok(places)
    }

    pub(super) async fn add_nic(&self, place: NicPlace, mac: Mac) -> Result<()> {
        let ids = NicIds::of(place);
        for port in [&ids.port, &ids.nowhere] {
            // One that is left of a device that was plugged out serves again.
            let port = json!({"type": "hubport", "id": port, "hubid": ids.hub});
            match self.ask_with("netdev_add", port).await {
                Err(BackendError::QmpRefused { text, .. }) if text.contains("uplicate") => {}
                done => drop(done?),
            }
        }
        let device = json!({
            "driver": "virtio-net-pci", "id": ids.device, "netdev": ids.port, "bus": ids.bus,
            "mac": mac.to_string(), "romfile": "",
        });
        self.ask_with("device_add", device).await.map(drop)
    }

    /// Has the machine have the devices that are in the memory of a snapshot. What it has beside does not matter.
    pub(super) async fn plug_nics_of(&self, tag: &str) -> Result<()> {
        let saved = snapshot_shapes::nics_of(&self.parts.dir, tag);
        if saved.is_empty() {
            return Ok(());
        }
        let there = self.list_nics().await?;
        for place in saved.into_iter().filter(|place| !there.contains(place)) {
            self.add_nic(place, Mac::of_place(self.parts.facts.uuid, place.0)).await?;
        }
        Ok(())
    }

    /// Takes a device out. A guest that knows nothing of it lets it go at once.
    pub(super) async fn remove_nic(&self, place: NicPlace) -> Result<()> {
        let ids = NicIds::of(place);
        self.ask_with("device_del", json!({"id": ids.device})).await?;
        let gone = async {
            while self.list_nics().await?.contains(&place) {
                // The event for it is for the machine's own devices, and may be lost.
                sleep(RETRY).await;
            }
            Ok(())
        };
        timeout(UNPLUG_TIMEOUT, gone).await.map_err(|_| timed_out("device_del", UNPLUG_TIMEOUT))?
    }

    pub(super) async fn join_switch(&self, place: NicPlace, sockets: &Path) -> Result<()> {
        self.leave_switch(place).await?;
        let (ids, sockets) = (NicIds::of(place), sockets.display().to_string());
        let vde = json!({"type": "vde", "id": ids.switch, "sock": sockets});
        self.ask_with("netdev_add", vde).await?;
        let uplink =
            json!({"type": "hubport", "id": ids.uplink, "hubid": ids.hub, "netdev": ids.switch});
        self.ask_with("netdev_add", uplink).await.map(drop)
    }

    pub(super) async fn leave_switch(&self, place: NicPlace) -> Result<()> {
        let ids = NicIds::of(place);
        for id in [ids.uplink, ids.switch] {
            match self.ask_with("netdev_del", json!({"id": id})).await {
                // It is not connected.
                Err(BackendError::QmpRefused { text, .. }) if text.contains("not found") => {}
                done => drop(done?),
            }
        }
        Ok(())
    }
}
