//! What a configuration comes to, for people.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::document::{Source, Via};
use super::section::Setting;
use super::source::{self, CONFIG_ANNOTATION, Environment, Origins, RUNTIME_ANNOTATION, Request};
use super::tracing;
use crate::cli::ConfigQuery;
use crate::error::{Error, Result};
use crate::runtime::table;
use crate::wire::options::RuntimeOptions;

/// The effective configuration as TOML, with the origin of each value as a comment if asked for.
///
/// # Errors
/// Those that a Create would have.
pub(crate) fn show(query: &ConfigQuery) -> Result<String> {
    let options = RuntimeOptions {
        config_path: query.config.as_deref().map(absolute).transpose()?.unwrap_or_default(),
        ..RuntimeOptions::default()
    };
    let environment = Environment::read();
    let known = [CONFIG_ANNOTATION, RUNTIME_ANNOTATION];
    if let Some((key, _)) = query.annotations.iter().find(|(key, _)| !known.contains(&&**key)) {
        let known = known.join(" and ");
        return Err(Error::Invalid(format!("annotation {key:?} chooses nothing; {known} do")));
    }
    let annotation = |name| query.annotations.iter().rfind(|(key, _)| key == name);
    let wanted = annotation(CONFIG_ANNOTATION).map(|(_, value)| value.as_str());
    let request = Request { annotation: wanted, options: &options, environment: &environment };
    let mut loaded = source::load_with(request, Origins::Kept)?;
    if let Some((_, name)) = annotation(RUNTIME_ANNOTATION) {
        table::select(&loaded.config, &options, Some(name))?;
        overlay(&mut loaded.settings, runtime_by_annotation(name));
    }
    tracing::show_environment(&mut loaded.settings);
    Ok(text(&loaded.settings, &loaded.sources, query.origin))
}

/// What it comes to that an annotation chose the runtime `name`.
pub(super) fn runtime_by_annotation(name: &str) -> [Setting; 2] {
    let place = format!("annotation {RUNTIME_ANNOTATION}");
    [("runtime", "auto"), ("default_runtime", name)].map(|(key, value)| Setting {
        table: String::new(),
        key: key.to_owned(),
        value: Some(value.into()),
        place: Some(place.clone()),
    })
}

/// Puts settings in the place of those that are there.
pub(super) fn overlay(settings: &mut Vec<Setting>, over: impl IntoIterator<Item = Setting>) {
    for one in over {
        let same = |it: &&mut Setting| it.table == one.table && it.key == one.key;
        match settings.iter_mut().find(same) {
            Some(found) => *found = one,
            None => settings.push(one),
        }
    }
}

/// Checks a file with its drop-ins, one in the directory of presets as a preset; returns what to say
/// of it.
///
/// # Errors
/// Every fault on a line of its own.
pub(crate) fn check(file: &Path) -> Result<String, String> {
    let load = || {
        let path = PathBuf::from(absolute(file)?);
        let presets = source::default_preset_dir();
        match path.strip_prefix(&presets) {
            Ok(preset) => source::read_preset(&presets, preset, Origins::Dropped),
            Err(_) => source::load_file(&path, Via::CommandLine, Origins::Dropped),
        }
    };
    let loaded = load().map_err(|error| match error {
        Error::Config(faults) => faults.join("\n"),
        other => other.to_string(),
    })?;
    let names: Vec<&str> = loaded.sources.iter().map(|source| source.name.as_str()).collect();
    let remark = loaded.config.tracing.remark(cfg!(feature = "otel"));
    Ok(format!("{}: no fault found\n{remark}", names.join(", ")))
}

/// The path as another process would name it.
fn absolute(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    Ok(path.display().to_string())
}

/// Settings as TOML, and before them what they are from.
pub(super) fn text(settings: &[Setting], sources: &[Rc<Source>], origin: bool) -> String {
    let mut text = String::new();
    for source in sources {
        let _ = writeln!(text, "# {} ({})", source.name, source.via); // a String takes all
    }
    if sources.is_empty() {
        text.push_str("# built-in defaults\n");
    }
    let mut tables: Vec<&str> = settings.iter().map(|setting| setting.table.as_str()).collect();
    tables.sort_unstable();
    tables.dedup();
    for table in tables {
        let lines: Vec<_> = settings.iter().filter(|setting| setting.table == table).collect();
        if lines.iter().all(|setting| setting.value.is_none()) {
            continue;
        }
        if !table.is_empty() {
            let _ = write!(text, "\n[{table}]\n");
        }
        lines.into_iter().filter_map(|setting| line(setting, origin)).for_each(|line| {
            text.push_str(&line);
            text.push('\n');
        });
    }
    text
}

fn line(setting: &Setting, origin: bool) -> Option<String> {
    let line = format!("{} = {}", key(&setting.key), value(setting.value.as_ref()?));
    let place = setting.place.as_deref().unwrap_or("default");
    Some(if origin { format!("{line:<40} # {place}") } else { line })
}

/// A key in TOML: bare if it may be.
pub(super) fn key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !name.is_empty() && name.bytes().all(bare) { name.to_owned() } else { quoted(name) }
}

/// Text in TOML. JSON writes it the same way, but for one control character.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn value(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::String(text) => quoted(text),
        Value::Array(values) => {
            let values: Vec<_> = values.iter().map(self::value).collect();
            format!("[{}]", values.join(", "))
        }
        other => other.to_string(),
    }
}
