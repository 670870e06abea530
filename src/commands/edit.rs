//! `aq edit`: all settings in an editor. Only what was changed is written.

use std::env;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::files::{Tree, Vm};
use super::text::{each, note};
use super::{Failure, local};
use crate::cli::machines::Edit;

/// Settings that are whole texts: an editor opens their files themselves.
const TEXTS: [&str; 3] = ["user_data", "network_data", "ignition"];

/// Settings: a key with one value, or several of a list.
type Settings = Vec<(String, Vec<String>)>;

pub(super) fn run(tree: &Tree, args: &Edit) -> Result<(), Failure> {
    let vm = tree.vm(&args.vm)?;
    let before = settings(&vm)?;
    let file = tempfile::Builder::new().prefix("aq-").suffix(".conf").tempfile();
    let mut file = file.map_err(local("a temporary file"))?;
    file.write_all(render(&vm.name, &before).as_bytes()).map_err(local("a temporary file"))?;
    edit(file.path())?;
    // Read by its path: editors replace the file as often as they write to it.
    let text = fs::read_to_string(file.path()).map_err(local("a temporary file"))?;
    let after = parse(&text).map_err(Failure::Usage)?;
    apply(&vm, &before, &after)
}

fn settings(vm: &Vm) -> Result<Settings, Failure> {
    let keys = vm.tree().names(&format!("{}/config", vm.name))?;
    let keys = keys.into_iter().filter(|key| !TEXTS.contains(&key.as_str()));
    let value = |key: String| {
        let text = vm.read(&format!("config/{key}"))?;
        Ok((key, text.lines().map(str::to_owned).collect()))
    };
    keys.map(value).collect()
}

fn render(name: &str, settings: &Settings) -> String {
    let mut text = format!(
        "# Settings of {name}: `key = value`, a list with a line for each element.\n\
         # What is taken out gets its default value. Texts ({}) have files of their own.\n",
        TEXTS.join(", ")
    );
    for (key, values) in settings {
        if values.is_empty() {
            text.push_str(&format!("{key} =\n"));
        }
        values.iter().for_each(|value| text.push_str(&format!("{key} = {value}\n")));
    }
    text
}

fn parse(text: &str) -> Result<Settings, String> {
    let mut settings = Settings::new();
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    for line in lines {
        let (key, value) =
            line.split_once('=').ok_or_else(|| format!("{line:?} is not `key = value`"))?;
        let (key, value) = (key.trim(), value.trim());
        let at = settings.iter().position(|(k, _)| k == key).unwrap_or_else(|| {
            settings.push((key.to_owned(), Vec::new()));
            settings.len() - 1
        });
        settings[at].1.extend((!value.is_empty()).then(|| value.to_owned()));
    }
    Ok(settings)
}

fn edit(path: &Path) -> Result<(), Failure> {
    let named = |key| env::var(key).ok().filter(|v| !v.trim().is_empty());
    let editor = named("VISUAL").or_else(|| named("EDITOR")).unwrap_or_else(|| "vi".to_owned());
    // It may come with arguments of its own, and is a shell's text as for git.
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(path);
    let status = shell.status().map_err(local(&*editor))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::Usage(format!("{editor} has failed ({status}); nothing was changed")))
}

fn apply(vm: &Vm, before: &Settings, after: &Settings) -> Result<(), Failure> {
    let unknown = after.iter().find(|(key, _)| !before.iter().any(|(k, _)| k == key));
    if let Some((key, _)) = unknown {
        let known = before.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>().join(" ");
        if TEXTS.contains(&key.as_str()) {
            let hint = format!("{key} is a text; edit {}/config/{key} itself", vm.name);
            return Err(Failure::Usage(hint));
        }
        return Err(Failure::Usage(format!("there is no setting {key}; there are {known}")));
    }
    let mut changes = Vec::new();
    for (key, old) in before {
        match after.iter().find(|(k, _)| k == key).map(|(_, new)| new) {
            Some(new) if new == old => {}
            Some(new) if new.is_empty() => changes.push((key, "none".to_owned())),
            Some(new) => changes.push((key, new.join("\n"))),
            None => changes.push((key, "default".to_owned())),
        }
    }
    each(&changes, |(key, value)| {
        vm.write(&format!("config/{key}"), value)?;
        note(format!("{}: {key} = {}", vm.name, value.replace('\n', ", ")));
        Ok(())
    })?;
    let pending = vm.facts()?.into_iter().find(|(key, _)| key == "pending");
    if let Some((_, keys)) = pending {
        note(format!("{}: in force from the next start: {keys}", vm.name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_back_with_lists_and_empty_values() {
        let own = |key: &str, values: &[&str]| {
            (key.to_owned(), values.iter().map(|v| (*v).to_owned()).collect())
        };
        let settings = vec![
            own("cpus", &["2"]),
            own("cmdline", &["a=b c"]),
            own("ports", &["tcp:127.0.0.1:1:2", "tcp:127.0.0.1:3:4"]),
            own("qemu_args", &[]),
        ];
        assert_eq!(parse(&render("vm1", &settings)), Ok(settings));
        assert!(parse("cpus 2").unwrap_err().contains("key = value"));
    }
}
