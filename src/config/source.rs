//! Which configuration counts: annotation, then create option, then environment, then the default
//! file, then what is built in. The order is decided here and nowhere else.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::document::{self, Source, Table, Via};
use super::entry::{drop_rivals, expand};
use super::file::{self, Directory, Trust};
use super::section::{Report, Setting};
use super::{Config, Gate, body};
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
    /// Empty unless somebody wants to know; without what is built in if they know that.
    pub(super) settings: Vec<Setting>,
    /// The texts that it was made of.
    pub(super) sources: Vec<Rc<Source>>,
}

/// Whether the origin of each value is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origins {
    Kept,
    /// Of what is set: what is built in has none.
    Set,
    Dropped,
}

/// Loads the one configuration that applies.
///
/// # Errors
/// [`Error::Config`] with every fault, its file and line; [`Error::Denied`] if the annotation asks
/// for what it may not have, or a file is not safe; [`Error::Io`] if a file that was named cannot be
/// read. The default file may be missing.
pub(crate) fn load(request: Request<'_>) -> Result<Config> {
    Ok(load_with(request, Origins::Dropped)?.config)
}

/// Loads the configuration that counts where nobody asks for another.
///
/// # Errors
/// As [`load`].
pub(crate) fn machine() -> Result<Config> {
    let (options, environment) = (RuntimeOptions::default(), Environment::read());
    load(Request { annotation: None, options: &options, environment: &environment })
}

pub(super) fn load_with(request: Request<'_>, origins: Origins) -> Result<Loaded> {
    let host = load_host(request, origins)?;
    let Some(wanted) = request.annotation else { return Ok(host) };
    let mut preset = load_preset(wanted, &host.config, origins)?;
    preset.config.gate = preset.config.gate.and(&host.config.gate);
    Ok(preset)
}

/// The configuration that the create options choose, or the machine's. Options cannot open the gate
/// for annotations that the machine's file has shut.
fn load_host(
    Request { options, environment, .. }: Request<'_>,
    origins: Origins,
) -> Result<Loaded> {
    let mut parts = Parts::new(origins);
    let mut own = if !options.config_path.is_empty() {
        load_file(Path::new(&options.config_path), Via::ConfigPath, origins)?
    } else if options.config_body.is_empty() {
        return load_machine(environment, origins);
    } else {
        parts.add(&options.config_body, "the create options".into(), Via::ConfigBody);
        if parts.faults.is_empty() && body::is_options(&parts.table) {
            let Loaded { config, settings, sources } = parts.finish()?;
            let mut machine = load_machine(environment, origins)?;
            machine.config.options = config.options;
            machine.settings.extend(settings.into_iter().filter(|it| it.place.is_some()));
            machine.sources.extend(sources);
            return Ok(machine);
        }
        parts.finish()?
    };
    let machine = load_machine(environment, Origins::Dropped);
    let gate = machine.map_or_else(|error| Gate::shut(&error), |machine| machine.config.gate);
    own.config.gate = own.config.gate.and(&gate);
    Ok(own)
}

fn load_machine(environment: &Environment, origins: Origins) -> Result<Loaded> {
    match &environment.named {
        Some(path) => load_file(path, Via::Environment, origins),
        None => load_file(&environment.default, Via::Default, origins),
    }
}

/// Loads a file that an administrator named, with its drop-ins.
///
/// # Errors
/// As [`load`].
pub(super) fn load_file(path: &Path, via: Via, origins: Origins) -> Result<Loaded> {
    let fault = |why: &str| Error::Config(vec![format!("{} ({via}): {why}", path.display())]);
    if !path.is_absolute() {
        return Err(fault("must be an absolute path"));
    }
    let mut parts = Parts::new(origins);
    match file::read(path) {
        Ok(text) => parts.add(&text, name(path), via),
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            if via != Via::Default {
                return Err(fault("there is no such file"));
            }
        }
        Err(Error::Io { source, .. }) => return Err(fault(&format!("cannot be read: {source}"))),
        Err(Error::Denied(why)) => {
            return Err(Error::Denied(format!("configuration {why} ({via})")));
        }
        Err(other) => return Err(other),
    }
    Directory::open(&drop_ins_of(path), Trust::Host)
        .and_then(|directory| parts.add_drop_ins(directory))
        .map_err(|error| match error {
            Error::Denied(why) => Error::Denied(format!("configuration {why} ({})", Via::DropIn)),
            other => other,
        })?;
    parts.finish()
}

/// Loads the preset that an annotation asks for, if `host` lets it.
fn load_preset(wanted: &str, host: &Config, origins: Origins) -> Result<Loaded> {
    let denied = |why: String| {
        Error::Denied(format!("annotation {CONFIG_ANNOTATION} = {wanted:?} is refused: {why}"))
    };
    host.gate.check(CONFIG_ANNOTATION)?;
    let usual = default_preset_dir();
    let dir = host.gate.preset_dir.as_deref().unwrap_or(&usual);
    let relative = match Path::new(wanted).strip_prefix(dir) {
        Ok(below) => below.to_owned(),
        Err(_) if wanted.starts_with('/') => {
            return Err(denied(format!("it is not in the preset directory {}", dir.display())));
        }
        Err(_) if wanted.contains('/') || wanted.ends_with(".toml") => wanted.into(),
        Err(_) => format!("{wanted}.toml").into(),
    };
    read_preset(dir, &relative, origins).map_err(|error| match error {
        Error::Denied(why) => denied(why),
        other => other,
    })
}

/// Loads the preset `relative` of the directory `dir`.
///
/// # Errors
/// [`Error::Denied`] with what forbids it; [`Error::Config`].
pub(super) fn read_preset(dir: &Path, relative: &Path, origins: Origins) -> Result<Loaded> {
    if !is_preset(relative) {
        let why = "a preset is called NAME.toml; neither hidden files nor drop-ins are presets";
        return Err(Error::Denied(format!("{:?}: {why}", relative.display().to_string())));
    }
    let presets = Directory::open(dir, Trust::Preset)?
        .ok_or_else(|| Error::Denied(format!("there is no directory {}", dir.display())))?;
    let mut parts = Parts::new(origins);
    parts.add(&presets.read(relative)?, name(&dir.join(relative)), Via::Annotation);
    parts.add_drop_ins(presets.directory(&drop_ins_of(relative))?)?;
    parts.finish()
}

/// Whether a path can be that of a whole preset, by its names alone.
pub(super) fn is_preset(relative: &Path) -> bool {
    let hidden = |name: &[u8]| name.starts_with(b".") && name != b".." && name != b".";
    let parts = || relative.iter().map(OsStr::as_bytes);
    let of_drop_ins = |name: &[u8]| name.ends_with(b".d");
    relative.extension().is_some_and(|extension| extension == "toml")
        && !parts().any(|name| hidden(name) || of_drop_ins(name))
}

/// The configuration of a machine without a file, with all that can be told of it.
pub(super) fn built_in() -> Result<Loaded> {
    Parts::new(Origins::Kept).finish()
}

/// Where presets lie if nothing says otherwise.
pub(super) fn default_preset_dir() -> PathBuf {
    rootless::config_dir().join("presets")
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

fn drop_ins_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".d");
    name.into()
}

/// The texts of one configuration.
struct Parts {
    table: Table,
    sources: Vec<Rc<Source>>,
    faults: Vec<String>,
    origins: Origins,
}

impl Parts {
    fn new(origins: Origins) -> Self {
        Self { table: Table::new(), sources: Vec::new(), faults: Vec::new(), origins }
    }

    /// Puts the values of `text` in the place of those that are there.
    fn add(&mut self, text: &[u8], name: String, via: Via) {
        let source = Rc::new(Source { name, via });
        let table = document::parse(text, &source).and_then(|table| match via {
            Via::ConfigBody => body::normalize(table),
            _ => Ok(table),
        });
        match table.and_then(expand) {
            Ok(table) => {
                drop_rivals(&mut self.table, &table);
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
        let mut report = Report {
            faults: self.faults,
            settings: (self.origins != Origins::Dropped).then(Vec::new),
            without_built_in: self.origins == Origins::Set,
        };
        let mut config = Config::read(self.table, via, &mut report);
        if !report.faults.is_empty() {
            return Err(Error::Config(report.faults));
        }
        if let Some(source) = self.sources.first() {
            config.origin = format!("{} ({})", source.name, source.via);
        }
        let settings = report.settings.unwrap_or_default();
        Ok(Loaded { config, settings, sources: self.sources })
    }
}
