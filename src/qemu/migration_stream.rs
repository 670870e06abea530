//! The start of QEMU's migration stream, as a snapshot's memory holds it: read before it is loaded.
//!
//! QEMU's `docs/devel/migration` describes the format. The stream begins with a configuration
//! section; nothing behind it is read here.

use std::path::Path;

use crate::disk::vmstate;

/// How many bytes are read: the section has some 100.
const LENGTH: usize = 1024;
/// How a stream begins: `QEVM` and its version.
const MAGIC: &[u8] = b"QEVM\0\0\0\x03";
/// What the section begins with, and each of its subsections.
const CONFIGURATION: u8 = 7;
const SUBSECTION: u8 = 5;
/// The subsection that lists the capabilities that were set, of those that must be set again.
const CAPABILITIES: &[u8] = b"configuration/capabilities";
/// One that may precede it, and the bytes of its content.
const PAGE_BITS: (&[u8], usize) = (b"configuration/target-page-bits", 4);
/// The capability that a clone's QEMU has set, and kept in earlier versions of aqfs.
const IGNORE_SHARED: &[u8] = b"x-ignore-shared";

/// Says whether a snapshot's memory was saved with the capability `x-ignore-shared` set: QEMU then
/// loads it only if it is set again. Returns false for a memory that cannot be read.
pub(super) fn ignores_shared(disk: &Path, tag: &str) -> bool {
    let start = vmstate::start_of(disk, tag, LENGTH).unwrap_or_default();
    capabilities(&start).unwrap_or_default().contains(&IGNORE_SHARED)
}

/// Returns the capabilities in the first bytes of a stream; `None` if it does not list them.
fn capabilities(start: &[u8]) -> Option<Vec<&[u8]>> {
    let mut stream = ByteReader(start);
    if stream.take(MAGIC.len())? != MAGIC || stream.byte()? != CONFIGURATION {
        return None;
    }
    let machine_type = stream.number()?;
    stream.take(machine_type)?;
    let mut subsection = stream.subsection()?;
    if subsection == PAGE_BITS.0 {
        stream.take(PAGE_BITS.1)?;
        subsection = stream.subsection()?;
    }
    if subsection != CAPABILITIES {
        return None;
    }
    (0..stream.number()?).map(|_| stream.name()).collect()
}

/// What is left of the bytes; nothing is returned from beyond their end.
struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number(&mut self) -> Option<usize> {
        let bytes = self.take(4)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(bytes)).ok()
    }

    fn name(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.take(usize::from(length))
    }

    /// Returns the name of the subsection that begins here, behind which its content is.
    fn subsection(&mut self) -> Option<&'a [u8]> {
        if self.byte()? != SUBSECTION {
            return None;
        }
        let name = self.name()?;
        let _version = self.number()?;
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(name: &[u8]) -> Vec<u8> {
        [&[u8::try_from(name.len()).unwrap()], name].concat()
    }

    fn subsection(name: &[u8], content: &[u8]) -> Vec<u8> {
        [&[SUBSECTION][..], &named(name), &[0, 0, 0, 1], content].concat()
    }

    fn stream(subsections: &[Vec<u8>]) -> Vec<u8> {
        let configuration = [&[CONFIGURATION][..], &[0, 0, 0, 10], b"pc-q35-7.2"].concat();
        [MAGIC, &configuration, &subsections.concat(), &[1, 0, 0, 0, 2, 3]].concat()
    }

    fn list(names: &[&[u8]]) -> Vec<u8> {
        let count = u32::try_from(names.len()).unwrap().to_be_bytes();
        let names = names.iter().flat_map(|name| named(name));
        subsection(CAPABILITIES, &count.into_iter().chain(names).collect::<Vec<_>>())
    }

    #[test]
    fn the_capabilities_are_found_where_qemu_lists_them() {
        let page_bits = subsection(PAGE_BITS.0, &[0, 0, 0, 14]);
        let both: [&[u8]; 2] = [IGNORE_SHARED, b"mapped-ram"];
        let table = [
            (stream(&[list(&[])]), Some(vec![])),
            (stream(&[list(&[IGNORE_SHARED])]), Some(vec![IGNORE_SHARED])),
            (stream(&[page_bits.clone(), list(&both)]), Some(both.to_vec())),
            (stream(&[subsection(b"configuration/uuid", &[1; 16])]), None),
            (stream(&[page_bits]), None),
            (stream(&[]), None),
            (list(&[IGNORE_SHARED]), None),
            (Vec::new(), None),
        ];
        for (stream, expected) in table {
            assert_eq!(capabilities(&stream), expected, "{stream:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let whole = stream(&[list(&[IGNORE_SHARED]), bytes.clone()]);
            prop_assert_eq!(capabilities(&whole), Some(vec![IGNORE_SHARED]));
            capabilities(&[MAGIC, &[CONFIGURATION], &bytes].concat());
            capabilities(&[MAGIC, &[CONFIGURATION, 0, 0, 0, 0, SUBSECTION], &bytes].concat());
        }
    }
}
