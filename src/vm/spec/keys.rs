//! The table of settings: one row of [`KEYS`] is one file of `config/` and of `.defaults/`.
//!
//! How a value is read is in `parse`.

use std::path::Path;

use super::net::Forward;
use super::{
    MAX_DISK, MAX_MEMORY, MIN_DISK, MIN_MEMORY, SpecError, VmSpec, parse, render_accel, render_size,
};
use crate::vm::WriteMode;

/// When a changed setting takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// At once: QEMU has no part in it.
    AtOnce,
    /// When the VM is started, or before that where the running machine can be changed.
    AtStart,
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
    /// Parses one line into the settings.
    pub parse: fn(&mut VmSpec, &str) -> Result<(), SpecError>,
    /// Puts this setting of the second argument (the defaults) into the first.
    pub reset: fn(&mut VmSpec, &VmSpec),
    /// `>` replaces the list and `>>` adds to it.
    pub list: bool,
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
    /// Finds a setting by its name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// Says what written text asks for.
    pub fn wanted(text: &str) -> Wanted {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        match (lines.next(), lines.next()) {
            (None, _) => Wanted::Nothing,
            (Some("default"), None) => Wanted::Default,
            (Some(_), _) => Wanted::Value,
        }
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
            ["none"] if self.list => {
                empty(spec);
                Ok(())
            }
            [one] if !self.list => (self.parse)(spec, one),
            _ if !self.list => Err(parse::malformed(self.name, text.trim(), "a single line")),
            many => {
                if mode == WriteMode::Replace {
                    empty(spec);
                }
                many.iter().try_for_each(|line| (self.parse)(spec, line))
            }
        }
    }
}

/// What is to be done to settings.
#[derive(Clone, Debug)]
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
        match self {
            Self::Write(_, text, _) => Key::wanted(text),
            Self::Disk(_) | Self::AddPort(_) | Self::RemovePort(_) => Wanted::Value,
        }
    }

    /// Returns `spec` with this done to it; `default` means the value of `defaults`.
    ///
    /// # Errors
    /// [`SpecError`].
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
///
/// # Errors
/// [`SpecError`]
pub fn disk_size(text: &str) -> Result<u64, SpecError> {
    parse::sized("disk", text, MIN_DISK, MAX_DISK, "16M to 64T")
}

/// Reads a forward, as `ports` and the verb `port` take it.
///
/// # Errors
/// [`SpecError`]
pub fn forward(text: &str) -> Result<Forward, SpecError> {
    parse::forward(text)
}

/// Every setting.
pub static KEYS: &[Key] = &[
    Key {
        name: "image",
        doc: "image that the disk is made from at the first start: a name or an alias in .images",
        takes: Takes::AtStart,
        render: |s| s.image.clone(),
        parse: |s, v| parse::image_name(v).map(|v| s.image = v),
        reset: |s, d| s.image.clone_from(&d.image),
        list: false,
        carried: Carried::Never,
    },
    Key {
        name: "cpus",
        doc: "virtual processors, 1 to 255",
        takes: Takes::AtStart,
        render: |s| s.cpus.to_string(),
        parse: |s, v| parse::cpus(v).map(|v| s.cpus = v),
        reset: |s, d| s.cpus = d.cpus,
        list: false,
        carried: Carried::Always,
    },
    Key {
        name: "memory",
        doc: "guest memory: a number with K, M, G or T (powers of 1024)",
        takes: Takes::AtStart,
        render: |s| render_size(s.memory),
        parse: |s, v| memory(v).map(|v| s.memory = v),
        reset: |s, d| s.memory = d.memory,
        list: false,
        carried: Carried::Always,
    },
    Key {
        name: "disk",
        doc: "virtual size of the disk: a number with K, M, G or T (powers of 1024); it only grows",
        takes: Takes::AtStart,
        render: |s| render_size(s.disk),
        parse: |s, v| disk_size(v).map(|v| s.disk = v),
        reset: |s, d| s.disk = d.disk,
        list: false,
        carried: Carried::Always,
    },
    Key {
        name: "hostname",
        doc: "the guest's host name; `default` is the VM's name",
        takes: Takes::AtStart,
        render: |s| s.hostname.clone().unwrap_or_else(|| "default".to_owned()),
        parse: |s, v| parse::hostname(v).map(|v| s.hostname = Some(v)),
        reset: |s, d| s.hostname.clone_from(&d.hostname),
        list: false,
        carried: Carried::Never,
    },
    Key {
        name: "mac",
        doc: "the network address; `default` is derived from the UUID",
        takes: Takes::AtStart,
        render: |s| s.mac.map_or_else(|| "default".to_owned(), |m| m.to_string()),
        parse: |s, v| parse::mac(v).map(|v| s.mac = Some(v)),
        reset: |s, d| s.mac = d.mac,
        list: false,
        carried: Carried::Never,
    },
    Key {
        name: "ports",
        doc: "ports of the host that lead into the guest, one a line: 8080:80, udp:127.0.0.1:53:53",
        takes: Takes::AtStart,
        render: |s| lines(&s.ports),
        parse: |s, v| parse::forward(v).and_then(|v| s.add_port(v)),
        reset: |s, d| s.ports.clone_from(&d.ports),
        list: true,
        carried: Carried::Never,
    },
    Key {
        name: "accel",
        doc: "accelerator: auto, kvm or tcg",
        takes: Takes::AtStart,
        render: |s| render_accel(s.accel).to_owned(),
        parse: |s, v| parse::accel(v).map(|v| s.accel = v),
        reset: |s, d| s.accel = d.accel,
        list: false,
        carried: Carried::Warm,
    },
    Key {
        name: "machine",
        doc: "machine type: q35 (the newest that QEMU has) or a version such as pc-q35-7.2",
        takes: Takes::AtStart,
        render: |s| s.machine.clone().unwrap_or_else(|| "q35".to_owned()),
        parse: |s, v| parse::machine(v).map(|v| s.machine = v),
        reset: |s, d| s.machine.clone_from(&d.machine),
        list: false,
        carried: Carried::Always,
    },
    Key {
        name: "hardware",
        doc: "version of the virtual hardware, 1 or 2; `newest` is also that of a memory to resume from",
        takes: Takes::AtStart,
        render: |s| s.hardware.map_or_else(|| parse::NEWEST.to_owned(), |h| h.to_string()),
        parse: |s, v| parse::hardware(v).map(|v| s.hardware = v),
        reset: |s, d| s.hardware = d.hardware,
        list: false,
        carried: Carried::Never,
    },
    Key {
        name: "kernel",
        doc: "path of a kernel on the host, instead of the image's; `none` is the image's",
        takes: Takes::AtStart,
        render: |s| render_path(s.kernel.as_deref()),
        parse: |s, v| parse::path("kernel", v).map(|v| s.kernel = v),
        reset: |s, d| s.kernel.clone_from(&d.kernel),
        list: false,
        carried: Carried::Always,
    },
    Key {
        name: "initrd",
        doc: "path of an initial RAM disk; `none` is the image's, or nothing beside a kernel of your own",
        takes: Takes::AtStart,
        render: |s| render_path(s.initrd.as_deref()),
        parse: |s, v| parse::path("initrd", v).map(|v| s.initrd = v),
        reset: |s, d| s.initrd.clone_from(&d.initrd),
        list: false,
        carried: Carried::Always,
    },
    Key {
        name: "cmdline",
        doc: "added to the image's kernel command line; `none` adds nothing",
        takes: Takes::AtStart,
        render: |s| s.cmdline.clone().unwrap_or_else(none),
        parse: |s, v| parse::cmdline(v).map(|v| s.cmdline = v),
        reset: |s, d| s.cmdline.clone_from(&d.cmdline),
        list: false,
        carried: Carried::Always,
    },
    Key {
        name: "firmware",
        doc: "path of a firmware on the host, such as an OVMF.fd; `none` is QEMU's BIOS",
        takes: Takes::AtStart,
        render: |s| render_path(s.firmware.as_deref()),
        parse: |s, v| parse::path("firmware", v).map(|v| s.firmware = v),
        reset: |s, d| s.firmware.clone_from(&d.firmware),
        list: false,
        carried: Carried::Always,
    },
    Key {
        name: "cdrom",
        doc: "path of an ISO image on the host; `none` is an empty drive",
        takes: Takes::AtStart,
        render: |s| render_path(s.cdrom.as_deref()),
        parse: |s, v| parse::path("cdrom", v).map(|v| s.cdrom = v),
        reset: |s, d| s.cdrom.clone_from(&d.cdrom),
        list: false,
        carried: Carried::Warm,
    },
    Key {
        name: "ephemeral",
        doc: "1: what the guest writes to its disk is gone when the VM ends",
        takes: Takes::AtStart,
        render: |s| switch(s.ephemeral),
        parse: |s, v| parse::switch("ephemeral", v).map(|v| s.ephemeral = v),
        reset: |s, d| s.ephemeral = d.ephemeral,
        list: false,
        carried: Carried::Never,
    },
    Key {
        name: "ssh_user",
        doc: "login name for exec and files in the guest",
        takes: Takes::AtOnce,
        render: |s| s.ssh_user.clone(),
        parse: |s, v| parse::user(v).map(|v| s.ssh_user = v),
        reset: |s, d| s.ssh_user.clone_from(&d.ssh_user),
        list: false,
        carried: Carried::Always,
    },
    Key {
        name: "ssh_key",
        doc: "further public keys that open the guest, one a line",
        takes: Takes::AtStart,
        render: |s| s.ssh_key.join("\n"),
        parse: |s, v| parse::ssh_key(v).and_then(|v| add_key(s, v)),
        reset: |s, d| s.ssh_key.clone_from(&d.ssh_key),
        list: true,
        carried: Carried::Never,
    },
    Key {
        name: "overcommit",
        doc: "1: started even if the host may not have the memory for it",
        takes: Takes::AtOnce,
        render: |s| switch(s.overcommit),
        parse: |s, v| parse::switch("overcommit", v).map(|v| s.overcommit = v),
        reset: |s, d| s.overcommit = d.overcommit,
        list: false,
        carried: Carried::Never,
    },
    Key {
        name: "autostart",
        doc: "1: started when the tree is mounted",
        takes: Takes::AtOnce,
        render: |s| switch(s.autostart),
        parse: |s, v| parse::switch("autostart", v).map(|v| s.autostart = v),
        reset: |s, d| s.autostart = d.autostart,
        list: false,
        carried: Carried::Never,
    },
    Key {
        name: "protect",
        doc: "1 forbids removing the VM",
        takes: Takes::AtOnce,
        render: |s| switch(s.protect),
        parse: |s, v| parse::switch("protect", v).map(|v| s.protect = v),
        reset: |s, d| s.protect = d.protect,
        list: false,
        carried: Carried::Never,
    },
    Key {
        name: "qemu_args",
        doc: "further arguments for QEMU, one a line",
        takes: Takes::AtStart,
        render: |s| s.qemu_args.join("\n"),
        parse: |s, v| parse::qemu_arg(v).map(|v| s.qemu_args.push(v)),
        reset: |s, d| s.qemu_args.clone_from(&d.qemu_args),
        list: true,
        carried: Carried::Warm,
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

fn none() -> String {
    "none".to_owned()
}

fn render_path(path: Option<&Path>) -> String {
    path.map_or_else(none, |p| p.display().to_string())
}

fn switch(value: bool) -> String {
    u8::from(value).to_string()
}

fn lines(forwards: &[Forward]) -> String {
    forwards.iter().map(Forward::to_string).collect::<Vec<_>>().join("\n")
}
