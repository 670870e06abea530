//! The seed of stock cloud images: a small disk labelled `CIDATA` with what cloud-init reads from
//! its NoCloud data source.
//!
//! Pure: the same input gives the same bytes. JSON is YAML, and quotes what needs it.

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use serde_json::json;
use uuid::Uuid;

/// The volume's size in bytes: the least that FAT12 takes with room for some keys.
const SIZE: usize = 1 << 20;
const LABEL: [u8; 11] = *b"CIDATA     ";

#[derive(Debug)]
pub(super) struct NoCloudData<'a> {
    /// The VM's identity. A new one makes cloud-init set the guest up again, which a clone needs.
    pub(super) instance: Uuid,
    pub(super) hostname: &'a str,
    pub(super) authorized: &'a str,
    /// The host key in OpenSSH's private format, and its public line.
    pub(super) host_key: (&'a str, &'a str),
}

/// Renders the volume.
///
/// # Errors
/// More keys than the volume has room for.
pub(super) fn volume(facts: &NoCloudData<'_>) -> io::Result<Vec<u8>> {
    let mut disk = Cursor::new(vec![0; SIZE]);
    let id = facts.instance.as_fields().0;
    let options = FormatVolumeOptions::new().volume_label(LABEL).volume_id(id);
    format_volume(&mut disk, options)?;
    // fatfs writes when these are dropped, and reports errors only for those closed by hand.
    {
        let volume = FileSystem::new(&mut disk, FsOptions::new())?;
        for (name, text) in [("meta-data", meta_data(facts)), ("user-data", user_data(facts))] {
            let mut file = volume.root_dir().create_file(name)?;
            file.write_all(text.as_bytes())?;
            file.flush()?;
        }
        volume.unmount()?;
    }
    Ok(disk.into_inner())
}

fn meta_data(facts: &NoCloudData<'_>) -> String {
    let name = facts.hostname;
    format!("{}\n", json!({"instance-id": facts.instance, "local-hostname": name}))
}

/// Our key lets in root and the image's own user. The host key is ours, and is the only one.
fn user_data(facts: &NoCloudData<'_>) -> String {
    let (private, public) = facts.host_key;
    let authorized: Vec<&str> = facts.authorized.lines().filter(|l| !l.is_empty()).collect();
    let config = json!({
        "disable_root": false,
        "ssh_authorized_keys": authorized,
        "ssh_deletekeys": true,
        "ssh_genkeytypes": ["ed25519"],
        "ssh_keys": {"ed25519_private": private, "ed25519_public": public.trim_end()},
        "growpart": {"mode": "auto", "devices": ["/"]},
        "resize_rootfs": true,
    });
    format!("#cloud-config\n{config}\n")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn cloud_init_finds_its_volume_and_its_files() {
        let facts = NoCloudData {
            instance: Uuid::from_u128(7),
            hostname: "web",
            authorized: "ssh-ed25519 AAAA aqfs\n",
            host_key: ("-----BEGIN\nx\n-----END\n", "ssh-ed25519 BBBB\n"),
        };
        let bytes = volume(&facts).unwrap();
        assert_eq!(bytes, volume(&facts).unwrap());
        let volume = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label_as_bytes(), b"CIDATA");
        let read = |name: &str| {
            let mut text = String::new();
            volume.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        assert!(read("meta-data").contains(r#""local-hostname":"web""#));
        let config = read("user-data");
        let config = config.strip_prefix("#cloud-config\n").unwrap();
        let config: serde_json::Value = serde_json::from_str(config).unwrap();
        assert_eq!(config["ssh_authorized_keys"], json!(["ssh-ed25519 AAAA aqfs"]));
        assert_eq!(config["ssh_keys"]["ed25519_private"], facts.host_key.0);
        assert_eq!(config["disable_root"], false);
    }

    #[test]
    fn more_than_there_is_room_for_is_an_error() {
        let authorized = "x".repeat(2 * SIZE);
        let facts = NoCloudData {
            instance: Uuid::nil(),
            hostname: "web",
            authorized: &authorized,
            host_key: ("", ""),
        };
        assert!(volume(&facts).is_err());
    }
}
