//! What copies disks and memories: snapshots, and images made from VMs, beside QEMU's own means.

use std::time::{Duration, Instant};

use crate::common::{BOOT, Mounted, median};
use crate::measure::Row;

const ROUNDS: usize = 7;
/// What is changed in a disk before it is copied.
const CHANGE: &str = "head -c 64000000 /dev/urandom > /root/data; sync";

/// Returns how long a script takes that makes something, which another then removes.
fn made(aq: &Mounted, make: &str, remove: &str) -> Duration {
    let began = Instant::now();
    aq.sh_within(make, BOOT).ok();
    let took = began.elapsed();
    aq.sh_within(remove, BOOT).ok();
    took
}

/// A VM that is off.
pub(crate) fn off() -> Vec<Row> {
    let aq = Mounted::with_image();
    aq.boot("vm1");
    aq.exec("vm1", CHANGE);
    aq.sh("echo stop > vm1/ctl; cat vm1/wait; mkdir .images/x").ok();
    let copy = aq.scratch().join("copy").display().to_string();
    let (mut take, mut qemu_take, mut publish, mut convert) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        take.push(made(&aq, "mkdir vm1/snapshots/a", "rmdir vm1/snapshots/a"));
        let (make, remove) =
            ("qemu-img snapshot -c b vm1/disk; sync vm1/disk", "qemu-img snapshot -d b vm1/disk");
        qemu_take.push(made(&aq, make, remove));
        let make = "cat vm1/ready; echo vm1 > .images/x/source; cat .images/x/wait";
        publish.push(made(&aq, make, "rmdir .images/x; mkdir .images/x"));
        let make =
            format!("qemu-img convert -O qcow2 vm1/disk {copy}; sync {copy}; sha256sum {copy}");
        convert.push(made(&aq, &make, &format!("rm {copy}")));
    }
    vec![
        Row::ratio("snapshot, off / qemu-img", median(take), median(qemu_take), 1.5),
        Row::ratio(
            "image of a VM, off / qemu-img, sha256sum",
            median(publish),
            median(convert),
            1.5,
        ),
    ]
}

/// A VM that runs: for how long its guest is paused.
pub(crate) fn running() -> Vec<Row> {
    let aq = Mounted::with_image();
    aq.boot("vm1");
    aq.sh("mkdir .images/x").ok();
    let (mut publish, mut take) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let make = "cat vm1/ready; echo vm1 > .images/x/source; cat .images/x/wait";
        aq.sh_within(make, BOOT).ok();
        publish.push(pause(&aq.read(".images/x/warm")));
        aq.sh("rmdir .images/x; mkdir .images/x; cat vm1/wait").ok();
        let (make, remove) =
            ("mkdir vm1/snapshots/a; cat vm1/wait", "rmdir vm1/snapshots/a; cat vm1/wait");
        take.push(made(&aq, make, remove));
    }
    let (publish, take) = (median(publish), median(take));
    vec![Row::ratio("pause of a VM made an image / snapshot", publish, take, 1.0)]
}

/// Reads `yes: … pause 41ms`.
fn pause(warm: &str) -> Duration {
    let pause = warm.rsplit_once("pause ").and_then(|(_, p)| p.strip_suffix("ms"));
    Duration::from_millis(pause.and_then(|p| p.parse().ok()).expect("a pause"))
}
