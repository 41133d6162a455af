//! What berth may cost, beside what it and the stock shim cost. Pure.

use crate::contest::Line;
use crate::limit::Limit;
use crate::table::Figure;
use crate::{delete, exec, idle, life, memory};

/// The lines of a part that was measured with one runtime.
pub(crate) struct Measured {
    pub(crate) part: &'static str,
    pub(crate) runtime: String,
    pub(crate) figures: &'static [Figure],
    pub(crate) lines: Vec<Line>,
}

/// What is compared with a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// The median.
    Value,
    /// The median, divided by that of the row's first subject.
    Ratio,
    /// The smallest sample, divided by that of the row's first subject: of wall clock, what it takes when
    /// nobody else wants the processors.
    Shortest,
}

/// A line of the table.
pub(crate) struct Budget {
    pub(crate) metric: &'static str,
    pub(crate) part: &'static str,
    pub(crate) runtime: &'static str,
    pub(crate) row: &'static str,
    /// The figure's key.
    pub(crate) figure: &'static str,
    /// Whose it is: berth, in a way of working.
    pub(crate) subject: &'static str,
    pub(crate) of: Of,
    pub(crate) limit: Limit,
    pub(crate) digits: usize,
}

const BERTH: &str = "berth";
const HANDOVER: &str = "berth, handover";
const RELAY: &str = "berth, relay";

#[rustfmt::skip]
pub(crate) const BUDGETS: &[Budget] = &[
    ratio("CPU of a life / bare, runc", "life", "runc", life::ROW, "cpu_ms", 1.20),
    ratio("CPU of a life / bare, crun", "life", "crun", life::ROW, "cpu_ms", 1.35),
    value("of it: start command, ms", "life", "crun", life::ROW, "start_ms", 1.2, 2),
    value("of it: shim itself, ms", "life", "crun", life::ROW, "shim_ms", 2.0, 2),
    value("of it: delete command, ms", "life", "crun", life::ROW, "delete_ms", 1.0, 2),
    Budget { of: Of::Shortest, ..ratio("wall clock of a life / bare, runc", "life", "runc", life::ROW, "wall_ms", 1.15) },
    Budget { of: Of::Shortest, ..ratio("wall clock of a life / bare, crun", "life", "crun", life::ROW, "wall_ms", 1.30) },
    ratio("CPU of an exec of `true` / bare, runc", "exec", "runc", exec::SERIAL, "cpu_ms", 1.03),
    ratio("CPU of an exec of `true` / bare, crun", "exec", "crun", exec::SERIAL, "cpu_ms", 1.10),
    Budget { limit: Limit::AtLeast(200.0), ..value("10 execs at once, per second, crun", "exec", "crun", exec::AT_ONCE, "per_second", 0.0, 0) },
    value("private dirty KiB, 1 container", "memory", "runc", memory::ONE, "private_dirty_kib", 350.0, 0),
    value("… after 200 execs", "memory", "runc", memory::EXECS_200, "private_dirty_kib", 390.0, 0),
    value("… after 1,000 execs", "memory", "runc", memory::EXECS_1000, "private_dirty_kib", 390.0, 0),
    value("… pod of 10", "memory", "runc", memory::POD, "private_dirty_kib", 550.0, 0),
    value("PSS KiB per shim, 50 shims", "memory", "runc", memory::SHIMS, "pss_kib", 400.0, 0),
    value("resident KiB, 1 container", "memory", "runc", memory::ONE, "resident_kib", 3000.0, 0),
    value("threads, 1 container idle", "memory", "runc", memory::ONE, "threads", 2.0, 0),
    value("descriptors, 1 container idle", "memory", "runc", memory::ONE, "descriptors", 14.0, 0),
    value("descriptors, pod of 10", "memory", "runc", memory::POD, "descriptors", 45.0, 0),
    value("idle: CPU ms in 65 s", "idle", "runc", idle::ROW, "cpu_ms", 0.5, 2),
    value("idle: wake-ups per second", "idle", "runc", idle::ROW, "wake_ups_per_s", 0.0, 2),
    Budget { subject: HANDOVER, ..value("stdout to a FIFO: shim CPU s per GiB", "io", "runc", "1 MiB writes, init", "cpu_s_per_gib", 0.01, 3) },
    Budget { subject: HANDOVER, ..value("… per million 64-byte writes", "io", "runc", "64-byte writes, init", "cpu_s_per_million_writes", 0.01, 3) },
    Budget { subject: RELAY, ..value("through the relay: s per GiB", "io", "runc", "1 MiB writes, init", "cpu_s_per_gib", 0.2, 3) },
    Budget { subject: RELAY, ..value("… per million 64-byte writes", "io", "runc", "64-byte writes, init", "cpu_s_per_million_writes", 0.2, 3) },
    value("Delete of a task never started, ms", "delete", "runc", delete::ROW, "ms", 50.0, 1),
    Budget { of: Of::Ratio, digits: 2, ..value("a Stats call's CPU / stock", "stats", "runc", "a Stats call", "cpu_us", 1.0 / 3.0, 0) },
];

const fn value(
    metric: &'static str,
    part: &'static str,
    runtime: &'static str,
    row: &'static str,
    figure: &'static str,
    most: f64,
    digits: usize,
) -> Budget {
    let (of, limit) = (Of::Value, Limit::AtMost(most));
    Budget { metric, part, runtime, row, figure, subject: BERTH, of, limit, digits }
}

const fn ratio(
    metric: &'static str,
    part: &'static str,
    runtime: &'static str,
    row: &'static str,
    figure: &'static str,
    most: f64,
) -> Budget {
    Budget { of: Of::Ratio, ..value(metric, part, runtime, row, figure, most, 2) }
}

/// The table of all budgets that were measured, and which were missed.
pub(crate) fn table(measured: &[Measured], others: &[String]) -> (String, Vec<&'static str>) {
    let heads: String = others.iter().map(|name| format!(" {name} |")).collect();
    let mut text = format!(
        "| metric |{heads} berth | budget | |\n|---|{}---|---|---|\n",
        "---|".repeat(others.len())
    );
    let mut missed = Vec::new();
    for budget in BUDGETS {
        let Some(found) = budget.find(measured, budget.subject) else { continue };
        let met = budget.limit.is_met(found, budget.digits);
        if !met {
            missed.push(budget.metric);
        }
        let say = |value: f64| format!("{value:.*}", budget.digits);
        let cells = others.iter().map(|name| {
            format!(" {} |", budget.find(measured, name).map_or_else(|| "–".into(), say))
        });
        let cells: String = cells.collect();
        let mark = if met { "✓" } else { "missed" };
        let limit = budget.limit.say(budget.digits);
        text += &format!("| {} |{cells} {} | {limit} | {mark} |\n", budget.metric, say(found));
    }
    (text, missed)
}

impl Budget {
    /// What `subject` came to.
    fn find(&self, measured: &[Measured], subject: &str) -> Option<f64> {
        let of = |one: &&Measured| one.part == self.part && one.runtime == self.runtime;
        let Measured { figures, lines, .. } = measured.iter().find(of)?;
        let index = figures.iter().position(|figure| figure.key == self.figure)?;
        let mut row = lines.iter().filter(|line| line.row == self.row);
        let line = row.clone().find(|line| line.subject == subject)?;
        let own = line.summary(index)?;
        let mut base = || row.find(|line| line.base)?.summary(index);
        match self.of {
            Of::Value => Some(own.median),
            Of::Ratio => Some(own.median / base()?.median),
            Of::Shortest => Some(own.min / base()?.min),
        }
    }
}
