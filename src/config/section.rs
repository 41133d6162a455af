//! Takes a table's keys one by one, and keeps what is wrong with them and where each came from. What
//! no code has taken is no key, so the code that reads a key is its only definition.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::document::{Node, Place, Table, Value};

/// What reading a configuration leaves beside the values.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// A sentence for each fault.
    pub(crate) faults: Vec<String>,
    /// Every key with its effective value, in the order in which the code reads them.
    pub(crate) settings: Vec<Setting>,
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
        for (name, Node { place, value }) in table {
            let Some(text) = section.typed::<String>(&name, &place, value) else { continue };
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
        for (name, Node { place, value }) in table {
            match value {
                Value::Table(table) => tables.push((name, place, table)),
                Value::Leaf(leaf) => {
                    let why = format!("{} in place of a table", leaf.type_str());
                    self.fault(Some(&place), &format!("{key}.{name}"), &why);
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
        let key = format!("{}{key}", self.prefix());
        self.report.faults.push(match place {
            Some(place) => format!("{place}: {key}: {why}"),
            None => format!("{key}: {why}"),
        });
    }

    /// Says which keys were not taken, and what each was most likely meant to be.
    pub(super) fn finish(mut self) {
        for (key, node) in std::mem::take(&mut self.nodes) {
            let distance = |known: &&&str| strsim::damerau_levenshtein(&key, known);
            let nearest = self.known.iter().min_by_key(distance).copied().unwrap_or_default();
            let why = format!("unknown key; the nearest known key is {nearest:?}");
            self.fault(Some(&node.place), &key, &why);
        }
    }

    fn prefix(&self) -> String {
        if self.name.is_empty() { String::new() } else { format!("{}.", self.name) }
    }

    /// The table `key`; `None` if it is missing or no table.
    pub(super) fn take_table(&mut self, key: &'static str) -> Option<Table> {
        let Node { place, value } = self.take_node(key)?;
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
        let Node { place, value } = self.take_node(key)?;
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
        let (table, key) = (self.name.clone(), key.to_owned());
        // Every type of a key has a value in JSON.
        let value = value.and_then(|value| serde_json::to_value(value).ok());
        let place = place.map(Place::to_string);
        self.report.settings.push(Setting { table, key, value, place });
    }
}
