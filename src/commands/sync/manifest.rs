//! What was sent: a file in the guest, below its user's home, so that snapshots, clones and forks have it as
//! they have the directory. A line of JSON for each file.
//!
//! It comes back from a guest, which may have written anything: it is bounded, and a path in it that is none
//! makes all of it void.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};

use serde::{Deserialize, Serialize};

use super::super::transfer::dir::DEEPEST;

/// The longest manifest that is read.
pub(super) const LONGEST: u64 = 256 << 20;
/// Files in one directory that is synchronised.
pub(super) const MOST_FILES: usize = 1_000_000;
const LONGEST_PATH: usize = 4096;
const VERSION: u32 = 1;

/// The common state of both sides, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    /// What was sent last has all arrived.
    pub(super) is_complete: bool,
    pub(super) files: BTreeMap<Vec<u8>, Record>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) mode: u32,
    #[serde(flatten)]
    pub(super) what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum What {
    Directory,
    File(FileRecord),
    Link(LinkRecord),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    pub(super) size: u64,
    pub(super) mtime: i64,
    /// SHA-256, in hexadecimal.
    pub(super) digest: String,
    /// It was recorded so soon after its time that a change may have the same time: the content is looked at.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_recent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LinkRecord {
    /// Where it leads on the host.
    pub(super) target: Name,
    /// What `fs` shows of it.
    pub(super) shown: Name,
}

impl LinkRecord {
    pub(super) fn on_the_host(&self) -> &Name {
        &self.target
    }

    pub(super) fn in_the_guest(&self) -> &Name {
        &self.shown
    }
}

/// Bytes that are text nearly always.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Name {
    Text(String),
    Bytes(Vec<u8>),
}

impl Name {
    pub(super) fn of(bytes: &[u8]) -> Self {
        str::from_utf8(bytes).map_or_else(|_| Self::Bytes(bytes.into()), |t| Self::Text(t.into()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    is_complete: bool,
}

#[derive(Serialize, Deserialize)]
struct Line {
    path: Name,
    #[serde(flatten)]
    record: Record,
}

impl Manifest {
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(from: impl Read) -> Result<Self, String> {
        let broken = |error: serde_json::Error| format!("it is not one of aq sync: {error}");
        let mut lines = BufReader::new(from.take(LONGEST)).split(b'\n');
        let mut next = || lines.next().transpose().map_err(|error| error.to_string());
        let header = next()?.ok_or("it is empty")?;
        let header: Header = serde_json::from_slice(&header).map_err(broken)?;
        if header.version != VERSION {
            return Err(format!("it is of version {}; a newer aq reads it", header.version));
        }
        let mut manifest = Self { is_complete: header.is_complete, files: BTreeMap::new() };
        while let Some(line) = next()? {
            let line: Line = serde_json::from_slice(&line).map_err(broken)?;
            let path = line.path.bytes().to_vec();
            if !is_path(&path) || manifest.files.len() >= MOST_FILES {
                return Err("it has a path that is none, or too many".to_owned());
            }
            manifest.files.insert(path, line.record);
        }
        Ok(manifest)
    }

    pub(super) fn write(&self, to: impl Write) -> std::io::Result<()> {
        let mut to = BufWriter::new(to);
        let header = Header { version: VERSION, is_complete: self.is_complete };
        writeln!(to, "{}", serde_json::to_string(&header)?)?;
        for (path, record) in &self.files {
            let line = Line { path: Name::of(path), record: record.clone() };
            writeln!(to, "{}", serde_json::to_string(&line)?)?;
        }
        to.flush()
    }
}

/// Says whether a path leads to something in the directory, by names alone.
fn is_path(path: &[u8]) -> bool {
    let is_name = |name: &[u8]| {
        !name.is_empty() && name != b"." && name != b".." && name.len() <= 255 && !name.contains(&0)
    };
    path.len() <= LONGEST_PATH
        && path.split(|b| *b == b'/').all(is_name)
        && path.split(|b| *b == b'/').count() <= DEEPEST
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let file = |is_recent| {
            What::File(FileRecord { size: 3, mtime: 7, digest: "ab".to_owned(), is_recent })
        };
        let link = LinkRecord { target: Name::of(b"/x"), shown: Name::of(b"../x\xff") };
        let records = [
            ("d", What::Directory),
            ("d/f", file(false)),
            ("g", file(true)),
            ("l", What::Link(link)),
        ];
        let files = records
            .map(|(path, what)| (path.as_bytes().to_vec(), Record { mode: 0o644, what }))
            .into_iter()
            .chain([(b"\xff\n".to_vec(), Record { mode: 0o755, what: What::Directory })]);
        Manifest { is_complete: true, files: files.collect() }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let mut bytes = Vec::new();
        sample().write(&mut bytes).unwrap();
        assert_eq!(Manifest::read(&*bytes), Ok(sample()));
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains(r#"{"path":"d","mode":420,"directory""#) || text.contains("directory"),
            "{text}"
        );
    }

    #[test]
    fn a_path_that_leads_elsewhere_makes_it_void() {
        for path in ["", "/etc/x", "../x", "a/../b", "a//b", "./a", "a/", "a\\u0000b"] {
            let text = format!(
                "{{\"version\":1,\"is_complete\":true}}\n{{\"path\":\"{path}\",\"mode\":420,\"file\":{{\"size\":1,\"mtime\":1,\"digest\":\"\"}}}}\n"
            );
            assert!(
                Manifest::read(text.as_bytes()).unwrap_err().contains("a path that is none"),
                "{path}"
            );
        }
        for text in ["", "{}", "x", "{\"version\":2,\"is_complete\":true}"] {
            assert!(Manifest::read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
