//! What a figure may be. Pure.

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Limit {
    /// Whether `value` is within it once both are rounded to `digits` places.
    pub(crate) fn is_met(self, value: f64, digits: usize) -> bool {
        let round = |value: f64| (value * 10f64.powi(i32::try_from(digits).unwrap_or(0))).round();
        match self {
            Self::AtMost(limit) => round(value) <= round(limit),
            Self::AtLeast(limit) => round(value) >= round(limit),
        }
    }

    /// The limit in words.
    pub(crate) fn say(self, digits: usize) -> String {
        match self {
            Self::AtMost(limit) => format!("≤ {limit:.digits$}"),
            Self::AtLeast(limit) => format!("≥ {limit:.digits$}"),
        }
    }
}
