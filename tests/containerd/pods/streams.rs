//! `Exec`, `Attach` and `PortForward`: streams between a client and a container.

use std::time::Duration;

use crate::bed::Bed;
use crate::cri::messages::{AttachRequest, ExecRequest, PortForwardRequest, StreamResponse};
use crate::cri::stream::{ERROR, RESIZE, STDERR, STDIN, STDOUT, Stream};
use crate::cri::{Cri, Pod, owned};
use crate::{Case, command, pod};

pub(crate) const CASES: &[Case] = &[
    pod("pod-exec-stream", exec),
    pod("pod-attach", attach),
    pod("pod-port-forward", port_forward),
];

/// A program beside the container's own, with its output apart, or on a terminal that is resized.
fn exec(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let container = pod.start("c", &["sleep", "1000"]);
    let open = |script: &str, tty: bool| {
        let request = ExecRequest {
            container_id: container.clone(),
            cmd: owned(&["sh", "-c", script]),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        let answer: StreamResponse = cri.call("Exec", &request);
        Stream::open(&answer.url)
    };
    let mut stream = open("read a; echo \"got $a\"; echo no >&2; exit 9", false);
    stream.send(STDIN, b"line\n");
    stream.expect(STDOUT, "got line\n");
    stream.expect(STDERR, "no\n");
    let status = stream.rest(ERROR);
    assert!(status.contains("\"Failure\"") && status.contains("\"message\":\"9\""), "{status}");

    let mut stream = open("cat >/tmp/file & echo up; sleep 0.1; exit 0", false);
    assert!(stream.rest(ERROR).contains("\"Success\""));

    let mut stream = open("echo ready; read a; stty size; read a; exit 3", true);
    stream.expect(STDOUT, "ready\r\n");
    stream.send(RESIZE, br#"{"Width":91,"Height":33}"#);
    command::until("the terminal is resized", || {
        let size = "busybox stty size -F /dev/pts/0";
        Some(pod.exec(&container, &["sh", "-c", size])).filter(|answer| answer.stdout == b"33 91\n")
    });
    stream.send(STDIN, b"\n");
    stream.expect(STDOUT, "33 91\r\n");
    stream.send(STDIN, b"\n");
    let status = stream.rest(ERROR);
    assert!(status.contains("\"message\":\"3\""), "{status}");
    pod.remove();
}

fn attach_to(pod: &Pod<'_>, container: &str, tty: bool) -> Stream {
    let request = AttachRequest {
        container_id: container.into(),
        stdin: true,
        tty,
        stdout: true,
        stderr: !tty,
    };
    let answer: StreamResponse = pod.cri.call("Attach", &request);
    Stream::open(&answer.url)
}

/// Clients come and go at the container's own streams; what it writes is in its log as well.
fn attach(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let script = "while read a; do [ $a != end ] || exit 6; echo \"got $a\"; echo e$a >&2; done";
    for (name, tty) in [("plain", false), ("terminal", true)] {
        let container = pod.start_with(name, &["sh", "-c", script], |container| {
            (container.stdin, container.tty) = (true, tty);
        });
        for word in ["one", "two"] {
            let mut stream = attach_to(&pod, &container, tty);
            // containerd begins with the input, and misses output that comes before it listens.
            std::thread::sleep(Duration::from_millis(300));
            stream.send(STDIN, format!("{word}\n").as_bytes());
            stream.expect(STDOUT, &format!("got {word}"));
            stream.expect(if tty { STDOUT } else { STDERR }, &format!("e{word}"));
        }
        let mut stream = attach_to(&pod, &container, tty);
        stream.send(STDIN, b"end\n");
        assert_eq!(pod.await_exit(&container).exit_code, 6, "{name}");
        stream.rest(STDOUT);
        let log = std::fs::read_to_string(pod.log(name)).unwrap();
        assert!(log.contains("got one") && log.contains("etwo"), "{name}: {log}");
    }
    pod.remove();
}

/// A port of the pod's own network.
fn port_forward(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let container = pod.start("c", &["busybox", "nc", "-ll", "-p", "80", "-e", "cat"]);
    command::until("the server listens", || {
        let list = pod.ask(&container, "cat /proc/net/tcp /proc/net/tcp6");
        list.contains(":0050 ").then_some(())
    });
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![80] };
    let answer: StreamResponse = cri.call("PortForward", &request);
    let mut stream = Stream::open(&answer.url);
    stream.expect(0, "P\0"); // the port, the least significant byte first
    stream.send(0, b"there and back\n");
    stream.expect(0, "there and back\n");
    pod.remove();
}
