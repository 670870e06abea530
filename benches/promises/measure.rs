//! Measurements and how they are reported: medians, ratios taken in one run, promises beside them; the large
//! file that several are about.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often each of two ways to the same files is measured.
pub(crate) const ROUNDS: usize = 3;
/// Longer than either remembers names.
pub(crate) const TTL: Duration = Duration::from_millis(1200);

/// The file that is written and read.
pub(crate) struct LargeFile;

impl LargeFile {
    pub(crate) const READS: u64 = 2000;
    /// Makes this program read a file: guests have no other that reads at random.
    pub(crate) const ARGUMENT: &str = "--random-reads";

    /// Its size: `AQFS_BENCH_MIB`, where time is short.
    pub(crate) fn mib() -> u64 {
        let wanted = std::env::var("AQFS_BENCH_MIB").ok().and_then(|mib| mib.parse().ok());
        wanted.unwrap_or(256)
    }

    /// Reads where no other read was: a page that is read twice would come from the kernel's cache.
    pub(crate) fn read_at_random(path: &Path) {
        let file = File::open(path).expect("the large file");
        let (pages, mut page) = (file.metadata().expect("its size").len() / 4096, 1);
        for _ in 0..Self::READS {
            page = (page * 5 + 12345) % pages;
            file.read_exact_at(&mut [0; 4096], page * 4096).expect("a page");
        }
    }
}

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    measured: String,
    beside: String,
    promise: String,
    kept: bool,
}

impl Row {
    /// Compares a time with that of a reference, taken in the same run.
    pub(crate) fn ratio(what: &str, ours: Duration, reference: Duration, promise: f64) -> Self {
        let ratio = ours.as_secs_f64() / reference.as_secs_f64();
        Self {
            what: what.to_owned(),
            measured: render(ours),
            beside: format!("{} × {ratio:.2}", render(reference)),
            promise: format!("≤ × {promise}"),
            kept: ratio <= promise,
        }
    }

    /// Compares a time with that of a reference, of which it may exceed a given time.
    pub(crate) fn excess(
        what: &str,
        ours: Duration,
        reference: Duration,
        promise: Duration,
    ) -> Self {
        let excess = ours.saturating_sub(reference);
        Self {
            what: what.to_owned(),
            measured: render(ours),
            beside: format!("{} + {}", render(reference), render(excess)),
            promise: format!("≤ + {}", render(promise)),
            kept: excess <= promise,
        }
    }

    /// Compares a time with its limit.
    pub(crate) fn bound(what: &str, ours: Duration, promise: Duration) -> Self {
        Self {
            what: what.to_owned(),
            measured: render(ours),
            beside: String::new(),
            promise: format!("≤ {}", render(promise)),
            kept: ours <= promise,
        }
    }

    /// Compares an amount of memory, in KiB, with its limit.
    pub(crate) fn memory(what: &str, kib: u64, promise: u64) -> Self {
        Self {
            what: what.to_owned(),
            measured: format!("{kib} KiB"),
            beside: String::new(),
            promise: format!("≤ {promise} KiB"),
            kept: kib <= promise,
        }
    }

    /// Renders the row; `MISS` is reported and is no failure, as timings depend on the machine.
    pub(crate) fn render(&self) -> String {
        let Self { what, measured, beside, promise, kept } = self;
        let verdict = if *kept { "ok" } else { "MISS" };
        format!("{what:<46} {measured:>11}  {beside:<22} {promise:<12} {verdict}")
    }
}

/// Returns the median duration of `rounds` calls.
pub(crate) fn timed(rounds: usize, mut work: impl FnMut()) -> Duration {
    let once = |_| {
        let began = Instant::now();
        work();
        began.elapsed()
    };
    crate::common::median((0..rounds).map(once).collect())
}

fn render(time: Duration) -> String {
    match time.as_nanos() {
        0..1_000_000 => format!("{:.1} µs", time.as_secs_f64() * 1e6),
        1_000_000..1_000_000_000 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", time.as_secs_f64()),
    }
}
