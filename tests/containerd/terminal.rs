//! Programs with a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};

use crate::bed::Bed;
use crate::{Case, command, host, shared};

pub(crate) const CASES: &[Case] =
    &[shared("terminal-run", terminal_run), shared("terminal-exec", terminal_exec)];

/// Waits for one size, for a line, and for another size. The client hands its size on by a call
/// that comes after the start, so the program may see none at first.
const SCRIPT: &str = "
    await() { until [ \"$(stty size)\" = \"$1\" ]; do sleep 0.02; done 2>/dev/null; }
    await '33 99'; echo first size
    read line; echo \"got $line\"
    await '44 122'; echo second size
    read line
    exit 5";

/// A container's terminal has the client's size, follows its changes and takes its input.
fn terminal_run(bed: &Bed<'_>) {
    let run = bed.run_command(&["--rm", "--tty"], &bed.name("a"), &["sh", "-c", SCRIPT]);
    Session::start(run).talk();
}

/// So does an exec process's.
fn terminal_exec(bed: &Bed<'_>) {
    let id = bed.name("a");
    bed.start(&[], &id, &["sleep", "1000"]);
    Session::start(bed.exec_command(&["--tty"], &id, "e1", &["sh", "-c", SCRIPT])).talk();
    bed.remove(&id);
}

/// A client on a terminal of its own.
pub(crate) struct Session {
    child: Child,
    master: File,
    slave: OwnedFd,
    screen: Arc<Mutex<String>>,
}

impl Session {
    pub(crate) fn start(mut command: Command) -> Self {
        let size = Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        // The client leaves this on, and the program's own terminal has done it already.
        let mut modes = tcgetattr(&pty.slave).unwrap();
        modes.output_flags.remove(OutputFlags::ONLCR);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &modes).unwrap();
        let lend = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command.stdin(lend()).stdout(lend()).stderr(lend()).spawn().unwrap();
        let master = File::from(pty.master);
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut from, to) = (master.try_clone().unwrap(), Arc::clone(&screen));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = from.read(&mut buffer) {
                to.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Self { child, master, slave: pty.slave, screen }
    }

    /// Goes through [`SCRIPT`].
    fn talk(mut self) {
        self.await_text("first size");
        self.master.write_all(b"hello\n").unwrap();
        self.await_text("got hello");
        let mut stty = Command::new("stty");
        stty.args(["rows", "44", "cols", "122"]).stdin(self.slave.try_clone().unwrap());
        assert!(stty.status().unwrap().success());
        host::signal(i32::try_from(self.child.id()).unwrap(), "WINCH");
        self.await_text("second size");
        self.master.write_all(b"\n").unwrap();
        let status = command::wait(&mut self.child, "ctr on a terminal");
        assert_eq!(command::code(status), 5, "{}", self.screen.lock().unwrap());
    }

    /// Waits until the screen ends with `text`.
    #[track_caller]
    pub(crate) fn await_end(&self, text: &str) {
        let seen = command::poll(|| self.screen.lock().unwrap().ends_with(text).then_some(()));
        let screen = self.screen.lock().unwrap();
        let tail = screen.get(screen.len().saturating_sub(200)..);
        assert!(seen.is_some(), "{} bytes, the last: {tail:?}", screen.len());
    }

    /// Types `last`, which ends the program; all that was shown.
    #[track_caller]
    pub(crate) fn finish(mut self, last: &[u8]) -> String {
        self.master.write_all(last).unwrap();
        let status = command::wait(&mut self.child, "ctr on a terminal");
        assert_eq!(command::code(status), 0);
        std::mem::take(&mut self.screen.lock().unwrap())
    }

    #[track_caller]
    fn await_text(&self, text: &str) {
        let seen = command::poll(|| self.screen.lock().unwrap().contains(text).then_some(()));
        assert!(seen.is_some(), "{text:?} is not in {:?}", self.screen.lock().unwrap());
    }
}
