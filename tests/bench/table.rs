//! The results as a Markdown table and as JSON lines. Pure.

use serde_json::json;

use crate::contest::Line;

/// A column.
pub(crate) struct Figure {
    /// Its head.
    pub(crate) name: &'static str,
    /// Its name in JSON.
    pub(crate) key: &'static str,
    /// Decimal places.
    pub(crate) digits: usize,
}

/// Two lines of head, then a line for each subject of each row: `median (minimum–p95) ratio`, the
/// ratio of the medians to the row's first subject.
pub(crate) fn markdown(figures: &[Figure], lines: &[Line]) -> String {
    let heads: Vec<_> = figures.iter().map(|figure| format!(" {} |", figure.name)).collect();
    let mut text = format!("| | |{}\n|---|---|{}\n", heads.concat(), "---|".repeat(heads.len()));
    let mut base = None;
    for line in lines {
        base = if line.base { Some(line) } else { base };
        let row = if line.base { line.row.as_str() } else { "" };
        let cells = figures.iter().enumerate().map(|(index, figure)| {
            format!(" {} |", cell(line, base.filter(|_| !line.base), index, figure.digits))
        });
        text += &format!("| {row} | {} |{}\n", line.subject, cells.collect::<String>());
    }
    text
}

fn cell(line: &Line, base: Option<&Line>, index: usize, digits: usize) -> String {
    let Some(summary) = line.summary(index) else { return "–".into() };
    let [median, min, p95] =
        [summary.median, summary.min, summary.p95].map(|value| format!("{value:.digits$}"));
    let ratio = base.and_then(|base| ratio(line, base, index));
    let places = |ratio: f64| if ratio < 0.1 { 4 } else { 2 };
    let ratio = ratio.map(|ratio| format!(" **×{ratio:.*}**", places(ratio))).unwrap_or_default();
    format!("{median} ({min}–{p95}){ratio}")
}

fn ratio(line: &Line, base: &Line, index: usize) -> Option<f64> {
    let base = base.summary(index)?.median;
    let ratio = line.summary(index)?.median / base;
    ratio.is_finite().then_some(ratio)
}

/// A JSON object for each figure of each line.
pub(crate) fn json(part: &str, runtime: &str, figures: &[Figure], lines: &[Line]) -> Vec<String> {
    let mut objects = Vec::new();
    let mut base = None;
    for line in lines {
        base = if line.base { Some(line) } else { base };
        for (index, figure) in figures.iter().enumerate() {
            let Some(summary) = line.summary(index) else { continue };
            let object = json!({
                "part": part, "runtime": runtime, "row": line.row, "shim": line.subject,
                "figure": figure.key, "median": summary.median, "min": summary.min,
                "p95": summary.p95, "ratio": base.and_then(|base| ratio(line, base, index)),
                "samples": line.values(index),
            });
            objects.push(object.to_string());
        }
    }
    objects
}
