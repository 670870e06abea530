//! A Debian archive's list of packages, and what of it a set of packages needs.
//!
//! Pure. Fetching lists and packages is `debian`'s.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What is wanted of the distribution.
#[derive(Debug)]
pub(super) struct PackageQuery<'a> {
    /// Alternatives, of which the first that exists is taken, with the packages it leads to
    /// whose names start with one of `follow`.
    pub(super) any_of: &'a [&'a str],
    /// Prefixes of the dependencies to fetch as well.
    pub(super) follow: &'a [&'a str],
}

/// A package, as far as it is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    /// Below the mirror's directory.
    pub(super) path: String,
    pub(super) sha256: String,
}

/// The packages of a list by their names. The stable archive has one version of each.
#[derive(Debug)]
pub(super) struct PackageList<'a>(BTreeMap<&'a str, Stanza<'a>>);

/// A package's lines, `Key: value` and lines that continue a value.
#[derive(Clone, Copy, Debug)]
struct Stanza<'a>(&'a str);

impl<'a> PackageList<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        let stanzas = text.split("\n\n").map(Stanza);
        Self(stanzas.filter_map(|stanza| Some((stanza.field("Package")?, stanza))).collect())
    }

    /// Returns what a query leads to, in the order of names.
    ///
    /// # Errors
    /// The names of which there is none, or what is wrong with the list.
    pub(super) fn select(&self, query: &PackageQuery<'_>) -> Result<Vec<Package>, String> {
        let root = query.any_of.iter().find(|name| self.0.contains_key(**name));
        let root = root.ok_or_else(|| format!("it has no {}", query.any_of.join(" or ")))?;
        let names = self.closure(root, query.follow);
        names.into_iter().map(|name| self.0[name].package(name)).collect()
    }

    fn closure(&self, root: &str, follow: &[&str]) -> BTreeSet<&'a str> {
        let mut names = BTreeSet::new();
        let mut queue = VecDeque::from_iter(self.0.get_key_value(root));
        while let Some((name, stanza)) = queue.pop_front() {
            if names.insert(*name) {
                let followed = |name: &&str| follow.iter().any(|prefix| name.starts_with(prefix));
                let depends = stanza.depends().filter_map(|any| self.first_of(any));
                queue.extend(depends.filter(|(name, _)| followed(name)));
            }
        }
        names
    }

    /// Finds the first of `libc6 (>= 2.38) | libc6.1` that there is.
    fn first_of(&self, alternatives: &str) -> Option<(&&'a str, &Stanza<'a>)> {
        let names = alternatives
            .split('|')
            .filter_map(|one| one.split([' ', '(', ':']).find(|w| !w.is_empty()));
        names.into_iter().find_map(|name| self.0.get_key_value(name))
    }
}

impl<'a> Stanza<'a> {
    fn field(self, key: &str) -> Option<&'a str> {
        let value = |line: &'a str| line.strip_prefix(key)?.strip_prefix(':');
        self.0.lines().find_map(value).map(str::trim)
    }

    fn depends(self) -> impl Iterator<Item = &'a str> {
        let fields = ["Pre-Depends", "Depends"].into_iter();
        fields.filter_map(move |key| self.field(key)).flat_map(|list| list.split(','))
    }

    fn package(self, name: &str) -> Result<Package, String> {
        let field = |key| self.field(key).ok_or_else(|| format!("{name} has no {key} in it"));
        let (path, sha256) = (field("Filename")?.to_owned(), field("SHA256")?.to_owned());
        let plain = path.split('/').all(|part| !part.is_empty() && !part.starts_with('.'));
        if !plain {
            return Err(format!("{name} is in {path:?}, which is no path below the mirror"));
        }
        Ok(Package { path, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
Package: linux-image-amd64
Depends: linux-image-6.12-amd64 (= 6.12.1-1)
Filename: pool/linux-image-amd64.deb
SHA256: 01

Package: linux-image-6.12-amd64
Depends: kmod, initramfs-tools (>= 0.1) | linux-initramfs-tool
Pre-Depends: linux-base (>= 4.12~)
Description: a kernel
 Depends: nothing
Filename: pool/linux-image-6.12-amd64.deb
SHA256: 02

Package: kmod
Filename: pool/kmod.deb
SHA256: 03

Package: sshd
Pre-Depends: libgone | libc6:any (>= 2.38), zlib1g
Filename: pool/sshd.deb
SHA256: 04

Package: libc6
Depends: libgcc-s1, sshd
Filename: pool/libc6.deb
SHA256: 05

Package: libgcc-s1
Depends: libc6
Filename: ../../etc/passwd
SHA256: 06
";

    fn select(any_of: &[&str], follow: &[&str]) -> Result<Vec<String>, String> {
        let packages = PackageList::parse(LIST).select(&PackageQuery { any_of, follow })?;
        Ok(packages.into_iter().map(|p| format!("{} {}", p.path, p.sha256)).collect())
    }

    #[test]
    fn a_kernel_leads_to_its_image_and_to_nothing_else() {
        let found = select(&["linux-cloud", "linux-image-amd64"], &["linux-image-"]).unwrap();
        assert_eq!(found, ["pool/linux-image-6.12-amd64.deb 02", "pool/linux-image-amd64.deb 01"]);
    }

    #[test]
    fn the_first_alternative_that_there_is_counts_and_circles_end() {
        assert_eq!(
            select(&["sshd"], &["libc"]).unwrap(),
            ["pool/libc6.deb 05", "pool/sshd.deb 04"]
        );
    }

    #[test]
    fn what_is_not_there_and_what_is_elsewhere_is_told() {
        assert_eq!(select(&["a", "b"], &[]).unwrap_err(), "it has no a or b");
        assert!(select(&["sshd"], &["lib"]).unwrap_err().contains("no path below the mirror"));
    }
}
