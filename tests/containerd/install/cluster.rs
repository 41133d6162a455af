//! The program of the DaemonSet: what it does to containerd's configuration, and pods through it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::node::{Api, Node};
use crate::bed::Bed;
use crate::command::{self, Output};
use crate::cri::messages::NOT_READY;
use crate::cri::{Cri, Pod, setup};
use crate::daemon::Daemon;
use crate::host;

/// The handlers and what else `config/` says of them reach every configuration of a node that
/// containerd accepts; a second run changes nothing; the removal restores it byte for byte.
pub(super) fn configurations(bed: &Bed<'_>) {
    let version = bed.daemon.version.as_str();
    let old = version.starts_with("1.");
    let containerd = || Command::new(bed.daemon.programs().join("containerd"));
    let default = command::run(containerd().args(["config", "default"]), b"").ok() + "\n";
    let cri = "[plugins.\"io.containerd.grpc.v1.cri\"]\n";
    let own = format!(
        "version = 2\n{cri}restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
         runtime_type = \"io.containerd.runc.v2\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n\
         SystemdCgroup = true\n"
    );
    let newest = if old { 2 } else { 3 };
    let cases: Vec<(&str, Option<String>)> = vec![
        ("none", None),
        ("default", Some(default.clone())),
        ("default without the last newline", Some(default.trim_end().into())),
        ("version alone", Some(format!("version = {newest}\n"))),
        ("runc in a comment", Some(format!("version = {newest}\n# [a.runtimes.runc]\n"))),
        ("version 2", Some(own.clone())),
        ("CRLF", Some(own.replace('\n', "\r\n"))),
        ("imports nothing", Some(format!("imports = []\n{own}"))),
        ("imports", Some(format!("imports = [ \"@/other/*.toml\" ] # mine\n{own}"))),
        (
            "imports over lines",
            Some(format!("imports = [\n  # mine\n  \"@/other/*.toml\",\n]\n{own}")),
        ),
        (
            "imports the drop-in's directory",
            Some(format!("imports = [\"@/conf.d/*.toml\"]\n{own}")),
        ),
        ("imports in a comment", Some(format!("# imports = [\"@/x.toml\"]\n{own}"))),
    ];
    for (index, (name, text)) in cases.into_iter().enumerate() {
        let dir = directory(bed, &format!("node-{index}"));
        let etc = dir.join("etc/containerd");
        fs::create_dir_all(dir.join("etc")).unwrap();
        let mut node = Node::new(&dir, bed.daemon.programs(), etc.join("config.toml"));
        node.pretend("");
        node.env.insert("PAUSELESS", "true".into());
        if let Some(text) = &text {
            fs::create_dir_all(etc.join("other")).unwrap();
            fs::write(
                etc.join("other/log.toml"),
                format!(
                    "version = {}\n[debug]\nlevel = \"warn\"\n",
                    if text.contains("version = 3") { 3 } else { 2 }
                ),
            )
            .unwrap();
            fs::write(etc.join("config.toml"), text.replace('@', etc.to_str().unwrap())).unwrap();
        }
        let before = node.files();
        if let Err(why) = there_and_back(&node, old) {
            panic!("{name}: {why}");
        }
        assert_eq!(node.files(), before, "{name}: not as it was");
        assert_eq!(node.restarts(), 2, "{name}");
        fs::remove_dir_all(&dir).unwrap();
    }
}

/// A directory of the case's own, without what a row that is repeated has left.
fn directory(bed: &Bed<'_>, name: &str) -> PathBuf {
    let dir = bed.daemon.dir().join(name);
    let _ = fs::remove_dir_all(&dir);
    dir
}

fn there_and_back(node: &Node, old: bool) -> Result<(), String> {
    let well = |output: Output| match output.status {
        0 => Ok(output.text()),
        _ => Err(format!("{} {}", output.text(), output.stderr)),
    };
    well(node.run("install"))?;
    let dump = node.dump();
    let handler = |name: &str| {
        let table = |line: &str| {
            let line = line.trim().trim_end_matches(']').replace(['"', '\''], "");
            line.starts_with("[plugins.") && line.ends_with(&format!(".runtimes.{name}"))
        };
        let mut lines = dump.lines().skip_while(|line| !table(line)).skip(1);
        let body: Vec<_> =
            lines.by_ref().take_while(|line| !line.contains('[') || line.contains('=')).collect();
        body.join("\n").replace('\'', "\"")
    };
    for (name, expected, wanted) in [
        ("berth", "runtime_type = \"io.containerd.berth.v1\"", true),
        ("berth", "pod_annotations = [\"io.containerd.berth.*\"]", true),
        ("berth-pauseless", "sandboxer = \"shim\"", !old),
        ("runc", "runtime_type = \"io.containerd.runc.v2\"", true),
    ] {
        let found = handler(name);
        if found.contains(expected) != wanted {
            return Err(format!("handler {name} and {expected}: {found}"));
        }
    }
    if !node.program().exists() {
        return Err("no program".into());
    }
    let installed = node.files();
    well(node.run("install"))?;
    if node.files() != installed || node.restarts() != 1 {
        return Err(format!("a second run changes something, {} restarts", node.restarts()));
    }
    well(node.run("remove"))?;
    if node.program().exists() {
        return Err("the program is still there".into());
    }
    well(node.run("remove"))?;
    Ok(())
}

/// Where a node cannot have the handlers, or does not come up with them, it is told why and the node is
/// left as it was.
pub(super) fn refusals(bed: &Bed<'_>) {
    let old = bed.daemon.version.starts_with("1.");
    let number = if old { 2 } else { 3 };
    let good = format!("version = {number}\n");
    let shadow = "imports = [\"@/shadow.toml\"]\nversion = 2\n";
    // A rule, the configuration, what ctr does, how often containerd is restarted, what is said.
    let rows: &[(&str, &str, &str, usize, &str)] = &[
        ("syntax", "version = \n", "", 0, "does not accept"),
        ("version 1", "[grpc]\ngid = 0\n", "", 0, "version 1"),
        (
            "no CRI plugin",
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
            "",
            0,
            "disabled_plugins",
        ),
        ("read-only", &good, "", 0, "read-only"),
        ("rancher", &good, "", 0, "k3s"),
        ("shadowed", shadow, "", 0, "replaces it"),
        (
            "does not come up",
            &good,
            "! grep -q berth \"$config\" \"${config%/*}\"/conf.d/* || exit 1",
            2,
            "old configuration",
        ),
    ];
    for (index, (name, text, ctr, restarts, expected)) in rows.iter().enumerate() {
        // Only containerd 1.x replaces a plugin's whole section by an imported one.
        if *name == "shadowed" && !old {
            continue;
        }
        let dir = directory(bed, &format!("refused-{index}"));
        let etc = dir.join("etc");
        fs::create_dir_all(&etc).unwrap();
        let mut node = Node::new(&dir, bed.daemon.programs(), etc.join("config.toml"));
        node.pretend(ctr);
        fs::write(&node.config, text.replace('@', etc.to_str().unwrap())).unwrap();
        match *name {
            "rancher" => fs::create_dir_all(dir.join("rancher/k3s")).unwrap(),
            "shadowed" => {
                let section = "[plugins.\"io.containerd.grpc.v1.cri\"]\nenable_selinux = false\n";
                fs::write(etc.join("shadow.toml"), format!("version = 2\n{section}")).unwrap();
            }
            _ => {}
        }
        let before = node.files();
        let mount = (*name == "read-only").then(|| ReadOnly::mount(&etc));
        let output = node.run("install");
        drop(mount);
        let said = output.text() + &output.stderr.clone();
        assert_eq!(output.status, 1, "{name}: {said}");
        assert!(said.contains(expected), "{name}: {said}");
        assert_eq!(node.files(), before, "{name}: {said}");
        assert_eq!(node.restarts(), *restarts, "{name}: {said}");
        if *restarts == 0 {
            assert!(!node.program().exists(), "{name}: the program stays");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
    own_handler(bed, number);
    stays(bed, &good);
}

/// The DaemonSet's pod is ready when all is done, and ends when it is told to.
fn stays(bed: &Bed<'_>, config: &str) {
    let dir = directory(bed, "staying");
    fs::create_dir_all(dir.join("etc")).unwrap();
    let mut node = Node::new(&dir, bed.daemon.programs(), dir.join("etc/config.toml"));
    node.pretend("");
    fs::write(&node.config, config).unwrap();
    for (action, installed) in [("install", true), ("remove", false)] {
        let mut child = node.staying(action).stdout(Stdio::null()).spawn().unwrap();
        command::until("it is ready", || dir.join("ready").exists().then_some(()));
        assert_eq!(node.program().exists(), installed, "{action}");
        host::signal(child.id().try_into().unwrap(), "TERM");
        assert!(command::wait(&mut child, action).success(), "{action}");
        fs::remove_file(dir.join("ready")).unwrap();
    }
    fs::remove_dir_all(&dir).unwrap();
}

/// A handler of that name which the node has already is left alone.
fn own_handler(bed: &Bed<'_>, number: usize) {
    let dir = directory(bed, "own-handler");
    fs::create_dir_all(dir.join("etc")).unwrap();
    let mut node = Node::new(&dir, bed.daemon.programs(), dir.join("etc/config.toml"));
    node.pretend("");
    let file = if number == 2 { "containerd-1.toml" } else { "containerd-2.toml" };
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file);
    fs::copy(config, &node.config).unwrap();
    let before = node.files();
    for action in ["install", "remove"] {
        node.run(action).ok();
        assert_eq!(node.files(), before, "{action}");
        assert!(node.program().exists(), "{action}: its program");
    }
    assert_eq!(node.restarts(), 0);
    fs::remove_dir_all(&dir).unwrap();
}

/// A directory that cannot be written until this is dropped.
struct ReadOnly(String);

impl ReadOnly {
    fn mount(dir: &Path) -> Self {
        let dir = dir.display().to_string();
        command::run(Command::new("mount").args(["--bind", &dir, &dir]), b"").ok();
        let guard = Self(dir);
        let remount = ["-o", "remount,bind,ro", &guard.0];
        command::run(Command::new("mount").args(remount), b"").ok();
        guard
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        command::run(Command::new("umount").arg(&self.0), b"");
    }
}

/// On a node without berth: it is installed, a pod runs through its handler, and it goes after the pod.
pub(super) fn pod(bed: &Bed<'_>) {
    let dir = bed.daemon.dir().join("install-node");
    let programs = bed.daemon.programs();
    let daemon = setup::start_stock(&bed.daemon.version, programs, &dir);
    let mut node = Node::new(&dir, programs, dir.join("containerd.toml"));
    let wish = dir.join("restart");
    let script = format!("touch {0}; while [ -e {0} ]; do sleep 0.1; done", wish.display());
    node.write_program("RESTART", "restart", &script);
    let api = Api::start();
    api.serve(&mut node);
    let before = fs::read(&node.config).unwrap();

    assert_eq!(run(&node, &daemon, "install", 0), 1, "restarts");
    expect_labels(&api, &json!("true"));
    assert_eq!(run(&node, &daemon, "install", 0), 0, "restarts of a second run");
    expect_labels(&api, &json!("true"));
    setup::await_service(&daemon);
    let cri = Cri::of(&daemon);
    let pod = cri.run("berth", "install-node", |_| ());
    let container = pod.start("c", &["sh", "-c", "sleep 1000"]);
    let program = fs::read_link(format!("/proc/{}/exe", pod.shim())).unwrap();
    assert_eq!(program, node.program());
    assert_eq!(pod.ask(&container, "echo inside"), "inside");
    upgrade(&node, &daemon, &pod);
    expect_labels(&api, &json!("true"));
    assert_eq!(pod.ask(&container, "echo inside"), "inside");
    // The newer program cleans up after the older one's shim.
    host::signal(pod.shim(), "KILL");
    pod.await_exit(&container);
    command::until("the pod is reported dead", || (pod.state().state == NOT_READY).then_some(()));
    pod.remove();

    let pod = cri.run("berth", "install-node-newer", |_| ());
    let container = pod.start("c", &["sh", "-c", "sleep 1000"]);
    assert_eq!(run(&node, &daemon, "remove", 3), 0, "restarts under a pod");
    expect_labels(&api, &Value::Null);
    assert!(node.program().exists(), "the shim of a pod is needed");
    assert_eq!(pod.ask(&container, "echo inside"), "inside");
    pod.stop(&container, 0);
    pod.remove();

    assert_eq!(run(&node, &daemon, "remove", 0), 1, "restarts");
    assert_eq!(fs::read(&node.config).unwrap(), before);
    expect_labels(&api, &Value::Null);
    assert!(!node.program().exists());
    setup::await_service(&daemon);
    assert!(cri.attempt_run("berth", "install-node-gone", |_| ()).is_err(), "no handler");
    let pod = cri.run("stock", "install-node-stock", |_| ());
    pod.remove();
    drop(cri);
    let left = daemon.end();
    assert!(left.is_empty(), "left behind: {}", left.join(", "));
}

/// An image with a newer program: it takes the place of the older one, whose shims run on.
fn upgrade(node: &Node, daemon: &Daemon, pod: &Pod<'_>) {
    let newer = node.dir.join("image/containerd-shim-berth-v1");
    let mut bytes = fs::read(&newer).unwrap();
    bytes.extend(b"newer");
    fs::write(&newer, &bytes).unwrap();
    let shim = pod.shim();
    assert_eq!(run(node, daemon, "install", 0), 0, "restarts for a newer program");
    assert!(fs::read(node.program()).unwrap() == bytes, "the newer program");
    assert_eq!(pod.shim(), shim);
    let program = fs::read_link(format!("/proc/{shim}/exe")).unwrap();
    assert!(program.display().to_string().ends_with(" (deleted)"), "{program:?}");
}

/// Runs the program to its end with status `expected`, and restarts the daemon when it wants that; how
/// often it did.
#[track_caller]
fn run(node: &Node, daemon: &Daemon, action: &str, expected: i32) -> usize {
    let wish = node.dir.join("restart");
    let said = fs::File::create(node.dir.join("said")).unwrap();
    let mut command = node.command(action);
    command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
    let mut child = command.spawn().unwrap();
    let mut restarts = 0;
    let status = command::until("the installer ends", || {
        if wish.exists() {
            daemon.stop("TERM");
            daemon.start_again();
            restarts += 1;
            fs::remove_file(&wish).unwrap();
        }
        child.try_wait().unwrap()
    });
    let said = fs::read_to_string(node.dir.join("said")).unwrap();
    assert_eq!(status.code(), Some(expected), "{action}: {said}{}", daemon.log_about("cri"));
    restarts
}

/// The node was given its labels once.
#[track_caller]
fn expect_labels(api: &Api, value: &Value) {
    let asked = api.take();
    let [patch] = &asked[..] else { panic!("{asked:?}") };
    assert!(patch.head.starts_with("PATCH /api/v1/nodes/n1 HTTP/1.1\r\n"), "{patch:?}");
    for header in ["Authorization: Bearer secret", "Content-Type: application/merge-patch+json"] {
        assert!(patch.head.contains(header), "{patch:?}");
    }
    let labels = json!({ "berth.io/runtime": value, "berth.io/pauseless": null });
    assert_eq!(patch.body, json!({ "metadata": { "labels": labels } }));
}
