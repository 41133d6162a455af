//! containerd: the program, the daemons that run, and what their configuration says of berth.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::Level::{Fault, Note, Ok, Warn};
use super::Topic::Containerd;
use super::grpc::{self, Failure};
use super::leftovers::Scope;
use super::mend::quoted;
use super::processes::{same_mounts, same_user};
use super::{Finding, look, runtimes};
use crate::NAME;
use crate::config::Environment;
use crate::ids::Pid;
use crate::runtime::table::look_up;
use crate::sys::child;

/// Where containerd looks for its configuration unless it is told.
const CONFIG: &str = "/etc/containerd/config.toml";
/// The same for its state and its socket.
const STATE: &str = "/run/containerd";
/// The CRI plugin's sections: up to 1.7, and from 2.0 on.
const CRI_1: &str = "io.containerd.grpc.v1.cri";
const CRI_2: &str = "io.containerd.cri.v1.runtime";

/// A containerd, as its command line and configuration have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Daemon {
    /// `None` for one that is known by its address alone.
    pub(super) pid: Option<Pid>,
    pub(super) config: PathBuf,
    pub(super) address: PathBuf,
    pub(super) state: PathBuf,
}

impl Daemon {
    /// One whose process is not seen, with the usual socket of its state directory.
    pub(super) fn hidden(state: &Path) -> Self {
        let address = state.join("containerd.sock");
        Self { pid: None, config: CONFIG.into(), address, state: state.to_owned() }
    }
}

/// What there is to say of these.
pub(super) fn look(daemons: &[Daemon]) -> Vec<Finding> {
    let mut findings = vec![installed()];
    let looking: Vec<_> = daemons
        .iter()
        .cloned()
        .map(|daemon| (daemon.clone(), look::begin(move || look_at(&daemon))))
        .collect();
    for (daemon, looking) in looking {
        findings.extend(looking.end(4 * look::LIMIT).unwrap_or_else(|| {
            vec![Finding::new(Containerd, Warn, "looking at it hangs").at(daemon.address.display())]
        }));
    }
    if daemons.is_empty() {
        let finding = Finding::new(Containerd, Note, "no containerd runs");
        findings.push(finding.why("what nobody can ask it about is judged by the files alone"));
    }
    findings
}

/// The program on PATH.
fn installed() -> Finding {
    let path = env::var_os("PATH").unwrap_or_default();
    let Some(Result::Ok(program)) = look::bounded(move || look_up("containerd", &path)) else {
        return Finding::new(Containerd, Note, "no containerd on PATH")
            .command("apt install containerd");
    };
    match look::first_line(&program, &["--version"]) {
        Result::Ok(line) => {
            // containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1
            let version = line.split_whitespace().nth(2).unwrap_or(&line);
            let finding =
                Finding::new(Containerd, Ok, format!("containerd {version}")).at(program.display());
            match number(version).is_some_and(|it| it < (1, 6)) {
                true => Finding { level: Warn, ..finding.why("berth serves 1.6 and later") },
                false => finding,
            }
        }
        Err(why) => Finding::new(Containerd, Warn, format!("containerd --version: {why}"))
            .at(program.display()),
    }
}

/// Those that run in our mount namespace, and the one that the command line names; `None` if a process or a
/// configuration hangs, so that it is not known whose is what.
pub(super) fn daemons(scope: &Scope) -> Option<Vec<Daemon>> {
    let scope = scope.clone();
    look::begin(move || find(&scope)).end(4 * look::LIMIT)?
}

fn find(scope: &Scope) -> Option<Vec<Daemon>> {
    let processes = child::all().filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim_end() == "containerd")
    });
    let mut found = Vec::new();
    for pid in processes.filter(|pid| child::runs(*pid) && same_mounts(*pid) && same_user(*pid)) {
        let Result::Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue }; // it has ended
        let args =
            line.split(|&byte| byte == 0).skip(1).map(|word| OsString::from_vec(word.to_vec()));
        let args: Vec<_> = args.collect();
        let config = flag(&args, &["c", "config"]).map_or(CONFIG.into(), PathBuf::from);
        let config = child::working_directory(pid).unwrap_or_default().join(config);
        let file = config.clone();
        let text = look::bounded(move || fs::read_to_string(file))?;
        let daemon = daemon(pid, &args, config, &text.unwrap_or_default());
        if scope.includes(&daemon.state) {
            found.push(daemon);
        }
    }
    if let Some(address) = &scope.address {
        if !found.iter().any(|daemon| daemon.address == *address) {
            let state = scope.only.clone().unwrap_or_else(|| STATE.into());
            found.push(Daemon { address: address.clone(), ..Daemon::hidden(&state) });
        }
    }
    Some(found)
}

/// What flags and configuration come to; flags win.
fn daemon(pid: Pid, args: &[OsString], config: PathBuf, text: &str) -> Daemon {
    let table: Table = text.parse().unwrap_or_default();
    let within = |value: Option<&Value>| {
        value.and_then(Value::as_str).filter(|it| !it.is_empty()).map(PathBuf::from)
    };
    let state = flag(args, &["state"]).map(PathBuf::from);
    let state = state.or_else(|| within(table.get("state"))).unwrap_or_else(|| STATE.into());
    let address = flag(args, &["a", "address"]).map(PathBuf::from);
    let address =
        address.or_else(|| within(table.get("grpc").and_then(|grpc| grpc.get("address"))));
    let address = address.unwrap_or_else(|| Path::new(STATE).join("containerd.sock"));
    let state = state.canonicalize().unwrap_or(state);
    Daemon { pid: Some(pid), config, address, state }
}

/// The value of a flag, in one word or two.
fn flag(args: &[OsString], names: &[&str]) -> Option<String> {
    let mut found = None;
    let mut args = args.iter().filter_map(|arg| arg.to_str());
    while let Some(arg) = args.next() {
        let Some(body) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else { continue };
        let (name, value) =
            body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value)));
        if names.contains(&name) {
            found = value.or_else(|| args.next()).map(str::to_owned);
        }
    }
    found
}

/// Does it answer, what does its configuration say, and which configuration of berth do its pods get?
fn look_at(daemon: &Daemon) -> Vec<Finding> {
    let name = daemon.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    let place = daemon.address.display();
    let mut findings = Vec::new();
    let version = match grpc::version(&daemon.address) {
        Result::Ok(version) => {
            let what = format!("containerd {version} runs{name}");
            let state = format!("its state is in {}", daemon.state.display());
            findings.push(Finding::new(Containerd, Ok, what).at(place).why(state));
            number(&version)
        }
        Err(why) => {
            let (what, why) = match why {
                Failure::Nobody => ("nobody listens on the socket of containerd", String::new()),
                Failure::Mute(why) => ("containerd is mute", why),
                Failure::Refused => ("containerd does not tell its version", String::new()),
            };
            let why = if why.is_empty() { "it may be starting".into() } else { why };
            let finding = Finding::new(Containerd, Fault, format!("{what}{name}")).at(place);
            findings.push(
                finding.why(why).command("systemctl restart containerd   # containers run on"),
            );
            None
        }
    };
    if let Some(pid) = daemon.pid {
        let file = daemon.config.clone();
        let config = look::bounded(move || merged(&file));
        findings.extend(judge(&config.unwrap_or_default(), version, &daemon.config));
        findings.extend(environment(pid));
    }
    findings
}

/// A configuration file of berth that only this containerd's shims have.
fn environment(pid: Pid) -> Option<Finding> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value =
        environ.split(|&byte| byte == 0).find_map(|one| one.strip_prefix(b"BERTH_CONF_FILE="))?;
    let mut environment = Environment::read();
    let named = (!value.is_empty()).then(|| PathBuf::from(OsString::from_vec(value.to_vec())));
    if environment.named == named {
        return None;
    }
    environment.named = named;
    let finding = runtimes::winner(&environment);
    Some(Finding { what: format!("for containerd (pid {pid}): {}", finding.what), ..finding })
}

/// A configuration file with its imports, each of which replaces tables, as containerd 2 merges them: what
/// is nearer to the truth for 1.x, which replaces a whole plugin, would not show more handlers.
fn merged(file: &Path) -> Table {
    let read = |file: &Path| -> Table {
        fs::read_to_string(file).unwrap_or_default().parse().unwrap_or_default()
    };
    let mut table = read(file);
    let imports = table.get("imports").and_then(Value::as_array).cloned().unwrap_or_default();
    for pattern in imports.iter().filter_map(Value::as_str) {
        let pattern = file.parent().unwrap_or(Path::new("/")).join(pattern);
        for import in matching(&pattern) {
            merge(&mut table, read(&import));
        }
    }
    table
}

/// The files of a pattern whose last part may have one `*`, sorted.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((front, back)) = name.split_once('*') else { return vec![pattern.to_owned()] };
    let entries =
        fs::read_dir(pattern.parent().unwrap_or(Path::new("/"))).into_iter().flatten().flatten();
    let fits = |name: &str| {
        name.len() >= front.len() + back.len() && name.starts_with(front) && name.ends_with(back)
    };
    let mut found: Vec<_> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(fits))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

/// What a configuration says of berth.
fn judge(config: &Table, version: Option<(u32, u32)>, file: &Path) -> Vec<Finding> {
    let place = file.display();
    let two = version.is_some_and(|version| version >= (2, 0));
    let mut findings = Vec::new();
    for section in [CRI_1, CRI_2] {
        for (name, handler) in handlers(config, section) {
            let named = |level, text: &str| {
                Finding::new(Containerd, level, format!("handler {name:?}{text}")).at(&place)
            };
            let text = |key: &str| handler.get(key).and_then(Value::as_str).unwrap_or_default();
            let shim = text("sandboxer") == "shim";
            let written = config.get("version").and_then(Value::as_integer).unwrap_or(1);
            findings.push(match (section, two, written) {
                // containerd 2 converts what says that it is of version 2.
                (CRI_1, true, 3..) => {
                    named(Warn, " is in a section that containerd 2 does not read")
                        .command(format!("sed -i 's/{CRI_1}/{CRI_2}/' {}", quoted(file)))
                }
                (CRI_2, false, _) if version.is_some() => {
                    named(Warn, " is in a section that containerd 1 does not read")
                        .command(format!("sed -i 's/{CRI_2}/{CRI_1}/' {}", quoted(file)))
                }
                _ => named(Ok, " of the CRI plugin is berth's"),
            });
            let program = PathBuf::from(text("runtime_path"));
            if program.is_absolute() && !program.exists() {
                findings.push(
                    named(Fault, " names a program that is not there").why(text("runtime_path")),
                );
            }
            if shim && !two && version.is_some() {
                findings.push(
                    named(Warn, ": sandboxer = \"shim\" needs containerd 2")
                        .why("pods get a pause container"),
                );
            } else if shim && version.is_some_and(|version| version <= (2, 2)) {
                findings.push(named(Note, ": sandboxer = \"shim\"").why(
                    "up to containerd 2.2 a pod with hostNetwork crashes containerd: keep these from the handler",
                ));
            }
            if text("io_type") == "streaming" && !(shim && two) {
                findings.push(
                    named(
                        Warn,
                        ": io_type = \"streaming\" needs sandboxer = \"shim\" and containerd 2",
                    )
                    .why("containers of this handler fail to start"),
                );
            }
        }
    }
    if findings.is_empty() {
        findings.push(
            Finding::new(Containerd, Note, "no handler of the CRI plugin is berth's")
                .at(&place)
                .why("ctr, nerdctl and Docker need none; Kubernetes does: config/containerd-1.toml or -2.toml"),
        );
    }
    let off = config.get("disabled_plugins").and_then(Value::as_array).cloned().unwrap_or_default();
    if off.iter().filter_map(Value::as_str).any(|name| name == "cri" || name == CRI_1) {
        findings.push(Finding::new(Containerd, Note, "the CRI plugin is switched off").at(&place));
    }
    findings
}

/// The handlers of a section whose shim is berth.
fn handlers<'a>(config: &'a Table, section: &str) -> Vec<(&'a str, &'a Value)> {
    let path = ["plugins", section, "containerd", "runtimes"];
    let mut table = Some(config);
    for key in path {
        table = table.and_then(|table| table.get(key)).and_then(Value::as_table);
    }
    let all = table.into_iter().flatten();
    all.filter(|(_, handler)| handler.get("runtime_type").and_then(Value::as_str) == Some(NAME))
        .map(|(name, handler)| (name.as_str(), handler))
        .collect()
}

/// Major and minor number of a version.
fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split(|one: char| !one.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_configuration() {
        let args = |line: &str| line.split_whitespace().map(OsString::from).collect::<Vec<_>>();
        let text = "state = \"/no/s\"\n[grpc]\naddress = \"/no/a\"\n";
        let cases = [
            ("nothing", "", "", ("/run/containerd/containerd.sock", "/run/containerd")),
            ("the file", "-c /f", text, ("/no/a", "/no/s")),
            ("flags", "--address=/no/b -state /no/t", text, ("/no/b", "/no/t")),
            ("short", "-a /no/b --log-level debug", "", ("/no/b", "/run/containerd")),
        ];
        for (name, line, text, (address, state)) in cases {
            let found = daemon(Pid::new(1).unwrap(), &args(line), "/f".into(), text);
            assert_eq!((found.address, found.state), (address.into(), state.into()), "{name}");
        }
        assert_eq!(flag(&args("-c /f --config=/g"), &["c", "config"]).as_deref(), Some("/g"));
    }

    #[test]
    fn handlers_of_both_generations_are_judged() {
        let text = |section: &str, version: u32, more: &str| {
            format!(
                "version = {version}\n[plugins.\"{section}\".containerd.runtimes.berth]\n\
                 runtime_type = \"{NAME}\"\n{more}\n"
            )
        };
        let ours = [
            include_str!("../../../config/containerd-1.toml"),
            include_str!("../../../config/containerd-2.toml"),
        ];
        let cases = [
            ("none", String::new(), (1, 7), vec![Note]),
            ("ours on 1", ours[0].into(), (1, 6), vec![Ok]),
            ("ours on 2", ours[1].into(), (2, 1), vec![Ok, Ok, Note]),
            ("version 2 on 2", text(CRI_1, 2, ""), (2, 0), vec![Ok]),
            ("the old section on 2", text(CRI_1, 3, ""), (2, 0), vec![Warn]),
            ("the new section on 1", text(CRI_2, 2, ""), (1, 7), vec![Warn]),
            ("no program", text(CRI_1, 2, "runtime_path = \"/no/such\""), (1, 7), vec![Ok, Fault]),
            ("a sandboxer on 1", text(CRI_1, 2, "sandboxer = \"shim\""), (1, 7), vec![Ok, Warn]),
            ("streams alone", text(CRI_2, 3, "io_type = \"streaming\""), (2, 1), vec![Ok, Warn]),
            (
                "streams of a sandboxer",
                text(CRI_2, 3, "io_type = \"streaming\"\nsandboxer = \"shim\""),
                (2, 3),
                vec![Ok],
            ),
            ("switched off", "disabled_plugins = [\"cri\"]".into(), (1, 6), vec![Note, Note]),
        ];
        for (name, text, version, expected) in cases {
            let found = judge(&text.parse().unwrap(), Some(version), Path::new("/c"));
            let levels: Vec<_> = found.iter().map(|it| it.level).collect();
            assert_eq!(levels, expected, "{name}: {found:?}");
        }
    }

    #[test]
    fn imports_are_merged() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(&main, "imports = [\"d/*.toml\"]\n[plugins.a]\nx = 1\n").unwrap();
        fs::write(dir.path().join("d/1.toml"), "[plugins.a]\ny = 2\n").unwrap();
        fs::write(dir.path().join("d/2.other"), "[plugins.a]\nx = 3\n").unwrap();
        let merged = merged(&main);
        assert_eq!(merged["plugins"]["a"]["x"].as_integer(), Some(1));
        assert_eq!(merged["plugins"]["a"]["y"].as_integer(), Some(2));
    }
}
