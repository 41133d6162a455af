//! Names and paths in every field where one enters, beyond the ids of `hostile_names_…`.

use std::fs;
use std::path::Path;

use containerd_shim_protos::api::CreateTaskRequest;
use serde_json::json;

use crate::support::{Answer, Code, Host, Shim, Spec, Stdin, bind, of_preset, of_runtime, skipped};

/// What no field should take for a name.
fn hostile() -> Vec<String> {
    let mut all: Vec<_> =
        ["../x", "a b/../../x", "a\0b", "x/\u{e4}/\u{202e}", "\n", " "].map(str::to_owned).into();
    all.extend([
        "a".repeat(300),
        format!("/{}", "a/".repeat(3000)),
        "/proc/self/fd/3/../..".into(),
    ]);
    all
}

/// A field of Create, and whether what is put there has to be refused.
type Field = (&'static str, fn(&Shim<'_>, &mut CreateTaskRequest, &str));

const FIELDS: &[Field] = &[
    ("bundle", |_, request, text| request.bundle = text.into()),
    ("stdout", |_, request, text| request.stdout = text.into()),
    ("stdin", |_, request, text| request.stdin = text.into()),
    ("stdout, a file", |_, request, text| request.stdout = format!("file://{text}")),
    ("stderr, a logger", |_, request, text| request.stderr = format!("binary://{text}")),
    ("stdout, a scheme", |_, request, text| request.stdout = format!("{text}://x")),
    ("stdout, a stream", |_, request, text| {
        request.stdout = format!("ttrpc+unix://{text}?streaming_id={text}");
    }),
    ("checkpoint", |_, request, text| request.checkpoint = text.into()),
    ("runtime", |shim, request, text| {
        request.options = Some(shim.options(|options| options.binary_name = text.into())).into();
    }),
    ("checkpoint of the options", |shim, request, text| {
        request.options =
            Some(shim.options(|options| options.criu_image_path = text.into())).into();
    }),
    ("target of a mount", |_, request, text| request.rootfs[0].target = format!("../{text}")),
    ("source of a mount", |_, request, text| request.rootfs = vec![bind(text, &["rbind"])]),
];

/// Refused in words that can be read, and nothing is made.
fn is_refused(answer: Answer<u32>, what: &str) {
    let refusal = answer.map(drop).expect_err(what);
    assert_ne!(refusal.code, Code::OK, "{what}: no answer: {refusal:?}");
    assert!(refusal.message.len() < 20_000, "{what}: {} bytes", refusal.message.len());
}

#[test]
fn hostile_paths_are_refused_in_every_field() {
    if skipped("paths are checked") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let before = (host.files("c"), listing(host.dir()));
    for (field, set) in FIELDS {
        for text in hostile() {
            let mut request = shim.request("c");
            set(&shim, &mut request, &text);
            let shown: String = text.chars().take(20).collect();
            is_refused(shim.create(&request), &format!("{field} {shown:?}"));
        }
    }
    for text in hostile().into_iter().filter(|text| !text.contains('\0')) {
        let shown: String = text.chars().take(20).collect();
        for (name, spec) in [
            ("preset", of_preset(Spec::idle(), &text)),
            ("runtime of the table", of_runtime(Spec::idle(), &text)),
            (
                "sandbox",
                Spec::idle()
                    .of_pod(&text)
                    .set("/annotations/io.kubernetes.cri.container-type", json!("container")),
            ),
        ] {
            host.prepare("c", spec);
            is_refused(shim.create_plain("c"), &format!("annotation {name} {shown:?}"));
        }
    }
    assert_eq!((host.files("c"), listing(host.dir())), before, "something was made");
    assert!(host.mounts().is_empty() && host.sink.lines().is_empty());
    host.prepare("c", Spec::idle());
    shim.run("c");
    shim.end();
}

/// Everything but sockets that a directory has at its top.
fn listing(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "root");
    names.sort();
    names
}

#[test]
fn start_and_delete_refuse_hostile_names() {
    if skipped("names are checked") {
        return;
    }
    let host = Host::new();
    host.prepare("c", Spec::idle());
    let before = listing(host.dir());
    for text in hostile().into_iter().filter(|text| !text.contains('\0')) {
        for (flag, action) in
            [("-id", "start"), ("-id", "delete"), ("-namespace", "start"), ("-namespace", "delete")]
        {
            let command = host.command("c", action);
            let mut args: Vec<_> = command.get_args().map(|arg| arg.to_owned()).collect();
            let place = args.iter().position(|arg| *arg == *flag).unwrap() + 1;
            args[place] = text.clone().into();
            let mut again = std::process::Command::new(command.get_program());
            again.args(args).current_dir(host.bundle("c")).env("BERTH_TEST_TAG", host.tag());
            again.env("TTRPC_ADDRESS", host.sink.path());
            let output = again.stdin(std::process::Stdio::null()).output().unwrap();
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            // `delete` has no use for a namespace.
            let may = (flag, action) == ("-namespace", "delete");
            assert!(may || !output.status.success(), "{flag} {action} {text:?}: {output:?}");
            assert!(!words.contains("panicked"), "{words}");
        }
    }
    let group = Spec::idle().of_pod("../../x");
    host.prepare("c", group);
    let output = host.run("c", "start", &Stdin::Nothing);
    if output.status.success() {
        // Its socket is named by a hash: the id does not become a path.
        let address = String::from_utf8(output.stdout).unwrap();
        let name = address.trim().rsplit('/').next().unwrap();
        assert!(name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{address}");
        let shim = host.attach("c", &Stdin::Nothing);
        shim.stop();
    }
    let after: Vec<_> = listing(host.dir());
    assert_eq!(after, before);
}
