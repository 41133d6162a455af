//! The argument vectors of an OCI runtime; pure. The forms are those that runc, crun and youki share
//! ([runc(8)], [OCI runtime command line interface]).
//!
//! [runc(8)]: https://github.com/opencontainers/runc/tree/main/man
//! [OCI runtime command line interface]: https://github.com/opencontainers/runtime-tools/blob/master/docs/command-line-interface.md

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::ids::{ContainerId, Pid};
use crate::runtime::Runtime;
use crate::wire::checkpoint::CheckpointOptions;

/// What stands before the subcommand; for `delete` also without a daemon. Without `log` the runtime says
/// on its standard error why it fails.
pub(crate) fn global(runtime: &Runtime, log: Option<&Path>) -> Vec<OsString> {
    let mut args: Vec<OsString> = runtime.args.iter().map(OsString::from).collect();
    args.extend(["--root".into(), runtime.root.clone().into()]);
    if let Some(log) = log {
        args.extend(["--log".into(), log.into()]);
    }
    args.extend(["--log-format".into(), "json".into()]);
    if runtime.systemd_cgroup {
        args.push("--systemd-cgroup".into());
    }
    args
}

pub(super) fn state(id: &ContainerId) -> Vec<OsString> {
    vec!["state".into(), id.as_str().into()]
}

pub(super) fn create(
    runtime: &Runtime,
    bundle: &Path,
    pid_file: &Path,
    console: Option<&Path>,
    id: &ContainerId,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["create".into(), "--bundle".into(), bundle.into()];
    args.extend(["--pid-file".into(), pid_file.into()]);
    if let Some(console) = console {
        args.extend(["--console-socket".into(), console.into()]);
    }
    if runtime.no_pivot_root {
        args.push("--no-pivot".into());
    }
    if runtime.no_new_keyring {
        args.push("--no-new-keyring".into());
    }
    args.push(id.as_str().into());
    args
}

pub(super) fn start(id: &ContainerId) -> Vec<OsString> {
    vec!["start".into(), id.as_str().into()]
}

/// Where a runtime with pids of its own writes that of an exec process.
pub(crate) fn inner_pid_file(pid_file: &Path) -> PathBuf {
    pid_file.with_extension("inner")
}

pub(super) fn exec(
    runtime: &Runtime,
    process: &Path,
    pid_file: &Path,
    console: Option<&Path>,
    id: &ContainerId,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["exec".into(), "--process".into(), process.into()];
    if let Some(console) = console {
        args.extend(["--console-socket".into(), console.into()]);
    }
    if runtime.inner_pids {
        args.extend(["--internal-pid-file".into(), inner_pid_file(pid_file).into()]);
    }
    args.extend(["--detach".into(), "--pid-file".into(), pid_file.into(), id.as_str().into()]);
    args
}

pub(super) fn kill_inner(id: &ContainerId, signal: u32, pid: Pid) -> Vec<OsString> {
    let pid = pid.to_string();
    vec!["kill".into(), "--pid".into(), pid.into(), id.as_str().into(), signal.to_string().into()]
}

pub(super) fn kill(id: &ContainerId, signal: u32, all: bool) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["kill".into()];
    if all {
        args.push("--all".into());
    }
    args.extend([id.as_str().into(), signal.to_string().into()]);
    args
}

/// As [`global`], also for `delete` without a daemon.
pub(crate) fn delete(id: &ContainerId, force: bool) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["delete".into()];
    if force {
        args.push("--force".into());
    }
    args.push(id.as_str().into());
    args
}

pub(super) fn pause(id: &ContainerId) -> Vec<OsString> {
    vec!["pause".into(), id.as_str().into()]
}

pub(super) fn resume(id: &ContainerId) -> Vec<OsString> {
    vec!["resume".into(), id.as_str().into()]
}

pub(super) fn update(id: &ContainerId, resources: &Path) -> Vec<OsString> {
    vec!["update".into(), "--resources".into(), resources.into(), id.as_str().into()]
}

/// Where a checkpoint lies, and what was allowed when it was made.
#[derive(Clone, Copy)]
pub(crate) struct Checkpoint<'a> {
    /// The directory of CRIU's images.
    pub(crate) image: &'a Path,
    /// The directory of its logs.
    pub(crate) work: &'a Path,
    pub(crate) options: &'a CheckpointOptions,
}

impl Checkpoint<'_> {
    /// What both commands have to be told: CRIU restores nothing that it is not allowed to.
    fn args(self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--image-path".into(), self.image.into()];
        args.extend(["--work-path".into(), self.work.into()]);
        let options = self.options;
        let flags = [
            (options.open_tcp, "--tcp-established"),
            (options.external_unix_sockets, "--ext-unix-sk"),
            (options.terminal, "--shell-job"),
            (options.file_locks, "--file-locks"),
        ];
        args.extend(flags.iter().filter(|(set, _)| *set).map(|(_, flag)| OsString::from(flag)));
        if !options.cgroups_mode.is_empty() {
            args.extend(["--manage-cgroups-mode".into(), options.cgroups_mode.clone().into()]);
        }
        for namespace in &options.empty_namespaces {
            args.extend(["--empty-ns".into(), namespace.into()]);
        }
        args
    }
}

pub(super) fn checkpoint(checkpoint: Checkpoint<'_>, id: &ContainerId) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["checkpoint".into()];
    args.extend(checkpoint.args());
    if !checkpoint.options.parent_path.is_empty() {
        args.extend(["--parent-path".into(), checkpoint.options.parent_path.clone().into()]);
    }
    if !checkpoint.options.exit {
        args.push("--leave-running".into());
    }
    args.push(id.as_str().into());
    args
}

/// berth is the sub-reaper, and the restored process has to become its child.
pub(super) fn restore(
    runtime: &Runtime,
    bundle: &Path,
    pid_file: &Path,
    console: Option<&Path>,
    checkpoint: Checkpoint<'_>,
    id: &ContainerId,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["restore".into(), "--bundle".into(), bundle.into()];
    args.extend(["--detach".into(), "--no-subreaper".into(), "--pid-file".into(), pid_file.into()]);
    if let Some(console) = console {
        args.extend(["--console-socket".into(), console.into()]);
    }
    if runtime.no_pivot_root {
        args.push("--no-pivot".into());
    }
    args.extend(checkpoint.args());
    args.push(id.as_str().into());
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Deadlines;

    fn runtime() -> Runtime {
        Runtime {
            path: "/usr/bin/runc".into(),
            args: Vec::new(),
            env: Vec::new(),
            root: "/run/r/ns".into(),
            systemd_cgroup: false,
            no_pivot_root: false,
            no_new_keyring: false,
            criu_path: String::new(),
            deadlines: Deadlines::default(),
            inner_pids: false,
        }
    }

    #[test]
    fn each_option_has_its_place() {
        let id = ContainerId::new("c").unwrap();
        let all = Runtime {
            args: ["--level".into(), "a b \"c\"".into()].into(),
            systemd_cgroup: true,
            no_pivot_root: true,
            no_new_keyring: true,
            criu_path: "/x/criu".into(),
            ..runtime()
        };
        let inner = Runtime { inner_pids: true, ..runtime() };
        let none = CheckpointOptions::default();
        let options = CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: ["network".into(), "ipc".into()].into(),
            cgroups_mode: "full".into(),
            image_path: "/other".into(),
            work_path: "/other".into(),
            parent_path: "../0".into(),
        };
        let saved = Checkpoint { image: Path::new("/i"), work: Path::new("/w"), options: &options };
        let (log, bundle, pid, console) =
            (Path::new("/l"), Path::new("/b"), Path::new("/p"), Some(Path::new("/s")));
        let cases = [
            (
                "global",
                global(&runtime(), Some(log)),
                "--root /run/r/ns --log /l --log-format json",
            ),
            ("global, no log", global(&runtime(), None), "--root /run/r/ns --log-format json"),
            (
                "global, all",
                global(&all, Some(log)),
                "--level a b \"c\" --root /run/r/ns --log /l --log-format json \
                 --systemd-cgroup",
            ),
            (
                "create",
                create(&runtime(), bundle, pid, None, &id),
                "create --bundle /b --pid-file /p c",
            ),
            (
                "create, all",
                create(&all, bundle, pid, console, &id),
                "create --bundle /b --pid-file /p --console-socket /s --no-pivot --no-new-keyring c",
            ),
            (
                "exec",
                exec(&runtime(), Path::new("/j"), pid, console, &id),
                "exec --process /j --console-socket /s --detach --pid-file /p c",
            ),
            (
                "exec, pids inside",
                exec(&inner, Path::new("/j"), pid, None, &id),
                "exec --process /j --internal-pid-file /p.inner --detach --pid-file /p c",
            ),
            ("kill inside", kill_inner(&id, 15, Pid::new(7).unwrap()), "kill --pid 7 c 15"),
            ("kill", kill(&id, 15, false), "kill c 15"),
            ("kill all", kill(&id, 9, true), "kill --all c 9"),
            ("delete", delete(&id, false), "delete c"),
            ("delete force", delete(&id, true), "delete --force c"),
            ("update", update(&id, Path::new("/j")), "update --resources /j c"),
            (
                "checkpoint",
                checkpoint(Checkpoint { options: &none, ..saved }, &id),
                "checkpoint --image-path /i --work-path /w --leave-running c",
            ),
            (
                "checkpoint, all",
                checkpoint(saved, &id),
                "checkpoint --image-path /i --work-path /w --tcp-established --ext-unix-sk \
                 --shell-job --file-locks --manage-cgroups-mode full --empty-ns network \
                 --empty-ns ipc --parent-path ../0 c",
            ),
            (
                "restore",
                restore(&runtime(), bundle, pid, None, Checkpoint { options: &none, ..saved }, &id),
                "restore --bundle /b --detach --no-subreaper --pid-file /p --image-path /i \
                 --work-path /w c",
            ),
            (
                "restore, all",
                restore(&all, bundle, pid, console, saved, &id),
                "restore --bundle /b --detach --no-subreaper --pid-file /p --console-socket /s \
                 --no-pivot --image-path /i --work-path /w --tcp-established --ext-unix-sk \
                 --shell-job --file-locks --manage-cgroups-mode full --empty-ns network \
                 --empty-ns ipc c",
            ),
        ];
        for (name, args, expected) in cases {
            let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
            assert_eq!(args.join(" "), expected, "{name}");
        }
    }
}
