//! Mounts of the root filesystem: what snapshotters hand out works, and nothing stays mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use containerd_shim_protos::api::Mount;
use serde_json::json;

use crate::support::{Code, Host, Spec, bind, eventually, image, skipped, stock};

/// A snapshotter: given a directory of its own, the mounts of a writable or read-only busybox.
type Snapshot = fn(&Path) -> Vec<Mount>;

const SNAPSHOTS: [(&str, Snapshot); 8] = [
    ("none", |_| Vec::new()),
    ("read-only bind", |_| vec![bind(image_path(), &["rbind", "ro"])]),
    ("overlay", |dir| vec![overlay(dir, &[image().into()])]),
    ("overlay with more lower directories than fit into a page", |dir| {
        let long = dir.join("x".repeat(80));
        fs::create_dir_all(long.join("90")).unwrap();
        make(Command::new("cp").arg("-a").arg(image()).arg(long.join("90/fs")));
        vec![overlay(dir, &(0..=90).map(|n| long.join(format!("{n}/fs"))).collect::<Vec<_>>())]
    }),
    ("one mount over another", |dir| {
        vec![bind(dir.to_str().unwrap(), &["bind"]), bind(image_path(), &["rbind", "ro"])]
    }),
    ("loop with ext4", |dir| {
        let disk = dir.join("disk");
        make(
            Command::new("mke2fs")
                .args(["-q", "-t", "ext4", "-d"])
                .arg(image())
                .arg(&disk)
                .arg("16M"),
        );
        vec![mount("ext4", disk.to_str().unwrap(), &["loop", "ro"])]
    }),
    ("loop with erofs", |dir| {
        let disk = dir.join("disk");
        make(Command::new("mkfs.erofs").arg("--quiet").arg(&disk).arg(image()));
        vec![mount("erofs", disk.to_str().unwrap(), &["loop", "ro"])]
    }),
    ("with options for others", |_| {
        let options = ["rbind", "ro", "X-containerd.custom=1"];
        vec![bind(image_path(), if stock() { &options[..2] } else { &options })]
    }),
];

fn image_path() -> &'static str {
    image().to_str().unwrap()
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount { type_: kind.into(), ..bind(source, options) }
}

fn overlay(dir: &Path, lower: &[PathBuf]) -> Mount {
    let upper = ["upper", "work"].map(|name| dir.join(name));
    for path in upper.iter().chain(lower) {
        fs::create_dir_all(path).unwrap();
    }
    let lower = lower.iter().map(|path| path.to_str().unwrap()).collect::<Vec<_>>().join(":");
    let [upper, work] = upper.map(|path| path.display().to_string());
    let options =
        [format!("lowerdir={lower}"), format!("upperdir={upper}"), format!("workdir={work}")];
    mount("overlay", "overlay", &options.each_ref().map(String::as_str))
}

fn make(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Loop devices whose file is below `dir`.
fn loops(dir: &Path) -> Vec<PathBuf> {
    let blocks = fs::read_dir("/sys/block").unwrap().flatten();
    let files = blocks.filter_map(|e| fs::read_to_string(e.path().join("loop/backing_file")).ok());
    files.map(|file| PathBuf::from(file.trim())).filter(|file| file.starts_with(dir)).collect()
}

/// The spec for a container whose snapshot is `name`: without mounts, its root is elsewhere.
fn spec(name: &str, script: &str) -> Spec {
    let root = if name == "none" { image_path() } else { "rootfs" };
    Spec::sh(script).set("/root/path", json!(root))
}

#[test]
fn a_rootfs_is_mounted_by_create_and_unmounted_by_delete() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    for (number, (name, snapshot)) in SNAPSHOTS.into_iter().enumerate() {
        let dir = host.dir().join(format!("snapshot{number}"));
        fs::create_dir(&dir).unwrap();
        host.prepare("c", spec(name, "exit 3"));
        let mut request = shim.request("c");
        request.rootfs = snapshot(&dir);
        shim.create(&request).unwrap_or_else(|refusal| panic!("{name}: {refusal:?}"));
        assert_eq!(host.mounts().len(), request.rootfs.len(), "{name}");
        shim.start("c", "").unwrap();
        assert_eq!(shim.reap("c", ""), 3, "{name}");
        assert!(host.mounts().is_empty(), "{name}: {:?}", host.mounts());
        eventually(name, || loops(host.dir()).is_empty().then_some(()));
    }
    shim.stop();
}

#[test]
fn a_create_that_fails_after_the_mounts_undoes_them() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    host.script().set("create", "fail no luck");
    for (number, (name, snapshot)) in SNAPSHOTS.into_iter().enumerate() {
        let dir = host.dir().join(format!("snapshot{number}"));
        fs::create_dir(&dir).unwrap();
        host.prepare("c", spec(name, "exit 3"));
        let mut request = shim.request("c");
        request.rootfs = snapshot(&dir);
        let refusal = shim.create(&request).unwrap_err();
        assert!(refusal.message.contains("no luck"), "{name}: {refusal:?}");
        assert!(host.mounts().is_empty(), "{name}: {:?}", host.mounts());
        eventually(name, || loops(host.dir()).is_empty().then_some(()));
    }
    shim.stop();
}

#[test]
fn a_mount_that_fails_undoes_those_before_it_and_is_named() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let good = || bind(image_path(), &["rbind", "ro"]);
    let cases = [
        ("first: no such source", vec![bind("/no/such/dir", &["rbind"])]),
        ("second: no such source", vec![good(), bind("/no/such/dir", &["rbind"])]),
        ("third: no such type", vec![good(), good(), mount("nosuchfs", "/no/such/dir", &[])]),
        ("second: bad option", vec![good(), mount("overlay", "/no/such/dir", &["nosuch=1"])]),
    ];
    for (name, rootfs) in cases {
        let mut request = shim.request("c");
        request.rootfs = rootfs;
        let refusal = shim.create(&request).unwrap_err();
        let named = ["/no/such/dir", "nosuch"].iter().any(|part| refusal.message.contains(part));
        assert!(named || stock(), "{name}: {refusal:?}");
        assert!(host.mounts().is_empty(), "{name}: {:?}", host.mounts());
        assert_eq!(shim.state("c", "").unwrap_err().code, Code::NOT_FOUND, "{name}");
    }
    shim.run("c");
    shim.end();
}

#[test]
fn a_target_puts_a_mount_below_the_root() {
    if skipped("Mount.target") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::sh("read x </tmp/file; exit $x"));
    let volume = host.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "6\n").unwrap();
    let mut below = bind(volume.to_str().unwrap(), &["bind", "ro"]);
    below.target = "/tmp".into();
    let mut request = shim.request("c");
    request.rootfs.push(below);
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    assert_eq!(shim.reap("c", ""), 6);
    assert!(host.mounts().is_empty(), "{:?}", host.mounts());
    shim.stop();
}

#[test]
fn a_target_cannot_leave_the_root() {
    if skipped("Mount.target") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let outside = host.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let mut mount = bind(image_path(), &["bind"]);
    mount.target = "../../../outside".into();
    let mut request = shim.request("c");
    request.rootfs.push(mount);
    if shim.create(&request).is_ok() {
        assert!(!host.mounts().contains(&outside));
        shim.remove("c");
    }
    assert!(host.mounts().is_empty(), "{:?}", host.mounts());
    shim.stop();
}
