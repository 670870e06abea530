//! Files of the store that cannot be used: damaged, unreadable, or a directory. Each is renamed to
//! `NAME.unusable@TIME`, so that nothing is lost and the daemon continues without it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;

use super::failure_log::FailureLog;
use super::file;

/// Reads a JSON file; `None` if there is none that can be used.
pub fn read_json<T: DeserializeOwned>(path: &Path, failures: &FailureLog) -> Option<T> {
    let read = file::if_there(file::read_json(path));
    read.inspect_err(|error| quarantine(path, error, failures)).ok().flatten()
}

/// Reads a JSON file of a version; the default if there is none that can be used, or it has another version.
pub fn read_versioned<T: DeserializeOwned + Default>(
    path: &Path,
    wanted: u32,
    version: impl Fn(&T) -> u32,
    failures: &FailureLog,
) -> T {
    let Some(read) = read_json::<T>(path, failures) else { return T::default() };
    let version = version(&read);
    if version == wanted {
        return read;
    }
    let why = format!("it has version {version}; this aqfs reads {wanted}");
    quarantine(path, &io::Error::new(io::ErrorKind::InvalidData, why), failures);
    T::default()
}

/// Renames a file that cannot be used, and reports its new name and the reason.
pub fn quarantine(path: &Path, error: &io::Error, failures: &FailureLog) {
    let (shown, aside) = (path.display(), free_name(path));
    let text = match fs::rename(path, &aside) {
        Ok(()) => format!(
            "{shown} cannot be used ({error}): it is kept as {}, and the daemon continues without it; \
             mend it and put it back while nothing is mounted",
            aside.display()
        ),
        Err(stays) => format!(
            "{shown} cannot be used ({error}), nor put aside ({stays}): the daemon continues without \
             it; mend it while nothing is mounted"
        ),
    };
    failures.note(path, error, text);
}

/// `aliases.json.unusable@1795182212`
fn free_name(path: &Path) -> PathBuf {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut seconds = since.as_secs();
    loop {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".unusable@{seconds}"));
        let aside = path.with_file_name(name);
        if fs::symlink_metadata(&aside).is_err() {
            return aside;
        }
        seconds += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_renamed_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (path, failures) = (dir.path().join("x.json"), FailureLog::default());
        assert_eq!(read_json::<u32>(&path, &failures), None);
        assert!(failures.list().is_empty());
        fs::write(&path, "{").unwrap();
        assert_eq!(read_json::<u32>(&path, &failures), None);
        fs::create_dir(&path).unwrap();
        assert_eq!(read_json::<u32>(&path, &failures), None);
        assert!(!path.exists());
        let kept: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.path()).collect();
        let reported = failures.print();
        assert!(
            kept.len() == 2 && kept.iter().all(|k| reported.contains(&*k.to_string_lossy())),
            "{reported}"
        );
        fs::write(&path, "7").unwrap();
        assert_eq!(read_json(&path, &failures), Some(7));
    }

    #[test]
    fn another_version_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (path, failures) = (dir.path().join("x.json"), FailureLog::default());
        let read = |wanted| read_versioned(&path, wanted, |number: &u32| *number, &failures);
        assert_eq!(read(7), 0);
        fs::write(&path, "7").unwrap();
        assert_eq!((read(7), read(8)), (7, 0));
        assert!(!path.exists() && failures.print().contains("version 7; this aqfs reads 8"));
    }
}
