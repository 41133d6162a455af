//! The package and the tarball.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{OnceLock, RwLock};
use std::thread;

use crate::bed::Bed;
use crate::command::{self, Output};
use crate::daemon::{Daemon, EventLog};
use crate::{Runtime, host, image};

/// The program's place in a tree that it was installed in.
const PROGRAM: &str = "usr/bin/containerd-shim-berth-v1";

/// What the program prints of itself: as it lies in the package, and below `share` in the tarball.
const PRINTED: [(&str, &str, &str); 4] = [
    ("man/man1/containerd-shim-berth-v1.1.gz", "man/man1/containerd-shim-berth-v1.1", ".TH "),
    (
        "bash-completion/completions/containerd-shim-berth-v1",
        "bash-completion/completions/containerd-shim-berth-v1",
        "# bash ",
    ),
    (
        "zsh/vendor-completions/_containerd-shim-berth-v1",
        "zsh/site-functions/_containerd-shim-berth-v1",
        "#compdef containerd-shim-berth-v1\n",
    ),
    (
        "fish/vendor_completions.d/containerd-shim-berth-v1.fish",
        "fish/vendor_completions.d/containerd-shim-berth-v1.fish",
        "# fish ",
    ),
];

/// Containers run on while the package is installed, installed again, upgraded and removed; a newer
/// program cleans up after the shim of an older one.
pub(super) fn upgrade(bed: &Bed<'_>) {
    let Made { stage, older, newer } = made(bed.daemon.dir().parent().unwrap());
    let dir = bed.daemon.dir().join("install-package");
    let tree = Tree::new(dir.join("tree"));
    tree.dpkg("--install", older).ok();
    for (file, _, begins) in PRINTED {
        let file = tree.0.join("usr/share").join(file);
        let compressed = file.extension().is_some_and(|extension| extension == "gz");
        let reader = if compressed { "zcat" } else { "cat" };
        let text = command::run(Command::new(reader).arg(&file), b"").ok();
        assert!(text.starts_with(begins), "{}: {text}", file.display());
    }
    look_over(newer);
    // The first on the daemon's PATH.
    symlink(tree.0.join("usr/bin"), dir.join("bin")).unwrap();
    let daemon = Daemon::start(&bed.daemon.version, bed.daemon.programs(), Runtime::Runc, &dir);
    let namespace = format!("{}-package", bed.namespace);
    daemon.import(&namespace, &image::write(&dir));
    let events = RwLock::new(Some(EventLog::start(&daemon, &namespace)));
    {
        let inner = Swept(Bed::new(&daemon, bed.shim, &namespace, "install-package", &events));
        live_through(&inner.0, &tree, older, newer);
    }
    drop(events);
    let left = daemon.end();
    assert!(left.is_empty(), "left behind: {}", left.join(", "));
    tarball(stage, &bed.daemon.dir().join("install-tarball"));
}

/// The `older` package is in `tree`. Three containers, the last of the `newer` one.
fn live_through(inner: &Bed<'_>, tree: &Tree, older: &Path, newer: &Path) {
    let [first, second, third] = ["a", "b", "c"].map(|suffix| inner.name(suffix));
    let start = |id: &str| inner.shim_of(inner.start(&[], id, &["sleep", "1000"]));
    let runs = |id: &str, exec: &str, when: &str| {
        let answer = inner.exec(id, exec, &["sh", "-c", "exit 7"]);
        assert_eq!(answer.status, 7, "{id} {when}: {}", answer.stderr);
    };
    let first_shim = start(&first);
    let second_shim = start(&second);
    let settings = tree.0.join("etc/berth/config.toml");
    assert!(tree.0.join("etc/berth/presets").is_dir());
    fs::write(&settings, "# changed\n").unwrap();

    tree.dpkg("--install", older).ok();
    runs(&first, "again", "after a second installation");
    tree.dpkg("--install", newer).ok();
    runs(&first, "newer", "after an upgrade");
    let program = |shim: i32| fs::read_link(format!("/proc/{shim}/exe")).unwrap();
    assert!(program(first_shim).display().to_string().ends_with("(deleted)"));
    let third_shim = start(&third);
    assert_eq!(program(third_shim), tree.0.join(PROGRAM), "the new program");
    assert_eq!(fs::read_to_string(&settings).unwrap(), "# changed\n", "the host's settings");

    inner.kill_shim(second_shim);
    inner.await_event(&second, "exit");
    command::until("the newer program has cleaned up after the older shim", || {
        inner.state(&second).is_none_or(|state| state == "STOPPED").then_some(())
    });
    inner.ctr(&["task", "delete", &second]);
    inner.ctr(&["container", "delete", &second]).ok();

    let told = tree.dpkg("--remove", Path::new("berth")).said();
    // Those of other rows are counted too.
    assert!(told.contains(" shims run on"), "{told}");
    assert!(!tree.0.join(PROGRAM).exists());
    for id in [&first, &third] {
        runs(id, "removed", "after the removal");
        inner.remove(id);
    }
    inner.check_clean();
    assert_eq!(fs::read_to_string(&settings).unwrap(), "# changed\n", "the host's settings");
    tree.dpkg("--purge", Path::new("berth")).ok();
    assert!(!tree.0.join("etc/berth").exists() && !tree.0.join("usr/share/doc/berth").exists());
    let left = PRINTED.map(|(file, ..)| tree.0.join("usr/share").join(file).exists());
    assert_eq!(left, [false; 4], "of {PRINTED:?}");
}

/// Debian's own checker has nothing to warn of, where it is installed.
fn look_over(package: &Path) {
    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error,warning"]).arg(package);
    // `made` wants none: it is quicker.
    let plain = ["control", "data"].map(|it| format!("uses-no-compression-for-{it}-tarball"));
    lintian.args(["--suppress-tags", &plain.join(",")]);
    match lintian.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        }
        Err(_) => eprintln!("SKIPPED: NO lintian HERE, SO NOBODY HAS LOOKED OVER THE PACKAGE"),
    }
}

/// Takes away what is left of its containers when the case fails, and their namespace in any case.
struct Swept<'a>(Bed<'a>);

impl Drop for Swept<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.sweep();
        }
        host::remove_namespace(self.0.namespace);
    }
}

/// The tree's own program installs it, twice, and removes it: by rename, and never over a
/// configuration that is there.
fn tarball(stage: &Path, dir: &Path) {
    let run = |arguments: &[&str]| {
        let mut install = Command::new(stage.join("install.sh"));
        install.args(arguments).env("DESTDIR", dir).env("PREFIX", "/usr");
        command::run(&mut install, b"").ok()
    };
    let (program, settings) = (dir.join(PROGRAM), dir.join("etc/berth/config.toml"));
    run(&[]);
    let version = command::run(Command::new(&program).arg("-version"), b"").ok();
    assert!(version.starts_with(concat!("berth ", env!("CARGO_PKG_VERSION"))), "{version}");
    let mut check = Command::new(&program);
    command::run(check.args(["config", "check"]).arg(&settings), b"").ok();
    for name in ["LICENSE", "LICENSES", "README.md", "examples/containerd-2.toml"] {
        assert!(dir.join("usr/share/doc/berth").join(name).exists(), "{name}");
    }
    for (_, file, begins) in PRINTED {
        let text = fs::read_to_string(dir.join("usr/share").join(file)).unwrap();
        assert!(text.starts_with(begins), "{file}: {text}");
    }
    fs::write(&settings, "# changed\n").unwrap();
    let before = fs::metadata(&program).unwrap().ino();
    let held = fs::File::open(&program).unwrap(); // else the number may be used again
    run(&[]);
    assert_ne!(fs::metadata(&program).unwrap().ino(), before, "it was written into");
    assert_eq!(fs::read_to_string(&settings).unwrap(), "# changed\n");
    run(&["--remove"]);
    drop(held);
    let left = command::run(Command::new("find").arg(dir).args(["-type", "f"]), b"").ok();
    assert_eq!(left, settings.display().to_string(), "what was changed stays");
}

/// A directory that dpkg takes for a machine.
struct Tree(PathBuf);

impl Tree {
    fn new(root: PathBuf) -> Self {
        for dir in ["info", "updates"] {
            fs::create_dir_all(root.join("var/lib/dpkg").join(dir)).unwrap();
        }
        fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
        Self(root)
    }

    /// Without what it recommends, and with the scripts of this machine.
    #[track_caller]
    fn dpkg(&self, action: &str, what: &Path) -> Told {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg(format!("--root={}", self.0.display()));
        dpkg.arg(format!("--log={}", self.0.join("dpkg.log").display()));
        dpkg.args(["--force-script-chrootless", action]).arg(what);
        Told(command::run(&mut dpkg, b""))
    }
}

/// What dpkg said.
struct Told(Output);

impl Told {
    #[track_caller]
    fn ok(self) -> String {
        self.0.ok()
    }

    /// On either stream.
    #[track_caller]
    fn said(self) -> String {
        let complaints = self.0.stderr.clone();
        self.0.ok() + &complaints
    }
}

/// What the scripts of `packaging/` make of the program that is tested.
struct Made {
    stage: PathBuf,
    /// Packages, the first of which has another program that does the same.
    older: PathBuf,
    newer: PathBuf,
}

/// Makes it once, below `base`, which this run removes.
fn made(base: &Path) -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
        let (dir, stage) = (base.join("packages"), base.join("packages/stage"));
        fs::create_dir_all(&dir).unwrap();
        let program = dir.join("program");
        let mut strip = Command::new("strip");
        strip.arg(env!("CARGO_BIN_EXE_containerd-shim-berth-v1")).arg("-o").arg(&program);
        command::run(&mut strip, b"").ok();
        let mut lay = Command::new(packaging.join("stage.sh"));
        command::run(lay.arg(&program).arg(&stage), b"").ok();
        let make = |version: &str| {
            let mut deb = Command::new(packaging.join("deb.sh"));
            deb.arg(&stage).arg(&dir).arg(version).env("DPKG_DEB_COMPRESSOR_TYPE", "none");
            let said = command::run(&mut deb, b"").ok();
            PathBuf::from(said.strip_prefix("built ").unwrap())
        };
        let newer = make("99.0.1");
        let staged = stage.join("bin/containerd-shim-berth-v1");
        let mut file = fs::File::options().append(true).open(staged).unwrap();
        file.write_all(b"\nolder\n").unwrap();
        drop(file);
        let older = make("99.0.0");
        Made { stage, older, newer }
    })
}
