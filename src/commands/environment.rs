//! The environment: a row of [`VARIABLES`] is a variable and what it does.
//!
//! Those of the bash tool that shape a machine are settings of the VM that is made or started,
//! so that what it runs with is in its `config/` and nowhere else. All are read before anything is
//! done.
//!
//! Not here: what a setting may be (the tree says so at the write).

use std::env;
use std::fs;
use std::path::{self, PathBuf};

use super::Failure;
use super::files::plain;

const HOST_KEY: &str = "AQ_HOST_KEY";
/// The most that `config/cmdline` takes, in bytes.
const LONGEST_CMDLINE: usize = 1024;
/// Whether `aq start` reports how long it took.
const TIMING: &str = "AQ_TIMING";

/// A variable of the environment.
#[derive(Debug)]
pub struct Variable {
    /// Its name, or several with the same meaning.
    pub name: &'static str,
    /// What it does, for the manual.
    pub doc: &'static str,
    reads: Reads,
}

#[derive(Debug)]
enum Reads {
    /// `aq new`, `fanout` and `start`, which put it into the VM's settings.
    Settings(fn(&str) -> Result<Vec<Override>, String>),
    /// Whatever it is for.
    Other,
    /// None: the bash tool has it, and here there is nothing that it could change.
    None,
}

impl Variable {
    /// Says whether it does anything here.
    pub fn has_effect(&self) -> bool {
        !matches!(self.reads, Reads::None)
    }
}

/// Every variable.
pub const VARIABLES: &[Variable] = &[
    Variable {
        name: "AQ_MOUNT",
        doc: "where the tree is mounted, or to be mounted; by default the mount in which the working directory is, else ~/aq",
        reads: Reads::Other,
    },
    Variable {
        name: "AQ_STORE",
        doc: "where virtual machines are kept; $XDG_DATA_HOME/aqfs by default",
        reads: Reads::Other,
    },
    Variable { name: "AQ_LOG", doc: "what the daemon logs, such as `debug`", reads: Reads::Other },
    Variable {
        name: HOST_KEY,
        doc: "path of a private key: `aq new`, `fanout` and `start` add the public key beside it \
              (.pub) to config/ssh_key; `aq console` and `scp` log in with it. `aq exec` has a key \
              of its own",
        reads: Reads::Settings(host_key),
    },
    Variable {
        name: "AQ_CPU",
        doc: "the processor model, as QEMU's -cpu takes it; `aq new`, `fanout` and `start` put it \
              into config/qemu_args",
        reads: Reads::Settings(cpu),
    },
    Variable {
        name: "AQ_MACHINE_OVERRIDE",
        doc: "the machine type, q35 or a version of it, and its properties: pc-q35-7.2,hpet=off; \
              `aq new`, `fanout` and `start` put it into config/machine and config/qemu_args",
        reads: Reads::Settings(machine),
    },
    Variable {
        name: "AQ_KERNEL_APPEND_EXTRA",
        doc: "words for the kernel's command line; `aq new`, `fanout` and `start` add them to \
              config/cmdline",
        reads: Reads::Settings(cmdline),
    },
    Variable {
        name: "AQ_QEMU_EXTRA_ARGS",
        doc: "further arguments for QEMU, in words as a shell splits them; `aq new`, `fanout` and \
              `start` add them to config/qemu_args",
        reads: Reads::Settings(qemu_args),
    },
    Variable {
        name: "AQ_QEMU_LOG_FILE",
        doc: "where QEMU writes what its option -d asks for; `aq new`, `fanout` and `start` put \
              it into config/qemu_args. What it says on its own is in `aq logs --qemu`",
        reads: Reads::Settings(log_file),
    },
    Variable {
        name: TIMING,
        doc: "1: `aq start` says on standard error how long its phases took",
        reads: Reads::Other,
    },
    Variable { name: "NO_COLOR", doc: "no colours, also on a terminal", reads: Reads::Other },
    Variable { name: "VISUAL, EDITOR", doc: "the editor of aq edit", reads: Reads::Other },
    Variable {
        name: "AQ_DRIVE_EXTRA",
        doc: "the disk's options are not a string here that more could be added to",
        reads: Reads::None,
    },
    Variable {
        name: "AQ_MEMORY_SNAPSHOT, AQ_PARENT_MEMORY_ZST, AQ_ZST_STREAM_INCOMING",
        doc: "memory is not compressed: clones map one file, and each keeps only what it changes",
        reads: Reads::None,
    },
    Variable {
        name: "AQ_SSH_PROBE_INTERVAL, AQ_CONT_MAX_ATTEMPTS",
        doc: "nothing is polled: the guest and QEMU report when they are ready",
        reads: Reads::None,
    },
    Variable { name: "DEBUG", doc: "AQ_LOG=debug instead", reads: Reads::None },
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Override {
    key: &'static str,
    form: Form,
    words: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Value,
    Words,
    Lines,
}

/// Reads the variables that become settings.
///
/// # Errors
/// The first variable whose value is not accepted, by its name.
pub(super) fn overrides() -> Result<Vec<Override>, Failure> {
    let mut overrides = Vec::new();
    for variable in VARIABLES {
        if let Reads::Settings(parse) = variable.reads
            && let Some(text) = value(variable.name)?
        {
            overrides.extend(parse(&text).map_err(|why| wrong(variable.name, &why))?);
        }
    }
    Ok(overrides)
}

/// Returns settings with the overrides applied. `now` returns what a setting is now.
pub(super) fn settings(
    overrides: &[Override],
    now: impl Fn(&str) -> Result<String, Failure>,
) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut settings: Vec<(&'static str, String)> = Vec::new();
    for change in overrides {
        match settings.iter_mut().find(|(key, _)| *key == change.key) {
            Some((_, text)) => *text = change.applied_to(text),
            None => settings.push((change.key, change.applied_to(&now(change.key)?))),
        }
    }
    Ok(settings)
}

/// Returns the path of the user's private key, if one is named.
///
/// # Errors
/// It is no use.
pub(super) fn identity() -> Result<Option<PathBuf>, Failure> {
    let Some(text) = value(HOST_KEY)? else { return Ok(None) };
    private_key(&text).map(Some).map_err(|why| wrong(HOST_KEY, &why))
}

/// Says whether the user wants to know how long a start takes.
pub(super) fn wants_timing() -> bool {
    value(TIMING).is_ok_and(|text| text.is_some_and(|t| t != "0"))
}

/// One that is empty is as good as not there.
fn value(name: &str) -> Result<Option<String>, Failure> {
    let Some(value) = env::var_os(name).filter(|v| !v.is_empty()) else { return Ok(None) };
    let strange = |c: char| c.is_control() && !c.is_whitespace();
    let text = value.into_string().ok().filter(|text| !text.contains(strange));
    text.map(Some).ok_or_else(|| wrong(name, "has characters that are not text"))
}

fn wrong(name: &str, why: &str) -> Failure {
    Failure::Usage(format!("{name}: {why}"))
}

impl Override {
    fn args(words: Vec<String>) -> Vec<Self> {
        Self::of("qemu_args", Form::Lines, words)
    }

    fn of(key: &'static str, form: Form, words: Vec<String>) -> Vec<Self> {
        if words.is_empty() { Vec::new() } else { vec![Self { key, form, words }] }
    }

    fn applied_to(&self, text: &str) -> String {
        match self.form {
            Form::Value => self.words.concat(),
            Form::Lines => at_the_end(text.lines().collect(), &self.words).join("\n"),
            Form::Words => {
                let words = text.split_whitespace().filter(|_| text != "none").collect();
                at_the_end(words, &self.words).join(" ")
            }
        }
    }
}

/// Moves words to the end of a list, where they prevail over all others. Asked for again they are
/// not there twice.
fn at_the_end<'a>(mut list: Vec<&'a str>, words: &'a [String]) -> Vec<&'a str> {
    while let Some(at) = list.windows(words.len()).position(|some| some == words) {
        list.drain(at..at + words.len());
    }
    list.extend(words.iter().map(String::as_str));
    list
}

// ----- reading a value -------------------------------------------------------------------------

fn private_key(text: &str) -> Result<PathBuf, String> {
    if text.ends_with(".pub") {
        return Err(format!("{text} is the public key; the private one is wanted"));
    }
    let path = path::absolute(text).map_err(|e| plain(&e))?;
    match fs::File::open(&path).and_then(|file| file.metadata()) {
        Ok(meta) if meta.is_file() => Ok(path),
        Ok(_) => Err(format!("{text} is not the file of a private key")),
        Err(error) => Err(format!("{text}: {}", plain(&error))),
    }
}

fn host_key(text: &str) -> Result<Vec<Override>, String> {
    let public = format!("{}.pub", private_key(text)?.display());
    let remedy = format!("`ssh-keygen -y -f {text} > {text}.pub` makes it");
    let lines =
        fs::read_to_string(&public).map_err(|e| format!("{public}: {}; {remedy}", plain(&e)))?;
    let line = lines.trim();
    let is_key = line.split(' ').nth(1).is_some_and(|body| body.starts_with("AAAA"));
    if !is_key || line.contains('\n') {
        return Err(format!("{public} does not hold a public key; {remedy}"));
    }
    Ok(Override::of("ssh_key", Form::Lines, vec![line.to_owned()]))
}

fn cpu(text: &str) -> Result<Vec<Override>, String> {
    let is_model = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !text.contains(char::is_whitespace);
    if !is_model {
        return Err(format!("{text:?} is not a processor model such as max or host,-svm"));
    }
    Ok(Override::args(vec!["-cpu".to_owned(), text.to_owned()]))
}

fn machine(text: &str) -> Result<Vec<Override>, String> {
    let (kind, properties) = text.split_once(',').unwrap_or((text, ""));
    let version = kind.strip_prefix("pc-").unwrap_or(kind).strip_prefix("q35");
    let is_number = |v: &str| v.starts_with('-') && !v.contains(|c: char| c.is_alphabetic());
    if !version.is_some_and(|v| v.is_empty() || is_number(v)) {
        return Err(format!("{kind:?} is not q35 or a version of it such as pc-q35-7.2"));
    }
    if properties.contains(char::is_whitespace) {
        return Err(format!("{properties:?} is not a list such as hpet=off,vmport=on"));
    }
    let mut overrides = Override::of("machine", Form::Value, vec![kind.to_owned()]);
    if !properties.is_empty() {
        // QEMU adds up what several -machine say.
        overrides.extend(Override::args(vec!["-machine".to_owned(), properties.to_owned()]));
    }
    Ok(overrides)
}

fn cmdline(text: &str) -> Result<Vec<Override>, String> {
    if text.len() > LONGEST_CMDLINE {
        return Err(format!("has {} bytes, and {LONGEST_CMDLINE} are the most", text.len()));
    }
    let words = text.split_whitespace().map(str::to_owned).collect();
    Ok(Override::of("cmdline", Form::Words, words))
}

fn qemu_args(text: &str) -> Result<Vec<Override>, String> {
    let words = shlex::split(text).ok_or("a quotation mark has no second one")?;
    if words.iter().any(|w| w.is_empty() || w.contains(char::is_control)) {
        return Err("an argument is empty, or has a line break or a tab".to_owned());
    }
    Ok(Override::args(words))
}

fn log_file(text: &str) -> Result<Vec<Override>, String> {
    // QEMU runs in a directory of its own.
    let path = path::absolute(text).map_err(|e| plain(&e))?;
    if path.is_dir() || text.contains('\n') {
        return Err(format!("{text:?} is not a file"));
    }
    if !path.parent().is_some_and(path::Path::is_dir) {
        return Err(format!("there is no directory for {text}"));
    }
    Ok(Override::args(vec!["-D".to_owned(), path.display().to_string()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(overrides: &[Override], now: &str) -> Vec<(&'static str, String)> {
        settings(overrides, |_| Ok(now.to_owned())).unwrap()
    }

    #[test]
    fn arguments_are_split_as_a_shell_does() {
        let overrides = qemu_args(r#"-smp 2 -fw_cfg "name=opt/x,string=a b" -name it\'s"#).unwrap();
        let lines = "-smp\n2\n-fw_cfg\nname=opt/x,string=a b\n-name\nit's";
        assert_eq!(done(&overrides, ""), [("qemu_args", lines.to_owned())]);
        assert!(qemu_args("-name 'x").is_err() && qemu_args("-name ''").is_err());
        assert_eq!(qemu_args("  "), Ok(Vec::new()));
    }

    #[test]
    fn the_last_word_counts_and_asking_twice_changes_nothing() {
        let (max, base) = (cpu("max").unwrap(), cpu("qemu64").unwrap());
        let once = &done(&max, "-S")[0].1;
        assert_eq!(once, "-S\n-cpu\nmax");
        assert_eq!(&done(&max, once)[0].1, once);
        let other = &done(&base, once)[0].1;
        assert_eq!(&done(&max, other)[0].1, "-S\n-cpu\nqemu64\n-cpu\nmax");
        let both = [max, qemu_args("-d guest_errors").unwrap()].concat();
        let lines = "-cpu\nmax\n-d\nguest_errors".to_owned();
        assert_eq!(done(&both, ""), [("qemu_args", lines)]);
    }

    #[test]
    fn words_for_the_kernel_are_added_to_those_that_are_there() {
        let overrides = cmdline(" a=1  b ").unwrap();
        assert_eq!(done(&overrides, "none"), [("cmdline", "a=1 b".to_owned())]);
        assert_eq!(done(&overrides, "quiet a=1 b"), [("cmdline", "quiet a=1 b".to_owned())]);
    }

    #[test]
    fn a_machine_is_a_type_and_its_properties() {
        let of = |text| machine(text).map(|overrides| done(&overrides, ""));
        assert_eq!(of("q35"), Ok(vec![("machine", "q35".to_owned())]));
        let args = ("qemu_args", "-machine\nhpet=off,vmport=on".to_owned());
        let both = Ok(vec![("machine", "pc-q35-7.2".to_owned()), args]);
        assert_eq!(of("pc-q35-7.2,hpet=off,vmport=on"), both);
        for text in ["microvm", "pc", "q35x", "q35-old", "q35,a b"] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_is_a_private_file_with_a_public_one_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key").display().to_string();
        assert!(host_key(&key).unwrap_err().contains("No such file"));
        fs::write(&key, "private").unwrap();
        assert!(host_key(&key).unwrap_err().contains("ssh-keygen -y"));
        fs::write(format!("{key}.pub"), "private").unwrap();
        assert!(host_key(&key).unwrap_err().contains("does not hold"));
        fs::write(format!("{key}.pub"), "ssh-ed25519 AAAA me\n").unwrap();
        let overrides = host_key(&key).unwrap();
        let both = "ssh-rsa AAAA x\nssh-ed25519 AAAA me".to_owned();
        assert_eq!(done(&overrides, "ssh-rsa AAAA x"), [("ssh_key", both)]);
        assert!(host_key(&dir.path().display().to_string()).is_err());
    }

    #[test]
    fn a_log_has_a_directory_and_an_absolute_name() {
        let words = &log_file("x.log").unwrap()[0].words;
        assert!(words[0] == "-D" && words[1].starts_with('/') && words[1].ends_with("/x.log"));
        assert!(log_file("/").is_err() && log_file("/nosuch/x").is_err());
    }

    #[test]
    fn a_processor_is_one_word() {
        assert!(cpu("host,-arch-capabilities").is_ok());
        assert!(cpu("a b").is_err() && cpu("-cpu").is_err());
    }
}
