//! The tables: the only place with names of files, their modes and their one-line docs.
//!
//! Adding a file is adding a row. Lookup, listing, attributes, open flags, `.docs` and the table of
//! `mountpoint-docs/README.md` follow from it.

use std::sync::{Arc, LazyLock};

use include_dir::{Dir, include_dir};

use super::host::Host;
use super::node::{Body, Node, Table};
use super::settings::Settings;
use super::subject::{
    AliasSubject, ImageSubject, JobSubject, SnapshotSubject, console_access, exec_access, last_job,
    monitor_access, open_cmd, open_stdin, terminal,
};
use super::verbs::VM_VERBS;
use super::{metrics, render};
use crate::registry::trash::Removed;
use crate::vm::backend::Source;
use crate::vm::notice::Notice;
use crate::vm::spec::{KEYS, Key};
use crate::vm::{Vm, VmError};

/// The pages of `mountpoint-docs/`, as `.docs/` shows them.
pub static DOCS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/mountpoint-docs");

/// The mount's root. Names that are not here are VMs.
pub static ROOT: &[Node<Host>] = &[
    Node {
        name: ".defaults",
        mode: 0o700,
        doc: "what a new VM's settings start from, a file each",
        body: Body::Directory(Table::Defaults),
    },
    Node {
        name: ".docs",
        mode: 0o555,
        doc: "the documentation, a page for each file",
        body: Body::Directory(Table::Docs),
    },
    Node {
        name: ".error",
        mode: 0o444,
        doc: "the newest 64 failures: time, pid, path, errno, sentence",
        body: Body::Value(|host| host.failures.print()),
    },
    Node {
        name: ".events",
        mode: 0o444,
        doc: "what happens to VMs from now on, a line each",
        body: Body::Stream(|host, _| Ok(host.registry.backends().events.open(None))),
    },
    Node {
        name: ".host",
        mode: 0o444,
        doc: "the host: accelerator and why, QEMU, processors, memory, store",
        body: Body::Report(render::host),
    },
    Node {
        name: ".images",
        mode: 0o700,
        doc: "what new VMs are made from: mkdir makes one, rmdir removes it",
        body: Body::Directory(Table::Images),
    },
    Node {
        name: ".metrics",
        mode: 0o444,
        doc: "figures for Prometheus",
        body: Body::Report(metrics::print),
    },
    Node {
        name: ".trash",
        mode: 0o700,
        doc: "removed VMs, kept for a day: mv one back, or rmdir it",
        body: Body::Directory(Table::Trash),
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
        doc: "verbs, one a line: start stop kill pause resume reset suspend restore resize port key",
        body: Body::Control(VM_VERBS),
    },
    Node {
        name: "disk",
        mode: 0o777,
        doc: "leads to the disk's qcow2 file, for `qemu-img`",
        body: Body::Link(|vm, _| Some(vm.dir().disk())),
    },
    Node {
        name: "error",
        mode: 0o444,
        doc: "`ok`, or the last failure in one sentence",
        body: Body::Value(|vm| line(vm.failure().as_deref().unwrap_or("ok"))),
    },
    Node {
        name: "events",
        mode: 0o444,
        doc: "what happens to this VM from now on, a line each",
        body: Body::Stream(|vm, _| Ok(vm.open_events())),
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
        body: Body::Report(render::info),
    },
    Node {
        name: "jobs",
        mode: 0o700,
        doc: "commands as directories: `mkdir` one, write its `cmd`; `last` is the caller's last",
        body: Body::Directory(Table::Jobs),
    },
    Node {
        name: "log",
        mode: 0o444,
        doc: "QEMU's stderr and the daemon's notes (the last 1 MiB)",
        body: Body::Tail(|vm| vm.dir().log()),
    },
    Node {
        name: "qmp",
        mode: 0o600,
        doc: "QEMU's own protocol, a JSON object a line; each open is a conversation of its own",
        body: Body::Stream(|vm, open| Ok(vm.open_monitor(monitor_access(open))?)),
    },
    Node {
        name: "ready",
        mode: 0o444,
        doc: "blocks until a command has run in the guest, then says how long that took",
        body: Body::Stream(|vm, _| Ok(Arc::new(Notice::ready(vm)?))),
    },
    Node {
        name: "snapshots",
        mode: 0o700,
        doc: "points in its past: mkdir takes one, rmdir drops it, `restore TAG` goes back",
        body: Body::Directory(Table::Snapshots),
    },
    Node {
        name: "ssh_config",
        mode: 0o444,
        doc: "for OpenSSH's programs: `ssh -F vm1/ssh_config vm1`, scp, sftp, rsync, ansible",
        body: Body::Value(Vm::client_config),
    },
    Node {
        name: "status",
        mode: 0o444,
        doc: "one word: stopped starting running ready paused saving stopping failed unreachable broken",
        body: Body::Value(|vm| line(&vm.state().to_string())),
    },
    Node {
        name: "tty",
        mode: 0o777,
        doc: "leads to a real terminal on the serial line, for `screen`, `picocom`, `tio`",
        body: Body::Link(|vm, _| Some(terminal(vm))),
    },
    Node {
        name: "wait",
        mode: 0o444,
        doc: "blocks while the VM starts, saves or stops, then gives the status",
        body: Body::Stream(|vm, _| Ok(Arc::new(Notice::wait(vm)))),
    },
];

/// A VM's `config/`, and `.defaults/`: a row for each setting there is.
pub static CONFIG: LazyLock<Vec<Node<Settings>>> = LazyLock::new(|| {
    let row = |key: &'static Key| Node {
        name: key.name,
        mode: 0o600,
        doc: key.doc,
        body: Body::Setting(key),
    };
    KEYS.iter().map(row).collect()
});

/// `.images`: every name there is an image.
pub static IMAGES: &[Node<Host>] = &[];

/// `VM/snapshots`: every name there is a snapshot.
pub static SNAPSHOTS: &[Node<Vm>] = &[];

/// A snapshot.
pub static SNAPSHOT: &[Node<SnapshotSubject>] = &[
    Node {
        name: "created",
        mode: 0o444,
        doc: "when it was taken, in seconds since 1970",
        body: Body::Value(|s| line(&s.show(|info| render::seconds(info.created)))),
    },
    Node {
        name: "memory",
        mode: 0o444,
        doc: "bytes of memory in it; 0 if the VM was off",
        body: Body::Value(|s| line(&s.show(|info| info.memory.to_string()))),
    },
    Node {
        name: "size",
        mode: 0o444,
        doc: "the disk's virtual size at that time, in bytes",
        body: Body::Value(|s| line(&s.show(|info| info.disk_size.to_string()))),
    },
    Node {
        name: "status",
        mode: 0o444,
        doc: "creating, ok, or failed with the reason",
        body: Body::Value(|s| line(&s.snapshot.status)),
    },
];

/// `.trash`: every name there is a removed VM.
pub static TRASH: &[Node<Host>] = &[];

/// A removed VM.
pub static REMOVED: &[Node<Removed>] = &[
    Node {
        name: "disk_bytes",
        mode: 0o444,
        doc: "what its disk takes of the host's",
        body: Body::Report(|r| line(&render::disk_bytes(&r.dir).to_string())),
    },
    Node {
        name: "image",
        mode: 0o444,
        doc: "the image that it was made from",
        body: Body::Value(|r| line(&r.image().unwrap_or_default())),
    },
    Node {
        name: "removed",
        mode: 0o444,
        doc: "when it was removed, in seconds since 1970",
        body: Body::Value(|r| line(&render::seconds(r.since))),
    },
    Node {
        name: "until",
        mode: 0o444,
        doc: "when it may be erased, in seconds since 1970",
        body: Body::Value(|r| line(&render::seconds(r.until()))),
    },
];

/// A VM's `jobs/`. Names that are not here are jobs.
pub static JOBS: &[Node<Vm>] = &[Node {
    name: "last",
    mode: 0o777,
    doc: "the caller's last command, of `exec` or of `jobs`",
    body: Body::Link(|vm, caller| Some(last_job(vm, &caller()))),
}];

/// A job's directory.
pub static JOB: &[Node<JobSubject>] = &[
    Node {
        name: "cmd",
        mode: 0o600,
        doc: "the command: it starts when the file is closed",
        body: Body::Stream(open_cmd),
    },
    Node {
        name: "ctl",
        mode: 0o600,
        doc: "lines: signal NAME, winsize COLUMNSxROWS; before the start pty COLUMNSxROWS, env NAME=VALUE, cwd DIR",
        body: Body::Lines(|j| {
            let job = Arc::clone(&j.job);
            Box::new(move |line| Ok(job.obey(line).map_err(VmError::from)?))
        }),
    },
    Node {
        name: "status",
        mode: 0o444,
        doc: "`new`, `running`, `exit 3`, `signal TERM`, `lost: reason`",
        body: Body::Value(|j| line(&j.job.status_line())),
    },
    Node {
        name: "stderr",
        mode: 0o400,
        doc: "what it says on standard error, from the start, to its end",
        body: Body::Stream(|j, open| Ok(j.output(Source::Stderr, open))),
    },
    Node {
        name: "stdin",
        mode: 0o600,
        doc: "its standard input; the last closing is its end",
        body: Body::Stream(open_stdin),
    },
    Node {
        name: "stdout",
        mode: 0o400,
        doc: "what it says on standard output, from the start, to its end",
        body: Body::Stream(|j, open| Ok(j.output(Source::Stdout, open))),
    },
    Node {
        name: "wait",
        mode: 0o444,
        doc: "blocks until the command has ended, then gives the status",
        body: Body::Stream(|j, _| Ok(j.vm.jobs().open_wait(&j.job))),
    },
];

/// A second name of an image: the only row of a directory that nobody sees.
pub static ALIAS: &[Node<AliasSubject>] = &[Node {
    name: "alias",
    mode: 0o777,
    doc: "leads to an image",
    body: Body::Link(|alias, _| Some(alias.image.clone().into())),
}];

/// An image's directory.
pub static IMAGE: &[Node<ImageSubject>] = &[
    Node {
        name: "config",
        mode: 0o444,
        doc: "the settings that it carries to its VMs, `key value` a line",
        body: Body::Value(|i| i.info.settings.table()),
    },
    Node {
        name: "ctl",
        mode: 0o600,
        doc: "verbs, one a line: pull warm cold refresh",
        body: Body::Orders(ImageSubject::carry_out),
    },
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
        name: "parent",
        mode: 0o444,
        doc: "the image that the VM it was made from used; empty for others",
        body: Body::Value(|i| line(&i.info.parent)),
    },
    Node {
        name: "progress",
        mode: 0o444,
        doc: "what is being done, in one line",
        body: Body::Value(|i| line(&i.info.progress)),
    },
    Node {
        name: "recipe",
        mode: 0o444,
        doc: "of tiny: the number of the recipe that it was made by, and of the present one if that is another",
        body: Body::Value(|i| line(&i.recipe())),
    },
    Node {
        name: "refs",
        mode: 0o444,
        doc: "how many VMs use it",
        body: Body::Value(|i| line(&i.registry.users_of(&i.info.name).len().to_string())),
    },
    Node {
        name: "size",
        mode: 0o444,
        doc: "bytes on disk",
        body: Body::Value(|i| line(&i.info.size.to_string())),
    },
    Node {
        name: "source",
        mode: 0o600,
        doc: "what it is made from: builtin:tiny, a disk's path, VM or VM@SNAPSHOT",
        body: Body::Text(ImageSubject::source, ImageSubject::set_source),
    },
    Node {
        name: "status",
        mode: 0o444,
        doc: "one word: absent fetching building ready failed",
        body: Body::Value(|i| line(&i.info.status.to_string())),
    },
    Node {
        name: "wait",
        mode: 0o444,
        doc: "blocks while it is being made or warmed, then the status",
        body: Body::Stream(|i, _| Ok(i.open_wait())),
    },
    Node {
        name: "warm",
        mode: 0o444,
        doc: "whether new VMs go on from a machine frozen in it: `no`, `yes: …`, `warming: …`, `failed: …`",
        body: Body::Value(|i| line(&i.info.warm.to_string())),
    },
];

/// A value's text: one line.
pub(super) fn line(text: &str) -> String {
    format!("{text}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::manual;
    use crate::tree::node::Kind;
    use crate::tree::verbs::IMAGE_VERBS;

    fn check<T>(rows: &[Node<T>]) {
        for (at, row) in rows.iter().enumerate() {
            assert!(!row.doc.is_empty() && !row.doc.ends_with('.'), "{}: doc", row.name);
            let mode_fits = match row.body.kind() {
                Kind::Value => row.mode == 0o444,
                Kind::Setting | Kind::Control => row.mode == 0o600,
                Kind::Stream => [0o600, 0o444, 0o400, 0o200].contains(&row.mode),
                Kind::Link => row.mode == 0o777,
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
        check(JOBS);
        check(JOB);
        check(IMAGE);
        check(REMOVED);
        check(SNAPSHOT);
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
        let ctl = IMAGE.iter().find(|row| row.name == "ctl").unwrap();
        let verbs = IMAGE_VERBS.iter().map(|v| v.name).collect::<Vec<_>>().join(" ");
        assert!(ctl.doc.ends_with(&verbs), "{verbs}");
    }

    #[test]
    fn the_manual_has_the_table_that_the_rows_make() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/mountpoint-docs/README.md");
        let page = include_str!("../../mountpoint-docs/README.md");
        let (before, rest) = page.split_once("<!-- files").unwrap();
        let (comment, rest) = rest.split_once("-->\n").unwrap();
        let (table, after) = rest.split_once("<!-- /files -->").unwrap();
        let wanted = manual::markdown();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            let text = format!("{before}<!-- files{comment}-->\n{wanted}<!-- /files -->{after}");
            std::fs::write(path, text).unwrap();
        } else {
            assert_eq!(table, wanted, "UPDATE_DOCS=1 cargo test --lib table writes it");
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
