//! A configuration as a Create saw it, for whoever asks later: the files may have changed by then, and
//! reading them would hold up whoever is asked.

use std::rc::Rc;

use super::document::Source;
use super::section::Setting;
use super::source::{self, Origins, Request};
use super::{Config, body, show, tracing};
use crate::error::Result;

/// What stands for a value that may be secret.
const HIDDEN: &str = "(not shown)";

/// What is set in a configuration, and where: nothing on a machine without a file.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    settings: Vec<Setting>,
    sources: Vec<Rc<Source>>,
}

/// Loads as [`source::load`] does. `runtime` is the annotation that chooses one, if there is any.
///
/// # Errors
/// The same.
pub(crate) fn load_seen(request: Request<'_>, runtime: Option<&str>) -> Result<(Config, Seen)> {
    let mut loaded = source::load_with(request, Origins::Set)?;
    for setting in loaded.settings.iter_mut().filter(|setting| is_secret(&setting.table)) {
        setting.value = Some(HIDDEN.into());
    }
    let said = body::said(request.options).into_iter().map(|(key, value)| Setting {
        table: String::new(),
        key: key.to_owned(),
        value: Some(value),
        place: Some("create options".to_owned()),
    });
    show::overlay(&mut loaded.settings, said);
    if let Some(name) = runtime {
        show::overlay(&mut loaded.settings, show::runtime_by_annotation(name));
    }
    loaded.settings.shrink_to_fit();
    Ok((loaded.config, Seen { settings: loaded.settings, sources: loaded.sources }))
}

impl Seen {
    /// All effective values as TOML, with the origin of each as `config show --origin` has it.
    pub(crate) fn text(&self) -> String {
        let mut settings = source::built_in().map(|loaded| loaded.settings).unwrap_or_default();
        show::overlay(&mut settings, self.settings.iter().cloned());
        tracing::show_environment(&mut settings);
        show::text(&settings, &self.sources, true)
    }
}

/// Whether a table is the environment of a runtime, `runtimes.NAME.env`, and not a runtime of that name; or
/// what a collector gets in headers.
fn is_secret(table: &str) -> bool {
    table == "tracing.headers"
        || table.strip_prefix("runtimes.").is_some_and(|rest| rest.ends_with(".env"))
}
