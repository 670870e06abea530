//! What a user gets wrong, and only QEMU or the guest can find: an errno, a sentence in `error`, and
//! the next start works.

use crate::common::{Mounted, assert_errno};

#[test]
fn arguments_that_qemu_does_not_know() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1 && echo -frobnicate > vm1/config/qemu_args").ok();
    assert_errno(aq.write("vm1/ctl", "start"), libc::EREMOTEIO);
    for file in ["error", "status"] {
        let text = aq.read(&format!("vm1/{file}"));
        assert!(text.contains("-frobnicate: invalid option"), "{file}: {text}");
    }
    assert!(aq.read("vm1/status").starts_with("failed: "));
    assert!(aq.qemus().is_empty());
    aq.sh("echo default > vm1/config/qemu_args && echo start > vm1/ctl").ok();
    aq.wait_for_ready("vm1");
}

#[test]
fn a_guest_that_never_answers_keeps_no_reader_for_ever() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1 && echo 'start paused' > vm1/ctl").ok();
    assert_eq!(aq.sh("timeout 2 cat vm1/ready").code, 124);
    assert_errno(aq.write("vm1/exec", "true"), libc::EHOSTUNREACH);
    assert!(aq.read("vm1/error").contains("paused"), "{}", aq.read("vm1/error"));
    // Under a daemon of root it may wait in D.
    let script = "cat vm1/ready & until ps -o state= $! | grep -q '[SD]'; do :; done
        echo kill > vm1/ctl; wait $!";
    assert!(aq.sh(script).failed().contains("Host is down"));
    assert_eq!(aq.read("vm1/status"), "stopped");
}
