//! Packages of a release of Debian, for any architecture and on any host: the release is
//! fetched and its signature verified, then its list of packages and the packages themselves, each
//! against the checksum of the one before.
//!
//! `doc/adr/0026-tiny-without-apt.md` says what is trusted. Not here: which packages depend on
//! which (`packages`), and unpacking them (`unpack`).

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{NaiveDateTime, Utc};

use super::packages::{Package, PackageList, PackageQuery};
use super::source::{BuildError, Progress, Result};
use super::unpack;
use crate::arch::Arch;
use crate::fetch::{Checksum, Client, Download, FetchError, Keys, Transfer};
use crate::store::file;

/// Debian's own mirror.
pub(super) const MIRROR: &str = "https://deb.debian.org/debian";
/// The archive's keys and those of its stable releases, 12 and 13, as in debian-archive-keyring.
const KEYS: &[u8] = include_bytes!("keys/debian.asc");
const OTHER_MIRROR: &str =
    "try again later, or name another mirror (`cat .docs/images.md` says how)";

/// Debian's archive, as a mirror has it.
pub(super) struct Archive<'a> {
    mirror: &'a str,
    /// The release: `stable`, or a name.
    suite: &'static str,
    keys: Keys,
    arch: Arch,
    dir: PathBuf,
    client: Client,
    progress: &'a Progress,
}

impl<'a> Archive<'a> {
    /// Keeps what it fetches under `cache`.
    pub(super) fn new(
        (mirror, suite): (&'a str, &'static str),
        arch: Arch,
        cache: &Path,
        progress: &'a Progress,
    ) -> Result<Self> {
        let keys = Keys::parse(KEYS).map_err(|e| BuildError::malformed("Debian's keys", e))?;
        let dir = cache.join("debian").join(arch.platform().debian);
        for dir in [cache, &cache.join("debian"), &dir] {
            file::private_dir(dir).map_err(BuildError::at(dir))?;
        }
        let client = Client::of_signed(progress.cancel().clone())?;
        let mirror = mirror.trim_end_matches('/');
        Ok(Self { mirror, suite, keys, arch, dir, client, progress })
    }

    /// Returns the packages that each group of queries leads to, fetching those that are not in the
    /// cache. What no group needs any more leaves the cache.
    pub(super) fn fetch(&self, groups: &[&[PackageQuery<'_>]]) -> Result<Vec<Vec<PathBuf>>> {
        self.progress.fetching(format!("asking {} for its packages", self.mirror));
        let release = self.release()?;
        let text = self.list(&release)?;
        let list = PackageList::parse(&text);
        let wanted = groups.iter().map(|group| self.select(&list, group));
        let wanted = wanted.collect::<Result<Vec<_>>>()?;
        let fetched = wanted.iter().map(|group| group.iter().map(|p| self.package(p)).collect());
        let fetched = fetched.collect::<Result<Vec<Vec<PathBuf>>>>()?;
        self.keep_only(&fetched.concat());
        Ok(fetched)
    }

    /// Fetches the release. Without a network the last one counts, whose packages may all be there.
    fn release(&self) -> Result<Release> {
        let (url, kept) =
            (self.url(&format!("dists/{}/InRelease", self.suite)), self.dir.join("InRelease"));
        let text = match self.client.text(&url) {
            Ok(text) => text,
            Err(error @ FetchError::Unreachable { .. }) => {
                fs::read_to_string(&kept).map_err(|_| explained(error))?
            }
            Err(error) => return Err(explained(error)),
        };
        let (signed, _) = self.keys.verify_inline(&url, &text)?;
        let release = Release { text: signed.replace("\r\n", "\n"), url };
        release.check_suite(self.suite)?;
        release.check_date(Utc::now().naive_utc())?;
        file::replace(&kept, text.as_bytes()).map_err(BuildError::at(&kept))?;
        Ok(release)
    }

    fn list(&self, release: &Release) -> Result<String> {
        let name = format!("main/binary-{}/Packages.xz", self.arch.platform().debian);
        let sum = release.checksum(&name)?;
        // While a mirror is being changed, the file by this name may be newer than the release.
        let path = match release.field("Acquire-By-Hash") {
            Some("yes") => name.replace("Packages.xz", &format!("by-hash/SHA256/{sum}")),
            Some(_) | None => name,
        };
        let path = self.fetched(&format!("dists/{}/{path}", self.suite), &sum, "Packages.xz")?;
        let what = path.display().to_string();
        let text = unpack::decompress(&what, &fs::read(&path).map_err(BuildError::at(&path))?)?;
        String::from_utf8(text).map_err(|e| BuildError::malformed(what, e))
    }

    fn select(&self, list: &PackageList<'_>, group: &[PackageQuery<'_>]) -> Result<Vec<Package>> {
        let mut all = Vec::new();
        for query in group {
            let found = list.select(query).map_err(|reason| BuildError::Unavailable {
                what: format!("{}, {}: {reason}", self.mirror, self.arch.platform().debian),
                remedy: OTHER_MIRROR,
            })?;
            all.extend(found);
        }
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all.dedup();
        Ok(all)
    }

    fn package(&self, package: &Package) -> Result<PathBuf> {
        let name = package.path.rsplit('/').next().unwrap_or(&package.path);
        self.fetched(&package.path, &package.sha256, name)
    }

    /// Returns the file in the cache, fetched if it is not there with this checksum.
    fn fetched(&self, path: &str, sha256: &str, name: &str) -> Result<PathBuf> {
        let sum: Checksum = sha256
            .parse()
            .map_err(|()| BuildError::malformed(path, "its checksum is no SHA-256"))?;
        let (url, kept) = (self.url(path), self.dir.join(name));
        if sum.of_same_kind(&kept, self.progress.cancel()).is_ok_and(|found| found == sum) {
            return Ok(kept);
        }
        let request = Download { url: &url, cache: &self.dir };
        let report = |transfer: Transfer| {
            let named = Transfer { name: name.to_owned(), ..transfer };
            self.progress.fetching(named.to_string());
        };
        let file = self.client.download(&request, report).map_err(explained)?;
        file.verify(&sum, self.progress.cancel())?;
        Ok(file.move_to(&kept)?)
    }

    /// Removes packages of earlier releases. What stays is only room on the disk.
    fn keep_only(&self, wanted: &[PathBuf]) {
        let files = fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok);
        let is_package = |path: &PathBuf| path.extension().is_some_and(|e| e == "deb");
        for path in files.map(|e| e.path()).filter(is_package).filter(|p| !wanted.contains(p)) {
            drop(fs::remove_file(path));
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.mirror)
    }
}

/// Adds the next step, where that is another mirror.
fn explained(error: FetchError) -> BuildError {
    match error {
        FetchError::Unreachable { .. } | FetchError::Status { .. } | FetchError::TooLong { .. } => {
            BuildError::Unavailable { what: error.to_string(), remedy: OTHER_MIRROR }
        }
        FetchError::Cancelled
        | FetchError::NoTls(_)
        | FetchError::BadUrl { .. }
        | FetchError::Redirect { .. }
        | FetchError::NoSpace { .. }
        | FetchError::WrongChecksum { .. }
        | FetchError::NotListed { .. }
        | FetchError::NoChecksum { .. }
        | FetchError::BadSignature { .. }
        | FetchError::Io { .. } => error.into(),
    }
}

/// A release, whose signature is verified.
#[derive(Debug)]
struct Release {
    text: String,
    url: String,
}

impl Release {
    fn field(&self, key: &str) -> Option<&str> {
        let value = |line| str::strip_prefix(line, key)?.strip_prefix(':');
        self.text.lines().find_map(value).map(str::trim)
    }

    /// Finds the SHA-256 of a file in the list of them.
    fn checksum(&self, name: &str) -> Result<String> {
        let lines = self.text.lines().skip_while(|line| !line.starts_with("SHA256:")).skip(1);
        let mut lines = lines.take_while(|line| line.starts_with(' '));
        let sum = lines.find_map(|line| {
            let mut words = line.split_whitespace();
            let sum = words.next()?;
            (words.nth(1) == Some(name)).then(|| sum.to_owned())
        });
        sum.ok_or_else(|| BuildError::Unavailable {
            what: format!("{}: it does not name {name}", self.url),
            remedy: OTHER_MIRROR,
        })
    }

    /// Refuses another release, which the same keys sign.
    fn check_suite(&self, suite: &str) -> Result<()> {
        if [self.field("Suite"), self.field("Codename")].contains(&Some(suite)) {
            return Ok(());
        }
        let what = format!("{}: it is not the release {suite}", self.url);
        Err(BuildError::Unavailable { what, remedy: OTHER_MIRROR })
    }

    /// Refuses a release that is to be used no more: a mirror may keep it for ever.
    fn check_date(&self, now: NaiveDateTime) -> Result<()> {
        let Some(until) = self.field("Valid-Until") else { return Ok(()) };
        let read = NaiveDateTime::parse_from_str(until, "%a, %d %b %Y %H:%M:%S UTC");
        match read {
            Ok(end) if now <= end => Ok(()),
            Ok(_) => Err(BuildError::Unavailable {
                what: format!("{}: it was valid until {until}, and has not been renewed", self.url),
                remedy: "see whether this host's clock is right, or name another mirror \
                    (`cat .docs/images.md` says how)",
            }),
            Err(_) => {
                Err(BuildError::malformed(&*self.url, format_args!("Valid-Until is {until:?}")))
            }
        }
    }
}

#[cfg(test)]
#[path = "debian_tests.rs"]
mod tests;
