//! Limits, metrics and their ends: what berth and the kernel say of a container's resources.

use crate::bed::Bed;
use crate::{Case, Shim, shared};

pub(crate) const CASES: &[Case] = &[shared("kill-paused", kill_paused)];

/// A paused container refuses exec at once and dies by SIGKILL, which v1's freezer holds back.
fn kill_paused(bed: &Bed<'_>) {
    let id = bed.name("a");
    bed.start(&[], &id, &["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    bed.ctr(&["task", "pause", &id]).ok();
    assert_eq!(bed.state(&id).as_deref(), Some("PAUSED"));
    let refused = bed.exec(&id, "e1", &["true"]).refused();
    if bed.shim != Shim::Stock {
        assert!(refused.contains("while it is paused"), "{refused}");
        bed.kill(&id, "SIGKILL");
        assert_eq!(bed.await_event(&id, "exit").status(), 137);
    } else {
        bed.ctr(&["task", "resume", &id]).ok(); // its kill through crun would hang on v1
        bed.kill(&id, "SIGKILL");
    }
    bed.remove(&id);
}
