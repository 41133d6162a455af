//! Rootless: shim, runtime and container in a user namespace, as rootless containerd runs them.
//!
//! Each test runs itself once more there: as `unshare --map-root-user` makes it for root, with a
//! `/run` of its own, and for an ordinary user, whose files are in `$XDG_RUNTIME_DIR`. All that plays
//! containerd is inside, too.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::shim::oci::Options;
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, chown};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::json;

use crate::support::{
    Host, RUN, Shim, Spec, Stdin, binary, bind, eventually, image, processes, stock,
};

/// Tells a test that it is inside; its value marks all processes there.
const INSIDE: &str = "BERTH_TEST_ROOTLESS";

/// Outside, the ids of the ordinary user, who need not exist.
const USER: u32 = 12345;

/// Whom the root of the user namespace is outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Root,
    User,
}

/// What an [`Owner::User`] has outside; removed when dropped.
struct Home {
    dir: PathBuf,
    fuse: PathBuf,
}

impl Home {
    fn new(tag: &str) -> Self {
        let home = Self {
            dir: Path::new("/run").join(tag),
            fuse: Path::new(env!("CARGO_TARGET_TMPDIR")).join(tag),
        };
        fs::create_dir(&home.dir).unwrap();
        // The node that udev makes for everybody may be root's alone where there is no udev.
        mknod(&home.fuse, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(10, 229))
            .unwrap();
        for path in [&home.dir, &home.fuse] {
            chown(path, Some(Uid::from_raw(USER)), Some(Gid::from_raw(USER))).unwrap();
        }
        home
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.fuse));
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Runs the ignored test `name` of this file in a user namespace of each owner.
fn inside(name: &str) {
    if stock() {
        return;
    }
    static COUNT: AtomicU32 = AtomicU32::new(0);
    image(); // nobody inside could make it
    for owner in [Owner::Root, Owner::User] {
        let tag = format!("br{}-{}h", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let home = Home::new(&tag);
        let Some(mut command) = in_user_namespace(owner, &home) else { continue };
        command.args([&format!("rootless::{name}"), "--exact", "--ignored", "--nocapture"]);
        let output = command.env(INSIDE, &tag).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success() && text.contains("1 passed"), "{owner:?}: {text}");
        text.lines().filter(|line| line.contains("skipped")).for_each(|line| eprintln!("{line}"));
        eventually(&format!("{owner:?}: the end of {:?}", processes(&tag)), || {
            processes(&tag).is_empty().then_some(())
        });
    }
}

/// This program, to run there; `None`, and says so, if the owner cannot.
fn in_user_namespace(owner: Owner, home: &Home) -> Option<Command> {
    let program = std::env::current_exe().unwrap();
    let unshare = ["--user", "--map-root-user", "--mount", "--propagation", "private", "sh", "-c"];
    if owner == Owner::Root {
        let mut command = Command::new("unshare");
        command.args(unshare).args(["mount -t tmpfs tmpfs /run && exec \"$0\" \"$@\""]);
        command.arg(program).env_remove("XDG_RUNTIME_DIR").env("HOME", &home.dir);
        return Some(command);
    }
    let user = || {
        let mut command = Command::new("setpriv");
        let ids = [format!("--reuid={USER}"), format!("--regid={USER}")];
        command.args(ids).arg("--clear-groups");
        command
    };
    for needed in [program.as_path(), Path::new(&binary()), &image().join("bin/sh")] {
        if !user().args(["test", "-x"]).arg(needed).status().unwrap().success() {
            eprintln!("skipped for an ordinary user, who cannot execute {}", needed.display());
            return None;
        }
    }
    // AppArmor or a sysctl may keep user namespaces, or what they are good for, from users.
    let probe =
        user().arg("unshare").args(unshare).arg("mount -t tmpfs tmpfs /tmp").output().unwrap();
    if !probe.status.success() {
        let why = String::from_utf8_lossy(&probe.stderr);
        eprintln!("skipped for an ordinary user, who may not mount in a user namespace: {why}");
        return None;
    }
    let mut command = user();
    command.arg("unshare").args(unshare);
    command.args(["mount --bind \"$0\" /dev/fuse && exec \"$@\""]).arg(&home.fuse).arg(program);
    command.env("XDG_RUNTIME_DIR", &home.dir).env("HOME", &home.dir).env(RUN, &home.dir);
    Some(command)
}

/// Who owns this user namespace; panics outside of one.
fn owner() -> Owner {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    match map.split_whitespace().collect::<Vec<_>>()[..] {
        ["0", "0", "1"] => Owner::Root,
        ["0", _, "1"] => Owner::User,
        _ => panic!("run by another test only"),
    }
}

/// A container that an ordinary user may run: the cgroups are not his.
fn spec(script: &str) -> Spec {
    let spec = Spec::sh(script).set("/root/readonly", json!(false));
    if owner() == Owner::User { spec.set("/linux/cgroupsPath", json!("")) } else { spec }
}

/// Layers of a writable container in `dir`, in the words of containerd's snapshotter.
fn overlay(dir: &Path) -> Mount {
    let [top, upper, work] = ["top", "upper", "work"].map(|name| dir.join(name));
    for path in [&top.join("tmp"), &upper, &work] {
        fs::create_dir_all(path).unwrap();
    }
    fs::write(top.join("tmp/old"), "").unwrap(); // the image's files are not an ordinary user's
    let options = [
        "index=off".to_owned(),
        format!("workdir={}", work.display()),
        format!("upperdir={}", upper.display()),
        format!("lowerdir={}:{}", top.display(), image().display()),
    ];
    let options = options.each_ref().map(String::as_str);
    Mount { type_: "overlay".into(), ..bind("overlay", &options) }
}

/// A directory in which the kernel refuses every upper layer, since it is an overlay itself.
struct Refusing(PathBuf);

impl Refusing {
    fn new(host: &Host) -> Self {
        let dir = host.dir().join("refusing");
        fs::create_dir(&dir).unwrap();
        let inner = overlay(&host.dir().join("outer"));
        mount("overlay", &dir, "overlay", MsFlags::empty(), &inner.options.join(","));
        Self(dir)
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        let _ = nix::mount::umount(&self.0); // gone with the namespace at the latest
    }
}

fn mount(source: &str, target: &Path, kind: &str, flags: MsFlags, data: &str) {
    nix::mount::mount(Some(source), target, Some(kind), flags, Some(data)).unwrap();
}

/// The type of what is mounted on the rootfs of container `id`.
fn rootfs_kind(host: &Host, id: &str) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let rootfs = host.bundle(id).join("rootfs");
    let mut lines = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let line = lines.find(|words| Path::new(words[1]) == rootfs)?;
    Some(line[2].to_owned())
}

fn create(host: &Host, shim: &Shim<'_>, rootfs: Mount, kind: &str) {
    let mut request = shim.request("c");
    request.rootfs = vec![rootfs];
    shim.create(&request).unwrap();
    assert_eq!(rootfs_kind(host, "c").as_deref(), Some(kind));
}

/// The life of a container with an overlay in `dir`, which is to be mounted as `kind`.
fn live(host: &Host, shim: &Shim<'_>, dir: &Path, kind: &str) {
    host.prepare("c", spec("id; read x; echo \"$x\" >/tmp/new; cat /tmp/new; rm /tmp/old; exit 3"));
    let streams = host.streams(&format!("init-{kind}"), [true; 3]);
    let mut request = shim.request("c");
    streams.to_create(&mut request);
    request.rootfs = vec![overlay(dir)];
    shim.create(&request).unwrap();
    assert_eq!(rootfs_kind(host, "c").as_deref(), Some(kind));
    shim.start("c", "").unwrap();
    if can_exec(host) {
        let execs = host.streams(&format!("exec-{kind}"), [false, true, true]);
        let mut exec = shim.exec_request("c", "e", "echo exec; exit 4");
        execs.to_exec(&mut exec);
        shim.exec(&exec).unwrap();
        shim.start("c", "e").unwrap();
        assert_eq!(shim.reap("c", "e"), 4);
        assert_eq!(execs.out().finish(), "exec\n");
    }
    std::io::Write::write_all(&mut streams.writer(), b"in\n").unwrap();
    assert_eq!(shim.reap("c", ""), 3, "{}", streams.err().text());
    assert_eq!(streams.out().finish(), "uid=0 gid=0\nin\n");
    assert_eq!(fs::read_to_string(dir.join("upper/tmp/new")).unwrap(), "in\n");
    assert!(dir.join("top/tmp/old").exists());

    host.prepare("c", spec("exec sleep 1000"));
    create(host, shim, overlay(&dir.join("again")), kind);
    shim.start("c", "").unwrap();
    if can_exec(host) {
        shim.exec_run("c", "e", "exec sleep 1000").unwrap();
        shim.kill_all("c", libc::SIGTERM).unwrap(); // which sleep, as PID 1, does not hear
        assert_eq!(shim.reap("c", "e"), 143);
    }
    shim.kill_all("c", libc::SIGKILL).unwrap();
    assert_eq!(shim.reap("c", ""), 137);
}

/// crun does not without a freezer cgroup where there is cgroup v1.
fn can_exec(host: &Host) -> bool {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let can = owner() == Owner::Root || unified || !host.runtime().ends_with("crun");
    if !can {
        eprintln!("skipped for an ordinary user on cgroup v1: exec with crun");
    }
    can
}

/// Nothing is left of the containers, nor of a FUSE file system.
fn nothing_is_mounted(host: &Host) {
    assert_eq!(rootfs_kind(host, "c"), None);
    eventually("the end of fuse-overlayfs", || {
        let served = |line: &str| line.contains("fuse-overlayfs");
        (!host.processes().iter().any(|process| served(&process.line))).then_some(())
    });
}

#[test]
fn a_container_lives_in_a_user_namespace() {
    inside("inside_a_life");
}

#[test]
#[ignore = "runs inside a user namespace"]
fn inside_a_life() {
    let host = Host::new();
    let shim = host.start("c", spec("exit 0"));
    let sockets = match owner() {
        Owner::Root => PathBuf::from("/run/containerd/s"),
        Owner::User => {
            PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR").unwrap()).join("containerd/s")
        }
    };
    let socket = PathBuf::from(shim.address().trim_start_matches("unix://"));
    assert_eq!(socket.parent(), Some(sockets.as_path()));
    let score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    let score = |pid| score(pid).trim().parse::<i32>().unwrap();
    assert_eq!(score(shim.pid().unsigned_abs()), (score(std::process::id()) + 1).min(1000));
    live(&host, &shim, &host.dir().join("kernel"), "overlay");
    if has_fuse() {
        let refusing = Refusing::new(&host);
        live(&host, &shim, &refusing.0, "fuse.fuse-overlayfs");
        nothing_is_mounted(&host);
        shim.log().wait_for("an overlay: Invalid argument");
        shim.log().wait_for("fuse-overlayfs has mounted");
    }
    assert!(!shim.log().text().contains("level=warn"), "{}", shim.log().text());
    shim.stop();
}

fn has_fuse() -> bool {
    let there = File::options().read(true).write(true).open("/dev/fuse");
    if let Err(error) = &there {
        eprintln!("skipped for {:?}: fuse-overlayfs, /dev/fuse: {error}", owner());
    }
    there.is_ok()
}

#[test]
fn delete_cleans_up_in_a_user_namespace() {
    inside("inside_a_crash");
}

#[test]
#[ignore = "runs inside a user namespace"]
fn inside_a_crash() {
    let host = Host::new();
    let kernel = host.dir().join("kernel");
    let refusing = Refusing::new(&host);
    let cases = [(kernel.as_path(), "overlay"), (refusing.0.as_path(), "fuse.fuse-overlayfs")];
    for (dir, kind) in &cases[..if has_fuse() { 2 } else { 1 }] {
        let shim = host.start("c", spec("exec sleep 1000"));
        create(&host, &shim, overlay(dir), kind);
        shim.start("c", "").unwrap();
        shim.crash();
        host.delete("c");
        nothing_is_mounted(&host);
        eventually(kind, || host.processes().is_empty().then_some(()));
        fs::remove_dir_all(host.bundle("c")).unwrap();
    }
}

#[test]
fn the_configuration_chooses_who_mounts_overlays() {
    inside("inside_by_choice");
}

#[test]
#[ignore = "runs inside a user namespace"]
fn inside_by_choice() {
    let fuse = "fuse.fuse-overlayfs";
    let cases = [
        ("false", false, Ok("overlay")),
        ("false", true, Err("Invalid argument (os error 22); the kernel log (dmesg) may say why")),
        ("true", false, Ok(fuse)),
        ("true", true, Ok(fuse)),
        ("\"auto\"", false, Ok("overlay")),
    ];
    for (choice, refuse, expected) in cases {
        if expected == Ok(fuse) && !has_fuse() {
            continue;
        }
        let host = Host::new().configured(&format!("fuse_overlayfs = {choice}"));
        let refusing = Refusing::new(&host);
        let plain = host.dir().join("plain");
        let shim = host.start("c", spec("exit 6"));
        let mut request = shim.request("c");
        request.rootfs = vec![overlay(if refuse { &refusing.0 } else { &plain })];
        match (shim.create(&request), expected) {
            (Ok(_), Ok(kind)) => {
                assert_eq!(rootfs_kind(&host, "c").as_deref(), Some(kind), "{choice} {refuse}");
                shim.start("c", "").unwrap();
                assert_eq!(shim.reap("c", ""), 6, "{choice} {refuse}");
            }
            (Err(refusal), Err(end)) => assert!(refusal.message.ends_with(end), "{refusal:?}"),
            (got, _) => panic!("{choice} {refuse}: {got:?}"),
        }
        nothing_is_mounted(&host);
        shim.stop();
    }
}

#[test]
fn a_fallback_that_is_missing_is_said_beside_the_refusal() {
    inside("inside_without_fuse_overlayfs");
}

#[test]
#[ignore = "runs inside a user namespace"]
fn inside_without_fuse_overlayfs() {
    let host = Host::new();
    let refusing = Refusing::new(&host);
    let path = std::env::var("PATH").unwrap();
    for program in
        path.split(':').chain(["/usr/bin"]).map(|dir| Path::new(dir).join("fuse-overlayfs"))
    {
        if program.is_file() {
            mount("/dev/null", &program, "", MsFlags::MS_BIND, "");
        }
    }
    let shim = host.start("c", spec("exit 0"));
    let mut request = shim.request("c");
    request.rootfs = vec![overlay(&refusing.0)];
    let refusal = shim.create(&request).unwrap_err().message;
    for part in ["Invalid argument", "install fuse-overlayfs"] {
        assert!(refusal.contains(part), "{refusal}");
    }
    nothing_is_mounted(&host);
    shim.stop();
}

#[test]
fn a_cgroup_that_the_shim_cannot_join_is_no_failure_in_a_user_namespace() {
    inside("inside_without_a_cgroup");
}

#[test]
#[ignore = "runs inside a user namespace"]
fn inside_without_a_cgroup() {
    let host = Host::new();
    let options = Options { shim_cgroup: "/no/such/cgroup".into(), ..Default::default() };
    let any = Any {
        type_url: "containerd.runc.v1.Options".into(),
        value: options.write_to_bytes().unwrap(),
        ..Default::default()
    };
    host.prepare("c", spec("exit 5"));
    let shim = host.attach("c", &Stdin::Options(any.write_to_bytes().unwrap()));
    shim.log().wait_for("the shim stays in containerd's cgroup");
    shim.run("c");
    assert_eq!(shim.reap("c", ""), 5);
    shim.stop();
}
