//! Settings that are whole texts for the guest's first boot: user data, network data, Ignition. What of
//! them is accepted, and the sentence for what is not.
//!
//! A guest that cannot read its text says so in a log inside, if at all. So it is checked here as far
//! as that is the same for all guests. Pure.

use super::SpecError;
use super::yaml::{Yaml, YamlError};

/// The longest text, in bytes: clouds take 16 KiB of user data.
pub const LONGEST_TEXT: usize = 64 << 10;
/// What user data may begin with: the first words of cloud-init's formats and of tiny-cloud's.
const BEGINNINGS: [&str; 11] = [
    CLOUD_CONFIG,
    "#!",
    "#alpine-config",
    "#cloud-config-archive",
    "#cloud-boothook",
    "#include",
    "#part-handler",
    "## template: jinja",
    "Content-Type: multipart/",
    "MIME-Version:",
    "From nobody ",
];
/// The first line of a configuration.
pub const CLOUD_CONFIG: &str = "#cloud-config";
/// What aqfs says itself to a guest, and needs to reach it.
const OURS: [(&str, &str); 2] = [
    ("ssh_keys", "exec trusts the host key that aqfs makes for the VM"),
    ("vendor_data", "aqfs puts its own keys there"),
];

/// Reads `user_data`.
pub(super) fn user_data(text: &str) -> Result<Option<String>, SpecError> {
    let key = "user_data";
    let Some(text) = whole(key, text)? else { return Ok(None) };
    let first = text.lines().next().unwrap_or_default();
    if !BEGINNINGS.iter().any(|beginning| first.starts_with(beginning)) {
        let reason = format!(
            "{first:?} is no beginning that guests know; begin with #cloud-config, #!/bin/sh, \
             #include or a MIME header"
        );
        return Err(SpecError::Text { key, line: 1, reason });
    }
    match first.trim_end() {
        CLOUD_CONFIG => cloud_config(&text)?,
        "#alpine-config" => drop(mapping(key, &text)?),
        _ => {}
    }
    Ok(Some(text))
}

fn cloud_config(text: &str) -> Result<(), SpecError> {
    let Some(config) = mapping("user_data", text)? else { return Ok(()) };
    match OURS.into_iter().find(|(name, _)| config.get(name).is_some()) {
        None => Ok(()),
        Some((name, why)) => {
            let line = line_of(text, name);
            let reason = format!("{name} is not the user's: {why}; take it out");
            Err(SpecError::Text { key: "user_data", line, reason })
        }
    }
}

/// Reads `network_data`: cloud-init's network configuration, below `network` or by itself.
pub(super) fn network_data(text: &str) -> Result<Option<String>, SpecError> {
    let key = "network_data";
    let Some(text) = whole(key, text)? else { return Ok(None) };
    let config = mapping(key, &text)?;
    let config = config.as_ref().map(|config| config.get("network").unwrap_or(config));
    let version = config.and_then(|c| c.get("version")).and_then(Yaml::text);
    match version {
        Some("1" | "2") => Ok(Some(text)),
        Some(other) => {
            let line = line_of(&text, "version");
            let reason =
                format!("version {other} is not known; write `version: 1` or `version: 2`");
            Err(SpecError::Text { key, line, reason })
        }
        None => {
            let reason = "it has no version; cloud-init's network configuration has `version: 1` \
                or `version: 2`";
            Err(SpecError::Text { key, line: 1, reason: reason.to_owned() })
        }
    }
}

/// Reads `ignition`: a JSON object that says its version.
pub(super) fn ignition(text: &str) -> Result<Option<String>, SpecError> {
    let key = "ignition";
    let Some(text) = whole(key, text)? else { return Ok(None) };
    let config: serde_json::Value = serde_json::from_str(&text).map_err(|e| {
        let (line, reason) =
            (e.line(), format!("{e}; `butane FILE` makes the JSON of a Butane file"));
        SpecError::Text { key, line, reason }
    })?;
    match config.pointer("/ignition/version").and_then(serde_json::Value::as_str) {
        Some(_) => Ok(Some(text)),
        None => {
            let reason =
                "it has no ignition.version; write {\"ignition\": {\"version\": \"3.4.0\"}, …}";
            Err(SpecError::Text { key, line: 1, reason: reason.to_owned() })
        }
    }
}

/// Reads a line of `credentials`: what systemd takes as a system credential.
pub(super) fn credential(line: &str) -> Result<String, SpecError> {
    let good = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    let is_named = |name: &str| {
        !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.bytes().all(good)
    };
    let named = line.split_once('=').is_some_and(|(name, _)| is_named(name));
    let expected = "NAME=VALUE, such as passwd.hashed-password.root=$6$…";
    (named && !line.chars().any(char::is_control))
        .then(|| line.to_owned())
        .ok_or_else(|| super::parse::malformed("credentials", line, expected))
}

/// Returns the text without empty lines at its end; `None` for `none`.
fn whole(key: &'static str, text: &str) -> Result<Option<String>, SpecError> {
    if text.trim() == "none" {
        return Ok(None);
    }
    let text = text.trim_end_matches(['\n', '\r']).to_owned();
    if text.len() > LONGEST_TEXT {
        let value = format!("a text of {} bytes", text.len());
        return Err(SpecError::OutOfRange { key, value, range: "at most 65536 bytes" });
    }
    match text.bytes().position(|c| c == 0) {
        None => Ok(Some(text)),
        Some(at) => {
            let line = text[..at].lines().count().max(1);
            let reason = "a NUL byte is no text; take it out".to_owned();
            Err(SpecError::Text { key, line, reason })
        }
    }
}

/// Reads a text whose top level has keys; `None` for one without content.
fn mapping(key: &'static str, text: &str) -> Result<Option<Yaml>, SpecError> {
    let failed = |YamlError { line, reason }: YamlError| {
        let reason = format!("{reason}; correct it and write the whole text again");
        SpecError::Text { key, line, reason }
    };
    match Yaml::parse(text).map_err(failed)? {
        Some(Yaml::Scalar(_) | Yaml::List(_)) => {
            let reason = "there are no keys at the top level; write `KEY: VALUE` lines".to_owned();
            let line = text.lines().take_while(|l| l.starts_with('#') || l.is_empty()).count() + 1;
            Err(SpecError::Text { key, line, reason })
        }
        config @ (Some(Yaml::Map(_)) | None) => Ok(config),
    }
}

/// Returns the number of the line in which a key is written.
fn line_of(text: &str, name: &str) -> usize {
    let has = |line: &str| line.trim_start().trim_start_matches(['"', '\'']).starts_with(name);
    text.lines().position(has).map_or(1, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(result: Result<Option<String>, SpecError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn what_guests_read_is_taken_as_it_is() {
        for text in [
            "#cloud-config\npackages: [vim]\n",
            "#cloud-config\r\nhostname: x\r\n",
            "#cloud-config\n",
            "#cloud-config\n# nothing yet",
            "#!/bin/sh\necho {[",
            "#include\nhttps://example.org/x\n",
            "#alpine-config\nautoinstall: true",
            "## template: jinja\n#cloud-config\na: {{ ds.meta_data }}\n",
            "Content-Type: multipart/mixed; boundary=\"x\"\n\n--x--\n",
        ] {
            let taken = user_data(text).unwrap().unwrap();
            assert_eq!(taken, text.trim_end(), "{text}");
            assert_eq!(user_data(&format!("{taken}\n")), Ok(Some(taken)));
        }
        assert_eq!(user_data("none\n"), Ok(None));
        let wrapped = "network:\n  version: 2\n  ethernets: {}\n";
        for text in ["version: 1\nconfig: []\n", wrapped, "{\"version\": 2}"] {
            assert!(network_data(text).unwrap().is_some(), "{text}");
        }
        assert!(ignition("{\"ignition\": {\"version\": \"3.4.0\"}}").unwrap().is_some());
        assert!(credential("passwd.plaintext-password.root=a=b c").is_ok());
    }

    #[test]
    fn what_they_do_not_is_refused_with_its_line() {
        let said = refused(user_data("packages: [vim]\n"));
        assert!(
            said.starts_with("user_data: line 1: \"packages: [vim]\" is no beginning"),
            "{said}"
        );
        let said = refused(user_data("#cloud-config\na: [\nb: }\n"));
        assert!(said.starts_with("user_data: line ") && said.ends_with("text again"), "{said}");
        let said = refused(user_data("#cloud-config\n- a\n"));
        assert!(said.contains("line 2: there are no keys"), "{said}");
        let said = refused(user_data("#cloud-config\na: 1\nssh_keys: {}\n"));
        assert!(said.contains("line 3: ssh_keys is not the user's"), "{said}");
        let said = refused(network_data("network:\n  version: 3\n"));
        assert!(said.contains("line 2: version 3 is not known"), "{said}");
        assert!(refused(network_data("ethernets: {}\n")).contains("no version"));
        let said = refused(ignition("{\"ignition\":\n {]}\n"));
        assert!(said.starts_with("ignition: line 2: "), "{said}");
        assert!(refused(ignition("{}")).contains("no ignition.version"));
        let long = format!("#!/bin/sh\n{}", "x".repeat(LONGEST_TEXT));
        assert!(matches!(user_data(&long), Err(SpecError::OutOfRange { .. })));
        for bad in ["x", "=x", "a b=c", "../x=c", "a=\u{7}"] {
            assert!(credential(bad).is_err(), "{bad}");
        }
    }
}
