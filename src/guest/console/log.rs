//! The scrollback on disk, and the seam between it and the socket.
//!
//! QEMU writes everything to `console.log` and, while the daemon is connected, to the socket too
//! (there first). So after connecting, the daemon reads from the log what came before, and then
//! aligns the socket's first bytes with the log: those that the log has already given are dropped,
//! those that fell between are filled in. What remains: a guest that prints the same bytes over and
//! over in that very millisecond may have some of them shown once too often or too seldom.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::ring::{BACKLOG, SCROLLBACK};

/// How many bytes of the socket are compared with the log.
const PROBE: usize = 512;

#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    /// Everything before it has been shown.
    shown: u64,
}

/// What the socket's first bytes are in the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seam {
    At(usize),
    /// Not (all) in the log: QEMU has not written them yet, or there is no log.
    Unknown,
}

impl Log {
    /// Stands before the last bytes of the log, as many as a new reader is shown.
    pub(super) fn tail(path: PathBuf) -> Self {
        let len = File::open(&path).and_then(|log| log.metadata());
        let len = len.map_or(0, |meta| meta.len());
        let shown = len.saturating_sub(SCROLLBACK as u64);
        Self { path, shown }
    }

    /// Takes what is new in the log; of very much only the end, which alone is read.
    pub(super) fn catch_up(&mut self) -> Vec<u8> {
        let end = std::fs::metadata(&self.path).map_or(0, |meta| meta.len());
        // A log that has become shorter was started again.
        let shown = if end < self.shown { 0 } else { self.shown };
        self.shown = shown.max(end.saturating_sub(BACKLOG as u64));
        let bytes = self.read(self.shown, BACKLOG as u64).unwrap_or_default();
        self.shown += bytes.len() as u64;
        bytes
    }

    /// Notes that bytes have been shown that came by the socket.
    pub(super) fn advance(&mut self, len: usize) {
        self.shown += len as u64;
    }

    /// Finds the socket's first bytes in the log near the place that was reached. Returns how
    /// many of them have been shown already, and what must be shown before them.
    pub(super) fn join(&self, first: &[u8]) -> Option<(usize, Vec<u8>)> {
        let from = self.shown.saturating_sub(SCROLLBACK as u64);
        let until = self.shown + (SCROLLBACK + first.len()) as u64;
        let window = self.read(from, until - from).ok()?;
        let at = usize::try_from(self.shown - from).ok()?;
        match seam(&window, at, first) {
            Seam::At(place) if place < at => Some((at - place, Vec::new())),
            Seam::At(place) => Some((0, window[at..place].to_vec())),
            Seam::Unknown => None,
        }
    }

    fn read(&self, from: u64, max: u64) -> io::Result<Vec<u8>> {
        let log = File::open(&self.path)?;
        let len = log.metadata()?.len().saturating_sub(from).min(max);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        log.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    }
}

/// Finds where in `log` the bytes `first` begin, as near to `at` as can be.
pub(super) fn seam(log: &[u8], at: usize, first: &[u8]) -> Seam {
    let probe = &first[..first.len().min(PROBE)];
    let places = log.windows(probe.len().max(1)).enumerate();
    let matches = places.filter(|(_, bytes)| *bytes == probe);
    let nearest = matches.map(|(place, _)| place).min_by_key(|place| place.abs_diff(at));
    nearest.map_or(Seam::Unknown, Seam::At)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seam_is_the_nearest_match() {
        let log = b"login: \nlogin: \nlogin: \n";
        assert_eq!(seam(log, 16, b"login: \n"), Seam::At(16));
        assert_eq!(seam(log, 24, b"login: \n"), Seam::At(16));
        assert_eq!(seam(log, 24, b"Welcome"), Seam::Unknown);
        assert_eq!(seam(b"", 0, b"x"), Seam::Unknown);
    }

    fn log(content: &[u8]) -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, content).unwrap();
        let log = Log::tail(path);
        (dir, log)
    }

    #[test]
    fn bytes_that_the_log_has_given_are_dropped_and_missed_ones_filled_in() {
        let (_dir, mut log) = log(b"booting\nlogin: ");
        assert_eq!(log.catch_up(), b"booting\nlogin: ");
        assert_eq!(log.join(b"login: "), Some((7, vec![])));
        std::fs::write(&log.path, b"booting\nlogin: root\nPassword: ").unwrap();
        assert_eq!(log.join(b"Password: "), Some((0, b"root\n".to_vec())));
        assert_eq!(log.join(b"root\n"), Some((0, vec![])));
        assert_eq!(log.join(b"not yet logged"), None);
    }

    #[test]
    fn of_what_was_printed_meanwhile_the_end_alone_is_read() {
        let (_dir, mut log) = log(b"");
        let file = File::options().write(true).open(&log.path).unwrap();
        // A file of this length could not be read into memory.
        file.set_len(1 << 42).unwrap();
        file.write_all_at(b"login: ", (1 << 42) - 7).unwrap();
        let bytes = log.catch_up();
        assert!(bytes.len() == BACKLOG && bytes.ends_with(b"login: "));
        assert_eq!(log.catch_up(), b"");
    }

    #[test]
    fn a_long_log_gives_its_end() {
        let (_dir, mut log) = log(&[b'x'; 3 * SCROLLBACK]);
        assert_eq!(log.catch_up().len(), SCROLLBACK);
        std::fs::remove_file(&log.path).unwrap();
        assert_eq!(log.catch_up(), b"");
    }
}
