//! How a test chooses a runtime: options, annotations, and programs that note their calls.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use protobuf::CodedOutputStream;
use protobuf::well_known_types::any::Any;
use serde_json::json;

use super::Spec;

/// `runtimeoptions.v1.Options` as CRI and Docker send them: fields 2, a path, and 3, a text.
pub fn generic(path: &str, body: &str) -> Any {
    let mut value = Vec::new();
    let mut out = CodedOutputStream::vec(&mut value);
    out.write_string(2, path).unwrap();
    out.write_string(3, body).unwrap();
    out.flush().unwrap();
    drop(out);
    Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() }
}

/// A runtime that notes its arguments, NUL-terminated, in `PROGRAM.args` and its variable MARK in
/// `PROGRAM.mark`, then runs `runtime` without the first `own` arguments.
pub fn wrapper(dir: &Path, name: &str, own: u32, runtime: &str) -> String {
    let path = dir.join(name);
    let text = format!(
        "#!/bin/sh\nprintf '%s\\0' \"$@\" >$0.args\necho \"$MARK\" >$0.mark\nshift {own}\n\
         exec {runtime} \"$@\"\n"
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The arguments of the last call of a [`wrapper`].
pub fn arguments(wrapper: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("{wrapper}.args")).unwrap_or_default();
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// The annotation that selects a runtime of the table.
pub fn of_runtime(spec: Spec, name: &str) -> Spec {
    spec.set("/annotations/io.containerd.berth.runtime", json!(name))
}

/// The annotation that selects a preset.
pub fn of_preset(spec: Spec, name: &str) -> Spec {
    spec.set("/annotations/io.containerd.berth.config_path", json!(name))
}
