//! The typed configuration, checked once when it is loaded.

mod source;

pub(crate) use source::load;

use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, Result};

/// A runtime command's time where nothing else is configured.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// A key that is `true`, `false` or `"auto"`: what `true` asks for must be possible, `"auto"` does
/// without it where it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(dead_code, reason = "used by what follows")]
pub(crate) enum Choice {
    /// `"auto"`
    #[default]
    Auto,
    /// `true`
    On,
    /// `false`
    Off,
}

/// What the administrator decides; `config/berth.toml` explains each key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    /// Name or path of the OCI runtime; `None` looks for the known ones in their order.
    pub(crate) runtime: Option<String>,
    /// How long one runtime command may take.
    pub(crate) deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { runtime: None, deadline: DEFAULT_DEADLINE }
    }
}

/// The file as it is written; every key may be missing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    runtime: Option<String>,
    deadline: Option<f64>,
}

impl Config {
    /// Reads TOML.
    ///
    /// # Errors
    /// [`Error::Invalid`] with `name`, line and reason: syntax, unknown key, value out of range.
    fn parse(text: &str, name: &str) -> Result<Self> {
        let invalid = |why: String| Error::Invalid(format!("configuration {name}: {why}"));
        let file: File = toml::from_str(text).map_err(|error| invalid(error.to_string()))?;
        let mut config = Self { runtime: file.runtime, ..Self::default() };
        if config.runtime.as_deref().is_some_and(|runtime| matches!(runtime, "" | "auto")) {
            config.runtime = None;
        }
        if let Some(seconds) = file.deadline {
            config.deadline = Duration::try_from_secs_f64(seconds)
                .ok()
                .filter(|deadline| (Duration::from_millis(1)..=MAX_DEADLINE).contains(deadline))
                .ok_or_else(|| {
                    invalid(format!("deadline = {seconds}: must be from 0.001 to 3600 seconds"))
                })?;
        }
        Ok(config)
    }
}

/// Longer than any command needs; a bound keeps arithmetic on times safe.
const MAX_DEADLINE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_checked_as_a_whole() {
        let plain = Config::default();
        let cases = [
            ("empty", "", Ok(plain.clone())),
            ("auto", "runtime = \"auto\"", Ok(plain.clone())),
            (
                "crun",
                "runtime = \"crun\"",
                Ok(Config { runtime: Some("crun".into()), ..plain.clone() }),
            ),
            (
                "deadline",
                "deadline = 2.5",
                Ok(Config { deadline: Duration::from_millis(2500), ..plain }),
            ),
            ("zero deadline", "deadline = 0.0", Err("must be from 0.001 to 3600")),
            ("negative deadline", "deadline = -1.0", Err("must be from 0.001 to 3600")),
            ("nan", "deadline = nan", Err("must be from 0.001 to 3600")),
            ("unknown key", "runtme = \"runc\"", Err("runtme")),
            ("syntax", "runtime = ", Err("line 1")),
        ];
        for (name, text, expected) in cases {
            match (Config::parse(text, "test.toml"), expected) {
                (Ok(config), Ok(expected)) => assert_eq!(config, expected, "{name}"),
                (Err(error), Err(part)) => {
                    let error = error.to_string();
                    assert!(error.contains(part) && error.contains("test.toml"), "{name}: {error}");
                }
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn the_documented_file_holds_the_defaults() {
        let text = include_str!("../../config/berth.toml");
        assert_eq!(Config::parse(text, "berth.toml").unwrap(), Config::default());
    }
}
