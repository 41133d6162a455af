//! Where CRIU is missing, cannot work, or fails: the error says so and what to do.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Status;
use containerd_shim_protos::shim::oci::CheckpointOptions;

use super::super::support::{Code, Host, Shim, Spec};
use super::{COUNTER, counting, criu, exit, host_with, image, restoring};

/// A directory with nothing but `programs`.
fn programs(host: &Host, programs: &[&str]) -> PathBuf {
    let dir = host.dir().join("programs");
    fs::create_dir_all(&dir).unwrap();
    let path = std::env::var("PATH").unwrap();
    for program in programs {
        let found = std::env::split_paths(&path).map(|dir| dir.join(program));
        symlink(found.into_iter().find(|path| path.exists()).unwrap(), dir.join(program)).unwrap();
    }
    dir
}

/// A script at `path`.
fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The refusal of a checkpoint of a container that runs, and goes on to.
fn refused(shim: &Shim<'_>) -> (Code, String) {
    let options = shim.options(|_| {});
    let mut request = shim.request("c");
    request.options = Some(options).into();
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    let image = image(shim.host(), "image");
    let refusal = shim.checkpoint("c", &image, &CheckpointOptions::default()).unwrap_err();
    assert_eq!(shim.state("c", "").unwrap().status.unwrap(), Status::RUNNING);
    shim.remove("c");
    (refusal.code, refusal.message)
}

#[test]
fn what_is_missing_on_the_host_is_named() {
    if std::env::var("BERTH_TEST_RUNTIME").is_ok_and(|runtime| runtime != "runc") {
        return; // see below
    }
    let host = Host::new();
    let path = programs(&host, &["runc"]);
    let host = host.with_env("PATH", path.to_str().unwrap()).configured("");
    let shim = host.start("c", Spec::idle());
    let (code, message) = refused(&shim);
    assert_eq!(code, Code::FAILED_PRECONDITION, "{message}");
    for words in ["CRIU", "install CRIU", "criu_path", "\"criu\": executable file not found"] {
        assert!(message.contains(words), "{message}");
    }
    // One that is too old or on a kernel without what it needs.
    script(
        &path.join("criu"),
        "[ \"$1\" = check ] && { echo 'the kernel lacks CONFIG_X' >&2; exit 1; }; exit 1",
    );
    host.prepare("c", Spec::idle());
    let (_, message) = refused(&shim);
    for words in ["`runc checkpoint` failed", "criu check", "the kernel lacks CONFIG_X"] {
        assert!(message.contains(words), "{message}");
    }
    shim.stop();
}

#[test]
fn a_configured_criu_that_is_not_there_is_named() {
    let host = Host::new();
    let runtime = host.runtime();
    let text = format!(
        "default_runtime = \"x\"\n[runtimes.x]\npath = {runtime:?}\ncriu_path = \"/no/such/criu\"\n"
    );
    let text = text.replace(&format!("{runtime:?}"), &format!("{:?}", program(&runtime)));
    let host = host.configured(&text);
    let shim = host.start("c", Spec::idle());
    let mut request = shim.request("c");
    request.options = Some(shim.options(|options| options.binary_name.clear())).into();
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    let refusal = shim.checkpoint("c", &image(&host, "image"), &exit()).unwrap_err();
    assert_eq!(refusal.code, Code::FAILED_PRECONDITION, "{refusal:?}");
    assert!(refusal.message.contains("/no/such/criu"), "{refusal:?}");
    assert!(refusal.message.contains("criu_path"), "{refusal:?}");
    shim.end();
}

/// Where a runtime is.
fn program(name: &str) -> String {
    let path = std::env::var("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name));
    let found = found.into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| name.into()).to_str().unwrap().into()
}

#[test]
fn the_configured_criu_is_used_whatever_its_name_is() {
    let Some(criu) = criu() else { return };
    for way in ["option", "configuration"] {
        let host = Host::new();
        let named = host.dir().join("another-name");
        symlink(&criu, &named).unwrap();
        let path = programs(&host, &["runc", "tar", "gzip", "sh"]);
        let text = match way {
            "option" => String::new(),
            _ => format!(
                "default_runtime = \"x\"\n[runtimes.x]\npath = {:?}\ncriu_path = {named:?}\n",
                program("runc")
            ),
        };
        let host = host.configured(&text).with_env("PATH", path.to_str().unwrap());
        let shim = host.start("c", Spec::idle());
        let mut request = shim.request("c");
        let options = |options: &mut containerd_shim_protos::shim::oci::Options| match way {
            "option" => {
                // The crate's message is containerd 2's, which has the field no more; 1.6's clients
                // send it.
                let fields = options.special_fields.mut_unknown_fields();
                fields.add_length_delimited(8, named.to_str().unwrap().into());
            }
            _ => options.binary_name.clear(),
        };
        request.options = Some(shim.options(options)).into();
        shim.create(&request).unwrap();
        shim.start("c", "").unwrap();
        shim.checkpoint("c", &image(&host, "image"), &exit()).unwrap();
        assert_eq!(shim.reap("c", ""), 137, "{way}");
        assert!(!host.files("c").iter().any(|file| file.contains("criu")), "{:?}", host.files("c"));
        shim.stop();
    }
}

#[test]
fn a_runtime_without_checkpoints_is_named() {
    let real = std::env::var("BERTH_TEST_RUNTIME");
    let host = Host::scripted();
    if !real.is_ok_and(|runtime| runtime == "crun") {
        host.script().set("checkpoint", "fail unknown command checkpoint"); // as crun 1.8.1 says it
    }
    let shim = host.start("c", Spec::idle());
    let (code, message) = refused(&shim);
    assert_eq!(code, Code::FAILED_PRECONDITION, "{message}");
    assert!(message.contains("no `checkpoint`") && message.contains("such as runc"), "{message}");
    shim.stop();
}

#[test]
fn criu_has_its_say_when_a_restore_fails() {
    let Some(criu) = criu() else { return };
    let host = host_with(&criu);
    let (shim, _streams) = counting(&host);
    let image = image(&host, "image");
    shim.checkpoint("c", &image, &exit()).unwrap();
    shim.reap("c", "");
    let inventory = Path::new(&image).join("inventory.img");
    let saved = fs::read(&inventory).unwrap();
    fs::write(&inventory, "no inventory").unwrap();

    host.prepare("r", Spec::sh(COUNTER));
    shim.create(&restoring(&shim, "r", &image)).unwrap();
    let waiter = {
        let task = shim.task();
        std::thread::spawn(move || task.wait("r", ""))
    };
    let refusal = shim.start("r", "").unwrap_err();
    for words in ["`runc restore` failed", "restore.log", "Error (criu/"] {
        assert!(refusal.message.contains(words), "{refusal:?}");
    }
    assert!(refusal.message.len() < 2048, "{refusal:?}");
    let state = shim.state("r", "").unwrap();
    assert_eq!((state.status.unwrap(), state.pid), (Status::CREATED, 0));
    drop(waiter.join().unwrap()); // it was told that nothing ran, or comes to wait for the next Start
    assert_eq!(host.states(), Vec::<PathBuf>::new(), "the runtime keeps nothing");
    // It can be tried again, or deleted.
    fs::write(&inventory, saved).unwrap();
    shim.start("r", "").unwrap();
    shim.kill("r", "", 15).unwrap();
    assert_eq!(shim.reap("r", ""), 7);
    host.sink.expect("r", &["create r", "start r", "exit r 7", "delete r 7"]);

    host.prepare("q", Spec::sh(COUNTER));
    fs::write(&inventory, "no inventory").unwrap();
    shim.create(&restoring(&shim, "q", &image)).unwrap();
    shim.start("q", "").unwrap_err();
    shim.delete("q", "").unwrap();
    host.sink.expect("q", &["create q", "delete q"]);
    shim.stop();
}

#[test]
fn the_log_of_an_earlier_failure_is_not_told_again() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    host.script().set("checkpoint", "fail on purpose");
    let work = image(&host, "work");
    fs::create_dir(&work).unwrap();
    fs::write(Path::new(&work).join("dump.log"), "(00.1) Error (old.c:1): old\n").unwrap();
    let options = CheckpointOptions { work_path: work, ..Default::default() };
    let refusal = shim.checkpoint("c", &image(&host, "image"), &options).unwrap_err();
    assert!(refusal.message.contains("on purpose"), "{refusal:?}");
    assert!(!refusal.message.contains("old.c"), "{refusal:?}");
    shim.end();
}
