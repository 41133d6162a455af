//! From sources and files to the one configuration that counts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::values::file;
use crate::config::source::{self, Environment, Request};
use crate::config::*;
use crate::error::Error;

/// A host whose files name a runtime after themselves.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.path("presets")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn environment(&self) -> Environment {
        Environment { named: None, default: self.path("default.toml") }
    }

    /// What the host's file says so that presets are found.
    fn host(&self, name: &str, gate: bool) -> String {
        let presets = self.path("presets");
        format!("runtime = \"/{name}\"\npreset_dir = {presets:?}\nallow_annotations = {gate}\n")
    }

    fn annotated(&self, annotation: &str) -> crate::error::Result<Config> {
        let (options, environment) = (RuntimeOptions::default(), self.environment());
        let annotation = Some(annotation);
        load(Request { annotation, options: &options, environment: &environment })
    }
}

/// The program that a configuration names; `"auto"` if it names none.
fn program(config: &Config) -> &str {
    match &config.runtime {
        DefaultRuntime::Program { name, .. } | DefaultRuntime::Named { name, .. } => name,
        DefaultRuntime::Auto => "auto",
    }
}

#[test]
fn the_nearest_source_wins() {
    for bits in 0..64 {
        let has = |bit: u32| bits & (1 << bit) != 0;
        let [annotation, option, environment, default, gate, inline] = [0, 1, 2, 3, 4, 5].map(has);
        let place = Place::new();
        place.write("presets/preset.toml", "runtime = \"/preset\"");
        for name in ["environment", "default"] {
            place.write(&format!("{name}.toml"), place.host(name, gate));
        }
        place.write("option.toml", place.host("option", true));
        if !default {
            fs::remove_file(place.path("default.toml")).unwrap();
        }
        let options = match (option, inline) {
            (false, _) => RuntimeOptions::default(),
            (true, false) => RuntimeOptions {
                config_path: place.path("option.toml").display().to_string(),
                ..RuntimeOptions::default()
            },
            (true, true) => RuntimeOptions {
                config_body: place.host("option", true).into_bytes(),
                ..RuntimeOptions::default()
            },
        };
        let environment = Environment {
            named: environment.then(|| place.path("environment.toml")),
            ..place.environment()
        };
        let request = Request {
            annotation: annotation.then_some("preset"),
            options: &options,
            environment: &environment,
        };
        let machine = environment.named.is_some() || default;
        let sources = [
            (annotation, "/preset"),
            (option, "/option"),
            (environment.named.is_some(), "/environment"),
            (default, "/default"),
        ];
        let expected = sources.into_iter().find(|(there, _)| *there);
        // Only the machine's file can shut the gate. Without a file of either there are presets in
        // no other directory than the usual one.
        let refused = annotation && ((machine && !gate) || !(machine || option));
        match load(request) {
            Err(Error::Denied(_)) => assert!(refused, "{bits:b}"),
            got => {
                let config = got.unwrap();
                assert_eq!(program(&config), expected.map_or("auto", |it| it.1), "{bits:b}");
                assert!(!refused, "{bits:b}");
            }
        }
    }
}

#[test]
fn a_machine_whose_file_is_broken_lets_annotations_choose_nothing() {
    let place = Place::new();
    place.write("presets/preset.toml", "runtime = \"/preset\"");
    place.write("option.toml", place.host("option", true));
    place.write("default.toml", "broken");
    let options = RuntimeOptions {
        config_path: place.path("option.toml").display().to_string(),
        ..RuntimeOptions::default()
    };
    let environment = place.environment();
    let load =
        |annotation| load(Request { annotation, options: &options, environment: &environment });
    assert_eq!(program(&load(None).unwrap()), "/option");
    let error = load(Some("preset")).unwrap_err().to_string();
    assert!(error.contains("default.toml:1"), "{error}");
}

#[test]
fn a_table_of_nothing_but_runc_s_options_is_on_top_of_the_machine_s_file() {
    let place = Place::new();
    place.write("default.toml", "deadline = 5\n[runtimes.two]\npath = \"/two\"\n");
    let environment = place.environment();
    let cases = [
        ("options", "BinaryName = 'two'\nSystemdCgroup = true\n", Ok((1, "two", 5))),
        ("empty table", "TypeUrl = ''\n", Ok((1, "", 5))),
        ("own key", "BinaryName = 'two'\nFuseOverlayfs = false\n", Ok((0, "two", 30))),
        ("newer options", "TaskApiAddress = ''\nTaskApiVersion = 0\n", Ok((1, "", 5))),
        (
            "mistyped",
            "BinaryNam = 'two'\n",
            Err(":1 (create option ConfigBody): BinaryNam: unknown"),
        ),
    ];
    for (name, body, expected) in cases {
        let options = RuntimeOptions { config_body: body.into(), ..RuntimeOptions::default() };
        let request = Request { annotation: None, options: &options, environment: &environment };
        match (load(request), expected) {
            (Ok(config), Ok((runtimes, binary_name, seconds))) => {
                assert_eq!(config.runtimes.len(), runtimes, "{name}");
                assert_eq!(config.options.binary_name, binary_name, "{name}");
                let deadline = Duration::from_secs(seconds);
                assert_eq!(config.deadlines.of("create"), deadline, "{name}");
            }
            (Err(error), Err(part)) => {
                assert!(error.to_string().contains(part), "{name}: {error}");
            }
            (got, _) => panic!("{name}: {got:?}"),
        }
    }
}

#[test]
fn an_option_that_names_a_file_wins_over_its_text() {
    let place = Place::new();
    place.write("a.toml", "runtime = \"/a\"");
    let a = place.path("a.toml");
    let a = a.to_str().unwrap();
    type Case<'a> = (&'a str, &'a str, &'a [u8], Result<&'a str, &'a str>);
    let cases: [Case<'_>; 6] = [
        ("both", a, b"runtime = \"/b\"", Ok("/a")),
        ("text", "", b"runtime = \"/b\"", Ok("/b")),
        (
            "not UTF-8",
            "",
            b"\nruntime = \xff",
            Err("the create options:2 (create option ConfigBody): not UTF-8"),
        ),
        ("relative", "a.toml", b"", Err("must be an absolute path")),
        ("missing", "/no/such", b"", Err("/no/such (create option ConfigPath)")),
        ("file of /proc", "/proc/self/environ", b"", Err("it is the kernel's")),
    ];
    for (name, path, body, expected) in cases {
        let options = RuntimeOptions {
            config_path: path.into(),
            config_body: body.into(),
            ..RuntimeOptions::default()
        };
        let environment = place.environment();
        let request = Request { annotation: None, options: &options, environment: &environment };
        match (load(request), expected) {
            (Ok(config), Ok(expected)) => {
                assert_eq!(program(&config), expected, "{name}");
            }
            (Err(error), Err(part)) => {
                assert!(error.to_string().contains(part), "{name}: {error}");
            }
            (got, _) => panic!("{name}: {got:?}"),
        }
    }
}

#[test]
fn drop_ins_merge_in_the_order_of_their_names() {
    let place = Place::new();
    let presets = place.path("presets");
    place.write(
        "default.toml",
        format!("preset_dir = {presets:?}\n[runtimes.x]\npath = \"/x\"\nargs = [\"a\"]"),
    );
    fs::create_dir(place.path("default.toml.d")).unwrap();
    place.write("default.toml.d/10.toml", "deadline = 5\n[runtimes.x]\nargs = [\"b\"]");
    place.write("default.toml.d/20.toml", "deadline = 6\n[runtimes.y]\npath = \"/y\"");
    place.write("default.toml.d/30.toml~", "deadline = 7");
    place.write("default.toml.d/.40.toml", "deadline = 8");
    place.write("presets/p.toml", "runtime = \"/p\"");
    fs::create_dir(place.path("presets/p.toml.d")).unwrap();
    place.write("presets/p.toml.d/1.toml", "runtime = \"/q\"");
    let environment = place.environment();
    let options = RuntimeOptions::default();
    let request = Request { annotation: None, options: &options, environment: &environment };
    let loaded = source::load_with(request, source::Origins::Kept).unwrap();
    assert_eq!(loaded.config.deadlines.of("create"), Duration::from_secs(6));
    assert_eq!(loaded.config.runtimes["x"].args, ["b"]);
    assert_eq!(loaded.config.runtimes["x"].candidates, ["/x"]);
    assert_eq!(loaded.config.runtimes.len(), 2);
    let origin = |table: &str, key: &str| {
        let one = loaded.settings.iter().find(|one| one.table == table && one.key == key);
        one.unwrap().place.clone().unwrap_or_default()
    };
    assert!(origin("runtimes.x", "args").ends_with("/10.toml:3 (drop-in)"));
    assert!(origin("runtimes.x", "path").ends_with("/default.toml:3 (default file)"));
    assert!(origin("deadline", "default").ends_with("/20.toml:1 (drop-in)"));
    let preset = place.annotated("p").unwrap();
    assert_eq!(program(&preset), "/q");
    // Of two keys for one thing the later one counts.
    place.write("default.toml.d/20.toml", "runtime = \"/a\"\n[runtimes.x]\ncandidates = [\"b\"]");
    place.write("default.toml.d/21.toml", "default_runtime = \"x\"");
    let rival = load(request).unwrap();
    assert_eq!((program(&rival), &*rival.runtimes["x"].candidates), ("x", &["b".to_owned()][..]));
    place.write("default.toml.d/20.toml", "deadline = 6\n[runtimes.y]\npath = \"/y\"");
    fs::remove_file(place.path("default.toml.d/21.toml")).unwrap();
    // Drop-ins are enough where there is no file.
    fs::remove_file(place.path("default.toml")).unwrap();
    fs::remove_file(place.path("default.toml.d/10.toml")).unwrap();
    assert_eq!(load(request).unwrap().runtimes["y"].candidates, ["/y"]);
    place.write("default.toml.d/05.toml", "x = 1\n");
    place.write("default.toml.d/06.toml", "y = 1\n");
    let error = load(request).unwrap_err().to_string();
    assert!(error.contains("05.toml:1 (drop-in)") && error.contains("06.toml:1"), "{error}");
}

#[test]
fn an_annotation_selects_only_what_is_safe_in_the_preset_directory() {
    let place = Place::new();
    place.write("default.toml", place.host("default", true));
    place.write("outside.toml", "runtime = \"/outside\"");
    place.write("presets/good.toml", "runtime = \"/good\"");
    fs::create_dir(place.path("presets/below")).unwrap();
    place.write("presets/below/deep.toml", "runtime = \"/good\"");
    let link = |to: &str, name: &str| symlink(to, place.path(&format!("presets/{name}"))).unwrap();
    link("good.toml", "inside.toml");
    link("below/../good.toml", "around.toml");
    link("../outside.toml", "up.toml");
    link(place.path("outside.toml").to_str().unwrap(), "absolute.toml");
    link("/proc/self/environ", "proc.toml");
    link("/proc/self/fd/0", "magic.toml");
    link("self.toml", "self.toml");
    link("..", "dir");
    nix::unistd::mkfifo(&place.path("presets/fifo.toml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    drop(std::os::unix::net::UnixListener::bind(place.path("presets/socket.toml")).unwrap());
    for (name, mode) in [("world.toml", 0o646), ("group.toml", 0o664)] {
        place.write(&format!("presets/{name}"), "runtime = \"/bad\"");
        let path = place.path(&format!("presets/{name}"));
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(place.path("presets/base.toml.d")).unwrap();
    fs::create_dir(place.path("presets/open")).unwrap();
    fs::create_dir(place.path("presets/dir.toml")).unwrap();
    for name in ["base.toml.d/1.toml", ".hidden.toml", "NOTES", "open/x.toml"] {
        place.write(&format!("presets/{name}"), "runtime = \"/bad\"");
    }
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(place.path("presets/open"), open).unwrap();
    let (null, mode) = (nix::sys::stat::makedev(1, 3), nix::sys::stat::Mode::S_IRUSR);
    let device = place.path("presets/device.toml");
    nix::sys::stat::mknod(&device, nix::sys::stat::SFlag::S_IFCHR, mode, null).unwrap();
    place.write("presets/long.toml", vec![b'#'; (1 << 20) + 1]);
    fs::File::create(place.path("presets/huge.toml")).unwrap().set_len(100 << 20).unwrap();
    place.write("presets/full.toml", vec![b'#'; 1 << 20]);
    let (good, absolute) = (Ok("/good"), place.path("presets/good.toml"));
    let outside = place.path("outside.toml");
    let cases = [
        ("name", "good", good),
        ("file name", "good.toml", good),
        ("path", absolute.to_str().unwrap(), good),
        ("path below", "below/deep.toml", good),
        ("link inside", "inside", good),
        ("link around inside", "around", good),
        ("missing", "missing", Err("it does not exist in")),
        ("missing path", "below/missing.toml", Err("it does not exist in")),
        ("..", "../outside.toml", Err("it leads out of")),
        (".. that stays inside", "below/../good.toml", Err("it leads out of")),
        ("absolute outside", outside.to_str().unwrap(), Err("it is not in the preset directory")),
        ("/etc/passwd", "/etc/passwd", Err("it is not in the preset directory")),
        ("link up", "up", Err("it leads out of")),
        ("absolute link", "absolute", Err("it leads out of")),
        ("link to /proc", "proc", Err("it leads out of")),
        ("magic link", "magic", Err("it leads out of")),
        ("link to itself", "self", Err("it leads out of")),
        ("link to a directory above", "dir/outside.toml", Err("it leads out of")),
        ("directory", "dir.toml", Err("not a regular file")),
        ("FIFO", "fifo", Err("not a regular file")),
        ("socket", "socket", Err("not a regular file")),
        ("world-writable", "world", Err("others can write it (mode 646)")),
        ("group-writable", "group", Err("its group or others can write it (mode 664)")),
        ("too long", "long", Err("longer than 1048576 bytes")),
        ("100 MiB", "huge", Err("longer than 1048576 bytes")),
        ("just short enough", "full", Ok("")),
        ("drop-in", "base.toml.d/1.toml", Err("neither hidden files nor drop-ins")),
        ("hidden", ".hidden.toml", Err("neither hidden files nor drop-ins")),
        ("another name", "./NOTES", Err("a preset is called NAME.toml")),
        ("directory that others write", "open/x.toml", Err("its group or others can write it")),
        ("device", "device", Err("not a regular file")),
        ("NUL", "go\0od", Err("is refused")),
        ("long name", &"x".repeat(5000), Err("is refused")),
    ];
    for (name, annotation, expected) in cases {
        match (place.annotated(annotation), expected) {
            (Ok(config), Ok("")) => assert_eq!(config.runtime, DefaultRuntime::Auto, "{name}"),
            (Ok(config), Ok(expected)) => {
                assert_eq!(program(&config), expected, "{name}");
            }
            (Err(Error::Denied(why)), Err(part)) => assert!(why.contains(part), "{name}: {why}"),
            (got, _) => panic!("{name}: {got:?}"),
        }
    }
}

#[test]
fn what_is_shown_is_a_file_with_the_same_values() {
    let text = "default_runtime = \"my x\"\n[runtimes.\"my x\"]\npath = \"/x\"\nargs = [\"a\\n\\u007f\\\"\"]\n\
                env = { A = \"ä\" }\nannotations = { \"a.b\" = \"c\" }\ndeadline = { create = 2.5 }";
    let place = Place::new();
    place.write("a.toml", text);
    let path = place.path("a.toml");
    for origin in [false, true] {
        let config = Some(path.clone());
        let query = crate::cli::ConfigQuery { origin, config, annotations: Vec::new() };
        let shown = show(&query).unwrap();
        let again = file(&shown).unwrap();
        let original = file(text).unwrap();
        assert_eq!(program(&again), program(&original));
        let entry = Entry { place: None, ..again.runtimes["my x"].clone() };
        assert_eq!(entry, Entry { place: None, ..original.runtimes["my x"].clone() }, "{shown}");
        assert_eq!(shown.contains("# default\n"), origin);
        let place = "a.toml:1 (create option ConfigPath)\n";
        assert_eq!(shown.contains(place), origin, "{shown}");
    }
}

#[test]
fn files_that_an_administrator_names_must_be_safe_too() {
    let place = Place::new();
    let path = place.path("a.toml");
    let set = |mode: u32, owner: u32| {
        place.write("a.toml", "deadline = 1");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
        let text = crate::config::file::read(&path).map_err(|error| error.to_string());
        fs::remove_file(&path).unwrap();
        text
    };
    let cases = [
        ("plain", 0o644, 0, None),
        ("group", 0o664, 0, None),
        ("others", 0o646, 0, Some("others can write it")),
        ("another's", 0o644, 1234, Some("it belongs to uid 1234")),
    ];
    for (name, mode, owner, expected) in cases {
        match (set(mode, owner), expected) {
            (Ok(text), None) => assert_eq!(text, b"deadline = 1", "{name}"),
            (Err(error), Some(part)) => assert!(error.contains(part), "{name}: {error}"),
            (got, _) => panic!("{name}: {got:?}"),
        }
    }
    place.write("default.toml", b"\n\nx = \"\xff\"");
    let error = place.annotated("good").unwrap_err().to_string();
    assert!(error.contains("default.toml:3 (default file): not UTF-8"), "{error}");
    for (path, part) in [("/dev/zero", "not a regular file"), ("/proc/cpuinfo", "the kernel's")] {
        let error = crate::config::file::read(Path::new(path)).unwrap_err().to_string();
        assert!(error.contains(part), "{path}: {error}");
    }
    let presets = place.path("presets");
    for (mode, owner) in [(0o775, 0), (0o757, 0), (0o755, 1234)] {
        fs::set_permissions(&presets, fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&presets, Some(owner), None).unwrap();
        place.write("default.toml", place.host("default", true));
        let refused = place.annotated("good");
        assert!(matches!(refused, Err(Error::Denied(_))), "{mode:o} {owner}: {refused:?}");
    }
}

/// Whoever replaces a preset while it is looked up gains nothing.
#[test]
fn a_preset_that_is_swapped_is_never_read_from_outside() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let place = Place::new();
    place.write("default.toml", place.host("default", true));
    fs::create_dir(place.path("presets/d")).unwrap();
    fs::create_dir(place.path("outside")).unwrap();
    place.write("presets/d/x.toml", "runtime = \"/good\"");
    place.write("outside/x.toml", "runtime = \"/outside\"");
    let (dir, link, other) =
        (place.path("presets/d"), place.path("presets/l"), place.path("presets/o"));
    symlink(place.path("outside"), &link).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::rename(&dir, &other).unwrap();
                fs::rename(&link, &dir).unwrap();
                fs::rename(&dir, &link).unwrap();
                fs::rename(&other, &dir).unwrap();
            }
        });
        let loaded: Vec<_> = (0..2000).map(|_| place.annotated("d/x.toml")).collect();
        done.store(true, Ordering::Relaxed);
        let read = loaded.iter().filter_map(|loaded| loaded.as_ref().ok());
        assert!(read.clone().count() > 0, "it was never there");
        assert!(read.clone().all(|config| program(config) == "/good"));
        let refused = |error: &Error| matches!(error, Error::Denied(_));
        assert!(loaded.iter().filter_map(|loaded| loaded.as_ref().err()).all(refused));
    });
}

#[test]
fn what_a_create_saw_can_be_told_when_the_files_have_changed() {
    let place = Place::new();
    let file = "deadline = 7\n[runtimes.env]\npath = \"/bin/true\"\nenv = { SECRET = \"s3cret\" }\n\
                [runtimes.\"a.env\"]\npath = \"/bin/false\"\n";
    place.write("default.toml", file);
    let environment = place.environment();
    let typed = RuntimeOptions {
        binary_name: "crun".into(),
        systemd_cgroup: true,
        io_uid: 7,
        ..RuntimeOptions::default()
    };
    let request = Request { annotation: None, options: &typed, environment: &environment };
    let (config, seen) = load_seen(request, Some("env")).unwrap();
    assert_eq!(config, load(request).unwrap());
    fs::remove_file(place.path("default.toml")).unwrap();
    let text = seen.text();
    let line = |key: &str| text.lines().find(|line| line.starts_with(&format!("{key} = ")));
    let cases = [
        ("default", "= 7.0", "default.toml:1 (default file)"),
        ("BinaryName", "= \"crun\"", "# create options"),
        ("SystemdCgroup", "= true", "# create options"),
        ("IoUid", "= 7", "# create options"),
        ("default_runtime", "= \"env\"", "# annotation io.containerd.berth.runtime"),
        ("runtime", "= \"auto\"", "# annotation io.containerd.berth.runtime"),
        ("enabled", "= true", "# default"),
        ("path", "= \"/bin/", "default.toml:"),
        ("SECRET", "= \"(not shown)\"", "default.toml:4 (default file)"),
    ];
    for (key, value, origin) in cases {
        let line = line(key).unwrap_or_else(|| panic!("no {key}: {text}"));
        assert!(line.contains(value) && line.contains(origin), "{key}: {line}");
    }
    // Runtimes are shown whatever they are called, and nothing that was not said.
    assert!(
        text.contains("path = \"/bin/true\"") && text.contains("path = \"/bin/false\""),
        "{text}"
    );
    assert!(!text.contains("s3cret") && line("Root").is_none(), "{text}");

    // Single values of a table of options stand on top of the machine's.
    let body = RuntimeOptions { config_body: b"Root = \"/r\"".to_vec(), ..Default::default() };
    let request = Request { options: &body, ..request };
    let text = load_seen(request, None).unwrap().1.text();
    let root = text.lines().find(|line| line.starts_with("Root = \"/r\"")).expect(&text);
    assert!(root.ends_with("(create option ConfigBody)"), "{root}");

    // Where nothing is set, all of it is built in, and nothing is kept.
    let options = RuntimeOptions::default();
    let (_, seen) = load_seen(Request { options: &options, ..request }, None).unwrap();
    let text = seen.text();
    assert!(text.starts_with("# built-in defaults\n"), "{text}");
    let built_in =
        source::load_with(Request { options: &options, ..request }, source::Origins::Kept);
    assert_eq!(text.lines().count(), {
        let settings = built_in.unwrap().settings;
        let set: Vec<_> = settings.iter().filter(|one| one.value.is_some()).collect();
        let mut tables: Vec<_> =
            set.iter().map(|one| &one.table).filter(|it| !it.is_empty()).collect();
        tables.sort();
        tables.dedup();
        1 + set.len() + 2 * tables.len()
    });
}
