//! The seed of stock cloud images: a small disk labelled `CIDATA` with what cloud-init and Alpine's
//! tiny-cloud read from their NoCloud data sources.
//!
//! Pure: the same input gives the same bytes. tiny-cloud reads the user data and the meta-data only, the
//! keys from the latter; `doc/adr/0025-first-boot.md` says who reads what. How the user's own text is put
//! together with ours is in `user_data`.

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use uuid::Uuid;

use super::user_data::{GuestFile, items, quoted, with_files};

/// The volume's size in bytes: the least that FAT12 takes with room for some keys and texts.
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
    /// The user's own user data.
    pub(super) user_data: Option<&'a str>,
    /// The user's network configuration.
    pub(super) network_data: Option<&'a str>,
}

/// Renders the volume.
///
/// # Errors
/// More than the volume has room for.
pub(super) fn volume(facts: &NoCloudData<'_>) -> io::Result<Vec<u8>> {
    let mut disk = Cursor::new(vec![0; SIZE]);
    let id = facts.instance.as_fields().0;
    let options = FormatVolumeOptions::new().volume_label(LABEL).volume_id(id);
    format_volume(&mut disk, options)?;
    // fatfs writes when these are dropped, and reports errors only for those closed by hand.
    {
        let volume = FileSystem::new(&mut disk, FsOptions::new())?;
        for (name, text) in files(facts) {
            let mut file = volume.root_dir().create_file(name)?;
            file.write_all(text.as_bytes())?;
            file.flush()?;
        }
        volume.unmount()?;
    }
    Ok(disk.into_inner())
}

/// Of the user's own user data and of ours, cloud-init takes the user's where both set a key.
fn files(facts: &NoCloudData<'_>) -> Vec<(&'static str, String)> {
    let mut files = vec![("meta-data", meta_data(facts))];
    match facts.user_data {
        None => files.push(("user-data", config(facts))),
        Some(text) => {
            files.push(("user-data", with_files(text, &guest_files(facts))));
            files.push(("vendor-data", config(facts)));
        }
    }
    let network = facts.network_data.map(|text| format!("{}\n", text.trim_end_matches('\n')));
    files.extend(network.map(|text| ("network-config", text)));
    files
}

/// tiny-cloud reads `hostname`, and a key below a name of its own. cloud-init reads `local-hostname`,
/// and of the public keys what is a list: the keys count whatever the user's text says of others.
fn meta_data(facts: &NoCloudData<'_>) -> String {
    let (instance, name) = (facts.instance, quoted(facts.hostname));
    let mut text = format!(
        "instance-id: \"{instance}\"\nhostname: {name}\nlocal-hostname: {name}\npublic-keys:\n"
    );
    for (number, key) in keys(facts).enumerate() {
        text.push_str(&format!("  key-{number}:\n    openssh-key: {}\n", quoted(key)));
    }
    text.push_str("  all:\n");
    keys(facts).for_each(|key| text.push_str(&format!("    - {}\n", quoted(key))));
    text
}

fn keys<'a>(facts: &NoCloudData<'a>) -> impl Iterator<Item = &'a str> {
    facts.authorized.lines().filter(|line| !line.is_empty())
}

/// Our key lets in root and the image's own user. The host key is ours, and is the only one.
fn config(facts: &NoCloudData<'_>) -> String {
    let (private, public) = facts.host_key;
    let authorized: String = keys(facts).map(|key| format!("  - {}\n", quoted(key))).collect();
    let (private, public) = (quoted(private), quoted(public.trim_end()));
    let files = items(&guest_files(facts), "  ");
    format!(
        "#cloud-config\ndisable_root: false\nssh_authorized_keys:\n{authorized}\
         ssh_deletekeys: true\nssh_genkeytypes:\n  - ed25519\n\
         ssh_keys:\n  ed25519_private: {private}\n  ed25519_public: {public}\n\
         growpart:\n  mode: auto\n  devices:\n    - /\nresize_rootfs: true\nwrite_files:\n{files}"
    )
}

/// What tiny-cloud knows no key for: the host key, and root's authorized keys.
fn guest_files(facts: &NoCloudData<'_>) -> [GuestFile; 3] {
    let (private, public) = facts.host_key;
    let file = |path, content: String, mode| GuestFile { path, content, mode, is_added: false };
    let authorized: String = keys(facts).map(|key| format!("{key}\n")).collect();
    [
        file("/etc/ssh/ssh_host_ed25519_key", private.to_owned(), "0600"),
        file("/etc/ssh/ssh_host_ed25519_key.pub", format!("{}\n", public.trim_end()), "0644"),
        GuestFile { is_added: true, ..file("/root/.ssh/authorized_keys", authorized, "0600") },
    ]
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::vm::spec::yaml::Yaml;

    fn facts() -> NoCloudData<'static> {
        NoCloudData {
            instance: Uuid::from_u128(7),
            hostname: "web",
            authorized: "ssh-ed25519 AAAA aqfs\nssh-rsa BBBB me: \"x\"\n",
            host_key: ("-----BEGIN\nx\n-----END\n", "ssh-ed25519 BBBB\n"),
            user_data: None,
            network_data: None,
        }
    }

    /// Reads a file of the volume.
    fn read(facts: &NoCloudData<'_>, name: &str) -> Option<String> {
        let bytes = volume(facts).unwrap();
        assert_eq!(bytes, volume(facts).unwrap());
        let volume = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label_as_bytes(), b"CIDATA");
        let mut text = String::new();
        let opened = volume.root_dir().open_file(name).ok();
        opened.map(|mut file| file.read_to_string(&mut text).unwrap())?;
        Some(text)
    }

    /// What `yx -f FILE KEY…` prints in a guest with tiny-cloud: a scalar, or a key a line.
    fn yx(text: &str, path: &[&str]) -> Option<String> {
        let root = Yaml::parse(text).unwrap().unwrap();
        let found = path.iter().try_fold(&root, |at, key| match (at, key.parse::<usize>()) {
            (Yaml::List(list), Ok(number)) => list.get(number),
            (node, _) => node.get(key),
        })?;
        Some(match found {
            Yaml::Scalar(text) => text.clone(),
            Yaml::List(list) => (0..list.len()).map(|n| format!("{n}\n")).collect(),
            Yaml::Map(map) => {
                map.iter().filter_map(|(k, _)| Some(format!("{}\n", k.text()?))).collect()
            }
        })
    }

    /// The keys that tiny-cloud gives to the image's user, found as its `imds @ssh-keys` does.
    fn keys_of_tiny_cloud(meta: &str) -> Vec<String> {
        let names = yx(meta, &["public-keys"]).unwrap();
        names.lines().filter_map(|name| yx(meta, &["public-keys", name, "openssh-key"])).collect()
    }

    /// The keys that cloud-init takes from meta-data: of the map's values those that are lists.
    fn keys_of_cloud_init(meta: &str) -> Vec<String> {
        let meta = Yaml::parse(meta).unwrap().unwrap();
        let Some(Yaml::Map(map)) = meta.get("public-keys") else { panic!("no map") };
        let lists = map.iter().filter_map(|(_, value)| match value {
            Yaml::List(list) => Some(list),
            Yaml::Scalar(_) | Yaml::Map(_) => None,
        });
        lists.flatten().map(|key| key.text().unwrap().to_owned()).collect()
    }

    #[test]
    fn both_read_name_and_keys_from_the_meta_data() {
        let meta = read(&facts(), "meta-data").unwrap();
        let keys: Vec<&str> = facts().authorized.lines().collect();
        assert_eq!(keys_of_tiny_cloud(&meta), keys);
        assert_eq!(keys_of_cloud_init(&meta), keys);
        for key in ["hostname", "local-hostname"] {
            assert_eq!(yx(&meta, &[key]).unwrap(), "web");
        }
        assert_eq!(yx(&meta, &["instance-id"]).unwrap(), facts().instance.to_string());
    }

    #[test]
    fn both_find_the_host_key_in_the_user_data() {
        let config = read(&facts(), "user-data").unwrap();
        assert!(config.starts_with("#cloud-config\n") && config.is_ascii());
        let get = |path: &[&str]| yx(&config, path).unwrap();
        assert_eq!(get(&["ssh_keys", "ed25519_private"]), facts().host_key.0);
        assert_eq!(get(&["ssh_authorized_keys", "1"]), "ssh-rsa BBBB me: \"x\"");
        assert_eq!(get(&["disable_root"]), "false");
        assert_eq!(get(&["write_files", "0", "path"]), "/etc/ssh/ssh_host_ed25519_key");
        assert_eq!(get(&["write_files", "0", "content"]), facts().host_key.0);
        assert_eq!(get(&["write_files", "0", "permissions"]), "0600");
        assert_eq!(get(&["write_files", "2", "append"]), "true");
        assert_eq!((read(&facts(), "vendor-data"), read(&facts(), "network-config")), (None, None));
    }

    #[test]
    fn the_users_text_stays_his_and_ours_is_beside_it() {
        let text = "#cloud-config\npackages:\n- vim";
        let with =
            |user_data| NoCloudData { user_data, network_data: Some("version: 2"), ..facts() };
        let user = read(&with(Some(text)), "user-data").unwrap();
        assert!(user.starts_with(text), "{user}");
        assert_eq!(yx(&user, &["write_files", "0", "content"]).unwrap(), facts().host_key.0);
        let vendor = read(&with(Some(text)), "vendor-data").unwrap();
        assert_eq!(vendor, read(&facts(), "user-data").unwrap());
        assert_eq!(read(&with(Some(text)), "network-config").unwrap(), "version: 2\n");
        let script = "#!/bin/sh\necho hello";
        assert_eq!(read(&with(Some(script)), "user-data").unwrap(), format!("{script}\n"));
    }

    #[test]
    fn more_than_there_is_room_for_is_an_error() {
        let authorized = "x".repeat(2 * SIZE);
        assert!(volume(&NoCloudData { authorized: &authorized, ..facts() }).is_err());
    }
}
