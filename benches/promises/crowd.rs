//! As many clones as are promised on a host of 24 GiB, of 1 GiB each.

use std::thread::sleep;
use std::time::Duration;

use crate::common::Mounted;
use crate::guest::resident;
use crate::measure::Row;
use crate::warm::{at_once, own_kib, remove_all, warm};

const FEW: usize = 16;
const MANY: usize = 64;
/// What the host has for all of them, in KiB.
const HOST: u64 = 24 << 20;
/// How long the daemon is left alone.
const IDLE: Duration = Duration::from_secs(10);

/// All answer, in the host's memory; and what they are to the daemon while nobody asks for anything.
pub(crate) fn crowd() -> Vec<Row> {
    let aq = Mounted::with_image();
    aq.sh("echo 1G > .defaults/memory").ok();
    warm(&aq);
    let few = at_once(&aq, FEW, |_| "true".to_owned());
    remove_all(&aq);
    let before = resident(aq.daemon());
    let many = at_once(&aq, MANY, |_| "true".to_owned());
    let private: u64 = aq.qemus().iter().map(|pid| own_kib(*pid)).sum();
    let more = resident(aq.daemon()).saturating_sub(before) / MANY as u64;
    let busy = busy_while_idle(&aq);
    remove_all(&aq);
    let ratio = u32::try_from(MANY / FEW).expect("a small number");
    vec![
        Row::ratio("64 clones at once, all answering / 4 times 16", many, few * ratio, 1.2),
        Row::memory("64 clones of 1 GiB: private memory together", private, HOST),
        Row::memory("64 clones: daemon, more for each", more, 512),
        Row::bound("64 clones, idle: the daemon's processor time in 10 s", busy, IDLE / 100),
    ]
}

fn busy_while_idle(aq: &Mounted) -> Duration {
    let used = || Duration::from_millis(aqfs::proc::usage(aq.daemon()).cpu_ms);
    let before = used();
    sleep(IDLE);
    used().saturating_sub(before)
}
