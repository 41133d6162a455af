//! Log files of real processes.

use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::process::ChildStdio;
use super::*;

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("a test within 60 s")
    })
}

async fn open(stdout: &str, stderr: &str) -> Result<(ProcessIo, ChildStdio)> {
    let spec = StdioSpec { stdout: stdout.into(), stderr: stderr.into(), ..StdioSpec::default() };
    let context = Context {
        id: "c",
        namespace: &Namespace::new("ns").unwrap(),
        bundle: Path::new("/tmp/c"),
        reaper: &Reaper::default(),
        streams: Registry::none(),
        owner: (0, 0),
        policy: config::Io::default(),
        is_confined: false,
        deadline: Some(in_ms(1000)),
    };
    ProcessIo::open(&spec, &context).await
}

fn spawn(script: &str, stdio: ChildStdio) -> Child {
    let mut command = Command::new("/bin/bash");
    command.args(["-c", script]).stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr);
    command.spawn().unwrap()
}

fn in_ms(milliseconds: u64) -> Instant {
    Instant::now() + Duration::from_millis(milliseconds)
}

/// Runs `script` with both outputs in `uri`, to the end.
async fn log(uri: &str, script: &str) {
    let (io, stdio) = open(uri, uri).await.unwrap();
    let mut process = spawn(script, stdio);
    io.drained(in_ms(30_000)).await.unwrap();
    assert!(process.wait().unwrap().success());
}

/// A directory for a log and its older files.
struct Logs(TempDir);

impl Logs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("log")
    }

    fn uri(&self, query: &str) -> String {
        format!("file://{}?{query}", self.path().display())
    }

    /// The log's files, the oldest first.
    fn files(&self) -> Vec<Vec<u8>> {
        let old = |number: usize| self.0.path().join(format!("log.{number}"));
        let count = (1..).find(|number| !old(*number).exists()).unwrap();
        assert_eq!(self.0.path().read_dir().unwrap().count(), count, "nothing else");
        let old = (1..count).rev().map(|number| std::fs::read(old(number)).unwrap());
        old.chain([std::fs::read(self.path()).unwrap()]).collect()
    }

    fn text(&self) -> String {
        String::from_utf8(self.files().concat()).unwrap()
    }
}

fn numbers(range: std::ops::RangeInclusive<u32>) -> String {
    range.map(|number| format!("{number}\n")).collect()
}

#[test]
fn both_streams_keep_their_order_in_a_raw_file() {
    run(async {
        let logs = Logs::new();
        let script = "for ((i = 1; i < 10000; i += 2)); do echo $i; echo $((i + 1)) >&2; done";
        log(&logs.uri(""), script).await;
        assert_eq!(logs.text(), numbers(1..=10_000));
    });
}

#[test]
fn a_rotated_log_has_every_line_once_and_whole() {
    run(async {
        let cases = [
            ("raw", "format=raw", "seq 1 200000", 4096),
            ("raw, in small steps", "", "for ((i = 1; i <= 5000; i++)); do echo $i; done", 4096),
            (
                "raw, in halves",
                "",
                "for ((i = 1; i <= 500; i++)); do printf %s $i; echo; done",
                4200,
            ),
            ("cri", "format=cri", "seq 1 20000", 8192),
            ("json", "format=json-file", "seq 1 20000", 8192),
        ];
        for (name, query, script, max) in cases {
            let logs = Logs::new();
            log(&logs.uri(&format!("max-size={max}&max-files=1000&{query}")), script).await;
            let files = logs.files();
            assert!(files.iter().all(|file| file.len() <= max && file.ends_with(b"\n")), "{name}");
            let least = max - 100;
            assert!(files[..files.len() - 1].iter().all(|file| file.len() > least), "{name}");
            let text = logs.text();
            let lines = text.lines().map(|line| match name {
                "cri" => line.split(' ').nth(3).unwrap().to_owned(),
                "json" => {
                    let record: serde_json::Value = serde_json::from_str(line).unwrap();
                    record["log"].as_str().unwrap().trim_end().to_owned()
                }
                _ => line.to_owned(),
            });
            let count = lines.enumerate().map(|(at, line)| assert_eq!(line, (at + 1).to_string()));
            assert!(count.count() >= 500, "{name}");
        }
    });
}

#[test]
fn only_the_newest_files_stay() {
    run(async {
        for files in [1, 2, 3] {
            let logs = Logs::new();
            std::fs::write(logs.0.path().join(format!("log.{files}")), "of another run").unwrap();
            log(&logs.uri(&format!("max-size=4KiB&max-files={files}")), "seq 1 100000").await;
            let left = logs.text();
            assert_eq!(logs.files().len(), files);
            assert!(numbers(1..=100_000).ends_with(&left), "{files}");
            assert!(left.len() > 4000 * (files - 1), "{files}: {}", left.len());
        }
    });
}

#[test]
fn long_lines_are_cut_in_raw_files_only() {
    run(async {
        let header = "2026-11-22T08:00:00.000000000Z stdout F ".len();
        let cases = [
            // A piece of a line stays where the line began.
            ("", vec![4096, 4096, 808 + "\nend\n".len()]),
            ("&format=cri", vec![header + 9001, header + "end\n".len()]),
        ];
        for (query, expected) in cases {
            let logs = Logs::new();
            let uri = logs.uri(&format!("max-size=4KiB{query}"));
            log(&uri, "printf '%09004d\nend\n' 0 | tail -c 9005").await;
            let sizes: Vec<_> = logs.files().iter().map(Vec::len).collect();
            assert_eq!(sizes, expected, "{query}");
        }
    });
}

#[test]
fn writers_of_one_file_rotate_it_once_and_lose_nothing() {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    run(async {
        for query in [
            "max-size=16KiB&max-files=1000",
            "max-size=16KiB&max-files=1000&format=cri",
            "format=cri",
        ] {
            let logs = Logs::new();
            let uri = logs.uri(query);
            let [a, b, c, d] = NAMES.map(|name| format!("seq -f '{name} %.0f' 1 30000"));
            tokio::join!(log(&uri, &a), log(&uri, &b), log(&uri, &c), log(&uri, &d));
            let text = logs.text();
            if !query.contains("cri") {
                // There are no records, so what others write may stand inside of a line.
                let mut bytes = text.into_bytes();
                let mut expected = numbers(1..=30_000).repeat(4).into_bytes();
                expected
                    .extend(NAMES.map(|name| format!("{name} ").repeat(30_000)).concat().bytes());
                bytes.sort_unstable();
                expected.sort_unstable();
                assert!(bytes == expected);
                continue;
            }
            for name in NAMES {
                let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
                let lines = lines.filter(|(head, _)| head.ends_with(name));
                let lines: String = lines.map(|(_, number)| format!("{number}\n")).collect();
                assert!(lines == numbers(1..=30_000), "{name}");
            }
            let sizes: Vec<_> = logs.files().iter().map(Vec::len).collect();
            let rotates = query.contains("size");
            assert!(sizes.len() == 1 || rotates, "{sizes:?}");
            assert!(!rotates || sizes.iter().all(|size| *size <= 16384), "{sizes:?}");
        }
    });
}

#[test]
fn a_file_may_be_moved_removed_or_truncated_by_others() {
    run(async {
        type Change = fn(&Path);
        let away: Change = |path| std::fs::rename(path, path.with_extension("1")).unwrap();
        let gone: Change = |path| std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let empty: Change =
            |path| File::options().write(true).open(path).unwrap().set_len(0).unwrap();
        let cases: [(&str, &str, Change, &str); 5] = [
            ("moved", "max-size=1m", away, "one\ntwo\n"),
            ("moved, records", "format=cri", away, "one\ntwo\n"),
            ("removed", "max-size=1m", gone, "two\n"),
            ("truncated", "", empty, "two\n"),
            ("truncated with rotation", "max-size=1m", empty, "two\n"),
        ];
        for (name, query, change, expected) in cases {
            let logs = Logs::new();
            let uri = logs.uri(query);
            let (io, stdio) = open(&uri, &uri).await.unwrap();
            let mut process = spawn("echo one; sleep 1.2; echo two", stdio);
            while std::fs::metadata(logs.path()).unwrap().len() == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            change(&logs.path());
            io.drained(in_ms(5000)).await.unwrap();
            process.wait().unwrap();
            let text = logs.text();
            let words = text.lines().map(|line| line.rsplit(' ').next().unwrap());
            assert_eq!(
                words.map(|word| format!("{word}\n")).collect::<String>(),
                expected,
                "{name}"
            );
        }
    });
}

#[test]
fn a_log_that_cannot_be_rotated_grows_on() {
    run(async {
        let logs = Logs::new();
        // A directory that is not empty cannot be replaced.
        let blocked = logs.0.path().join("log.1");
        std::fs::create_dir_all(blocked.join("x")).unwrap();
        log(&logs.uri("max-size=4KiB&max-files=2"), "seq 1 10000").await;
        assert_eq!(std::fs::read_to_string(logs.path()).unwrap(), numbers(1..=10_000));
        std::fs::remove_dir_all(blocked).unwrap();
        log(&logs.uri("max-size=4KiB&max-files=2"), "echo more").await;
        let files = logs.files();
        assert_eq!((files[0].len(), &*files[1]), (48_894, &b"more\n"[..]));
    });
}

#[test]
fn what_cannot_be_a_log_is_refused() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let cases = [
            (path.display().to_string(), "is a FIFO: use fifo:///"),
            ("/tmp".to_owned(), "cannot open log file /tmp: Is a directory"),
            ("/proc/x/y".to_owned(), "cannot open log file /proc/x/y: No such file"),
            ("/dev/null?format=cri".to_owned(), "/dev/null is a device"),
            ("/dev/null?max-size=1m".to_owned(), "/dev/null is a device"),
        ];
        for (path, expected) in cases {
            let refused = open(&format!("file://{path}"), "").await.unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
    });
}

/// A terminal whose output nobody reads: a device that writes hang on.
fn hanging() -> (nix::pty::PtyMaster, String) {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname_r(&master).unwrap();
    (master, path)
}

#[test]
fn a_write_that_hangs_keeps_nobody_waiting() {
    run(async {
        let (mut master, path) = hanging();
        let uri = format!("file://{path}");
        let (io, stdio) = open(&uri, &uri).await.unwrap();
        let mut process = spawn("seq 1 10000", stdio);
        sleep(Duration::from_millis(100)).await;
        let undrained = io.drained(in_ms(100)).await.unwrap_err().to_string();
        assert_eq!(undrained, format!("stdout is not taken by file {path}"));
        let before = Instant::now();
        drop(io);
        assert!(before.elapsed() < Duration::from_millis(50));
        process.wait().unwrap();
        assert!(master.read(&mut [0; 4096]).unwrap() > 0);
    });
}

#[test]
fn a_log_that_is_left_is_not_written_any_more() {
    run(async {
        let (io, stdio) = open("file:///dev/full", "").await.unwrap();
        let mut process = spawn("echo x; exec yes", stdio);
        sleep(Duration::from_millis(100)).await;
        let full = "stdout is still open in";
        let undrained = io.drained(in_ms(10)).await.unwrap_err().to_string();
        assert!(undrained.starts_with(full), "{undrained}");
        drop(io);
        // Nobody has the pipe's other end any more.
        assert_eq!(process.wait().unwrap().code(), None);

        let (io, stdio) = open("file:///dev/full", "").await.unwrap();
        spawn("echo x", stdio).wait().unwrap();
        let undrained = io.drained(in_ms(50)).await.unwrap_err().to_string();
        let expected =
            "stdout is not taken by file /dev/full: No space left on device (os error 28)";
        assert_eq!(undrained, expected);
    });
}
