//! The streams of real processes and of threads that play containerd's client.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::pty::{posix_openpt, unlockpt};
use nix::sys::resource::{UsageWho, getrusage};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::process::ChildStdio;
use super::*;

mod keep;

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, test).await.expect("a test within 60 s")
    })
}

/// FIFOs in a directory of their own, as containerd's client makes them.
struct Fifos {
    directory: TempDir,
}

impl Fifos {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["stdin", "stdout", "stderr"] {
            let mode = nix::sys::stat::Mode::S_IRWXU;
            nix::unistd::mkfifo(&directory.path().join(name), mode).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn spec(&self, names: &[&str]) -> StdioSpec {
        let uri = |name| match names.contains(&name) {
            true => self.path(name).to_str().unwrap().to_owned(),
            false => String::new(),
        };
        let (stdin, stdout, stderr) = (uri("stdin"), uri("stdout"), uri("stderr"));
        StdioSpec { stdin, stdout, stderr, terminal: names.contains(&"terminal") }
    }

    async fn open(&self, names: &[&str]) -> (ProcessIo, ChildStdio) {
        open(&self.spec(names)).await.unwrap()
    }

    /// Reads to the end from another thread, opening as Go's client does: blocking.
    fn reader(&self, name: &str) -> JoinHandle<Vec<u8>> {
        let path = self.path(name);
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        })
    }

    fn client(&self, options: &mut OpenOptions, name: &str) -> std::io::Result<File> {
        options.custom_flags(libc::O_NONBLOCK).open(self.path(name))
    }
}

/// What no test asks for otherwise.
fn plain(reaper: &Reaper) -> Context<'_> {
    static NAMESPACE: LazyLock<Namespace> = LazyLock::new(|| Namespace::new("ns").unwrap());
    Context {
        streams: Registry::none(),
        id: "c",
        namespace: &NAMESPACE,
        bundle: Path::new("/tmp"),
        reaper,
        owner: (0, 0),
        policy: config::Io::default(),
        is_confined: false,
        deadline: None,
    }
}

async fn open(spec: &StdioSpec) -> Result<(ProcessIo, ChildStdio)> {
    ProcessIo::open(spec, &plain(&Reaper::default())).await
}

async fn terminal(master: OwnedFd, spec: &StdioSpec) -> Result<ProcessIo> {
    let reaper = Reaper::default();
    let context = plain(&reaper);
    TerminalIo::open(spec, &context).await?.attach(master, &context)
}

fn in_ms(milliseconds: u64) -> Instant {
    Instant::now() + Duration::from_millis(milliseconds)
}

async fn joined<T>(thread: JoinHandle<T>) -> T {
    while !thread.is_finished() {
        sleep(Duration::from_millis(1)).await;
    }
    thread.join().unwrap()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = in_ms(10_000);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

fn spawn(script: &str, stdio: ChildStdio) -> Child {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr);
    command.spawn().unwrap()
}

/// A process on a terminal of its own; the master as a runtime would send it.
fn spawn_on_terminal(script: &str) -> (Child, OwnedFd) {
    let (master, slave) = pty();
    let slave = || Stdio::from(slave.try_clone().unwrap());
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdin(slave()).stdout(slave()).stderr(slave());
    (command.spawn().unwrap(), master)
}

/// Both ends of a terminal, close-on-exec from the start because other tests fork meanwhile.
fn pty() -> (OwnedFd, OwnedFd) {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let master = master.as_fd().try_clone_to_owned().unwrap();
    let slave = crate::sys::tty::peer(master.as_fd()).unwrap();
    (master, slave)
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn thread_cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
    let spent = micros(usage.user_time()) + micros(usage.system_time());
    Duration::from_micros(u64::try_from(spent).unwrap())
}

async fn assert_idle(what: &str) {
    let before = thread_cpu();
    sleep(Duration::from_millis(300)).await;
    let spent = thread_cpu() - before;
    assert!(spent < Duration::from_millis(30), "{what}: {spent:?} of CPU while idle");
}

#[test]
fn every_byte_arrives_at_a_slow_reader() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = fifos.open(&["stdout"]).await;
        let writer = std::thread::spawn(move || {
            let mut hash = Sha256::new();
            let mut stdout = File::from(child.stdout);
            let mut block = vec![0_u8; 65_521];
            let mut left = 64 << 20;
            for round in 0_usize.. {
                block.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i ^ (round * 31)) as u8);
                let part = &block[..block.len().min(left)];
                stdout.write_all(part).unwrap();
                hash.update(part);
                left -= part.len();
                if left == 0 {
                    break;
                }
            }
            hash.finalize()
        });
        let path = fifos.path("stdout");
        let reader = std::thread::spawn(move || {
            let mut hash = Sha256::new();
            let mut fifo = File::open(path).unwrap();
            let mut block = vec![0; 300_000];
            let mut total = 0;
            loop {
                let count = fifo.read(&mut block).unwrap();
                hash.update(&block[..count]);
                total += count;
                match count {
                    0 => return (total, hash.finalize()),
                    _ if total % 7 == 0 => std::thread::sleep(Duration::from_micros(300)),
                    _ => {}
                }
            }
        });
        let sent = joined(writer).await;
        io.drained(in_ms(20_000)).await.unwrap();
        let (total, received) = joined(reader).await;
        assert_eq!(total, 64 << 20);
        assert_eq!(sent, received);
    });
}

#[test]
fn single_bytes_arrive_in_order() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = fifos.open(&["stdout", "stderr"]).await;
        let readers = [fifos.reader("stdout"), fifos.reader("stderr")];
        let writer = std::thread::spawn(move || {
            let (mut out, mut err) = (File::from(child.stdout), File::from(child.stderr));
            for i in 0..100_000_u32 {
                out.write_all(&[i as u8]).unwrap();
                err.write_all(&[!i as u8]).unwrap();
            }
        });
        joined(writer).await;
        io.drained(in_ms(10_000)).await.unwrap();
        let [out, err] = readers;
        let (out, err) = (joined(out).await, joined(err).await);
        assert!(out.iter().copied().eq((0..100_000_u32).map(|i| i as u8)));
        assert!(err.iter().copied().eq((0..100_000_u32).map(|i| !i as u8)));
    });
}

#[test]
fn a_reader_may_leave_and_another_come() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = fifos.open(&["stdout"]).await;
        let mut stdout = File::from(child.stdout);
        let mut first = fifos.client(OpenOptions::new().read(true), "stdout").unwrap();
        stdout.write_all(b"one").unwrap();
        let mut bytes = [0; 16];
        until("the first reader has it", || first.read(&mut bytes).is_ok()).await;
        drop(first);
        for _ in 0..3 {
            stdout.write_all(b"two").unwrap(); // no SIGPIPE, no EPIPE
            sleep(Duration::from_millis(5)).await;
        }
        let mut second = fifos.client(OpenOptions::new().read(true), "stdout").unwrap();
        let count = second.read(&mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"twotwotwo");
        let third = fifos.reader("stdout");
        drop(second);
        stdout.write_all(b"three").unwrap();
        drop(stdout);
        io.drained(in_ms(5000)).await.unwrap();
        assert_eq!(joined(third).await, b"three");
    });
}

#[test]
fn a_reader_that_comes_after_the_end_gets_everything() {
    run(async {
        for pause in [0, 1, 50] {
            let fifos = Fifos::new();
            let (io, child) = fifos.open(&["stdout", "stderr"]).await;
            let mut process = spawn("seq 1 2000; echo failed >&2", child);
            io.drained(in_ms(5000)).await.unwrap();
            sleep(Duration::from_millis(pause)).await;
            if pause > 0 {
                assert_idle("waiting for a reader").await;
            }
            let expected: String = (1..=2000).map(|n| format!("{n}\n")).collect();
            assert_eq!(joined(fifos.reader("stdout")).await, expected.as_bytes());
            assert_eq!(joined(fifos.reader("stderr")).await, b"failed\n");
            process.wait().unwrap();
        }
    });
}

/// containerd's client keeps an `O_PATH` handle and opens the FIFO through that.
#[test]
fn a_reader_needs_no_path() {
    run(async {
        let fifos = Fifos::new();
        let path = fifos.path("stdout");
        let mut options = OpenOptions::new();
        let handle = options.read(true).custom_flags(libc::O_PATH).open(&path).unwrap();
        let (_io, child) = fifos.open(&["stdout"]).await;
        spawn("echo hello", child).wait().unwrap();
        std::fs::remove_file(path).unwrap();
        sleep(Duration::from_millis(20)).await;
        let reader = std::thread::spawn(move || {
            std::fs::read(format!("/proc/self/fd/{}", handle.as_raw_fd())).unwrap()
        });
        assert_eq!(joined(reader).await, b"hello\n");
    });
}

#[test]
fn a_reader_that_is_there_sees_the_end_without_delete() {
    run(async {
        let fifos = Fifos::new();
        let (_io, child) = fifos.open(&["stdout"]).await;
        let reader = fifos.reader("stdout");
        let mut process = spawn("echo hello", child);
        assert_eq!(joined(reader).await, b"hello\n");
        process.wait().unwrap();
    });
}

#[test]
fn close_discards_at_once_and_twice() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = fifos.open(&["stdin", "stdout", "stderr"]).await;
        let process = spawn("echo lost; exec sleep 100", child);
        let stopped = || {
            let none = |options: &mut OpenOptions, name| {
                fifos.client(options, name).is_err_and(|e| e.raw_os_error() == Some(libc::ENXIO))
            };
            ["stdin", "stdout", "stderr"]
                .iter()
                .all(|name| none(OpenOptions::new().write(true), name))
        };
        sleep(Duration::from_millis(20)).await;
        assert!(!stopped());
        io.close();
        assert!(stopped(), "closed before anything else runs");
        io.close();
        io.close_stdin();
        io.resize(1, 1).unwrap();
        io.drained(in_ms(0)).await.unwrap();
        end(process);
    });
}

#[test]
fn input_ends_after_close_io_and_the_last_client() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = fifos.open(&["stdin", "stdout"]).await;
        let reader = fifos.reader("stdout");
        let mut process = spawn("exec cat", child);
        for text in ["first client, ", "second client, "] {
            let mut client = fifos.client(OpenOptions::new().write(true), "stdin").unwrap();
            client.write_all(text.as_bytes()).unwrap();
            drop(client);
            sleep(Duration::from_millis(10)).await;
        }
        assert!(process.try_wait().unwrap().is_none(), "no end without CloseIO");
        let mut last = fifos.client(OpenOptions::new().write(true), "stdin").unwrap();
        io.close_stdin();
        io.close_stdin();
        assert_idle("input after CloseIO").await;
        assert!(process.try_wait().unwrap().is_none(), "no end while a client writes");
        last.write_all(b"last client").unwrap();
        drop(last);
        assert_eq!(joined(reader).await, b"first client, second client, last client");
        process.wait().unwrap();
    });
}

#[test]
fn input_of_any_size_arrives_before_its_end() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = fifos.open(&["stdin", "stdout"]).await;
        let reader = fifos.reader("stdout");
        let mut process = spawn("sleep 0.05; exec sha256sum", child);
        let path = fifos.path("stdin");
        let bytes: Vec<u8> = (0..10_000_000_u32).map(|i| (i % 251) as u8).collect();
        let hash = Sha256::digest(&bytes);
        let open = OpenOptions::new().write(true).open(path).unwrap();
        io.close_stdin();
        let mut open = open;
        joined(std::thread::spawn(move || open.write_all(&bytes).unwrap())).await;
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(String::from_utf8(joined(reader).await).unwrap(), format!("{hex}  -\n"));
        process.wait().unwrap();
    });
}

#[test]
fn close_io_before_the_relay_runs_is_kept() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = fifos.open(&["stdin"]).await;
        io.close_stdin();
        let mut process = spawn("exec cat", child);
        until("cat ends", || process.try_wait().unwrap().is_some()).await;
    });
}

#[test]
fn a_process_that_never_reads_blocks_nobody() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = fifos.open(&["stdin", "stdout"]).await;
        let reader = fifos.reader("stdout");
        let process = spawn("echo alive; exec sleep 100 >&-", child);
        let mut client = fifos.client(OpenOptions::new().write(true), "stdin").unwrap();
        let mut total = 0;
        while let Ok(count) = client.write(&[7; 4096]) {
            total += count;
            sleep(Duration::from_millis(1)).await;
        }
        assert!(total > 64 << 10, "{total}: pipe and FIFO are full");
        assert_eq!(joined(reader).await, b"alive\n");
        assert_idle("input that nobody reads").await;
        drop(client);
        end(process);
        let gone = || fifos.client(OpenOptions::new().write(true), "stdin").is_err();
        until("the relay has seen the process's end", gone).await;
        io.close();
    });
}

#[test]
fn input_ends_with_its_process_though_no_byte_comes() {
    run(async {
        let fifos = Fifos::new();
        let (_io, child) = fifos.open(&["stdin"]).await;
        spawn("exec true", child).wait().unwrap();
        let gone = || fifos.client(OpenOptions::new().write(true), "stdin").is_err();
        until("the FIFO is closed", gone).await;
    });
}

#[test]
fn undrained_output_names_the_processes_that_hold_it() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = fifos.open(&["stdout"]).await;
        let process = spawn("exec sleep 100", child);
        let comm = format!("/proc/{}/comm", process.id());
        until("it runs", || std::fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n"))
            .await;
        let undrained = io.drained(in_ms(50)).await.unwrap_err().to_string();
        let expected = format!("stdout is still open in pid {} (sleep)", process.id());
        assert_eq!(undrained, expected);
        end(process);
        io.drained(in_ms(5000)).await.unwrap();

        let (process, master) = spawn_on_terminal("exec sleep 100");
        let io = terminal(master, &fifos.spec(&["stdout", "terminal"])).await.unwrap();
        let comm = format!("/proc/{}/comm", process.id());
        until("it runs", || std::fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n"))
            .await;
        let undrained = io.drained(in_ms(50)).await.unwrap_err().to_string();
        let expected = format!("stdout is still open in pid {} (sleep)", process.id());
        assert_eq!(undrained, expected);
        end(process);
        io.drained(in_ms(5000)).await.unwrap();
    });
}

#[test]
fn undrained_output_without_a_reader_says_so() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = fifos.open(&["stdout", "stderr"]).await;
        let process = spawn("head -c 9000000 /dev/zero >&2", child);
        // Time enough for the program to begin on a busy machine.
        let undrained = io.drained(in_ms(2000)).await.unwrap_err();
        assert_eq!(undrained.to_string(), "nobody reads stderr: its FIFO is full");
        assert_idle("output that nobody reads").await;
        end(process);
    });
}

#[test]
fn output_goes_to_files_that_are_no_fifos() {
    run(async {
        let fifos = Fifos::new();
        let file = fifos.path("file");
        std::fs::write(&file, "before\n").unwrap();
        let file_uri = file.to_str().unwrap().to_owned();
        let cases = [("file", file_uri), ("null", "/dev/null".to_owned())];
        for (name, stdout) in cases {
            let spec = StdioSpec { stderr: stdout.clone(), stdout, ..StdioSpec::default() };
            let (io, child) = open(&spec).await.unwrap();
            let mut process = spawn("seq 1 100000; sleep 0.1; echo end >&2", child);
            io.drained(in_ms(5000)).await.expect(name);
            process.wait().unwrap();
        }
        let numbers: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(std::fs::read_to_string(file).unwrap(), format!("before\n{numbers}end\n"));
    });
}

#[test]
fn missing_streams_are_dev_null_and_missing_files_an_error() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = fifos.open(&[]).await;
        assert!(spawn("cat; echo x; echo y >&2", child).wait().unwrap().success());
        io.drained(in_ms(0)).await.unwrap();
        let gone =
            StdioSpec { stderr: "/nowhere/x".to_owned(), ..fifos.spec(&["stdin", "stdout"]) };
        let text = open(&gone).await.unwrap_err().to_string();
        assert!(text.starts_with("cannot open stderr /nowhere/x: No such file"), "{text}");
    });
}

#[test]
fn a_user_namespace_owns_its_pipes() {
    run(async {
        let fifos = Fifos::new();
        let spec = fifos.spec(&["stdin", "stdout", "stderr"]);
        let reaper = Reaper::default();
        let context = Context { owner: (1234, 5678), ..plain(&reaper) };
        let (_io, child) = ProcessIo::open(&spec, &context).await.unwrap();
        for fd in [&child.stdin, &child.stdout, &child.stderr] {
            let stat = nix::sys::stat::fstat(fd).unwrap();
            assert_eq!((stat.st_uid, stat.st_gid), (1234, 5678));
        }
    });
}

#[test]
fn terminals_lose_nothing() {
    run(async {
        let expected: String = (1..=300_000).map(|n| format!("{n}\r\n")).collect();
        for round in 0..5 {
            let fifos = Fifos::new();
            let (mut process, master) = spawn_on_terminal("exec seq 1 300000");
            let spec = fifos.spec(&["stdin", "stdout", "terminal"]);
            let io = terminal(master, &spec).await.unwrap();
            let path = fifos.path("stdout");
            let reader = std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let mut fifo = File::open(path).unwrap();
                let mut block = vec![0; 10_000 * (round + 1)];
                loop {
                    match fifo.read(&mut block).unwrap() {
                        0 => return bytes,
                        count => bytes.extend_from_slice(&block[..count]),
                    }
                    if bytes.len() % 5 == round {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            });
            io.drained(in_ms(20_000)).await.unwrap();
            let bytes = joined(reader).await;
            assert_eq!(bytes.len(), expected.len(), "round {round}");
            assert!(bytes == expected.as_bytes(), "round {round}");
            process.wait().unwrap();
            let gone = || fifos.client(OpenOptions::new().write(true), "stdin").is_err();
            until("input ends with the terminal", gone).await;
        }
    });
}

#[test]
fn terminals_take_input_of_any_size() {
    run(async {
        let fifos = Fifos::new();
        let script = "stty raw -echo; echo ready; head -c 3000000 | sha256sum";
        let (mut process, master) = spawn_on_terminal(script);
        let io = terminal(master, &fifos.spec(&["stdin", "stdout", "terminal"])).await.unwrap();
        let mut output = fifos.client(OpenOptions::new().read(true), "stdout").unwrap();
        let mut text = [0; 64];
        while output.read(&mut text).is_err() {
            sleep(Duration::from_millis(1)).await;
        }
        let reader = fifos.reader("stdout");
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let hash = Sha256::digest(&bytes);
        let mut client = OpenOptions::new().write(true).open(fifos.path("stdin")).unwrap();
        joined(std::thread::spawn(move || client.write_all(&bytes).unwrap())).await;
        io.close_stdin();
        io.drained(in_ms(20_000)).await.unwrap();
        drop(output);
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = String::from_utf8(joined(reader).await).unwrap();
        assert!(text.contains(&hex), "{text}");
        process.wait().unwrap();
    });
}

#[test]
fn terminals_resize_and_end() {
    run(async {
        let fifos = Fifos::new();
        let (mut process, master) = spawn_on_terminal("read line; stty size");
        let io = terminal(master, &fifos.spec(&["stdin", "stdout", "terminal"])).await.unwrap();
        io.resize(123, 45).unwrap();
        let reader = fifos.reader("stdout");
        std::fs::write(fifos.path("stdin"), "\n").unwrap();
        io.process_ended();
        let text = String::from_utf8(joined(reader).await).unwrap();
        assert!(text.ends_with("45 123\r\n"), "{text:?}");
        io.resize(1, 1).unwrap();
        process.wait().unwrap();
    });
}

#[test]
fn a_terminal_without_a_client_does_not_stop_its_process() {
    run(async {
        let (mut process, master) = spawn_on_terminal("exec seq 1 100000");
        let spec = StdioSpec { terminal: true, ..StdioSpec::default() };
        let io = terminal(master, &spec).await.unwrap();
        io.drained(in_ms(10_000)).await.unwrap();
        process.wait().unwrap();
    });
}

#[test]
fn a_terminal_that_was_closed_and_opened_again_goes_on() {
    run(async {
        let fifos = Fifos::new();
        let (master, slave) = pty();
        let path = nix::unistd::ttyname(&slave).unwrap();
        let io = terminal(master, &fifos.spec(&["stdout", "terminal"])).await.unwrap();
        sleep(Duration::from_millis(5)).await;
        // No turn of the loop in between: it learns of the hang-up when that is over.
        drop(slave);
        let mut slave = OpenOptions::new().write(true).open(path).unwrap();
        assert_idle("after a hang-up").await;
        slave.write_all(b"still here").unwrap();
        drop(slave);
        io.drained(in_ms(5000)).await.unwrap();
        assert_eq!(joined(fifos.reader("stdout")).await, b"still here");
    });
}

#[test]
fn a_terminal_may_stay_closed_for_a_while() {
    run(async {
        let fifos = Fifos::new();
        let (master, slave) = pty();
        let path = nix::unistd::ttyname(&slave).unwrap();
        let io = terminal(master, &fifos.spec(&["stdin", "stdout", "terminal"])).await.unwrap();
        let mut stdin = OpenOptions::new().write(true).open(fifos.path("stdin")).unwrap();
        drop(slave);
        for round in ["one ", "two ", "three"] {
            sleep(Duration::from_millis(20)).await;
            drop(OpenOptions::new().write(true).open(&path).unwrap()); // opened for nothing
            stdin.write_all(b"typed\n").unwrap();
            assert_idle("while a terminal is closed").await;
            let mut slave = OpenOptions::new().write(true).open(&path).unwrap();
            slave.write_all(round.as_bytes()).unwrap();
            drop(slave);
        }
        sleep(Duration::from_millis(20)).await;
        io.process_ended();
        assert_eq!(
            joined(fifos.reader("stdout")).await,
            b"typed\r\none typed\r\ntwo typed\r\nthree"
        );
        io.drained(in_ms(5000)).await.unwrap();
    });
}

/// All streams once more, in a process without other tests.
#[test]
#[ignore = "run in a process of its own by `no_descriptor_is_left`"]
fn every_way_to_end() {
    let open = || Path::new("/proc/self/fd").read_dir().unwrap().count();
    let before = open();
    run(async {
        let fifos = Fifos::new();
        let count = open();
        let (io, child) = fifos.open(&["stdin", "stdout", "stderr"]).await;
        assert_eq!(open() - count, 6 + 3, "descriptors of an idle process, and its own");
        let reader = fifos.reader("stdout");
        spawn("echo x; echo y >&2", child).wait().unwrap();
        io.drained(in_ms(5000)).await.unwrap();
        joined(reader).await;
        drop(io); // stderr waits for a reader
        assert_eq!(open(), count);
        let (process, master) = spawn_on_terminal("exec sleep 100");
        let io = terminal(master, &fifos.spec(&["stdin", "stdout", "terminal"])).await.unwrap();
        assert_eq!(open() - count, 4, "descriptors of an idle terminal");
        sleep(Duration::from_millis(5)).await;
        io.close();
        assert_eq!(open(), count);
        end(process);
        let failing =
            StdioSpec { stderr: "/nowhere".to_owned(), ..fifos.spec(&["stdin", "stdout"]) };
        assert!(super::tests::open(&failing).await.is_err());
        assert_eq!(open(), count);
    });
    assert_eq!(open(), before);
}

#[test]
fn no_descriptor_is_left() {
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.args(["io::tests::every_way_to_end", "--exact", "--ignored", "--test-threads=1"]);
    let output = alone.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn a_stream_that_cannot_be_served_is_named() {
    let cases = [
        (
            "output",
            StdioSpec { stdout: "http://x".into(), ..Default::default() },
            "stdout \"http://x\": scheme",
        ),
        (
            "errors",
            StdioSpec { stderr: "x".into(), ..Default::default() },
            "stderr \"x\": is not an absolute",
        ),
        (
            "input",
            StdioSpec { stdin: "file:///x".into(), ..Default::default() },
            "stdin \"file:///x\": is for outputs",
        ),
        (
            "a terminal has no stderr",
            StdioSpec { stderr: "x".into(), terminal: true, ..Default::default() },
            "",
        ),
    ];
    for (name, spec, expected) in cases {
        let told = spec.check().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(
            told.starts_with(expected) && told.is_empty() == expected.is_empty(),
            "{name}: {told}"
        );
    }
}
