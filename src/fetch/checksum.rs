//! Checksums, and the lists in which distributions publish them: GNU (`HASH  FILE`), BSD
//! (`SHA256 (FILE) = HASH`), and a file with the one checksum of the file beside it.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest, Sha256, Sha512};

use super::{Cancel, FetchError};

/// How much is read between two looks at [`Cancel`].
const PIECE: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Algorithm {
    Sha256,
    Sha512,
}

/// A checksum that a file should have: `sha256:…` or `sha512:…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    algorithm: Algorithm,
    hex: String,
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithm = match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        };
        write!(f, "{algorithm}:{}", self.hex)
    }
}

/// `sha256:…`, `sha256=…`, or the digits alone, whose number says which it is.
impl FromStr for Checksum {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (named, hex) = text.split_once([':', '=']).map_or((None, text), |(n, h)| (Some(n), h));
        let checksum = Self::of_digits(hex).ok_or(())?;
        let fits = named.is_none_or(|named| checksum.to_string().starts_with(&format!("{named}:")));
        fits.then_some(checksum).ok_or(())
    }
}

impl Checksum {
    fn of_digits(hex: &str) -> Option<Self> {
        let algorithm = match hex.len() {
            64 => Algorithm::Sha256,
            128 => Algorithm::Sha512,
            _ => return None,
        };
        let plain = hex.bytes().all(|c| c.is_ascii_hexdigit());
        plain.then(|| Self { algorithm, hex: hex.to_ascii_lowercase() })
    }

    /// Computes the checksum of the same kind of a file.
    ///
    /// # Errors
    /// What reading answers, or `Cancelled`.
    pub fn of_same_kind(&self, path: &Path, cancel: &Cancel) -> Result<Self, FetchError> {
        let hex = match self.algorithm {
            Algorithm::Sha256 => hash::<Sha256>(path, cancel)?,
            Algorithm::Sha512 => hash::<Sha512>(path, cancel)?,
        };
        Ok(Self { algorithm: self.algorithm, hex })
    }
}

fn hash<D: Digest>(path: &Path, cancel: &Cancel) -> Result<String, FetchError> {
    let mut file = File::open(path).map_err(FetchError::io(path))?;
    let (mut digest, mut piece) = (D::new(), vec![0; PIECE]);
    loop {
        cancel.check()?;
        match file.read(&mut piece).map_err(FetchError::io(path))? {
            0 => break,
            n => digest.update(&piece[..n]),
        }
    }
    let digits = digest.finalize();
    Ok(digits.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A list of checksums.
#[derive(Clone, Debug)]
pub struct ChecksumList {
    url: String,
    /// A file without a name is the one beside the list.
    entries: Vec<(Option<String>, Checksum)>,
}

impl ChecksumList {
    /// Reads the list that `url` has. Lines of another form are comments.
    ///
    /// # Errors
    /// `NoChecksum` if there is none in it.
    pub fn parse(url: &str, text: &str) -> Result<Self, FetchError> {
        let entries: Vec<_> = text.lines().filter_map(entry).collect();
        if entries.is_empty() {
            return Err(FetchError::NoChecksum { what: url.to_owned() });
        }
        Ok(Self { url: url.to_owned(), entries })
    }

    /// Lists the names in it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter_map(|(name, _)| name.as_deref())
    }

    /// Returns the checksum of the file that the list is beside. It may be a link to one of a longer
    /// name: `x-Cloud.qcow2` to `x-15.6.0-Cloud-Build3.qcow2`.
    ///
    /// # Errors
    /// `NotListed` if it has none: a list of another file may be signed by the same key.
    pub fn beside(&self, file: &str) -> Result<&Checksum, FetchError> {
        let stem = file.rsplit_once('-').map_or(file, |(stem, _)| stem);
        match &self.entries[..] {
            [(Some(name), checksum)] if name.starts_with(stem) => Ok(checksum),
            _ => self.find(file),
        }
    }

    /// Returns the strongest checksum of a file.
    ///
    /// # Errors
    /// `NotListed` if it has none.
    pub fn find(&self, file: &str) -> Result<&Checksum, FetchError> {
        let alone = self.entries.len() == 1;
        let is_it = |name: &Option<String>| name.as_deref().map_or(alone, |name| name == file);
        let found = self.entries.iter().filter(|(name, _)| is_it(name)).map(|(_, sum)| sum);
        found
            .max_by_key(|sum| sum.algorithm)
            .ok_or_else(|| FetchError::NotListed { list: self.url.clone(), file: file.to_owned() })
    }
}

fn entry(line: &str) -> Option<(Option<String>, Checksum)> {
    let line = line.trim();
    // Paths are those of the server's disk.
    let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
    if let Some((file, hex)) = bsd(line) {
        return Some((name(file), Checksum::of_digits(hex)?));
    }
    let (hex, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let file = rest.trim_start().trim_start_matches('*');
    let checksum = Checksum::of_digits(hex)?;
    Some((name(file).filter(|name| !name.is_empty()), checksum))
}

/// `SHA256 (FILE) = HASH`
fn bsd(line: &str) -> Option<(&str, &str)> {
    let (head, hex) = line.rsplit_once(") = ")?;
    let (_, file) = head.split_once(" (")?;
    Some((file, hex.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_list_is_read_and_the_strongest_checksum_is_taken() {
        let (short, long) = ("a".repeat(64), "B".repeat(128));
        let forms = [
            format!("{short}  disk.qcow2\n{short}  other"),
            format!("{short} *./images/disk.qcow2\n{long}  disk.qcow2"),
            format!("# disk.qcow2: 5 bytes\nSHA256 (disk.qcow2) = {short}\n"),
            format!("{long}\n"),
        ];
        let expected = [&short, &long, &short, &long];
        for (form, expected) in forms.iter().zip(expected) {
            let list = ChecksumList::parse("https://x/LIST", form).unwrap();
            assert_eq!(list.find("disk.qcow2").unwrap().hex, expected.to_lowercase(), "{form}");
        }
    }

    #[test]
    fn a_list_beside_a_file_is_of_that_file_or_of_what_it_links_to() {
        let of = |name: &str| {
            let text = format!("{}  {name}\n", "0".repeat(64));
            let list = ChecksumList::parse("https://x/L", &text).unwrap();
            list.beside("Leap-15.6-VM.x86_64-Cloud.qcow2").is_ok()
        };
        assert!(of("Leap-15.6-VM.x86_64-Cloud.qcow2"));
        assert!(of("Leap-15.6-VM.x86_64-15.6.0-Cloud-Build16.6.qcow2"));
        assert!(!of("Leap-15.5-VM.x86_64-15.5.0-Cloud-Build12.3.qcow2"));
        assert!(!of("other.qcow2"));
    }

    #[test]
    fn what_is_not_listed_is_told_and_a_page_of_html_is_no_list() {
        let list = ChecksumList::parse("https://x/L", &format!("{}  a", "0".repeat(64))).unwrap();
        assert_eq!(list.find("b").unwrap_err().to_string(), "https://x/L: it does not name b");
        assert!(ChecksumList::parse("https://x/L", "<html>404</html>").is_err());
    }

    #[test]
    fn a_checksum_has_a_kind_that_fits_its_length() {
        let hex = "1".repeat(64);
        assert_eq!(
            format!("sha256={hex}").parse::<Checksum>().unwrap().to_string(),
            format!("sha256:{hex}")
        );
        for bad in [format!("sha512:{hex}"), "sha256:12".to_owned(), "z".repeat(64), String::new()]
        {
            assert!(bad.parse::<Checksum>().is_err(), "{bad}");
        }
    }
}
