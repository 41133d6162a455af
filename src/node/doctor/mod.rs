//! `doctor`: is this host fit for berth, which configuration wins, and what was left behind; with what
//! mends each. Every look is bounded in time, so that what hangs is told and hides nothing else.

mod containerd;
mod grpc;
mod host;
mod judge;
mod kept;
mod known;
mod leftovers;
mod look;
mod mend;
mod processes;
mod runtimes;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::mend::Mend;
use crate::cli::DoctorQuery;
use crate::error::Result;

/// How long something has to have been left behind before `-fix` touches it: what is being started or cleaned
/// up this moment, or is containerd's that is just restarting, is nobody's for a shorter time.
const STEADY: Duration = Duration::from_secs(3);
/// How old a look may be that is acted upon.
const FRESH: Duration = Duration::from_secs(1);

/// How bad it is. What is worse than a note makes a host unhealthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    /// Something should be mended; containers run all the same.
    Warn,
    /// Containers do not run.
    Fault,
}

/// What a finding is about, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Topic {
    Host,
    Configuration,
    Runtimes,
    Containerd,
    Leftovers,
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
struct Finding {
    topic: Topic,
    level: Level,
    /// In a few words.
    what: String,
    /// The file, process or directory that it is about.
    place: Option<String>,
    /// What it means, or how it is known.
    why: Option<String>,
    mend: Option<Mend>,
}

impl Finding {
    fn new(topic: Topic, level: Level, what: impl Into<String>) -> Self {
        Self { topic, level, what: what.into(), place: None, why: None, mend: None }
    }

    fn at(self, place: impl ToString) -> Self {
        Self { place: Some(place.to_string()), ..self }
    }

    fn why(self, why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), ..self }
    }

    /// A command for the administrator, which `-fix` does not run.
    fn command(self, command: impl Into<String>) -> Self {
        Self { mend: Some(Mend { command: command.into(), act: None }), ..self }
    }

    fn mend(self, mend: Mend) -> Self {
        Self { mend: Some(mend), ..self }
    }

    /// Whether `-fix` mends it.
    fn is_safe(&self) -> bool {
        self.mend.as_ref().is_some_and(|mend| mend.act.is_some())
    }

    /// Tells it from all others.
    fn name(&self) -> String {
        let place = self.place.as_deref().map(|place| format!(": {place}")).unwrap_or_default();
        format!("{}{place}", self.what)
    }
}

/// What `-fix` did.
#[derive(Clone, Debug, Serialize)]
struct Deed {
    what: String,
    command: String,
    /// Why it could not be done.
    error: Option<String>,
}

/// All that there is to say.
struct Report {
    deeds: Vec<Deed>,
    findings: Vec<Finding>,
}

impl Report {
    fn is_healthy(&self) -> bool {
        self.findings.iter().all(|finding| finding.level <= Level::Note)
    }
}

/// Looks at everything, mends what may be mended if that is wanted, and looks again then. Returns the
/// report, coloured on a terminal, and whether all is well.
///
/// # Errors
/// What fails is a finding; only a report that cannot be encoded is none.
pub(crate) fn doctor(query: &DoctorQuery) -> Result<(String, bool)> {
    let mut report = Report { deeds: Vec::new(), findings: look_at_all(query) };
    if query.fix && report.findings.iter().any(Finding::is_safe) {
        report.deeds = mend_all(query);
        report.findings = look_at_all(query);
    }
    let text = if query.json { show::json(&report)? } else { show::text(&report, query.fix) };
    Ok((text, report.is_healthy()))
}

/// Mends what is left behind in two looks with [`STEADY`] between, the latter of which is fresh.
fn mend_all(query: &DoctorQuery) -> Vec<Deed> {
    let began = Instant::now();
    let (mut deeds, mut done) = (Vec::new(), BTreeSet::new());
    let mut since: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        let now = Instant::now();
        let mut found = look_at_leftovers(query);
        // What comes later is for the next time, so that this one ends.
        let is_new = |name: &String| !since.contains_key(name) && now > began + 2 * STEADY;
        found.retain(|one| one.is_safe() && !done.contains(&one.name()) && !is_new(&one.name()));
        let named = |one: &Finding| (one.name(), *since.get(&one.name()).unwrap_or(&now));
        since = found.iter().map(named).collect();
        let Some(first) = since.values().min().copied() else { return deeds };
        if now < first + STEADY {
            thread::sleep(first + STEADY - now);
            continue;
        }
        for one in found.iter().filter(|one| since[&one.name()] + STEADY <= now) {
            deeds.extend(mend::carry_out(one));
            done.insert(one.name());
            if now.elapsed() > FRESH {
                break;
            }
        }
    }
}

/// What was left behind alone; nothing if that hangs.
fn look_at_leftovers(query: &DoctorQuery) -> Vec<Finding> {
    let scope = leftovers::Scope::new(query);
    let Some(daemons) = containerd::daemons(&scope) else { return Vec::new() };
    look::begin(move || leftovers::look(&scope, &daemons)).end(look::LONGEST).unwrap_or_default()
}

/// Each topic in a thread of its own, of which none can hold up the others.
fn look_at_all(query: &DoctorQuery) -> Vec<Finding> {
    let scope = leftovers::Scope::new(query);
    let host = look::begin({
        let sockets = scope.socket_dirs();
        move || host::look(&sockets)
    });
    let runtimes = look::begin(runtimes::look);
    let daemons = containerd::daemons(&scope);
    let mut told = containerd::look(daemons.as_deref().unwrap_or_default());
    let leftovers = look::begin(move || match daemons {
        Some(daemons) => leftovers::look(&scope, &daemons),
        None => vec![unknown()],
    });
    let mut findings = Vec::new();
    for (topic, looking) in
        [(Topic::Host, host), (Topic::Runtimes, runtimes), (Topic::Leftovers, leftovers)]
    {
        findings.extend(looking.end(look::LONGEST).unwrap_or_else(|| {
            let what = format!("not all could be looked at within {} s", look::LONGEST.as_secs());
            vec![
                Finding::new(topic, Level::Warn, what).why(
                    "a file system or a process hangs; what was found on this topic is not told",
                ),
            ]
        }));
    }
    findings.append(&mut told);
    findings.sort_by_key(|finding| finding.topic);
    findings
}

/// Without the containerds, nothing can be said to be nobody's.
fn unknown() -> Finding {
    Finding::new(Topic::Leftovers, Level::Warn, "what was left behind is not known")
        .why("a containerd's process or configuration file hangs")
}
