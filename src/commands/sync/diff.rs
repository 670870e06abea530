//! Printing what has changed in the guest, as `git diff` does, so that patch(1) and `git apply` read it.

use std::io::{self, IsTerminal, Read, Write};
use std::time::Duration;

use console::style;
use rustix::fs::FileType;
use sha2::{Digest, Sha256};
use similar::{Algorithm, TextDiff};

use super::super::Failure;
use super::super::text::note;
use super::super::transfer::dir::{Dir, printable, refused};
use super::Pair;
use super::compare::{Change, Tree, changes};
use super::manifest::{FileRecord, Record, What};
use super::scan::{Item, hex, split, walk};

/// The longest file whose lines are compared.
const LONGEST: u64 = 4 << 20;
/// How much of a file is looked at for bytes that no text has, as git does.
const LOOKED_AT: usize = 8000;
/// How long the best way from one text to another is looked for.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(2);

/// Prints what has changed, and returns whether something has.
pub(super) fn run(pair: &Pair<'_>) -> Result<bool, Failure> {
    let (manifest, guest) = (pair.complete_manifest()?, pair.expect_guest()?);
    let found = changes(&manifest, &guest).map_err(refused(pair.to.shown()))?;
    let (plain, others): (Vec<_>, Vec<_>) = found.into_iter().partition(Change::is_plain);
    others.iter().for_each(|change| note(left_out(change.path)));
    let is_terminal = io::stdout().is_terminal();
    for change in &plain {
        let text = Difference { pair, guest: &guest, change }.text()?;
        print(&text, is_terminal).map_err(Failure::Output)?;
    }
    Ok(!plain.is_empty())
}

pub(super) fn left_out(path: &[u8]) -> String {
    format!("aq: {}: left out: it is neither a file nor a directory nor a link", printable(path))
}

/// A version of a file.
enum Version {
    Absent,
    Directory {
        mode: u32,
    },
    /// With the mode that git has for it.
    File {
        mode: u32,
        content: Content,
    },
}

enum Content {
    Text(Vec<u8>),
    /// It has bytes that no text has, or is too long.
    Binary,
}

impl Content {
    fn of(bytes: Vec<u8>) -> Self {
        let begin = &bytes[..bytes.len().min(LOOKED_AT)];
        let is_text = !begin.contains(&0) && bytes.len() as u64 <= LONGEST;
        if is_text { Self::Text(bytes) } else { Self::Binary }
    }
}

struct Difference<'a> {
    pair: &'a Pair<'a>,
    guest: &'a Tree,
    change: &'a Change<'a>,
}

impl Difference<'_> {
    fn text(&self) -> Result<Vec<u8>, Failure> {
        let mut text = Vec::new();
        let old = match self.change.was {
            Some(was) => self.old(was, &mut text),
            None => Ok(Version::Absent),
        };
        let new = self.change.is.map_or(Ok(Version::Absent), |item| self.new_version(item));
        let what = || self.guest.root.shown(std::ffi::OsStr::new(&printable(self.change.path)));
        let (old, new) = (old.map_err(refused(what()))?, new.map_err(refused(what()))?);
        let is_same_kind = match (&old, &new) {
            (Version::File { mode: old, .. }, Version::File { mode: new, .. }) => {
                old >> 12 == new >> 12
            }
            (Version::Absent, _) | (_, Version::Absent) => true,
            (Version::Directory { .. }, Version::Directory { .. }) => true,
            (Version::Directory { .. } | Version::File { .. }, _) => false,
        };
        let name = quoted(self.change.path);
        self.note_permissions(&mut text);
        if is_same_kind {
            compare(&name, &old, &new, &mut text);
        } else {
            compare(&name, &old, &Version::Absent, &mut text);
            compare(&name, &Version::Absent, &new, &mut text);
        }
        Ok(text)
    }

    /// Permissions that git has no word for.
    fn note_permissions(&self, text: &mut Vec<u8>) {
        let (Some(Record { mode: was, what: What::File(_) }), Some(item)) =
            (self.change.was, self.change.is)
        else {
            return;
        };
        let is = item.meta.mode;
        if item.meta.kind == FileType::RegularFile && *was != is && git_mode(*was) == git_mode(is) {
            let name = printable(self.change.path);
            text.extend(
                format!("# {name} had the permissions {was:03o} and has {is:03o}\n").bytes(),
            );
        }
    }

    /// What was sent, which the host has still unless it has changed there.
    fn old(&self, was: &Record, text: &mut Vec<u8>) -> io::Result<Version> {
        Ok(match &was.what {
            What::Directory => Version::Directory { mode: was.mode },
            What::Link(link) => link_version(link.target.bytes()),
            What::File(file) => {
                let content = self.sent(file, text)?;
                Version::File { mode: git_mode(was.mode), content }
            }
        })
    }

    fn sent(&self, file: &FileRecord, text: &mut Vec<u8>) -> io::Result<Content> {
        if file.size > LONGEST {
            return Ok(Content::Binary);
        }
        let bytes = read(&self.pair.host, self.change.path);
        let is_sent = |bytes: &Vec<u8>| hex(Sha256::new().chain_update(bytes)) == file.digest;
        if !bytes.as_ref().is_ok_and(is_sent) {
            let name = printable(self.change.path);
            writeln!(
                text,
                "# {name} has changed on the host too since the sync: this is the difference to it"
            )?;
        }
        Ok(Content::of(bytes.unwrap_or_default()))
    }

    fn new_version(&self, item: &Item) -> io::Result<Version> {
        let mode = item.meta.mode;
        if item.meta.is_dir() {
            return Ok(Version::Directory { mode });
        }
        if item.meta.kind == FileType::Symlink {
            return Ok(link_version(&self.pair.target(self.change.path, item)));
        }
        let content = match item.meta.size > LONGEST {
            true => Content::Binary,
            false => Content::of(read(&self.guest.root, self.change.path)?),
        };
        Ok(Version::File { mode: git_mode(mode), content })
    }
}

/// Git knows of a file whether it is executable.
fn git_mode(mode: u32) -> u32 {
    if mode & 0o100 == 0 { 0o100_644 } else { 0o100_755 }
}

/// Git has a link as a file that holds its target.
fn link_version(target: &[u8]) -> Version {
    Version::File { mode: 0o120_000, content: Content::Text(target.to_vec()) }
}

/// Reads a file, up to what is longer than any that is compared.
fn read(root: &Dir, path: &[u8]) -> io::Result<Vec<u8>> {
    let (directory, name) = split(path);
    let (file, _) = walk(root, directory)?.file(name)?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn compare(name: &str, old: &Version, new: &Version, text: &mut Vec<u8>) {
    let mut line = |line: String| text.extend_from_slice(format!("{line}\n").as_bytes());
    match (old, new) {
        (Version::Absent, Version::Directory { mode }) => {
            line(format!("new directory {name}/ mode {mode:03o}"));
        }
        (Version::Directory { mode }, Version::Absent) => {
            line(format!("deleted directory {name}/ mode {mode:03o}"));
        }
        (Version::Directory { mode }, Version::Directory { mode: new }) => {
            line(format!("directory {name}/ old mode {mode:03o}, new mode {new:03o}"));
        }
        (
            Version::File { mode: old, content: Content::Text(a) },
            Version::File { mode: new, content: Content::Text(b) },
        ) if old == new && a == b => {}
        (old, new) => {
            line(
                format!("diff --git a/{name} b/{name}")
                    .replace("a/\"", "\"a/")
                    .replace("b/\"", "\"b/"),
            );
            compare_files(name, old, new, text);
        }
    }
}

fn compare_files(name: &str, old: &Version, new: &Version, text: &mut Vec<u8>) {
    let empty = Content::Text(Vec::new());
    let parts = |version| match version {
        &Version::File { mode, ref content } => (Some(mode), content),
        Version::Absent | Version::Directory { .. } => (None, &empty),
    };
    let ((old_mode, old), (new_mode, new)) = (parts(old), parts(new));
    let modes = match (old_mode, new_mode) {
        (None, Some(new)) => format!("new file mode {new:o}\n"),
        (Some(old), None) => format!("deleted file mode {old:o}\n"),
        (Some(old), Some(new)) if old != new => format!("old mode {old:o}\nnew mode {new:o}\n"),
        (Some(_), Some(_)) | (None, None) => String::new(),
    };
    text.extend_from_slice(modes.as_bytes());
    let label = |side: &str, mode: Option<u32>| match mode {
        Some(_) => format!("{side}/{name}").replace(&format!("{side}/\""), &format!("\"{side}/")),
        None => "/dev/null".to_owned(),
    };
    let (from, to) = (label("a", old_mode), label("b", new_mode));
    let (Content::Text(old), Content::Text(new)) = (old, new) else {
        text.extend_from_slice(format!("Binary files {from} and {to} differ\n").as_bytes());
        return;
    };
    if old != new {
        text.extend_from_slice(format!("--- {from}\n+++ {to}\n").as_bytes());
        let mut config = TextDiff::configure();
        let diff = config.algorithm(Algorithm::Patience).timeout(SEARCH_TIMEOUT);
        let diff = diff.diff_lines(old.as_slice(), new.as_slice());
        // Writing to memory does not fail.
        let _written = diff.unified_diff().context_radius(3).to_writer(text);
    }
}

/// A name as git writes it: with quotes where it has bytes that could be mistaken.
fn quoted(path: &[u8]) -> String {
    let is_plain = |b: &u8| (0x20..0x7f).contains(b) && !matches!(b, b'"' | b'\\') || *b >= 0x80;
    match str::from_utf8(path) {
        Ok(text) if path.iter().all(is_plain) => text.to_owned(),
        Ok(_) | Err(_) => {
            let escape = |b: &u8| match b {
                b'"' | b'\\' => format!("\\{}", *b as char),
                0x20..0x7f => (*b as char).to_string(),
                b => format!("\\{b:03o}"),
            };
            format!("\"{}\"", path.iter().map(escape).collect::<String>())
        }
    }
}

/// Prints lines. On a terminal they have colours, and what would steer it is shown as text.
fn print(text: &[u8], is_terminal: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if !is_terminal {
        return out.write_all(text);
    }
    text.split_inclusive(|b| *b == b'\n').try_for_each(|line| {
        let line = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line)).into_owned();
        writeln!(out, "{}", coloured(&harmless(&line)))
    })
}

fn harmless(line: &str) -> String {
    let shown = |c: char| match c {
        '\t' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    line.chars().map(shown).collect()
}

fn coloured(line: &str) -> String {
    let line = style(line);
    match line.to_string().as_bytes() {
        text if text.starts_with(b"+++")
            || text.starts_with(b"---")
            || text.starts_with(b"diff ") =>
        {
            line.bold()
        }
        [b'+', ..] => line.green(),
        [b'-', ..] => line.red(),
        [b'@', ..] => line.cyan(),
        _ => line,
    }
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(mode: u32, text: &[u8]) -> Version {
        Version::File { mode, content: Content::of(text.to_vec()) }
    }

    fn compared(name: &[u8], old: &Version, new: &Version) -> String {
        let mut text = Vec::new();
        compare(&quoted(name), old, new, &mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn it_reads_as_git_diff_does() {
        let (old, new) = (file(0o100_644, b"a\nb\n"), file(0o100_755, b"a\nc"));
        let both = "diff --git a/x b/x\nold mode 100644\nnew mode 100755\n--- a/x\n+++ b/x\n\
            @@ -1,2 +1,2 @@\n a\n-b\n+c\n\\ No newline at end of file\n";
        assert_eq!(compared(b"x", &old, &new), both);
        let added = "diff --git a/x b/x\nnew file mode 100644\n--- /dev/null\n+++ b/x\n@@ -0,0 +1,2 @@\n+a\n+b\n";
        assert_eq!(compared(b"x", &Version::Absent, &old), added);
        let binary = "diff --git a/x b/x\nBinary files a/x and b/x differ\n";
        assert_eq!(compared(b"x", &old, &file(0o100_644, b"\0")), binary);
        let empty = "diff --git a/x b/x\ndeleted file mode 100644\n";
        assert_eq!(compared(b"x", &file(0o100_644, b""), &Version::Absent), empty);
        let named = compared(b"a\x1b\"", &Version::Absent, &file(0o100_644, b""));
        assert!(named.starts_with("diff --git \"a/a\\033\\\"\" \"b/a\\033\\\"\"\n"), "{named}");
    }

    #[test]
    fn what_steers_a_terminal_is_text() {
        assert_eq!(harmless("a\tb\x1b[31m\r"), "a\tb\\u{1b}[31m\\r");
    }
}
