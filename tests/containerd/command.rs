//! Programs with a deadline: what they printed, how they ended.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The longest that any one command of a test may take. A hundred at once take minutes where others
/// want the processors too.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(600);

/// The longest wait for a condition that another process brings about.
const WAIT: Duration = Duration::from_secs(60);

/// [`WAIT`], `BERTH_TEST_SLOW` times as long where `tests/cgroup2` asks for it.
pub(crate) fn wait_limit() -> Duration {
    let factor = std::env::var("BERTH_TEST_SLOW");
    WAIT * factor.map_or(1, |factor| factor.parse().expect("BERTH_TEST_SLOW is a number"))
}

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
    run_fed(command, input, |_| ())
}

/// What a program prints, as it comes.
#[derive(Clone, Default)]
pub(crate) struct Printed(Arc<Mutex<Text>>);

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    ended: bool,
}

impl Printed {
    /// Waits until what was printed is as `expected` wants it; gives up when nothing more comes,
    /// or after [`wait_limit`].
    pub(crate) fn wait(&self, expected: impl Fn(&[u8]) -> bool) {
        let _ = poll(|| {
            let text = self.0.lock().unwrap();
            (text.ended || expected(&text.bytes)).then_some(())
        });
    }

    /// Whether a line is complete by now.
    pub(crate) fn has_line(&self) -> bool {
        self.0.lock().unwrap().bytes.contains(&b'\n')
    }

    fn collect(&self, mut from: impl Read + Send + 'static) -> thread::JoinHandle<()> {
        let Self(text) = self.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let count = from.read(&mut buffer).unwrap();
                let mut text = text.lock().unwrap();
                text.bytes.extend_from_slice(&buffer[..count]);
                text.ended = count == 0;
                if text.ended {
                    return;
                }
            }
        })
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap().bytes)
    }
}

/// Like [`run`], but the end of `input` comes only after `hold`, which sees what is printed on
/// standard output and on standard error.
///
/// A client drops what it has not read by the time at which it learns of the program's end. So a
/// program whose output matters ends when its input does, which is when the output is here.
#[track_caller]
pub(crate) fn run_fed(
    command: &mut Command,
    input: &[u8],
    hold: impl FnOnce([&Printed; 2]),
) -> Output {
    let what = describe(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("start `{what}`: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let (stdout, stderr) = (Printed::default(), Printed::default());
    let readers = [
        stdout.collect(child.stdout.take().unwrap()),
        stderr.collect(child.stderr.take().unwrap()),
    ];
    let input = input.to_vec();
    let writer = thread::spawn(move || {
        // A program may end without having read its input.
        let _ = stdin.write_all(&input);
        stdin
    });
    hold([&stdout, &stderr]);
    let closer = thread::spawn(move || drop(writer.join().unwrap()));
    let status = wait(&mut child, &what);
    closer.join().unwrap();
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    let stderr = String::from_utf8_lossy(&stderr.take()).into_owned();
    Output { what, status: code(status), stdout: stdout.take(), stderr }
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

/// Polls until `probe` has an answer; panics with `what` after [`wait_limit`].
#[track_caller]
pub(crate) fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    let answer = poll(probe);
    answer.unwrap_or_else(|| panic!("not within {} s: {what}", wait_limit().as_secs()))
}

/// Polls until `probe` has an answer, for [`wait_limit`].
pub(crate) fn poll<T>(mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + wait_limit();
    loop {
        let answer = probe();
        if answer.is_some() || Instant::now() > deadline {
            return answer;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// What a thread came to; it failing is this thread's failure, in the same words.
pub(crate) fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}

/// The exit status as a shell tells it.
pub(crate) fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
