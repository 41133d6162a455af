//! `doctor`: is this host fit for berth, which configuration wins, and what was left behind; with what
//! mends each. Every look is bounded in time, so that what hangs is told and hides nothing else.

mod containerd;
mod grpc;
mod host;
mod judge;
mod kept;
mod leftovers;
mod look;
mod mend;
mod processes;
mod runtimes;
mod show;

use serde::Serialize;

use self::mend::Mend;
use crate::cli::DoctorQuery;
use crate::error::Result;

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
    if query.fix {
        report.deeds = report.findings.iter().filter_map(mend::carry_out).collect();
        if !report.deeds.is_empty() {
            report.findings = look_at_all(query);
        }
    }
    let text = if query.json { show::json(&report)? } else { show::text(&report, query.fix) };
    Ok((text, report.is_healthy()))
}

/// Each topic in a thread of its own, of which none can hold up the others.
fn look_at_all(query: &DoctorQuery) -> Vec<Finding> {
    let scope = leftovers::Scope::new(query);
    let host = look::begin({
        let sockets = scope.socket_dirs();
        move || host::look(&sockets)
    });
    let runtimes = look::begin(runtimes::look);
    let (daemons, mut told) = containerd::look(&scope);
    let leftovers = look::begin(move || leftovers::look(&scope, &daemons));
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
