//! `aq info`: a VM's facts.

use super::Failure;
use super::files::{Tree, fact};
use super::ls::json;
use super::text::line;
use crate::cli::machines::Info;

pub(super) fn run(tree: &Tree, args: &Info) -> Result<(), Failure> {
    let vm = tree.vm(&args.vm)?;
    let facts = vm.facts()?;
    if args.json {
        return line(serde_json::to_string_pretty(&json(&facts)).unwrap_or_default());
    }
    match &args.key {
        Some(key) if facts.iter().any(|(k, _)| k == key) => line(fact(&facts, key)),
        Some(key) => {
            let known = facts.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>().join(" ");
            let sentence = format!("has no {key} now; there are {known}");
            Err(Failure::Refused { what: vm.name, sentence, errno: 0 })
        }
        None => facts.iter().try_for_each(|(key, value)| line(format!("{key:<14} {value}"))),
    }
}
