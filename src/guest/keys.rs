//! SSH keys, made on the host: ours, and one host key a VM, so that nothing is trusted on first
//! use. All are ed25519, in OpenSSH's format; dropbear's own format is rendered for the guest.
//!
//! Not here: what is done with them (`seed`, `ssh`).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::private::KeypairData;
use russh::keys::ssh_key::{self, LineEnding};
use russh::keys::{Algorithm, PrivateKey, PublicKey};

use crate::store::file;
use crate::vm::backend::BackendError;

/// Returns the key at `path`, making it (0600) with `.pub` beside it if there is none.
///
/// # Errors
/// The file or its directory cannot be written, or what is there is not a key.
pub fn ensure(path: &Path, comment: &str) -> Result<PrivateKey, BackendError> {
    let failed = |e: io::Error| BackendError::io(format!("SSH key {}", path.display()), &e);
    if !path.exists() {
        make(path, comment).map_err(failed)?;
    }
    let key = read(path).map_err(failed)?;
    let public = public_path(path);
    if !public.exists() {
        let line = public_line(&key)?;
        file::create(&public, line.as_bytes()).map_err(failed)?;
    }
    Ok(key)
}

/// Reads the public key that lies beside the private key at `path`.
///
/// # Errors
/// It is absent or damaged.
pub fn public(path: &Path) -> Result<PublicKey, BackendError> {
    let path = public_path(path);
    let failed = |e: io::Error| BackendError::io(format!("SSH key {}", path.display()), &e);
    let text = fs::read_to_string(&path).map_err(failed)?;
    PublicKey::from_openssh(text.trim_end()).map_err(|e| failed(damaged(e)))
}

/// Renders the public half as a line of `authorized_keys`, newline included.
///
/// # Errors
/// The key cannot be encoded, which no ed25519 key does.
pub fn public_line(key: &PrivateKey) -> Result<String, BackendError> {
    let line = key.public_key().to_openssh();
    let line = line.map_err(|e| BackendError::io("an SSH public key", &damaged(e)))?;
    Ok(line + "\n")
}

/// Renders the private key as OpenSSH's file.
///
/// # Errors
/// The key cannot be encoded, which no ed25519 key does.
pub fn openssh(key: &PrivateKey) -> io::Result<Vec<u8>> {
    let text = key.to_openssh(LineEnding::LF).map_err(damaged)?;
    Ok(text.as_bytes().to_vec())
}

/// Renders the private key as dropbear's file: SSH strings without an envelope.
///
/// # Errors
/// `InvalidData` if it is not an ed25519 key.
pub fn dropbear(key: &PrivateKey) -> io::Result<Vec<u8>> {
    let KeypairData::Ed25519(pair) = key.key_data() else {
        return Err(damaged(ssh_key::Error::AlgorithmUnknown));
    };
    let mut out = Vec::with_capacity(83);
    out.extend_from_slice(&11u32.to_be_bytes());
    out.extend_from_slice(b"ssh-ed25519");
    out.extend_from_slice(&64u32.to_be_bytes());
    out.extend_from_slice(&pair.to_bytes());
    Ok(out)
}

/// Makes a key that is nowhere on disk yet.
pub(crate) fn generate(comment: &str) -> io::Result<PrivateKey> {
    let mut rng = russh::keys::key::safe_rng();
    let mut key = PrivateKey::random(&mut rng, Algorithm::Ed25519).map_err(damaged)?;
    key.set_comment(comment.to_owned());
    Ok(key)
}

/// Of two that make the key at once, one wins and both then read the same.
fn make(path: &Path, comment: &str) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        file::private_dir(dir)?;
    }
    file::create(path, &openssh(&generate(comment)?)?).map(drop)
}

fn read(path: &Path) -> io::Result<PrivateKey> {
    PrivateKey::from_openssh(fs::read(path)?).map_err(damaged)
}

fn public_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".pub");
    name.into()
}

fn damaged(error: ssh_key::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ssh/id_ed25519");
        let key = ensure(&path, "aqfs").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ensure(&path, "other").unwrap(), key);
        assert_eq!(public(&path).unwrap().key_data(), key.public_key().key_data());
        fs::remove_file(public_path(&path)).unwrap();
        ensure(&path, "aqfs").unwrap();
        assert_eq!(public(&path).unwrap().comment().to_string(), "aqfs");
    }

    #[test]
    fn makers_at_once_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| ensure(&path, "x").unwrap())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|k| *k == keys[0]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_damaged_key_is_an_error_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "nonsense").unwrap();
        let error = ensure(&path, "x").unwrap_err().to_string();
        assert!(error.contains("key"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"nonsense");
    }
}
