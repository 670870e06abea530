//! `jobs/` of a VM that is off: names, and what can be prepared.

use crate::common::{Mounted, assert_errno};

#[test]
fn names_of_jobs() {
    let aq = Mounted::new();
    let script =
        "mkdir vm1 && cd vm1 && mkdir jobs/b && cat jobs/b/status && mv jobs/b jobs/c.1 && ls jobs
        rm -r jobs/c.1 && ls jobs";
    assert_eq!(aq.sh(script).ok(), "new\nc.1\nlast\nlast");
    assert!(aq.sh("mkdir vm1/jobs/b vm1/jobs/b").failed().contains("File exists"));
    assert!(aq.sh("mkdir vm1/jobs/last").failed().contains("File exists"));
    assert!(aq.sh("mkdir vm1/jobs/.b").failed().contains("Invalid argument"));
    assert!(aq.sh("mv -T vm1/jobs/b vm1/jobs/last").failed().contains("jobs/last"));
    // A process without a last job finds a link that leads nowhere, which `tar` and `cp -r` can copy.
    assert_eq!(aq.sh("readlink vm1/jobs/last").ok(), ".none");
    assert!(aq.sh("cat vm1/jobs/last/status").failed().contains("No such file"));
    aq.sh("rm -r vm1").ok();
}

#[test]
fn a_job_of_a_vm_that_is_off() {
    let aq = Mounted::new();
    aq.sh("mkdir vm1 vm1/jobs/b").ok();
    assert_errno(aq.write("vm1/jobs/b/cmd", "true\n"), libc::EHOSTDOWN);
    assert_errno(aq.write("vm1/jobs/b/ctl", "signal INT\n"), libc::ESRCH);
    assert_errno(aq.write("vm1/jobs/b/ctl", "winsize 80x24\n"), libc::ESRCH);
    assert_errno(aq.write("vm1/jobs/b/ctl", "pty 80\n"), libc::EINVAL);
    assert!(aq.read("vm1/error").contains("pty COLUMNSxROWS"), "{}", aq.read("vm1/error"));
    aq.write("vm1/jobs/b/ctl", "pty 80x24\nenv K=v\ncwd /\n").expect("preparations");
    assert_eq!(aq.read("vm1/jobs/b/status"), "new");
}
