//! What a VM should be: its settings, how each is parsed, printed and checked.
//!
//! One row of [`KEYS`] is one file of `config/`. No I/O here.

use serde::{Deserialize, Serialize};

use super::WriteMode;

/// Smallest memory that a guest is given, in bytes.
pub const MIN_MEMORY: u64 = 32 << 20;
/// Largest memory that can be asked for, in bytes.
pub const MAX_MEMORY: u64 = 4 << 40;
/// Smallest disk, in bytes.
pub const MIN_DISK: u64 = 16 << 20;
/// Largest disk, in bytes.
pub const MAX_DISK: u64 = 64 << 40;
/// Most processors.
pub const MAX_CPUS: u32 = 255;

/// The accelerator a VM asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// KVM where it has been shown to work, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Translation.
    Tcg,
}

/// A VM's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmSpec {
    /// The image that the disk is made from.
    pub image: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory in bytes.
    pub memory: u64,
    /// The disk's virtual size in bytes; the image's own size if that is larger.
    pub disk: u64,
    /// The guest's host name; `None` is the VM's name.
    pub hostname: Option<String>,
    /// How to run.
    pub accel: AccelChoice,
    /// The login name for SSH.
    pub ssh_user: String,
    /// The VM cannot be removed.
    pub protect: bool,
    /// Further arguments for QEMU, one word each.
    pub qemu_args: Vec<String>,
}

impl Default for VmSpec {
    fn default() -> Self {
        Self {
            image: "tiny".to_owned(),
            cpus: 1,
            memory: 256 << 20,
            disk: 2 << 30,
            hostname: None,
            accel: AccelChoice::Auto,
            ssh_user: "root".to_owned(),
            protect: false,
            qemu_args: Vec::new(),
        }
    }
}

/// Why a value was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// It is not of the right form.
    #[error("{key}: {value:?} is not {expected}")]
    Malformed {
        /// The setting.
        key: &'static str,
        /// What was written.
        value: String,
        /// What would be right, with an example.
        expected: &'static str,
    },
    /// It is of the right form and out of range.
    #[error("{key}: {value} is out of range ({range})")]
    OutOfRange {
        /// The setting.
        key: &'static str,
        /// What was written.
        value: String,
        /// The range.
        range: &'static str,
    },
}

/// One setting: a file of `config/`.
#[derive(Debug)]
pub struct Key {
    /// The file's name.
    pub name: &'static str,
    /// One line for `ls`-time documentation.
    pub doc: &'static str,
    /// Prints the canonical form, without a newline.
    pub render: fn(&VmSpec) -> String,
    /// Parses one line into the settings.
    pub parse: fn(&mut VmSpec, &str) -> Result<(), SpecError>,
    /// Puts this setting of the second argument (the defaults) into the first.
    pub reset: fn(&mut VmSpec, &VmSpec),
    /// `>` replaces the list and `>>` adds to it.
    pub list: bool,
}

impl Key {
    /// Puts written text into `spec`: `default` resets, an empty text changes nothing, a list
    /// takes one element a line.
    ///
    /// # Errors
    /// [`SpecError`]; `spec` may then be half changed and must be thrown away.
    pub fn assign(&self, spec: &mut VmSpec, text: &str, mode: WriteMode) -> Result<(), SpecError> {
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        match lines.as_slice() {
            [] => Ok(()),
            ["default"] => {
                (self.reset)(spec, &VmSpec::default());
                Ok(())
            }
            [one] if !self.list => (self.parse)(spec, one),
            _ if !self.list => Err(malformed(self.name, text.trim(), "a single line")),
            many => {
                if mode == WriteMode::Replace {
                    (self.reset)(spec, &VmSpec::default());
                }
                many.iter().try_for_each(|line| (self.parse)(spec, line))
            }
        }
    }
}

/// Every setting.
pub static KEYS: &[Key] = &[
    Key {
        name: "image",
        doc: "image that the disk is made from at the first start: a name in .images",
        render: |s| s.image.clone(),
        parse: |s, v| image_name(v).map(|v| s.image = v),
        reset: |s, d| s.image.clone_from(&d.image),
        list: false,
    },
    Key {
        name: "cpus",
        doc: "virtual processors, 1 to 255",
        render: |s| s.cpus.to_string(),
        parse: |s, v| cpus(v).map(|v| s.cpus = v),
        reset: |s, d| s.cpus = d.cpus,
        list: false,
    },
    Key {
        name: "memory",
        doc: "guest memory: a number with K, M, G or T (powers of 1024)",
        render: |s| render_size(s.memory),
        parse: |s, v| sized("memory", v, MIN_MEMORY, MAX_MEMORY, "32M to 4T").map(|v| s.memory = v),
        reset: |s, d| s.memory = d.memory,
        list: false,
    },
    Key {
        name: "disk",
        doc: "virtual size of the disk: a number with K, M, G or T (powers of 1024)",
        render: |s| render_size(s.disk),
        parse: |s, v| sized("disk", v, MIN_DISK, MAX_DISK, "16M to 64T").map(|v| s.disk = v),
        reset: |s, d| s.disk = d.disk,
        list: false,
    },
    Key {
        name: "hostname",
        doc: "the guest's host name; `default` is the VM's name",
        render: |s| s.hostname.clone().unwrap_or_else(|| "default".to_owned()),
        parse: |s, v| hostname(v).map(|v| s.hostname = Some(v)),
        reset: |s, d| s.hostname.clone_from(&d.hostname),
        list: false,
    },
    Key {
        name: "accel",
        doc: "accelerator: auto, kvm or tcg",
        render: |s| render_accel(s.accel).to_owned(),
        parse: |s, v| accel(v).map(|v| s.accel = v),
        reset: |s, d| s.accel = d.accel,
        list: false,
    },
    Key {
        name: "ssh_user",
        doc: "login name for exec and files in the guest",
        render: |s| s.ssh_user.clone(),
        parse: |s, v| user(v).map(|v| s.ssh_user = v),
        reset: |s, d| s.ssh_user.clone_from(&d.ssh_user),
        list: false,
    },
    Key {
        name: "protect",
        doc: "1 forbids removing the VM",
        render: |s| u8::from(s.protect).to_string(),
        parse: |s, v| switch("protect", v).map(|v| s.protect = v),
        reset: |s, d| s.protect = d.protect,
        list: false,
    },
    Key {
        name: "qemu_args",
        doc: "further arguments for QEMU, one a line",
        render: |s| s.qemu_args.join("\n"),
        parse: |s, v| qemu_arg(v).map(|v| s.qemu_args.push(v)),
        reset: |s, d| s.qemu_args.clone_from(&d.qemu_args),
        list: true,
    },
];

/// Says whether a string is a VM's name, which is also its host name: `[a-z0-9][a-z0-9-]{0,31}`.
pub fn is_vm_name(name: &str) -> bool {
    let rest = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    name.len() <= 32 && !name.starts_with('-') && !name.is_empty() && name.bytes().all(rest)
}

/// Says whether a string names an image, a tag or a job: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
pub fn is_object_name(name: &str) -> bool {
    let rest = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    name.len() <= 64
        && name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && name.bytes().all(rest)
}

/// Reads a size: a whole number of bytes, or one with `K`, `M`, `G` or `T` (powers of 1024, also
/// `k`, `KiB` and so on).
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// Prints a size with the largest unit that divides it: `2048M` is `2G`.
pub fn render_size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    units
        .iter()
        .find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift))
        .map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// Prints an accelerator's word.
pub fn render_accel(accel: AccelChoice) -> &'static str {
    match accel {
        AccelChoice::Auto => "auto",
        AccelChoice::Kvm => "kvm",
        AccelChoice::Tcg => "tcg",
    }
}

fn malformed(key: &'static str, value: &str, expected: &'static str) -> SpecError {
    SpecError::Malformed { key, value: value.to_owned(), expected }
}

fn image_name(value: &str) -> Result<String, SpecError> {
    let expected = "the name of an image, such as tiny";
    is_object_name(value)
        .then(|| value.to_owned())
        .ok_or_else(|| malformed("image", value, expected))
}

fn cpus(value: &str) -> Result<u32, SpecError> {
    let number: u64 = value.parse().map_err(|_| malformed("cpus", value, "a number such as 2"))?;
    match u32::try_from(number) {
        Ok(n) if (1..=MAX_CPUS).contains(&n) => Ok(n),
        _ => Err(SpecError::OutOfRange { key: "cpus", value: value.to_owned(), range: "1 to 255" }),
    }
}

fn sized(
    key: &'static str,
    value: &str,
    min: u64,
    max: u64,
    range: &'static str,
) -> Result<u64, SpecError> {
    let bytes = parse_size(value).ok_or_else(|| malformed(key, value, "a size such as 512M"))?;
    if (min..=max).contains(&bytes) {
        // QEMU wants whole sectors and pages; a byte more or less is nobody's wish.
        Ok(bytes.next_multiple_of(1 << 20))
    } else {
        Err(SpecError::OutOfRange { key, value: value.to_owned(), range })
    }
}

fn hostname(value: &str) -> Result<String, SpecError> {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    (value.len() <= 253 && value.split('.').all(label))
        .then(|| value.to_owned())
        .ok_or_else(|| malformed("hostname", value, "a host name such as web-1.example.org"))
}

fn accel(value: &str) -> Result<AccelChoice, SpecError> {
    [AccelChoice::Auto, AccelChoice::Kvm, AccelChoice::Tcg]
        .into_iter()
        .find(|a| render_accel(*a) == value)
        .ok_or_else(|| malformed("accel", value, "auto, kvm or tcg"))
}

fn user(value: &str) -> Result<String, SpecError> {
    let good = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    (!value.is_empty() && value.len() <= 32 && !value.starts_with('-') && value.bytes().all(good))
        .then(|| value.to_owned())
        .ok_or_else(|| malformed("ssh_user", value, "a login name such as root"))
}

fn switch(key: &'static str, value: &str) -> Result<bool, SpecError> {
    match value {
        "1" | "yes" | "on" | "true" => Ok(true),
        "0" | "no" | "off" | "false" => Ok(false),
        _ => Err(malformed(key, value, "0 or 1")),
    }
}

fn qemu_arg(value: &str) -> Result<String, SpecError> {
    let expected = "one argument of QEMU without control characters";
    (!value.chars().any(char::is_control))
        .then(|| value.to_owned())
        .ok_or_else(|| malformed("qemu_args", value, expected))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_read_back_in_canonical_form() {
        let table =
            [("2048M", "2G"), ("2g", "2G"), ("1536MiB", "1536M"), ("1T", "1T"), ("512", "512")];
        for (written, read) in table {
            assert_eq!(render_size(parse_size(written).unwrap()), read, "{written}");
        }
        for bad in ["", "G", "-1G", "1.5G", "1 G", "99999999999T", "1X"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_follow_the_grammar() {
        for good in ["vm1", "a", "0-x", &"a".repeat(32)] {
            assert!(is_vm_name(good), "{good}");
        }
        for bad in ["", "-a", "A", "a.b", "a_b", ".git", "a/b", "ä", &"a".repeat(33)] {
            assert!(!is_vm_name(bad), "{bad}");
        }
        assert!(is_object_name("Alpine-3.22_x") && !is_object_name(".x") && !is_object_name(""));
    }

    #[test]
    fn every_key_writes_back_what_it_prints() {
        let mut spec = VmSpec { hostname: Some("web".into()), ..VmSpec::default() };
        spec.qemu_args = vec!["-device".into(), "virtio-rng-pci".into()];
        for key in KEYS {
            let mut copy = spec.clone();
            (key.reset)(&mut copy, &VmSpec::default());
            let text = (key.render)(&spec);
            text.lines().for_each(|l| (key.parse)(&mut copy, l).unwrap());
            assert_eq!(copy, spec, "{}", key.name);
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_a_parser_panic(value in ".{0,80}") {
            for key in KEYS {
                let _verdict = (key.parse)(&mut VmSpec::default(), &value);
            }
        }

        #[test]
        fn a_rendered_size_parses_to_itself(bytes in 0u64..(1 << 50)) {
            prop_assert_eq!(parse_size(&render_size(bytes)), Some(bytes));
        }
    }
}
