//! The report as text and as JSON.

use std::fmt::Write;
use std::io::IsTerminal;

use serde_json::json;

use super::{Finding, Level, Report, Topic};
use crate::error::{Error, Result};

/// Findings of one kind that are shown to people.
const MOST: usize = 5;

/// For people; coloured on a terminal, unless `NO_COLOR` is set.
pub(super) fn text(report: &Report, fix: bool) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    paint(report, fix, std::io::stdout().is_terminal() && !plain)
}

fn paint(report: &Report, fix: bool, colour: bool) -> String {
    let in_colour = |code: &str, text: &str| match colour {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    };
    let mut text = String::new();
    for deed in &report.deeds {
        let (code, word) = if deed.error.is_none() { ("32", "mended") } else { ("31", "failed") };
        let _ = writeln!(text, "{}  {}", in_colour(code, word), line(&deed.what)); // a String takes all
        if let Some(error) = &deed.error {
            let _ = writeln!(text, "        {}", line(error));
        }
    }
    let mut topic = None;
    let mut same = (0, "");
    for (number, finding) in report.findings.iter().enumerate() {
        let what = finding.what.as_str();
        same = if same.1 == what { (same.0 + 1, what) } else { (1, what) };
        if same.0 > MOST {
            if report.findings.get(number + 1).is_none_or(|next| next.what != finding.what) {
                let _ = writeln!(text, "         and {} more: -json names them", same.0 - MOST);
            }
            continue;
        }
        if topic.replace(finding.topic) != Some(finding.topic) {
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}{}", in_colour("1", title(finding.topic)));
        }
        let (code, word) = level(finding.level);
        let place = finding.place.as_deref().map(|place| format!(": {}", line(place)));
        let what = line(&finding.what);
        let _ = writeln!(
            text,
            "  {}  {what}{}",
            in_colour(code, &format!("{word:<5}")),
            place.unwrap_or_default()
        );
        if let Some(why) = &finding.why {
            let _ = writeln!(text, "         {}", in_colour("2", &line(why)));
        }
        if let Some(mend) = &finding.mend {
            let _ = writeln!(text, "         # {}", line(&mend.command));
        }
    }
    let _ = writeln!(text, "\n{}", verdict(report, fix));
    text
}

/// On one line and without control characters: names of files and what programs print may have any.
fn line(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { '?' } else { one }).collect()
}

fn verdict(report: &Report, fix: bool) -> String {
    let bad: Vec<&Finding> =
        report.findings.iter().filter(|finding| finding.level > Level::Note).collect();
    if bad.is_empty() {
        return "healthy".into();
    }
    let (count, safe) = (bad.len(), bad.iter().filter(|finding| finding.is_safe()).count());
    let plural = if count == 1 { "" } else { "s" };
    match (fix, safe) {
        (_, 0) => format!("{count} thing{plural} to mend"),
        (false, _) => format!("{count} thing{plural} to mend, of which -fix does {safe}"),
        (true, _) => format!("{count} thing{plural} to mend, of which {safe} could not be done"),
    }
}

fn title(topic: Topic) -> &'static str {
    match topic {
        Topic::Host => "host",
        Topic::Configuration => "configuration",
        Topic::Runtimes => "runtimes",
        Topic::Containerd => "containerd",
        Topic::Leftovers => "left behind",
    }
}

fn level(level: Level) -> (&'static str, &'static str) {
    match level {
        Level::Ok => ("32", "ok"),
        Level::Note => ("36", "note"),
        Level::Warn => ("33", "warn"),
        Level::Fault => ("31", "fault"),
    }
}

/// For machines.
///
/// # Errors
/// [`Error::Sys`] if it cannot be encoded.
pub(super) fn json(report: &Report) -> Result<String> {
    let findings = report.findings.iter().map(|finding| {
        let mend = finding.mend.as_ref();
        let mend = mend.map(|it| json!({"command": it.command, "safe": it.act.is_some()}));
        json!({
            "topic": finding.topic,
            "level": finding.level,
            "what": finding.what,
            "where": finding.place,
            "why": finding.why,
            "mend": mend,
        })
    });
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "healthy": report.is_healthy(),
        "done": report.deeds,
        "findings": findings.collect::<Vec<_>>(),
    });
    let text = serde_json::to_string_pretty(&value);
    Ok(text.map_err(|error| Error::Sys { action: "encode", source: error.into() })? + "\n")
}

#[cfg(test)]
mod tests {
    use super::super::Deed;
    use super::*;

    fn report() -> Report {
        let host = Finding::new(Topic::Host, Level::Ok, "Linux 6.1");
        let stale = Finding::new(Topic::Leftovers, Level::Warn, "stale socket").at("/s/a\nb");
        let stale = stale.why("nobody listens").command("rm /s/a");
        Report { deeds: Vec::new(), findings: vec![host, stale] }
    }

    #[test]
    fn a_report_is_plain_or_the_same_in_colour() {
        let plain = paint(&report(), false, false);
        let expected = "host\n  ok     Linux 6.1\n\nleft behind\n  warn   stale socket: /s/a?b\n         \
                        nobody listens\n         # rm /s/a\n\n1 thing to mend\n";
        assert_eq!(plain, expected);
        let coloured = paint(&report(), false, true);
        assert!(coloured.contains("\x1b[33mwarn \x1b[0m  stale"), "{coloured}");
        let codes = ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[33m"];
        assert_eq!(codes.iter().fold(coloured, |text, code| text.replace(code, "")), plain);
    }

    #[test]
    fn many_of_a_kind_are_counted() {
        let stale = |number: usize| {
            Finding::new(Topic::Leftovers, Level::Warn, "stale socket").at(format!("/s/{number}"))
        };
        let other = Finding::new(Topic::Leftovers, Level::Warn, "other");
        for (count, expected) in [(5, None), (6, Some("and 1 more:")), (20, Some("and 15 more:"))] {
            let mut findings: Vec<_> = (0..count).map(stale).collect();
            findings.push(other.clone());
            let text = paint(&Report { deeds: Vec::new(), findings }, false, false);
            assert_eq!(text.matches("/s/").count(), 5, "{text}");
            assert_eq!(text.contains("more:"), expected.is_some(), "{text}");
            assert!(
                text.contains(expected.unwrap_or_default()) && text.contains("other"),
                "{text}"
            );
            assert!(text.ends_with(&format!("{} things to mend\n", count + 1)), "{text}");
        }
    }

    #[test]
    fn a_report_says_what_was_done_and_whether_all_is_well() {
        let mut report = report();
        let deed = |error: Option<&str>| Deed {
            what: "a".into(),
            command: "c".into(),
            error: error.map(str::to_owned),
        };
        report.deeds = vec![deed(None), deed(Some("no"))];
        assert!(
            paint(&report, true, false).starts_with("mended  a\nfailed  a\n        no\n\nhost")
        );
        let value: serde_json::Value = serde_json::from_str(&json(&report).unwrap()).unwrap();
        assert_eq!(
            (value["healthy"].clone(), value["done"][1]["error"].clone()),
            (false.into(), "no".into())
        );
        let stale = &value["findings"][1];
        assert_eq!(
            (stale["level"].clone(), stale["where"].clone()),
            ("warn".into(), "/s/a\nb".into())
        );
        assert_eq!(stale["mend"], json!({"command": "rm /s/a", "safe": false}));
        report.findings.pop();
        assert!(paint(&report, true, false).ends_with("\nhealthy\n") && report.is_healthy());
    }
}
