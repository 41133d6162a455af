//! Which configuration counts: annotation, then create option, then environment, then the default
//! file, then what is built in. The order is decided here and nowhere else.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::document::{self, Source, Table, Via};
use super::file::{self, Directory, Trust};
use super::section::{Report, Setting};
use super::{Config, body, expand_deadlines};
use crate::error::{Error, Result};
use crate::rootless;
use crate::wire::options::RuntimeOptions;

/// Selects a preset, by its name or its path.
pub(crate) const CONFIG_ANNOTATION: &str = "io.containerd.berth.config_path";
/// Selects a runtime of the table, by its name.
pub(crate) const RUNTIME_ANNOTATION: &str = "io.containerd.berth.runtime";
/// Names the configuration file for all shims of a containerd.
const ENVIRONMENT: &str = "BERTH_CONF_FILE";
/// The host's configuration, in [`rootless::config_dir`]; it need not exist.
const DEFAULT_FILE: &str = "config.toml";

/// Where the host's configuration may lie.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    /// The file that the environment names.
    pub(crate) named: Option<PathBuf>,
    /// The file that need not exist.
    pub(crate) default: PathBuf,
}

impl Environment {
    /// That of this process.
    pub(crate) fn read() -> Self {
        let named = env::var_os(ENVIRONMENT).filter(|path| !path.is_empty());
        Self { named: named.map(PathBuf::from), default: rootless::config_dir().join(DEFAULT_FILE) }
    }
}

/// Whose configuration is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// The container's annotation [`CONFIG_ANNOTATION`], if it has one that is not empty.
    pub(crate) annotation: Option<&'a str>,
    /// The options of its Create.
    pub(crate) options: &'a RuntimeOptions,
    /// What the process was started with.
    pub(crate) environment: &'a Environment,
}

/// A configuration, and where each of its values came from.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) config: Config,
    pub(super) settings: Vec<Setting>,
    /// The texts that it was made of.
    pub(super) sources: Vec<Rc<Source>>,
}

/// Loads the one configuration that applies.
///
/// # Errors
/// [`Error::Config`] with every fault, its file and line; [`Error::Denied`] if the annotation asks
/// for what it may not have, or a file is not safe; [`Error::Io`] if a file that was named cannot be
/// read. The default file may be missing.
pub(crate) fn load(request: Request<'_>) -> Result<Config> {
    Ok(load_with_origins(request)?.config)
}

pub(super) fn load_with_origins(request: Request<'_>) -> Result<Loaded> {
    let host = load_host(request)?;
    match request.annotation {
        Some(wanted) => load_preset(wanted, &host.config),
        None => Ok(host),
    }
}

fn load_host(Request { options, environment, .. }: Request<'_>) -> Result<Loaded> {
    if !options.config_path.is_empty() {
        return load_file(Path::new(&options.config_path), Via::ConfigPath);
    }
    if !options.config_body.is_empty() {
        let mut parts = Parts::default();
        parts.add(&options.config_body, "the create options".into(), Via::ConfigBody);
        return parts.finish();
    }
    if let Some(path) = &environment.named {
        return load_file(path, Via::Environment);
    }
    load_file(&environment.default, Via::Default)
}

/// Loads a file that an administrator named, with its drop-ins.
///
/// # Errors
/// As [`load`].
pub(super) fn load_file(path: &Path, via: Via) -> Result<Loaded> {
    if !path.is_absolute() {
        let name = path.display();
        return Err(Error::Config(vec![format!("{name} ({via}): must be an absolute path")]));
    }
    let mut parts = Parts::default();
    match file::read(path) {
        Err(Error::Io { source, .. })
            if via == Via::Default && source.kind() == std::io::ErrorKind::NotFound => {}
        text => parts.add(&text.map_err(|error| named(error, via))?, name(path), via),
    }
    Directory::open(&drop_ins_of(path), Trust::Host)
        .and_then(|directory| parts.add_drop_ins(directory))
        .map_err(|error| named(error, Via::DropIn))?;
    parts.finish()
}

/// Loads the preset that an annotation asks for, if `host` lets it.
fn load_preset(wanted: &str, host: &Config) -> Result<Loaded> {
    let denied = |why: String| {
        Error::Denied(format!("annotation {CONFIG_ANNOTATION} = {wanted:?} is refused: {why}"))
    };
    allow(host, CONFIG_ANNOTATION)?;
    let dir = &host.preset_dir;
    let relative = match Path::new(wanted).strip_prefix(dir) {
        Ok(below) => below.to_owned(),
        Err(_) if wanted.starts_with('/') => {
            return Err(denied(format!("it is not in the preset directory {}", dir.display())));
        }
        Err(_) if wanted.contains('/') || wanted.ends_with(".toml") => wanted.into(),
        Err(_) => format!("{wanted}.toml").into(),
    };
    let read = || -> Result<Parts> {
        let presets = Directory::open(dir, Trust::Preset)?
            .ok_or_else(|| Error::Denied(format!("there is no directory {}", dir.display())))?;
        let mut parts = Parts::default();
        parts.add(&presets.read(&relative)?, name(&dir.join(&relative)), Via::Annotation);
        parts.add_drop_ins(presets.directory(&drop_ins_of(&relative))?)?;
        Ok(parts)
    };
    let parts = read().map_err(|error| match error {
        Error::Denied(why) => denied(why),
        other => other,
    })?;
    parts.finish()
}

/// Whether containers may choose by `annotation`.
///
/// # Errors
/// [`Error::Denied`] that names the configuration that forbids it.
pub(crate) fn allow(config: &Config, annotation: &str) -> Result<()> {
    if config.allow_annotations {
        return Ok(());
    }
    let origin = &config.origin;
    let why = format!("{origin} switches annotations off (allow_annotations = false)");
    Err(Error::Denied(format!("annotation {annotation} is refused: {why}")))
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

fn drop_ins_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".d");
    name.into()
}

/// Adds who named the file that cannot be had.
fn named(error: Error, via: Via) -> Error {
    match error {
        Error::Denied(why) => Error::Denied(format!("configuration {why} ({via})")),
        Error::Io { action, path, source } => {
            let path = format!("{} ({via})", path.display()).into();
            Error::Io { action, path, source }
        }
        other => other,
    }
}

/// The texts of one configuration.
#[derive(Default)]
struct Parts {
    table: Table,
    sources: Vec<Rc<Source>>,
    faults: Vec<String>,
}

impl Parts {
    /// Puts the values of `text` in the place of those that are there.
    fn add(&mut self, text: &[u8], name: String, via: Via) {
        let source = Rc::new(Source { name, via });
        let table = document::parse(text, &source).and_then(|table| match via {
            Via::ConfigBody => body::normalize(table),
            _ => Ok(table),
        });
        match table {
            Ok(mut table) => {
                expand_deadlines(&mut table);
                document::merge(&mut self.table, table);
            }
            Err(faults) => self.faults.extend(faults),
        }
        self.sources.push(source);
    }

    fn add_drop_ins(&mut self, directory: Option<Directory>) -> Result<()> {
        let Some(directory) = directory else { return Ok(()) };
        for file in directory.list()? {
            self.add(&directory.read(&file)?, name(&directory.path().join(&file)), Via::DropIn);
        }
        Ok(())
    }

    /// Makes the values' sense.
    fn finish(self) -> Result<Loaded> {
        let via = self.sources.first().map(|source| source.via);
        let mut report = Report { faults: self.faults, settings: Vec::new() };
        let mut config = Config::read(self.table, via, &mut report);
        if !report.faults.is_empty() {
            return Err(Error::Config(report.faults));
        }
        if let Some(source) = self.sources.first() {
            config.origin = format!("{} ({})", source.name, source.via);
        }
        Ok(Loaded { config, settings: report.settings, sources: self.sources })
    }
}
