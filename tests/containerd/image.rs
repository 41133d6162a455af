//! The image of the tests: Debian's static busybox in an OCI image layout, made on the spot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::command;

/// The name under which [`write`]'s archive is imported.
pub(crate) const NAME: &str = "berth.test/busybox:1";

const APPLETS: &[&str] =
    &["cat", "echo", "head", "ls", "mkdir", "sh", "sleep", "stty", "tail", "touch", "true", "wc"];

/// The program that the image consists of.
pub(crate) fn busybox() -> PathBuf {
    let found = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
    PathBuf::from(found.expect("busybox is missing: install busybox-static"))
}

/// Writes the image as an archive for `ctr image import` below `dir`; returns its path.
pub(crate) fn write(dir: &Path) -> PathBuf {
    write_named(dir, NAME, &["/bin/sh"])
}

/// Writes the image under another name, with another program as its own.
pub(crate) fn write_named(dir: &Path, name: &str, program: &[&str]) -> PathBuf {
    let (layout, tree) = (dir.join("layout"), dir.join("tree"));
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fill(&tree);
    let layer = dir.join("layer.tar");
    tar(&layer, &tree);

    let layer = blob(&layout, "layer.v1.tar", &fs::read(layer).unwrap());
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Cmd": program, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = blob(&layout, "config.v1+json", config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest = blob(&layout, "manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({ "io.containerd.image.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();

    let archive = dir.join("image.tar");
    tar(&archive, &layout);
    archive
}

/// Lays out the root file system: one program, a link for each applet, and mount points.
fn fill(tree: &Path) {
    for dir in ["bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    fs::copy(busybox(), tree.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
}

/// Stores `data` under its digest; returns its descriptor.
fn blob(layout: &Path, kind: &str, data: &[u8]) -> Value {
    let digest = hex(data);
    fs::write(layout.join("blobs/sha256").join(&digest), data).unwrap();
    json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": format!("sha256:{digest}"),
        "size": data.len(),
    })
}

/// SHA-256 in hexadecimal digits.
pub(crate) fn hex(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tar(archive: &Path, tree: &Path) {
    command::run(Command::new("tar").arg("-C").arg(tree).arg("-cf").arg(archive).arg("."), b"")
        .ok();
}

/// The machine's architecture in the words of an image.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
