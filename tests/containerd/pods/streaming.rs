//! Containers whose streams are no FIFOs: `io_type = "streaming"`.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::bed::Bed;
use crate::cri::messages::RUNNING;
use crate::cri::{Cri, Pod, setup};
use crate::{Case, command, pod, pods_alone};

pub(crate) const CASES: &[Case] = &[
    pod("pod-streaming-log", log),
    pod("pod-streaming-descriptors", descriptors),
    pods_alone("pod-streaming-containerd-killed", containerd_killed),
    pods_alone("pod-streaming-containerd-terminated", containerd_terminated),
    pods_alone("pod-streaming-containerd-away", containerd_away),
];

/// Whether a case is about nothing but these streams.
pub(crate) fn is_own(case: &Case) -> bool {
    case.name.starts_with("pod-streaming-")
}

/// Whether it makes a difference to a case how streams are made.
pub(crate) fn concerns(case: &Case) -> bool {
    const ABOUT: [&str; 8] = [
        "pod-lifecycle",
        "pod-logs",
        "pod-exec-sync",
        "pod-exec-stream",
        "pod-attach",
        "pod-stop",
        "pod-containerd-restarted",
        "pod-many",
    ];
    case.pods && (is_own(case) || ABOUT.iter().any(|name| case.name.starts_with(name)))
}

/// What a container has written, without what the log adds; a line of the log that is just being
/// written does not count.
fn written(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut all = String::new();
    for line in whole.lines() {
        let [_time, _stream, tag, text] =
            line.splitn(4, ' ').collect::<Vec<_>>().try_into().unwrap();
        all += text;
        if tag == "F" {
            all.push('\n');
        }
    }
    all
}

/// Everything that a container wrote is in its log when it has ended, however much that was at the end.
fn log(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    for (name, lines) in [("short", 1), ("some", 20_000), ("many", 500_000)] {
        for round in 0..if lines == 1 { 10 } else { 2 } {
            let name = format!("{name}{round}");
            let container = pod.start(&name, &["busybox", "seq", "1", &lines.to_string()]);
            assert_eq!(pod.await_exit(&container).exit_code, 0);
            let expected: String = (1..=lines).map(|n| format!("{n}\n")).collect();
            let found = written(&pod.log(&name));
            let last = || found.lines().last().unwrap_or_default().to_owned();
            assert!(
                found == expected,
                "{name}: {} bytes, the last line is {:?}",
                found.len(),
                last()
            );
        }
    }
    pod.remove();
}

/// Neither the shim nor its connections to containerd grow with the number of processes.
fn descriptors(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let container = pod.start("c", &["sleep", "1000"]);
    let count = || fs::read_dir(format!("/proc/{}/fd", pod.shim())).unwrap().count();
    pod.ask(&container, "true");
    let before = count();
    for _ in 0..20 {
        pod.ask(&container, "echo a; echo b >&2");
    }
    // The management interface may have come meanwhile.
    command::until("no descriptor is left", || (count() <= before + 1).then_some(()));
    pod.remove();
}

fn containerd_killed(bed: &Bed<'_>) {
    restarted(bed, "KILL");
}

fn containerd_terminated(bed: &Bed<'_>) {
    restarted(bed, "TERM");
}

/// A container goes on to write, and to be written to, when containerd is restarted.
fn restarted(bed: &Bed<'_>, signal: &str) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let script =
        "i=0; while [ ! -e /dev/shm/end ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 4";
    let container = pod.start_with("c", &["sh", "-c", script], |config| config.stdin = true);
    command::until("it writes", || (written(&pod.log("c")).len() > 50).then_some(()));
    bed.restart(signal, || thread::sleep(Duration::from_secs(1)));
    setup::await_service(bed.daemon);
    assert_eq!(pod.status(&container).state, RUNNING);
    let length = written(&pod.log("c")).len();
    command::until("the log goes on", || (written(&pod.log("c")).len() > length).then_some(()));
    assert_eq!(pod.ask(&container, "echo inside; touch /dev/shm/end"), "inside");
    assert_eq!(pod.await_exit(&container).exit_code, 4);
    check_numbers(&pod);
    pod.remove();
}

/// Each number follows the one before. When containerd ends in the very moment in which it has read a
/// line, the next one gets it again.
#[track_caller]
fn check_numbers(pod: &Pod<'_>) {
    let found = written(&pod.log("c"));
    let numbers: Vec<i64> = found.lines().map(|line| line.parse().expect(line)).collect();
    let steps = numbers.windows(2).map(|pair| (pair[0], pair[1] - pair[0]));
    let odd: Vec<_> = steps.filter(|(_, step)| *step != 1).collect();
    let again = odd.len() <= 1 && odd.iter().all(|(_, step)| (-1..=0).contains(step));
    assert!(numbers[0] == 0 && again, "{} lines, {odd:?}", numbers.len());
}

/// 10 MiB that are written while containerd is down are in the log afterwards, and the container was
/// not made to wait.
fn containerd_away(bed: &Bed<'_>) {
    const LINES: usize = 1_500_000;
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let script = format!(
        "echo 0; while [ ! -e /dev/shm/on ]; do sleep 0.05; done; busybox seq 1 {LINES}; touch /dev/shm/done; \
         while [ ! -e /dev/shm/end ]; do sleep 0.05; done; exit 4"
    );
    let container = pod.start("c", &["sh", "-c", &script]);
    command::until("it writes", || (written(&pod.log("c")) == "0\n").then_some(()));
    let root = pod
        .processes()
        .into_iter()
        .find(|process| process.mentions(&container) && process.mentions("/dev/shm/on"));
    let shm = format!("/proc/{}/root/dev/shm", root.expect("the container runs").pid);
    bed.restart("KILL", || {
        fs::write(format!("{shm}/on"), "").unwrap();
        command::until("it has written all", || {
            Path::new(&format!("{shm}/done")).exists().then_some(())
        });
    });
    setup::await_service(bed.daemon);
    let last = format!("\n{LINES}\n");
    command::until("the log has it all", || written(&pod.log("c")).ends_with(&last).then_some(()));
    check_numbers(&pod);
    fs::write(format!("{shm}/end"), "").unwrap();
    assert_eq!(pod.await_exit(&container).exit_code, 4);
    pod.remove();
}
