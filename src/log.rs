//! Records of the `log` facade go to the bundle's `log` FIFO, in logrus' text format, which
//! containerd copies to its own log. Writing never blocks: what does not fit is dropped and
//! counted, and the next record that fits says how many are missing.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, panic};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The environment variable with a level; it wins over `-debug`.
pub(crate) const LEVEL: &str = "BERTH_LOG_LEVEL";

/// Longest record: a write(2) of up to `PIPE_BUF` bytes is never mixed with another's.
const MAX_RECORD: usize = libc::PIPE_BUF;

/// How much of what was logged is remembered, in bytes.
const REMEMBERED: usize = 16 << 10;

/// The last records, for whoever asks the process for them; no memory before the first.
static RECENT: Mutex<VecDeque<u8>> = Mutex::new(VecDeque::new());

/// The last records, whole lines, 16 KiB at most.
pub(crate) fn recent() -> Vec<u8> {
    let recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    recent.iter().copied().collect()
}

/// Keeps a record in the place of the oldest ones.
fn remember(recent: &mut VecDeque<u8>, line: &[u8]) {
    while recent.len() + line.len() > REMEMBERED {
        let Some(end) = recent.iter().position(|byte| *byte == b'\n') else { break };
        recent.drain(..=end);
    }
    recent.extend(line);
}

/// How much to log: [`LEVEL`] if it names a level, else `asked`.
pub(crate) fn level(asked: LevelFilter) -> LevelFilter {
    env::var(LEVEL).ok().and_then(|level| level.parse().ok()).unwrap_or(asked)
}

/// Sends the process's records to the FIFO at `path`, each with the container's `id`, and panics
/// too, before they abort. Opens nothing until there is something to say. Once only; later calls
/// change the level alone.
pub(crate) fn init(path: PathBuf, id: &str, level: LevelFilter) {
    log::set_max_level(level);
    let fifo = Fifo { path, id: id.to_owned(), state: Mutex::default() };
    if log::set_boxed_logger(Box::new(fifo)).is_ok() {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            log::error!("{panic}");
            default(panic);
        }));
    }
}

/// A message that may be due very often: it is logged now and then, with how often it was not.
#[derive(Debug)]
pub(crate) struct Seldom {
    pause: Duration,
    last: Mutex<Option<(Instant, u64)>>,
}

impl Seldom {
    /// Logs once in `pause`.
    pub(crate) const fn every(pause: Duration) -> Self {
        Self { pause, last: Mutex::new(None) }
    }

    /// Logs a warning, unless one was logged within the pause.
    pub(crate) fn warn(&self, message: fmt::Arguments<'_>) {
        match self.due() {
            None => {}
            Some(0) => log::warn!("{message}"),
            Some(count) => log::warn!("{message} ({count} more like it were not logged)"),
        }
    }

    /// How often it was not due since it was the last time, if it is now.
    fn due(&self) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *last {
            Some((then, count)) if then.elapsed() < self.pause => {
                *count += 1;
                None
            }
            last => {
                let before = last.replace((Instant::now(), 0));
                Some(before.map_or(0, |(_, count)| count))
            }
        }
    }
}

/// The logger behind the facade.
struct Fifo {
    path: PathBuf,
    id: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    file: Option<File>,
    dropped: u64,
}

impl Log for Fifo {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // A panic while a record is written comes here again: better no record than a deadlock.
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let now = SystemTime::now();
        let line = format(now, record.level(), record.args(), &self.id, state.dropped);
        if let Ok(mut recent) = RECENT.try_lock() {
            remember(&mut recent, line.as_bytes());
        }
        match self.write(&mut state, line.as_bytes()) {
            Ok(()) => state.dropped = 0,
            Err(_) => state.dropped += 1,
        }
    }

    fn flush(&self) {}
}

impl Fifo {
    /// Writes one record, all or nothing. A FIFO whose reader went away is opened anew, once.
    ///
    /// Where records are few, it is closed behind each that a reader is there for: the next one may come
    /// after months, or never.
    fn write(&self, state: &mut State, line: &[u8]) -> io::Result<()> {
        if let Some(mut file) = state.file.as_ref() {
            match file.write(line) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => state.file = None,
                result => return result.map(drop),
            }
        }
        let (mut file, is_read) = self.open()?;
        let result = file.write(line).map(drop);
        if !(is_read && log::max_level() < LevelFilter::Debug) {
            state.file = Some(file);
        }
        result
    }

    /// The FIFO, and whether somebody reads. While nobody does it is opened for reading too: then it takes
    /// 64 KiB, which containerd finds there when it is back. containerd [reads on] behind a writer's end.
    ///
    /// [reads on]: https://github.com/containerd/containerd/blob/v2.1.4/core/runtime/v2/shim_unix.go#L38
    fn open(&self) -> io::Result<(File, bool)> {
        let open = |read| {
            let mut options = OpenOptions::new();
            options.read(read).write(true).custom_flags(libc::O_NONBLOCK).open(&self.path)
        };
        let (file, is_read) = match open(false) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => (open(true)?, false),
            result => (result?, true),
        };
        if file.metadata()?.file_type().is_fifo() {
            Ok((file, is_read))
        } else {
            Err(ErrorKind::Unsupported.into())
        }
    }
}

/// `time="…" level=info msg="…" id=…`, a newline at the end and nowhere else, cut to
/// [`MAX_RECORD`] bytes in the message.
fn format(
    now: SystemTime,
    level: Level,
    message: &fmt::Arguments<'_>,
    id: &str,
    dropped: u64,
) -> String {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let mut tail = format!("\" id={id}");
    if dropped > 0 {
        let _ = write!(tail, " dropped={dropped}");
    }
    tail.push('\n');
    let mut line = format!("time=\"{}\" level={level} msg=\"", Timestamp(now));
    let max = MAX_RECORD.saturating_sub(tail.len());
    let _ = write!(Quoted { out: &mut line, max }, "{message}");
    line.push_str(&tail);
    line
}

/// Escapes what is written to it as Go's `strconv.Quote` does; stops, with `…`, before `out` is
/// longer than `max`.
struct Quoted<'a> {
    out: &'a mut String,
    max: usize,
}

impl fmt::Write for Quoted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            let start = self.out.len();
            match char {
                '"' | '\\' => self.out.extend(['\\', char]),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                char if char.is_control() => write!(self.out, "\\u{:04x}", char as u32)?,
                char => self.out.push(char),
            }
            // Room for the three bytes of `…` is always kept.
            if self.out.len() + 3 > self.max {
                self.out.truncate(start);
                self.out.push('…');
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

/// A time as RFC 3339 with nanoseconds, in UTC.
pub(crate) struct Timestamp(pub(crate) SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let nanos = since.subsec_nanos();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
    }
}

/// Year, month and day of a number of days since 1970, by the Gregorian calendar: 400 years have
/// 146097 days, and a year that begins in March has its leap day last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let day = day - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::path::Path;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_record_is_one_line_of_logrus_text() {
        let now = UNIX_EPOCH + Duration::new(1_709_164_799, 5);
        let long = "ä".repeat(5000);
        let head = r#"time="2024-02-28T23:59:59.000000005Z" level=warning msg=""#;
        let cases = [
            ("plain", "a b", 0, format!("{head}a b\" id=x\n")),
            (
                "quoted",
                "a \"b\"\\\n\t\u{1}",
                0,
                format!("{head}a \\\"b\\\"\\\\\\n\\t\\u0001\" id=x\n"),
            ),
            ("dropped", "a", 7, format!("{head}a\" id=x dropped=7\n")),
        ];
        for (name, message, dropped, expected) in cases {
            let line = format(now, Level::Warn, &format_args!("{message}"), "x", dropped);
            assert_eq!(line, expected, "{name}");
        }
        let line = format(now, Level::Warn, &format_args!("{long}"), "x", 7);
        assert!((MAX_RECORD - 2..=MAX_RECORD).contains(&line.len()), "{}", line.len());
        assert!(line.ends_with("ä…\" id=x dropped=7\n"));
    }

    #[test]
    fn the_last_records_are_remembered_as_whole_lines() {
        let mut recent = VecDeque::new();
        for number in 0..3000 {
            remember(&mut recent, format!("line {number}\n").as_bytes());
        }
        let text = String::from_utf8(recent.into()).unwrap();
        assert!((REMEMBERED - 10..=REMEMBERED).contains(&text.len()), "{}", text.len());
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines.iter().all(|line| line.starts_with("line ")) && lines.ends_with(&["line 2999"])
        );
    }

    #[test]
    fn times_follow_the_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_767_225_599, "2025-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ];
        for (seconds, expected) in cases {
            let text = Timestamp(UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
            assert_eq!(text, format!("{expected}.000000000Z"));
        }
    }

    fn fifo(path: &Path) -> Fifo {
        Fifo { path: path.to_owned(), id: "x".into(), state: Mutex::default() }
    }

    fn say(fifo: &Fifo, text: &str) {
        log::set_max_level(LevelFilter::Info);
        fifo.log(&Record::builder().level(Level::Info).args(format_args!("{text}")).build());
    }

    fn read_all(path: &Path) -> String {
        let mut reader =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        let (mut bytes, mut chunk) = (Vec::new(), [0; 65536]);
        while let Ok(count @ 1..) = reader.read(&mut chunk) {
            bytes.extend_from_slice(&chunk[..count]);
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_full_fifo_drops_and_counts_and_a_missing_one_is_silent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        say(&fifo(&path), "no fifo");
        std::fs::write(&path, "").unwrap();
        say(&fifo(&path), "no fifo either");
        assert_eq!(path.metadata().unwrap().len(), 0);
        std::fs::remove_file(&path).unwrap();

        mkfifo(&path, Mode::from_bits_truncate(0o700)).unwrap();
        let fifo = fifo(&path);
        (0..40).for_each(|_| say(&fifo, &"m".repeat(3000))); // nobody reads: 64 KiB fit
        let first = read_all(&path);
        let kept = first.lines().count();
        assert!((1..40).contains(&kept) && !first.contains("dropped"), "{kept}");
        say(&fifo, "next");
        say(&fifo, "last");
        let rest = read_all(&path);
        assert!(rest.contains(&format!("msg=\"next\" id=x dropped={}\n", 40 - kept)), "{rest}");
        assert!(rest.ends_with("msg=\"last\" id=x\n"), "{rest}");
    }

    #[test]
    fn a_reader_that_comes_back_reads_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        mkfifo(&path, Mode::from_bits_truncate(0o700)).unwrap();
        let fifo = fifo(&path);
        let reader =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        say(&fifo, "one");
        drop(reader); // and with it what it did not read
        say(&fifo, "two");
        say(&fifo, "three");
        let text = read_all(&path);
        assert!(text.contains("two") && text.contains("three"), "{text}");
    }
}
