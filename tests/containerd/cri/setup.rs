//! A private containerd with the CRI plugin, configured by the files in `config/` that users take.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Cri;
use super::messages::{Empty, ImageSpec, ImageStatusRequest, ImageStatusResponse};
use crate::daemon::Daemon;
use crate::{Runtime, command, image};

/// containerd's namespace of all pods.
pub(crate) const NAMESPACE: &str = "k8s.io";

/// The image of the pods' own containers, which only wait.
const PAUSE: &str = "berth.test/pause:1";

/// What the private daemon does not need.
const DISABLED: &[&str] = &["io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"];

/// Where Debian's `containernetworking-plugins` are.
const PLUGINS: &str = "/usr/lib/cni";

/// Starts the containerd whose programs are in `programs` in `dir`, with the handlers of `config/`
/// one for the stock shim, `stock`, and one whose streams are no FIFOs, `berth-streaming`.
pub(crate) fn start(version: &str, programs: &Path, runtime: Runtime, dir: &Path) -> Daemon {
    let runtimes = Plugins::of(version).runtimes;
    let options = match runtime {
        Runtime::Runc => String::new(),
        Runtime::Crun => {
            format!("[{runtimes}.stock.options]\nBinaryName = {:?}\n", dir.join("crun"))
        }
    };
    let mut handlers =
        format!("[{runtimes}.stock]\nruntime_type = \"io.containerd.runc.v2\"\n{options}");
    if !version.starts_with("1.") {
        handlers += &format!(
            "[{runtimes}.berth-streaming]\n\
             runtime_type = \"{}\"\n\
             sandboxer = \"shim\"\n\
             io_type = \"streaming\"\n",
            write_spilling(dir)
        );
    }
    start_with(version, programs, runtime, dir, "berth", &handlers)
}

/// Writes a program that is berth with `io.spill`, into what is searched first; returns its runtime type.
/// With the Sandbox API containerd [takes] no options but runc's up to 2.1.
///
/// [takes]: https://github.com/containerd/containerd/blob/v2.1.9/client/task_opts.go#L57
fn write_spilling(dir: &Path) -> &'static str {
    let (bin, file) = (dir.join("bin"), dir.join("spill.toml"));
    fs::create_dir_all(&bin).unwrap();
    fs::write(&file, "[io]\nspill = \"64MiB\"\n").unwrap();
    let program = bin.join("containerd-shim-berthspill-v1");
    let file = file.display();
    let script =
        format!("#!/bin/sh\nBERTH_CONF_FILE={file} exec containerd-shim-berth-v1 \"$@\"\n");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    "io.containerd.berthspill.v1"
}

/// As [`start`], with the handlers of the TOML `handlers` beside those of `config/`, one of which is
/// the `default`.
pub(crate) fn start_with(
    version: &str,
    programs: &Path,
    runtime: Runtime,
    dir: &Path,
    default: &str,
    handlers: &str,
) -> Daemon {
    let config = config(version, dir, default, Plugins::of(version).file) + handlers;
    start_configured(version, programs, runtime, dir, &config)
}

/// As [`start`], with nothing but the handler `stock`: a node without berth.
pub(crate) fn start_stock(version: &str, programs: &Path, dir: &Path) -> Daemon {
    let runtimes = Plugins::of(version).runtimes;
    let number = if version.starts_with("1.") { 2 } else { 3 };
    let config = config(version, dir, "stock", &format!("version = {number}\n"))
        + &format!("[{runtimes}.stock]\nruntime_type = \"io.containerd.runc.v2\"\n");
    start_configured(version, programs, Runtime::Runc, dir, &config)
}

fn start_configured(
    version: &str,
    programs: &Path,
    runtime: Runtime,
    dir: &Path,
    config: &str,
) -> Daemon {
    write_network(dir);
    let daemon = Daemon::start_with(version, programs, runtime, dir, config);
    for (name, program) in [(PAUSE, &["sleep", "100000"][..]), (image::NAME, &["sh"])] {
        let archive = image::write_named(&dir.join(image::hex(name.as_bytes())), name, program);
        let mut import = daemon.ctr(NAMESPACE);
        command::run(import.args(["image", "import"]).arg(archive), b"").ok();
    }
    await_service(&daemon);
    daemon
}

/// Waits until the CRI plugin of `daemon` serves, and knows the image of the tests.
#[track_caller]
pub(crate) fn await_service(daemon: &Daemon) {
    let cri = Cri::of(daemon);
    let mut served = cri.attempt::<Empty>("Version", &Empty {});
    command::poll(|| {
        served = cri.attempt("Version", &Empty {});
        served.is_ok().then_some(())
    });
    assert!(served.is_ok(), "no CRI: {served:?}, {}", daemon.log_about("cri"));
    command::until("the image is known", || {
        let image = Some(ImageSpec { image: image::NAME.into() });
        let answer = cri.call_service("ImageService/ImageStatus", &ImageStatusRequest { image });
        answer.ok().and_then(|known: ImageStatusResponse| known.image)
    });
}

/// How a version's configuration calls what the tests set.
pub(crate) struct Plugins {
    /// The file of `config/` for it.
    file: &'static str,
    /// Tables: of the runtime service, and of its handlers.
    service: &'static str,
    pub(crate) runtimes: &'static str,
}

impl Plugins {
    pub(crate) fn of(version: &str) -> Self {
        if version.starts_with("1.") {
            Self {
                file: include_str!("../../../config/containerd-1.toml"),
                service: "plugins.\"io.containerd.grpc.v1.cri\"",
                runtimes: "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes",
            }
        } else {
            Self {
                file: include_str!("../../../config/containerd-2.toml"),
                service: "plugins.\"io.containerd.cri.v1.runtime\"",
                runtimes: "plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes",
            }
        }
    }
}

/// The `file` for users with what belongs to this machine around it.
fn config(version: &str, dir: &Path, default: &str, file: &str) -> String {
    let Plugins { service, .. } = Plugins::of(version);
    let plugins = match version.starts_with("1.") {
        true => format!("bin_dir = {PLUGINS:?}"),
        false => format!("bin_dirs = [{PLUGINS:?}]"),
    };
    let pause = if version.starts_with("1.") {
        format!("[{service}]\nsandbox_image = {PAUSE:?}\n")
    } else {
        let images = "plugins.\"io.containerd.cri.v1.images\".pinned_images";
        format!("[{images}]\nsandbox = {PAUSE:?}\n[{service}]\n")
    };
    format!(
        "root = {root:?}\n\
         state = {state:?}\n\
         disabled_plugins = {DISABLED:?}\n\
         {file}\
         [grpc]\n\
         address = {address:?}\n\
         [debug]\n\
         level = \"debug\"\n\
         [plugins.\"io.containerd.nri.v1.nri\"]\n\
         disable = true\n\
         [{service}.containerd]\n\
         default_runtime_name = {default:?}\n\
         [{service}.cni]\n\
         conf_dir = {network:?}\n\
         {plugins}\n\
         {pause}\
         restrict_oom_score_adj = true\n\
         disable_apparmor = true\n\
         tolerate_missing_hugetlb_controller = true\n\
         netns_mounts_under_state_dir = true\n",
        root = dir.join("root"),
        state = dir.join("state"),
        address = dir.join("c.sock"),
        network = dir.join("cni"),
    )
}

/// A network in which each pod has an address of its own and reaches the host. Its range belongs to
/// this process, others may run beside it.
fn write_network(dir: &Path) {
    let network = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "berth-test",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "dataDir": dir.join("addresses"),
                "subnet": format!("10.{}.0.0/16", 64 + std::process::id() % 190),
            },
        }],
    });
    fs::create_dir_all(dir.join("cni")).unwrap();
    fs::write(dir.join("cni/10-berth.conflist"), network.to_string()).unwrap();
}

/// The files in which the network's plugins note what pod `id` has.
pub(crate) fn network_files(dir: &Path, id: &str) -> Vec<PathBuf> {
    let dirs = [dir.join("addresses/berth-test"), "/var/lib/cni/results".into()];
    let entries = dirs.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let about = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.contains(id) || path.display().to_string().contains(id)
    };
    paths.filter(about).collect()
}
