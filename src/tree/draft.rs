//! Texts that are longer than a write: what one open file is given makes one text.
//!
//! Which texts are taken is `vm::spec`'s business.

use parking_lot::Mutex;

use super::TreeError;
use crate::vm::VmError;
use crate::vm::spec::Key;
use crate::vm::spec::text::LONGEST_TEXT;

/// Programs write long texts in pieces whose lengths are multiples of this, but for the last.
const BLOCK: usize = 512;

/// What gzip's files begin with. Guests would read them, settings are text.
const GZIP: &[u8] = &[0x1f, 0x8b];

/// A text as far as it was written.
pub(super) struct Draft {
    key: &'static Key,
    written: Mutex<Written>,
}

struct Written {
    bytes: Vec<u8>,
    /// The text, or why it cannot be taken as it is, while more may come.
    pending: Option<Result<String, TreeError>>,
}

impl Draft {
    /// Begins a text; `before`: what it is added to.
    pub(super) fn new(key: &'static Key, before: Vec<u8>) -> Self {
        Self { key, written: Mutex::new(Written { bytes: before, pending: None }) }
    }

    /// Adds a piece and returns the text; `None` while more may come: the beginning of a text can be one
    /// too, and taken by itself would stay when what follows is refused.
    pub(super) fn add(&self, piece: &[u8]) -> Result<Option<String>, TreeError> {
        let Written { bytes, pending } = &mut *self.written.lock();
        let before = bytes.len();
        if before + piece.len() > LONGEST_TEXT + 1 {
            return Err(TreeError::TooBig(LONGEST_TEXT));
        }
        bytes.extend_from_slice(piece);
        let text = self.taken(bytes);
        if piece.len().is_multiple_of(BLOCK) {
            *pending = Some(text);
            return Ok(None);
        }
        *pending = None;
        text.map(Some).inspect_err(|_| bytes.truncate(before))
    }

    /// Returns once what was held back, or why it cannot be taken, when nothing more comes.
    pub(super) fn at_close(&self) -> Option<Result<String, TreeError>> {
        self.written.lock().pending.take()
    }

    fn taken(&self, bytes: &[u8]) -> Result<String, TreeError> {
        if bytes.starts_with(GZIP) {
            return Err(VmError::from(self.key.compressed()).into());
        }
        let text = std::str::from_utf8(bytes).map_err(|_| TreeError::NotText)?;
        self.key.check(text).map_err(VmError::from)?;
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft() -> Draft {
        Draft::new(Key::named("user_data").unwrap(), Vec::new())
    }

    #[test]
    fn a_text_in_pieces_is_taken_when_it_is_whole() {
        let text = format!("#cloud-config\nruncmd:\n  - [echo, \"{}é\"]\n", "x".repeat(5000));
        for size in [512, 4096] {
            let (draft, mut rest) = (draft(), text.as_bytes());
            while let Some((piece, after)) = rest.split_at_checked(size) {
                assert_eq!(draft.add(piece).unwrap(), None);
                rest = after;
            }
            assert_eq!(draft.add(rest).unwrap(), Some(text.clone()));
            assert!(draft.at_close().is_none());
        }
    }

    #[test]
    fn the_beginning_of_a_text_that_is_refused_is_not_taken() {
        let draft = draft();
        let line = format!("#cloud-config\na: {}\n", "x".repeat(512 - 18));
        assert_eq!(draft.add(line.as_bytes()).unwrap(), None);
        assert!(draft.add(b"b: [\n").is_err());
        assert!(draft.at_close().is_none());
        assert_eq!(draft.add(b"b: c\n").unwrap(), Some(line + "b: c\n"));
    }

    #[test]
    fn a_text_of_whole_blocks_is_taken_at_its_end() {
        let draft = draft();
        let text = format!("#cloud-config\na: {}\n", "x".repeat(1024 - 18));
        assert_eq!(draft.add(text.as_bytes()).unwrap(), None);
        assert_eq!(draft.at_close().unwrap().unwrap(), text);
        assert!(draft.at_close().is_none());
    }

    #[test]
    fn one_that_stays_cut_is_a_fault_at_its_end() {
        let draft = draft();
        let cut = format!("#cloud-config\na: \"{}", "x".repeat(512));
        assert_eq!(draft.add(&cut.as_bytes()[..512]).unwrap(), None);
        assert!(draft.at_close().unwrap().is_err() && draft.at_close().is_none());
    }

    #[test]
    fn what_cannot_become_a_text_is_refused_at_once() {
        let draft = draft();
        assert!(draft.add(b"packages: [vim]\n").is_err());
        // The next attempt on the same descriptor begins anew.
        assert!(draft.add(b"#cloud-config\n").unwrap().is_some());
        assert!(draft.add(b"a: [\n").is_err());
        let compressed =
            Draft::new(draft.key, Vec::new()).add(b"\x1f\x8b\x08\0").unwrap_err().to_string();
        let long = vec![b'#'; LONGEST_TEXT];
        assert!(matches!(draft.add(&long), Err(TreeError::TooBig(_))));
        assert!(compressed.ends_with("`zcat FILE > config/user_data`"), "{compressed}");
    }
}
