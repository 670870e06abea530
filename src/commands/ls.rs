//! `aq ls`: the VMs, for people and for scripts.

use console::style;
use serde_json::{Map, Value};

use super::Failure;
use super::files::{KeyValues, Tree, Vm, fact};
use super::text::{line, size};
use crate::cli::machines::Ls;

pub(super) fn run(tree: &Tree, args: &Ls) -> Result<(), Failure> {
    let vms = if args.vms.is_empty() {
        tree.vms()?
    } else {
        args.vms.iter().map(|name| tree.vm(name)).collect::<Result<_, _>>()?
    };
    // One that is removed at this moment is not listed.
    let listed: Vec<KeyValues> = vms.iter().filter_map(|vm| vm.facts().ok()).collect();
    if args.json {
        let all: Vec<Value> = listed.iter().map(json).collect();
        return line(serde_json::to_string_pretty(&all).unwrap_or_default());
    }
    if args.long {
        line(HEAD)?;
        return vms.iter().zip(&listed).try_for_each(|(vm, facts)| line(long(vm, facts)));
    }
    listed.iter().try_for_each(|facts| line(short(facts)))
}

/// Name, `On` or `Off`, and the port that leads to its SSH server: the form that scripts know.
fn short(facts: &KeyValues) -> String {
    let status = fact(facts, "status");
    let on = !matches!(status, "stopped" | "failed" | "broken");
    let word = format!("{:<4}", if on { "On" } else { "Off" });
    let word = if on { style(word).green() } else { style(word).dim() };
    let port = fact(facts, "ssh_port");
    let port = if port.is_empty() { String::new() } else { format!(":{port}") };
    format!("{:<20} {word} {port}", fact(facts, "name"))
}

const HEAD: &str =
    "NAME                             STATUS      IMAGE            CPUS MEMORY DISK   PORTS";

fn long(vm: &Vm, facts: &KeyValues) -> String {
    let disk = size(fact(facts, "disk_bytes").parse().unwrap_or_default());
    let ports = vm.read("config/ports").unwrap_or_default().replace('\n', " ");
    let row = format!(
        "{:<32} {} {:<16} {:<4} {:<6} {:<6} {}",
        fact(facts, "name"),
        coloured(fact(facts, "status")),
        fact(facts, "image"),
        fact(facts, "cpus"),
        fact(facts, "memory"),
        disk,
        ports
    );
    row.trim_end().to_owned()
}

/// A status word in its colour, eleven columns wide.
pub(super) fn coloured(word: &str) -> String {
    let text = style(format!("{word:<11}"));
    let text = match word {
        "ready" => text.green(),
        "failed" | "unreachable" | "broken" => text.red(),
        "stopped" => text.dim(),
        _ => text.yellow(),
    };
    text.to_string()
}

/// All facts, numbers as numbers.
pub(super) fn json(facts: &KeyValues) -> Value {
    let value = |text: &str| match text.parse::<u64>() {
        // What is a number by chance, as a name or a digest may be, is not one.
        Ok(number) if number.to_string() == text => Value::from(number),
        _ => Value::from(text),
    };
    let is_text = |key: &str| matches!(key, "name" | "uuid" | "image" | "memory" | "qemu");
    let pair = |(key, text): &(String, String)| {
        let value = if is_text(key) { Value::from(&**text) } else { value(text) };
        (key.clone(), value)
    };
    Value::Object(facts.iter().map(pair).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(pairs: &[(&str, &str)]) -> KeyValues {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_three_columns_are_where_scripts_find_them() {
        let on = facts(&[("name", "vm1"), ("status", "ready"), ("ssh_port", "40022")]);
        assert_eq!(short(&on), "vm1                  On   :40022");
        let off = facts(&[("name", "vm2"), ("status", "failed")]);
        assert_eq!(short(&off).trim_end(), "vm2                  Off");
    }

    #[test]
    fn numbers_are_numbers_in_json_and_names_are_not() {
        let all =
            facts(&[("name", "123"), ("pid", "812"), ("memory", "1024"), ("accel", "tcg: x")]);
        let expected = r#"{"name":"123","pid":812,"memory":"1024","accel":"tcg: x"}"#;
        let expected: Value = serde_json::from_str(expected).unwrap();
        assert_eq!(json(&all), expected);
    }
}
