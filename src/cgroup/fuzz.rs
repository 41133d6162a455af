//! See [`crate::fuzz`].

use super::hierarchy::Hierarchies;
use super::{oom, stats};

/// The text stands for every file in turn; of mount table and membership, one is in front of a NUL.
pub(crate) fn texts(text: &str) {
    let (mounts, members) = text.split_once('\0').unwrap_or((text, "0::/own\n1:memory:/own\n"));
    let hierarchies = Hierarchies::parse(mounts);
    let _ = hierarchies.own(members, "0::/\n1:memory:/\n");
    let _ = hierarchies.roots().count();
    oom::fuzz(text);
    stats::fuzz(text);
}
