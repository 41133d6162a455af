//! The command line of the benchmark. Pure.

use std::path::PathBuf;

/// What to measure, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Args {
    /// Names of parts, and words that are in the names of rows.
    pub(crate) words: Vec<String>,
    /// `--rounds N`: those that count; a part has its own number without it.
    pub(crate) rounds: Option<u32>,
    /// `--json FILE`: a line is appended for each figure.
    pub(crate) json: Option<PathBuf>,
    /// `--runtime NAME`: in place of those that a part is for.
    pub(crate) runtime: Option<String>,
    /// `--stock PATH`: the shim that the ratios are to.
    pub(crate) stock: Option<PathBuf>,
    /// `--shim [NAME=]PATH`: measured too.
    pub(crate) shims: Vec<(String, PathBuf)>,
    /// `--count N`: how many shims the part `many` starts.
    pub(crate) count: u32,
    /// `--check`: whether a missed budget is a failure.
    pub(crate) check: bool,
}

impl Args {
    /// Reads the command line.
    ///
    /// # Errors
    /// The fault in words.
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut args = Self {
            words: Vec::new(),
            rounds: None,
            json: None,
            runtime: None,
            stock: None,
            shims: Vec::new(),
            count: 500,
            check: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if !word.starts_with('-') {
                args.words.push(word.clone());
                continue;
            }
            if word == "--check" {
                args.check = true;
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--rounds" => args.rounds = Some(number(word, value)?),
                "--count" => args.count = number(word, value)?,
                "--json" => args.json = Some(value.into()),
                "--runtime" => args.runtime = Some(value.clone()),
                "--stock" => args.stock = Some(value.into()),
                "--shim" => args.shims.push(shim(value)),
                _ => return Err(format!("unknown option {word}")),
            }
        }
        Ok(args)
    }

    /// Whether the part `name`, one of `parts`, is asked for: by its name, or because none is and it
    /// `is_usual`.
    pub(crate) fn chooses_part(&self, name: &str, parts: &[&str], is_usual: bool) -> bool {
        let mut named = self.words.iter().filter(|word| parts.contains(&word.as_str())).peekable();
        if named.peek().is_none() { is_usual } else { named.any(|word| word == name) }
    }

    /// Whether every word that names no part is in the row's name.
    pub(crate) fn chooses_row(&self, name: &str, parts: &[&str]) -> bool {
        let mut words = self.words.iter().filter(|word| !parts.contains(&word.as_str()));
        words.all(|word| name.contains(word.as_str()))
    }
}

fn number(option: &str, value: &str) -> Result<u32, String> {
    let number = value.parse().ok().filter(|&number| number > 0);
    number.ok_or_else(|| format!("{option} {value}: not a number from 1 on"))
}

/// A shim without a name is called as its program is.
fn shim(value: &str) -> (String, PathBuf) {
    if let Some((name, path)) = value.split_once('=') {
        return (name.into(), path.into());
    }
    let name = value.rsplit('/').next().unwrap_or(value);
    (name.into(), value.into())
}
