//! Files for clients that Debian does not package, or that are only built here: the manifests of
//! `packaging/kubernetes`, as kustomize builds them, the image's recipe, and BuildKit's configuration.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::command;

/// A name, and what is checked with the programs that were fetched into a directory.
type Check = (&'static str, fn(&Path));

pub(crate) const CASES: &[Check] =
    &[("manifests", manifests), ("image-recipe", image_recipe), ("buildkitd-toml", buildkitd_toml)];

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/kubernetes");

/// Each overlay builds, with the lines that its comments promise; the labels that the script sets are
/// those that the classes ask for, and the handlers those that it installs.
fn manifests(fetched: &Path) {
    let kustomize = fetched.join("kustomize/bin/kustomize");
    if !kustomize.exists() {
        eprintln!(
            "NO KUSTOMIZE: the manifests are not built; packaging/fetch-containerd.sh fetches it"
        );
        return;
    }
    let common =
        ["kind: Namespace", "kind: ServiceAccount", "kind: ClusterRoleBinding", "kind: DaemonSet"];
    let rows: &[(&str, usize, &[&str])] = &[
        (
            "base",
            6,
            &[
                "- install\n",
                "maxUnavailable: 1\n",
                "handler: berth\n",
                "berth.io/runtime: \"true\"",
            ],
        ),
        (
            "pauseless",
            7,
            &[
                "- install\n",
                "name: PAUSELESS",
                "handler: berth-pauseless\n",
                "berth.io/pauseless: \"true\"",
            ],
        ),
        ("remove", 6, &["- remove\n", "maxUnavailable: 100%\n"]),
    ];
    let script = fs::read_to_string(Path::new(DIR).join("node.sh")).unwrap();
    for (overlay, documents, lines) in rows {
        let mut build = Command::new(&kustomize);
        let text =
            command::run(build.arg("build").arg(Path::new(DIR).join(overlay)), b"").ok() + "\n";
        let kinds = text.lines().filter(|line| line.starts_with("kind: ")).count();
        assert_eq!(kinds, *documents, "{overlay}: {text}");
        for line in common.iter().chain(*lines) {
            assert!(text.contains(line), "{overlay} lacks {line:?}: {text}");
        }
        // Everything that has a namespace is in the one that it brings along.
        assert!(!text.contains("namespace: default"), "{overlay}: {text}");
        let variables = text.lines().filter_map(|line| line.trim().strip_prefix("- name: "));
        for name in
            variables.filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        {
            assert!(script.contains(&format!("{name}:-")), "node.sh does not read {name}");
        }
    }
    for label in ["berth.io/runtime", "berth.io/pauseless"] {
        assert!(script.contains(label), "{label}");
    }
    let ready = "READY=${READY:-/tmp/ready}";
    assert!(script.contains(ready), "the probe of the DaemonSet looks for /tmp/ready");
}

/// What the recipe copies is what `packaging/stage.sh` lays out.
fn image_recipe(_: &Path) {
    let recipe = fs::read_to_string(Path::new(DIR).join("Containerfile")).unwrap();
    let copied = recipe.lines().find_map(|line| line.strip_prefix("COPY ")).unwrap();
    let expected =
        "bin/containerd-shim-berth-v1 share/doc/berth/examples/kubernetes/node.sh /opt/berth/";
    assert_eq!(copied, expected);
    let stage = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/stage.sh");
    let stage = fs::read_to_string(stage).unwrap();
    for part in
        ["cp -r packaging/kubernetes \"$doc/examples/\"", "\"$tree/bin/containerd-shim-berth-v1\""]
    {
        assert!(stage.contains(part), "{part}");
    }
}

/// The file is TOML, also with what stands there in comments, and names berth. What BuildKit makes of it are
/// the options that `ctr run --runtime-config-path` sends too, in `tests/containerd`.
fn buildkitd_toml(_: &Path) {
    let text = include_str!("../../config/buildkitd.toml");
    for text in [text.to_owned(), text.replace("# path", "path").replace("# options", "options")] {
        let parsed: toml::Table = text.parse().unwrap();
        let runtime = &parsed["worker"]["containerd"]["runtime"];
        assert_eq!(runtime["name"].as_str(), Some("io.containerd.berth.v1"));
    }
}
