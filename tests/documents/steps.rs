//! What is done with a command that is not simply run: what stands for its placeholders, and what has to come of it.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::machine::{Machine, SOURCES, filled};
use crate::{command, commands, host, read, repository};

/// Where `make install` puts the program.
const LOCAL: &str = "/usr/local/bin/containerd-shim-berth-v1";

pub(crate) fn install(machine: &Machine, text: &str) {
    machine.sources(text, &format!("installed {LOCAL}"));
    machine.sources(&format!("{LOCAL} -v"), "berth ");
    machine.sources(&format!("{LOCAL} config check /etc/berth/config.toml"), "");
    for page in ["README.md", "CONTRIBUTING.md", "SECURITY.md"] {
        repository::links_of(&Path::new("/usr/local/share/doc/berth").join(page));
    }
}

pub(crate) fn uninstall(machine: &Machine, text: &str) {
    machine.sources(text, "");
    assert!(!Path::new(LOCAL).exists() && !Path::new("/etc/berth").exists());
}

pub(crate) fn tarball(machine: &Machine, text: &str) {
    machine.sources(text, ".tar.gz");
    machine.sources("mkdir -p /run/home/unpacked && tar -C /run/home/unpacked -xf target/packages/berth-*.tar.gz", "");
}

/// In the directory that the tarball unpacks to.
fn in_tarball(machine: &Machine, text: &str) {
    machine.well(SOURCES, &format!("cd /run/home/unpacked/berth-* && {text}"), "");
}

pub(crate) fn unpacked(machine: &Machine, text: &str) {
    in_tarball(machine, text);
    machine.sources(&format!("{LOCAL} -v"), "berth ");
}

pub(crate) fn removed(machine: &Machine, text: &str) {
    in_tarball(machine, text);
    assert!(!Path::new(LOCAL).exists());
}

pub(crate) fn package(machine: &Machine, text: &str) {
    machine.sources(text, "Setting up berth");
    assert!(Path::new("/usr/bin/containerd-shim-berth-v1").exists());
    repository::links_of(Path::new("/usr/share/doc/berth/README.md"));
}

/// They are there already, or known by these names: the machine has no network.
pub(crate) fn packages(machine: &Machine, text: &str) {
    for package in text.trim_start_matches("apt install ").split(' ') {
        machine.sources(&format!("apt-cache show {package} || dpkg -s {package}"), package);
    }
}

/// There is no registry here: it gets as far as looking for one.
pub(crate) fn pull(machine: &Machine, text: &str) {
    machine.containerd();
    let said = machine.run(SOURCES, text).refused();
    assert!(said.contains("failed to resolve") || said.contains("failed to do request"), "{said}");
}

pub(crate) fn hello(machine: &Machine, text: &str) {
    machine.says(text, "");
    command::until("its socket", || {
        Path::new("/run/berth/default/hello.sock").exists().then_some(())
    });
}

/// The first container, and the line of the worked example.
pub(crate) fn ps(machine: &Machine, text: &str) {
    let said = machine.says(text, "NAMESPACE");
    assert!(
        said.lines().any(|line| line.starts_with("default") && line.contains("hello")),
        "{said}"
    );
    crate::example::check_columns(text, &said);
}

pub(crate) fn run(machine: &Machine, text: &str) {
    machine.says(&(filled(text) + " true"), "");
    machine.says("ctr container delete ID", "");
}

/// The flag that is spoken of is one.
pub(crate) fn flag(machine: &Machine, text: &str) {
    let (command, flag) = text.rsplit_once(' ').unwrap();
    machine.says(&format!("{command} --help"), flag);
}

pub(crate) fn signal(machine: &Machine, text: &str) {
    machine.pod("web");
    let shim = machine.shim("web");
    machine.says(&text.replace("PID", &shim.to_string()), "");
    command::until("it is logged", || {
        let said = machine.says("containerd-shim-berth-v1 logs web", "");
        said.contains("events wait for containerd").then_some(())
    });
    assert!(host::exists(shim), "it lives on");
}

fn on_pod(machine: &Machine, text: &str, expected: &str) {
    machine.pod("web");
    machine.says(&filled(text), expected);
}

pub(crate) fn ask_health(machine: &Machine, text: &str) {
    on_pod(machine, text, "ok\n");
}

pub(crate) fn ask_index(machine: &Machine, text: &str) {
    for page in ["/metrics", "/containers", "/config", "/events", "/logs", "/debug/tasks"] {
        on_pod(machine, text, page);
    }
}

pub(crate) fn set_level(machine: &Machine, text: &str) {
    on_pod(machine, text, "debug");
}

pub(crate) fn ps_json(machine: &Machine, text: &str) {
    on_pod(machine, text, "\"socket\": \"/run/berth/k8s.io/web.sock\"");
}

pub(crate) fn logs(machine: &Machine, text: &str) {
    on_pod(machine, &text.replace("ID", "web").replace("0a1b2c", "web"), " serves ");
}

pub(crate) fn listen(machine: &Machine, text: &str) {
    let address = text.rsplit_once(' ').unwrap().1;
    with_server(machine, text, &format!("curl -s http://{address}/metrics"));
}

pub(crate) fn scrape(machine: &Machine, text: &str) {
    with_server(machine, "containerd-shim-berth-v1 metrics --listen 127.0.0.1:9190", text);
}

/// Scrapes the node while `server` runs.
fn with_server(machine: &Machine, server: &str, scrape: &str) {
    machine.pod("web");
    let mut child = machine.spawn(server, "/run/metrics.log");
    let scraped = command::until("a scrape", || {
        let output = machine.run("/", scrape);
        (output.status == 0).then(|| output.text())
    });
    host::signal(child.id().try_into().unwrap(), "TERM");
    command::wait(&mut child, server);
    assert!(scraped.contains("berth_up{"), "{scraped}");
}

/// The machine has no systemd: it restarts containerd as its unit would.
pub(crate) fn restart(machine: &Machine, _: &str) {
    machine.pod("web");
    let shim = machine.shim("web");
    machine.restart();
    assert_eq!(machine.shim("web"), shim, "the pod runs on");
    machine.well("/", "ctr -n k8s.io task list | grep -q 'web .*RUNNING'", "");
}

pub(crate) fn textfile(machine: &Machine, text: &str) {
    let text = text.replace("FILE", "/run/berth.prom");
    let file = Path::new(text.rsplit_once(' ').unwrap().1);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    on_pod(machine, &text, "");
    assert!(fs::read_to_string(file).unwrap().contains("berth_up{"));
}

/// What a shim that was killed may leave: a socket on which nobody listens, for long.
fn dead_socket(machine: &Machine) -> &'static Path {
    machine.pod("web");
    let socket = Path::new("/run/berth/k8s.io/gone.sock");
    if !socket.exists() {
        drop(UnixListener::bind(socket).unwrap());
        machine.well("/", &format!("touch -d 2001-01-01 {}", socket.display()), "");
    }
    socket
}

pub(crate) fn doctor(machine: &Machine, text: &str) {
    let socket = dead_socket(machine);
    let output = machine.run(SOURCES, text);
    let said = output.text();
    assert!(output.status == 1 && said.contains("gone.sock"), "{} {said}", output.status);
    assert!(socket.exists(), "it has only looked");
}

pub(crate) fn mended(machine: &Machine, text: &str) {
    let socket = dead_socket(machine);
    let shim = machine.shim("web");
    let said = machine.run(SOURCES, text).text();
    assert!(said.contains("mended") && said.contains("gone.sock"), "{said}");
    assert!(!socket.exists() && machine.shim("web") == shim, "{said}");
}

/// A short run, with the program that is there.
pub(crate) fn plot(machine: &Machine, text: &str) {
    let picture = Path::new("/run/plot.svg");
    machine.sources(&format!("{text} --seconds 3 --output {}", picture.display()), "plot: ");
    let (drawn, shown) =
        (fs::read_to_string(picture).unwrap(), read("packaging/grafana/berth.svg"));
    let panels = |svg: &str| svg.matches("class=\"t\"").count();
    assert!(
        panels(&drawn) > 1 && panels(&drawn) == panels(&shown),
        "other panels than README.md's"
    );
}

/// bash loads them.
pub(crate) fn source(machine: &Machine, text: &str) {
    machine.says(&format!("bash -c '{text}; complete -p containerd-shim-berth-v1'"), "complete -");
}

/// A machine without `man` has the page all the same.
pub(crate) fn manual(machine: &Machine, text: &str) {
    let there = machine.run("/", "command -v man").status == 0;
    let text = if there { text } else { text.split_once(" |").unwrap().0 };
    machine.says(&format!("export MANPAGER=cat; {text}"), "EXAMPLES");
}

pub(crate) fn completions(machine: &Machine, text: &str) {
    let file = Path::new(text.rsplit_once('>').unwrap().1);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    machine.says(text, "");
    machine.says(&format!("bash -n {0} && grep -q complete {0}", file.display()), "");
}

/// The README's table of runtimes is the host's.
fn configured(machine: &Machine, text: &str, expected: &str) {
    let blocks = commands::blocks(&read("README.md"), "toml");
    let table = blocks.iter().find(|block| block.contains("[runtimes.gvisor]")).unwrap();
    fs::create_dir_all("/etc/berth").unwrap();
    fs::write("/etc/berth/config.toml", table).unwrap();
    machine.says(text, expected);
}

pub(crate) fn config_check(machine: &Machine, text: &str) {
    configured(machine, &text.replace("FILE", "/etc/berth/config.toml"), "");
}

pub(crate) fn config_show(machine: &Machine, text: &str) {
    configured(machine, text, "/etc/berth/config.toml");
}

pub(crate) fn config_annotation(machine: &Machine, text: &str) {
    configured(machine, text, "gvisor");
}

/// What the recipe copies is where the command looks for it; Docker itself would want its base from a registry.
pub(crate) fn recipe(machine: &Machine, text: &str) {
    let (tarball, build) = text.split_once(" && ").unwrap();
    machine.sources(tarball, ".tar.gz");
    let words: Vec<_> = build.split(' ').collect();
    let (file, context) = (words[words.len() - 2], words[words.len() - 1]);
    let context = context.replace(
        "VERSION-ARCHITECTURE",
        &format!("{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH),
    );
    let recipe = fs::read_to_string(Path::new(SOURCES).join(file)).unwrap();
    let copy = recipe.lines().find_map(|line| line.strip_prefix("COPY ")).unwrap();
    let copied: Vec<_> = copy.split(' ').collect();
    for source in &copied[..copied.len() - 1] {
        let path = Path::new(SOURCES).join(&context).join(source);
        assert!(path.exists(), "{}", path.display());
    }
}

pub(crate) fn image(machine: &Machine, text: &str) {
    let said = text.replace("REGISTRY", "registry.example").replace("TAG", "1");
    machine.sources(&said, "");
    machine.well(
        SOURCES,
        "cat packaging/kubernetes/base/kustomization.yaml",
        "registry.example/berth-node",
    );
}

/// Where the `cd` before it has led.
pub(crate) fn in_base(machine: &Machine, text: &str) {
    let base = format!("{SOURCES}/packaging/kubernetes/base");
    machine.well(&base, text, "");
    if text.contains(" apply ") {
        let applied = fs::read_to_string("/run/cluster/applied").unwrap();
        assert!(applied.contains("registry.example/berth-node:1"), "{applied}");
    }
}
