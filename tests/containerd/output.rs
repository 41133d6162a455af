//! Where the streams of a container go, and that all of them gets there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::bed::Bed;
use crate::command::Output;
use crate::cri::messages::NODE;
use crate::cri::setup::{self, NAMESPACE, Plugins};
use crate::cri::{Cri, Pod};
use crate::terminal::Session;
use crate::{Case, Runtime, Shim, command, config, host, image, number, own, pod, shared};

pub(crate) const CASES: &[Case] = &[
    shared("output-to-file", to_file),
    shared("output-to-logger", to_logger),
    shared("output-whole", whole),
    shared("output-whole-exec", whole_exec),
    shared("output-whole-terminal", whole_terminal),
    pod("output-in-pod-log", in_pod_log),
    own("output-while-containerd-is-down", while_containerd_is_down),
];

/// A directory of the case's own, empty.
fn directory(bed: &Bed<'_>, name: &str) -> PathBuf {
    let dir = bed.daemon.dir().join(format!("{name}-{:?}", bed.shim));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Writes to both streams in turns.
const TURNS: &str = "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";

fn turns() -> String {
    (0..500).map(|number| format!("out {number}\nerr {number}\n")).collect()
}

/// Runs an exec process `e1` of [`TURNS`] with its output to `uri`.
#[track_caller]
fn exec_to(bed: &Bed<'_>, uri: &str, id: &str) {
    let exec = ["task", "exec", "--exec-id", "e1", "--log-uri", uri, id, "sh", "-c", TURNS];
    bed.ctr(&exec).ok();
}

/// `file:///…`: directories are made, a second run appends, and both streams stand in the file in the
/// order of writing. The stock shim copies them one beside the other, and not all of them.
fn to_file(bed: &Bed<'_>) {
    let dir = directory(bed, "output-to-file");
    let log = dir.join("new/directories/log");
    let uri = format!("file://{}", log.display());
    for run in 1..=2 {
        bed.run(&["--log-uri", &uri], &bed.name("a"), &["sh", "-c", TURNS]).ok();
        let expected = turns().repeat(run);
        let mut text = String::new();
        command::poll(|| {
            text = fs::read_to_string(&log).unwrap_or_default();
            // It ends without the last of it now and then.
            let begun = bed.shim == Shim::Stock && !text.is_empty();
            (begun || text.len() >= expected.len()).then_some(())
        });
        match bed.shim {
            Shim::Stock => assert!((1..=expected.len()).contains(&text.len()), "run {run}"),
            _ => assert_eq!(text, expected, "run {run}"),
        }
    }
    if bed.shim == Shim::Stock {
        return; // it does not wait for the last of an exec process's output
    }
    let exec = dir.join("exec");
    let uri = format!("file://{}", exec.display());
    let id = bed.name("b");
    bed.start(&[], &id, &["sleep", "1000"]);
    exec_to(bed, &uri, &id);
    command::until("the exec process's output", || {
        (fs::read_to_string(&exec).ok()?.len() == turns().len()).then_some(())
    });
    bed.remove(&id);
}

/// A logger of containerd's protocol, which writes what it gets beside itself.
///
/// The stock shim terminates it as soon as the container has ended.
const LOGGER: &str = "#!/bin/sh
trap '' TERM
dir=${0%/*}
echo \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\" >\"$dir/told\"
cat <&3 >>\"$dir/out\" 5>&- &
cat <&4 >>\"$dir/err\" 5>&- &
exec 5>&-
wait
echo ended >\"$dir/end\"
";

/// `binary:///…`: a logger gets both streams apart, what it is to know, and their end.
fn to_logger(bed: &Bed<'_>) {
    for name in ["init", "exec"] {
        let dir = directory(bed, &format!("output-to-logger-{name}"));
        let logger = dir.join("logger");
        fs::write(&logger, LOGGER).unwrap();
        fs::set_permissions(&logger, fs::Permissions::from_mode(0o755)).unwrap();
        let uri = format!("binary://{}?word=two%20words", logger.display());
        let id = bed.name(name);
        if name == "init" {
            bed.run(&["--log-uri", &uri], &id, &["sh", "-c", TURNS]).ok();
        } else {
            bed.start(&[], &id, &["sleep", "1000"]);
            exec_to(bed, &uri, &id);
        }
        command::until("the logger ends", || dir.join("end").exists().then_some(()));
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        let owner = if name == "init" { &id } else { "e1" };
        assert_eq!(read("told"), format!("{owner} {} word two words\n", bed.namespace));
        let of = |stream: &str| {
            (0..500).map(|number| format!("{stream} {number}\n")).collect::<String>()
        };
        assert_eq!((read("out"), read("err")), (of("out"), of("err")), "{name}");
        if name == "exec" {
            bed.remove(&id);
        }
    }
}

/// 256 MiB: the busybox program again and again; then its reader says that it is enough.
struct Large {
    part: Vec<u8>,
    times: usize,
}

impl Large {
    fn new() -> Self {
        let part = fs::read(image::busybox()).unwrap();
        let times = (256 << 20) / part.len() + 1;
        Self { part, times }
    }

    fn script(&self) -> String {
        format!("for part in $(busybox seq {}); do cat /bin/busybox; done; read end", self.times)
    }

    /// Runs a client of the script to its end.
    #[track_caller]
    fn check(&self, client: &mut std::process::Command) {
        let total = self.times * self.part.len();
        let output: Output = command::run_fed(client, b"", |[stdout, _]| {
            stdout.wait(|text| text.len() >= total);
        });
        assert_eq!(output.stdout.len(), total, "{}", output.stderr);
        let mut parts = output.stdout.chunks(self.part.len());
        assert!(parts.all(|part| part == self.part), "the content differs");
    }
}

/// A large output is whole.
fn whole(bed: &Bed<'_>) {
    let large = Large::new();
    large.check(&mut bed.run_command(&["--rm"], &bed.name("a"), &["sh", "-c", &large.script()]));
}

/// So is an exec process's.
fn whole_exec(bed: &Bed<'_>) {
    let large = Large::new();
    let id = bed.name("a");
    bed.start(&[], &id, &["sleep", "1000"]);
    large.check(&mut bed.exec_command(&[], &id, "e1", &["sh", "-c", &large.script()]));
    bed.remove(&id);
}

/// And what a terminal shows, `BERTH_ROUNDS` times.
fn whole_terminal(bed: &Bed<'_>) {
    let script = "busybox seq 1 1000000; echo that is all; read end";
    for round in 1..=number("BERTH_ROUNDS", 1) {
        let run = bed.run_command(&["--rm", "--tty"], &bed.name("a"), &["sh", "-c", script]);
        let session = Session::start(run);
        session.await_end("that is all\r\n");
        let text = session.finish(b"\n");
        let (text, _) = text.rsplit_once("that is all\r\n").unwrap();
        let mut lines = text.split("\r\n");
        for number in 1..=1_000_000 {
            assert_eq!(lines.next(), Some(number.to_string().as_str()), "round {round}");
        }
        assert_eq!(lines.collect::<Vec<_>>(), [""], "round {round}");
    }
}

/// Some 10 MiB of numbered lines.
const LINES: u64 = 1_500_000;

/// Fails unless the log of a pod's container has all of [`LINES`] of each of `streams`, once and in
/// order.
#[track_caller]
fn check_log(log: &Path, streams: &[&str]) {
    let last = LINES.to_string();
    let mut text = String::new();
    let complete = command::poll(|| {
        text = fs::read_to_string(log).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(200)..];
        let ended = streams.len() > 1 || tail.contains(&format!(" F {last}\n"));
        (ended && text.lines().count() as u64 >= LINES * streams.len() as u64).then_some(())
    });
    assert!(complete.is_some(), "{}: {} lines", log.display(), text.lines().count());
    for stream in streams {
        let mut next = 1;
        let mark = format!(" {stream} F ");
        for line in text.lines().filter(|line| line.contains(&mark)) {
            let number = line.rsplit(' ').next().unwrap();
            assert_eq!(number.parse(), Ok(next), "{stream}: {line}");
            next += 1;
        }
        assert_eq!(next, LINES + 1, "{stream}");
    }
    assert_eq!(text.lines().count() as u64, LINES * streams.len() as u64, "other lines");
}

/// A pod's log has every line of both streams.
fn in_pod_log(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = cri.run(bed.shim.handler(), &bed.name("pod"), |_| ());
    let mut script = format!("busybox seq 1 {LINES} & busybox seq 1 {LINES} >&2; wait");
    // The plugin of 1.6 does not always read on when a container has ended, whatever the shim.
    let stays = bed.daemon.version == "1.6";
    if stays {
        script.push_str("; exec sleep 1000");
    }
    let container = pod.start("c", &["sh", "-c", &script]);
    if !stays {
        assert_eq!(pod.await_exit(&container).exit_code, 0);
    }
    check_log(&pod.log("c"), &["stdout", "stderr"]);
    pod.remove();
}

/// What a pod writes while containerd is down is in its log afterwards. With `io.spill` it was not
/// even delayed; without, it waits for containerd.
fn while_containerd_is_down(bed: &Bed<'_>) {
    let version = &bed.daemon.version;
    let dir = bed.daemon.dir().join("output-down");
    fs::create_dir_all(&dir).unwrap();
    let [_, path] = config::write(&dir.join("spill.toml"), "[io]\nspill = \"64MiB\"\n");
    let handlers = format!(
        "[@spill]\n\
         runtime_type = \"io.containerd.berth.v1\"\n\
         [@spill.options]\n\
         ConfigPath = {path:?}\n",
    );
    let handlers = handlers.replace("[@", &format!("[{}.", Plugins::of(version).runtimes));
    let programs = bed.daemon.programs();
    let daemon = setup::start_with(version, programs, Runtime::Runc, &dir, "spill", &handlers);
    let cri = Cri::of(&daemon);
    // The host's network: beside this containerd another one hands out addresses.
    let run = |handler: &str| {
        cri.run(handler, &format!("output-down-{handler}"), |pod| pod.namespaces().network = NODE)
    };
    let pods = ["spill", "berth"].map(run);
    let script = format!(
        "until [ -e /open ]; do sleep 0.05; done; busybox seq 1 {LINES}; touch /done;
         until [ -e /end ]; do sleep 0.05; done",
    );
    let containers = pods.each_ref().map(|pod| pod.start("c", &["sh", "-c", &script]));
    let roots = pods.each_ref().map(root);

    daemon.stop("KILL");
    let down = Instant::now();
    roots.iter().for_each(|root| fs::write(root.join("open"), "").unwrap());
    command::until("a file takes the output", || roots[0].join("done").exists().then_some(()));
    let took = down.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?} for {LINES} lines");
    let length = if version.starts_with("1.") { 5 } else { 60 };
    sleep(Duration::from_secs(length).saturating_sub(down.elapsed()));
    assert!(!roots[1].join("done").exists(), "nothing has room for all of it");
    daemon.start_again();
    setup::await_service(&daemon);

    for ((pod, container), root) in pods.iter().zip(&containers).zip(&roots) {
        command::until("the output is taken", || root.join("done").exists().then_some(()));
        // containerd 1.6 stops reading at the end of a container that is older than itself.
        check_log(&pod.log("c"), &["stdout"]);
        fs::write(root.join("end"), "").unwrap();
        assert_eq!(pod.await_exit(container).exit_code, 0);
    }
    pods.into_iter().for_each(Pod::remove);
    host::remove_namespace(NAMESPACE);
    let left = daemon.end();
    assert!(left.is_empty(), "left behind: {}", left.join(", "));
}

/// The root directory that the container of a pod sees.
fn root(pod: &Pod<'_>) -> PathBuf {
    let pid = command::until("the container's script runs", || {
        let mut all = pod.processes().into_iter();
        all.find(|process| process.mentions("[ -e /open ]")).map(|process| process.pid)
    });
    PathBuf::from(format!("/proc/{pid}/root"))
}
