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

#[test]
fn the_nearest_source_wins() {
    for bits in 0..32 {
        let has = |bit: u32| bits & (1 << bit) != 0;
        let (annotation, option, environment, default, gate) =
            (has(0), has(1), has(2), has(3), has(4));
        let place = Place::new();
        place.write("presets/preset.toml", "runtime = \"/preset\"");
        for name in ["option", "environment", "default"] {
            place.write(&format!("{name}.toml"), place.host(name, gate));
        }
        if !default {
            fs::remove_file(place.path("default.toml")).unwrap();
        }
        let options = RuntimeOptions {
            config_path: place.path("option.toml").display().to_string(),
            ..RuntimeOptions::default()
        };
        let options = if option { options } else { RuntimeOptions::default() };
        let environment = Environment {
            named: environment.then(|| place.path("environment.toml")),
            ..place.environment()
        };
        let request = Request {
            annotation: annotation.then_some("preset"),
            options: &options,
            environment: &environment,
        };
        let host = [(option, "/option"), (environment.named.is_some(), "/environment")];
        let host = host.into_iter().chain([(default, "/default")]).find(|(there, _)| *there);
        let got = load(request).map(|config| config.runtime);
        let named = |name: &str| DefaultRuntime::Program(name.into());
        match (annotation, host) {
            (false, Some((_, name))) => assert_eq!(got.unwrap(), named(name), "{bits:b}"),
            (false, None) => assert_eq!(got.unwrap(), DefaultRuntime::Auto, "{bits:b}"),
            (true, Some(_)) if gate => assert_eq!(got.unwrap(), named("/preset"), "{bits:b}"),
            // Without any file there is no other preset directory than the one that is built in.
            (true, _) => assert!(matches!(got, Err(Error::Denied(_))), "{bits:b}: {got:?}"),
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
            (Ok(config), Ok(program)) => {
                assert_eq!(config.runtime, DefaultRuntime::Program(program.into()), "{name}");
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
    let loaded = source::load_with_origins(request).unwrap();
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
    assert_eq!(preset.runtime, DefaultRuntime::Program("/q".into()));
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
        ("directory", "below/", Err("not a regular file")),
        ("FIFO", "fifo", Err("not a regular file")),
        ("socket", "socket", Err("not a regular file")),
        ("world-writable", "world", Err("others can write it (mode 646)")),
        ("group-writable", "group", Err("its group or others can write it (mode 664)")),
        ("too long", "long", Err("longer than 1048576 bytes")),
        ("100 MiB", "huge", Err("longer than 1048576 bytes")),
        ("just short enough", "full", Ok("")),
        ("NUL", "go\0od", Err("is refused")),
        ("long name", &"x".repeat(5000), Err("is refused")),
    ];
    for (name, annotation, expected) in cases {
        match (place.annotated(annotation), expected) {
            (Ok(config), Ok("")) => assert_eq!(config.runtime, DefaultRuntime::Auto, "{name}"),
            (Ok(config), Ok(program)) => {
                assert_eq!(config.runtime, DefaultRuntime::Program(program.into()), "{name}");
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
        assert_eq!(again.runtime, original.runtime);
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
        let good = DefaultRuntime::Program("/good".into());
        let read = loaded.iter().filter_map(|loaded| loaded.as_ref().ok());
        assert!(read.clone().count() > 0, "it was never there");
        assert!(read.clone().all(|config| config.runtime == good));
        let refused = |error: &Error| matches!(error, Error::Denied(_));
        assert!(loaded.iter().filter_map(|loaded| loaded.as_ref().err()).all(refused));
    });
}
