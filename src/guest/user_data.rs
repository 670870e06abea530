//! The user's own user data, together with the files that a guest needs of aqfs.
//!
//! cloud-init reads those from the vendor data. tiny-cloud reads the user data alone: to a
//! `#cloud-config` they are added, as text, because to print what was parsed would turn `0644` or `yes`
//! into something else. What comes of it is read again and compared.

use crate::vm::spec::text::CLOUD_CONFIG;
use crate::vm::spec::yaml::Yaml;

/// The key whose list the files are.
const KEY: &str = "write_files";

/// A file that a guest is to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GuestFile {
    pub(super) path: &'static str,
    pub(super) content: String,
    pub(super) mode: &'static str,
    /// It is added to what is there.
    pub(super) is_added: bool,
}

/// Returns `text` with `files` where it is a configuration that has room for them, else `text`.
pub(super) fn with_files(text: &str, files: &[GuestFile]) -> String {
    let own = text.lines().next().is_some_and(|first| first.trim_end() == CLOUD_CONFIG);
    let Some(before) = own.then(|| Yaml::parse(text).ok()).flatten() else {
        return terminated(text);
    };
    let before = before.unwrap_or_else(|| Yaml::Map(Vec::new()));
    let added = match before.get(KEY) {
        None => Some(format!("{}{KEY}:\n{}", terminated(text), items(files, "  "))),
        Some(_) => inserted(text, files),
    };
    added.filter(|added| is_sound(added, &before, files.len())).unwrap_or_else(|| terminated(text))
}

/// Renders files as elements of a block list.
pub(super) fn items(files: &[GuestFile], indent: &str) -> String {
    let item = |file: &GuestFile| {
        let GuestFile { path, content, mode, is_added } = file;
        let added = if *is_added { format!("{indent}  append: true\n") } else { String::new() };
        format!(
            "{indent}- path: {path}\n{indent}  content: {}\n{indent}  permissions: \"{mode}\"\n{added}",
            quoted(content)
        )
    };
    files.iter().map(item).collect()
}

/// Quotes a text: what JSON quotes is a scalar of YAML.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Puts files before the first element of a block list of the user's.
fn inserted(text: &str, files: &[GuestFile]) -> Option<String> {
    let mut lines = text.lines().enumerate().skip_while(|(_, line)| !is_key(line));
    lines.next()?;
    let is_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let (at, first) = lines.find(|(_, line)| is_content(line))?;
    let indent =
        first.strip_suffix(first.trim_start()).filter(|_| first.trim_start().starts_with('-'))?;
    let (before, after): (Vec<_>, Vec<_>) =
        (text.lines().take(at).collect(), text.lines().skip(at).collect());
    Some(format!("{}\n{}{}\n", before.join("\n"), items(files, indent), after.join("\n")))
}

fn is_key(line: &str) -> bool {
    let rest = line.strip_prefix(KEY).and_then(|rest| rest.strip_prefix(':'));
    rest.is_some_and(|rest| rest.trim().is_empty() || rest.trim_start().starts_with('#'))
}

/// Says whether a text is what it was, with so many more files.
fn is_sound(text: &str, before: &Yaml, more: usize) -> bool {
    let Ok(Some(Yaml::Map(after))) = Yaml::parse(text) else { return false };
    let Yaml::Map(before) = before else { return false };
    let is_files = |name: &Yaml| name.text() == Some(KEY);
    let others = |entries: &[(Yaml, Yaml)]| -> Vec<(Yaml, Yaml)> {
        entries.iter().filter(|(name, _)| !is_files(name)).cloned().collect()
    };
    let list = |entries: &[(Yaml, Yaml)]| match entries.iter().find(|(name, _)| is_files(name)) {
        Some((_, Yaml::List(list))) => list.clone(),
        Some((_, Yaml::Scalar(_) | Yaml::Map(_))) | None => Vec::new(),
    };
    let (old, new) = (list(before), list(&after));
    others(before) == others(&after) && new.len() == old.len() + more && new.ends_with(&old)
}

fn terminated(text: &str) -> String {
    format!("{}\n", text.trim_end_matches('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> GuestFile {
        let content = "-----BEGIN \"x\"\nb: c\n".to_owned();
        GuestFile { path: "/etc/x", content, mode: "0600", is_added: true }
    }

    /// Lists the paths of the files of a configuration.
    fn paths(text: &str) -> Vec<String> {
        let Some(Yaml::List(files)) = Yaml::parse(text).unwrap().unwrap().get(KEY).cloned() else {
            return Vec::new();
        };
        files.iter().map(|f| f.get("path").unwrap().text().unwrap().to_owned()).collect()
    }

    #[test]
    fn files_are_added_to_a_configuration_and_nothing_else_changes() {
        let table: [(&str, &[&str]); 6] = [
            ("#cloud-config\npackages:\n- vim\nmode: 0644", &["/etc/x"]),
            ("#cloud-config", &["/etc/x"]),
            (
                "#cloud-config\nwrite_files:\n- path: /a\n  content: |\n    - path: /no\nb: yes\n",
                &["/etc/x", "/a"],
            ),
            (
                "#cloud-config\nwrite_files: # mine\n\n    # more\n    - path: /a\n",
                &["/etc/x", "/a"],
            ),
            // There is no room for a block here: it stays as it is.
            ("#cloud-config\nwrite_files: [{path: /a}]\n", &["/a"]),
            ("#cloud-config\n{packages: [vim]}\n", &[]),
        ];
        for (text, expected) in table {
            let merged = with_files(text, &[file()]);
            assert_eq!(paths(&merged), expected, "{merged}");
            assert!(merged.starts_with("#cloud-config\n") && merged.ends_with('\n'));
            if expected.len() > 1 || !expected.contains(&"/a") && !expected.is_empty() {
                let Some(Yaml::List(files)) =
                    Yaml::parse(&merged).unwrap().unwrap().get(KEY).cloned()
                else {
                    panic!("{merged}")
                };
                assert_eq!(files[0].get("content").unwrap().text().unwrap(), file().content);
            }
        }
    }

    #[test]
    fn what_is_no_configuration_stays_as_it_is() {
        for text in [
            "#!/bin/sh\necho write_files:\n",
            "#include\nhttps://x\n",
            "#cloud-config-archive\n- x\n",
        ] {
            assert_eq!(with_files(text, &[file()]), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn the_users_part_is_never_changed(text in "(write_files:|a: 1|- b: c|  - d|    e: f|\\[\\{|#x|'|\n|\\.\\.\\.|---|\\|){0,12}") {
            let text = format!("#cloud-config\n{text}");
            let merged = with_files(&text, &[file()]);
            match (Yaml::parse(&text), Yaml::parse(&merged)) {
                (Ok(Some(Yaml::Map(old))), Ok(Some(new))) => {
                    for (name, value) in old.iter().filter(|(name, _)| name.text() != Some(KEY)) {
                        let Some(name) = name.text() else { continue };
                        let first = old.iter().find(|(n, _)| n.text() == Some(name)).map(|(_, v)| v);
                        if first == Some(value) {
                            proptest::prop_assert_eq!(new.get(name), Some(value));
                        }
                    }
                }
                (Err(_), _) => proptest::prop_assert_eq!(merged, terminated(&text)),
                _ => {}
            }
        }
    }
}
