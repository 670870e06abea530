//! `vm.json`: a VM's definition as it is stored.
//!
//! Version 2 says which settings the user has set (`own`); `spec` has their values, and for the other
//! keys those that `.defaults` had. Version 1 has all values and does not say whose they are: none of
//! them changes by being read.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::spec::{VmSettings, VmSpec};

/// The version of the format that is written.
pub const VERSION: u32 = 2;

/// A VM's definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Definition {
    /// The version of the format that it was read from.
    pub version: u32,
    /// The VM's identity; its directory has it as its name, except in the trash.
    pub uuid: Uuid,
    /// When the VM was made.
    pub created: SystemTime,
    /// Its settings.
    pub settings: VmSettings,
    /// When it is removed.
    pub expires: Option<SystemTime>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    #[serde(default)]
    uuid: Uuid,
    created: SystemTime,
    spec: VmSpec,
    #[serde(default)]
    own: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<SystemTime>,
}

impl Definition {
    /// Describes a new VM in the present version: a time after which it is removed begins with it.
    pub fn new(uuid: Uuid, created: SystemTime, settings: VmSettings) -> Self {
        let expires = settings.expiry_from(created);
        Self { version: VERSION, uuid, created, settings, expires }
    }

    /// Describes one that is removed then.
    #[must_use]
    pub fn expiring(self, expires: Option<SystemTime>) -> Self {
        Self { expires, ..self }
    }
}

impl TryFrom<Stored> for Definition {
    type Error = String;

    fn try_from(stored: Stored) -> Result<Self, String> {
        let Stored { version, uuid, created, spec, own, expires } = stored;
        let settings = match version {
            1 => VmSettings::fixed(spec),
            VERSION => VmSettings { values: spec, own },
            other => {
                return Err(format!("it has version {other}; this aqfs reads 1 and {VERSION}"));
            }
        };
        Ok(Self { version, uuid, created, settings, expires })
    }
}

impl From<Definition> for Stored {
    fn from(definition: Definition) -> Self {
        let Definition { version: _, uuid, created, settings, expires } = definition;
        let VmSettings { values: spec, own } = settings;
        Self { version: VERSION, uuid, created, spec, own, expires }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::spec::ImageSettings;

    const UUID: &str = "6d4f5a40-5d3b-4d0e-8d3a-000000000001";

    fn read(version: u32, rest: &str) -> Result<Definition, String> {
        let text = format!(
            r#"{{"version": {version}, "uuid": "{UUID}",
                "created": {{"secs_since_epoch": 1, "nanos_since_epoch": 0}}, {rest}}}"#
        );
        serde_json::from_str(&text).map_err(|e| e.to_string())
    }

    fn image() -> ImageSettings {
        ImageSettings::of_shape(4, 1 << 30, 4 << 30)
    }

    #[test]
    fn no_value_of_an_old_definition_changes() {
        let old = read(1, r#""spec": {"memory": 268435456, "protect": true}"#).unwrap();
        let expected = VmSpec { protect: true, ..VmSpec::default() };
        assert_eq!((old.version, old.settings.resolve(&image())), (1, expected.clone()));
        // Nor when it is written in the present version.
        let text = serde_json::to_string(&old).unwrap();
        let again: Definition = serde_json::from_str(&text).unwrap();
        assert_eq!((again.version, again.settings.resolve(&image())), (VERSION, expected));
        assert!(again.settings.is_own("protect") && !again.settings.is_own("ports"));
    }

    #[test]
    fn a_new_definition_keeps_what_the_user_has_set() {
        let new = read(2, r#""spec": {"cpus": 2}, "own": ["cpus"]"#).unwrap();
        let spec = new.settings.resolve(&image());
        assert_eq!((spec.cpus, spec.memory), (2, 1 << 30));
        let text = serde_json::to_string(&new).unwrap();
        assert_eq!(serde_json::from_str::<Definition>(&text).unwrap(), new);
    }

    #[test]
    fn a_later_version_is_not_guessed_at() {
        let error = read(3, r#""spec": {}"#).unwrap_err();
        assert!(error.starts_with("it has version 3; this aqfs reads 1 and 2"), "{error}");
    }
}
