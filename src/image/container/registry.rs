//! An image in a registry: its manifest, and its layers into a cache by their digests.
//!
//! Everything but a registry on this host, or one that the user lists as insecure, is reached by TLS.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll};
use std::time::Duration;

use docker_credential::DockerCredential;
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use tokio::io::AsyncWrite;

use super::config::{self, Config, Descriptor, Manifest};
use super::{Layer, Parts};
use crate::fetch::{FetchError, innermost};
use crate::image::source::{BuildError, Progress};
use crate::store::file;
use crate::vm::backend::BackendError;

/// How long a registry may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a registry may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a layer that no image has used stays in the cache.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// The server that Docker's own registry is known by where credentials are kept.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// What manifests are asked for as.
const MANIFESTS: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// How a registry is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tls,
    Plain,
}

impl Transport {
    /// Chooses; `insecure` lists registries, each as images name it: `10.0.0.5:5000`.
    pub(super) fn to(registry: &str, insecure: &[String]) -> Self {
        let is_plain = is_here(registry) || insecure.iter().any(|listed| listed == registry);
        if is_plain { Self::Plain } else { Self::Tls }
    }
}

/// Fetches the parts of an image; layers stay in `cache`.
pub(super) fn parts(
    (reference, transport): (&Reference, Transport),
    cache: &Path,
    progress: &Progress,
) -> Result<Parts, BuildError> {
    file::private_dir(cache).map_err(BuildError::at(cache))?;
    sweep(cache);
    progress.fetching("asking the registry");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(BuildError::at(Path::new("the runtime")))?;
    let pull = Pull::new((reference, transport), cache, progress);
    runtime.block_on(async {
        tokio::select! {
            biased;
            () = progress.cancel().cancelled() => Err(FetchError::Cancelled.into()),
            parts = pull.parts() => parts,
        }
    })
}

/// One pull.
struct Pull<'a> {
    client: Client,
    auth: RegistryAuth,
    reference: &'a Reference,
    cache: &'a Path,
    progress: &'a Progress,
}

impl<'a> Pull<'a> {
    fn new(
        (reference, transport): (&'a Reference, Transport),
        cache: &'a Path,
        progress: &'a Progress,
    ) -> Self {
        static CRYPTOGRAPHY: Once = Once::new();
        // It fails where another part of the program was first, which has chosen the same.
        CRYPTOGRAPHY.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let registry = reference.resolve_registry();
        let protocol = match transport {
            Transport::Plain => ClientProtocol::Http,
            Transport::Tls => ClientProtocol::Https,
        };
        let client = Client::new(ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("aqfs/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        Self { client, auth: credentials(registry), reference, cache, progress }
    }

    async fn parts(&self) -> Result<Parts, BuildError> {
        let name = self.reference.to_string();
        let mut manifest: Manifest = config::parse(&name, &self.manifest(self.reference).await?)?;
        if !manifest.manifests.is_empty() {
            let chosen = config::pick(&name, &manifest.manifests)?;
            let exact = self.reference.clone_with_digest(chosen.digest);
            manifest = config::parse(&name, &self.manifest(&exact).await?)?;
        }
        let absent = || {
            BuildError::malformed(
                &name,
                "its manifest has no configuration; it is no container image",
            )
        };
        let of = manifest.config.ok_or_else(absent)?;
        self.expect_room(&name, &manifest.layers)?;
        let text = self.blob(&of, "the configuration").await?;
        let text = fs::read(&text).map_err(BuildError::at(&text))?;
        let config: Config = config::parse(&name, &text)?;
        let (mut layers, count) = (Vec::new(), manifest.layers.len());
        for (descriptor, number) in manifest.layers.iter().zip(1..) {
            let label = format!("layer {number}/{count}");
            let path = self.blob(descriptor, &label).await?;
            let digest = Some(descriptor.digest.clone());
            layers.push(Layer { name: label, path, size: descriptor.size, digest, is_ours: false });
        }
        Ok(Parts { layers, config })
    }

    /// Layers that the disk has no room for are not fetched at all.
    fn expect_room(&self, name: &str, layers: &[Descriptor]) -> Result<(), BuildError> {
        let free = super::room(self.cache)?;
        let is_absent = |layer: &&Descriptor| {
            file_name(&layer.digest).is_ok_and(|name| !self.cache.join(name).exists())
        };
        let needed = layers.iter().filter(is_absent).map(|layer| layer.size);
        let needed = needed.fold(0, u64::saturating_add);
        if needed <= free {
            return Ok(());
        }
        Err(FetchError::NoSpace { what: name.to_owned(), needed, free }.into())
    }

    async fn manifest(&self, reference: &Reference) -> Result<Vec<u8>, BuildError> {
        let answer = self.client.pull_manifest_raw(reference, &self.auth, MANIFESTS).await;
        answer.map(|(bytes, _)| bytes.to_vec()).map_err(|e| self.explain(&e))
    }

    /// Returns the file with a part, which is fetched if the cache does not have it.
    async fn blob(&self, descriptor: &Descriptor, label: &str) -> Result<PathBuf, BuildError> {
        let path = self.cache.join(file_name(&descriptor.digest)?);
        if touch(&path, descriptor.size) {
            return Ok(path);
        }
        let failed = BuildError::at(&path);
        let temporary = tempfile::NamedTempFile::new_in(self.cache).map_err(failed)?;
        let copy = temporary.as_file().try_clone().map_err(failed)?;
        let counted = Counted {
            to: tokio::fs::File::from_std(copy),
            progress: self.progress,
            label,
            size: descriptor.size,
            done: 0,
        };
        let wanted = OciDescriptor {
            digest: descriptor.digest.clone(),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            media_type: descriptor.media_type.clone(),
            ..OciDescriptor::default()
        };
        let pulled = self.client.pull_blob(self.reference, &wanted, counted).await;
        pulled.map_err(|e| self.explain(&e))?;
        temporary.as_file().sync_all().map_err(failed)?;
        temporary.persist(&path).map_err(|e| failed(e.error))?;
        Ok(path)
    }

    /// Says what a registry's refusal means, and what to do.
    fn explain(&self, error: &OciDistributionError) -> BuildError {
        let (name, registry) = (self.reference.to_string(), self.reference.registry());
        let unavailable = |what: String, remedy| BuildError::Unavailable { what, remedy };
        if is_unauthorized(error) {
            let what = format!(
                "{registry} does not give {name} without a login, or there is no such image"
            );
            return unavailable(
                what,
                "check the name; `docker login` or `podman login` keeps a login in ~/.docker/config.json or auth.json, which is used",
            );
        }
        if is_absent(error) {
            let what = format!("{registry} has no image {name}");
            return unavailable(what, "check the name and the tag");
        }
        if let OciDistributionError::RequestError(e) = error {
            let what = format!("{registry} cannot be reached: {}", innermost(e));
            return unavailable(
                what,
                "check the name and the network; `echo pull > ctl` tries again",
            );
        }
        if let OciDistributionError::DigestError(e) = error {
            let what = format!("{name}: what {registry} sent is not what was asked for: {e}");
            return unavailable(what, "`echo pull > ctl` tries again");
        }
        if let OciDistributionError::IoError(e) = error {
            return BackendError::io(self.cache.display().to_string(), e).into();
        }
        unavailable(format!("{name}: {error}"), "`echo pull > ctl` tries again")
    }
}

fn is_unauthorized(error: &OciDistributionError) -> bool {
    let is_login = matches!(
        error,
        OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
    );
    is_login || says(error, &[OciErrorCode::Unauthorized, OciErrorCode::Denied])
}

fn is_absent(error: &OciDistributionError) -> bool {
    use OciErrorCode::{ManifestUnknown, NameUnknown, NotFound};
    let is_manifest = matches!(error, OciDistributionError::ImageManifestNotFoundError(_));
    is_manifest || says(error, &[ManifestUnknown, NameUnknown, NotFound])
}

/// Says whether a registry's answer has one of these codes.
fn says(error: &OciDistributionError, codes: &[OciErrorCode]) -> bool {
    let OciDistributionError::RegistryError { envelope, .. } = error else { return false };
    envelope.errors.iter().any(|e| codes.contains(&e.code))
}

/// The name of a part in the cache; a digest comes from the registry.
fn file_name(digest: &str) -> Result<String, BuildError> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    let fits = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let refused = || BuildError::malformed(format!("digest {digest:?}"), "only sha256 is known");
    fits.then(|| format!("sha256-{hex}")).ok_or_else(refused)
}

/// Says whether a part is in the cache, and notes that it is used.
fn touch(path: &Path, size: u64) -> bool {
    let is_whole = fs::metadata(path).is_ok_and(|m| size == 0 || m.len() == size);
    let used = || fs::File::open(path)?.set_modified(std::time::SystemTime::now());
    is_whole && used().is_ok()
}

/// Removes from the cache what has not been used for long, and what an earlier daemon left.
fn sweep(cache: &Path) {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    for entry in entries {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age > KEPT) {
            drop(fs::remove_file(entry.path()));
        }
    }
}

/// Says whether a registry is on this host, where none has TLS.
fn is_here(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let is_loopback = |ip: std::net::Ipv4Addr| ip.is_loopback();
    host == "localhost" || host.parse().is_ok_and(is_loopback)
}

/// Finds the user's login where docker and podman keep it, credential helpers included.
fn credentials(registry: &str) -> RegistryAuth {
    let hub = ["docker.io", "index.docker.io", "registry-1.docker.io"].contains(&registry);
    let server = if hub { DOCKER_HUB } else { registry };
    let found = docker_credential::get_credential(server)
        .or_else(|_| docker_credential::get_podman_credential(registry));
    match found {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            RegistryAuth::Basic(user, password)
        }
        Ok(DockerCredential::IdentityToken(token)) => RegistryAuth::Bearer(token),
        Err(_none) => RegistryAuth::Anonymous,
    }
}

/// A file that reports how much of it is there.
struct Counted<'a> {
    to: tokio::fs::File,
    progress: &'a Progress,
    label: &'a str,
    size: u64,
    done: u64,
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.to).poll_write(context, bytes);
        if let Poll::Ready(Ok(n)) = written {
            let before = self.percent();
            self.done += n as u64;
            if self.percent() != before {
                self.progress.fetching(format!("{} {} %", self.label, self.percent()));
            }
            if self.size > 0 && self.done > self.size {
                let what = "the registry sends more than its manifest says";
                return Poll::Ready(Err(io::Error::other(what)));
            }
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(context)
    }
}

impl Counted<'_> {
    fn percent(&self) -> u64 {
        self.done.saturating_mul(100).checked_div(self.size).unwrap_or(0).min(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_registry_on_this_host_or_a_listed_one_is_asked_without_tls() {
        for here in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9"] {
            assert_eq!(Transport::to(here, &[]), Transport::Plain, "{here}");
        }
        for far in ["docker.io", "localhost.example.org:5000", "10.0.0.1:5000", "127.0.0.1.nip.io"]
        {
            assert_eq!(Transport::to(far, &[]), Transport::Tls, "{far}");
        }
        let listed = ["10.0.0.1:5000".to_owned()];
        assert_eq!(Transport::to("10.0.0.1:5000", &listed), Transport::Plain);
        for far in ["10.0.0.1", "10.0.0.1:5001"] {
            assert_eq!(Transport::to(far, &listed), Transport::Tls, "{far}");
        }
    }

    #[test]
    fn a_digest_cannot_name_a_file_elsewhere() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(file_name(&format!("sha256:{hex}")).unwrap(), format!("sha256-{hex}"));
        for bad in ["", "sha256:", "sha256:../../x", "../x", "sha512:00"] {
            assert!(file_name(bad).is_err(), "{bad}");
        }
    }
}
