//! `aq events`: what happens to VMs, as lines or as JSON, until interrupted.

use std::fs::File;
use std::io::{BufRead, BufReader};

use serde_json::{Value, json};

use super::Failure;
use super::files::Tree;
use super::text::line;
use crate::cli::machines::Events;

pub(super) fn run(tree: &Tree, args: &Events) -> Result<(), Failure> {
    let path = match &args.vm {
        Some(vm) => tree.vm(vm)?.path("events"),
        None => tree.path(".events"),
    };
    let file = tree.explained(".events", File::open(path))?;
    for event in BufReader::new(file).lines() {
        let event = tree.explained(".events", event)?;
        match args.json {
            true => line(object(&event, args.vm.as_deref()).to_string())?,
            false => line(event)?,
        }
    }
    Ok(())
}

/// Makes an object of `TIME VM EVENT WORDS…`; the events of one VM do not name it.
fn object(event: &str, vm: Option<&str>) -> Value {
    let (time, rest) = event.split_once(' ').unwrap_or((event, ""));
    let (vm, rest) = vm.map_or_else(|| rest.split_once(' ').unwrap_or((rest, "")), |vm| (vm, rest));
    let (event, text) = rest.split_once(' ').unwrap_or((rest, ""));
    json!({"time": time.parse::<u64>().ok(), "vm": vm, "event": event, "text": text})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_one_vm_and_of_all_is_the_same_object() {
        let expected = json!({"time": 7, "vm": "a", "event": "status", "text": "failed: x y"});
        assert_eq!(object("7 a status failed: x y", None), expected);
        assert_eq!(object("7 status failed: x y", Some("a")), expected);
    }

    #[test]
    fn an_event_without_words_and_a_gap_are_objects_too() {
        let reset = json!({"time": 7, "vm": "a", "event": "reset", "text": ""});
        assert_eq!(object("7 a reset", None), reset);
        let missed = json!({"time": 7, "vm": "-", "event": "missed", "text": "3"});
        assert_eq!(object("7 - missed 3", None), missed);
    }
}
