//! Adding processors to a machine that runs, in the room that it has from its start.
//!
//! Not here: how much room that is (`cmdline`), and the guest's taking them into use (`vm::live`).

use std::sync::atomic::Ordering;

use serde_json::{Map, Value, json};

use super::RunningQemu;
use crate::qemu::qmp::refused;
use crate::vm::backend::Result;

const DEVICE_ADD: &str = "device_add";

impl RunningQemu {
    /// Adds processors one by one until the machine has so many.
    pub(super) async fn plug_processors(&self, count: u32) -> Result<()> {
        let places = self.ask("query-hotpluggable-cpus").await?;
        let places = places.as_array().cloned().unwrap_or_default();
        let (taken, mut free): (Vec<_>, Vec<_>) =
            places.into_iter().partition(|place| place.get("qom-path").is_some());
        free.sort_by_key(order);
        let mut present = u32::try_from(taken.len()).unwrap_or(u32::MAX);
        for place in free {
            if present >= count {
                return Ok(());
            }
            self.ask_with(DEVICE_ADD, arguments(&place, present)).await?;
            present += 1;
            self.parts.processors.store(present, Ordering::Relaxed);
        }
        match present >= count {
            true => Ok(()),
            false => Err(refused(DEVICE_ADD, format!("it has room for {present} processors"))),
        }
    }
}

/// A memory fits only a machine with the same processors, and one that is started with more has the first
/// places taken.
fn order(place: &Value) -> [u64; 4] {
    ["socket-id", "die-id", "core-id", "thread-id"]
        .map(|id| place["props"][id].as_u64().unwrap_or_default())
}

fn arguments(place: &Value, number: u32) -> Value {
    let mut arguments: Map<String, Value> = place["props"].as_object().cloned().unwrap_or_default();
    arguments.insert("driver".to_owned(), place["type"].clone());
    arguments.insert("id".to_owned(), json!(format!("cpu{number}")));
    Value::Object(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_place_is_the_one_that_a_start_with_more_would_take() {
        let place = |core: u32| {
            json!({"type": "max-x86_64-cpu", "vcpus-count": 1,
            "props": {"socket-id": 0, "die-id": 0, "core-id": core, "thread-id": 0}})
        };
        let mut free = [place(7), place(2), place(3)];
        free.sort_by_key(order);
        assert_eq!(
            arguments(&free[0], 2),
            json!({"driver": "max-x86_64-cpu", "id": "cpu2", "socket-id": 0, "die-id": 0,
                "core-id": 2, "thread-id": 0})
        );
    }
}
