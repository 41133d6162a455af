//! Checkpoint and restore with a real CRIU.

use std::path::Path;

use crate::Case;

/// Its cases, where `programs` has a CRIU beside it.
pub(crate) fn cases(_programs: &Path) -> &'static [Case] {
    &[]
}
