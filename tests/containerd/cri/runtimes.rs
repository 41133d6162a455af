//! Each way of a pod to choose berth's OCI runtime.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::setup::{self, NAMESPACE, Plugins};
use super::{Cri, owned};
use crate::bed::Bed;
use crate::recorder::Recorder;
use crate::{Case, Runtime, command, config, host, image, own};

pub(crate) const CASES: &[Case] = &[own("cri-runtimes", runtimes)];

/// Each way of a handler to say which runtime: an options table in the plugin's CamelCase, the path
/// of a configuration, runc's options, and the pod's annotation.
fn runtimes(bed: &Bed<'_>) {
    let dir = bed.daemon.dir().join("cri");
    let names = ["table", "file", "options", "annotated"];
    let [table, file, options, annotated] = names.map(|name| Recorder::write(&dir, name, 0));
    let [_, path] = config::write(
        &dir.join("file.toml"),
        &format!(
            "default_runtime = \"file\"\n\
             runtimes.file.path = {:?}\n\
             runtimes.annotated.path = {:?}\n",
            file.program, annotated.program,
        ),
    );
    let handlers = format!(
        "[@table]\n\
         runtime_type = \"io.containerd.berth.v1\"\n\
         pod_annotations = [\"io.containerd.berth.*\"]\n\
         [@table.options]\n\
         DefaultRuntime = \"table\"\n\
         [@table.options.Runtimes.table]\n\
         Path = {:?}\n\
         Root = {:?}\n\
         [@file]\n\
         runtime_type = \"io.containerd.berth.v1\"\n\
         pod_annotations = [\"io.containerd.berth.*\"]\n\
         [@file.options]\n\
         ConfigPath = {path:?}\n\
         [@options]\n\
         runtime_type = \"io.containerd.runc.v2\"\n\
         [@options.options]\n\
         BinaryName = {:?}\n\
         Root = {:?}\n\
         [@wrong]\n\
         runtime_type = \"io.containerd.berth.v1\"\n\
         [@wrong.options]\n\
         DefaultRuntim = \"table\"\n",
        table.program,
        dir.join("table-root"),
        options.program,
        dir.join("options-root"),
    );
    // Clients that want runc's shim send runc's options, and get berth.
    fs::create_dir_all(dir.join("bin")).unwrap();
    let berth = Path::new(env!("CARGO_BIN_EXE_containerd-shim-berth-v1"));
    symlink(berth, dir.join("bin/containerd-shim-runc-v2")).unwrap();
    let version = &bed.daemon.version;
    let handlers = handlers.replace("[@", &format!("[{}.", Plugins::of(version).runtimes));
    let programs = bed.daemon.programs();
    let daemon = setup::start_with(version, programs, Runtime::Runc, &dir, "file", &handlers);
    let cri = Cri::of(&daemon);
    let annotation = ("io.containerd.berth.runtime", "annotated");
    let rows = [
        ("table", None, &table, Some("table-root")),
        ("file", None, &file, None),
        ("options", None, &options, Some("options-root")),
        ("file", Some(annotation), &annotated, None),
    ];
    // The plugin of 1.6 hands a path on, but no table.
    let tables = cri.daemon.version != "1.6";
    for (handler, annotation, recorder, root) in
        rows.into_iter().filter(|(handler, ..)| tables || *handler != "table")
    {
        let annotate = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let pod = cri.run(handler, &format!("cri-runtimes-{handler}"), |pod| {
            pod.annotations.extend(annotation.map(annotate));
        });
        let container = pod.start("c", &["sh", "-c", "sleep 1000"]);
        let exec = pod.exec(&container, &["sh", "-c", "echo inside; exit 6"]);
        assert_eq!((exec.exit_code, &*exec.stdout), (6, &b"inside\n"[..]), "{handler}");
        let second = pod.start("d", &["sh", "-c", "exit 3"]);
        assert_eq!(pod.await_exit(&second).exit_code, 3, "{handler}");
        let id = pod.id.clone();
        pod.remove();
        let commands = recorder.commands(&container);
        let own = owned(&["create", "start", "exec"]);
        assert!(commands.starts_with(&own), "{handler}: {commands:?}");
        let commands = recorder.commands(&id);
        assert!(commands.starts_with(&own[..2]), "{handler}: {commands:?}");
        for call in recorder.calls(&container) {
            let root = root.map(|root| dir.join(root).display().to_string());
            let used = root.is_none_or(|root| call.args.contains(&format!("{root}/{NAMESPACE}")));
            assert!(used, "{handler}: {call:?}");
        }
    }
    if tables {
        let refused = cri
            .attempt_run("wrong", "cri-runtimes-wrong", |_| ())
            .err()
            .expect("a wrong table is refused");
        let told = ["create option ConfigBody", "\"default_runtime\""];
        assert!(told.iter().all(|part| refused.message.contains(part)), "{refused:?}");
    }
    runc_flags(&cri, &dir);
    host::remove_namespace(NAMESPACE);
    let left = daemon.end();
    assert!(left.is_empty(), "left behind: {}", left.join(", "));
}

/// `ctr run --runc-binary --runc-root`, from which ctr makes runc's options where the shim bears the
/// name of runc's.
fn runc_flags(cri: &Cri, dir: &Path) {
    let recorder = Recorder::write(dir, "flags", 0);
    let root = dir.join("flags-root").display().to_string();
    let mut run = cri.daemon.ctr(NAMESPACE);
    run.args(["run", "--rm", "--runtime", "io.containerd.runc.v2", "--runc-root", &root]);
    run.arg("--runc-binary").arg(&recorder.program).arg("--fifo-dir").arg(cri.daemon.fifo_dir());
    let output = command::run(run.args([image::NAME, "cri-flags", "sh", "-c", "exit 8"]), b"");
    assert_eq!(output.status, 8, "{}", output.stderr);
    assert_eq!(recorder.commands("cri-flags"), ["create", "start", "delete"]);
    for call in recorder.calls("cri-flags") {
        assert!(call.args.contains(&format!("{root}/{NAMESPACE}")), "{call:?}");
    }
}
