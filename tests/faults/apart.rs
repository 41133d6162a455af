//! A test in namespaces of its own: this program is run once more, for that test alone.

use std::env;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::APART;

/// True in the namespaces. Outside, runs the test `name` there, and fails as it fails: `unshare` are the
/// options of unshare(1) beside a PID and a mount namespace, `setup` is shell that comes first.
#[track_caller]
pub(super) fn is_apart(name: &str, unshare: &[&str], setup: &str) -> bool {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if env::var_os(APART).is_some() {
        return true;
    }
    let mark = format!("{}-{}apart", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
    // The shell is the first process, which takes in orphans. All of them end with it.
    let script = format!("{setup}\n\"$@\"\nexit $?");
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).args(unshare);
    command.args(["sh", "-c", &script, "sh"]).arg(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let output = command.env(APART, mark).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && said.contains("1 passed");
    assert!(
        passed,
        "{name}, apart: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    false
}
