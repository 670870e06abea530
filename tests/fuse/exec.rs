//! `exec` of a VM that is off.

use std::time::{Duration, Instant};

use crate::common::{Mounted, assert_errno};

#[test]
fn on_a_stopped_vm_exec_answers_at_once_that_the_guest_is_down() {
    let aq = Mounted::new();
    aq.sh("mkdir vm1").ok();
    let began = Instant::now();
    assert_errno(aq.write("vm1/exec", "true\n"), libc::EHOSTDOWN);
    assert!(aq.sh("echo true > vm1/exec").failed().contains("Host is down"));
    assert!(began.elapsed() < Duration::from_secs(1));
    assert!(aq.read("vm1/error").contains("echo start > ctl"), "{}", aq.read("vm1/error"));
}
