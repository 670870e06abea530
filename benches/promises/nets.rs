//! Nets: how fast a guest has a file of another's.

use std::time::Duration;

use crate::common::{Mounted, median};
use crate::measure::{ROUNDS, Row, timed};

/// The addresses on devices that are on the switch without anything in between, as a bare QEMU's is.
const DIRECT: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
const MB: usize = 64;

/// A file over a net, beside the same over devices of the same two QEMUs that are on the switch directly.
pub(crate) fn throughput() -> Vec<Row> {
    let aq = Mounted::with_image();
    aq.sh("mkdir .nets/lab; for vm in a b; do mkdir $vm; echo lab > $vm/config/nets; done").ok();
    for (vm, address) in ["a", "b"].into_iter().zip(DIRECT) {
        aq.boot_existing(vm);
        plug(&aq, vm, address);
    }
    let serve =
        format!("head -c {MB}000000 /dev/zero > /dev/shm/file; busybox httpd -h /dev/shm -p 8000");
    aq.exec("b", &serve);
    let get = |host: &str| {
        let get = format!("wget -q -O /dev/null http://{host}:8000/file && echo done");
        timed(1, || assert_eq!(aq.exec("a", &get), "done", "{host}"))
    };
    let (mut ours, mut direct): (Vec<Duration>, Vec<Duration>) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 2 {
        ours.push(get("b"));
        direct.push(get(DIRECT[1]));
    }
    let what = format!("nets: {MB} MB from guest to guest / on the switch");
    vec![Row::ratio(&what, median(ours), median(direct), 1.11)]
}

/// Gives a machine a further device, directly on the switch.
fn plug(aq: &Mounted, vm: &str, address: &str) {
    let sockets = aq.store().nets().join("lab/s").display().to_string();
    let number = address.rsplit('.').next().expect("a number");
    aq.sh(&format!(
        r#"{{ echo '{{"execute": "netdev_add", "arguments": {{"type": "vde", "id": "direct", "sock": "{sockets}"}}}}'
        echo '{{"execute": "device_add", "arguments": {{"driver": "virtio-net-pci", "netdev": "direct",
            "bus": "spare0", "mac": "52:54:02:00:00:0{number}", "romfile": ""}}}}' | tr -d '\n'; echo
        }} > {vm}/qmp"#
    ))
    .ok();
    aq.exec(
        vm,
        &format!(
            "until [ -e /sys/class/net/eth2 ]; do sleep 0.1; done
             ip addr add {address}/24 dev eth2; ip link set eth2 up"
        ),
    );
}
