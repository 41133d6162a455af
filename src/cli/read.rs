//! The command lines of administrators, as their definition has them. People type them: what is not known
//! is an error, which says how it is written.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::completions;
use super::word::{self, Caller, Flag, Found, Kind, Need, Value, Word};
use super::words::{self, Verb};
use super::{
    Command, ConfigQuery, DoctorQuery, Flags, MetricsTarget, PsFormat, invalid, split, switch, text,
};
use crate::error::Result;

/// The nearest name is offered up to this many letters away.
const NEAR: usize = 2;

/// What stands behind a command.
struct Given {
    word: &'static Word,
    flags: Vec<(&'static str, OsString)>,
    operand: Option<OsString>,
}

/// Reads what follows `first`, a command. `flags` stood before it, and `passed` is the first of them that
/// nobody knows.
///
/// # Errors
/// [`Error::Invalid`](crate::error::Error::Invalid) with what is wrong and how the command is written.
pub(super) fn command(
    first: &OsStr,
    mut args: impl Iterator<Item = OsString>,
    flags: Flags,
    passed: Option<&OsStr>,
) -> Result<Command> {
    let mut second = None;
    let found = word::find(first.as_encoded_bytes(), || {
        second = args.next();
        second.as_deref().map(OsStr::as_encoded_bytes)
    });
    let word = match found {
        Found::Word(word) => word,
        Found::Group(group) if second.as_deref().is_some_and(is_help) => {
            return Ok(Command::Help(Some(group)));
        }
        Found::Group(group) => return Err(no_second(group, second.as_deref())),
        Found::Nothing => return Err(unknown(first)),
    };
    match word.verb {
        // containerd's: it passes nothing behind them, and what a newer one may pass is not in the way.
        Verb::Start if args.next().is_none_or(|next| !is_help(&next)) => Ok(Command::Start(flags)),
        Verb::Delete if args.next().is_none_or(|next| !is_help(&next)) => {
            Ok(Command::Delete(flags))
        }
        Verb::Holder => Ok(Command::Holder),
        Verb::Complete => Ok(Command::Complete(args.collect())),
        _ => people(word, args, &flags, passed),
    }
}

/// Reads what follows a command of an administrator.
fn people(
    word: &'static Word,
    args: impl Iterator<Item = OsString>,
    before: &Flags,
    passed: Option<&OsStr>,
) -> Result<Command> {
    if word.caller == Caller::Containerd {
        return Ok(Command::Help(Some(word.name)));
    }
    if let Some(passed) = passed {
        let passed = passed.to_string_lossy();
        return Err(wrong(word, &format!("flag {passed} stands before {}", word.name)));
    }
    if *before != Flags::default() {
        return Err(wrong(
            word,
            &format!("only containerd's commands have flags before {}", word.name),
        ));
    }
    match Given::read(word, args)? {
        Some(given) => given.command(),
        None => Ok(Command::Help(Some(word.name))),
    }
}

impl Given {
    /// `None` if help is asked for.
    fn read(word: &'static Word, mut args: impl Iterator<Item = OsString>) -> Result<Option<Self>> {
        let mut given = Self { word, flags: Vec::new(), operand: None };
        let mut literal = false;
        while let Some(arg) = args.next() {
            match split(&arg) {
                Some(("", None)) if !literal => literal = true, // `--` ends the flags
                Some(_) if !literal && is_help(&arg) => return Ok(None),
                Some((name, value)) if !literal => {
                    let flag = given.known(name)?;
                    let value = match (value, flag.value) {
                        (Some(value), _) => value.to_owned(),
                        (None, None) => "true".into(),
                        (None, Some(value)) => args.next().ok_or_else(|| {
                            wrong(word, &format!("flag -{name} needs its {}", value.shown))
                        })?,
                    };
                    if let Some(known) = flag.value {
                        one_of(word, known, &value)?;
                    }
                    given.flags.push((flag.name, value));
                }
                _ => given.take_operand(arg)?,
            }
        }
        given.check()?;
        Ok(Some(given))
    }

    fn known(&self, name: &str) -> Result<&'static Flag> {
        word::flag(self.word.flags, name).ok_or_else(|| {
            let near = nearest(name, self.word.flags.iter().map(|flag| flag.name));
            let hint = near.map(|near| format!(": -{near} was meant?")).unwrap_or_default();
            wrong(self.word, &format!("unknown flag -{name} of {}{hint}", self.word.name))
        })
    }

    fn take_operand(&mut self, arg: OsString) -> Result<()> {
        let name = self.word.name;
        match self.word.operand {
            None => Err(wrong(self.word, &format!("{name} takes no {arg:?}"))),
            Some(value) if self.operand.is_some() => {
                Err(wrong(self.word, &format!("{name} takes one {}, not {arg:?} too", value.shown)))
            }
            Some(value) => {
                one_of(self.word, value, &arg)?;
                self.operand = Some(arg);
                Ok(())
            }
        }
    }

    /// Whether all is there that has to be.
    fn check(&self) -> Result<()> {
        let name = self.word.name;
        if let Some(value) = self.word.operand {
            if self.operand.as_ref().is_none_or(|operand| operand.is_empty()) {
                return Err(wrong(self.word, &format!("{name} needs its {}", value.shown)));
            }
        }
        if self.word.need == Need::One && self.flags.len() != 1 {
            let flags: Vec<_> =
                self.word.flags.iter().map(|flag| format!("-{}", flag.name)).collect();
            let flags = flags.join(" and ");
            return Err(wrong(self.word, &format!("{name} needs one of {flags}, once")));
        }
        Ok(())
    }

    /// The values of a flag, in their order.
    fn all(&self, name: &'static str) -> impl DoubleEndedIterator<Item = &OsString> {
        debug_assert!(word::flag(self.word.flags, name).is_some(), "-{name} is not in the table");
        self.flags.iter().filter(move |(flag, _)| *flag == name).map(|(_, value)| value)
    }

    /// The last one wins.
    fn value(&self, name: &'static str) -> Option<&OsString> {
        self.all(name).next_back()
    }

    fn path(&self, name: &'static str) -> Option<PathBuf> {
        self.value(name).map(PathBuf::from)
    }

    fn switch(&self, name: &'static str) -> Result<bool> {
        let Some(value) = self.value(name) else { return Ok(false) };
        switch(name, Some(value)).map_err(|error| wrong(self.word, &error.to_string()))
    }

    fn text(&self, name: &'static str) -> impl Iterator<Item = Result<String>> {
        self.all(name).map(move |value| text(name, value.clone()))
    }

    fn command(mut self) -> Result<Command> {
        let operand = self.operand.take().unwrap_or_default();
        match self.word.verb {
            Verb::ConfigShow => self.query().map(Command::ConfigShow),
            Verb::ConfigCheck => Ok(Command::ConfigCheck(operand.into())),
            Verb::Ps if self.switch("json")? => Ok(Command::Ps(PsFormat::Json)),
            Verb::Ps => Ok(Command::Ps(PsFormat::Table)),
            Verb::Logs => Ok(Command::Logs(operand.to_string_lossy().into_owned())),
            Verb::Metrics => self.metrics().map(Command::Metrics),
            Verb::Doctor => Ok(Command::Doctor(DoctorQuery {
                fix: self.switch("fix")?,
                json: self.switch("json")?,
                state: self.path("state"),
                address: self.path("address"),
            })),
            Verb::Man => Ok(Command::Man),
            Verb::Completions => {
                Ok(Command::Completions(completions::script(&operand.to_string_lossy())))
            }
            Verb::Start | Verb::Delete | Verb::Holder | Verb::Complete => {
                Ok(Command::Help(Some(self.word.name)))
            }
        }
    }

    fn query(&self) -> Result<ConfigQuery> {
        let pair = |pair: Result<String>| {
            let pair = pair?;
            let wrong = || wrong(self.word, &format!("flag -annotation {pair:?} has no `=`"));
            let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
            Ok((key.to_owned(), value.to_owned()))
        };
        let annotations = self.text("annotation").map(pair).collect::<Result<_>>()?;
        Ok(ConfigQuery { origin: self.switch("origin")?, config: self.path("config"), annotations })
    }

    fn metrics(&self) -> Result<MetricsTarget> {
        let Some(address) = self.text("listen").next().transpose()? else {
            return Ok(MetricsTarget::File(self.path("textfile").unwrap_or_default()));
        };
        let wrong = |error| {
            let what = format!("flag -listen {address:?} is no IP:PORT: {error}");
            wrong(self.word, &what)
        };
        Ok(MetricsTarget::Listen(address.parse().map_err(wrong)?))
    }
}

/// `-h` or `-help`.
fn is_help(arg: &OsStr) -> bool {
    split(arg).is_some_and(|(name, value)| {
        let asked = word::flag(words::FLAGS, name).is_some_and(|flag| flag.name == words::HELP);
        asked && switch(name, value).unwrap_or(true)
    })
}

/// An error of the command `word`, with how it is written.
fn wrong(word: &Word, what: &str) -> crate::error::Error {
    invalid(format!("{what}; usage: {}; see {} -help", word::usage(word), word.name))
}

/// Whether a value is one of the words that it can be.
fn one_of(word: &Word, value: Value, given: &OsStr) -> Result<()> {
    let Kind::Word(words) = value.kind else { return Ok(()) };
    if words.iter().any(|(name, _)| given == *name) {
        return Ok(());
    }
    let names: Vec<_> = words.iter().map(|(name, _)| *name).collect();
    Err(wrong(word, &format!("{} is one of {}, not {given:?}", value.shown, names.join(", "))))
}

fn no_second(group: &'static str, second: Option<&OsStr>) -> crate::error::Error {
    let all: Vec<_> = word::about(group).map(word::usage).collect();
    let what =
        second.map_or_else(String::new, |second| format!("unknown command {group} {second:?}; "));
    invalid(format!("{what}usage: {}; see {group} -help", all.join(" or ")))
}

fn unknown(name: &OsStr) -> crate::error::Error {
    let near = nearest(&name.to_string_lossy(), word::about("").map(|word| word.name));
    let hint = near.map(|near| format!(": {near:?} was meant?")).unwrap_or_default();
    invalid(format!("unknown command {name:?}{hint}; see -help"))
}

/// The one that was mistyped, if one is near enough.
fn nearest(name: &str, all: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let far = |one: &&str| strsim::damerau_levenshtein(name, one);
    all.min_by_key(far).filter(|one| far(one) <= NEAR.min(name.len() / 2))
}
