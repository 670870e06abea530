//! Downloads a file: it continues where it was cut, notices that the server's file is another one,
//! and looks for room on the disk first.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderName, IF_RANGE, LAST_MODIFIED, RANGE,
};
use reqwest::{Response, StatusCode};

use super::client::{Attempts, Client, Failure};
use super::partial::{Partial, Validator};
use super::{Cancel, Checksum, FetchError};

/// How often a transfer is reported.
const REPORT: Duration = Duration::from_millis(250);
/// So much stays free on the disk.
const SPARE: u64 = 64 << 20;

/// What is to be fetched.
#[derive(Clone, Copy, Debug)]
pub struct Download<'a> {
    /// From where.
    pub url: &'a str,
    /// The directory for what is not complete, on the file system where the file will be.
    pub cache: &'a Path,
}

/// How far a download is. It prints as a line that ends in a percentage, where that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// The file's name.
    pub name: String,
    /// Bytes that are there.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: Option<u64>,
    /// Bytes a second.
    pub rate: u64,
    /// Why it has stopped for a moment.
    pub waiting: Option<String>,
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, done) = (&self.name, size(self.done));
        match (&self.waiting, self.total) {
            (Some(reason), _) => write!(f, "{name}: {reason}, trying again; {done} are there"),
            (None, Some(total)) => {
                let (rate, percent) = (size(self.rate), self.done * 100 / total.max(1));
                write!(f, "{name}: {done} of {}, {rate}/s, {percent} %", size(total))
            }
            (None, None) => write!(f, "{name}: {done}, {}/s", size(self.rate)),
        }
    }
}

/// `12.3M`
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, letter)) => format!("{}.{}{letter}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes}B"),
    }
}

/// A file that is all there, not yet verified. Dropped, it stays in the cache.
#[derive(Debug)]
pub struct Downloaded {
    partial: Partial,
    url: String,
    /// A part of it is from an earlier download.
    pub is_resumed: bool,
}

impl Downloaded {
    /// Returns where it is for now.
    pub fn path(&self) -> &Path {
        &self.partial.path
    }

    /// Compares its checksum, and removes the file if that is another one.
    ///
    /// # Errors
    /// `WrongChecksum`, or what reading answers.
    pub fn verify(&self, expected: &Checksum, cancel: &Cancel) -> Result<(), FetchError> {
        let found = expected.of_same_kind(self.path(), cancel)?;
        if found == *expected {
            return Ok(());
        }
        self.partial.discard();
        let (found, expected) = (found.to_string(), expected.to_string());
        Err(FetchError::WrongChecksum { url: self.url.clone(), found, expected })
    }

    /// Removes it: it is not what it should be.
    pub fn discard(&self) {
        self.partial.discard();
    }

    /// Gives it its place, on the same file system; its contents are on the disk already.
    ///
    /// # Errors
    /// What the system answers.
    pub fn move_to(self, to: &Path) -> Result<PathBuf, FetchError> {
        self.partial.move_to(to)?;
        Ok(to.to_owned())
    }
}

impl Client {
    /// Fetches a file, from where an earlier download of it ended.
    ///
    /// # Errors
    /// [`FetchError`]; what is there by then stays for the next attempt.
    pub fn download(
        &self,
        request: &Download<'_>,
        mut report: impl FnMut(Transfer),
    ) -> Result<Downloaded, FetchError> {
        let url = request.url;
        let partial = self.run(Partial::open(request.cache, url))?;
        let is_resumed = partial.known(url).0 > 0;
        let mut meter = Meter::new(url, &mut report);
        self.run(async {
            let mut attempts = Attempts::new(self.retries, partial.known(url).0);
            while let Err(failure) = self.attempt(&partial, url, &mut meter, &mut attempts).await {
                if let Failure::Passing(reason) = &failure {
                    meter.wait(reason);
                }
                attempts.pause_after(failure, url).await?;
            }
            Ok(())
        })?;
        Ok(Downloaded { partial, url: url.to_owned(), is_resumed })
    }

    async fn attempt(
        &self,
        partial: &Partial,
        url: &str,
        meter: &mut Meter<'_>,
        attempts: &mut Attempts,
    ) -> Result<(), Failure> {
        let (start, known) = partial.known(url);
        if start > 0 && known.total == Some(start) {
            return Ok(());
        }
        let response = self
            .get(url, |request| {
                let request = request.header(ACCEPT_ENCODING, "identity");
                match known.if_range().filter(|_| start > 0) {
                    Some(validator) => {
                        request.header(RANGE, format!("bytes={start}-")).header(IF_RANGE, validator)
                    }
                    None => request,
                }
            })
            .await?;
        let (file, validator) =
            Position::of(&response, start, &known, url).open(partial).map_err(Failure::Final)?;
        meter.begin(file.start, validator.total);
        check_room(&partial.path, meter.name(), validator.total, file.start)
            .map_err(Failure::Final)?;
        let received = receive(response, url, file, meter, attempts).await?;
        match validator.total {
            Some(total) if received != total => {
                if received > total {
                    partial.discard();
                }
                Err(Failure::Passing(format!("the answer ends after {received} of {total} bytes")))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Where an answer's bytes belong.
enum Position {
    /// After those that are there.
    Append(u64, Validator),
    /// It is the whole file, perhaps another one.
    Restart(Validator),
}

/// The file that is written to, from `start` on.
struct Target {
    file: File,
    path: PathBuf,
    start: u64,
}

impl Position {
    fn of(response: &Response, start: u64, known: &Validator, url: &str) -> Self {
        let header = |name: HeaderName| {
            response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        let mut validator = Validator {
            url: url.to_owned(),
            etag: header(ETAG),
            modified: header(LAST_MODIFIED),
            total: response.content_length(),
        };
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Self::Restart(validator);
        }
        let range = header(CONTENT_RANGE).unwrap_or_default();
        let (at, total) = content_range(&range).unwrap_or((u64::MAX, None));
        validator.total = total.or(known.total);
        // A server that ignores If-Range is found out here.
        if at == start && validator == *known {
            return Self::Append(start, validator);
        }
        Self::Restart(Validator { url: url.to_owned(), ..Validator::default() })
    }

    fn open(self, partial: &Partial) -> Result<(Target, Validator), FetchError> {
        let path = partial.path.clone();
        Ok(match self {
            Self::Append(start, validator) => {
                (Target { file: partial.append()?, path, start }, validator)
            }
            Self::Restart(validator) => {
                (Target { file: partial.restart(&validator)?, path, start: 0 }, validator)
            }
        })
    }
}

/// Reads `bytes 100-999/1000`: where it begins, and the length of the whole.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

async fn receive(
    mut response: Response,
    url: &str,
    mut to: Target,
    meter: &mut Meter<'_>,
    attempts: &mut Attempts,
) -> Result<u64, Failure> {
    let status = response.status();
    if status == StatusCode::RANGE_NOT_SATISFIABLE
        || (status == StatusCode::PARTIAL_CONTENT && to.start == 0)
    {
        return Err(Failure::Passing("the server's file is another one".to_owned()));
    }
    let failed = |error| Failure::Final(FetchError::io(&to.path)(error));
    let mut done = to.start;
    while let Some(piece) = response.chunk().await.map_err(|e| Failure::of(url, &e))? {
        // A server that does not say how long its file is, or says so wrongly, does not fill the disk.
        let next = done + piece.len() as u64;
        check_room(&to.path, meter.name(), Some(next), done).map_err(Failure::Final)?;
        to.file.write_all(&piece).map_err(failed)?;
        done += piece.len() as u64;
        attempts.succeed(done);
        meter.advance(done);
    }
    to.file.sync_all().map_err(failed)?;
    Ok(done)
}

fn check_room(path: &Path, what: &str, total: Option<u64>, start: u64) -> Result<(), FetchError> {
    let dir = path.parent().unwrap_or(path);
    let system = rustix::fs::statvfs(dir).map_err(|e| FetchError::io(dir)(e.into()))?;
    let free = (system.f_bavail * system.f_frsize).saturating_sub(SPARE);
    let needed = total.map_or(0, |total| total.saturating_sub(start));
    if needed <= free {
        return Ok(());
    }
    Err(FetchError::NoSpace { what: what.to_owned(), needed, free })
}

/// Measures a transfer and reports it now and then.
struct Meter<'a> {
    report: &'a mut dyn FnMut(Transfer),
    transfer: Transfer,
    reported: Instant,
    at_report: u64,
}

impl<'a> Meter<'a> {
    fn new(url: &str, report: &'a mut dyn FnMut(Transfer)) -> Self {
        let name = url.rsplit('/').next().unwrap_or(url).to_owned();
        let transfer = Transfer { name, ..Transfer::default() };
        Self { report, transfer, reported: Instant::now(), at_report: 0 }
    }

    fn name(&self) -> &str {
        &self.transfer.name
    }

    fn begin(&mut self, done: u64, total: Option<u64>) {
        (self.transfer.done, self.transfer.total) = (done, total);
        self.at_report = done;
        self.transfer.waiting = None;
        self.send();
    }

    fn wait(&mut self, reason: &str) {
        self.transfer.waiting = Some(reason.to_owned());
        self.send();
    }

    fn advance(&mut self, done: u64) {
        self.transfer.done = done;
        let passed = self.reported.elapsed();
        if passed >= REPORT {
            let bytes = u128::from(done - self.at_report) * 1000 / passed.as_millis().max(1);
            let rate = u64::try_from(bytes).unwrap_or(u64::MAX);
            // The average of the last seconds: single readings jump.
            let before = if self.transfer.rate == 0 { rate } else { self.transfer.rate };
            self.transfer.rate = (before / 4).saturating_mul(3).saturating_add(rate / 4);
            self.send();
        }
    }

    fn send(&mut self) {
        (self.reported, self.at_report) = (Instant::now(), self.transfer.done);
        (self.report)(self.transfer.clone());
    }
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
