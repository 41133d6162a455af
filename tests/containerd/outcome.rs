//! How rows went, and what a run says of it in its last lines.

use std::process::ExitCode;
use std::time::Duration;

/// How many rows of berth may pass only when they are repeated by themselves.
const UNSTABLE: usize = 4;

/// How a row went: its title, its duration and, where it failed, why.
pub(crate) struct Outcome {
    pub(crate) title: String,
    pub(crate) failure: Option<String>,
    /// Why it failed before it was repeated.
    pub(crate) first: Option<String>,
    pub(crate) is_stock: bool,
}

impl Outcome {
    pub(crate) fn new(title: String, failure: Option<String>, took: Duration) -> Self {
        let word = if failure.is_some() { "FAILED" } else { "ok" };
        println!("{title} ... {word} ({:.1} s)", took.as_secs_f32());
        let outcome = Self { title, failure, first: None, is_stock: false };
        outcome.explain();
        outcome
    }

    fn explain(&self) {
        if let Some(text) = &self.failure {
            println!("failed: {}\n    {}", self.title, text.replace('\n', "\n    "));
        }
    }

    fn is_unstable(&self) -> bool {
        self.failure.is_none() && self.first.is_some()
    }

    /// The title and the first line of why it failed last.
    fn summary(&self) -> String {
        let why = self.failure.as_ref().or(self.first.as_ref()).map_or("", String::as_str);
        format!("{}: {}", self.title, why.lines().next().unwrap_or_default())
    }
}

/// Says how it went, once more and in short; whether the run has failed.
pub(crate) fn report(outcomes: &[Outcome]) -> ExitCode {
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect();
    let unstable: Vec<_> = outcomes.iter().filter(|outcome| outcome.is_unstable()).collect();
    let own = unstable.iter().filter(|outcome| !outcome.is_stock).count();
    let fails = !failed.is_empty() || own > UNSTABLE;
    // Once more: where only the last lines of all this are kept, they are the ones to keep.
    failed.iter().for_each(|outcome| outcome.explain());
    unstable.iter().for_each(|outcome| println!("unstable: {}", outcome.summary()));
    failed.iter().for_each(|outcome| println!("failed: {}", outcome.summary()));
    let passed = outcomes.len() - failed.len();
    let (word, failed, unstable) =
        (if fails { "FAILED" } else { "ok" }, failed.len(), unstable.len());
    println!("test result: {word}. {passed} passed, {unstable} of them unstable; {failed} failed");
    if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
