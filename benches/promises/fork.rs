//! Forks of a VM that runs, beside warm clones of an image.

use std::time::{Duration, Instant};

use crate::common::{BOOT, Mounted, median};
use crate::measure::Row;
use crate::warm::{own_kib, remove_all, warm};

const ROUNDS: usize = 5;
const NAMES: &str = "vm1 vm2 vm3 vm4 vm5 vm6 vm7 vm8";
/// What the parent holds: a part of it changed since it was started.
const CHANGE: &str = "head -c 20000000 /dev/urandom > /root/data; cp /root/data /dev/shm; sync";

/// Eight forks, all answering, with their making; beside eight clones, with theirs.
pub(crate) fn forks() -> Vec<Row> {
    let aq = Mounted::with_image();
    warm(&aq);
    aq.boot("parent");
    aq.exec("parent", CHANGE);
    let (mut forks, mut clones, mut pauses, mut private) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let events = "exec 3< parent/events; {";
        let began = Instant::now();
        let said = aq.sh_within(
            &format!(
                "{events} echo fork {NAMES} > parent/ctl; {}; }} > /dev/null; timeout 1 cat <&3",
                answers("")
            ),
            BOOT * 4,
        );
        forks.push(began.elapsed().saturating_sub(Duration::from_secs(1)));
        pauses.push(pause(&said.stdout));
        let parent: u32 = aq.info("parent", "pid").parse().expect("a pid");
        let own: Vec<u64> =
            aq.qemus().iter().filter(|pid| **pid != parent).map(|pid| own_kib(*pid)).collect();
        private.push(Duration::from_millis(own.iter().sum::<u64>() / own.len() as u64));
        remove_all(&aq);
        let began = Instant::now();
        aq.sh_within(&answers("mkdir $vm && echo start > $vm/ctl &&"), BOOT * 4).ok();
        clones.push(began.elapsed());
        remove_all(&aq);
    }
    let (forks, clones) = (median(forks), median(clones));
    let resident = aq.info("parent", "rss").parse::<u64>().expect("a number") >> 10;
    let private = u64::try_from(median(private).as_millis()).unwrap_or(u64::MAX);
    vec![
        Row::ratio("fork to 8, all answering / 8 warm clones", forks, clones, 1.2),
        Row::bound(
            "pause of a VM that is forked, 256 MiB",
            median(pauses),
            Duration::from_millis(150),
        ),
        Row::memory("private memory of a fork, mean of 8", private, resident / 10 + (32 << 10)),
    ]
}

/// Waits, for each at once, until a command has run in it.
fn answers(prepare: &str) -> String {
    let one = "cat $vm/ready && echo true > $vm/exec && cat $vm/exec";
    format!("for vm in {NAMES}; do ({prepare} {one}) & done; wait")
}

fn pause(events: &str) -> Duration {
    let pause = events.split(" pause ").nth(1).and_then(|rest| rest.split("ms").next());
    Duration::from_millis(pause.and_then(|ms| ms.parse().ok()).expect("a pause"))
}
