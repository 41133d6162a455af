//! What shells make of `completions`, and readers of manual pages of `man`: the real programs, where they
//! are (`packaging/setup.sh test` installs them).

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::{Host, Spec, binary, eventually, skipped};

const PROGRAM: &str = "containerd-shim-berth-v1";

/// What is typed before a TAB or two, and what its last word becomes; all else stays.
const CASES: [(&str, &str, &str); 15] = [
    ("a command", "conf\t", "config"),
    ("its second word", "config s\t", "show"),
    ("a flag", "config show -or\t", "-origin"),
    ("a flag with two dashes", "config show --or\t", "--origin"),
    ("a file", "config show -config so\t", "some file.toml"),
    ("a file after =", "config show -config=so\t", "-config=some file.toml"),
    ("a file as operand", "config check so\t", "some file.toml"),
    ("a directory", "-bundle su\t", "sub"),
    ("what annotations choose", "config show -annotation io.c\t", "io.containerd.berth."),
    (
        "a runtime, after its key",
        "config show -annotation=io.containerd.berth.ru\t\t",
        "-annotation=io.containerd.berth.runtime=mine",
    ),
    (
        "a preset",
        "config show -annotation io.containerd.berth.config_path=sm\t",
        "io.containerd.berth.config_path=small",
    ),
    ("a pod", "logs pod\t", "pod-a"),
    ("a container", "logs we\t", "web"),
    ("a shell", "completions z\t", "zsh"),
    ("nothing", "logs nothing\t", "nothing"),
];

/// Whether a program is on this machine; says so if not.
fn there(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !found.status.success() {
        eprintln!(
            "SKIPPED: NO {program} HERE, SO NOTHING OF IT IS TESTED (packaging/setup.sh test)"
        );
    }
    found.status.success()
}

fn berth(args: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(binary()).args(args).output().unwrap();
    assert!(status.success() && stderr.is_empty(), "{args:?}");
    String::from_utf8(stdout).unwrap()
}

/// A command that has this host's program first on its PATH, and stands where there are files.
fn command(host: &Host, program: &str) -> Command {
    let path = std::env::var("PATH").unwrap();
    let own = Path::new(&binary()).parent().unwrap().display().to_string();
    let mut command = Command::new(program);
    command.current_dir(host.dir().join("files"));
    command.env("PATH", format!("{own}:{path}")).env("BERTH_RUN_DIR", host.management_dir());
    command.env("BERTH_CONF_FILE", host.dir().join("files/some file.toml"));
    command.env("HOME", host.dir()).env("INPUTRC", "/dev/null").env("TERM", "dumb");
    command.env("HISTFILE", "/dev/null").env("LC_ALL", "C.UTF-8");
    command
}

/// A configuration with a runtime and presets, beside other files.
fn prepare(host: &Host) {
    let files = host.dir().join("files");
    fs::create_dir_all(files.join("sub")).unwrap();
    for name in ["small.toml", "large.toml", ".hidden.toml", "no-preset"] {
        fs::write(files.join("sub").join(name), "").unwrap();
    }
    let (sub, config) = (files.join("sub"), files.join("some file.toml"));
    fs::write(config, format!("preset_dir = {sub:?}\n[runtimes.mine]\npath = \"/mine\"\n"))
        .unwrap();
}

/// A shell on a terminal of its own, which script(1) makes.
struct Session {
    child: Child,
    keys: ChildStdin,
    said: Arc<Mutex<String>>,
    lines: usize,
}

impl Session {
    /// `begin` is typed first.
    fn start(host: &Host, shell: &str, begin: &str) -> Self {
        let mut child = command(host, "script")
            .args(["-qec", shell, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (keys, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let said = Arc::new(Mutex::new(String::new()));
        let sink = said.clone();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = out.read(&mut bytes) {
                *sink.lock().unwrap() += &String::from_utf8_lossy(&bytes[..length]);
            }
        });
        let mut session = Self { child, keys, said, lines: 0 };
        for line in begin.lines() {
            session.result(line, "; ");
        }
        session
    }

    /// Types a line, which is then shown instead of run; returns what it has become.
    fn completed(&mut self, line: &str) -> String {
        self.result(&format!("{PROGRAM} {line}\x01"), " ")
    }

    /// Types `line`, then an echo and its end, and returns what was echoed.
    fn result(&mut self, line: &str, between: &str) -> String {
        self.lines += 1;
        // What is typed is shown too, but not in this form.
        let (typed, mark) =
            (format!("echo RES''ULT{}", self.lines), format!("RESULT{}", self.lines));
        let keys = match between {
            " " => format!("{line}{typed} \r"),
            _ => format!("{line}{between}{typed}\r"),
        };
        self.keys.write_all(keys.as_bytes()).unwrap();
        let said = self.said.clone();
        let end = || {
            let said = said.lock().unwrap();
            let (_, rest) = said.split_once(&mark)?;
            rest.split_once('\n').map(|(result, _)| result.trim().to_owned())
        };
        eventually(&format!("{line:?} has its result in {}", self.said.lock().unwrap()), end)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn shells_complete_what_may_stand_there() {
    if skipped("completion") {
        return;
    }
    let host = Host::new();
    prepare(&host);
    let shim = host.start("pod-a", Spec::idle());
    shim.run("pod-a");
    drop(host.management("pod-a"));
    host.prepare("web", Spec::sh("exit 1").of_pod("pod-a"));
    shim.run("web");
    shim.wait("web", "").unwrap();
    fs::write(host.dir().join("files/_containerd-shim-berth-v1"), berth(&["completions", "zsh"]))
        .unwrap();
    let sessions = [
        ("bash", "bash --norc --noprofile -i", format!("source <({PROGRAM} completions bash)")),
        (
            "zsh",
            "zsh -f -i",
            "bindkey -e; fpath=($PWD $fpath)\nautoload -Uz compinit; compinit -D -u".to_owned(),
        ),
    ];
    for (shell, start, begin) in sessions.iter().filter(|(shell, ..)| there(shell)) {
        let mut session = Session::start(&host, start, begin);
        for (name, line, expected) in CASES {
            let kept = line.rsplit_once(' ').map_or(String::new(), |(kept, _)| format!("{kept} "));
            let completed = session.completed(line);
            // zsh takes the slash away again when the next word begins.
            let completed = completed.trim_end_matches('/');
            assert_eq!(completed, format!("{PROGRAM} {kept}{expected}"), "{shell}: {name}");
        }
    }
    if there("fish") {
        for (name, line, expected) in CASES.iter().filter(|(_, line, _)| !line.ends_with("\t\t")) {
            let script = format!(
                "{PROGRAM} completions fish | source; complete -C '{PROGRAM} {}'",
                line.trim_end()
            );
            let output =
                command(&host, "fish").args(["--no-config", "-c", &script]).output().unwrap();
            let offers = String::from_utf8(output.stdout).unwrap();
            let mut words = offers.lines().map(|line| line.split('\t').next().unwrap());
            let fits = match *expected {
                "nothing" => offers.is_empty(),
                expected => words.any(|word| word.starts_with(expected)),
            };
            assert!(fits && output.stderr.is_empty(), "fish: {name}: {offers}");
        }
    }
    assert_eq!(shim.reap("web", ""), 1);
    shim.end();
}

#[test]
fn a_shim_that_does_not_answer_delays_no_completion() {
    if skipped("completion") {
        return;
    }
    let host = Host::new();
    let dir = host.management_dir().join("tests");
    fs::create_dir_all(&dir).unwrap();
    let mute = std::os::unix::net::UnixListener::bind(dir.join("mute.sock")).unwrap();
    let mut command = Command::new(binary());
    command.args(["complete-words", "logs", ""]).env("BERTH_RUN_DIR", host.management_dir());
    let begin = std::time::Instant::now();
    let output = command.output().unwrap();
    let took = begin.elapsed();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "words\nmute\tpod in tests\n");
    // It waits 300 ms.
    assert!(took < crate::support::patient(std::time::Duration::from_millis(900)), "{took:?}");
    drop(mute);
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn readers_of_manual_pages_have_nothing_against_it() {
    if skipped("the manual page") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join(format!("{PROGRAM}.1"));
    fs::write(&page, berth(&["man"])).unwrap();
    let page = page.to_str().unwrap();
    let readers: [(&str, &[&str], &str); 4] = [
        ("man", &["--warnings", "-l", page], "EXIT STATUS"),
        ("groff", &["-ww", "-man", "-Tutf8", page], "EXIT STATUS"),
        ("mandoc", &["-Tlint", "-Wstyle", page], ""),
        // What `apropos` gets to know.
        ("lexgrog", &[page], "containerd-shim-berth-v1 - containerd shim, "),
    ];
    for (reader, args, expected) in readers.iter().filter(|(reader, ..)| there(reader)) {
        let output = Command::new(reader)
            .args(*args)
            .env("LC_ALL", "C.UTF-8")
            .env("GROFF_NO_SGR", "yes")
            .env("MANWIDTH", "100")
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaints.is_empty(), "{reader}: {shown}{complaints}");
        let plain = shown.replace("\u{8}", "");
        assert!(plain.contains(expected) || reader == &"groff", "{reader}: {plain}");
        assert!(!expected.is_empty() || shown.is_empty(), "{reader}: {shown}");
    }
}
