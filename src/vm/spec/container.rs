//! What a container of an image runs, as the image's configuration names it: the setting
//! `container`, one line of JSON.

use serde::{Deserialize, Deserializer, Serialize};

/// A container's process, with the names of the OCI image configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerProcess {
    /// The first words of the command.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The further words, which a user may replace.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Variables, `NAME=VALUE`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The directory that it starts in.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// A user and a group of the image, by name or number: `USER[:GROUP]`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
}

/// Configurations have `null` where there is nothing.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

impl ContainerProcess {
    /// Reads what [`render`](Self::render) prints.
    pub fn parse(text: &str) -> Option<Self> {
        // A list would be read as the values in their order.
        serde_json::from_str(text).ok().filter(|_| text.starts_with('{'))
    }

    /// Prints one line of JSON.
    pub fn render(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Prints the variables as lines of shell text.
    pub fn exports(&self) -> String {
        let pairs = self.env.iter().filter_map(|pair| pair.split_once('='));
        let named = pairs.filter(|(name, _)| is_variable(name));
        let line = |(name, value): (&str, &str)| {
            let value = shlex::Quoter::new().allow_nul(true).quote(value).unwrap_or_default();
            format!("export {name}={value}\n")
        };
        named.map(line).collect()
    }
}

/// Says whether a shell can have a variable of this name.
fn is_variable(name: &str) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_configurations_have_is_read_and_prints_as_one_line() {
        let text = r#"{"Entrypoint":null,"Cmd":["sh","-c","a\nb"],"Env":["A=it's","B.C=1"],"User":"app","Labels":{}}"#;
        let process = ContainerProcess::parse(text).unwrap();
        assert_eq!(process.cmd, ["sh", "-c", "a\nb"]);
        assert_eq!(ContainerProcess::parse(&process.render()), Some(process.clone()));
        assert!(!process.render().contains('\n'));
        assert_eq!(process.exports(), "export A=\"it's\"\n");
        assert_eq!(ContainerProcess::parse("[]"), None);
    }
}
