//! The distributions: one row each, from `distributions.toml` and from the user's `images.toml`,
//! and where a mirror stands in for a distribution's own server.
//!
//! Data only: `release` asks the mirrors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::debian;
use crate::fetch::Keys;
use crate::vm::spec::{ImageSettings, is_object_name};

const BUILT_IN: &str = include_str!("distributions.toml");
/// Public keys that come with the program, by the name that a row's `keys` has.
const KEYS: &[(&str, &str)] = &[
    ("alma", include_str!("keys/alma.asc")),
    ("fedora", include_str!("keys/fedora.asc")),
    ("opensuse", include_str!("keys/opensuse.asc")),
    ("ubuntu", include_str!("keys/ubuntu.asc")),
];
/// The variable that names a mirror of all distributions; `AQ_MIRROR_ALPINE` one of Alpine's.
const MIRROR: &str = "AQ_MIRROR";
/// What the mirror of Debian's packages is called there.
const TINY: &str = "tiny";
/// What a stock cloud image needs to boot.
const MEMORY: &str = "1G";

/// A distribution.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Distribution {
    pub(super) name: String,
    #[serde(default)]
    pub(super) aliases: Vec<String>,
    pub(super) mirror: String,
    /// Releases that are listed; others can be named too.
    #[serde(default)]
    pub(super) versions: Vec<String>,
    #[serde(default)]
    pub(super) codenames: BTreeMap<String, String>,
    pub(super) directory: String,
    pub(super) newest: Newest,
    pub(super) disk: BTreeMap<String, String>,
    pub(super) checksums: String,
    /// A file's name, or `inline`.
    pub(super) signature: Option<String>,
    /// Names of keys that come with the program, or paths of the user's.
    #[serde(default)]
    pub(super) keys: Vec<String>,
    pub(super) signature_note: Option<String>,
    #[serde(default)]
    pub(super) arch: BTreeMap<String, String>,
    memory: Option<String>,
    /// The user whom the image makes, for people: commands run as root.
    user: Option<String>,
    #[serde(default)]
    first_boot: FirstBoot,
}

/// What sets the image up at its first boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FirstBoot {
    #[default]
    CloudInit,
    TinyCloud,
}

/// How the newest release is found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(super) enum Newest {
    /// It is this one.
    Version { version: String },
    /// The mirror has a directory that leads to it.
    Directory { directory: String },
    /// The highest of the names in a directory that match.
    Listed { list: String, pattern: String },
}

/// `images.toml` and `distributions.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// `false`: `.images` lists only what is there.
    list: Option<bool>,
    /// A mirror of all distributions, with a directory for each.
    mirror: Option<String>,
    /// Mirrors of single ones.
    #[serde(default)]
    mirrors: BTreeMap<String, String>,
    #[serde(default)]
    distribution: Vec<Distribution>,
    /// Container registries that are asked by plain HTTP, as their images name them.
    #[serde(default)]
    insecure_registries: Vec<String>,
}

/// All distributions.
#[derive(Clone, Debug, Default)]
pub(super) struct Distributions {
    rows: Vec<Distribution>,
    /// Their images are not listed before they are pulled.
    unlisted: bool,
    /// A mirror of the packages that `builtin:tiny` is made of.
    packages: Option<String>,
    insecure_registries: Vec<String>,
}

impl Distributions {
    /// Reads those that come with the program, and the user's, which replace those of their name.
    /// What is wrong with the user's file is the second value; without it the others are there.
    pub(super) fn load(user: Option<&Path>) -> (Self, Option<String>) {
        let (file, problem) = match user.map(read_user) {
            Some(Ok(file)) => (file, None),
            Some(Err(problem)) => (File::default(), Some(problem)),
            None => (File::default(), None),
        };
        let mut all = Self::built_in();
        all.unlisted = file.list == Some(false);
        all.insecure_registries = file.insecure_registries;
        for row in file.distribution {
            all.rows.retain(|known| known.name != row.name);
            all.rows.push(row);
        }
        for row in &mut all.rows {
            if let Some(mirror) = mirror(&row.name, (&file.mirror, &file.mirrors)) {
                row.mirror = mirror;
            }
        }
        all.packages = mirror(TINY, (&file.mirror, &file.mirrors));
        (all, problem)
    }

    /// Returns those that come with the program.
    pub(super) fn built_in() -> Self {
        // A test parses it.
        let rows = toml::from_str::<File>(BUILT_IN).unwrap_or_default().distribution;
        Self { rows, ..Self::default() }
    }

    /// Returns the mirror of the packages that `builtin:tiny` is made of.
    pub(super) fn packages(&self) -> &str {
        self.packages.as_deref().unwrap_or(debian::MIRROR)
    }

    /// Lists the registries that the user has asked by plain HTTP.
    pub(super) fn insecure_registries(&self) -> &[String] {
        &self.insecure_registries
    }

    /// Lets a mirror of all distributions stand in for their servers.
    #[cfg(test)]
    pub(super) fn use_mirror(&mut self, base: &str) {
        for row in &mut self.rows {
            row.mirror = format!("{}/{}", base.trim_end_matches('/'), row.name);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Distribution> {
        self.rows.iter()
    }

    /// Says whether images are listed before they are pulled.
    pub(super) fn are_listed(&self) -> bool {
        !self.unlisted
    }

    /// Returns those whose images are listed.
    pub(super) fn listed(&self) -> impl Iterator<Item = &Distribution> {
        self.rows.iter().filter(|_| !self.unlisted)
    }

    /// Finds a distribution by its name or an alias.
    pub(super) fn find(&self, name: &str) -> Option<&Distribution> {
        self.rows
            .iter()
            .find(|row| row.name == name || row.aliases.iter().any(|alias| alias == name))
    }
}

/// Returns the mirror that stands in for the server of `name`: the environment's, else that of
/// the user's file, else a directory of a mirror of all.
fn mirror(
    name: &str,
    (all, single): (&Option<String>, &BTreeMap<String, String>),
) -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let own = variable(&format!("{MIRROR}_{}", name.to_uppercase().replace(['-', '.'], "_")));
    let base = variable(MIRROR).or_else(|| all.clone());
    let of_base = || base.map(|base| format!("{}/{name}", base.trim_end_matches('/')));
    own.or_else(|| single.get(name).cloned()).or_else(of_base)
}

fn read_user(path: &Path) -> Result<File, String> {
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(File::default()),
        Err(error) => return Err(said(&error)),
    };
    let file: File = toml::from_str(&text).map_err(|e| said(&e.to_string().trim_end()))?;
    for row in &file.distribution {
        row.check().map_err(|reason| said(&format!("{}: {reason}", row.name)))?;
    }
    Ok(file)
}

/// Returns the user's file: `$XDG_CONFIG_HOME/aq/images.toml`, by default in `~/.config`.
pub(super) fn user_file() -> Option<PathBuf> {
    let absolute = |key| std::env::var_os(key).map(PathBuf::from).filter(|p| p.is_absolute());
    let dir = absolute("XDG_CONFIG_HOME");
    let dir = dir.or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(dir.join("aq/images.toml"))
}

impl Distribution {
    /// Lists the names of images that it offers, with the releases: `None` for the newest.
    pub(super) fn offers(&self) -> impl Iterator<Item = (String, Option<&str>)> {
        let named = |version: &String| format!("{}-{version}", self.name);
        let versions = self.versions.iter().map(move |v| (named(v), Some(&**v)));
        std::iter::once((self.name.clone(), None)).chain(versions)
    }

    /// Says what sets its images up, for people.
    pub(super) fn first_boot(&self) -> String {
        let program = match self.first_boot {
            FirstBoot::CloudInit => "cloud-init",
            FirstBoot::TinyCloud => "tiny-cloud",
        };
        let user = self.user.as_deref().unwrap_or("root");
        format!("set up by {program} at its first boot, with the user {user}")
    }

    /// Returns the settings that its images carry.
    pub(super) fn settings(&self) -> ImageSettings {
        let memory = self.memory.as_deref().unwrap_or(MEMORY);
        BTreeMap::from([("memory".to_owned(), memory.to_owned())]).into()
    }

    /// Returns the keys whose signatures are believed; `None` where nothing is signed.
    ///
    /// # Errors
    /// What is wrong with a file of the user's.
    pub(super) fn trusted(&self) -> Result<Option<Keys>, String> {
        if self.signature.is_none() {
            return Ok(None);
        }
        let mut all = Keys::default();
        for name in &self.keys {
            let known = KEYS.iter().find(|(known, _)| known == name);
            let bytes = match known {
                Some((_, text)) => text.as_bytes().to_vec(),
                None => std::fs::read(name).map_err(|e| format!("{name}: {e}"))?,
            };
            all.extend(Keys::parse(&bytes).map_err(|e| format!("{name}: {e}"))?);
        }
        Ok(Some(all))
    }

    fn check(&self) -> Result<(), String> {
        if !is_object_name(&self.name) {
            return Err("not a name that an image may have".to_owned());
        }
        if self.signature.is_some() && self.keys.is_empty() {
            return Err("`signature` without `keys`: say whose signatures count".to_owned());
        }
        let patterns = self.disk.values().chain([&self.checksums]).filter(|p| p.contains('('));
        for pattern in patterns {
            let text = pattern.replace('{', "(").replace('}', ")");
            regex::Regex::new(&text).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "distribution_tests.rs"]
mod tests;
