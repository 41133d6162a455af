//! containerd restarted under running containers, and shims killed.

use std::process::Stdio;

use crate::bed::Bed;
use crate::{Case, Shim, alone, command, host, shared};

pub(crate) const CASES: &[Case] = &[
    shared("shim-killed", shim_killed),
    shared("group-shim-killed", group_shim_killed),
    alone("containerd-terminated", containerd_terminated),
    alone("containerd-killed", containerd_killed),
    alone("exit-while-containerd-is-down", exit_while_down),
    alone("shim-killed-while-containerd-is-down", shim_killed_while_down),
];

/// Has children, one of which ignores SIGTERM.
const FAMILY: &str = "sleep 1000 & (trap '' TERM; sleep 1000) & wait";

/// A killed shim takes its container with it; the name is free again.
fn shim_killed(bed: &Bed<'_>) {
    let id = bed.name("a");
    let pid = bed.start(&[], &id, &["sh", "-c", FAMILY]);
    bed.kill_shim(bed.shim_of(pid));
    assert_eq!(bed.await_event(&id, "exit").status(), 137);
    command::until("the task is gone", || bed.state(&id).is_none().then_some(()));
    bed.ctr(&["container", "delete", &id]).ok();
    bed.check_clean();
    assert_eq!(bed.run_printing(&id, "echo again; read end; exit 0", "again\n").ok(), "again");
}

/// A killed shim of a group takes all its containers with it.
fn group_shim_killed(bed: &Bed<'_>) {
    let annotation = format!("io.containerd.runc.v2.group={}", bed.name("pod"));
    let ids = [bed.name("a"), bed.name("b"), bed.name("c")];
    let flags = ["--annotation", annotation.as_str()];
    let pids = ids.each_ref().map(|id| bed.start(&flags, id, &["sh", "-c", FAMILY]));
    bed.kill_shim(bed.shim_of(pids[0]));
    for id in &ids {
        assert_eq!(bed.await_event(id, "exit").status(), 137, "{id}");
        command::until("the task is gone", || bed.state(id).is_none().then_some(()));
        bed.ctr(&["container", "delete", id]).ok();
    }
}

fn containerd_terminated(bed: &Bed<'_>) {
    containerd_restarted(bed, "TERM");
}

fn containerd_killed(bed: &Bed<'_>) {
    containerd_restarted(bed, "KILL");
}

/// A container outlives containerd, keeps writing, and obeys the next one.
fn containerd_restarted(bed: &Bed<'_>, signal: &str) {
    let id = bed.name("a");
    let script = "while :; do echo tick; sleep 0.05; done";
    let mut run = bed.run_command(&["--detach"], &id, &["sh", "-c", script]);
    run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command::wait(&mut run.spawn().unwrap(), "ctr run --detach").success());
    let pid = bed.init_pid(&id);
    bed.restart(signal, || ());

    assert_eq!(bed.init_pid(&id), pid);
    assert_eq!(bed.exec(&id, "e1", &["sh", "-c", "echo in; exit 6"]).status, 6);
    read_tick(bed, &id);
    assert_eq!(bed.state(&id).as_deref(), Some("RUNNING"));
    bed.kill(&id, "SIGKILL");
    assert_eq!(bed.await_event(&id, "exit").status(), 137);
    bed.remove(&id);
}

/// Reads from the container's output what it writes now.
fn read_tick(bed: &Bed<'_>, id: &str) {
    use std::io::Read;
    let mut attach = bed.command();
    attach.args(["task", "attach", id]);
    attach.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = attach.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = [0; 5];
        stdout.read_exact(&mut text).map(|()| text)
    });
    let finished = command::poll(|| reader.is_finished().then_some(()));
    // Not SIGTERM, which the client hands on to the container.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(finished.is_some(), "nothing to read");
    let text = reader.join().unwrap().unwrap();
    assert!(text.starts_with(b"tick") || text.ends_with(b"tick") || text.contains(&b'\n'));
}

/// A container that ends while there is no containerd is found stopped by the next one. Under the
/// stock shim later versions than 1.6 remove it, and nobody learns how it ended.
fn exit_while_down(bed: &Bed<'_>) {
    let id = bed.name("a");
    let pid = bed.start(&[], &id, &["sleep", "1000"]);
    bed.restart("KILL", || {
        host::signal(pid, "KILL");
        command::until("the program ends", || (!host::exists(pid)).then_some(()));
    });
    command::until("the container's end is known", || {
        let lost = bed.shim == Shim::Stock;
        bed.state(&id).map_or(lost, |state| state == "STOPPED").then_some(())
    });
    if bed.state(&id).is_some() {
        let deleted = bed.ctr(&["task", "delete", &id]);
        assert!(deleted.stderr.contains("137"), "the exit status: {}", deleted.stderr);
    }
    bed.ctr(&["container", "delete", &id]).ok();
}

/// A container whose shim is killed while there is no containerd is removed by the next one.
fn shim_killed_while_down(bed: &Bed<'_>) {
    let id = bed.name("a");
    let pid = bed.start(&[], &id, &["sh", "-c", FAMILY]);
    let shim = bed.shim_of(pid);
    bed.restart("KILL", || {
        bed.kill_shim(shim);
        command::until("the shim ends", || (!host::exists(shim)).then_some(()));
    });
    command::until("the task is gone", || bed.state(&id).is_none().then_some(()));
    bed.ctr(&["container", "delete", &id]).ok();
}
