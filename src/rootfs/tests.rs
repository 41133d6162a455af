//! Real mounts, for which the tests have to be root and to find the tools named in them.

mod fuse;

use std::cell::RefCell;
use std::fs;
use std::future::Future;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;

/// A bundle's directory; nothing may be mounted in it when the test ends.
struct Bundle(TempDir);

impl Bundle {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the rootfs tests mount: run them as root");
        Self(tempfile::Builder::new().prefix("berth-rootfs").tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn rootfs(&self) -> PathBuf {
        self.path("rootfs")
    }

    /// Makes directories, each with a file of its own name in it.
    fn directories(&self, names: &[&str]) {
        for name in names {
            let directory = self.path(name);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(name.replace('/', "-")), name).unwrap();
        }
    }

    fn mounted(&self) -> Vec<PathBuf> {
        crate::sys::mount::mounted_below(&self.path("")).unwrap()
    }

    /// The files and directories at the top of the rootfs.
    fn seen(&self) -> Vec<String> {
        let entries = fs::read_dir(self.rootfs()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// No mount is left, nor a loop device that reads one of our files.
    fn check_clean(&self) {
        assert_eq!(self.mounted(), Vec::<PathBuf>::new());
        let ours = self.text("");
        let deadline = Instant::now() + Duration::from_secs(5); // the kernel frees them later
        while loop_files().iter().any(|file| file.starts_with(&ours)) {
            assert!(Instant::now() < deadline, "a loop device is left: {:?}", loop_files());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // So that a failed test neither leaves mounts nor deletes through them.
        unmount_all(&self.path("")).unwrap();
    }
}

/// The files behind all loop devices in use.
fn loop_files() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap();
    let file = |device: PathBuf| fs::read_to_string(device.join("loop/backing_file")).ok();
    devices.filter_map(|device| file(device.unwrap().path())).collect()
}

fn a_mount(kind: &str, source: &str, target: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|&word| word.to_owned()).collect();
    Mount { kind: kind.into(), source: source.into(), target: target.into(), options }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// What the daemon's reaper does for it.
async fn run_helper(program: &Path, arguments: &[OsString]) -> Result<()> {
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(Error::Invalid(format!("{}: {other:?}", program.display()))),
    }
}

fn mount_all(bundle: &Bundle, mounts: &[Mount]) -> Result<RootfsMount> {
    block_on(mount(mounts, &bundle.rootfs(), FuseOverlay::Never, run_helper))
}

/// Unmounts a file system that a process which is just ending may still use.
fn unmount_soon(place: &str) {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while Command::new("umount").args(["--quiet", place]).status().is_ok_and(|it| !it.success()) {
        assert!(std::time::Instant::now() < until, "{place} stays busy");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a program that the test cannot do without.
fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("install {program} for this test: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

/// Mounts, looks with `check`, unmounts, and wants nothing left.
fn round_trip(bundle: &Bundle, mounts: &[Mount], check: impl FnOnce()) {
    let guard = mount_all(bundle, mounts).unwrap();
    check();
    block_on(guard.unmount()).unwrap();
    bundle.check_clean();
}

#[test]
fn without_mounts_the_rootfs_is_left_alone() {
    let bundle = Bundle::new();
    bundle.directories(&["rootfs", "other"]);
    tool("mount", &["--bind", &bundle.text("other"), &bundle.text("rootfs")]);
    block_on(mount_all(&bundle, &[]).unwrap().unmount()).unwrap();
    assert_eq!(bundle.seen(), ["other"]);
}

#[test]
fn the_mount_point_is_made_for_all_to_pass() {
    let bundle = Bundle::new();
    bundle.directories(&["source"]);
    let mounts = [a_mount("bind", &bundle.text("source"), "", &["rbind", "rw"])];
    round_trip(&bundle, &mounts, || assert_eq!(bundle.seen(), ["source"]));
    assert_eq!(fs::metadata(bundle.rootfs()).unwrap().permissions().mode() & 0o777, 0o711);
}

#[test]
fn a_bind_mount_takes_its_flags_and_leaves_the_source_alone() {
    let bundle = Bundle::new();
    bundle.directories(&["source/below"]);
    let source = bundle.text("source");
    tool("mount", &["-t", "tmpfs", "below", &bundle.text("source/below")]);
    // As systemd has it: what is unmounted below a copy is unmounted below the original.
    tool("mount", &["--bind", &source, &source]);
    tool("mount", &["--make-rshared", &source]);
    tool("mount", &["-t", "tmpfs", "below", &bundle.text("source/below")]);
    let file = bundle.rootfs().join("new");
    let cases: [(&str, &[&str], bool, usize); 4] = [
        ("rw", &["rbind", "rw"], true, 2),
        ("ro", &["rbind", "ro"], false, 2),
        ("ro without what is below", &["bind", "ro", "nosuid"], false, 1),
        ("with propagation", &["rbind", "rprivate"], true, 2),
    ];
    let before = bundle.mounted();
    for (name, options, writable, count) in cases {
        let guard = mount_all(&bundle, &[a_mount("bind", &source, "", options)]).unwrap();
        assert_eq!(fs::write(&file, "x").is_ok(), writable, "{name}");
        assert_eq!(bundle.mounted().len(), before.len() + count, "{name}");
        drop(guard);
        assert_eq!(bundle.mounted(), before, "{name}");
    }
}

#[test]
fn an_overlay_shows_all_layers() {
    let bundle = Bundle::new();
    bundle.directories(&["1", "2", "upper", "work"]);
    let path = |name| bundle.text(name);
    let lower = format!("lowerdir={}:{}", path("2"), path("1"));
    let (upper, work) =
        (format!("upperdir={}", path("upper")), format!("workdir={}", path("work")));
    let options = ["index=off", "X-containerd.custom=x", &work, &upper, &lower];
    round_trip(&bundle, &[a_mount("overlay", "overlay", "", &options)], || {
        assert_eq!(bundle.seen(), ["1", "2", "upper"]);
        fs::write(bundle.rootfs().join("new"), "").unwrap();
    });
    assert!(bundle.path("upper/new").exists());
}

#[test]
fn an_overlay_may_have_more_layers_than_a_page_holds() {
    // The name's length decides: relative paths fit into the page, or they do not.
    for (length, count) in [(20, 120), (90, 120), (90, 400)] {
        let bundle = Bundle::new();
        let name = |index: usize| format!("s/{index:0length$}");
        let names: Vec<String> = (0..count).map(name).collect();
        for (index, name) in names.iter().enumerate() {
            fs::create_dir_all(bundle.path(name)).unwrap();
            fs::write(bundle.path(name).join(index.to_string()), "").unwrap();
        }
        bundle.directories(&["upper", "work"]);
        let paths: Vec<String> = names.iter().map(|name| bundle.text(name)).collect();
        let (upper, work) = (bundle.text("upper"), bundle.text("work"));
        let options = [
            format!("workdir={work}"),
            format!("upperdir={upper}"),
            format!("lowerdir={}", paths.join(":")),
        ];
        assert!(options[2].len() > 4096);
        let directory = std::env::current_dir().unwrap();
        let mounts = [a_mount("overlay", "overlay", "", &options.each_ref().map(|o| o.as_str()))];
        round_trip(&bundle, &mounts, || {
            assert_eq!(bundle.seen().len(), count + 1, "{length}");
            fs::write(bundle.rootfs().join("new"), "").unwrap();
            assert_eq!(bundle.mounted(), [bundle.rootfs()]);
        });
        assert_eq!(std::env::current_dir().unwrap(), directory);
    }
}

#[test]
fn a_tmpfs_takes_its_options() {
    let bundle = Bundle::new();
    let mounts = [a_mount("tmpfs", "tmpfs", "", &["size=1m", "mode=0750", "noexec"])];
    round_trip(&bundle, &mounts, || {
        assert_eq!(fs::metadata(bundle.rootfs()).unwrap().permissions().mode() & 0o777, 0o750);
        let stat = nix::sys::statvfs::statvfs(&bundle.rootfs()).unwrap();
        assert_eq!(stat.blocks() * stat.fragment_size(), 1 << 20);
        assert!(stat.flags().contains(nix::sys::statvfs::FsFlags::ST_NOEXEC));
    });
}

/// An ext4 image in the bundle, with nothing in it.
fn ext4_image(bundle: &Bundle) -> String {
    let image = bundle.text("image.ext4");
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    tool("mkfs.ext4", &["-q", "-F", &image]);
    image
}

#[test]
fn an_image_is_mounted_through_a_loop_device() {
    let bundle = Bundle::new();
    let image = ext4_image(&bundle);
    let cases: [(&str, &[&str], bool); 3] = [
        ("rw", &["loop", "rw"], true),
        ("direct", &["direct-io", "loop"], true),
        ("ro", &["loop", "ro", "noload"], false),
    ];
    for (name, options, writable) in cases {
        round_trip(&bundle, &[a_mount("ext4", &image, "", options)], || {
            assert_eq!(fs::write(bundle.rootfs().join(name), "").is_ok(), writable, "{name}");
            assert!(loop_files().iter().any(|file| file.trim_end() == image), "{name}");
        });
    }
}

#[test]
fn an_erofs_image_is_mounted_with_and_without_a_loop_device() {
    let bundle = Bundle::new();
    bundle.directories(&["tree"]);
    let image = bundle.text("image.erofs");
    tool("mkfs.erofs", &["--quiet", &image, &bundle.text("tree")]);
    for options in [&["ro", "loop"][..], &["ro"], &["ro", "loop", "direct-io"]] {
        round_trip(&bundle, &[a_mount("erofs", &image, "", options)], || {
            assert_eq!(bundle.seen(), ["tree"], "{options:?}");
        });
    }
}

#[test]
fn an_erofs_image_may_have_its_data_in_other_files() {
    let bundle = Bundle::new();
    bundle.directories(&["tree"]);
    fs::write(bundle.path("tree/data"), "x".repeat(20_000)).unwrap();
    let (image, blob) = (bundle.text("image.erofs"), bundle.text("blob"));
    fs::write(&blob, "").unwrap(); // mkfs.erofs 1.8 does not make it
    let blob_option = format!("--blobdev={blob}");
    let options = ["--quiet", "--chunksize=4096", &blob_option, &image, &bundle.text("tree")];
    tool("mkfs.erofs", &options);
    let device = format!("device={blob}");
    for (devices, options) in
        [(0, &["ro", "loop", &device][..]), (2, &["loop", "direct-io", &device])]
    {
        round_trip(&bundle, &[a_mount("erofs", &image, "", options)], || {
            let data = fs::read_to_string(bundle.rootfs().join("data")).unwrap();
            assert_eq!(data, "x".repeat(20_000), "{options:?}");
            let ours = bundle.text("");
            let loops = loop_files().iter().filter(|file| file.starts_with(&ours)).count();
            // A kernel before Linux 6.12 needs the devices in any case.
            assert!(loops == devices || loops == 2, "{options:?}: {loops}");
        });
    }
}

#[test]
fn a_target_is_found_inside_the_rootfs_only() {
    let bundle = Bundle::new();
    bundle.directories(&["root/data", "root/x", "outside", "other"]);
    symlink(bundle.path("outside"), bundle.path("root/absolute")).unwrap();
    symlink("../../../../x", bundle.path("root/data/up")).unwrap();
    symlink("/proc/self/root", bundle.path("root/magic")).unwrap();
    let base = a_mount("bind", &bundle.text("root"), "", &["rbind", "rw"]);
    let cases = [
        ("a directory", "data", Some("data")),
        ("an absolute path", "/data", Some("data")),
        ("dots", "../../data/../x", Some("x")),
        ("a link that climbs", "data/up", Some("x")),
        ("a link to a path outside", "absolute", None),
        ("a link of /proc", "magic", None),
        ("beyond a link of /proc", "magic/tmp", None),
        ("nothing there", "missing", None),
    ];
    for (name, target, place) in cases {
        let other = a_mount("bind", &bundle.text("other"), target, &["rbind", "ro"]);
        match (mount_all(&bundle, &[base.clone(), other]), place) {
            (Ok(guard), Some(place)) => {
                let place = bundle.rootfs().join(place);
                assert_eq!(bundle.mounted(), [bundle.rootfs(), place.clone()], "{name}");
                assert!(fs::write(place.join("new"), "").is_err(), "{name}");
                block_on(guard.unmount()).unwrap();
            }
            (Err(error), None) => {
                let text = error.to_string();
                assert!(text.starts_with("cannot mount rootfs component 2"), "{name}: {text}");
                assert!(text.ends_with(&format!("; the rootfs has no {target}")), "{name}: {text}");
            }
            (result, _) => panic!("{name}: {result:?}"),
        }
        bundle.check_clean();
    }
}

/// Whether the kernel is Linux 6.3 or later.
fn tmpfs_can_be_mapped() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|word| word.trim().parse::<u32>());
    let mut number = || numbers.next().and_then(Result::ok).unwrap_or_default();
    (number(), number()) >= (6, 3)
}

#[test]
fn files_are_shown_with_the_owners_of_the_map() {
    let bundle = Bundle::new();
    bundle.directories(&["1", "2", "upper", "work"]);
    let image = ext4_image(&bundle);
    let path = |name| bundle.text(name);
    let lower = format!("lowerdir={}:{}", path("2"), path("1"));
    let (upper, work) =
        (format!("upperdir={}", path("upper")), format!("workdir={}", path("work")));
    let maps = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"];
    let bind = path("1");
    let cases: [(&str, &str, &[&str], &str); 5] = [
        ("bind", &bind, &["rbind", "rw"], "1"),
        ("bind", &bind, &["bind", "ro"], "1"),
        ("ext4", &image, &["loop", "rw"], "lost+found"),
        ("tmpfs", "tmpfs", &[], ""),
        ("overlay", "overlay", &[&upper, &work, &lower], "2"),
    ];
    for (kind, source, options, file) in cases {
        let options = [options, &maps].concat();
        let guard = match mount_all(&bundle, &[a_mount(kind, source, "", &options)]) {
            // The bundle may be on a tmpfs, which Linux before 6.3 shows to nobody under a map.
            Err(Error::Mount { source, .. })
                if source.raw_os_error() == Some(libc::EINVAL) && !tmpfs_can_be_mapped() =>
            {
                bundle.check_clean();
                continue;
            }
            guard => guard.unwrap(),
        };
        let data = fs::metadata(bundle.rootfs().join(file)).unwrap();
        assert_eq!((data.uid(), data.gid()), (100_000, 200_000), "{kind} {options:?}");
        assert_eq!(bundle.mounted(), [bundle.rootfs()], "{kind}");
        // An unmapped root owns nothing there and may not create files, hence this order.
        let read_only = nix::sys::statvfs::statvfs(&bundle.rootfs()).unwrap().flags();
        let read_only = read_only.contains(nix::sys::statvfs::FsFlags::ST_RDONLY);
        assert_eq!(read_only, options.contains(&"ro"), "{kind}");
        block_on(guard.unmount()).unwrap();
        bundle.check_clean();
    }
}

#[test]
fn a_mapped_image_below_the_rootfs_is_one_mount() {
    let bundle = Bundle::new();
    bundle.directories(&["root/data"]);
    let image = ext4_image(&bundle);
    let maps = ["loop", "uidmap=0:100000:65536", "gidmap=0:200000:65536"];
    let base = a_mount("bind", &bundle.text("root"), "", &["rbind"]);
    round_trip(&bundle, &[base, a_mount("ext4", &image, "data", &maps)], || {
        let place = bundle.rootfs().join("data");
        assert_eq!(bundle.mounted(), [bundle.rootfs(), place.clone()]);
        assert_eq!(fs::metadata(place.join("lost+found")).unwrap().uid(), 100_000);
    });
}

#[test]
fn a_fuse_file_system_is_mounted_by_its_helper() {
    let bundle = Bundle::new();
    bundle.directories(&["1", "2", "upper"]);
    fs::create_dir(bundle.path("work")).unwrap(); // which has to be empty
    let path = |name| bundle.text(name);
    let lower = format!("lowerdir={}:{}", path("2"), path("1"));
    let (upper, work) =
        (format!("upperdir={}", path("upper")), format!("workdir={}", path("work")));
    for kind in ["fuse3.fuse-overlayfs", "fuse.fuse-overlayfs"] {
        tool("fuse-overlayfs", &["--version"]);
        let mounts = [a_mount(kind, "overlay", "", &[&lower, &upper, &work])];
        round_trip(&bundle, &mounts, || {
            assert_eq!(bundle.seen(), ["1", "2", "upper"], "{kind}");
        });
    }
}

#[test]
fn a_failure_undoes_the_mounts_before_it_and_says_what_to_do() {
    let bundle = Bundle::new();
    let image = ext4_image(&bundle);
    fs::write(bundle.path("junk"), vec![0; 1 << 20]).unwrap();
    let (junk, missing) = (bundle.text("junk"), bundle.text("missing"));
    let lower = format!("lowerdir={missing}:/usr");
    let cases: [(&str, &str, &[&str], &str); 9] = [
        ("zorkfs", "x", &[], "the kernel has no filesystem type zorkfs"),
        ("format/overlay", "overlay", &["lowerdir={{ overlay 0 1 }}"], "mount manager"),
        ("ext4", &image, &[], "the mount needs the `loop` option"),
        ("ext4", &junk, &["loop"], "on /"),
        ("ext4", &missing, &["loop"], "missing does not exist"),
        ("bind", &missing, &["rbind"], "missing does not exist"),
        ("overlay", "overlay", &[&lower], "missing does not exist"),
        ("tmpfs", "tmpfs", &[&"x".repeat(5000)], "Argument list too long"),
        ("ext4", &image, &["loop", "nonsense=1"], "dmesg"),
    ];
    for (kind, source, options, expected) in cases {
        let mounts = [
            a_mount("ext4", &image, "", &["loop"]),
            a_mount("tmpfs", "tmpfs", "lost+found", &[]),
            a_mount(kind, source, "", options),
        ];
        let text = mount_all(&bundle, &mounts).unwrap_err().to_string();
        let start = format!("cannot mount rootfs component 3 (type {kind}, source {source}) on ");
        assert!(text.starts_with(&start) && text.contains(expected), "{kind}: {text}");
        bundle.check_clean();
    }
}

#[test]
fn a_failing_helper_undoes_the_mounts_before_it() {
    let bundle = Bundle::new();
    let seen = RefCell::new(None);
    let run = async |program: &Path, arguments: &[OsString]| {
        *seen.borrow_mut() = Some((program.to_owned(), arguments.to_vec()));
        Err(Error::Invalid("no".into()))
    };
    let mounts = [
        a_mount("tmpfs", "tmpfs", "", &[]),
        a_mount("fuse3.x", "source", "", &["ro", "X-containerd.x=y"]),
    ];
    let error = block_on(mount(&mounts, &bundle.rootfs(), FuseOverlay::Never, run)).unwrap_err();
    assert_eq!(error.to_string(), "no");
    let (program, arguments) = seen.take().unwrap();
    assert!(program.ends_with("mount.fuse3"), "{program:?}");
    assert_eq!(arguments, ["source", &bundle.text("rootfs"), "-o", "ro", "-t", "x"]);
    bundle.check_clean();
}

#[test]
fn a_bad_option_is_found_before_anything_is_mounted() {
    let bundle = Bundle::new();
    let mounts = [
        a_mount("tmpfs", "tmpfs", "", &[]),
        a_mount("erofs", "/x", "", &["X-containerd.dmverity=/y"]),
    ];
    let error = mount_all(&bundle, &mounts).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    assert!(!bundle.rootfs().exists());
}

#[test]
fn an_abandoned_mount_is_undone() {
    let bundle = Bundle::new();
    let mounts = [a_mount("tmpfs", "tmpfs", "", &[])];
    let rootfs = bundle.rootfs();
    block_on(async {
        let mounting = std::pin::pin!(mount(&mounts, &rootfs, FuseOverlay::Never, run_helper));
        // Once is enough to start the thread, and too early for its result.
        tokio::select! { biased; _ = mounting => {}, () = std::future::ready(()) => {} }
    });
    let deadline = Instant::now() + Duration::from_secs(5);
    while !rootfs.exists() || !bundle.mounted().is_empty() {
        assert!(Instant::now() < deadline, "still mounted: {:?}", bundle.mounted());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn unmounting_takes_stacks_and_busy_mounts_and_may_be_repeated() {
    let bundle = Bundle::new();
    let mounts = [
        a_mount("tmpfs", "1", "", &[]),
        a_mount("tmpfs", "2", "", &[]),
        a_mount("tmpfs", "3", "", &[]),
    ];
    let guard = mount_all(&bundle, &mounts).unwrap();
    let below = bundle.rootfs().join("a b");
    fs::create_dir(&below).unwrap();
    tool("mount", &["-t", "tmpfs", "below", below.to_str().unwrap()]);
    let busy = fs::File::create(below.join("busy")).unwrap();
    assert_eq!(bundle.mounted().len(), 4);
    block_on(guard.unmount()).unwrap();
    bundle.check_clean();
    drop(busy);
    unmount_all(&bundle.rootfs()).unwrap();
    fs::remove_dir(bundle.rootfs()).unwrap();
    unmount_all(&bundle.rootfs()).unwrap();
    unmount_all(&bundle.path("no/such/bundle/rootfs")).unwrap();
}
