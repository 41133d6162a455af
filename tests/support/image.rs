//! The image of every test container: a directory with a static busybox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const APPLETS: &[&str] = &[
    "sh", "cat", "sleep", "echo", "stty", "head", "tail", "id", "kill", "true", "yes", "dd", "ls",
];

/// Its directory; made once for all test runs, and only read.
pub fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let ready = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image");
        if !ready.exists() {
            let fresh = ready.with_extension(std::process::id().to_string());
            build(&fresh);
            if fs::rename(&fresh, &ready).is_err() {
                fs::remove_dir_all(&fresh).unwrap(); // another run was faster
            }
        }
        ready
    })
}

fn build(root: &Path) {
    for dir in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("Debian's busybox-static");
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/denied"), "not a program").unwrap();
}
