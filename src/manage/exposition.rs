//! Prometheus' text format 0.0.4, and OpenMetrics 1.0, which differs in little; pure.

use std::fmt::{Display, Write};

use crate::meters::{BOUNDS, Series};

/// The type of an answer in Prometheus' own format.
pub(crate) const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The type of an answer in OpenMetrics.
pub(crate) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It only grows; its name ends with `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

/// A text that grows by a metric at a time.
pub(crate) struct Exposition {
    text: String,
    open: bool,
}

impl Exposition {
    /// An empty one, in OpenMetrics or not.
    pub(crate) fn new(open: bool) -> Self {
        Self { text: String::new(), open }
    }

    /// Begins a metric.
    pub(crate) fn metric(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // OpenMetrics names the family without what its samples end with.
        let family = if self.open { name.strip_suffix("_total").unwrap_or(name) } else { name };
        // A String takes all.
        let _ = write!(self.text, "# HELP {family} {help}\n# TYPE {family} {kind}\n");
    }

    /// Adds a sample of the metric that was begun last.
    pub(crate) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text += name;
        for (number, (label, text)) in labels.iter().enumerate() {
            let separator = if number == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{separator}{label}=\"{}\"", escaped(text));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// A metric with one sample and no labels.
    pub(crate) fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.metric(name, kind, help);
        self.sample(name, &[], value);
    }

    /// A metric of histograms, whose names and outcomes go by these `labels`.
    pub(crate) fn histograms(&mut self, name: &str, help: &str, labels: [&str; 2], all: &[Series]) {
        self.metric(name, Kind::Histogram, help);
        let bucket = format!("{name}_bucket");
        for one in all {
            let own = [(labels[0], one.name), (labels[1], one.outcome)];
            let mut count = 0_u64;
            let bounds = BOUNDS.iter().map(|micros| seconds(*micros)).chain(["+Inf".into()]);
            for (bound, more) in bounds.zip(one.counts) {
                count += u64::from(more);
                self.sample(&bucket, &[own[0], own[1], ("le", &bound)], count);
            }
            self.sample(&format!("{name}_sum"), &own, seconds(one.sum));
            self.sample(&format!("{name}_count"), &own, count);
        }
    }

    /// The whole text.
    pub(crate) fn finish(mut self) -> String {
        if self.open {
            self.text += "# EOF\n";
        }
        self.text
    }
}

/// Microseconds as seconds.
fn seconds(micros: u64) -> String {
    let (whole, rest) = (micros / 1_000_000, micros % 1_000_000);
    let text = format!("{whole}.{rest:06}");
    let short = text.trim_end_matches('0');
    if short.ends_with('.') { format!("{short}0") } else { short.to_owned() }
}

/// A label's value, as both formats want it.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::meters::Timings;

    #[test]
    fn metrics_are_written_as_prometheus_reads_them() {
        let timings = Timings::default();
        for micros in [100, 700, 700, 3_000_000, 60_000_000] {
            timings.note("State", "OK", Duration::from_micros(micros));
        }
        let write = |open| {
            let mut text = Exposition::new(open);
            text.metric("a_total", Kind::Counter, "Number of a.");
            text.sample("a_total", &[("x", "q\"b\\n\n"), ("y", "")], 1);
            text.single("b", Kind::Gauge, "Some b.", 0.5);
            text.histograms("c_seconds", "Times.", ["method", "code"], &timings.all());
            text.finish()
        };
        let plain = write(false);
        let expected = "# HELP a_total Number of a.\n# TYPE a_total counter\n\
                        a_total{x=\"q\\\"b\\\\n\\n\",y=\"\"} 1\n\
                        # HELP b Some b.\n# TYPE b gauge\nb 0.5\n\
                        # HELP c_seconds Times.\n# TYPE c_seconds histogram\n\
                        c_seconds_bucket{method=\"State\",code=\"OK\",le=\"0.0005\"} 1\n\
                        c_seconds_bucket{method=\"State\",code=\"OK\",le=\"0.001\"} 3\n";
        assert!(plain.starts_with(expected), "{plain}");
        let end = "le=\"30.0\"} 4\nc_seconds_bucket{method=\"State\",code=\"OK\",le=\"+Inf\"} 5\n\
                   c_seconds_sum{method=\"State\",code=\"OK\"} 63.0015\n\
                   c_seconds_count{method=\"State\",code=\"OK\"} 5\n";
        assert!(plain.ends_with(end), "{plain}");
        let open = write(true);
        assert!(open.starts_with("# HELP a Number of a.\n# TYPE a counter\na_total{"), "{open}");
        assert!(open.ends_with("# EOF\n"));
    }

    #[test]
    fn times_are_written_in_seconds() {
        let cases = [
            (0, "0.0"),
            (500, "0.0005"),
            (1_000_000, "1.0"),
            (30_000_000, "30.0"),
            (61, "0.000061"),
        ];
        for (micros, expected) in cases {
            assert_eq!(seconds(micros), expected);
        }
    }
}
