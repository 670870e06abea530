//! `builtin:tiny` for real: built from the distribution's packages, and booted by a bare QEMU.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "clippy knows tests, not their helpers"
)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aqfs::image::ImageStore;
use aqfs::store::failure_log::FailureLog;
use aqfs::store::layout::Layout;
use aqfs::vm::backend::{BootImage, Images};

use crate::common::free_port;

/// One build at a time: they share a cache of packages, as only one daemon has a store.
static BUILDING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A store of its own, with the packages that earlier runs have fetched.
struct Store(tempfile::TempDir);

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = std::env::var_os("AQFS_TEST_CACHE").map_or_else(
            || PathBuf::from(format!("/var/tmp/aqfs-test-cache-{}/packages", user())),
            PathBuf::from,
        );
        fs::create_dir_all(&cache).unwrap();
        std::os::unix::fs::symlink(cache, dir.path().join("cache")).unwrap();
        Self(dir)
    }

    async fn tiny(&self) -> BootImage {
        let _alone = BUILDING.lock().await;
        let store = ImageStore::open(Layout::new(self.0.path()), &FailureLog::default()).unwrap();
        let since = Instant::now();
        let image = store.ensure("tiny").await.unwrap();
        let info = store.info("tiny").unwrap();
        println!("built in {:?}: {info:?}", since.elapsed());
        image
    }
}

fn user() -> u32 {
    rustix::process::getuid().as_raw()
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// A guest in a bare QEMU, its keys beside it.
struct Guest {
    qemu: Child,
    qmp: BufReader<UnixStream>,
    port: u16,
    dir: PathBuf,
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.qemu.kill());
        drop(self.qemu.wait());
    }
}

fn make_seed(dir: &Path) {
    for key in ["client", "host"] {
        let path = dir.join(key);
        let path = path.to_str().unwrap();
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", path]);
    }
    let seed = dir.join("seed");
    fs::create_dir(&seed).unwrap();
    fs::write(seed.join("hostname"), "vm1\n").unwrap();
    fs::copy(dir.join("client.pub"), seed.join("authorized_keys")).unwrap();
    fs::copy(dir.join("host"), seed.join("ssh_host_ed25519_key")).unwrap();
    fs::write(seed.join("dropbear_ed25519_host_key"), dropbear_key(&dir.join("host"))).unwrap();
    let mut tar = tar::Builder::new(File::create(dir.join("seed.tar")).unwrap());
    tar.append_dir_all(".", &seed).unwrap();
    tar.finish().unwrap();
}

/// Writes an OpenSSH key as dropbear has it: the type, then seed and public key in one string.
fn dropbear_key(path: &Path) -> Vec<u8> {
    let text = fs::read_to_string(path).unwrap();
    let base64: String = text.lines().filter(|l| !l.starts_with('-')).collect();
    let mut bytes = Vec::new();
    let mut bits = 0u32;
    for (n, c) in base64.trim_end_matches('=').bytes().enumerate() {
        let value = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
            .iter()
            .position(|b| *b == c)
            .unwrap();
        bits = (bits << 6) | u32::try_from(value).unwrap();
        if n % 4 != 0 {
            bytes.push(u8::try_from((bits >> (6 - 2 * (n % 4))) & 0xff).unwrap());
        }
    }
    // The private part holds the public key, then 64 bytes: seed and public key again.
    let mark = [0, 0, 0, 64];
    let at = bytes.windows(4).rposition(|w| w == mark).unwrap();
    let mut key = b"\0\0\0\x0bssh-ed25519\0\0\0\x40".to_vec();
    key.extend(&bytes[at + 4..at + 68]);
    key
}

impl Guest {
    fn boot(image: &BootImage, dir: &Path, seeded: bool) -> Self {
        let disk = dir.join("disk.qcow2");
        if !disk.exists() {
            let base = image.disk.to_str().unwrap();
            let disk = disk.to_str().unwrap();
            run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk, "2G"]);
        }
        let port = free_port();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.current_dir(dir)
            .args("-M q35 -accel tcg -cpu max -m 256 -smp 1 -nodefaults -no-user-config".split(' '))
            .args("-display none -no-reboot -device virtio-blk-pci,drive=d0".split(' '))
            .args(["-blockdev", r#"{"driver":"qcow2","node-name":"d0","file":{"driver":"file","filename":"disk.qcow2"}}"#])
            .args("-device virtio-rng-pci -device virtio-balloon-pci,free-page-reporting=on".split(' '))
            .args("-device vmgenid,guid=auto -device virtio-net-pci,netdev=n0,romfile=".split(' '))
            .args(["-netdev", &format!("user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:22")])
            .args("-chardev stdio,id=s0,signal=off,logfile=console.log -serial chardev:s0 -qmp unix:qmp,server=on,wait=on"
.split(' '))
            .arg("-kernel")
            .arg(image.kernel.as_ref().unwrap())
            .arg("-initrd")
            .arg(image.initrd.as_ref().unwrap())
            .args(["-append", &image.cmdline]);
        if seeded {
            qemu.args("-device virtio-serial-pci -chardev null,id=c0".split(' '))
                .args("-device virtserialport,chardev=c0,id=ready,name=org.aqfs.ready".split(' '))
                .args("-fw_cfg name=opt/org.aqfs/seed,file=seed.tar".split(' '));
        }
        let since = Instant::now();
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped());
        let qemu = qemu.spawn().unwrap();
        let socket = loop {
            // QEMU makes the socket before it does anything that takes time.
            match UnixStream::connect(dir.join("qmp")) {
                Ok(socket) => break socket,
                Err(e) => assert!(since.elapsed() < Duration::from_secs(10), "{e}"),
            }
            std::thread::yield_now();
        };
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut guest = Self { qemu, qmp: BufReader::new(socket), port, dir: dir.to_owned() };
        guest.wait_for("QMP");
        guest.command("qmp_capabilities");
        if seeded {
            guest.wait_for("VSERPORT_CHANGE");
            println!("announced after {:?}", since.elapsed());
        }
        guest
    }

    fn command(&mut self, command: &str) {
        let line = format!("{{\"execute\":\"{command}\"}}\n");
        self.qmp.get_mut().write_all(line.as_bytes()).unwrap();
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            let n = self.qmp.read_line(&mut line).unwrap_or(0);
            assert!(n > 0, "no {word}; console: {}", self.console());
        }
    }

    /// Reads the serial line until it says `text`; a guest that died ends it.
    fn wait_for_console(&mut self, text: &str) {
        let mut seen = Vec::new();
        let mut byte = [0];
        let stdout = self.qemu.stdout.as_mut().unwrap();
        while !seen.ends_with(text.as_bytes()) {
            let n = stdout.read(&mut byte).unwrap();
            assert!(n > 0, "no {text}: {}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
        }
    }

    fn console(&self) -> String {
        let mut bytes = Vec::new();
        let mut file = File::open(self.dir.join("console.log")).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Runs a command over SSH.
    fn ssh(&self, command: &str) -> String {
        let mut args = self.ssh_options();
        args.extend(["root@127.0.0.1".to_owned(), command.to_owned()]);
        run("ssh", &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Copies a file of this directory over SFTP.
    fn copy_in(&self, name: &str, to: &str) {
        let mut args = self.ssh_options();
        let from = self.dir.join(name).to_str().unwrap().to_owned();
        args.extend([from, format!("root@127.0.0.1:{to}")]);
        run("scp", &args.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Accepts the host key that we made and no other.
    fn ssh_options(&self) -> Vec<String> {
        let host = fs::read_to_string(self.dir.join("host.pub")).unwrap();
        let known = self.dir.join("known_hosts");
        fs::write(&known, format!("[127.0.0.1]:{} {host}", self.port)).unwrap();
        let mut args = vec!["-F".to_owned(), "none".to_owned(), "-i".to_owned()];
        args.push(self.dir.join("client").to_str().unwrap().to_owned());
        for option in [
            format!("UserKnownHostsFile={}", known.display()),
            format!("Port={}", self.port),
            "StrictHostKeyChecking=yes".to_owned(),
            "LogLevel=ERROR".to_owned(),
            "ConnectTimeout=20".to_owned(),
            "BatchMode=yes".to_owned(),
        ] {
            args.extend(["-o".to_owned(), option]);
        }
        args
    }

    /// Presses the power button and waits until QEMU has ended.
    fn power_down(mut self) {
        let since = Instant::now();
        self.command("system_powerdown");
        self.wait_for("SHUTDOWN");
        assert!(self.qemu.wait().unwrap().success());
        println!("powered down after {:?}", since.elapsed());
    }
}

fn check_disk(dir: &Path) {
    let (qcow2, raw) = (dir.join("disk.qcow2"), dir.join("flat.raw"));
    let (qcow2, raw) = (qcow2.to_str().unwrap(), raw.to_str().unwrap());
    run("qemu-img", &["convert", "-O", "raw", qcow2, raw]);
    run("/sbin/e2fsck", &["-fn", raw]);
    let header = run("/sbin/dumpe2fs", &["-h", raw]);
    assert!(header.contains("state:         clean"), "{header}");
    assert!(!header.contains("needs_recovery"), "{header}");
}

#[tokio::test]
async fn the_same_packages_give_the_same_bytes() {
    let (first, second) = (Store::new(), Store::new());
    let one = first.tiny().await;
    let two = second.tiny().await;
    assert_eq!(one.digest, two.digest);
    let rest: u64 = fs::read_dir(one.disk.parent().unwrap())
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap())
        .inspect(|m| assert!(m.permissions().readonly()))
        .map(|m| m.len())
        .sum();
    assert!(rest < 200 << 20, "{rest}");
}

#[tokio::test]
async fn a_guest_keeps_its_disk_its_keys_and_its_name() {
    let store = Store::new();
    let image = store.tiny().await;
    let dir = tempfile::tempdir().unwrap();
    make_seed(dir.path());

    let mut guest = Guest::boot(&image, dir.path(), true);
    assert_eq!(guest.ssh("hostname"), "vm1\n");
    assert_eq!(guest.ssh("stat -c %u:%g /bin/busybox /root"), "0:0\n0:0\n");
    let size = guest.ssh("df -m / | awk 'NR == 2 { print $2 }'");
    assert!(size.trim().parse::<u32>().unwrap() > 1800, "{size}");
    guest.copy_in("client.pub", "/root/copied");
    assert!(guest.ssh("cat /root/copied").starts_with("ssh-ed25519"));
    guest.ssh("echo '# mine' >>/root/.ssh/authorized_keys; echo kept >/root/file");
    // Linux 6.10 and later have vmgenid among the platform's drivers, earlier ones among ACPI's.
    let devices = guest.ssh("cd /sys/bus && ls virtio/drivers acpi/drivers platform/drivers");
    for driver in ["virtio_balloon", "virtio_rng", "vmgenid"] {
        assert!(devices.contains(driver), "{devices}");
    }
    guest.wait_for_console("vm1 login: root");
    guest.power_down();
    check_disk(dir.path());

    let mut guest = Guest::boot(&image, dir.path(), true);
    assert_eq!(guest.ssh("cat /root/file"), "kept\n");
    let keys = guest.ssh("cat /root/.ssh/authorized_keys");
    assert_eq!(keys.matches("ssh-ed25519").count(), 1, "{keys}");
    assert!(keys.contains("# mine"), "{keys}");
    // In the background, so that ssh has its answer before the machine ends.
    guest.ssh("{ sleep 1; poweroff; } >/dev/null 2>&1 &");
    guest.wait_for("SHUTDOWN");
    assert!(guest.qemu.wait().unwrap().success());
    check_disk(dir.path());
}

#[tokio::test]
async fn a_guest_boots_without_a_seed_and_without_a_ready_port() {
    let store = Store::new();
    let image = store.tiny().await;
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::boot(&image, dir.path(), false);
    guest.wait_for_console("tiny login: root");
    guest.power_down();
    check_disk(dir.path());
}
