//! XDR (RFC 4506), as far as ONC RPC and NFS need it.
//!
//! A length that the peer claims is compared with what is there before anything is made of it.

/// The bytes are not what the protocol says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Garbage;

/// Reads values one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Garbage> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Garbage)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Garbage> {
        self.take(N)?.try_into().map_err(|_| Garbage)
    }

    pub(super) fn word(&mut self) -> Result<u32, Garbage> {
        self.fixed().map(u32::from_be_bytes)
    }

    pub(super) fn long(&mut self) -> Result<u64, Garbage> {
        self.fixed().map(u64::from_be_bytes)
    }

    pub(super) fn flag(&mut self) -> Result<bool, Garbage> {
        match self.word()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Garbage),
        }
    }

    /// Reads bytes whose number comes first, and their padding.
    pub(super) fn opaque(&mut self, limit: usize) -> Result<&'a [u8], Garbage> {
        let length = usize::try_from(self.word()?).map_err(|_| Garbage)?;
        if length > limit {
            return Err(Garbage);
        }
        let bytes = self.take(length)?;
        self.take(padding(length))?;
        Ok(bytes)
    }

    /// Reads a value that may be absent.
    pub(super) fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Garbage>,
    ) -> Result<Option<T>, Garbage> {
        self.flag()?.then(|| read(self)).transpose()
    }
}

/// Writes values one after the other.
#[derive(Debug, Default)]
pub(super) struct Encoder(pub(super) Vec<u8>);

impl Encoder {
    pub(super) fn word(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub(super) fn words(&mut self, values: &[u32]) {
        values.iter().for_each(|value| self.word(*value));
    }

    pub(super) fn long(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub(super) fn flag(&mut self, value: bool) {
        self.word(u32::from(value));
    }

    pub(super) fn fixed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn opaque(&mut self, bytes: &[u8]) {
        // No caller has more than a message holds.
        self.word(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.fixed(bytes);
        self.pad(bytes.len());
    }

    /// Pads what was written as `length` bytes.
    pub(super) fn pad(&mut self, length: usize) {
        self.0.resize(self.0.len() + padding(length), 0);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// How many zeros follow so many bytes.
fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_length_that_is_not_there_is_garbage() {
        for bytes in [&[0xff; 4][..], &[0, 0, 0, 5, 1, 2], &[0, 0, 0, 1, 7], &[0, 0, 0]] {
            assert_eq!(Decoder::new(bytes).opaque(usize::MAX), Err(Garbage));
        }
        assert_eq!(Decoder::new(&[0, 0, 0, 1, 7, 0, 0, 0]).opaque(0), Err(Garbage));
        assert_eq!(Decoder::new(&[0, 0, 0, 2]).flag(), Err(Garbage));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(word: u32, long: u64, flag: bool, bytes: Vec<u8>) {
            let mut out = Encoder::default();
            out.word(word);
            out.opaque(&bytes);
            out.long(long);
            out.flag(flag);
            prop_assert_eq!(out.len() % 4, 0);
            let mut back = Decoder::new(&out.0);
            prop_assert_eq!(back.word(), Ok(word));
            prop_assert_eq!(back.opaque(bytes.len()), Ok(&*bytes));
            prop_assert_eq!(back.long(), Ok(long));
            prop_assert_eq!(back.flag(), Ok(flag));
            prop_assert_eq!(back.word(), Err(Garbage));
        }
    }
}
