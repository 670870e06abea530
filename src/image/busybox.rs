//! What busybox can do, read from its program: it may be one of another architecture than the
//! host's, and nothing that is fetched runs on the host.

use super::source::{BuildError, Result};

/// How its list of applets begins: sorted names, each with a zero behind it, an empty one at the end.
const BEGIN: &[u8] = b"[\0[[\0";
/// Those that belong to administrators; the others go to `usr/bin`.
const ADMINISTRATORS: &[&str] = &[
    "acpid",
    "adjtimex",
    "arp",
    "arping",
    "blockdev",
    "brctl",
    "chroot",
    "crond",
    "depmod",
    "devmem",
    "fdisk",
    "findfs",
    "freeramdisk",
    "fsfreeze",
    "fstrim",
    "getty",
    "halt",
    "httpd",
    "hwclock",
    "i2cdetect",
    "i2cdump",
    "i2cget",
    "i2cset",
    "i2ctransfer",
    "ifconfig",
    "ifdown",
    "ifup",
    "init",
    "insmod",
    "ip",
    "klogd",
    "loadfont",
    "loadkmap",
    "logread",
    "losetup",
    "lsmod",
    "mdev",
    "mim",
    "mkdosfs",
    "mke2fs",
    "mkswap",
    "modinfo",
    "modprobe",
    "nameif",
    "nbd-client",
    "nologin",
    "partprobe",
    "pivot_root",
    "poweroff",
    "rdate",
    "reboot",
    "rmmod",
    "route",
    "run-init",
    "start-stop-daemon",
    "sulogin",
    "swapoff",
    "swapon",
    "switch_root",
    "sysctl",
    "syslogd",
    "tc",
    "telnetd",
    "tunctl",
    "ubirename",
    "udhcpc",
    "udhcpd",
    "uevent",
    "vconfig",
    "watchdog",
];

/// Returns the paths of its applets.
pub(super) fn applets(program: &[u8]) -> Result<Vec<String>> {
    let at = program.windows(BEGIN.len()).position(|window| window == BEGIN);
    let at = at.ok_or_else(|| BuildError::malformed("busybox", "it holds no list of applets"))?;
    let names = program[at..].split(|byte| *byte == 0).take_while(|name| !name.is_empty());
    Ok(names.filter_map(|name| std::str::from_utf8(name).ok()).map(path).collect())
}

fn path(applet: &str) -> String {
    let dir = if ADMINISTRATORS.contains(&applet) { "sbin" } else { "bin" };
    format!("usr/{dir}/{applet}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applets_are_read_from_the_program_and_have_their_places() {
        let program = b"\x7fELF\0[\0[[\0cat\0ip\0zcat\0\0/var/log/wtmp\0";
        let expected = ["usr/bin/[", "usr/bin/[[", "usr/bin/cat", "usr/sbin/ip", "usr/bin/zcat"];
        assert_eq!(applets(program).unwrap(), expected);
        assert!(applets(b"\x7fELF").is_err());
    }
}
