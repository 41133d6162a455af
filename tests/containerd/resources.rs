//! Limits, metrics and their ends: what berth and the kernel say of a container's resources.

use crate::Case;

pub(crate) const CASES: &[Case] = &[];
