//! The mount as a command sees it: files by name, VMs, images. Thin: a name and a path, nothing
//! that is remembered.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Failure, Near};

/// How often a wait is interrupted to show the user its progress.
pub(super) const LOOK: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub(super) struct Tree {
    dir: PathBuf,
}

/// A VM that was there when it was looked up.
#[derive(Clone, Debug)]
pub(super) struct Vm {
    tree: Tree,
    pub(super) name: String,
}

/// A key and its value, as `info` has them.
pub(super) type KeyValues = Vec<(String, String)>;

impl Tree {
    pub(super) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(super) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// Adds the sentence of `.error` to the errno that a request of this thread was answered.
    pub(super) fn explained<T>(
        &self,
        what: impl Into<String>,
        answer: io::Result<T>,
    ) -> Result<T, Failure> {
        answer.map_err(|error| {
            let (what, errno) = (what.into(), error.raw_os_error().unwrap_or_default());
            Failure::Refused { what, sentence: self.sentence(&error), errno }
        })
    }

    /// `.error` has a line for each request that failed: `TIME PID PATH ERRNO SENTENCE`, where PID
    /// is the thread that asked.
    fn sentence(&self, error: &io::Error) -> String {
        if matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)) {
            return "the daemon is gone; `aq mount` starts another".to_owned();
        }
        let failures = fs::read_to_string(self.path(".error")).unwrap_or_default();
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        let errno = error.raw_os_error().unwrap_or_default().to_string();
        let mut newest = failures.lines().rev().map(|l| l.splitn(5, ' ').collect::<Vec<_>>());
        let ours = newest.find(|l| l.len() == 5 && l[1] == thread && l[3] == errno);
        ours.map_or_else(|| plain(error), |l| l[4].to_owned())
    }

    pub(super) fn vm(&self, name: &str) -> Result<Vm, Failure> {
        let vm = Vm { tree: self.clone(), name: name.to_owned() };
        if is_plain(name) && self.path(name).join("ctl").exists() {
            return Ok(vm);
        }
        let names = self.vms().unwrap_or_default().into_iter().map(|vm| vm.name);
        Err(Failure::NoVm(name.to_owned(), Near::of(name, names)))
    }

    pub(super) fn vms(&self) -> Result<Vec<Vm>, Failure> {
        let names = self.names("")?.into_iter().filter(|n| !n.starts_with('.'));
        Ok(names.map(|name| Vm { tree: self.clone(), name }).collect())
    }

    /// Lists the names in a directory, sorted.
    pub(super) fn names(&self, dir: &str) -> Result<Vec<String>, Failure> {
        let entries = self.explained(dir.to_owned(), fs::read_dir(self.path(dir)))?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Reads a file without its last newline.
    pub(super) fn read(&self, name: &str) -> Result<String, Failure> {
        let text = self.explained(name, fs::read_to_string(self.path(name)))?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// Reads a file whose object may be gone meanwhile: nothing then.
    pub(super) fn read_or_nothing(&self, name: &str) -> String {
        self.read(name).unwrap_or_default()
    }

    /// Does what `echo TEXT > FILE` does.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let line = format!("{text}\n");
        let file = File::options().write(true).truncate(true).open(self.path(name));
        self.explained(name, file.and_then(|mut f| f.write_all(line.as_bytes())))
    }

    pub(super) fn mkdir(&self, name: &str) -> Result<(), Failure> {
        self.explained(name, fs::create_dir(self.path(name)))
    }

    pub(super) fn rmdir(&self, name: &str) -> Result<(), Failure> {
        self.explained(name, fs::remove_dir(self.path(name)))
    }

    /// Reads a file that answers when the time has come. Meanwhile `wants_more` is asked every
    /// [`LOOK`]; `None` when it says no.
    pub(super) fn awaited(
        &self,
        name: &str,
        mut wants_more: impl FnMut() -> bool,
    ) -> Result<Option<String>, Failure> {
        let file = self.explained(name, File::open(self.path(name)))?;
        while !is_readable(&file, LOOK) {
            if !wants_more() {
                return Ok(None);
            }
        }
        let text = self.explained(name, io::read_to_string(&file))?;
        Ok(Some(text.trim_end().to_owned()))
    }

    /// Finds an image by its name or an alias, and returns its name.
    pub(super) fn image(&self, name: &str) -> Result<String, Failure> {
        let path = self.path(".images").join(name);
        if is_plain(name)
            && let Ok(target) = fs::read_link(&path)
        {
            return Ok(target.to_string_lossy().into_owned());
        }
        if is_plain(name) && path.join("status").exists() {
            return Ok(name.to_owned());
        }
        let images = self.path(".images").display().to_string();
        let near = Near::of(name, self.names(".images").unwrap_or_default());
        Err(Failure::NoImage(name.to_owned(), near, images))
    }
}

impl Vm {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.tree.path(&self.name).join(name)
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    pub(super) fn read(&self, name: &str) -> Result<String, Failure> {
        self.tree.read(&self.file(name)).map_err(|failure| self.gone_or(failure))
    }

    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        self.tree.write(&self.file(name), text).map_err(|failure| self.gone_or(failure))
    }

    /// Writes a verb to `ctl`.
    pub(super) fn order(&self, verb: &str) -> Result<(), Failure> {
        let file = File::options().write(true).open(self.path("ctl"));
        let done = file.and_then(|mut f| f.write_all(format!("{verb}\n").as_bytes()));
        self.tree.explained(&*self.name, done).map_err(|failure| self.gone_or(failure))
    }

    fn gone_or(&self, failure: Failure) -> Failure {
        if failure.errno() == libc::ENOENT && !self.path("ctl").exists() {
            return Failure::NoVm(self.name.clone(), Near::default());
        }
        failure
    }

    /// Returns its status word and the reason behind it.
    pub(super) fn status(&self) -> Result<Status, Failure> {
        Ok(Status(self.read("status")?))
    }

    /// Fails at once unless it runs or is about to, or comes back when it is used.
    pub(super) fn expect_on(&self) -> Result<(), Failure> {
        match self.status()?.is_off() && !self.is_asleep()? {
            true => Err(Failure::Off(self.name.clone())),
            false => Ok(()),
        }
    }

    /// Says whether it was suspended because nobody used it.
    fn is_asleep(&self) -> Result<bool, Failure> {
        Ok(self.facts()?.iter().any(|(key, value)| key == "wakes" && value == "yes"))
    }

    /// Brings it back if it was suspended because nobody used it, or is about to be.
    pub(super) fn wake(&self) -> Result<(), Failure> {
        self.read("wait")?;
        if self.status()?.is_off() && self.is_asleep()? {
            // Somebody else may have started it meanwhile.
            drop(self.order("start"));
        }
        match self.status()?.is_off() {
            true => Err(Failure::Off(self.name.clone())),
            false => Ok(()),
        }
    }

    pub(super) fn facts(&self) -> Result<KeyValues, Failure> {
        let pair = |line: &str| {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            (key.to_owned(), value.to_owned())
        };
        Ok(self.read("info")?.lines().map(pair).collect())
    }

    /// Reads its `ready` or `wait`; see [`Tree::awaited`].
    pub(super) fn awaited(
        &self,
        name: &str,
        wants_more: impl FnMut() -> bool,
    ) -> Result<Option<String>, Failure> {
        self.tree.awaited(&self.file(name), wants_more).map_err(|f| self.gone_or(f))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status(pub(super) String);

impl Status {
    pub(super) fn word(&self) -> &str {
        self.0.split(':').next().unwrap_or_default()
    }

    pub(super) fn is_off(&self) -> bool {
        matches!(self.word(), "stopped" | "failed" | "broken")
    }
}

/// Returns a fact by its key; nothing if there is none.
pub(super) fn fact<'a>(facts: &'a KeyValues, key: &str) -> &'a str {
    facts.iter().find(|(k, _)| k == key).map_or("", |(_, value)| value)
}

/// Waits until something can be read, or has failed, for `timeout` at the most.
pub(super) fn is_readable(file: &File, timeout: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&timeout)).is_ok_and(|n| n > 0)
}

/// A name that cannot lead out of the mount, or to one of our own files in it.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

/// The system's words without `(os error 2)`.
pub(super) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_no_vms() {
        let tree = Tree::at("/".into());
        for name in ["", ".", "..", "../victim", "/etc", "a/../b", ".images"] {
            assert!(matches!(tree.vm(name), Err(Failure::NoVm(..))), "{name}");
        }
    }

    #[test]
    fn the_sentence_is_that_of_this_very_thread_and_errno() {
        let dir = tempfile::tempdir().unwrap();
        let me = rustix::thread::gettid().as_raw_nonzero();
        let lines = format!(
            "1 {me} vm1/ctl 16 older\n2 {me} vm1/ctl 16 the VM is busy\n3 1 vm2/ctl 16 another's\n"
        );
        fs::write(dir.path().join(".error"), lines).unwrap();
        let tree = Tree::at(dir.path().to_owned());
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        assert_eq!(tree.sentence(&busy), "the VM is busy");
        let range = io::Error::from_raw_os_error(libc::ERANGE);
        assert_eq!(tree.sentence(&range), "Numerical result out of range");
    }

    #[test]
    fn a_status_with_a_reason_has_the_word_before_the_colon() {
        let status = Status("failed: no space".to_owned());
        assert!(status.is_off() && status.word() == "failed");
        assert!(!Status("ready".to_owned()).is_off());
    }
}
