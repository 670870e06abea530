//! `aq images`: what VMs can be made from.

use serde_json::{Value, json};

use super::Failure;
use super::files::Tree;
use super::text::{line, size};
use crate::cli::images::Images;

pub(super) fn run(tree: &Tree, args: &Images) -> Result<(), Failure> {
    let names = tree.names(".images")?.into_iter();
    let is_image = |name: &String| std::fs::read_link(tree.path(".images").join(name)).is_err();
    let mut names: Vec<String> = names.filter(is_image).collect();
    if !args.all {
        names.retain(|name| read(tree, name, "status") != "absent");
    }
    if args.json {
        let all: Vec<Value> = names.iter().map(|name| facts(tree, name)).collect();
        return line(serde_json::to_string_pretty(&all).unwrap_or_default());
    }
    line(format!(
        "{:<20} {:<9} {:<6} {:<4} {:<5} SOURCE",
        "NAME", "STATUS", "SIZE", "REFS", "WARM"
    ))?;
    names.iter().try_for_each(|name| line(row(tree, name)))
}

fn read(tree: &Tree, name: &str, file: &str) -> String {
    tree.read_or_nothing(&format!(".images/{name}/{file}"))
}

/// The part of a file's line before its colon.
fn word(tree: &Tree, name: &str, file: &str) -> String {
    read(tree, name, file).split(':').next().unwrap_or_default().to_owned()
}

fn row(tree: &Tree, name: &str) -> String {
    let bytes = read(tree, name, "size").parse().unwrap_or(0);
    let row = format!(
        "{name:<20} {:<9} {:<6} {:<4} {:<5} {}",
        word(tree, name, "status"),
        if bytes == 0 { String::new() } else { size(bytes) },
        read(tree, name, "refs"),
        word(tree, name, "warm"),
        read(tree, name, "source"),
    );
    row.trim_end().to_owned()
}

fn facts(tree: &Tree, name: &str) -> Value {
    let number = |file| read(tree, name, file).parse::<u64>().unwrap_or_default();
    let inputs: Vec<String> = read(tree, name, "inputs").lines().map(str::to_owned).collect();
    json!({
        "name": name,
        "status": read(tree, name, "status"),
        "progress": read(tree, name, "progress"),
        "size": number("size"),
        "refs": number("refs"),
        "warm": read(tree, name, "warm"),
        "kind": read(tree, name, "kind"),
        "source": read(tree, name, "source"),
        "digest": read(tree, name, "digest"),
        "inputs": inputs,
    })
}
