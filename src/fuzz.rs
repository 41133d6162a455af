//! What reads strangers' bytes, for the fuzzers of `tests/fuzz`: no input may make it panic, hang or
//! grow, and what it makes of one has to hold together. Only they compile it (`--cfg fuzzing`).

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::bundle::Spec;
use crate::ids::ContainerId;
use crate::sandbox::kind::Kind;
use crate::sandbox::sizing::{Limits, Sizing};
use crate::{cgroup, cli, config, io, manage, rootfs, rpc, runtime, trace, wire};

/// What a caller of `start` writes to its standard input, and its arguments.
pub fn bootstrap(data: &[u8]) {
    let _ = wire::bootstrap::decode(data, "id", "default");
    if let Ok(params) = BootstrapParams::parse_from_bytes(data) {
        for extension in &params.extensions {
            let _ = wire::options::decode(&extension.value);
        }
    }
    let args = data.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_owned()));
    let _ = cli::parse(args);
}

/// Create options: the message, or its value under every type that berth knows.
pub fn options(data: &[u8]) {
    if let Ok(any) = Any::parse_from_bytes(data) {
        let _ = wire::options::decode(&any);
        let _ = wire::pod::decode(&any);
    }
    for url in
        ["containerd.runc.v1.Options", "runtimeoptions.v1.Options", "runtime.v1.PodSandboxConfig"]
    {
        let any = Any { type_url: url.into(), value: data.into(), ..Any::new() };
        let _ = wire::options::decode(&any);
        let _ = wire::pod::decode(&any);
    }
}

/// A configuration file, and a `config_body`.
pub fn configuration(data: &[u8]) {
    config::fuzz::text(data);
    let _ = config::shim_cgroup(data);
}

/// Annotations of a container: `key=value` lines.
pub fn annotations(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let annotations: HashMap<_, _> =
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    if let Ok(kind) = Kind::of(&annotations) {
        let _ = Sizing::of(&kind, &annotations, Limits::default());
    }
}

/// `config.json`.
pub fn spec(data: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<Spec>(data) else { return };
    let _ = (spec.has_own_pid_namespace(), spec.is_confined(), spec.has_reserved_annotation());
    let _ = (spec.wants_systemd_cgroup(), ContainerId::new("id").map(|id| spec.cgroup_path(&id)));
    if let Ok(kind) = Kind::of(&spec.annotations) {
        let _ = Sizing::of(&kind, &spec.annotations, spec.limits());
    }
}

/// Options of a mount: its type, then a word a line.
pub fn mount_options(data: &[u8]) {
    rootfs::fuzz::options(&String::from_utf8_lossy(data));
}

/// The log and the output of an OCI runtime.
pub fn runtime_log(data: &[u8]) {
    runtime::failure::fuzz(data);
}

/// Control files of cgroups and the tables of procfs.
pub fn cgroup_files(data: &[u8]) {
    cgroup::fuzz::texts(&String::from_utf8_lossy(data));
}

/// The URI of a stream.
pub fn stdio_uri(data: &[u8]) {
    io::fuzz::uri(&String::from_utf8_lossy(data));
}

/// The start of a logger: the version, its URI's query, a line's end, its word.
pub fn logger(data: &[u8]) {
    io::fuzz::logger(data);
}

/// Output of a process, on its way into log files.
pub fn output(data: &[u8]) {
    io::fuzz::records(data);
}

/// What a client of the management interface sends.
pub fn http(data: &[u8]) {
    manage::http::fuzz(data);
}

/// Frames of ttrpc, and the messages in them and in streams.
pub fn frames(data: &[u8]) {
    rpc::fuzz(data);
    let _ = wire::streaming::decode(data);
}

/// The trace context of a request: a `traceparent`, and a `tracestate` on the next line.
pub fn trace_context(data: &[u8]) {
    trace::fuzz(&String::from_utf8_lossy(data));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// What a fuzzer has found goes into its corpus, and stays mended.
    #[test]
    fn samples_and_past_findings_hold() {
        type Target = fn(&[u8]);
        let targets: [(&str, Target); 14] = [
            ("annotations", annotations),
            ("bootstrap", bootstrap),
            ("cgroup_files", cgroup_files),
            ("configuration", configuration),
            ("frames", frames),
            ("http", http),
            ("logger", logger),
            ("mount_options", mount_options),
            ("options", options),
            ("output", output),
            ("runtime_log", runtime_log),
            ("spec", spec),
            ("stdio_uri", stdio_uri),
            ("trace_context", trace_context),
        ];
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        let names = |dir: &Path| {
            let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&corpus), targets.map(|(name, _)| name));
        for (name, target) in targets {
            for sample in names(&corpus.join(name)) {
                target(&fs::read(corpus.join(name).join(sample)).unwrap());
            }
        }
    }
}
