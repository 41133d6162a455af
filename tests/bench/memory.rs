//! The part `memory`: what a shim holds while nothing happens. Each container has a FIFO for its output and
//! one for its errors, which a client has open; most have no input, in CRI too.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;

use crate::args::Args;
use crate::contest::{Load, Row, Sample, Subject};
use crate::support::{Host, Shim, Spec, mkfifo};
use crate::table::Figure;

pub(crate) const FIGURES: &[Figure] = &[
    Figure { name: "private dirty KiB", key: "private_dirty_kib", digits: 0 },
    Figure { name: "PSS KiB", key: "pss_kib", digits: 0 },
    Figure { name: "resident KiB", key: "resident_kib", digits: 0 },
    Figure { name: "threads", key: "threads", digits: 0 },
    Figure { name: "descriptors", key: "descriptors", digits: 0 },
];

/// The rows' names.
pub(crate) const ONE: &str = "1 container";
pub(crate) const EXECS_200: &str = "1 container, after 200 execs";
pub(crate) const EXECS_1000: &str = "1 container, after 1,000 execs";
pub(crate) const POD: &str = "pod of 10";
pub(crate) const SHIMS: &str = "50 shims, each";

/// How long nothing is asked before it counts.
const SETTLE: Duration = Duration::from_secs(2);
/// Execs that run at the same time, each with FIFOs.
const AT_ONCE: u32 = 10;
/// Of [`SHIMS`].
const MANY: u32 = 50;

pub(crate) fn rows(runtime: &str, _: &Args) -> Vec<Row> {
    type Turn = fn(&Subject, &str) -> Sample;
    let all: [(&str, Turn); 5] = [
        (ONE, |subject, runtime| one(subject, runtime, 0)),
        (EXECS_200, |subject, runtime| one(subject, runtime, 200)),
        (EXECS_1000, |subject, runtime| one(subject, runtime, 1000)),
        (POD, pod),
        (SHIMS, many),
    ];
    let row = |(name, turn): (&str, Turn)| {
        let runtime = runtime.to_owned();
        let turn = move |subject: &Subject, load| match load {
            Load::WarmUp => Some(one(subject, &runtime, 0)),
            Load::Full => Some(turn(subject, &runtime)),
        };
        Row { name: name.into(), turn: Box::new(turn) }
    };
    all.into_iter().map(row).collect()
}

/// The client's ends of a container's FIFOs.
pub(crate) struct Ends([File; 2]);

impl Ends {
    /// Makes them, and tells `request` of them.
    pub(crate) fn new(host: &Host, request: &mut CreateTaskRequest) -> Self {
        let dir = host.dir().join("fifo").join(&request.id);
        fs::create_dir_all(&dir).unwrap();
        let mut ends = Vec::new();
        for (name, file) in [("out", &mut request.stdout), ("err", &mut request.stderr)] {
            *file = mkfifo(&dir.join(name));
            ends.push(reader(file));
        }
        Self(ends.try_into().unwrap())
    }

    /// Closes the client's ends.
    pub(crate) fn close(self) {
        drop(self.0);
    }
}

fn reader(fifo: &str) -> File {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(fifo).unwrap()
}

/// Creates and starts container `id` with its FIFOs.
pub(crate) fn run(shim: &Shim<'_>, id: &str) -> Ends {
    let mut request = shim.request(id);
    let ends = Ends::new(shim.host(), &mut request);
    shim.create(&request).unwrap();
    shim.start(id, "").unwrap();
    ends
}

fn one(subject: &Subject, runtime: &str, execs: u32) -> Sample {
    let host = subject.host(runtime);
    let shim = host.start("c", Spec::idle());
    let ends = run(&shim, "c");
    for batch in 0..execs / AT_ONCE {
        let shim = &shim;
        thread::scope(|scope| {
            for number in 0..AT_ONCE {
                scope.spawn(move || exec(shim, &format!("{batch}-{number}")));
            }
        });
    }
    thread::sleep(SETTLE);
    let sample = look(shim.pid());
    end(&host, shim, ends, &["c"]);
    sample
}

/// `true` with its output in FIFOs.
fn exec(shim: &Shim<'_>, name: &str) {
    let dir = shim.host().dir().join(format!("exec-{name}"));
    fs::create_dir(&dir).unwrap();
    let mut request = shim.exec_request("c", name, "true");
    (request.stdout, request.stderr) = (mkfifo(&dir.join("out")), mkfifo(&dir.join("err")));
    let readers = [reader(&request.stdout), reader(&request.stderr)];
    shim.exec(&request).unwrap();
    shim.start("c", name).unwrap();
    assert_eq!(shim.reap("c", name), 0);
    drop(readers);
    fs::remove_dir_all(dir).unwrap();
}

fn pod(subject: &Subject, runtime: &str) -> Sample {
    let host = subject.host(runtime);
    let ids: Vec<String> = (0..10).map(|number| format!("c{number}")).collect();
    ids.iter().for_each(|id| host.prepare(id, Spec::idle().of_pod("pod")));
    let shim = host.attach(&ids[0], &subject.stdin);
    let ends: Vec<Ends> = ids.iter().map(|id| run(&shim, id)).collect();
    thread::sleep(SETTLE);
    let sample = look(shim.pid());
    for id in &ids[1..] {
        shim.remove(id);
    }
    ends.into_iter().for_each(Ends::close);
    shim.end();
    for id in &ids {
        let _ = host.delete(id);
    }
    host.forgive_sockets();
    sample
}

fn many(subject: &Subject, runtime: &str) -> Sample {
    let host = subject.host(runtime);
    let mut shims = Vec::new();
    for number in 0..MANY {
        let id = format!("c{number}");
        let shim = host.start(&id, Spec::idle());
        let ends = run(&shim, &id);
        shims.push((id, shim, ends));
    }
    thread::sleep(SETTLE);
    let looks: Vec<Sample> = shims.iter().map(|(_, shim, _)| look(shim.pid())).collect();
    let mean = |index: usize| {
        let sum: f64 = looks.iter().filter_map(|sample| sample[index]).sum();
        Some(sum / f64::from(MANY))
    };
    let sample = (0..FIGURES.len()).map(mean).collect();
    for (id, shim, ends) in shims {
        end(&host, shim, ends, &[&id]);
    }
    sample
}

fn end(host: &Host, shim: Shim<'_>, ends: Ends, ids: &[&str]) {
    ends.close();
    shim.end();
    for id in ids {
        let _ = host.delete(id);
    }
    host.forgive_sockets();
}

/// What process `pid` has at this moment, in the order of [`FIGURES`].
pub(crate) fn look(pid: i32) -> Sample {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let kib = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.trim().split(' ').next().unwrap().parse::<f64>().ok()
    };
    let count = |name: &str| {
        let entries = fs::read_dir(format!("/proc/{pid}/{name}")).unwrap();
        u32::try_from(entries.count()).ok().map(f64::from)
    };
    vec![kib("Private_Dirty:"), kib("Pss:"), kib("Rss:"), count("task"), count("fd")]
}
