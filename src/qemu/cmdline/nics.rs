//! Network devices on nets: their names, their places, and those that a machine has from its start.

use serde_json::json;

use super::Args;
use crate::vm::backend::{LaunchPlan, NicPlace};
use crate::vm::spec::net::Mac;

const DEVICE: &str = "nic";

/// The names of what belongs to one device.
#[derive(Debug)]
pub struct NicIds {
    /// The device itself.
    pub device: String,
    /// The hub that it is a port of.
    pub hub: u32,
    /// Its port, and one that leads nowhere.
    pub port: String,
    /// A port that leads nowhere.
    pub nowhere: String,
    /// The connection to the switch, and its port.
    pub switch: String,
    /// The port of the switch.
    pub uplink: String,
    /// The port of PCI Express that it is plugged into: the last ones first.
    pub bus: String,
}

impl NicIds {
    /// Names what belongs to the device at this place.
    pub fn of(place: NicPlace) -> Self {
        let number = place.0;
        let part = |part: &str| format!("{DEVICE}{number}-{part}");
        Self {
            device: format!("{DEVICE}{number}"),
            hub: u32::from(number) + 1,
            port: part("port"),
            nowhere: part("nowhere"),
            switch: part("switch"),
            uplink: part("uplink"),
            bus: format!("spare{}", place.port()),
        }
    }
}

/// Returns the place of the device with this name; `None` if it is another device.
pub fn place_of(device: &str) -> Option<NicPlace> {
    let number = device.strip_prefix(DEVICE)?.parse().ok()?;
    Some(NicPlace(number))
}

/// The devices that are there from the start, connected to nothing yet.
pub(super) fn nics(args: &mut Args, plan: &LaunchPlan) {
    for place in &plan.nics {
        let ids = NicIds::of(*place);
        for port in [&ids.port, &ids.nowhere] {
            args.pair("-netdev", format!("hubport,id={port},hubid={}", ids.hub));
        }
        let mac = Mac::of_place(plan.uuid, place.0);
        let device = json!({
            "driver": "virtio-net-pci", "id": ids.device, "netdev": ids.port, "bus": ids.bus,
            "mac": mac.to_string(), "romfile": "",
        });
        args.pair("-device", device.to_string());
    }
}
