//! A key for tests, which signs as distributions do.

use pgp::composed::{
    CleartextSignedMessage, DetachedSignature, KeyType, SecretKeyParamsBuilder, SignedSecretKey,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::types::Password;
use rand::rngs::OsRng;

/// A key of its own.
#[derive(Debug)]
pub(crate) struct Signer(SignedSecretKey);

impl Signer {
    pub(crate) fn new() -> Self {
        let parameters = SecretKeyParamsBuilder::default()
            .key_type(KeyType::Ed25519Legacy)
            .can_certify(true)
            .can_sign(true)
            .primary_user_id("Tests <tests@localhost>".into())
            .build()
            .unwrap();
        Self(parameters.generate(OsRng).unwrap())
    }

    /// Returns its public half, in ASCII armour.
    pub(crate) fn public(&self) -> String {
        self.0.to_public_key().to_armored_string(None.into()).unwrap()
    }

    /// Signs beside the data.
    pub(crate) fn detached(&self, data: &[u8], hash: HashAlgorithm) -> String {
        let key = &self.0.primary_key;
        let signature =
            DetachedSignature::sign_binary_data(OsRng, key, &Password::empty(), hash, data);
        signature.unwrap().to_armored_string(None.into()).unwrap()
    }

    /// Signs around the text.
    pub(crate) fn inline(&self, text: &str) -> String {
        let key = &self.0.primary_key;
        let message = CleartextSignedMessage::sign(OsRng, text, key, &Password::empty()).unwrap();
        message.to_armored_string(None.into()).unwrap()
    }
}
