//! A guest of the kind that clouds offer, with systemd and cloud-init, pulled through the catalogue from
//! a mirror on this host that is laid out as Debian's.
//!
//! It takes minutes under TCG, and a disk that `tools/debian-image` makes as root: `tools/test debian`.
//! Not here: what a wrong server brings (`tests/cli/pull.rs`, `image::cloud`).

use std::fs;
use std::time::Duration;

use sha2::{Digest, Sha512};

use crate::common::mirror::Mirror;
use crate::common::{BOOT, Mounted, eventually};

/// How long such a guest may take to boot, twice at the same time, on a busy machine.
const FIRST_BOOT: Duration = Duration::from_secs(600);
const DIR: &str = "debian/bookworm/latest";
const FILE: &str = "debian-12-genericcloud-amd64.qcow2";
const USER_DATA: &str = "#cloud-config
write_files:
  - {path: /etc/colour, content: green}
runcmd:
  - [sh, -c, 'id -un >/root/ran-as']
";

/// Publishes the disk, and pulls it.
fn pulled() -> (Mirror, Mounted) {
    let path = std::env::var("AQFS_DEBIAN_DISK").expect("a disk: `tools/test debian` makes it");
    let disk = fs::read(path).expect("the disk");
    let mirror = Mirror::start();
    let sum: String = Sha512::digest(&disk).iter().map(|b| format!("{b:02x}")).collect();
    mirror.put(&format!("{DIR}/SHA512SUMS"), format!("{sum}  {FILE}\n"));
    mirror.put(&format!("{DIR}/{FILE}"), disk);
    let aq = Mounted::with_distributions(&format!("mirror = \"{}\"\n", mirror.url("")));
    let said = aq.cli_within("aq pull debian:12", FIRST_BOOT).ok();
    assert!(said.starts_with("debian-12: ready, "), "{said}");
    (mirror, aq)
}

/// Waits until a guest answers, and returns the milliseconds that it took.
fn ready(aq: &Mounted, vm: &str) -> u64 {
    let said = aq.sh_within(&format!("cat {vm}/ready || cat {vm}/error >&2"), FIRST_BOOT).ok();
    let time = said.strip_prefix("ready ").and_then(|s| s.trim_end().strip_suffix("ms"));
    time.and_then(|ms| ms.parse().ok()).unwrap_or_else(|| panic!("{vm}/ready said {said:?}"))
}

fn set_itself_up(aq: &Mounted, vm: &str) {
    let status =
        "cloud-init status --wait | tail -n 1; id -un; hostname; systemctl --failed --no-legend";
    let said =
        aq.sh_within(&format!("echo '{status}' > {vm}/exec; cat {vm}/exec"), FIRST_BOOT).ok();
    assert_eq!(said, format!("status: done\nroot\n{vm}"));
    let megabytes = aq.exec(vm, "df --output=size -BM / | tail -n 1 | tr -dc 0-9");
    assert!(megabytes.parse::<u32>().expect("a number") > 3500, "of 4G: {megabytes}M");
}

#[test]
#[ignore = "needs a disk of Debian's kind, and minutes: run by `tools/test debian`"]
fn a_stock_cloud_image_is_set_up_snapshotted_and_cloned() {
    let (_mirror, aq) = pulled();
    let make = "mkdir vm1 efi; for vm in vm1 efi; do
        echo debian-12 > $vm/config/image; echo 4G > $vm/config/disk; done; echo uefi > efi/config/firmware";
    aq.sh(make).ok();
    aq.write("vm1/config/user_data", USER_DATA).expect("YAML");
    aq.sh("for vm in vm1 efi; do echo start > $vm/ctl; done").ok();
    let cold = ready(&aq, "vm1");
    ready(&aq, "efi");
    set_itself_up(&aq, "vm1");
    set_itself_up(&aq, "efi");
    assert_eq!(aq.exec("vm1", "echo $(cat /etc/colour) $(cat /root/ran-as)"), "green root");
    assert_eq!(aq.exec("efi", "ls -d /sys/firmware/efi; echo 1 > /root/file"), "/sys/firmware/efi");
    aq.sh("mkdir efi/snapshots/clean; cat efi/wait").ok();
    aq.exec("efi", "rm /root/file");
    aq.sh("echo 'restore clean' > efi/ctl; cat efi/wait").ok();
    ready(&aq, "efi");
    assert_eq!(aq.exec("efi", "cat /root/file"), "1");
    its_own_user_has_a_share(&aq);
    aq.sh("for vm in vm1 efi; do echo kill > $vm/ctl; cat $vm/wait; done").ok();
    a_clone_resumes(&aq, cold);
}

/// The image's login user is no root, and has `sudo`. The share was root's, by another port, until the VM was
/// suspended.
fn its_own_user_has_a_share(aq: &Mounted) {
    fs::create_dir(aq.scratch().join("src")).expect("a directory");
    fs::write(aq.scratch().join("src/a"), "from the host\n").expect("a file");
    aq.sh("mkdir vm1/shares/src; echo \"$SCRATCH/src\" > vm1/shares/src/source").ok();
    has_the_share(aq);
    aq.exec("vm1", "echo root > /mnt/src/b");
    let again = "echo debian > vm1/config/ssh_user; echo suspend > vm1/ctl; cat vm1/wait; echo start > vm1/ctl";
    aq.sh_within(again, FIRST_BOOT).ok();
    ready(aq, "vm1");
    has_the_share(aq);
    // sudo says that it does not find the host name.
    let script = "exec 2> /dev/null; id -un; cd /mnt/src && cat a b && echo mine > b && mkdir d && echo x > d/x && chmod 600 d/x && \
        stat -c '%U %a' d/x && sudo -n chown 0:0 d/x && sudo -n cat d/x && grep -c ' nfs ' /proc/mounts; \
        ss -ltn | grep -c :20649; sudo -n -u nobody sh -c 'exec 2>&1; cat /mnt/src/a; cat /mnt/src/d/x; touch /mnt/src/y'";
    let said = aq.exec("vm1", script);
    let wanted = "debian\nfrom the host\nroot\ndebian 600\nx\n1\n1\nfrom the host\n";
    assert!(said.starts_with(wanted), "{said}");
    assert_eq!(said.matches("Permission denied").count(), 2, "{said}");
    let kept =
        aq.sh("cat \"$SCRATCH/src/b\"; stat -c %u \"$SCRATCH/src/d/x\"; ls \"$SCRATCH/src\"").ok();
    let user = rustix::process::geteuid().as_raw();
    assert_eq!(kept, format!("mine\n{user}\na\nb\nd"));
    // Root tells the kernel what the host has changed of a file that the user has open.
    let follow = "echo one > \"$SCRATCH/src/f\"; (sleep 5; echo two >> \"$SCRATCH/src/f\") & cat > vm1/exec <<'END'
exec 3< /mnt/src/f; read -r l <&3; n=0; until read -r l <&3; do sleep 0.2; n=$((n+1)); done; echo $l $((n < 75))
END
        cat vm1/exec; wait; rm \"$SCRATCH/src/f\"";
    assert_eq!(aq.sh_within(follow, BOOT).ok(), "two 1");
    aq.sh("rmdir vm1/shares/src").ok();
    let mounts = || aq.exec("vm1", "grep -c ' nfs ' /proc/mounts || true");
    eventually("the guest has it no more", BOOT, || mounts() == "0");
}

fn has_the_share(aq: &Mounted) {
    let status = || aq.read("vm1/shares/src/status");
    eventually("the share is mounted", BOOT, || status() == "mounted");
}

fn a_clone_resumes(aq: &Mounted, cold: u64) {
    let warm =
        "echo warm > .images/debian-12/ctl; cat .images/debian-12/wait .images/debian-12/warm";
    let said = aq.sh_within(warm, FIRST_BOOT).ok();
    assert!(said.starts_with("ready\nyes: "), "{said}");
    aq.sh("mkdir clone; echo debian-12 > clone/config/image; echo start > clone/ctl").ok();
    let time = ready(aq, "clone");
    assert_eq!(aq.info("clone", "warm"), "yes");
    assert_eq!(aq.exec("clone", "id -un; hostname"), "root\nclone");
    assert!(time < cold / 4, "a clone is ready after {time} ms, the first boot took {cold} ms");
}
