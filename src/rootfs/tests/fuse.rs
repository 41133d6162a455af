//! Overlays that the kernel refuses, as it refuses every upper layer on another overlay.

use super::*;

/// Makes the layers for [`refused`].
fn prepare(bundle: &Bundle) {
    bundle.directories(&["lower", "below", "above", "work", "upper"]);
    let option = |key: &str, name: &str| format!("{key}={}", bundle.text(name));
    let outer =
        [option("lowerdir", "below"), option("upperdir", "above"), option("workdir", "work")];
    tool("mount", &["-t", "overlay", "o", "-o", &outer.join(","), &bundle.text("upper")]);
    bundle.directories(&["upper/up", "upper/wk"]);
    bundle.directories(&["up", "wk"]);
}

/// An overlay whose upper layer is on an overlay itself.
fn refused(bundle: &Bundle) -> Mount {
    overlay(bundle, "upper/up", "upper/wk")
}

fn overlay(bundle: &Bundle, upper: &str, work: &str) -> Mount {
    let option = |key: &str, name: &str| format!("{key}={}", bundle.text(name));
    let options = [
        "index=off".into(),
        option("workdir", work),
        option("upperdir", upper),
        option("lowerdir", "lower"),
    ];
    a_mount("overlay", "overlay", "", &options.each_ref().map(String::as_str))
}

/// The type of what is mounted on the rootfs, as the table of mounts has it.
fn kind(bundle: &Bundle) -> String {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let rootfs = bundle.text("rootfs");
    let mut lines = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let line = lines.find(|words| words[1] == rootfs).unwrap();
    line[2].to_owned()
}

#[test]
fn fuse_overlayfs_mounts_what_the_kernel_refuses_if_it_may() {
    use FuseOverlay::{Always, Fallback, Never};
    let cases = [
        ("never", Never, false, Ok("overlay")),
        ("never, refused", Never, true, Err("Invalid argument")),
        ("fallback", Fallback, false, Ok("overlay")),
        ("fallback, refused", Fallback, true, Ok("fuse.fuse-overlayfs")),
        ("always", Always, false, Ok("fuse.fuse-overlayfs")),
        ("always, refused", Always, true, Ok("fuse.fuse-overlayfs")),
    ];
    for (name, fuse, refuse, expected) in cases {
        let bundle = Bundle::new();
        prepare(&bundle);
        let mounts = [if refuse { refused(&bundle) } else { overlay(&bundle, "up", "wk") }];
        match (block_on(mount(&mounts, &bundle.rootfs(), fuse, run_helper)), expected) {
            (Ok(guard), Ok(expected)) => {
                assert_eq!(kind(&bundle), expected, "{name}");
                fs::write(bundle.rootfs().join("new"), "").unwrap();
                fs::remove_file(bundle.rootfs().join("lower")).unwrap();
                assert!(
                    !bundle.seen().contains(&"lower".to_owned()),
                    "{name}: {:?}",
                    bundle.seen()
                );
                block_on(guard.unmount()).unwrap();
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{name}: {error}"),
            (got, _) => panic!("{name}: {got:?}"),
        }
        unmount_soon(&bundle.text("upper"));
        bundle.check_clean();
        assert!(bundle.path("lower/lower").exists(), "{name}: the lower layer was changed");
    }
}

#[test]
fn a_failure_names_the_reasons_of_both() {
    let bundle = Bundle::new();
    prepare(&bundle);
    let mut odd = refused(&bundle);
    odd.options.push("metacopy=on".into());
    let mut missing = overlay(&bundle, "up", "wk");
    missing.options.retain(|word| !word.starts_with("lowerdir="));
    missing.options.push("lowerdir=/no/such/dir".into());
    let cases = [
        (
            "helper fails",
            refused(&bundle),
            "Invalid argument",
            "the fallback failed too: no fuse today",
        ),
        ("options", odd, "Invalid argument", "does not know option \"metacopy=on\""),
        ("no refusal", missing, "No such file", "/no/such/dir does not exist"),
    ];
    let rootfs = bundle.rootfs();
    let run = async |_: &Path, _: &[OsString]| Err(Error::Invalid("no fuse today".into()));
    for (name, layer, kernel, fuse) in cases {
        let mounts = [a_mount("tmpfs", "t", "", &[]), layer];
        let failed = mount(&mounts, &rootfs, FuseOverlay::Fallback, run);
        let text = block_on(failed).unwrap_err().to_string();
        assert!(text.contains(kernel) && text.contains(fuse), "{name}: {text}");
        assert_eq!(bundle.mounted(), [bundle.path("upper")], "{name}");
    }
    unmount_soon(&bundle.text("upper"));
    bundle.check_clean();
}
