//! Files that are whole or absent: written to a temporary name, synced, renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

/// Turns the absence of a file into `None`.
pub fn if_there<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How the names of files begin that are not whole yet.
const TEMPORARY: &str = ".tmp";

/// Removes the temporary files that a killed process has left of [`replace`] and [`create`] in a directory,
/// if there is one. Nothing else may write there meanwhile.
pub fn sweep(dir: &Path) -> io::Result<()> {
    for entry in if_there(fs::read_dir(dir))?.into_iter().flatten() {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Replaces `path` by `bytes`, readable by the owner alone. After a crash at any moment the old or
/// the new content is there, never a mixture; a failure leaves the old one and nothing else.
///
/// # Errors
/// Whatever creating, writing, syncing or renaming answers; `ENOSPC` on a full disk.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path, bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|e| e.error)?;
    sync_dir(dir_of(path))
}

/// Does what [`replace`] does without waiting for the disk: after a crash of the host, and only then, the
/// file can be the old one, the new one, absent, or empty.
pub fn replace_unsynced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    temporary(path, bytes)?.persist(path).map_err(|e| e.error).map(drop)
}

/// Writes `bytes` to a new file beside `path`, which is removed unless it is kept.
fn temporary(path: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut temporary = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(dir_of(path))?;
    temporary.write_all(bytes)?;
    Ok(temporary)
}

fn dir_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("."))
}

/// Writes `path` unless it is there, readable by the owner alone, whole or not at all; says whether
/// it was written. Of several that try at once, one wins.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let temporary = temporary(path, bytes)?;
    temporary.as_file().sync_all()?;
    match temporary.persist_noclobber(path) {
        Ok(_) => sync_dir(dir_of(path)).map(|()| true),
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e.error),
    }
}

/// Replaces `path` by `value` as JSON; see [`replace`].
pub fn replace_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    replace(path, &bytes)
}

/// Removes a file, if it is there.
pub fn remove(path: &Path) -> io::Result<()> {
    if_there(fs::remove_file(path)).map(drop)
}

/// Adds `bytes` to the end of `path`, in one write.
pub fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    open_log(path)?.write_all(bytes)
}

/// Opens a file to add to its end; it is made if need be, for the owner alone.
pub fn open_log(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().append(true).create(true).mode(0o600).open(path)
}

/// Opens a file that a user has named, to read it. It is a regular file, or an error: opening a FIFO would
/// wait for its other end.
pub fn open_regular(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblocking).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// Reads a JSON file.
///
/// # Errors
/// `NotFound` if it is absent, `InvalidData` naming line and column if it is damaged.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let bytes = fs::read(path)?;
    serde_json::from_slice(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Makes changes of names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates a directory and its parents, for the owner alone. One that is there is kept as it is.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_replacement_keeps_the_old_content_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a-directory");
        fs::create_dir(&target).unwrap();
        assert!(replace(&target, b"x").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_what_is_half_written_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        replace(&dir.path().join("x"), b"x").unwrap();
        let half = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(dir.path()).unwrap();
        half.keep().unwrap();
        sweep(dir.path()).unwrap();
        sweep(&dir.path().join("nowhere")).unwrap();
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["x"]);
    }

    #[test]
    fn only_regular_files_are_opened_and_a_fifo_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), b"x").unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), rustix::fs::Mode::RUSR).unwrap();
        assert!(open_regular(&at("file")).is_ok());
        for name in ["fifo", "", "nowhere"] {
            assert!(open_regular(&at(name)).is_err(), "{name}");
        }
        assert!(open_regular(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn damaged_json_is_invalid_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        replace(&path, b"{\"a\": ").unwrap();
        let error = read_json::<serde_json::Value>(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
