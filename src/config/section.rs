//! Takes a table's keys one by one, and keeps what is wrong with them and where each came from. What
//! no code has taken is no key, so the code that reads a key is its only definition.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::document::{MOST_FAULTS, Node, Place, Table, Value, legible};
use super::show;

/// What reading a configuration leaves beside the values.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// A sentence for each fault.
    pub(crate) faults: Vec<String>,
    /// Every key with its effective value, in the order in which the code reads them; `None` where
    /// nobody wants to know.
    pub(crate) settings: Option<Vec<Setting>>,
    /// Of those, only what is set, and the entries of the table of runtimes as a whole: what is built in can
    /// be told later.
    pub(crate) without_built_in: bool,
}

/// One key of the effective configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setting {
    /// The table's name; empty for the top.
    pub(crate) table: String,
    /// The key in it.
    pub(crate) key: String,
    /// The value; `None` for a key that is not set and has no default.
    pub(crate) value: Option<serde_json::Value>,
    /// Where it was set; `None` for a default.
    pub(crate) place: Option<String>,
}

/// The type of a key's value.
pub(super) trait Field: DeserializeOwned + Serialize {}

impl<T: DeserializeOwned + Serialize> Field for T {}

/// A table that is being read.
pub(super) struct Section<'r> {
    name: String,
    nodes: Table,
    known: Vec<&'static str>,
    report: &'r mut Report,
}

impl<'r> Section<'r> {
    /// Reads the table `name`, which is empty for the top of the file.
    pub(super) fn new(name: String, nodes: Table, report: &'r mut Report) -> Self {
        Self { name, nodes, known: Vec::new(), report }
    }

    /// The value of `key`, or `default` where it is not set or is wrong.
    pub(super) fn take<T: Field>(&mut self, key: &'static str, default: T) -> T {
        match self.read::<T>(key) {
            Some((value, place)) => {
                self.record(key, Some(&value), Some(&place));
                value
            }
            None => {
                self.record(key, Some(&default), None);
                default
            }
        }
    }

    /// The value of `key` if it is set and passes `check`, whose error says what it must be. It is
    /// shown as `default` where it is not set.
    pub(super) fn take_checked<T: Field>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        check: impl Fn(&T) -> Result<(), String>,
    ) -> Option<T> {
        let Some((value, place)) = self.read::<T>(key) else {
            self.record(key, default.as_ref(), None);
            return None;
        };
        self.record(key, Some(&value), Some(&place));
        match check(&value) {
            Ok(()) => Some(value),
            Err(why) => {
                self.fault(Some(&place), key, &why);
                None
            }
        }
    }

    /// The table `key` as names and texts, each of which has to pass `check`.
    pub(super) fn take_texts(
        &mut self,
        key: &'static str,
        check: impl Fn(&str, &str) -> Result<(), String>,
    ) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        let Some(table) = self.take_table(key) else { return texts };
        let mut section = self.section(key, Table::new());
        for (name, Node { place, value, .. }) in table {
            let Value::Leaf(toml::Value::String(text)) = value else {
                // What it is instead may be a secret.
                section.fault(Some(&place), &name, "must be a string");
                continue;
            };
            section.record(&name, Some(&text), Some(&place));
            match check(&name, &text) {
                Ok(()) => drop(texts.insert(name, text)),
                Err(why) => section.fault(Some(&place), &name, &why),
            }
        }
        texts
    }

    /// The tables within the table `key`, by their names.
    pub(super) fn take_tables(&mut self, key: &'static str) -> Vec<(String, Place, Table)> {
        let Some(table) = self.take_table(key) else { return Vec::new() };
        let mut tables = Vec::new();
        for (name, Node { place, value, .. }) in table {
            match value {
                Value::Table(table) => tables.push((name, place, table)),
                Value::Leaf(leaf) => {
                    let why = format!("{} in place of a table", leaf.type_str());
                    self.fault(Some(&place), &format!("{key}.{}", show::key(&name)), &why);
                }
            }
        }
        tables
    }

    /// The node of `key` as it stands.
    fn take_node(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        self.nodes.remove(key)
    }

    /// Where `key` is set, unless it was taken already.
    pub(super) fn place(&self, key: &str) -> Option<&Place> {
        self.nodes.get(key).map(|node| &node.place)
    }

    /// A section for a table within this one.
    pub(super) fn section(&mut self, name: &str, nodes: Table) -> Section<'_> {
        let name = format!("{}{name}", self.prefix()); // in the form that a TOML header has
        Section::new(name, nodes, self.report)
    }

    /// Says what is wrong with the value of `key`.
    pub(super) fn fault(&mut self, place: Option<&Place>, key: &str, why: &str) {
        if self.report.faults.len() >= MOST_FAULTS {
            return;
        }
        let fault = format!("{}{key}: {why}", self.prefix());
        let fault = legible(&fault);
        self.report.faults.push(match place {
            Some(place) => format!("{place}: {fault}"),
            None => fault,
        });
    }

    /// Says which keys were not taken, and what each was most likely meant to be.
    pub(super) fn finish(mut self) {
        let rest = std::mem::take(&mut self.nodes);
        for Node { name, place, .. } in rest.into_values().take(MOST_FAULTS) {
            let why = match self.nearest(&name) {
                Some(nearest) => format!("unknown key; the nearest known key is {nearest:?}"),
                None => "unknown key".into(),
            };
            self.fault(Some(&place), &show::key(&name), &why);
        }
    }

    /// The known key that is most like `key`; nobody mistypes a long text.
    fn nearest(&self, key: &str) -> Option<&'static str> {
        const LONGEST: usize = 64;
        if key.len() > LONGEST {
            return None;
        }
        let distance = |known: &&&str| strsim::damerau_levenshtein(key, known);
        self.known.iter().min_by_key(distance).copied()
    }

    /// The keys that were taken.
    #[cfg(test)]
    pub(super) fn known(&self) -> &[&'static str] {
        &self.known
    }

    fn prefix(&self) -> String {
        if self.name.is_empty() { String::new() } else { format!("{}.", self.name) }
    }

    /// The table `key`; `None` if it is missing or no table.
    pub(super) fn take_table(&mut self, key: &'static str) -> Option<Table> {
        let Node { place, value, .. } = self.take_node(key)?;
        match value {
            Value::Table(table) => Some(table),
            Value::Leaf(leaf) => {
                let why = format!("{} in place of a table", leaf.type_str());
                self.fault(Some(&place), key, &why);
                None
            }
        }
    }

    fn read<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<(T, Place)> {
        let Node { place, value, .. } = self.take_node(key)?;
        Some((self.typed(key, &place, value)?, place))
    }

    fn typed<T: DeserializeOwned>(&mut self, key: &str, place: &Place, value: Value) -> Option<T> {
        let leaf = match value {
            Value::Leaf(leaf) => leaf,
            Value::Table(_) => toml::Value::Table(toml::Table::new()),
        };
        match leaf.try_into() {
            Ok(value) => Some(value),
            Err(error) => {
                let error: toml::de::Error = error;
                self.fault(Some(place), key, error.message());
                None
            }
        }
    }

    fn record<T: Serialize>(&mut self, key: &str, value: Option<&T>, place: Option<&Place>) {
        let Some(settings) = &mut self.report.settings else { return };
        let is_built_in = place.is_none() && !self.name.starts_with("runtimes.");
        if is_built_in && self.report.without_built_in {
            return;
        }
        let (table, key) = (self.name.clone(), key.to_owned());
        // Every type of a key has a value in JSON.
        let value = value.and_then(|value| serde_json::to_value(value).ok());
        settings.push(Setting { table, key, value, place: place.map(Place::to_string) });
    }
}
