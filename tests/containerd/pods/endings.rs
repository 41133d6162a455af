//! How containers and pods end: asked, forced, out of memory, without their shim, without containerd.

use std::time::Instant;

use crate::bed::Bed;
use crate::cri::messages::{EXITED, NOT_READY, READY, RUNNING, Resources};
use crate::cri::{Cri, setup};
use crate::{Case, Shim, command, host, pod, pods_alone};

pub(crate) const CASES: &[Case] = &[
    pod("pod-stop", stop),
    pod("pod-oom", oom),
    pod("pod-shim-killed", shim_killed),
    pod("pod-sandbox-killed", sandbox_killed),
    pods_alone("pod-containerd-restarted", containerd_restarted),
];

/// A container gets its signal and its grace; then, or with none, it is killed with its children.
fn stop(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let wait = "while :; do sleep 0.05; done";
    let cases = [
        ("graceful", format!("trap 'exit 7' TERM; echo up; {wait}"), 20, 7),
        ("stubborn", format!("trap '' TERM; sleep 1000 & echo up; {wait}"), 1, 137),
        ("forced", format!("trap 'exit 7' TERM; echo up; {wait}"), 0, 137),
    ];
    for (name, script, grace, status) in cases {
        let container = pod.start(name, &["sh", "-c", &script]);
        command::until("the trap is set", || {
            let log = std::fs::read_to_string(pod.log(name)).unwrap_or_default();
            log.contains(" up").then_some(())
        });
        let began = Instant::now();
        pod.stop(&container, grace);
        assert!(began.elapsed().as_secs() < 15, "{name}: {:?}", began.elapsed());
        let ended = pod.status(&container);
        assert_eq!((ended.state, ended.exit_code), (EXITED, status), "{name}");
        let left = pod.processes().into_iter().find(|process| process.mentions(&container));
        assert!(left.is_none(), "{name}: {}", left.unwrap().describe());
        pod.stop(&container, 0); // again, which is no failure
    }
    pod.stop_all();
    assert_eq!(pod.state().state, NOT_READY);
    pod.remove();
}

/// A container that outgrows its limit is reported as such, the one beside it lives.
fn oom(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let beside = pod.start("beside", &["sleep", "1000"]);
    let container = pod.start_with("c", &["tail", "/dev/zero"], |container| {
        container.linux().resources =
            Some(Resources { memory_limit_in_bytes: 16 << 20, ..Resources::default() });
    });
    let ended = pod.await_exit(&container);
    assert_eq!(ended.exit_code, 137);
    let mut reason = String::new();
    command::poll(|| {
        reason = pod.status(&container).reason;
        (reason == "OOMKilled").then_some(())
    });
    // The stock shim's OOM event may come too late, or not at all.
    assert!(reason == "OOMKilled" || bed.shim == Shim::Stock, "{reason}");
    assert_eq!(pod.status(&beside).state, RUNNING);
    pod.remove();
}

/// A pod whose shim is killed is reported dead with all its containers, and none of its processes
/// survives.
fn shim_killed(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let family = "sleep 1000 & (trap '' TERM; sleep 1000) & wait";
    let containers = ["a", "b"].map(|name| pod.start(name, &["sh", "-c", family]));
    host::signal(pod.shim(), "KILL");
    for container in &containers {
        assert_ne!(pod.await_exit(container).exit_code, 0);
    }
    command::until("the pod is reported dead", || (pod.state().state == NOT_READY).then_some(()));
    match (bed.shim, bed.daemon.version.as_str()) {
        (Shim::Stock, "1.6" | "1.7") => pod.excuse_socket(),
        // Of all but the pod's own container everything is left.
        (Shim::Stock, _) => pod.sweep(),
        _ => (),
    }
    let mut left = Vec::new();
    command::poll(|| {
        left = pod.processes().iter().map(|process| process.describe()).collect();
        left.is_empty().then_some(())
    });
    assert!(left.is_empty(), "{left:?}");
    pod.remove();
}

/// A pod without what stands for it is reported dead; its containers go on until the kubelet stops it.
fn sandbox_killed(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let container = pod.start("c", &["sleep", "1000"]);
    host::signal(pod.sandbox(), "KILL");
    command::until("the pod is reported dead", || (pod.state().state == NOT_READY).then_some(()));
    assert_eq!(pod.status(&container).state, RUNNING);
    pod.stop_all();
    assert_eq!(pod.status(&container).exit_code, 137);
    if bed.shim == Shim::Stock && !bed.daemon.version.starts_with("1.") {
        pod.sweep(); // containerd 2.x forgets this shim, which stays
    }
    pod.remove();
}

/// A pod outlives containerd: it goes on meanwhile, obeys the next one, and what ended in between is
/// known to it.
fn containerd_restarted(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let ticking = pod.start("ticking", &["sh", "-c", "while :; do echo tick; sleep 0.05; done"]);
    let ending = pod
        .start("ending", &["sh", "-c", "while [ ! -e /dev/shm/end ]; do sleep 0.05; done; exit 4"]);
    let running = |container: &str| {
        pod.processes().iter().filter(|process| process.mentions(container)).count()
    };
    bed.restart("KILL", || {
        let init = pod
            .processes()
            .into_iter()
            .find(|process| process.mentions(&ending) && process.mentions("/dev/shm/end"));
        host::signal(init.expect("the container runs").pid, "KILL");
        command::until("the container ends", || (running(&ending) == 0).then_some(()));
    });
    setup::await_service(bed.daemon);
    assert_eq!(pod.state().state, READY);
    assert_eq!(pod.status(&ticking).state, RUNNING);
    pod.await_exit(&ending);
    assert_eq!(pod.ask(&ticking, "echo inside"), "inside");
    let length = || std::fs::metadata(pod.log("ticking")).unwrap().len();
    let before = length();
    command::until("the log goes on", || (length() > before).then_some(()));
    let later = pod.start("later", &["sh", "-c", "exit 5"]);
    assert_eq!(pod.await_exit(&later).exit_code, 5);
    pod.stop(&ticking, 0);
    assert_eq!(pod.status(&ticking).exit_code, 137);
    pod.remove();
}
