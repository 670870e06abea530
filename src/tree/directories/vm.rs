//! A VM's directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;

use super::config::CONFIG;
use super::jobs::JOBS;
use super::line;
use super::snapshots::SNAPSHOTS;
use crate::tree::control::Commands;
use crate::tree::descriptor::{Descriptor, no_names};
use crate::tree::handle::{Access, OpenRequest};
use crate::tree::node::{Body, Node, VerbOutcome};
use crate::tree::number::DirectoryId;
use crate::tree::owner::NodeOwner;
use crate::tree::render;
use crate::tree::verbs::VM_VERBS;
use crate::vm::Vm;
use crate::vm::backend::{ConsoleAccess, MonitorAccess};
use crate::vm::exec::ExecAccess;
use crate::vm::notice::Notice;

/// `VM`
pub(super) static VM: Descriptor<Vm> = Descriptor {
    id: DirectoryId(4),
    page: Some("VM/"),
    mode: 0o700,
    rows: || ROWS,
    resolve: |scope, id| scope.vm(id),
    path: |vm| format!("/{}", vm.name()),
    // No name in it comes or goes.
    mtime: Vm::created,
    names: no_names,
    members: &[],
    is_slow: false,
};

static ROWS: &[Node<Vm>] = &[
    Node {
        name: "config",
        mode: 0o700,
        mtime: Vm::created,
        doc: "settings, a file each",
        body: Body::Directory(&CONFIG),
    },
    Node {
        name: "console",
        mode: 0o600,
        mtime: Vm::created,
        doc: "the serial line, live, both directions",
        body: Body::Stream(|vm, open| Ok(vm.open_console(console_access(open))?)),
    },
    Node {
        name: "console.log",
        mode: 0o444,
        mtime: Vm::configured,
        doc: "what the serial line has printed (the last 1 MiB)",
        body: Body::Tail(|vm| vm.dir().console_log()),
    },
    Node {
        name: "ctl",
        mode: 0o600,
        mtime: Vm::created,
        doc: "verbs, one a line: start stop kill pause resume reset suspend restore resize port key",
        body: Body::Control(carry_out),
    },
    Node {
        name: "disk",
        mode: 0o777,
        mtime: Vm::configured,
        doc: "leads to the disk's qcow2 file, for `qemu-img`",
        body: Body::Link(|vm, _| Some(vm.dir().disk())),
    },
    Node {
        name: "error",
        mode: 0o444,
        mtime: Vm::failure_changed,
        doc: "`ok`, or the last failure in one sentence",
        body: Body::Value(|vm| line(vm.failure().as_deref().unwrap_or("ok"))),
    },
    Node {
        name: "events",
        mode: 0o444,
        mtime: state_changed,
        doc: "what happens to this VM from now on, a line each",
        body: Body::Stream(|vm, _| Ok(vm.open_events())),
    },
    Node {
        name: "exec",
        mode: 0o600,
        mtime: Vm::created,
        doc: "commands in the guest, over SSH: write one, read its output",
        body: Body::Stream(|vm, open| Ok(vm.open_exec((open.caller)(), exec_access(open))?)),
    },
    Node {
        name: "info",
        mode: 0o444,
        mtime: state_changed,
        doc: "facts, `key value` a line: uuid, pid, image, accel, ssh_port, memory in use …",
        body: Body::SlowValue(render::info),
    },
    Node {
        name: "jobs",
        mode: 0o700,
        mtime: Vm::created,
        doc: "commands as directories: `mkdir` one, write its `cmd`; `last` is the caller's last",
        body: Body::Directory(&JOBS),
    },
    Node {
        name: "log",
        mode: 0o444,
        mtime: Vm::configured,
        doc: "QEMU's stderr and the daemon's notes (the last 1 MiB)",
        body: Body::Tail(|vm| vm.dir().log()),
    },
    Node {
        name: "qmp",
        mode: 0o600,
        mtime: Vm::configured,
        doc: "QEMU's own protocol, a JSON object a line; each open is a conversation of its own",
        body: Body::Stream(|vm, open| Ok(vm.open_monitor(monitor_access(open))?)),
    },
    Node {
        name: "ready",
        mode: 0o444,
        mtime: state_changed,
        doc: "blocks until a command has run in the guest, then says how long that took",
        body: Body::Stream(|vm, _| Ok(Arc::new(Notice::ready(vm)?))),
    },
    Node {
        name: "snapshots",
        mode: 0o700,
        mtime: Vm::created,
        doc: "points in its past: mkdir takes one, rmdir drops it, `restore TAG` goes back",
        body: Body::Directory(&SNAPSHOTS),
    },
    Node {
        name: "ssh_config",
        mode: 0o444,
        mtime: state_changed,
        doc: "for OpenSSH's programs: `ssh -F vm1/ssh_config vm1`, scp, sftp, rsync, ansible",
        body: Body::Value(Vm::client_config),
    },
    Node {
        name: "status",
        mode: 0o444,
        mtime: state_changed,
        doc: "one word: stopped starting running ready paused saving stopping failed unreachable broken",
        body: Body::Value(|vm| line(&vm.state().to_string())),
    },
    Node {
        name: "tty",
        mode: 0o777,
        mtime: Vm::configured,
        doc: "leads to a real terminal on the serial line, for `screen`, `picocom`, `tio`",
        body: Body::Link(|vm, _| Some(terminal(vm))),
    },
    Node {
        name: "wait",
        mode: 0o444,
        mtime: state_changed,
        doc: "blocks while the VM starts, saves or stops, then gives the status",
        body: Body::Stream(|vm, _| Ok(Arc::new(Notice::wait(vm)))),
    },
];

fn state_changed(vm: &Vm) -> SystemTime {
    vm.view().since
}

fn carry_out(vm: &Vm, text: &str) -> BoxFuture<'static, VerbOutcome> {
    let vm = vm.clone();
    Commands::parse(VM_VERBS, text).carry_out(|good| vm.perform_all(good))
}

impl NodeOwner for Vm {
    fn vm(&self) -> Option<&Vm> {
        Some(self)
    }
}

fn console_access(open: &OpenRequest<'_>) -> ConsoleAccess {
    match open.access {
        _ if open.crawler => ConsoleAccess::Peek,
        Access::Read => ConsoleAccess::Watch,
        Access::Write => ConsoleAccess::Send,
        Access::ReadWrite => ConsoleAccess::Talk,
    }
}

/// A link that leads nowhere is an error for every `ls -l`. So it leads to `console` where there is
/// no terminal: opening that says why.
fn terminal(vm: &Vm) -> PathBuf {
    vm.terminal().unwrap_or_else(|_| "console".into())
}

fn monitor_access(open: &OpenRequest<'_>) -> MonitorAccess {
    match open.access {
        Access::Read => MonitorAccess::Watch,
        Access::Write => MonitorAccess::Send,
        Access::ReadWrite => MonitorAccess::Converse,
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
