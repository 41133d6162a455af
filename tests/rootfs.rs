//! Mounts of the root filesystem: what snapshotters hand out works, and nothing stays mounted.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use containerd_shim_protos::api::Mount;
use serde_json::json;

use crate::support::{Code, Host, Spec, bind, eventually, image, skipped, stock};

/// A snapshotter: given a directory of its own, the mounts of a writable or read-only busybox.
type Snapshot = fn(&Path) -> Vec<Mount>;

const SNAPSHOTS: [(&str, Snapshot); 13] = [
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
    ("loop with direct I/O", |dir| {
        let disk = dir.join("disk");
        make(
            Command::new("mke2fs")
                .args(["-q", "-t", "ext4", "-b", "4096", "-d"])
                .arg(image())
                .arg(&disk)
                .arg("16M"),
        );
        vec![mount("ext4", disk.to_str().unwrap(), &["loop", "direct-io", "rw"])]
    }),
    ("erofs without a loop device", |dir| {
        let disk = dir.join("disk");
        make(Command::new("mkfs.erofs").arg("--quiet").arg(&disk).arg(image()));
        vec![mount("erofs", disk.to_str().unwrap(), &["ro"])]
    }),
    ("bind over tmpfs", |_| {
        vec![mount("tmpfs", "tmpfs", &["size=1m"]), bind(image_path(), &["rbind", "ro"])]
    }),
    ("bind with other owners", |_| {
        let maps = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"];
        vec![bind(image_path(), &["rbind", "ro", maps[0], maps[1]])]
    }),
    (FUSE, |dir| {
        let mut mount = overlay(dir, &[image().into()]);
        mount.type_ = "fuse3.fuse-overlayfs".into();
        vec![mount]
    }),
    ("with options for others", |_| {
        let options = ["rbind", "ro", "X-containerd.custom=1"];
        vec![bind(image_path(), if stock() { &options[..2] } else { &options })]
    }),
];

/// The one of the snapshots that has a process of its own.
const FUSE: &str = "FUSE through its helper";

/// What today's stock shim can, too, but those of the packaged versions cannot.
const NOT_STOCK: [&str; 3] =
    ["loop with direct I/O", "erofs without a loop device", "bind with other owners"];

/// The snapshots that the shim under test can mount, numbered.
fn snapshots() -> impl Iterator<Item = (usize, (&'static str, Snapshot))> {
    let able = |(name, _): &(&str, Snapshot)| !NOT_STOCK.contains(name) || !skipped(name);
    SNAPSHOTS.into_iter().filter(able).enumerate()
}

/// Whether a FUSE file system of this host is being served.
fn is_served(host: &Host) -> bool {
    host.processes().iter().any(|process| process.line.contains("fuse-overlayfs"))
}

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

/// Whether a loop device whose file is below `dir` bypasses the page cache.
fn uses_direct_io(dir: &Path) -> bool {
    let blocks = fs::read_dir("/sys/block").unwrap().flatten();
    let text = |device: &Path, name| fs::read_to_string(device.join(name)).unwrap_or_default();
    let direct = |device: &Path| {
        let ours = Path::new(text(device, "loop/backing_file").trim()).starts_with(dir);
        ours && text(device, "loop/dio").trim() == "1"
    };
    blocks.into_iter().any(|block| direct(&block.path()))
}

/// Whether the file system of `file` can do that: tmpfs cannot before Linux 6.6.
fn takes_direct_io(file: &Path) -> bool {
    fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(file).is_ok()
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
    for (number, (name, snapshot)) in snapshots() {
        let dir = host.dir().join(format!("snapshot{number}"));
        fs::create_dir(&dir).unwrap();
        host.prepare("c", spec(name, "exit 3"));
        let mut request = shim.request("c");
        request.rootfs = snapshot(&dir);
        shim.create(&request).unwrap_or_else(|refusal| panic!("{name}: {refusal:?}"));
        assert_eq!(host.mounts().len(), request.rootfs.len(), "{name}");
        let direct = name == "loop with direct I/O" && takes_direct_io(&dir.join("disk"));
        assert_eq!(uses_direct_io(host.dir()), direct, "{name}");
        let owner =
            fs::metadata(host.bundle("c").join("rootfs/bin/busybox")).map(|file| file.uid());
        let expected = if name == "bind with other owners" { 100_000 } else { 0 };
        assert!(name == "none" || owner.as_ref().is_ok_and(|uid| *uid == expected), "{owner:?}");
        assert_eq!(is_served(&host), name == FUSE, "{name}: {:?}", host.processes());
        shim.start("c", "").unwrap();
        assert_eq!(shim.reap("c", ""), 3, "{name}");
        assert!(host.mounts().is_empty(), "{name}: {:?}", host.mounts());
        eventually(name, || (loops(host.dir()).is_empty() && !is_served(&host)).then_some(()));
    }
    shim.stop();
}

#[test]
fn a_create_that_fails_after_the_mounts_undoes_them() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    host.script().set("create", "fail no luck");
    for (number, (name, snapshot)) in snapshots() {
        let dir = host.dir().join(format!("snapshot{number}"));
        fs::create_dir(&dir).unwrap();
        host.prepare("c", spec(name, "exit 3"));
        let mut request = shim.request("c");
        request.rootfs = snapshot(&dir);
        let refusal = shim.create(&request).unwrap_err();
        assert!(refusal.message.contains("no luck"), "{name}: {refusal:?}");
        assert!(host.mounts().is_empty(), "{name}: {:?}", host.mounts());
        eventually(name, || (loops(host.dir()).is_empty() && !is_served(&host)).then_some(()));
    }
    shim.stop();
}

#[test]
fn delete_unmounts_after_a_killed_daemon() {
    for (_, (name, snapshot)) in snapshots() {
        let host = Host::new();
        let dir = host.dir().join("snapshot");
        fs::create_dir(&dir).unwrap();
        let shim = host.start("c", spec(name, "exec sleep 1000"));
        let mut request = shim.request("c");
        request.rootfs = snapshot(&dir);
        shim.create(&request).unwrap_or_else(|refusal| panic!("{name}: {refusal:?}"));
        shim.start("c", "").unwrap();
        shim.crash();
        host.delete("c");
        if stock() {
            host.forgive_sockets();
        }
        assert!(host.mounts().is_empty(), "{name}: {:?}", host.mounts());
        eventually(name, || loops(host.dir()).is_empty().then_some(()));
        eventually(name, || host.processes().is_empty().then_some(()));
    }
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
