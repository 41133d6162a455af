//! Programs with a deadline: what they printed, how they ended.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The longest that any one command of a test may take.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// The longest wait for a condition that another process brings about.
pub(crate) const WAIT_LIMIT: Duration = Duration::from_secs(30);

/// A program that ended.
#[derive(Debug)]
pub(crate) struct Output {
    what: String,
    /// Exit status, or 128 + signal.
    pub(crate) status: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Output {
    /// What it printed, after it ended well.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.status, 0, "`{}`: {}", self.what, self.stderr.trim());
        self.text()
    }

    /// What it complained of, after it failed.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert_ne!(self.status, 0, "`{}` was not refused: {}", self.what, self.text());
        self.stderr
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

/// Runs `command` to its end with `input` on its standard input.
#[track_caller]
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Output {
    run_fed(command, input, || ())
}

/// Like [`run`], but the end of `input` comes only after `hold`.
#[track_caller]
pub(crate) fn run_fed(command: &mut Command, input: &[u8], hold: impl FnOnce()) -> Output {
    let what = describe(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("start `{what}`: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());
    let input = input.to_vec();
    let writer = thread::spawn(move || {
        // A program may end without having read its input.
        let _ = stdin.write_all(&input);
        stdin
    });
    hold();
    let closer = thread::spawn(move || drop(writer.join().unwrap()));
    let status = wait(&mut child, &what);
    closer.join().unwrap();
    let stderr = String::from_utf8_lossy(&stderr.join().unwrap()).into_owned();
    Output { what, status: code(status), stdout: stdout.join().unwrap(), stderr }
}

/// Waits for `child`, kills it when [`COMMAND_LIMIT`] has passed.
#[track_caller]
pub(crate) fn wait(child: &mut Child, what: &str) -> ExitStatus {
    let deadline = Instant::now() + COMMAND_LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("`{what}` had not ended after {} s", COMMAND_LIMIT.as_secs());
        }
        thread::sleep(Duration::from_millis(4));
    }
}

/// Polls until `probe` has an answer; panics with `what` after [`WAIT_LIMIT`].
#[track_caller]
pub(crate) fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    let answer = poll(probe);
    answer.unwrap_or_else(|| panic!("not within {} s: {what}", WAIT_LIMIT.as_secs()))
}

/// Polls until `probe` has an answer, for [`WAIT_LIMIT`].
pub(crate) fn poll<T>(mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + WAIT_LIMIT;
    loop {
        let answer = probe();
        if answer.is_some() || Instant::now() > deadline {
            return answer;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The exit status as a shell tells it.
pub(crate) fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).unwrap();
        all
    })
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
