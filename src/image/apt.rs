//! Packages of a distribution with apt, fetched as an ordinary user and never installed. apt
//! itself picks versions and verifies signatures and checksums.
//!
//! The system's package lists are used if they lead to the packages; else (a fresh container has
//! none, an old one leads to files that are gone) lists of our own are fetched into the cache.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::command::Tool;
use super::source::{BuildError, Progress, Result};
use crate::disk::fingerprint::hash_file;

const REMEDY: &str = "builtin:tiny is made of Debian's or Ubuntu's packages; \
    on another distribution name an image of your own in config/image";
const APT_GET: Tool = Tool { name: "apt-get", remedy: REMEDY };
const APT_CACHE: Tool = Tool { name: "apt-cache", remedy: REMEDY };

/// Which lists of packages apt goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PackageLists {
    /// The system's.
    System,
    /// Our own, in the cache.
    Own,
}

/// apt with a state of its own.
#[derive(Debug)]
pub(super) struct Apt {
    dir: PathBuf,
    lists: PackageLists,
}

/// What is wanted of the distribution.
#[derive(Debug)]
pub(super) struct PackageQuery<'a> {
    /// Alternatives, of which the first that exists is taken, with the packages it leads to
    /// whose names start with one of `follow`.
    pub(super) any_of: &'a [&'a str],
    /// Prefixes of the dependencies to fetch as well.
    pub(super) follow: &'a [&'a str],
}

/// A package as apt would fetch it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Archive {
    file: String,
    sha256: Option<String>,
}

impl Apt {
    /// Uses `cache`, which must exist, for packages and lists.
    pub(super) fn new(cache: &Path) -> Result<Self> {
        let dir = cache.join("apt");
        for sub in ["cache/archives/partial", "state/lists/partial", "packages"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(BuildError::at(&path))?;
        }
        let status = dir.join("status");
        fs::write(&status, "").map_err(BuildError::at(&status))?;
        Ok(Self { dir, lists: PackageLists::System })
    }

    /// Returns the archives of all that is wanted, fetching those that are not in the cache.
    pub(super) fn fetch(
        &mut self,
        wanted: &[PackageQuery<'_>],
        progress: &Progress,
    ) -> Result<Vec<PathBuf>> {
        match self.try_fetch(wanted, progress) {
            Err(e) if e.may_pass_with_new_lists() => {}
            other => return other,
        }
        progress.fetching("fetching the distribution's package lists");
        self.lists = PackageLists::Own;
        let complaint = self.update()?;
        let result = self.try_fetch(wanted, progress);
        result.map_err(|error| explain(error, complaint))
    }

    /// Fetches lists of our own and returns the first complaint: apt-get calls it a success when
    /// only some of them can be had, which may well be enough.
    fn update(&self) -> Result<Option<String>> {
        let mut update = self.command(&APT_GET);
        let output = APT_GET.run_loud(update.args(["-qq", "update"]))?;
        let text = String::from_utf8_lossy(&output.stderr);
        let is_complaint = |line: &&str| line.starts_with("W: ") || line.starts_with("E: ");
        Ok(text.lines().find(is_complaint).map(str::to_owned))
    }

    fn try_fetch(&self, wanted: &[PackageQuery<'_>], progress: &Progress) -> Result<Vec<PathBuf>> {
        progress.fetching("asking apt for the packages");
        let names = self.resolve(wanted)?;
        let archives = self.archives(&names)?;
        let packages = self.dir.join("packages");
        let missing: Vec<_> = archives.iter().filter(|a| !a.is_intact_in(&packages)).collect();
        if !missing.is_empty() {
            progress.fetching(format!("fetching {} packages", missing.len()));
            let exact = missing.iter().filter_map(|a| a.exact_name());
            let mut download = self.command(&APT_GET);
            download.args(["-qq", "download", "--"]).args(exact);
            APT_GET.run(download.current_dir(&packages))?;
        }
        Ok(archives.iter().map(|a| packages.join(&a.file)).collect())
    }

    /// Returns the names of all that is wanted, dependencies included.
    fn resolve(&self, wanted: &[PackageQuery<'_>]) -> Result<BTreeSet<String>> {
        let mut query = self.command(&APT_CACHE);
        query.args(["depends", "--recurse", "--no-recommends", "--no-suggests"]);
        query.args(["--no-conflicts", "--no-breaks", "--no-replaces"]);
        query.args(["--no-enhances", "--"]);
        query.args(wanted.iter().flat_map(|w| w.any_of));
        let output = APT_CACHE.run(&mut query)?;
        let graph = parse_depends(&String::from_utf8_lossy(&output));
        let mut names = BTreeSet::new();
        for want in wanted {
            let root = want.any_of.iter().find(|name| graph.contains_key(**name));
            let root = root.ok_or_else(|| BuildError::Unavailable {
                what: format!("apt knows no package {}", want.any_of.join(" or ")),
                remedy: "add the distribution's main section to apt's sources, then try again",
            })?;
            names.append(&mut closure(&graph, root, want.follow));
        }
        Ok(names)
    }

    /// Asks apt which files the packages are. (Not from where they are: apt leaves those out.)
    fn archives(&self, names: &BTreeSet<String>) -> Result<Vec<Archive>> {
        let mut query = self.command(&APT_GET);
        query.args(["-qq", "--print-uris", "download", "--"]);
        let output = APT_GET.run(query.args(names))?;
        let text = String::from_utf8_lossy(&output);
        let mut archives: Vec<_> = text.lines().filter_map(parse_uri).collect();
        archives.sort_by(|a, b| a.file.cmp(&b.file));
        if archives.len() == names.len() {
            return Ok(archives);
        }
        Err(BuildError::Unavailable {
            what: format!("apt offers {} of the packages {names:?}", archives.len()),
            remedy: "see what `apt-cache policy` says of them",
        })
    }

    /// Makes a call that needs no privileges, ends within a timeout, and takes nothing for
    /// installed.
    fn command(&self, tool: &Tool) -> Command {
        let mut command = tool.command();
        command.current_dir(&self.dir);
        let mut set = |key: &str, value: &Path| {
            let mut option = OsString::from(key);
            option.push("=");
            option.push(value);
            command.arg("-o").arg(option);
        };
        set("Dir::Cache", &self.dir.join("cache"));
        set("Dir::State::status", &self.dir.join("status"));
        if self.lists == PackageLists::Own {
            set("Dir::State::lists", &self.dir.join("state/lists"));
        }
        for option in [
            "Debug::NoLocking=1",
            "Acquire::Languages=none",
            "Acquire::Retries=2",
            "Acquire::http::Timeout=30",
            "Acquire::https::Timeout=30",
        ] {
            command.args(["-o", option]);
        }
        command
    }
}

impl Archive {
    fn is_intact_in(&self, dir: &Path) -> bool {
        let mut digest = Sha256::new();
        let hashed = hash_file(&mut digest, &dir.join(&self.file));
        hashed.is_ok() && self.sha256 == Some(format!("{:x}", digest.finalize()))
    }

    /// Returns `name=version`; apt's file names are `NAME_VERSION_ARCH.deb` with `%3a` for `:`.
    fn exact_name(&self) -> Option<String> {
        let mut parts = self.file.split('_');
        let (name, version) = (parts.next()?, parts.next()?);
        Some(format!("{name}={}", version.replace("%3a", ":")))
    }
}

/// Names the deeper cause if packages are unknown because their lists could not be fetched.
fn explain(error: BuildError, complaint: Option<String>) -> BuildError {
    match complaint {
        Some(said) if error.may_pass_with_new_lists() => BuildError::Unavailable {
            what: format!("the distribution's package lists cannot be fetched ({said})"),
            remedy: "check the network and apt's sources, then try again",
        },
        _ => error,
    }
}

/// Parses a line of `apt-get --print-uris`: `'URI' FILE SIZE SHA256:DIGEST`.
fn parse_uri(line: &str) -> Option<Archive> {
    let mut words = line.strip_prefix('\'')?.split_whitespace().skip(1);
    let file = words.next()?;
    let digest = words.nth(1).and_then(|w| w.strip_prefix("SHA256:"));
    let plain = !file.contains('/') && !file.starts_with('.');
    plain.then(|| Archive { file: file.to_owned(), sha256: digest.map(str::to_owned) })
}

/// Parses `apt-cache depends --recurse`: a package at the margin, what it depends on indented.
/// Of alternatives (`|Depends`) all are kept; names in `<>` are virtual.
fn parse_depends(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut graph: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut package = None;
    for line in text.lines() {
        if line.starts_with('<') {
            package = None;
        } else if !line.starts_with(' ') {
            graph.entry(line.to_owned()).or_default();
            package = Some(line);
        } else if let Some((kind, name)) = line.split_once(": ")
            && kind.trim_start_matches([' ', '|']).ends_with("Depends")
            && let Some(list) = package.and_then(|p| graph.get_mut(p))
        {
            list.push(name.to_owned());
        }
    }
    graph
}

fn closure(graph: &BTreeMap<String, Vec<String>>, root: &str, follow: &[&str]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut queue = VecDeque::from([root]);
    while let Some(name) = queue.pop_front() {
        if names.insert(name.to_owned()) {
            let depends = graph.get(name).into_iter().flatten();
            let followed = depends
                .filter(|d| graph.contains_key(*d))
                .filter(|d| follow.iter().any(|prefix| d.starts_with(prefix)));
            queue.extend(followed.map(String::as_str));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDS: &str = "\
linux-image-virtual
  Depends: linux-image-6.8.0-31-generic
linux-image-6.8.0-31-generic
  Depends: kmod
 |Depends: linux-base
  Depends: linux-modules-6.8.0-31-generic
linux-modules-6.8.0-31-generic
kmod
  PreDepends: libc6
<linux-initramfs-tool>
  Depends: nothing
";

    #[test]
    fn the_kernel_leads_to_its_modules_and_to_nothing_else() {
        let graph = parse_depends(DEPENDS);
        let names = closure(&graph, "linux-image-virtual", &["linux-image-", "linux-modules-"]);
        let expected = [
            "linux-image-6.8.0-31-generic",
            "linux-image-virtual",
            "linux-modules-6.8.0-31-generic",
        ];
        assert!(names.iter().eq(expected), "{names:?}");
        assert_eq!(graph["kmod"], ["libc6"]);
    }

    #[test]
    fn a_uri_line_gives_file_digest_and_exact_version() {
        let line = "'http://x/b_1%3a1.35.deb' b_1%3a1.35-4+deb12_amd64.deb 9 SHA256:ab";
        let archive = parse_uri(line).unwrap();
        assert_eq!(archive.exact_name().unwrap(), "b=1:1.35-4+deb12");
        assert_eq!(archive.sha256.as_deref(), Some("ab"));
        assert_eq!(parse_uri("'http://x' ../../etc/passwd 9 SHA256:ab"), None);
        assert_eq!(parse_uri("Reading package lists..."), None);
    }
}
