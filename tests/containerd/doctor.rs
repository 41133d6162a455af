//! `doctor` beside a real containerd: what containerd knows is left alone, what it lost is mended.

use std::process::Command;

use serde_json::Value;

use crate::bed::Bed;
use crate::{Case, command, host};

pub(crate) const CASES: &[Case] = &[Case { alone: true, ..crate::own("doctor", doctor) }];

/// Exit code and report of this daemon alone.
fn report(bed: &Bed<'_>, args: &[&str]) -> (i32, Value) {
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_containerd-shim-berth-v1"));
    doctor.args(["doctor", "-json", "-state"]).arg(bed.daemon.dir().join("state")).args(args);
    doctor.env("BERTH_RUN_DIR", bed.daemon.dir().join("nowhere"));
    let output = doctor.output().unwrap();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), report)
}

fn left_behind(report: &Value) -> Vec<&str> {
    let all = report["findings"].as_array().unwrap().iter();
    all.filter(|it| it["topic"] == "leftovers").map(|it| it["what"].as_str().unwrap()).collect()
}

/// A running container is nobody's leftover; its shim is leaked when somebody has removed the bundle, but
/// as long as containerd lists it that is only told. A shim that dies while containerd is down leaves an
/// orphan, which `-fix` removes as the next containerd would.
fn doctor(bed: &Bed<'_>) {
    let ids = [bed.name("living"), bed.name("orphan"), bed.name("leaked")];
    let pids = ids.each_ref().map(|id| bed.start(&[], id, &["sleep", "1000"]));
    let (code, healthy) = report(bed, &["-fix"]);
    assert_eq!((code, left_behind(&healthy)), (0, vec!["nothing"]), "{healthy:#}");
    let runs = format!("containerd {}", bed.daemon.version.trim_end_matches(".x"));
    assert!(healthy.to_string().contains(&runs), "{runs}: {healthy:#}");

    let orphan = bed.shim_of(pids[1]);
    bed.restart("KILL", || {
        bed.kill_shim(orphan);
        command::until("the shim ends", || (!host::exists(orphan)).then_some(()));
        let (code, sick) = report(bed, &[]);
        let expected = format!("orphaned container {}/{}", bed.namespace, ids[1]);
        assert_eq!((code, left_behind(&sick).len()), (1, 1), "{sick:#}");
        assert!(left_behind(&sick)[0].starts_with(&expected), "{sick:#}");
        let (code, mended) = report(bed, &["-fix"]);
        assert_eq!((code, left_behind(&mended)), (0, vec!["nothing"]), "{mended:#}");
        assert!(!host::exists(pids[1]) && host::exists(pids[0]));
    });
    command::until("the task is gone", || bed.state(&ids[1]).is_none().then_some(()));
    bed.ctr(&["container", "delete", &ids[1]]).ok();

    let bundle = bed.daemon.dir().join("state/io.containerd.runtime.v2.task");
    let bundle = bundle.join(bed.namespace).join(&ids[2]);
    for mount in host::mounts(&format!("/{}/", ids[2])) {
        command::run(Command::new("umount").arg("-l").arg(mount), b"").ok();
    }
    std::fs::remove_dir_all(&bundle).unwrap();
    let (code, sick) = report(bed, &["-fix"]);
    assert_eq!((code, left_behind(&sick).len()), (1, 1), "{sick:#}");
    assert!(left_behind(&sick)[0].starts_with("leaked shim of "), "{sick:#}");
    assert!(sick.to_string().contains("containerd lists it: left alone"), "{sick:#}");
    assert!(host::exists(pids[2]));
    // What it says is what mends it.
    let findings = sick["findings"].as_array().unwrap();
    let mend = findings
        .iter()
        .find_map(|it| it["mend"]["command"].as_str().filter(|it| it.contains("task delete")));
    command::run(Command::new("sh").args(["-c", mend.unwrap()]), b"");
    command::until("the task is gone", || bed.state(&ids[2]).is_none().then_some(()));
    bed.ctr(&["container", "delete", &ids[2]]).ok();
    let (code, healthy) = report(bed, &[]);
    assert_eq!((code, left_behind(&healthy)), (0, vec!["nothing"]), "{healthy:#}");
    bed.remove(&ids[0]);
}
