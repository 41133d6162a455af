//! What stands for tracing where it is built without the feature `otel`: nothing is recorded.

use std::future::Future;
use std::pin::Pin;

use crate::config::Tracing;
use crate::error::Result;

/// Makes spans of nothing.
#[derive(Clone, Default)]
pub(crate) struct Tracer;

/// What a span is to others.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Work of its own.
    Internal,
    /// It has another program do something.
    Client,
}

impl Tracer {
    /// Says that what was asked for is not there.
    pub(crate) fn decide(&self, config: &Tracing, _namespace: &str, _sandbox: &str) {
        const VARIABLES: [&str; 2] =
            ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if config.is_asked_for() || config.endpoint.is_none() && VARIABLES.iter().any(is_set) {
            log::warn!("no spans are sent: berth was built without the feature otel");
        }
    }

    /// Nothing is to be decided.
    pub(crate) fn is_undecided(&self) -> bool {
        false
    }

    /// No span.
    pub(crate) fn request<'a>(
        &self,
        _name: impl FnOnce() -> String,
        _metadata: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    ) -> Span {
        Span
    }

    /// No span.
    pub(crate) fn span(&self, _kind: Kind, _name: impl FnOnce() -> String) -> Span {
        Span
    }

    /// None.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (0, 0)
    }

    /// At once.
    pub(crate) async fn finish(&self) {}
}

/// No span.
pub(crate) fn span(_kind: Kind, _name: &'static str) -> Span {
    Span
}

/// Work of which nobody hears.
pub(crate) struct Span;

impl Span {
    /// It is not.
    pub(crate) fn is_recorded(&self) -> bool {
        false
    }

    /// Does `work`.
    pub(crate) async fn around<F: Future>(&self, work: Pin<&mut F>) -> F::Output {
        work.await
    }

    /// Nobody hears it.
    pub(crate) fn set<V>(&mut self, _key: &'static str, _value: V) {}

    /// Nobody hears it.
    pub(crate) fn fail(&mut self, _why: impl ToString) {}

    /// Nobody hears it.
    pub(crate) fn note<T>(&mut self, _result: &Result<T>) {}
}

/// Nothing is read.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(_text: &str) {}
