//! What manifests and configurations of container images say, as far as it is used here.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::image::source::BuildError;
use crate::vm::spec::container::ContainerProcess;

/// An image's configuration.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    config: Option<ContainerProcess>,
    #[serde(default)]
    pub(super) rootfs: RootFs,
}

/// The digests of the layers, unpacked.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RootFs {
    #[serde(default)]
    pub(super) diff_ids: Vec<String>,
}

/// A manifest, or a list of manifests.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Manifest {
    #[serde(default)]
    pub(super) manifests: Vec<Descriptor>,
    pub(super) config: Option<Descriptor>,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
}

/// What refers to a part of an image.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    #[serde(default)]
    pub(super) size: u64,
    pub(super) platform: Option<Platform>,
}

/// What an image runs on.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
}

impl Config {
    /// Returns what a container of the image runs.
    pub(super) fn process(self) -> ContainerProcess {
        self.config.unwrap_or_default()
    }
}

/// Reads JSON; `what` is what it should be.
pub(super) fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, BuildError> {
    serde_json::from_slice(bytes).map_err(|e| BuildError::malformed(what, e))
}

/// This host's architecture, as images name it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Picks the manifest of this host's architecture.
pub(super) fn pick(what: &str, list: &[Descriptor]) -> Result<Descriptor, BuildError> {
    let fits = |d: &&Descriptor| match &d.platform {
        Some(p) => p.architecture == architecture() && (p.os == "linux" || p.os.is_empty()),
        None => list.len() == 1,
    };
    list.iter().find(fits).cloned().ok_or_else(|| {
        let platforms: Vec<_> = list.iter().filter_map(|d| d.platform.as_ref()).collect();
        let known = platforms.iter().filter(|p| p.os != "unknown");
        let names: Vec<_> = known.map(|p| format!("{}/{}", p.os, p.architecture)).collect();
        let (wanted, names) = (architecture(), names.join(", "));
        BuildError::malformed(
            what,
            format_args!("there is none for linux/{wanted}, only for {names}; name another image"),
        )
    })
}

/// Refuses an image of another architecture.
pub(super) fn expect_architecture(what: &str, config: &Config) -> Result<(), BuildError> {
    let (has, wanted) = (&config.architecture, architecture());
    if has.is_empty() || has == wanted {
        return Ok(());
    }
    Err(BuildError::malformed(
        what,
        format_args!("it is for linux/{has}, this host is linux/{wanted}; name another image"),
    ))
}
