//! Life in a user namespace, where "root" owns a few ids only: whether we are there, and where files
//! go then.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::unistd::{AccessFlags, access, geteuid};

use crate::config::Choice;
use crate::error::{Error, Result};

/// containerd's directory of what lasts until the next boot. RootlessKit, as containerd's own tools
/// use it, gives a rootless containerd a `/run` of its own, so that the path stays the same.
const STATE: &str = "/run/containerd";

/// The same for what only berth has.
const RUN: &str = "/run/berth";
/// The environment variable with another directory in its place.
const RUN_DIR: &str = "BERTH_RUN_DIR";

/// Whether this process is in a user namespace that an ordinary user may have made. It never changes its
/// namespace, so it looks once.
pub(crate) fn in_user_namespace() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    // Without the file the kernel knows no user namespaces.
    let look = || fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_initial(&map));
    *FOUND.get_or_init(look)
}

/// Whether `uid_map` maps every id to itself, as the initial namespace does.
fn is_initial(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether we are rootless where nothing says otherwise: root, but of a user namespace.
pub(crate) fn detected() -> bool {
    geteuid().is_root() && in_user_namespace()
}

/// Whether to do without what only the host's root may, for one who chose `choice` and runs as
/// `euid`.
///
/// # Errors
/// [`Error::Invalid`] for [`Choice::On`] where it is impossible, with what to do.
pub(crate) fn resolve(choice: Choice, euid: u32, in_user_namespace: bool) -> Result<bool> {
    let found = match (euid, in_user_namespace) {
        (0, true) => return Ok(choice != Choice::Off),
        (0, false) => "berth runs in no user namespace".to_owned(),
        (euid, true) => format!("berth runs as user {euid} of one"),
        (euid, false) => format!("berth runs as user {euid} and in none"),
    };
    match choice {
        Choice::Auto | Choice::Off => Ok(false),
        Choice::On => Err(Error::Invalid(format!(
            "rootless = true needs the mapped root of a user namespace, but {found}: run containerd \
             there, for instance with RootlessKit, or set rootless = \"auto\""
        ))),
    }
}

/// Where sockets (`s`) and the runtimes' state (`runc`) go unless somebody says otherwise:
/// `/run/containerd`, or `$XDG_RUNTIME_DIR/containerd` for a rootless berth that cannot write there.
pub(crate) fn state_dir(rootless: bool) -> PathBuf {
    let usual = Path::new(STATE);
    if !rootless || is_usable(usual) {
        return usual.to_owned();
    }
    absolute(env::var_os("XDG_RUNTIME_DIR")).map_or(usual.into(), |dir| dir.join("containerd"))
}

/// Where management sockets go: `/run/berth`, or `$XDG_RUNTIME_DIR/berth` for a rootless berth that cannot
/// write there, unless [`RUN_DIR`] names another directory.
pub(crate) fn run_dir() -> PathBuf {
    if let Some(dir) = absolute(env::var_os(RUN_DIR)) {
        return dir;
    }
    let usual = Path::new(RUN);
    if !detected() || is_usable(usual) {
        return usual.to_owned();
    }
    absolute(env::var_os("XDG_RUNTIME_DIR")).map_or(usual.into(), |dir| dir.join("berth"))
}

/// Whether we can make files in `dir`, or the directory itself if it is missing.
fn is_usable(dir: &Path) -> bool {
    let nearest = dir.ancestors().find(|dir| dir.exists());
    nearest.is_some_and(|dir| access(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_ok())
}

/// Where the configuration is that nobody named: `/etc/berth`. Where that is the host's and not the
/// user namespace's own, `$XDG_CONFIG_HOME/berth`, else `$HOME/.config/berth`.
pub(crate) fn config_dir() -> PathBuf {
    let usual = PathBuf::from("/etc/berth");
    // Seen from a namespace without it, the host's root is nobody.
    if !detected() || usual.metadata().is_ok_and(|data| data.uid() == 0) {
        return usual;
    }
    config_dir_of(env::var_os("XDG_CONFIG_HOME"), env::var_os("HOME")).unwrap_or(usual)
}

fn config_dir_of(xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let config = absolute(xdg).or_else(|| Some(absolute(home)?.join(".config")));
    Some(config?.join("berth"))
}

/// An environment variable's path. The XDG specification has relative ones ignored.
fn absolute(path: Option<OsString>) -> Option<PathBuf> {
    path.map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Whether a rootless runtime can ask a systemd for cgroups: the user's own over the user's bus, or
/// one that runs inside the namespace, as in a system container, over the system's.
pub(crate) fn has_systemd_bus() -> bool {
    let runtime_dir = absolute(env::var_os("XDG_RUNTIME_DIR"));
    let user = bus_socket(env::var_os("DBUS_SESSION_BUS_ADDRESS"), runtime_dir);
    // Seen from a namespace without it, the host's root is nobody.
    let ours = |path: &Path| path.metadata().is_ok_and(|data| data.uid() == geteuid().as_raw());
    user.is_some_and(|path| is_socket(&path)) || {
        let system = Path::new("/run/systemd/private");
        is_socket(system) && ours(system)
    }
}

/// The user bus's socket: of an address list the first path, else the usual place.
fn bus_socket(addresses: Option<OsString>, runtime_dir: Option<PathBuf>) -> Option<PathBuf> {
    let addresses = addresses.unwrap_or_default();
    let path = addresses.to_str().unwrap_or_default().split(';').find_map(|address| {
        let mut pairs = address.strip_prefix("unix:")?.split(',');
        pairs.find_map(|pair| pair.strip_prefix("path=")).map(PathBuf::from)
    });
    path.or_else(|| Some(runtime_dir?.join("bus")))
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|data| data.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_but_the_initial_one_is_a_user_namespaces() {
        let cases = [
            ("the host", "         0          0 4294967295\n", true),
            ("unshare --map-root-user", "         0       1000          1\n", false),
            ("root mapped to root", "0 0 1\n", false),
            ("RootlessKit", "0 1000 1\n1 100000 65536\n", false),
            ("a system container", "0 100000 65536\n", false),
            ("all, in two lines", "0 0 1\n1 1 4294967294\n", false),
            ("not mapped yet", "", false),
        ];
        for (name, map, expected) in cases {
            assert_eq!(is_initial(map), expected, "{name}");
        }
    }

    #[test]
    fn rootless_is_the_mapped_root_of_a_user_namespace() {
        use Choice::{Auto, Off, On};
        let cases = [
            ("auto on the host", Auto, 0, false, Ok(false)),
            ("auto in a namespace", Auto, 0, true, Ok(true)),
            ("auto as a user", Auto, 1000, false, Ok(false)),
            ("auto as a namespace's user", Auto, 1000, true, Ok(false)),
            ("on in a namespace", On, 0, true, Ok(true)),
            ("on on the host", On, 0, false, Err("in no user namespace")),
            ("on as a user", On, 1000, false, Err("as user 1000 and in none")),
            ("on as a namespace's user", On, 1000, true, Err("as user 1000 of one")),
            ("off on the host", Off, 0, false, Ok(false)),
            ("off in a namespace", Off, 0, true, Ok(false)),
            ("off as a user", Off, 1000, false, Ok(false)),
        ];
        for (name, choice, euid, inside, expected) in cases {
            match (resolve(choice, euid, inside), expected) {
                (Ok(rootless), Ok(expected)) => assert_eq!(rootless, expected, "{name}"),
                (Err(error), Err(part)) => {
                    let text = error.to_string();
                    assert!(text.contains(part) && text.contains("RootlessKit"), "{name}: {text}");
                    assert_eq!(error.code(), ttrpc::Code::INVALID_ARGUMENT, "{name}");
                }
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn only_a_rootless_berth_may_leave_the_usual_state_directory() {
        assert_eq!(state_dir(false), Path::new(STATE));
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let cases =
            [("there", "", true), ("to be made", "a/b", true), ("below a file", "file/a", false)];
        for (name, path, expected) in cases {
            assert_eq!(is_usable(&dir.path().join(path)), expected, "{name}");
        }
    }

    #[test]
    fn the_environment_names_directories_and_the_bus() {
        let set = |text: &str| Some(OsString::from(text)).filter(|text| !text.is_empty());
        let cases = [
            ("neither", "", "", None),
            ("home", "", "/h", Some("/h/.config/berth")),
            ("xdg first", "/x", "/h", Some("/x/berth")),
            ("relative", "x", "/h", Some("/h/.config/berth")),
        ];
        for (name, xdg, home, expected) in cases {
            assert_eq!(
                config_dir_of(set(xdg), set(home)).as_deref(),
                expected.map(Path::new),
                "{name}"
            );
        }
        let cases = [
            ("nothing", "", "", None),
            ("the usual place", "", "/r", Some("/r/bus")),
            ("an address", "unix:path=/b/s", "/r", Some("/b/s")),
            ("with a guid", "unix:guid=1,path=/b/s", "", Some("/b/s")),
            ("a list", "tcp:host=x;unix:path=/b/s", "", Some("/b/s")),
            ("abstract", "unix:abstract=/b", "/r", Some("/r/bus")),
        ];
        for (name, addresses, dir, expected) in cases {
            let found = bus_socket(set(addresses), set(dir).map(PathBuf::from));
            assert_eq!(found.as_deref(), expected.map(Path::new), "{name}");
        }
    }
}
