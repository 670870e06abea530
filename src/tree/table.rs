//! The tables: the only place with names of files, their modes and their one-line docs.
//!
//! Adding a file is adding a row. Lookup, listing, attributes, open flags, `.docs` and the README's
//! table follow from it.

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use include_dir::{Dir, include_dir};

use super::handle::{Access, OpenRequest};
use super::node::{Body, Node, Subject, Table};
use super::render;
use super::verbs::VM_VERBS;
use crate::registry::Registry;
use crate::vm::Vm;
use crate::vm::backend::{ConsoleAccess, ImageInfo};
use crate::vm::exec::ExecAccess;
use crate::vm::notice::Notice;
use crate::vm::spec::KEYS;

/// The pages of `mountpoint-docs/`, as `.docs/` shows them.
pub static DOCS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/mountpoint-docs");

/// The mount's root. Names that are not here are VMs.
pub static ROOT: &[Node<Arc<Registry>>] = &[
    Node {
        name: ".docs",
        mode: 0o555,
        doc: "the documentation, a page for each file",
        body: Body::Directory(Table::Docs),
    },
    Node {
        name: ".host",
        mode: 0o444,
        doc: "the host: accelerator and why, QEMU, processors, memory, store",
        body: Body::Value(render::host),
    },
    Node {
        name: ".images",
        mode: 0o555,
        doc: "what new VMs are made from",
        body: Body::Directory(Table::Images),
    },
    Node {
        name: ".version",
        mode: 0o444,
        doc: "the program's version and the daemon's pid",
        body: Body::Value(|_| render::version()),
    },
];

/// A VM's directory.
pub static VM: &[Node<Vm>] = &[
    Node {
        name: "config",
        mode: 0o700,
        doc: "settings, a file each",
        body: Body::Directory(Table::Config),
    },
    Node {
        name: "console",
        mode: 0o600,
        doc: "the serial line, live, both directions",
        body: Body::Stream(|vm, open| Ok(vm.open_console(console_access(open))?)),
    },
    Node {
        name: "console.log",
        mode: 0o444,
        doc: "what the serial line has printed (the last 1 MiB)",
        body: Body::Tail(|vm| vm.dir().console_log()),
    },
    Node {
        name: "ctl",
        mode: 0o600,
        doc: "verbs, one a line: start stop kill pause resume reset",
        body: Body::Control(VM_VERBS),
    },
    Node {
        name: "error",
        mode: 0o444,
        doc: "`ok`, or the last failure in one sentence",
        body: Body::Value(|vm| line(vm.failure().as_deref().unwrap_or("ok"))),
    },
    Node {
        name: "exec",
        mode: 0o600,
        doc: "commands in the guest, over SSH: write one, read its output",
        body: Body::Stream(|vm, open| Ok(vm.open_exec((open.caller)(), exec_access(open))?)),
    },
    Node {
        name: "info",
        mode: 0o444,
        doc: "facts, `key value` a line: uuid, pid, image, accel, ssh_port, memory in use …",
        body: Body::Value(render::info),
    },
    Node {
        name: "log",
        mode: 0o444,
        doc: "QEMU's stderr and the daemon's notes (the last 1 MiB)",
        body: Body::Tail(|vm| vm.dir().log()),
    },
    Node {
        name: "ready",
        mode: 0o444,
        doc: "blocks until a command has run in the guest, then says how long that took",
        body: Body::Stream(|vm, _| Ok(Arc::new(Notice::ready(vm)?))),
    },
    Node {
        name: "status",
        mode: 0o444,
        doc: "one word: stopped starting running ready paused saving stopping failed broken",
        body: Body::Value(|vm| line(&vm.state().to_string())),
    },
    Node {
        name: "wait",
        mode: 0o444,
        doc: "blocks while the VM starts, saves or stops, then gives the status",
        body: Body::Stream(|vm, _| Ok(Arc::new(Notice::wait(vm)))),
    },
];

/// A VM's `config/`: a row for each setting there is.
pub static CONFIG: LazyLock<Vec<Node<Vm>>> = LazyLock::new(|| {
    let row =
        |key| Node { name: key_name(key), mode: 0o600, doc: key.doc, body: Body::Setting(key) };
    KEYS.iter().map(row).collect()
});

/// An image's directory.
pub static IMAGE: &[Node<ImageSubject>] = &[
    Node {
        name: "digest",
        mode: 0o444,
        doc: "sha256 over its contents; empty until it is ready",
        body: Body::Value(|i| line(&i.info.digest)),
    },
    Node {
        name: "kind",
        mode: 0o444,
        doc: "what sort of source it has",
        body: Body::Value(|i| line(&i.info.kind)),
    },
    Node {
        name: "progress",
        mode: 0o444,
        doc: "what is being done, in one line",
        body: Body::Value(|i| line(&i.info.progress)),
    },
    Node {
        name: "refs",
        mode: 0o444,
        doc: "how many VMs use it",
        body: Body::Value(|i| line(&i.registry.users_of(&i.info.name).to_string())),
    },
    Node {
        name: "size",
        mode: 0o444,
        doc: "bytes on disk",
        body: Body::Value(|i| line(&i.info.size.to_string())),
    },
    Node {
        name: "source",
        mode: 0o444,
        doc: "what it is made from",
        body: Body::Value(|i| line(&i.info.source)),
    },
    Node {
        name: "status",
        mode: 0o444,
        doc: "one word: absent fetching building ready failed",
        body: Body::Value(|i| line(&render::image_status(&i.info.status))),
    },
];

/// An image as its rows see it.
#[derive(Debug)]
pub struct ImageSubject {
    /// The registry, which knows who uses it.
    pub registry: Arc<Registry>,
    /// The image.
    pub info: ImageInfo,
}

impl Subject for Arc<Registry> {
    fn changed(&self, _name: &str) -> SystemTime {
        Registry::changed(self)
    }

    fn vm(&self) -> Option<&Vm> {
        None
    }
}

impl Subject for Vm {
    fn changed(&self, name: &str) -> SystemTime {
        match name {
            "status" | "ready" | "wait" | "info" => self.view().since,
            "error" => self.failure_changed(),
            // No name in these directories comes or goes.
            "." => self.created(),
            _ => self.configured(),
        }
    }

    fn vm(&self) -> Option<&Vm> {
        Some(self)
    }
}

impl Subject for ImageSubject {
    fn changed(&self, _name: &str) -> SystemTime {
        self.info.changed
    }

    fn vm(&self) -> Option<&Vm> {
        None
    }
}

fn key_name(key: &'static crate::vm::spec::Key) -> &'static str {
    key.name
}

fn line(text: &str) -> String {
    format!("{text}\n")
}

fn console_access(open: &OpenRequest<'_>) -> ConsoleAccess {
    match open.access {
        _ if open.crawler => ConsoleAccess::Peek,
        Access::Read => ConsoleAccess::Watch,
        Access::Write => ConsoleAccess::Send,
        Access::ReadWrite => ConsoleAccess::Talk,
    }
}

fn exec_access(open: &OpenRequest<'_>) -> ExecAccess {
    match open.access {
        _ if open.crawler => ExecAccess::Peek,
        Access::Read => ExecAccess::Read,
        Access::Write => ExecAccess::Write,
        Access::ReadWrite => ExecAccess::Converse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::node::Kind;

    fn check<T>(rows: &[Node<T>]) {
        for (at, row) in rows.iter().enumerate() {
            assert!(!row.doc.is_empty() && !row.doc.ends_with('.'), "{}: doc", row.name);
            let mode_fits = match row.body.kind() {
                Kind::Value => row.mode == 0o444,
                Kind::Setting | Kind::Control => row.mode == 0o600,
                Kind::Stream => row.mode == 0o600 || row.mode == 0o444,
                Kind::Directory => row.mode & 0o500 == 0o500,
            };
            assert!(mode_fits, "{}: mode {:o}", row.name, row.mode);
            assert!(rows[..at].iter().all(|r| r.name < row.name), "{}: order", row.name);
        }
    }

    #[test]
    fn every_row_is_in_order_with_a_doc_and_a_fitting_mode() {
        check(ROOT);
        check(VM);
        check(IMAGE);
    }

    #[test]
    fn our_names_at_the_root_start_with_a_dot() {
        assert!(ROOT.iter().all(|row| row.name.starts_with('.')));
    }

    #[test]
    fn ctl_lists_its_verbs() {
        let ctl = VM.iter().find(|row| row.name == "ctl").unwrap();
        let verbs = VM_VERBS.iter().map(|v| v.name).collect::<Vec<_>>().join(" ");
        assert!(ctl.doc.ends_with(&verbs), "{verbs}");
    }

    /// The README's table, made from the rows.
    fn readme_table() -> String {
        let row = |name: &str, mode: u16, kind: &str, doc: &str| {
            let doc = doc.replace('|', "\\|");
            format!("| `{name}` | {mode:04o} | {kind} | {doc} |\n")
        };
        let root = ROOT.iter().map(|r| row(r.name, r.mode, r.body.kind().name(), r.doc));
        let vm =
            VM.iter().map(|r| row(&format!("VM/{}", r.name), r.mode, r.body.kind().name(), r.doc));
        let config = CONFIG
            .iter()
            .map(|r| row(&format!("VM/config/{}", r.name), r.mode, r.body.kind().name(), r.doc));
        let image = IMAGE
            .iter()
            .map(|r| row(&format!(".images/NAME/{}", r.name), r.mode, r.body.kind().name(), r.doc));
        let head = "| file | mode | kind | |\n|---|---|---|---|\n".to_owned();
        head + &root.chain(vm).chain(config).chain(image).collect::<String>()
    }

    #[test]
    fn the_readme_has_the_table_that_the_rows_make() {
        let readme = include_str!("../../README.md");
        let (before, rest) = readme.split_once("<!-- files").unwrap();
        let (comment, rest) = rest.split_once("-->\n").unwrap();
        let (table, after) = rest.split_once("<!-- /files -->").unwrap();
        let wanted = readme_table();
        if std::env::var_os("UPDATE_README").is_some() {
            let text = format!("{before}<!-- files{comment}-->\n{wanted}<!-- /files -->{after}");
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"), text).unwrap();
        } else {
            assert_eq!(table, wanted, "UPDATE_README=1 cargo test readme writes it");
        }
    }

    #[test]
    fn every_row_has_a_page() {
        let rows = ROOT.iter().map(|r| r.name).chain(VM.iter().map(|r| r.name));
        for name in rows.filter(|n| *n != ".docs") {
            let page = format!("{}.md", name.trim_start_matches('.'));
            assert!(DOCS.get_file(&page).is_some(), "mountpoint-docs/{page}");
        }
    }
}
