//! OpenPGP signatures: of lists of checksums, beside them or around them, and of files.
//!
//! Trusted are the keys that a row of the catalogue names, and no others; there is no web of trust.

use std::io::{BufReader, Read};

use pgp::composed::{CleartextSignedMessage, Deserializable, DetachedSignature, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::Signature;
use pgp::types::{KeyDetails, VerifyingKey};

use super::FetchError;

/// Keys whose signatures are believed.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<SignedPublicKey>);

impl Keys {
    /// Reads keys, in ASCII armour or not.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let read = if is_armoured(bytes) {
            SignedPublicKey::from_armor_many(bytes).and_then(|(keys, _)| keys.collect())
        } else {
            SignedPublicKey::from_bytes_many(bytes).and_then(Iterator::collect)
        };
        let keys: Vec<SignedPublicKey> = read.map_err(|e| e.to_string())?;
        if keys.is_empty() { Err("it holds no key".to_owned()) } else { Ok(Self(keys)) }
    }

    /// Adds those of another file.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Lists their fingerprints.
    pub fn fingerprints(&self) -> Vec<String> {
        self.0.iter().map(|key| key.fingerprint().to_string().to_uppercase()).collect()
    }

    /// Verifies a signature that lies beside `what`, whose bytes `open` gives. Returns the
    /// fingerprint of the key.
    ///
    /// # Errors
    /// `BadSignature`.
    pub fn verify_detached<R: Read>(
        &self,
        what: &str,
        signature: &[u8],
        open: impl Fn() -> std::io::Result<R>,
    ) -> Result<String, FetchError> {
        let read = if is_armoured(signature) {
            DetachedSignature::from_armor_many(signature).and_then(|(all, _)| all.collect())
        } else {
            DetachedSignature::from_bytes_many(signature).and_then(Iterator::collect)
        };
        let all: Vec<DetachedSignature> =
            read.map_err(|e| bad(what, format!("its signature cannot be read: {e}")))?;
        let all: Vec<&Signature> = all.iter().map(|s| &s.signature).collect();
        self.verify_any(what, &all, &|| Ok(Box::new(BufReader::new(open()?)) as _))
    }

    /// Verifies a text that is signed within itself. Returns what is signed, and the fingerprint.
    ///
    /// # Errors
    /// `BadSignature`.
    pub fn verify_inline(&self, what: &str, text: &str) -> Result<(String, String), FetchError> {
        let (message, _) = CleartextSignedMessage::from_string(text)
            .map_err(|e| bad(what, format!("it is not signed: {e}")))?;
        let signed = message.signed_text();
        let all: Vec<&Signature> = message.signatures().iter().collect();
        let key = self.verify_any(what, &all, &|| Ok(Box::new(signed.as_bytes()) as _))?;
        Ok((signed, key))
    }

    fn verify_any<'a>(
        &self,
        what: &str,
        signatures: &[&Signature],
        open: &dyn Fn() -> std::io::Result<Box<dyn Read + 'a>>,
    ) -> Result<String, FetchError> {
        let mut reason = if signatures.iter().any(|s| is_strong(s)) {
            self.not_trusted(signatures)
        } else {
            "its signature is by SHA-1 or weaker, which can be forged".to_owned()
        };
        for signature in signatures.iter().filter(|s| is_strong(s)) {
            for key in &self.0 {
                let Some(verify) = verifier(key, signature) else { continue };
                let data = open().map_err(|e| bad(what, e.to_string()))?;
                match verify(signature, data) {
                    Ok(()) => return Ok(key.fingerprint().to_string().to_uppercase()),
                    Err(_) => "its signature is wrong: it was changed after it was signed"
                        .clone_into(&mut reason),
                }
            }
        }
        Err(bad(what, format!("{reason}; use another mirror")))
    }

    fn not_trusted(&self, signatures: &[&Signature]) -> String {
        let issuers: Vec<String> = signatures
            .iter()
            .flat_map(|s| s.issuer_key_id().into_iter().map(ToString::to_string))
            .collect();
        format!(
            "it is signed by {}, and trusted is only {}",
            issuers.join(", ").to_uppercase(),
            self.fingerprints().join(", ")
        )
    }
}

type Verify<'a> =
    Box<dyn Fn(&Signature, Box<dyn Read + '_>) -> Result<(), pgp::errors::Error> + 'a>;

/// Returns what verifies a signature by this key or one of its subkeys; `None` if it is of neither.
fn verifier<'a>(key: &'a SignedPublicKey, signature: &Signature) -> Option<Verify<'a>> {
    if !is_valid(key, signature) {
        return None;
    }
    if is_by(signature, &key.primary_key) {
        return Some(Box::new(|signature, data| signature.verify(&key.primary_key, data)));
    }
    let bound =
        key.public_subkeys.iter().filter(|sub| sub.verify_bindings(&key.primary_key).is_ok());
    let sub = bound.into_iter().find(|sub| is_by(signature, &sub.key))?;
    Some(Box::new(|signature, data| signature.verify(&sub.key, data)))
}

fn is_by(signature: &Signature, key: &impl VerifyingKey) -> bool {
    let (fingerprint, id) = (key.fingerprint(), key.legacy_key_id());
    signature.issuer_fingerprint().contains(&&fingerprint)
        || signature.issuer_key_id().contains(&&id)
}

/// Neither revoked nor expired when the signature was made.
fn is_valid(key: &SignedPublicKey, signature: &Signature) -> bool {
    let own = key.details.users.iter().flat_map(|user| &user.signatures);
    let newest = own.max_by_key(|s| s.created());
    let lifetime = newest.and_then(Signature::key_expiration_time);
    let expires = lifetime.map(|d| u64::from(key.created_at().as_secs()) + u64::from(d.as_secs()));
    let made = signature.created().map_or(u64::MAX, |t| u64::from(t.as_secs()));
    key.details.revocation_signatures.is_empty() && expires.is_none_or(|end| made <= end)
}

/// SHA-1 and MD5 can be forged.
fn is_strong(signature: &Signature) -> bool {
    matches!(
        signature.hash_alg(),
        Some(HashAlgorithm::Sha256 | HashAlgorithm::Sha384 | HashAlgorithm::Sha512)
    )
}

fn is_armoured(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"-----BEGIN")
}

fn bad(what: &str, reason: String) -> FetchError {
    FetchError::BadSignature { what: what.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::super::signer::Signer;
    use super::*;

    const LIST: &str = "0000  disk.qcow2\n- dashes\n";

    fn keys(signer: &Signer) -> Keys {
        Keys::parse(signer.public().as_bytes()).unwrap()
    }

    fn verify(keys: &Keys, signature: &str, data: &str) -> Result<String, String> {
        let done = keys.verify_detached("LIST", signature.as_bytes(), || Ok(data.as_bytes()));
        done.map_err(|e| e.to_string())
    }

    #[test]
    fn a_signature_beside_the_list_is_one_of_a_trusted_key_over_these_bytes() {
        let (signer, other) = (Signer::new(), Signer::new());
        let signature = signer.detached(LIST.as_bytes(), HashAlgorithm::Sha256);
        let key = verify(&keys(&signer), &signature, LIST).unwrap();
        assert_eq!(vec![key], keys(&signer).fingerprints());
        let changed = verify(&keys(&signer), &signature, "0001  disk.qcow2\n").unwrap_err();
        assert!(changed.contains("changed after it was signed"), "{changed}");
        let foreign = verify(&keys(&other), &signature, LIST).unwrap_err();
        assert!(foreign.contains("trusted is only"), "{foreign}");
        assert!(verify(&keys(&signer), "no signature", LIST).is_err());
        let mut both = keys(&other);
        both.extend(keys(&signer));
        assert!(verify(&both, &signature, LIST).is_ok());
    }

    #[test]
    fn of_a_text_that_is_signed_within_itself_only_what_is_signed_counts() {
        let signer = Signer::new();
        let text = signer.inline(LIST);
        let (signed, _) = keys(&signer).verify_inline("LIST", &text).unwrap();
        assert_eq!(signed.replace("\r\n", "\n").trim_end(), LIST.trim_end());
        for bad in [
            format!("1111  evil\n{text}"),
            format!("{text}\n1111  evil"),
            text.replace("0000", "0001"),
            LIST.to_owned(),
        ] {
            assert!(keys(&signer).verify_inline("LIST", &bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_digest_that_can_be_forged_is_refused() {
        let keys = Keys::parse(include_bytes!("testdata/key.asc")).unwrap();
        verify(&keys, include_str!("testdata/sha256.asc"), "list\n").unwrap();
        let error = verify(&keys, include_str!("testdata/sha1.asc"), "list\n").unwrap_err();
        assert!(error.contains("SHA-1"), "{error}");
    }
}
