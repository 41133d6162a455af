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
    /// `--runtime NAME`
    pub(crate) runtime: String,
    /// `--stock PATH`: the shim that the ratios are to.
    pub(crate) stock: Option<PathBuf>,
    /// `--shim [NAME=]PATH`: measured too.
    pub(crate) shims: Vec<(String, PathBuf)>,
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
            runtime: "runc".into(),
            stock: None,
            shims: Vec::new(),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if !word.starts_with('-') {
                args.words.push(word.clone());
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--rounds" => args.rounds = Some(rounds(value)?),
                "--json" => args.json = Some(value.into()),
                "--runtime" => args.runtime.clone_from(value),
                "--stock" => args.stock = Some(value.into()),
                "--shim" => args.shims.push(shim(value)),
                _ => return Err(format!("unknown option {word}")),
            }
        }
        Ok(args)
    }

    /// Whether the part `name`, one of `parts`, is asked for: by its name, or because none is.
    pub(crate) fn chooses_part(&self, name: &str, parts: &[&str]) -> bool {
        let mut named = self.words.iter().filter(|word| parts.contains(&word.as_str())).peekable();
        named.peek().is_none() || named.any(|word| word == name)
    }

    /// Whether every word that names no part is in the row's name.
    pub(crate) fn chooses_row(&self, name: &str, parts: &[&str]) -> bool {
        let mut words = self.words.iter().filter(|word| !parts.contains(&word.as_str()));
        words.all(|word| name.contains(word.as_str()))
    }
}

fn rounds(value: &str) -> Result<u32, String> {
    let number = value.parse().ok().filter(|&rounds| rounds > 0);
    number.ok_or_else(|| format!("--rounds {value}: not a number of rounds"))
}

/// A shim without a name is called as its program is.
fn shim(value: &str) -> (String, PathBuf) {
    if let Some((name, path)) = value.split_once('=') {
        return (name.into(), path.into());
    }
    let name = value.rsplit('/').next().unwrap_or(value);
    (name.into(), value.into())
}
