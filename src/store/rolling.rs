//! A log of our own that does not grow without end: one older file is kept.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::file::open_log;

/// How long the log may be. With the older one twice as much lies on the disk.
const LONGEST: u64 = 8 << 20;

/// The log. Its standard error may go to the same file (`follower`).
#[derive(Debug)]
pub struct Rolling {
    path: PathBuf,
    longest: u64,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Called with each new file, for another program that writes to it.
    follower: Option<fn(&File) -> io::Result<()>>,
}

impl Rolling {
    /// Opens it, to continue at its end.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = open_log(&path)?;
        Ok(Self { path, longest: LONGEST, open: Mutex::new(Open { file, follower: None }) })
    }

    /// Calls `follower` with the file now, and with each new file: another program writes to it too.
    pub fn share(&self, follower: fn(&File) -> io::Result<()>) -> io::Result<()> {
        let mut open = self.open.lock();
        open.follower = Some(follower);
        follower(&open.file)
    }

    /// Returns where the older log lies.
    pub fn older(path: &Path) -> PathBuf {
        path.with_extension("log.old")
    }

    /// Begins a new file when the present one is long enough; as long as that fails, the present
    /// one grows.
    fn roll(&self, open: &mut Open) -> io::Result<()> {
        if open.file.metadata()?.len() < self.longest {
            return Ok(());
        }
        fs::rename(&self.path, Self::older(&self.path))?;
        open.file = open_log(&self.path)?;
        open.follower.map_or(Ok(()), |follower| follower(&open.file))
    }
}

impl Write for &Rolling {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut open = self.open.lock();
        // A log that has become too long is better than none.
        let _rolled = self.roll(&mut open);
        open.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_older_file_is_kept_and_no_line_is_lost_before_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.log");
        let log = Rolling { longest: 100, ..Rolling::open(path.clone()).unwrap() };
        log.share(|file| (&mut &*file).write_all(b"shared\n")).unwrap();
        for n in 0..1000 {
            (&log).write_all(format!("line {n:04}\n").as_bytes()).unwrap();
        }
        let texts = [Rolling::older(&path), path].map(|p| fs::read_to_string(p).unwrap());
        assert!(texts.iter().all(|text| text.len() < 120 && text.starts_with("shared\n")));
        let lines: Vec<_> = texts.iter().flat_map(|t| t.lines().skip(1)).collect();
        let first: usize = lines[0][5..].parse().unwrap();
        assert!(lines.iter().enumerate().all(|(n, line)| line[5..].parse() == Ok(first + n)));
        assert_eq!(lines.last(), Some(&"line 0999"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
