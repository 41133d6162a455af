//! What a container's annotations can choose on this host, for completion.

use std::fs;
use std::path::Path;

use super::source::{self, CONFIG_ANNOTATION, Environment, RUNTIME_ANNOTATION, Request};
use crate::wire::options::RuntimeOptions;

/// As `KEY=VALUE`, each with what it is, sorted. None where annotations are switched off or the
/// configuration is broken.
pub(crate) fn choices() -> Vec<(String, &'static str)> {
    let (options, environment) = (RuntimeOptions::default(), Environment::read());
    let request = Request { annotation: None, options: &options, environment: &environment };
    let Ok(config) = source::load(request) else { return Vec::new() };
    if config.gate.check(CONFIG_ANNOTATION).is_err() {
        return Vec::new();
    }
    let usual = source::default_preset_dir();
    let dir = config.gate.preset_dir.as_deref().unwrap_or(&usual);
    let presets = presets(dir).into_iter();
    let mut all: Vec<_> =
        presets.map(|name| (format!("{CONFIG_ANNOTATION}={name}"), "a preset")).collect();
    let runtimes = config.runtimes.keys();
    all.extend(runtimes.map(|name| (format!("{RUNTIME_ANNOTATION}={name}"), "a runtime")));
    all.sort();
    all
}

/// The names of the presets that lie in `dir` itself.
fn presets(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names =
        entries.map(|entry| entry.file_name()).filter(|name| source::is_preset(name.as_ref()));
    names.filter_map(|name| Some(name.to_str()?.strip_suffix(".toml")?.to_owned())).collect()
}
