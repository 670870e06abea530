//! What a share's files may hold: source, target, mode, cache.

use std::path::{Component, Path, PathBuf};

use super::stored::{Settings, fresh_number};

/// The longest time that a guest may take names and attributes to be as they were.
const LONGEST_CACHE: u32 = 3600;
/// The longest path.
const LONGEST_PATH: usize = 1024;

/// Why a share is not made, or a value of it not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error's sentence says it")]
pub enum ShareError {
    #[error("a share named {0} exists")]
    Exists(String),
    #[error("no such share")]
    Absent,
    #[error("a VM has at most {0} shares; remove one with `rmdir` first")]
    TooMany(usize),
    #[error(
        "source: {0:?} is not an absolute path, and the daemon does not know where you are; `echo \
         \"$PWD\" > source` is this directory"
    )]
    Relative(String),
    #[error(
        "source: / would give the guest all files of the host; name the directory that it needs"
    )]
    Everything,
    #[error("source: {path}: {reason}; name a directory that is there and that you can read")]
    Source { path: String, reason: String, errno: i32 },
    #[error("source: {0} is not a directory; name the directory that it lies in")]
    NoDirectory(String),
    #[error(
        "source: {0:?} is not one line of text; give the directory a name without such characters"
    )]
    NotText(PathBuf),
    #[error(
        "source: {path} {relation} {own}, which is the daemon's own; name another directory, or one \
         beside it"
    )]
    Own { path: String, relation: &'static str, own: String },
    #[error(
        "target: {0:?} cannot be a place in the guest; write an absolute path of one line, such as \
         /srv/src, without . and .. and not / itself"
    )]
    Target(String),
    #[error("target: the share {other} is at {target} already; `echo /ANOTHER > target`")]
    SameTarget { target: String, other: String },
    #[error("mode: {0:?} is neither `rw` nor `ro`")]
    Mode(String),
    #[error("cache: {0:?} is not a number of seconds from 0 to {LONGEST_CACHE}")]
    Cache(String),
}

/// A value of a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The directory of the host.
    Source,
    /// Where the guest has it.
    Target,
    /// `rw` or `ro`.
    Mode,
    /// Seconds for which the guest takes names and attributes to be as they were.
    Cache,
}

impl Settings {
    pub(super) fn text(&self, field: Field, name: &str) -> String {
        match field {
            Field::Source => self.source.clone().unwrap_or_default(),
            Field::Target => self.target_of(name),
            Field::Mode => if self.read_only { "ro" } else { "rw" }.to_owned(),
            Field::Cache => self.cache.to_string(),
        }
    }

    /// Sets a value to a text. An empty one changes nothing; `default` takes back what was said.
    pub(super) fn set(
        &mut self,
        field: Field,
        text: &str,
        own: &[PathBuf],
    ) -> Result<(), ShareError> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        match (field, text) {
            (_, "") => Ok(()),
            (Field::Source, text) => self.set_source(text, own),
            (Field::Target, "default") => {
                self.target = None;
                Ok(())
            }
            (Field::Target, text) => {
                self.target = Some(target(text)?);
                Ok(())
            }
            (Field::Mode, "rw" | "default") => {
                self.read_only = false;
                Ok(())
            }
            (Field::Mode, "ro") => {
                self.read_only = true;
                Ok(())
            }
            (Field::Mode, text) => Err(ShareError::Mode(text.to_owned())),
            (Field::Cache, text) => {
                self.cache = cache(text)?;
                Ok(())
            }
        }
    }

    fn set_source(&mut self, text: &str, own: &[PathBuf]) -> Result<(), ShareError> {
        let new = source(text, own)?;
        if self.source.as_ref() != Some(&new) {
            self.number = fresh_number();
            self.source = Some(new);
        }
        Ok(())
    }
}

/// Finds the directory that a path leads to. It is stored by its own path: a link on the way, which a guest may
/// be able to change through another share, does not lead it elsewhere later.
fn source(text: &str, own: &[PathBuf]) -> Result<String, ShareError> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(ShareError::Relative(text.to_owned()));
    }
    one_line(path)?;
    // Before it is looked at: our own mount would ask this daemon.
    apart(path, own)?;
    let failed = |error: std::io::Error| ShareError::Source {
        path: text.to_owned(),
        reason: error.to_string(),
        errno: error.raw_os_error().unwrap_or(0),
    };
    let real = path.canonicalize().map_err(failed)?;
    apart(&real, own)?;
    if !real.is_dir() {
        return Err(ShareError::NoDirectory(text.to_owned()));
    }
    std::fs::read_dir(&real).map_err(failed)?;
    one_line(&real).map(str::to_owned)
}

/// A path is shown in lines.
fn one_line(path: &Path) -> Result<&str, ShareError> {
    let text = path.to_str().filter(|text| !text.contains(char::is_control));
    text.ok_or_else(|| ShareError::NotText(path.to_owned()))
}

/// Refuses what holds our own directories or lies in them.
fn apart(path: &Path, own: &[PathBuf]) -> Result<(), ShareError> {
    if path.components().eq([Component::RootDir]) {
        return Err(ShareError::Everything);
    }
    for own in own {
        let relation = match (path.starts_with(own), own.starts_with(path)) {
            (true, _) => "lies in",
            (false, true) => "contains",
            (false, false) => continue,
        };
        let (path, own) = (path.display().to_string(), own.display().to_string());
        return Err(ShareError::Own { path, relation, own });
    }
    Ok(())
}

fn target(text: &str) -> Result<String, ShareError> {
    let bad = || ShareError::Target(text.to_owned());
    let path = Path::new(text);
    // `components` leaves out what `.` and doubled slashes are: what is left must be names.
    let names: Vec<_> = path.components().skip(1).collect();
    let are_names = names.iter().all(|c| matches!(c, Component::Normal(_)));
    let has_control = text.contains(char::is_control);
    let good = path.is_absolute() && !names.is_empty() && are_names;
    if !good || has_control || text.len() > LONGEST_PATH {
        return Err(bad());
    }
    let clean: PathBuf = path.components().collect();
    clean.into_os_string().into_string().map_err(|_| bad())
}

fn cache(text: &str) -> Result<u32, ShareError> {
    let default = Settings::new().cache;
    match text.parse() {
        _ if text == "default" => Ok(default),
        Ok(seconds) if seconds <= LONGEST_CACHE && !text.starts_with('+') => Ok(seconds),
        Ok(_) | Err(_) => Err(ShareError::Cache(text.to_owned())),
    }
}
