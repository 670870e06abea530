//! A VM's directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;

use super::config::CONFIG;
use super::disks::DISKS;
use super::jobs::JOBS;
use super::line;
use super::probes::PROBES;
use super::shares::SHARES;
use super::snapshots::SNAPSHOTS;
use crate::tree::control::Commands;
use crate::tree::descriptor::Descriptor;
use crate::tree::handle::{Access, OpenRequest};
use crate::tree::node::{Node, VerbOutcome};
use crate::tree::owner::NodeOwner;
use crate::tree::render;
use crate::tree::scope::Scope;
use crate::tree::verbs::VM_VERBS;
use crate::vm::Vm;
use crate::vm::notice::Notice;
use crate::vm::stream::StreamAccess;

/// `VM`
pub(super) static VM: Descriptor<Vm> = Descriptor {
    page: Some("VM/"),
    rows: || ROWS,
    ..Descriptor::new(4, Scope::vm, |vm| format!("/{}", vm.name()), Vm::created)
};

static ROWS: &[Node<Vm>] = &[
    Node::directory("config", "settings, a file each", &CONFIG),
    Node::stream("console", 0o600, "the serial line, live, both directions", |vm, open| {
        Ok(vm.open_console(stream_access(open))?)
    }),
    Node::tail("console.log", "what the serial line has printed (the last 1 MiB)", |vm: &Vm| {
        vm.dir().console_log()
    })
    .follows(Vm::configured),
    Node::control(
        "ctl",
        "verbs, one a line: start stop kill pause resume reset suspend fork restore resize port key",
        carry_out,
    ),
    Node::link("disk", "leads to the disk's qcow2 file, for `qemu-img`", |vm: &Vm, _| {
        Some(vm.dir().disk())
    })
    .follows(Vm::configured),
    Node::directory("disks", "further disks: `mkdir` one, write its `size` or `source`", &DISKS),
    Node::value("error", "`ok`, or the last failure in one sentence", |vm: &Vm| {
        line(vm.failure().as_deref().unwrap_or("ok"))
    })
    .follows(Vm::failure_changed),
    Node::stream(
        "events",
        0o444,
        "what happens to this VM from now on, a line each",
        |vm: &Vm, _| Ok(vm.open_events()),
    )
    .follows(state_changed),
    Node::stream(
        "exec",
        0o600,
        "commands in the guest, over SSH: write one, read its output",
        |vm, open| Ok(vm.open_exec((open.caller)(), stream_access(open))?),
    ),
    Node::link("fs", "leads to the guest's files, a mount of their own", |vm: &Vm, _| {
        Some(vm.dir().store().guest_files().join(vm.name()))
    })
    .follows(Vm::configured),
    Node::slow_value(
        "info",
        "facts, `key value` a line: uuid, pid, image, accel, ssh_port, memory in use …",
        render::info,
    )
    .follows(state_changed),
    Node::directory(
        "jobs",
        "commands as directories: `mkdir` one, write its `cmd`; `last` is the caller's last",
        &JOBS,
    ),
    Node::tail("log", "QEMU's stderr and the daemon's notes (the last 1 MiB)", |vm: &Vm| {
        vm.dir().log()
    })
    .follows(Vm::configured),
    Node::directory(
        "probes",
        "looks at services in the guest: `cat probes/tcp/80`, `http/80/PATH`, `unit/NAME`",
        &PROBES,
    ),
    Node::stream(
        "qmp",
        0o600,
        "QEMU's own protocol, a JSON object a line; each open is a conversation of its own",
        |vm: &Vm, open| Ok(vm.open_monitor(stream_access(open))?),
    )
    .follows(Vm::configured),
    Node::stream(
        "ready",
        0o444,
        "blocks until a command has run in the guest, then says how long that took",
        |vm: &Vm, _| Ok(Arc::new(Notice::ready(vm)?)),
    )
    .follows(state_changed),
    Node::directory(
        "shares",
        "host directories in the guest: `mkdir` one, write its `source`",
        &SHARES,
    ),
    Node::directory(
        "snapshots",
        "points in its past: mkdir takes one, rmdir drops it, `restore TAG` goes back",
        &SNAPSHOTS,
    ),
    Node::value(
        "ssh_config",
        "for OpenSSH's programs: `ssh -F vm1/ssh_config vm1`, scp, sftp, rsync, ansible",
        Vm::client_config,
    )
    .follows(state_changed),
    Node::value(
        "status",
        "one word: stopped starting running ready paused saving stopping failed unreachable broken",
        |vm: &Vm| line(&vm.state().to_string()),
    )
    .follows(state_changed),
    Node::link(
        "tty",
        "leads to a real terminal on the serial line, for `screen`, `picocom`, `tio`",
        |vm: &Vm, _| Some(terminal(vm)),
    )
    .follows(Vm::configured),
    Node::stream(
        "wait",
        0o444,
        "blocks while the VM starts, saves or stops, then gives the status",
        |vm: &Vm, _| Ok(Arc::new(Notice::wait(vm))),
    )
    .follows(state_changed),
];

fn state_changed(vm: &Vm) -> SystemTime {
    vm.view().since
}

fn carry_out(scope: &Scope, vm: &Vm, text: &str) -> BoxFuture<'static, VerbOutcome> {
    let (registry, vm) = (Arc::clone(&scope.registry), vm.clone());
    Commands::parse(VM_VERBS, text).carry_out(|good| registry.command_vm_all(vm, good))
}

impl NodeOwner for Vm {
    fn vm(&self) -> Option<&Vm> {
        Some(self)
    }
}

/// A link that leads nowhere is an error for every `ls -l`. So it leads to `console` where there is
/// no terminal: opening that says why.
fn terminal(vm: &Vm) -> PathBuf {
    vm.terminal().unwrap_or_else(|_| "console".into())
}

fn stream_access(open: &OpenRequest<'_>) -> StreamAccess {
    match open.access {
        _ if open.crawler => StreamAccess::Peek,
        Access::Read => StreamAccess::Read,
        Access::Write => StreamAccess::Write,
        Access::ReadWrite => StreamAccess::Converse,
    }
}
