//! `-v DIR:TARGET[:ro]`: a directory of this host in the guest, as the words of `shares/`.
//!
//! Not here: what a share may be, which the tree says when it is written.

use std::path::Path;

use super::Failure;
use super::files::Vm;

/// A share that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Volume {
    name: String,
    source: String,
    target: String,
    mode: &'static str,
}

impl Volume {
    /// Reads `DIR:TARGET`, with `:ro` or `:rw` at its end if need be. A relative `DIR` is one of where
    /// this program runs.
    ///
    /// # Errors
    /// A form that is none, or a directory that is not there.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let (rest, mode) = match text.rsplit_once(':') {
            Some((rest, "ro")) => (rest, "ro"),
            Some((rest, "rw")) => (rest, "rw"),
            Some(_) | None => (text, "rw"),
        };
        let form = || Failure::Usage(format!("-v {text}: this is not DIR:TARGET or DIR:TARGET:ro"));
        let (source, target) = rest.rsplit_once(':').ok_or_else(form)?;
        if source.is_empty() || !target.starts_with('/') {
            return Err(form());
        }
        Ok(Self { name: name(target), source: absolute(source)?, target: target.to_owned(), mode })
    }

    /// Makes the share of a VM.
    pub(super) fn make(&self, vm: &Vm) -> Result<(), Failure> {
        let share = format!("shares/{}", self.name);
        vm.tree().mkdir(&format!("{}/{share}", vm.name))?;
        // The source comes last: from then on the guest is to have it.
        let values = [("target", &*self.target), ("mode", self.mode), ("source", &*self.source)];
        values.iter().try_for_each(|(file, text)| vm.write(&format!("{share}/{file}"), text))
    }

    /// Refuses to continue without it.
    ///
    /// # Errors
    /// The guest does not have it, with the reason.
    pub(super) fn expect(&self, vm: &Vm) -> Result<(), Failure> {
        let status = vm.read(&format!("shares/{}/status", self.name))?;
        match status.trim() {
            "mounted" => Ok(()),
            status => Err(Failure::Refused {
                what: format!("{} in the guest at {}", self.source, self.target),
                sentence: status.to_owned(),
                errno: 0,
            }),
        }
    }
}

fn absolute(source: &str) -> Result<String, Failure> {
    let found = Path::new(source).canonicalize().map_err(super::local(source))?;
    let text = found.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::Usage(format!("-v {source}: its path is not UTF-8")))
}

/// Makes a name of a share: the target with a dash for what no name has.
fn name(target: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._".contains(c) { c } else { '-' };
    let dashed: String = target.chars().map(plain).collect();
    let name = dashed.trim_matches(['-', '.']);
    if name.is_empty() { "root".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_a_directory_here_and_a_place_there() {
        let (here, up) = (absolute(".").expect("here"), absolute("..").expect("above"));
        let volume = |text: &str| Volume::parse(text).expect("a volume");
        let same = Volume {
            name: "srv-my.site".into(),
            source: here,
            target: "/srv/my.site".into(),
            mode: "rw",
        };
        assert_eq!(volume(".:/srv/my.site"), same);
        assert_eq!(volume(".:/srv/my.site:rw"), same);
        let above = volume("..:/:ro");
        assert_eq!((&*above.name, above.source, above.mode), ("root", up, "ro"));
    }

    #[test]
    fn what_is_no_volume_is_refused() {
        for text in ["", "/tmp", "/tmp:", ":/x", "/tmp:x", "/tmp:/x:rx", "/nowhere/at/all:/x"] {
            assert!(Volume::parse(text).is_err(), "{text}");
        }
    }
}
