//! Reading single values: what each setting accepts, and the sentence for what it does not.
//!
//! Pure functions from a trimmed line to a value.

use std::path::PathBuf;
use std::time::Duration;

use super::container::ContainerProcess;
use super::net::{Destination, Forward, Mac, Network};
use super::{
    AccelChoice, Firmware, MAX_CPUS, SpecError, is_object_name, is_vm_name, parse_size,
    render_accel, span,
};
use crate::arch::Arch;
use crate::vm::hardware::Hardware;

/// The longest addition to a kernel's command line: the kernel takes 2047 bytes in all.
const LONGEST_CMDLINE: usize = 1024;
/// The longest path that the kernel takes.
const LONGEST_PATH: usize = 4095;
/// The word for the newest version of the hardware.
pub(super) const NEWEST: &str = "newest";
/// What a public key may be, as sshd names it.
const KEY_TYPES: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// Reads the name of a net.
pub(super) fn net_name(text: &str) -> Result<String, SpecError> {
    let expected = "a net: at most 32 lower-case letters, digits and dashes; `ls .nets` lists them";
    is_vm_name(text).then(|| text.to_owned()).ok_or_else(|| malformed("nets", text, expected))
}

pub(super) fn malformed(key: &'static str, value: &str, expected: &'static str) -> SpecError {
    SpecError::Malformed { key, value: value.to_owned(), expected }
}

pub(super) fn out_of_range(key: &'static str, value: &str, range: &'static str) -> SpecError {
    SpecError::OutOfRange { key, value: value.to_owned(), range }
}

/// Takes a value that fits as it is.
fn text(
    key: &'static str,
    value: &str,
    fits: bool,
    expected: &'static str,
) -> Result<String, SpecError> {
    fits.then(|| value.to_owned()).ok_or_else(|| malformed(key, value, expected))
}

pub(super) fn image_name(value: &str) -> Result<String, SpecError> {
    text("image", value, is_object_name(value), "the name of an image, such as tiny")
}

pub(super) fn container(value: &str) -> Result<Option<ContainerProcess>, SpecError> {
    let expected = r#"`none`, or JSON such as {"Entrypoint":["/app"],"Env":["K=V"]}"#;
    if value == "none" {
        return Ok(None);
    }
    let process = ContainerProcess::parse(value);
    process.map(Some).ok_or_else(|| malformed("container", value, expected))
}

pub(super) fn cpus(value: &str) -> Result<u32, SpecError> {
    let number: u64 = value.parse().map_err(|_| malformed("cpus", value, "a number such as 2"))?;
    match u32::try_from(number) {
        Ok(n) if (1..=MAX_CPUS).contains(&n) => Ok(n),
        _ => Err(out_of_range("cpus", value, "1 to 255")),
    }
}

pub(super) fn sized(
    key: &'static str,
    value: &str,
    min: u64,
    max: u64,
    range: &'static str,
) -> Result<u64, SpecError> {
    let bytes = parse_size(value).ok_or_else(|| malformed(key, value, "a size such as 512M"))?;
    if (min..=max).contains(&bytes) {
        // QEMU wants whole sectors and pages; a byte more or less is not worth an error.
        Ok(bytes.next_multiple_of(1 << 20))
    } else {
        Err(out_of_range(key, value, range))
    }
}

pub(super) fn hostname(value: &str) -> Result<String, SpecError> {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    let fits = value.len() <= 253 && value.split('.').all(label);
    text("hostname", value, fits, "a host name such as web-1.example.org")
}

pub(super) fn mac(value: &str) -> Result<Mac, SpecError> {
    let expected = "a unicast address such as 52:54:00:12:34:56";
    value.parse().map_err(|_| malformed("mac", value, expected))
}

/// Reads a forward, as `ports` and the verb `port` take it.
pub fn forward(value: &str) -> Result<Forward, SpecError> {
    let expected = "[tcp:|udp:][ADDRESS:]HOST_PORT:GUEST_PORT, such as 8080:80; addresses are IPv4";
    value.parse().map_err(|_| malformed("ports", value, expected))
}

pub(super) fn accel(value: &str) -> Result<AccelChoice, SpecError> {
    [AccelChoice::Auto, AccelChoice::Kvm, AccelChoice::Tcg]
        .into_iter()
        .find(|a| render_accel(*a) == value)
        .ok_or_else(|| malformed("accel", value, "auto, kvm or tcg"))
}

pub(super) fn net(value: &str) -> Result<Network, SpecError> {
    let named = Network::ALL.into_iter().find(|net| net.word() == value);
    named.ok_or_else(|| malformed("net", value, "user, offline or allow"))
}

pub(super) fn destination(value: &str) -> Result<Destination, SpecError> {
    let expected = "HOST or HOST:PORT: a name, *. before a name, or an address";
    value.parse().map_err(|_| malformed("allow", value, expected))
}

pub(super) fn user(value: &str) -> Result<String, SpecError> {
    let good = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    let fits = (1..=32).contains(&value.len()) && !value.starts_with('-');
    text("ssh_user", value, fits && value.bytes().all(good), "a login name such as root")
}

/// Reads a line of an OpenSSH `.pub` file: type, key, comment. Options are not taken: they would
/// be a language of their own.
pub(super) fn ssh_key(value: &str) -> Result<String, SpecError> {
    let mut words = value.split_ascii_whitespace();
    let known = words.next().is_some_and(|w| KEY_TYPES.contains(&w));
    let body = |w: &str| {
        // The blob starts with the length of the type's name, which is below 65536.
        w.starts_with("AAAA")
            && w.len().is_multiple_of(4)
            && w.trim_end_matches('=')
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"+/".contains(&c))
    };
    let fits = known && words.next().is_some_and(body) && !has_control(value);
    text("ssh_key", value, fits, "a line of a .pub file: ssh-ed25519 AAAA… me")
}

pub(super) fn path(key: &'static str, value: &str) -> Result<Option<PathBuf>, SpecError> {
    match value {
        "none" => Ok(None),
        _ if value.starts_with('/') && value.len() <= LONGEST_PATH && !has_control(value) => {
            Ok(Some(value.into()))
        }
        _ => Err(malformed(key, value, "the absolute path of a file on the host, or none")),
    }
}

pub(super) fn firmware(value: &str) -> Result<Option<Firmware>, SpecError> {
    match (Firmware::from(value.to_owned()), path("firmware", value)) {
        (Firmware::Uefi, _) => Ok(Some(Firmware::Uefi)),
        (Firmware::File(_), Ok(path)) => Ok(path.map(Firmware::File)),
        (Firmware::File(_), Err(_)) => Err(malformed(
            "firmware",
            value,
            "uefi, the absolute path of a file on the host, or none",
        )),
    }
}

pub(super) fn cmdline(value: &str) -> Result<Option<String>, SpecError> {
    match value {
        "none" => Ok(None),
        _ if has_control(value) => {
            Err(malformed("cmdline", value, "a line such as loglevel=7, or none"))
        }
        _ if value.len() > LONGEST_CMDLINE => {
            let length = format!("a line of {} bytes", value.len());
            Err(out_of_range("cmdline", &length, "at most 1024 bytes"))
        }
        _ => Ok(Some(value.to_owned())),
    }
}

pub(super) fn arch(value: &str) -> Result<Arch, SpecError> {
    value.parse().map_err(|()| malformed("arch", value, "x86_64 or aarch64"))
}

/// Reads `q35` or `virt` (the newest that QEMU has for the architecture), `q35-7.2`, `pc-q35-7.2` or
/// `virt-7.2`. Which architecture it fits shows at the start: settings are written in any order.
pub(super) fn machine(value: &str) -> Result<Option<String>, SpecError> {
    let platforms = Arch::ALL.map(Arch::platform);
    if platforms.iter().any(|platform| value == platform.machine) {
        return Ok(None);
    }
    let number = |n: &str| (1..=3).contains(&n.len()) && n.bytes().all(|c| c.is_ascii_digit());
    let good = |v: &&str| (2..=3).contains(&v.split('.').count()) && v.split('.').all(number);
    let versioned = platforms.iter().find_map(|platform| {
        let short = || value.strip_prefix(platform.machine)?.strip_prefix('-');
        let version = value.strip_prefix(platform.machine_prefix).or_else(short).filter(good)?;
        Some(format!("{}{version}", platform.machine_prefix))
    });
    let expected = "q35, or a version of it such as pc-q35-7.2; for aarch64 virt, or virt-7.2";
    versioned.map(Some).ok_or_else(|| malformed("machine", value, expected))
}

pub(super) fn hardware(value: &str) -> Result<Option<Hardware>, SpecError> {
    if value == NEWEST {
        return Ok(None);
    }
    let number = value.parse().map_err(|_| malformed("hardware", value, "newest, or a number"))?;
    let found = Hardware::numbered(number);
    found.map(Some).ok_or_else(|| out_of_range("hardware", value, "1 to 3"))
}

pub(super) fn switch(key: &'static str, value: &str) -> Result<bool, SpecError> {
    match value {
        "1" | "yes" | "on" | "true" => Ok(true),
        "0" | "no" | "off" | "false" => Ok(false),
        _ => Err(malformed(key, value, "0 or 1")),
    }
}

pub(super) fn span(key: &'static str, value: &str) -> Result<Option<Duration>, SpecError> {
    if value == span::NEVER {
        return Ok(None);
    }
    let expected = "a time such as 30s, 10m, 2h or 7d, or never";
    let time = span::parse(value).ok_or_else(|| malformed(key, value, expected))?;
    match (span::SHORTEST..=span::LONGEST).contains(&time) {
        true => Ok(Some(time)),
        false => Err(out_of_range(key, value, "1s to 3650d")),
    }
}

pub(super) fn qemu_arg(value: &str) -> Result<String, SpecError> {
    let expected = "one argument of QEMU without control characters";
    text("qemu_args", value, !has_control(value), expected)
}

fn has_control(value: &str) -> bool {
    value.chars().any(char::is_control)
}
