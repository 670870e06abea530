//! Finds a release of a distribution on its mirror: the disk, its checksum, and who has signed that.

use std::cmp::Ordering;

use regex::Regex;

use super::distribution::{Distribution, Newest};
use super::source::BuildError;
use crate::fetch::{Checksum, ChecksumList, Client, FetchError, Keys};

/// A disk that can be pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Release {
    /// The disk's name.
    pub(super) file: String,
    pub(super) url: String,
    pub(super) checksum: Checksum,
    /// What the checksum is known by, for people.
    pub(super) trust: String,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) row: &'a Distribution,
    /// `3.22`, `bookworm`; `None`: the newest.
    pub(super) version: Option<&'a str>,
    /// `x86_64`
    pub(super) arch: &'a str,
}

/// The values of `{version}` and its like.
struct Names<'a> {
    wanted: Wanted<'a>,
    version: Option<String>,
}

impl Wanted<'_> {
    /// Asks the mirror.
    ///
    /// # Errors
    /// What the mirror answers, or what is missing there.
    pub(super) fn resolve(self, client: &Client) -> Result<Release, BuildError> {
        let (row, arch) = (self.row, self.arch);
        let disk = row.disk.get(arch).ok_or_else(|| BuildError::Unavailable {
            what: format!("{} has no image for {arch}", row.name),
            remedy: "name another distribution",
        })?;
        let version = self.release(client)?;
        let names = Names { wanted: self, version };
        let dir = match (&names.version, &row.newest) {
            (None, Newest::Directory { directory }) => names.fill(directory),
            (_, Newest::Directory { .. } | Newest::Version { .. } | Newest::Listed { .. }) => {
                names.fill(&row.directory)
            }
        };
        let dir = Directory { client, url: join(&row.mirror, &dir) };
        let beside = row.checksums.contains("{file}");
        let file = if beside { dir.find(&names, disk)? } else { String::new() };
        let list = dir.find(&names, &row.checksums.replace("{file}", &file))?;
        let (text, trust) = self.read_list(&dir, &list, &file)?;
        let list = ChecksumList::parse(&join(&dir.url, &list), &text)?;
        let file = if beside { file } else { names.choose(disk, list.names(), &dir.url)? };
        let checksum = if beside { list.beside(&file) } else { list.find(&file) };
        let (checksum, url) = (checksum?.clone(), join(&dir.url, &file));
        Ok(Release { file, url, checksum, trust })
    }

    /// Returns the number of the release; `None` where the mirror's own directory leads to it.
    fn release(self, client: &Client) -> Result<Option<String>, BuildError> {
        let row = self.row;
        if let Some(version) = self.version {
            let of_name = row.codenames.iter().find(|(_, name)| *name == version);
            return Ok(Some(of_name.map_or(version, |(number, _)| number).to_owned()));
        }
        match &row.newest {
            Newest::Version { version } => Ok(Some(version.clone())),
            Newest::Directory { .. } => Ok(None),
            Newest::Listed { list, pattern } => {
                let dir = Directory { client, url: join(&row.mirror, list) };
                let names = dir.names()?;
                let highest = highest(pattern, names.iter().map(String::as_str));
                let (_, version) = highest.ok_or_else(|| nothing(pattern, &dir.url))?;
                Ok(version.into_iter().next())
            }
        }
    }

    /// Returns the text of the list, and what it is trusted for.
    fn read_list(
        self,
        dir: &Directory<'_>,
        list: &str,
        file: &str,
    ) -> Result<(String, String), BuildError> {
        let url = join(&dir.url, list);
        let text = dir.client.text(&url)?;
        let keys = self.row.trusted().map_err(|e| BuildError::malformed("images.toml", e))?;
        let (Some(keys), Some(signature)) = (keys, &self.row.signature) else {
            return Ok((text, format!("{list}, not signed")));
        };
        if signature == "inline" {
            let (text, key) = keys.verify_inline(&url, &text)?;
            return Ok((text, signed_by(list, &key)));
        }
        let beside = join(&dir.url, &signature.replace("{file}", file));
        let key = verify(&keys, &url, &dir.client.bytes(&beside)?, &text)?;
        Ok((text, signed_by(list, &key)))
    }
}

fn verify(keys: &Keys, url: &str, signature: &[u8], text: &str) -> Result<String, FetchError> {
    keys.verify_detached(url, signature, || Ok(text.as_bytes()))
}

fn signed_by(list: &str, key: &str) -> String {
    format!("{list} signed by {key}")
}

impl Names<'_> {
    /// Puts the values into a path.
    fn fill(&self, text: &str) -> String {
        self.fill_with(text, &str::to_owned, "latest")
    }

    /// Puts them into a regular expression.
    fn fill_pattern(&self, text: &str) -> String {
        self.fill_with(text, &|value| regex::escape(value), r"\d[\d.]*")
    }

    fn fill_with(&self, text: &str, quote: &dyn Fn(&str) -> String, any: &str) -> String {
        let row = self.wanted.row;
        let arch = row.arch.get(self.wanted.arch).map_or(self.wanted.arch, String::as_str);
        let text = text.replace("{arch}", &quote(arch));
        let Some(version) = &self.version else {
            return text.replace("{version}", any);
        };
        let minor = version.split('.').take(2).collect::<Vec<_>>().join(".");
        let codename = row.codenames.get(version).unwrap_or(version);
        let text = text.replace("{version}", &quote(version)).replace("{minor}", &quote(&minor));
        text.replace("{codename}", &quote(codename))
    }

    /// Chooses the name that is meant among those that there are.
    fn choose<'n>(
        &self,
        pattern: &str,
        names: impl Iterator<Item = &'n str>,
        place: &str,
    ) -> Result<String, BuildError> {
        if !pattern.contains('(') {
            return Ok(self.fill(pattern));
        }
        let pattern = self.fill_pattern(pattern);
        let chosen = highest(&pattern, names).ok_or_else(|| nothing(&pattern, place))?;
        Ok(chosen.0)
    }
}

/// A directory of the mirror.
struct Directory<'a> {
    client: &'a Client,
    url: String,
}

impl Directory<'_> {
    /// Lists the names in it: those that its page leads to. Directories end in `/`.
    fn names(&self) -> Result<Vec<String>, BuildError> {
        let page = self.client.text(&format!("{}/", self.url))?;
        Ok(links(&page))
    }

    /// Returns the name that is meant, looking at the directory only for a pattern.
    fn find(&self, names: &Names<'_>, pattern: &str) -> Result<String, BuildError> {
        if !pattern.contains('(') {
            return Ok(names.fill(pattern));
        }
        let there = self.names()?;
        names.choose(pattern, there.iter().map(String::as_str), &self.url)
    }
}

/// Reads the names that the page of a directory leads to.
fn links(page: &str) -> Vec<String> {
    let targets = page.split("href=").skip(1).filter_map(|rest| {
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        rest[1..].split(quote).next()
    });
    let name = |target: &str| {
        let path = target.split(['?', '#']).next().unwrap_or_default();
        let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let slash = if path.ends_with('/') { "/" } else { "" };
        format!("{last}{slash}")
    };
    targets.map(name).filter(|name| !matches!(name.as_str(), "" | "/" | "../" | "./")).collect()
}

/// Returns the name with the highest numbers among those that match as a whole, and the groups that
/// matched in it.
fn highest<'a>(
    pattern: &str,
    names: impl Iterator<Item = &'a str>,
) -> Option<(String, Vec<String>)> {
    let regex = Regex::new(&format!("^(?:{pattern})$")).ok()?;
    let matched = names.filter_map(|name| {
        let groups = regex.captures(name)?;
        let groups = groups.iter().skip(1).flatten().map(|g| g.as_str().to_owned());
        Some((name.to_owned(), groups.collect::<Vec<_>>()))
    });
    matched.max_by(|(_, a), (_, b)| compare(a, b))
}

/// Compares by the numbers in the groups: 3.9 is before 3.22.
fn compare(a: &[String], b: &[String]) -> Ordering {
    let numbers = |groups: &[String]| -> Vec<u64> {
        let parts = groups.iter().flat_map(|g| g.split(|c: char| !c.is_ascii_digit()));
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b))
}

fn nothing(pattern: &str, place: &str) -> BuildError {
    BuildError::Unavailable {
        what: format!("{place} has nothing like {pattern}"),
        remedy: "look there for the releases that it has, or use another mirror",
    }
}

fn join(base: &str, path: &str) -> String {
    let (base, path) = (base.trim_end_matches('/'), path.trim_matches('/'));
    if path.is_empty() { base.to_owned() } else { format!("{base}/{path}") }
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
