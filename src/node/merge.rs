//! The metrics of many shims as those of one host: every metric once, with the series of all; pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::manage::escaped;

/// The metrics of a host.
#[derive(Debug, Default)]
pub(super) struct Host {
    metrics: BTreeMap<String, Metric>,
}

#[derive(Debug, Default)]
struct Metric {
    help: String,
    kind: String,
    lines: Vec<String>,
}

/// Whose a series is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner<'a> {
    pub(super) namespace: &'a str,
    pub(super) sandbox: &'a str,
    /// What tells it from one with the same namespace and id; empty if nothing has to.
    pub(super) socket: &'a str,
}

impl Host {
    /// Adds a metric that berth has about its shims.
    pub(super) fn declare(&mut self, name: &str, help: &str) {
        let metric = self.metrics.entry(name.to_owned()).or_default();
        (metric.help, metric.kind) = (help.to_owned(), "gauge".to_owned());
    }

    /// Adds one value of it.
    pub(super) fn add(&mut self, name: &str, owner: Owner<'_>, value: f64) {
        let metric = self.metrics.entry(name.to_owned()).or_default();
        metric.lines.push(labelled(&format!("{name} {value}"), owner).unwrap_or_default());
    }

    /// Adds what one shim said, in Prometheus' text format. A line that makes no sense is left out, so that
    /// one shim does not spoil the others.
    pub(super) fn merge(&mut self, text: &str, owner: Owner<'_>) {
        let mut current = None;
        for line in text.lines() {
            if let Some(declaration) = line.strip_prefix("# ") {
                let mut words = declaration.splitn(3, ' ');
                let (what, name) = (words.next().unwrap_or_default(), words.next());
                let Some(name) = name.filter(|_| matches!(what, "HELP" | "TYPE")) else { continue };
                let metric = self.metrics.entry(name.to_owned()).or_default();
                let text = if what == "HELP" { &mut metric.help } else { &mut metric.kind };
                if text.is_empty() {
                    text.push_str(words.next().unwrap_or_default());
                }
                current = Some(name.to_owned());
                continue;
            }
            let fits = |name: &&String| line.starts_with(name.as_str());
            let Some(name) = current.as_ref().filter(fits) else { continue };
            if let (Some(line), Some(metric)) = (labelled(line, owner), self.metrics.get_mut(name))
            {
                metric.lines.push(line);
            }
        }
    }

    /// All of it, sorted by name.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (name, metric) in self.metrics.iter().filter(|(_, metric)| !metric.lines.is_empty()) {
            // A String takes all.
            let _ = write!(text, "# HELP {name} {}\n# TYPE {name} {}\n", metric.help, metric.kind);
            for line in &metric.lines {
                text += line;
                text.push('\n');
            }
        }
        text
    }
}

/// A sample with the labels of its owner; an empty one is none, as Prometheus has it.
fn labelled(line: &str, owner: Owner<'_>) -> Option<String> {
    let at = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(at);
    let (namespace, sandbox) = (escaped(owner.namespace), escaped(owner.sandbox));
    let mut own = format!("{name}{{namespace=\"{namespace}\",sandbox=\"{sandbox}\"");
    if !owner.socket.is_empty() {
        let _ = write!(own, ",socket=\"{}\"", escaped(owner.socket));
    }
    Some(match rest.strip_prefix('{') {
        Some(labels) => format!("{own},{labels}"),
        None => format!("{own}}}{rest}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_all_shims_stand_together_under_one_metric() {
        let shim = "# HELP b_total Number of b.\n# TYPE b_total counter\nb_total{x=\"y z\"} 1\n\
                    # HELP c Some c.\n# TYPE c gauge\nc 2\nstray 1\nc\n# EOF\n";
        let mut host = Host::default();
        host.declare("a_up", "Whether it answers.");
        for (sandbox, socket, up) in [("one", "", 1.0), ("t\"wo", "12345678", 0.0)] {
            let owner = Owner { namespace: "ns", sandbox, socket };
            host.add("a_up", owner, up);
            host.merge(shim, owner);
        }
        let expected = "# HELP a_up Whether it answers.\n# TYPE a_up gauge\n\
             a_up{namespace=\"ns\",sandbox=\"one\"} 1\na_up{namespace=\"ns\",sandbox=\"t\\\"wo\",socket=\"12345678\"} 0\n\
             # HELP b_total Number of b.\n# TYPE b_total counter\n\
             b_total{namespace=\"ns\",sandbox=\"one\",x=\"y z\"} 1\n\
             b_total{namespace=\"ns\",sandbox=\"t\\\"wo\",socket=\"12345678\",x=\"y z\"} 1\n\
             # HELP c Some c.\n# TYPE c gauge\n\
             c{namespace=\"ns\",sandbox=\"one\"} 2\nc{namespace=\"ns\",sandbox=\"t\\\"wo\",socket=\"12345678\"} 2\n";
        assert_eq!(host.text(), expected);
    }
}
