//! What a guest is given for its first boot, as far as the tiny guest shows it. What cloud-init and
//! tiny-cloud make of the seed is tested over the seed itself (`guest::nocloud`).

use crate::common::{BOOT, Mounted, assert_errno, eventually};

#[test]
fn ignition_and_credentials_are_there_and_fit_every_saved_memory() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1 && echo 'greeting=hello, \"world\"' > vm1/config/credentials").ok();
    aq.write("vm1/config/ignition", "{\"ignition\": {\"version\": \"3.4.0\"}}").expect("JSON");
    aq.write("vm1/config/user_data", "#cloud-config\n").expect("YAML");
    assert_errno(aq.write("vm1/ctl", "start"), libc::EINVAL);
    let said = aq.read("vm1/error");
    assert!(said.starts_with("config/user_data: image tiny has no cloud-init"), "{said}");
    aq.sh("echo none > vm1/config/user_data").ok();
    // One of `.defaults` is for images that have a reader, also where a VM was given it by `cp`.
    aq.sh("echo '#cloud-config' > .defaults/user_data && cp .defaults/user_data vm1/config/").ok();
    aq.boot_existing("vm1");
    let shown = |credential: &str| {
        let command = format!("grep -c '{credential}' /sys/firmware/dmi/tables/DMI");
        aq.exec(
            "vm1",
            &format!("{command}; cat /sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw"),
        )
    };
    let text = "{\"ignition\": {\"version\": \"3.4.0\"}}";
    assert_eq!(shown("io.systemd.credential:greeting=hello, \"world\""), format!("1\n{text}"));
    assert!(aq.read("vm1/info").contains("\nfirst_boot done"), "{}", aq.read("vm1/info"));
    // The memory of now fits a machine that is handed other texts.
    aq.sh("mkdir vm1/snapshots/then && printf 'a=b\\nc=d\\n' > vm1/config/credentials").ok();
    aq.sh("echo none > vm1/config/ignition; echo suspend > vm1/ctl; cat vm1/wait").ok();
    aq.boot_existing("vm1");
    aq.sh("echo 'restore then' > vm1/ctl; cat vm1/wait vm1/ready").ok();
    assert_eq!(aq.exec("vm1", "echo alive"), "alive");
    aq.sh("echo kill > vm1/ctl; cat vm1/wait").ok();
}

#[test]
fn where_root_is_refused_another_user_logs_in() {
    let aq = Mounted::booted();
    let prepare = "echo ann:x:1000:1000::/home/ann:/bin/sh >>/etc/passwd
        echo 'ann:*:19000:0:99999:7:::' >>/etc/shadow
        mkdir /home/ann && cp -a /root/.ssh /home/ann/ && chown -R 1000:1000 /home/ann
        echo >/root/.ssh/authorized_keys
        (sleep 1; for pid in $(pidof dropbear); do
            [ $pid = $(cat /run/aqfs/dropbear.pid) ] || kill $pid; done) >/dev/null 2>&1 </dev/null &";
    aq.exec("vm1", prepare);
    let refused = "refused our key for user root; `echo NAME > config/ssh_user`";
    eventually("root is refused", BOOT, || aq.read("vm1/log").contains(refused));
    aq.sh("echo ann > vm1/config/ssh_user; cat vm1/ready").ok();
    assert_eq!(aq.exec("vm1", "id -un"), "ann");
}
