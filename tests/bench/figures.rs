//! Median, minimum and p95 of samples. Pure.

/// What is said of some samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    /// The middle one, or the mean of the two in the middle.
    pub(crate) median: f64,
    pub(crate) min: f64,
    /// The smallest sample that 95 % of all do not exceed: the largest of fewer than 20.
    pub(crate) p95: f64,
}

impl Summary {
    /// `None` of no samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, count) = (sorted.first()?, sorted.len());
        let median = f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]);
        Some(Self { median, min, p95: sorted[(count * 95).div_ceil(100) - 1] })
    }
}
