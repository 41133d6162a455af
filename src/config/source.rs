//! Which configuration wins: create option, then environment, then default file, then built-in.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::wire::options::RuntimeOptions;

/// Names the configuration file for all shims of a containerd.
const ENVIRONMENT: &str = "BERTH_CONF_FILE";
/// The host's configuration; it need not exist.
const DEFAULT_FILE: &str = "/etc/berth/config.toml";

/// Loads the one configuration that applies to a container created with `options`.
///
/// # Errors
/// [`Error::Invalid`] with what is wrong and where; [`Error::Io`] if a file that the options or the
/// environment name cannot be read. The default file may be missing.
pub(crate) fn load(options: &RuntimeOptions) -> Result<Config> {
    if !options.config_path.is_empty() {
        return read(Path::new(&options.config_path));
    }
    if !options.config_body.is_empty() {
        let name = "in the create options";
        let text = std::str::from_utf8(&options.config_body)
            .map_err(|error| Error::Invalid(format!("configuration {name}: {error}")))?;
        return Config::parse(text, name);
    }
    if let Some(path) = env::var_os(ENVIRONMENT).filter(|path| !path.is_empty()) {
        return read(&PathBuf::from(path));
    }
    match read(Path::new(DEFAULT_FILE)) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Config::default())
        }
        other => other,
    }
}

fn read(path: &Path) -> Result<Config> {
    let text = fs::read_to_string(path).map_err(Error::io("read the configuration", path))?;
    Config::parse(&text, &path.display().to_string())
}
