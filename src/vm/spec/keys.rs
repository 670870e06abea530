//! The table of settings: one row of [`KEYS`] is one file of `config/` and of `.defaults/`.
//!
//! How a value is read is in `parse`.

use std::path::Path;

use super::container::ContainerProcess;
use super::net::{Destination, Forward};
pub use super::parse::forward;
use super::{
    CpuLimit, IoLimit, MAX_DISK, MAX_MEMORY, MIN_DISK, MIN_MEMORY, MOST_NETS, SpecError, VmSpec,
    limit, parse, render_accel, render_size, span, text,
};
use crate::vm::WriteMode;

/// When a changed setting takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// At once: QEMU has no part in it.
    AtOnce,
    /// When the VM is started, or before that where the running machine can be changed.
    AtStart,
    /// When the guest boots for the first time: it remembers that it has read it.
    AtFirstBoot,
}

/// How a setting is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One line.
    Line,
    /// One element a line: `>` replaces the list and `>>` adds to it.
    List,
    /// A text of many lines: what one open file is given makes one.
    Text,
}

/// Whether an image that is made from a VM carries this setting of it to the image's VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// It belongs to the VM alone.
    Never,
    /// The guest was set up with it.
    Always,
    /// Only with the memory of the guest, which fits no machine with another value.
    Warm,
}

/// One setting: a file of `config/`.
#[derive(Debug)]
pub struct Key {
    /// The file's name.
    pub name: &'static str,
    /// One line for `ls`-time documentation.
    pub doc: &'static str,
    /// When a change takes effect.
    pub takes: Takes,
    /// Prints the canonical form, without a newline.
    pub render: fn(&VmSpec) -> String,
    /// Parses one line, or a text, into the settings.
    pub parse: fn(&mut VmSpec, &str) -> Result<(), SpecError>,
    /// Puts this setting of the second argument (the defaults) into the first.
    pub reset: fn(&mut VmSpec, &VmSpec),
    /// How many lines it has, and what `>>` does.
    pub form: Form,
    /// Whether images carry it.
    pub carried: Carried,
}

/// What text that is written to a setting asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing: it is empty.
    Nothing,
    /// No value of its own.
    Default,
    /// This value.
    Value,
}

impl Key {
    /// Says whether a value of this key would be accepted.
    ///
    /// # Errors
    /// [`SpecError`]
    pub fn check(&self, text: &str) -> Result<(), SpecError> {
        let built_in = VmSpec::default();
        self.assign(&mut VmSpec::default(), text, WriteMode::Replace, &built_in)
    }

    /// Refuses a compressed text.
    pub fn compressed(&self) -> SpecError {
        let reason = format!("it is compressed; `zcat FILE > config/{}`", self.name);
        SpecError::Text { key: self.name, line: 1, reason }
    }

    /// Returns what an empty text means where it means something: a time or a limit that is cleared.
    pub fn when_empty(&self) -> Option<&'static str> {
        match self.name {
            "expire" | "idle" => Some(span::NEVER),
            "cpu_limit" | "io_limit" | "memory_high" | "memory_max" => Some(limit::NONE),
            _ => None,
        }
    }

    /// Finds a setting by its name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// Puts written text into `spec`: `default` takes the value of `defaults`, an empty text
    /// changes nothing, a list takes one element a line and is emptied by `none`.
    ///
    /// # Errors
    /// [`SpecError`]; `spec` may then be half changed and must be thrown away.
    pub fn assign(
        &self,
        spec: &mut VmSpec,
        text: &str,
        mode: WriteMode,
        defaults: &VmSpec,
    ) -> Result<(), SpecError> {
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let empty = |spec: &mut VmSpec| (self.reset)(spec, &VmSpec::default());
        match lines.as_slice() {
            [] => Ok(()),
            ["default"] => {
                (self.reset)(spec, defaults);
                Ok(())
            }
            ["none"] if self.form == Form::List => {
                empty(spec);
                Ok(())
            }
            many => match (self.form, many) {
                (Form::Text, _) => (self.parse)(spec, text),
                (Form::Line, [one]) => (self.parse)(spec, one),
                (Form::Line, _) => Err(parse::malformed(self.name, text.trim(), "a single line")),
                (Form::List, _) => {
                    if mode == WriteMode::Replace {
                        empty(spec);
                    }
                    many.iter().try_for_each(|line| (self.parse)(spec, line))
                }
            },
        }
    }
}

/// No two have the same name.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Key {}

/// What is to be done to settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Text was written to a setting's file.
    Write(&'static Key, String, WriteMode),
    /// `resize`: the disk's size in bytes.
    Disk(u64),
    /// `port add`
    AddPort(Forward),
    /// `port del`
    RemovePort(Forward),
}

impl Edit {
    /// Returns the verb for it.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Write(..) => "config",
            Self::Disk(_) => "resize",
            Self::AddPort(_) | Self::RemovePort(_) => "port",
        }
    }

    /// Names the setting.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Write(key, ..) => key.name,
            Self::Disk(_) => "disk",
            Self::AddPort(_) | Self::RemovePort(_) => "ports",
        }
    }

    /// Says what it asks for.
    pub fn wanted(&self) -> Wanted {
        let Self::Write(_, text, _) = self else { return Wanted::Value };
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        match (lines.next(), lines.next()) {
            (None, _) => Wanted::Nothing,
            (Some("default"), None) => Wanted::Default,
            (Some(_), _) => Wanted::Value,
        }
    }

    /// Returns `spec` with this done to it; `default` means the value of `defaults`.
    pub fn done_to(&self, spec: &VmSpec, defaults: &VmSpec) -> Result<VmSpec, SpecError> {
        let mut spec = spec.clone();
        match self {
            Self::Write(key, text, mode) => key.assign(&mut spec, text, *mode, defaults)?,
            Self::Disk(bytes) => spec.disk = *bytes,
            Self::AddPort(forward) => spec.add_port(*forward)?,
            Self::RemovePort(forward) => spec.remove_port(forward)?,
        }
        Ok(spec)
    }
}

/// Reads the size of a disk, as `disk` and the verb `resize` take it.
pub fn disk_size(text: &str) -> Result<u64, SpecError> {
    parse::sized("disk", text, MIN_DISK, MAX_DISK, "16M to 64T")
}

/// A row: the setting in the field of [`VmSpec`] of that name. It has one `value`, or is a list to which
/// each line adds an `element`, or is a `text`.
macro_rules! key {
    ($name:ident, takes: $takes:ident, carried: $carried:ident, doc: $doc:literal,
     render: $render:expr, value: |$text:ident| $value:expr,) => {
        key! { @row $name, $takes, $carried, $doc, $render, Line,
        |spec, $text| $value.map(|value| spec.$name = value) }
    };
    ($name:ident, takes: $takes:ident, carried: $carried:ident, doc: $doc:literal,
     render: $render:expr, element: $add:expr,) => {
        key! { @row $name, $takes, $carried, $doc, $render, List, $add }
    };
    ($name:ident, takes: $takes:ident, carried: $carried:ident, doc: $doc:literal,
     text: $read:expr,) => {
        key! { @row $name, $takes, $carried, $doc, |s| s.$name.clone().unwrap_or_else(none), Text,
        |spec, text| $read(text).map(|value| spec.$name = value) }
    };
    (@row $name:ident, $takes:ident, $carried:ident, $doc:literal, $render:expr, $form:ident,
     $parse:expr) => {
        Key {
            name: stringify!($name),
            doc: $doc,
            takes: Takes::$takes,
            render: $render,
            parse: $parse,
            reset: |spec, defaults| spec.$name.clone_from(&defaults.$name),
            form: Form::$form,
            carried: Carried::$carried,
        }
    };
}

/// Every setting.
pub static KEYS: &[Key] = &[
    key! { image, takes: AtStart, carried: Never,
        doc: "image that the disk is made from at the first start: a name or an alias in .images",
        render: |s| s.image.clone(),
        value: |v| parse::image_name(v),
    },
    key! { cpus, takes: AtStart, carried: Always,
        doc: "virtual processors, 1 to 255; up to 8 can be added while it runs",
        render: |s| s.cpus.to_string(),
        value: |v| parse::cpus(v),
    },
    key! { memory, takes: AtStart, carried: Always,
        doc: "guest memory: a number with K, M, G or T (powers of 1024)",
        render: |s| render_size(s.memory),
        value: |v| memory(v),
    },
    key! { disk, takes: AtStart, carried: Always,
        doc: "virtual size of the disk: a number with K, M, G or T (powers of 1024); it only grows",
        render: |s| render_size(s.disk),
        value: |v| disk_size(v),
    },
    key! { hostname, takes: AtStart, carried: Never,
        doc: "the guest's host name; `default` is the VM's name",
        render: |s| s.hostname.clone().unwrap_or_else(|| "default".to_owned()),
        value: |v| parse::hostname(v).map(Some),
    },
    key! { mac, takes: AtStart, carried: Never,
        doc: "the network address; `default` is derived from the UUID",
        render: |s| s.mac.map_or_else(|| "default".to_owned(), |m| m.to_string()),
        value: |v| parse::mac(v).map(Some),
    },
    key! { ports, takes: AtStart, carried: Never,
        doc: "ports of the host that lead into the guest, one a line: 8080:80, udp:127.0.0.1:53:53",
        render: |s| lines(&s.ports),
        element: |s, v| parse::forward(v).and_then(|v| s.add_port(v)),
    },
    key! { net, takes: AtStart, carried: Never,
        doc: "what the guest reaches: user (other hosts, and the host as 10.0.2.2), offline (nothing) or allow",
        render: |s| s.net.word().to_owned(),
        value: |v| parse::net(v),
    },
    key! { allow, takes: AtOnce, carried: Never,
        doc: "with net allow: hosts that the guest reaches by a proxy, one a line: deb.debian.org, *.crates.io:443",
        render: |s| lines(&s.allow),
        element: |s, v| parse::destination(v).and_then(|v| add_destination(s, v)),
    },
    key! { nets, takes: AtOnce, carried: Never,
        doc: "nets of .nets that it is a member of, up to 4: names with spaces between, or one a line",
        render: |s| s.nets.join("\n"),
        element: |s, v| add_nets(s, v),
    },
    key! { arch, takes: AtStart, carried: Always,
        doc: "the processor's architecture, x86_64 or aarch64; an image has its own, else it is the host's",
        render: |s| s.arch.to_string(),
        value: |v| parse::arch(v),
    },
    key! { accel, takes: AtStart, carried: Warm,
        doc: "accelerator: auto, kvm or tcg",
        render: |s| render_accel(s.accel).to_owned(),
        value: |v| parse::accel(v),
    },
    key! { machine, takes: AtStart, carried: Always,
        doc: "machine type: q35 (the newest that QEMU has) or a version such as pc-q35-7.2; virt for aarch64",
        render: |s| s.machine.clone().unwrap_or_else(|| s.arch.platform().machine.to_owned()),
        value: |v| parse::machine(v),
    },
    key! { hardware, takes: AtStart, carried: Never,
        doc: "version of the virtual hardware, 1 to 3; `newest` is also that of a memory to resume from",
        render: |s| s.hardware.map_or_else(|| parse::NEWEST.to_owned(), |h| h.to_string()),
        value: |v| parse::hardware(v),
    },
    key! { kernel, takes: AtStart, carried: Always,
        doc: "path of a kernel on the host, instead of the image's; `none` is the image's",
        render: |s| render_path(s.kernel.as_deref()),
        value: |v| parse::path("kernel", v),
    },
    key! { initrd, takes: AtStart, carried: Always,
        doc: "path of an initial RAM disk; `none` is the image's, or nothing beside a kernel of your own",
        render: |s| render_path(s.initrd.as_deref()),
        value: |v| parse::path("initrd", v),
    },
    key! { cmdline, takes: AtStart, carried: Always,
        doc: "added to the image's kernel command line; `none` adds nothing",
        render: |s| s.cmdline.clone().unwrap_or_else(none),
        value: |v| parse::cmdline(v),
    },
    key! { firmware, takes: AtStart, carried: Always,
        doc: "uefi, or the path of a firmware on the host; `none` is QEMU's BIOS",
        render: |s| s.firmware.clone().map_or_else(none, String::from),
        value: |v| parse::firmware(v),
    },
    key! { container, takes: AtStart, carried: Always,
        doc: "what `aq run` runs, as the container image says: JSON with Entrypoint, Cmd, Env, WorkingDir, User",
        render: |s| s.container.as_ref().map_or_else(none, ContainerProcess::render),
        value: |v| parse::container(v),
    },
    key! { cdrom, takes: AtStart, carried: Warm,
        doc: "path of an ISO image on the host; `none` is an empty drive",
        render: |s| render_path(s.cdrom.as_deref()),
        value: |v| parse::path("cdrom", v),
    },
    key! { ephemeral, takes: AtStart, carried: Never,
        doc: "1: what the guest writes to its disk is gone when the VM ends",
        render: |s| switch(s.ephemeral),
        value: |v| parse::switch("ephemeral", v),
    },
    key! { ssh_user, takes: AtOnce, carried: Always,
        doc: "login name for exec and files in the guest",
        render: |s| s.ssh_user.clone(),
        value: |v| parse::user(v),
    },
    key! { ssh_key, takes: AtStart, carried: Never,
        doc: "further public keys that open the guest, one a line",
        render: |s| s.ssh_key.join("\n"),
        element: |s, v| parse::ssh_key(v).and_then(|v| add_key(s, v)),
    },
    key! { user_data, takes: AtFirstBoot, carried: Warm,
        doc: "a text for cloud-init or tiny-cloud at the first boot: #cloud-config, a script …; or none",
        text: text::user_data,
    },
    key! { network_data, takes: AtFirstBoot, carried: Warm,
        doc: "network configuration for cloud-init at the first boot, version 1 or 2; or none",
        text: text::network_data,
    },
    key! { ignition, takes: AtFirstBoot, carried: Warm,
        doc: "configuration for Ignition at the first boot, JSON; or none",
        text: text::ignition,
    },
    key! { credentials, takes: AtStart, carried: Warm,
        doc: "credentials for the guest's systemd, NAME=VALUE, one a line",
        render: |s| s.credentials.join("\n"),
        element: |s, v| text::credential(v).and_then(|v| add_credential(s, v)),
    },
    key! { overcommit, takes: AtOnce, carried: Never,
        doc: "1: started even if the host may not have the memory for it",
        render: |s| switch(s.overcommit),
        value: |v| parse::switch("overcommit", v),
    },
    key! { autostart, takes: AtOnce, carried: Never,
        doc: "1: started when the tree is mounted",
        render: |s| switch(s.autostart),
        value: |v| parse::switch("autostart", v),
    },
    key! { autoremove, takes: AtOnce, carried: Never,
        doc: "1: removed for good when it has run and is stopped",
        render: |s| switch(s.autoremove),
        value: |v| parse::switch("autoremove", v),
    },
    key! { expire, takes: AtOnce, carried: Never,
        doc: "so long after this is written, or the VM is made, it is removed: 30m, 1h, 7d, or never",
        render: |s| span::render_or_never(s.expire),
        value: |v| parse::span("expire", v),
    },
    key! { idle, takes: AtOnce, carried: Never,
        doc: "suspended when it was not used for so long: 30s, 10m, or never; the next exec, fs or ssh brings it back",
        render: |s| span::render_or_never(s.idle),
        value: |v| parse::span("idle", v),
    },
    key! { cpu_limit, takes: AtStart, carried: Never,
        doc: "how much of the host's processors it gets: 0.5, 2, or none",
        render: |s| CpuLimit::render_or_none(s.cpu_limit),
        value: |v| CpuLimit::parse("cpu_limit", v),
    },
    key! { memory_high, takes: AtStart, carried: Never,
        doc: "from so much of the host's memory on, QEMU included, it is slowed down: 512M, or none",
        render: |s| limit::render_size_or_none(s.memory_high),
        value: |v| limit::memory("memory_high", v),
    },
    key! { memory_max, takes: AtStart, carried: Never,
        doc: "more of the host's memory, QEMU included, it never has; it is ended first: 512M, or none",
        render: |s| limit::render_size_or_none(s.memory_max),
        value: |v| limit::memory("memory_max", v),
    },
    key! { io_limit, takes: AtStart, carried: Never,
        doc: "what its disks may transfer a second: bytes, operations or both (20M 500iops), or none",
        render: |s| IoLimit::render_or_none(s.io_limit),
        value: |v| IoLimit::parse(v),
    },
    key! { protect, takes: AtOnce, carried: Never,
        doc: "1 forbids removing the VM",
        render: |s| switch(s.protect),
        value: |v| parse::switch("protect", v),
    },
    key! { qemu_args, takes: AtStart, carried: Warm,
        doc: "further arguments for QEMU, one a line",
        render: |s| s.qemu_args.join("\n"),
        element: |s, v| parse::qemu_arg(v).map(|v| s.qemu_args.push(v)),
    },
];

fn memory(text: &str) -> Result<u64, SpecError> {
    parse::sized("memory", text, MIN_MEMORY, MAX_MEMORY, "32M to 4T")
}

fn add_key(spec: &mut VmSpec, line: String) -> Result<(), SpecError> {
    if spec.ssh_key.contains(&line) {
        return Err(SpecError::Duplicate { key: "ssh_key", value: line });
    }
    spec.ssh_key.push(line);
    Ok(())
}

fn add_credential(spec: &mut VmSpec, line: String) -> Result<(), SpecError> {
    let name = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
    if spec.credentials.iter().any(|there| name(there) == name(&line)) {
        return Err(SpecError::Duplicate { key: "credentials", value: name(&line) });
    }
    spec.credentials.push(line);
    Ok(())
}

fn add_nets(spec: &mut VmSpec, line: &str) -> Result<(), SpecError> {
    for net in line.split_whitespace() {
        let net = parse::net_name(net)?;
        if spec.nets.contains(&net) {
            return Err(SpecError::Duplicate { key: "nets", value: net });
        }
        spec.nets.push(net);
    }
    match spec.nets.len() > usize::from(MOST_NETS) {
        false => Ok(()),
        true => Err(SpecError::OutOfRange {
            key: "nets",
            value: spec.nets.len().to_string(),
            range: "4 nets at the most",
        }),
    }
}

fn add_destination(spec: &mut VmSpec, destination: Destination) -> Result<(), SpecError> {
    if spec.allow.contains(&destination) {
        return Err(SpecError::Duplicate { key: "allow", value: destination.to_string() });
    }
    spec.allow.push(destination);
    Ok(())
}

fn none() -> String {
    "none".to_owned()
}

fn render_path(path: Option<&Path>) -> String {
    path.map_or_else(none, |p| p.display().to_string())
}

fn switch(value: bool) -> String {
    u8::from(value).to_string()
}

fn lines(elements: &[impl ToString]) -> String {
    elements.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
