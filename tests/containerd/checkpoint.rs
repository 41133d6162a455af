//! Checkpoint and restore with a real CRIU.
//!
//! Every containerd takes a checkpoint of berth's containers with `ctr container checkpoint` and restores it
//! with `ctr container restore --live`. The options of `ctr task checkpoint` reach only containerd's own shim
//! before 2.0.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bed::Bed;
use crate::{Case, Runtime, Shim, command, shared};

const RESTORE: Case = shared("checkpoint-restore", checkpoint_restore);
const EXIT: Case = shared("checkpoint-exit", checkpoint_exit);
const REFUSED: Case = shared("checkpoint-refused", checkpoint_refused);

/// Its cases for a runtime, where CRIU was fetched. Debian's crun is built without it.
pub(crate) fn cases(
    programs: &Path,
    version: &str,
    runtime: Runtime,
    shim: Shim,
) -> &'static [Case] {
    let is_told = shim == Shim::Stock || !version.starts_with("1.");
    match runtime {
        _ if !program(programs).exists() => &[],
        Runtime::Runc if is_told => &[RESTORE, EXIT],
        Runtime::Runc => &[RESTORE],
        Runtime::Crun => &[REFUSED],
    }
}

/// Where `packaging/fetch-containerd.sh` puts it, seen from a containerd's programs.
pub(crate) fn program(programs: &Path) -> PathBuf {
    programs.join("../../criu/bin/criu")
}

/// Whether CRIU can do its work on this kernel; says so if not.
fn works(bed: &Bed<'_>) -> bool {
    let mut said = String::new();
    // Others may use up the host's inotify instances for a moment, of which it makes one.
    let answer = command::poll(|| {
        let check = command::run(Command::new(program(bed.daemon.programs())).arg("check"), b"");
        said.clone_from(&check.stderr);
        (check.status == 0 || !said.contains("inotify")).then_some(check.status == 0)
    });
    if answer != Some(true) {
        eprintln!("CRIU CANNOT WORK HERE: skipped; `criu check` says: {said}");
    }
    answer == Some(true)
}

/// Counts in a file of its own, and ends with 7 when it is told to.
const COUNTER: &str =
    "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i >/dev/count; sleep 0.05; done";

/// The counter's number.
fn count(bed: &Bed<'_>, id: &str, exec: &str) -> u32 {
    let output =
        bed.exec(id, exec, &["sh", "-c", "while ! [ -s /dev/count ]; do :; done; cat /dev/count"]);
    output.ok().parse().unwrap()
}

/// What was saved goes on in another container, whose status is its own.
fn checkpoint_restore(bed: &Bed<'_>) {
    if !works(bed) {
        return;
    }
    let (id, restored) = (bed.name("a"), bed.name("b"));
    bed.start(&[], &id, &["sh", "-c", COUNTER]);
    let saved = command::until("it counts", || Some(count(bed, &id, "e")).filter(|n| *n > 20));
    let image = format!("checkpoint/{}-{}-{}:1", bed.daemon.version, bed.shim.runtime_name(), id);
    bed.ctr(&["container", "checkpoint", "--image", "--task", "--rw", &id, &image]).ok();
    if bed.shim == Shim::Berth {
        bed.await_event(&id, "checkpointed");
    }
    assert!(count(bed, &id, "e2") >= saved, "it went on");
    bed.kill(&id, "SIGTERM");
    assert_eq!(bed.await_event(&id, "exit").status(), 7);
    bed.remove(&id);

    bed.ctr(&["container", "restore", "--live", "--rw", &restored, &image]).ok();
    assert_eq!(bed.state(&restored).as_deref(), Some("RUNNING"));
    assert!(count(bed, &restored, "e") >= saved, "it began anew");
    bed.kill(&restored, "SIGTERM");
    assert_eq!(bed.await_event(&restored, "exit").status(), 7);
    bed.remove(&restored);
    bed.expect_events(
        &restored,
        &["create", "start", "exec-added e", "exec-started e", "exit e", "exit", "delete"],
    );
    bed.ctr(&["image", "rm", &image]).ok();
    bed.ctr(&["snapshot", "rm", &restored]);
}

/// `--exit` ends the container; the files are where they are wanted.
fn checkpoint_exit(bed: &Bed<'_>) {
    if !works(bed) {
        return;
    }
    let id = bed.name("a");
    bed.start(&[], &id, &["sh", "-c", COUNTER]);
    let dir = bed.daemon.dir().join(&id);
    let [image, work] = ["image", "work"].map(|name| dir.join(name).display().to_string());
    fs::create_dir(&dir).unwrap();
    let paths = ["--image-path", &image, "--work-path", &work];
    bed.ctr(&[&["task", "checkpoint", "--exit"], &paths[..], &[&id]].concat()).ok();
    assert_eq!(bed.await_event(&id, "exit").status(), 137);
    bed.await_state(&id, "STOPPED");
    for file in [Path::new(&image).join("inventory.img"), Path::new(&work).join("dump.log")] {
        assert!(file.exists(), "{}", file.display());
    }
    bed.delete(&id);
    if bed.shim == Shim::Berth {
        let events = ["create", "start", "paused", "checkpointed", "exit", "delete"];
        bed.expect_events(&id, &events);
    }
    for image in bed.ctr(&["image", "list", "-q"]).ok().lines().filter(|name| name.contains(&id)) {
        bed.ctr(&["image", "rm", image]).ok();
    }
    fs::remove_dir_all(&dir).unwrap();
}

/// A runtime without checkpoints is named, and the container goes on.
fn checkpoint_refused(bed: &Bed<'_>) {
    let id = bed.name("a");
    bed.start(&[], &id, &["sh", "-c", COUNTER]);
    let image = bed.daemon.dir().join(&id).display().to_string();
    let error = bed.ctr(&["task", "checkpoint", "--image-path", &image, &id]).refused();
    if bed.shim == Shim::Berth {
        assert!(error.contains("no `checkpoint`") && error.contains("such as runc"), "{error}");
    }
    assert_eq!(bed.state(&id).as_deref(), Some("RUNNING"));
    let _ = fs::remove_dir_all(&image);
    bed.remove(&id);
}
