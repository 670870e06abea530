//! The node tables as text about them: for `mountpoint-docs/README.md` and the manual page.

use std::fmt::Write;

use super::node::Node;
use super::table::{CONFIG, IMAGE, JOB, JOBS, REMOVED, ROOT, SNAPSHOT, VM};
use super::verbs::{IMAGE_VERBS, VM_VERBS, Verb};

/// A file, as the documentation shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its path in the mount, with `VM`, `NAME` and `TAG` for what users name.
    pub path: String,
    /// Its permissions.
    pub mode: u16,
    /// `value`, `setting`, `control`, `stream`, `link` or `directory`.
    pub kind: &'static str,
    /// One line.
    pub doc: &'static str,
}

/// A verb of a control file, as the documentation shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The verb and its arguments.
    pub usage: String,
    /// One line.
    pub doc: &'static str,
}

/// Lists the files of the mount.
pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    add(&mut rows, "", ROOT);
    add(&mut rows, "VM/", VM);
    add(&mut rows, "VM/config/", &CONFIG);
    add(&mut rows, "VM/jobs/", JOBS);
    add(&mut rows, "VM/jobs/NAME/", JOB);
    add(&mut rows, "VM/snapshots/TAG/", SNAPSHOT);
    add(&mut rows, ".images/NAME/", IMAGE);
    add(&mut rows, ".trash/VM@TIME/", REMOVED);
    rows
}

fn add<T>(rows: &mut Vec<Row>, dir: &str, nodes: &'static [Node<T>]) {
    rows.extend(nodes.iter().map(|node| Row {
        path: format!("{dir}{}", node.name),
        mode: node.mode,
        kind: node.body.kind().name(),
        doc: node.doc,
    }));
}

/// Lists the verbs of a VM's `ctl`.
pub fn vm_verbs() -> Vec<Order> {
    orders(VM_VERBS)
}

/// Lists the verbs of an image's `ctl`.
pub fn image_verbs() -> Vec<Order> {
    orders(IMAGE_VERBS)
}

fn orders<C>(verbs: &'static [Verb<C>]) -> Vec<Order> {
    let order = |v: &'static Verb<C>| {
        let usage = format!("{} {}", v.name, v.usage).trim_end().to_owned();
        Order { usage, doc: v.doc }
    };
    verbs.iter().map(order).collect()
}

/// Returns the rows as a table in Markdown.
pub fn markdown() -> String {
    let mut text = "| file | mode | kind | |\n|---|---|---|---|\n".to_owned();
    for Row { path, mode, kind, doc } in rows() {
        let doc = doc.replace('|', "\\|");
        // Writing to a string cannot fail.
        let _infallible = writeln!(text, "| `{path}` | {mode:04o} | {kind} | {doc} |");
    }
    text
}
