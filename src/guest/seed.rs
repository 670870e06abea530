//! What a guest reads at boot: its name and its SSH keys, as a tar file on a disk of its own.
//!
//! Pure: the same input gives the same bytes. `guest` writes them to disk.

use std::io;

use russh::keys::PrivateKey;
use uuid::Uuid;

use super::keys;

/// A whole number of these is what a disk is made of, and what tar pads to.
const RECORD: usize = 10240;

/// Renders the seed: `hostname`, `machine-id`, `authorized_keys` and the host key in both formats,
/// owned by root, without a time. `authorized` are lines of `authorized_keys`, `environment` is the
/// shell text that sets a container's variables.
///
/// # Errors
/// The host key cannot be encoded, which no ed25519 key does.
pub fn tar(
    hostname: &str,
    machine: Uuid,
    authorized: &str,
    host_key: &PrivateKey,
    environment: &str,
) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::with_capacity(RECORD));
    let hostname = format!("{hostname}\n");
    let machine = format!("{}\n", machine.simple());
    let openssh = keys::openssh(host_key)?;
    let dropbear = keys::dropbear(host_key)?;
    for (name, mode, bytes) in [
        ("hostname", 0o644, hostname.as_bytes()),
        ("machine-id", 0o644, machine.as_bytes()),
        ("authorized_keys", 0o600, authorized.as_bytes()),
        ("ssh_host_ed25519_key", 0o600, &openssh),
        ("dropbear_ed25519_host_key", 0o600, &dropbear),
    ] {
        archive.append_data(&mut header(mode, bytes.len()), name, bytes)?;
    }
    if !environment.is_empty() {
        let bytes = environment.as_bytes();
        archive.append_data(&mut header(0o644, bytes.len()), "environment", bytes)?;
    }
    let mut bytes = archive.into_inner()?;
    bytes.resize(bytes.len().next_multiple_of(RECORD), 0);
    Ok(bytes)
}

fn header(mode: u32, len: usize) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(len as u64);
    header
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    #[test]
    fn the_seed_reads_back() {
        let key = keys::generate("vm1").unwrap();
        let render =
            || tar("vm1", Uuid::from_u128(7), "ssh-ed25519 AAAA aqfs\n", &key, "").unwrap();
        let bytes = render();
        assert_eq!(bytes, render());
        assert_eq!(bytes.len() % 512, 0);
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.mtime().unwrap()), (0, 0));
            let (name, mode) = (entry.path().unwrap().into_owned(), header.mode().unwrap());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(name.display().to_string(), (mode, content));
        }
        assert_eq!(files["hostname"], (0o644, b"vm1\n".to_vec()));
        assert_eq!(files["authorized_keys"].1, b"ssh-ed25519 AAAA aqfs\n");
        let (mode, openssh) = &files["ssh_host_ed25519_key"];
        assert_eq!(*mode, 0o600);
        assert_eq!(PrivateKey::from_openssh(openssh).unwrap(), key);
        assert_eq!(files["dropbear_ed25519_host_key"].1.len(), 83);
        assert_eq!(files["machine-id"].1, b"00000000000000000000000000000007\n");
        assert_eq!(files.len(), 5);
    }
}
