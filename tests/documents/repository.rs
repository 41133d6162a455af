//! What is run in the repository, and what the documents show beside commands.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::command::{self, Output};
use crate::table::{How, Row};
use crate::{BUILT, REPOSITORY, commands, read};

/// Runs a row that needs no machine, or looks for who does.
pub(crate) fn run(row: &Row) {
    match row.how {
        How::Cargo(expected) => says(row.command, expected),
        How::Chooses => chooses(row.command),
        How::Plan(expected) => says(&row.command.replacen("make ", "make -n ", 1), expected),
        How::Bench(expected) => made(row.command, "--test bench", "--rounds 1", expected),
        How::Soak(minutes) => {
            let all = row.command.rsplit_once('=').map_or("10", |(_, minutes)| minutes);
            let text = row.command.replace(all, minutes);
            made(
                &text,
                "--test containerd",
                "",
                "| lost or wrong exits, wrong output, leaks, other errors | 0 |",
            );
        }
        How::Lane { file, calls } => {
            let text = read(file);
            assert!(text.contains(calls), "{file} does not have {calls:?}");
        }
        How::Nowhere { says } => {
            assert!(read("README.md").contains(says), "README.md does not say {says:?}");
        }
        _ => unreachable!("needs the machine"),
    }
}

#[track_caller]
fn says(text: &str, expected: &str) {
    let output = shell(text);
    let said = output.text() + &output.stderr;
    assert!(output.status == 0, "`{text}`: {} {said}", output.status);
    assert!(said.contains(expected), "`{text}` does not say {expected:?}: {said}");
}

/// As a user runs it: whatever make has told this test is not for him.
fn shell(text: &str) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", text]).current_dir(REPOSITORY);
    for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "TEST", "ARGS", "DESTDIR"] {
        shell.env_remove(variable);
    }
    command::run(&mut shell, b"")
}

/// The words behind `cargo test` choose something; `make test` runs all there is to choose from.
fn chooses(text: &str) {
    let list = if text.contains(" -- ") { " --list" } else { " -- --list" };
    let list = if text.ends_with("--list") { "" } else { list };
    let output = shell(&format!("{text}{list}"));
    let said = output.text();
    assert!(output.status == 0, "`{text}`: {}", output.stderr);
    let count = said.lines().filter(|line| line.ends_with(": test") || line.contains(' ')).count();
    assert!(count > 0 && !said.contains("0 tests,"), "`{text}` chooses nothing: {said}");
    let lanes = read("Makefile");
    let test = lanes.split_once("\ntest:").unwrap().1.split_once("\n\n").unwrap().0;
    let lane = ["containerd", "clients", "documents"]
        .into_iter()
        .find(|name| text.contains(&format!("--test {name}")))
        .map_or("tests/again.sh".into(), |name| format!("cargo test --locked --test {name}"));
    assert!(test.contains(&lane), "`make test` does not run {lane:?}: {test}");
}

/// The test that `make` would run, on the program that is there.
fn made(text: &str, test: &str, more: &str, expected: &str) {
    let plan = shell(&text.replacen("make ", "make -n ", 1));
    let plan = plan.ok();
    let line = plan.lines().find(|line| line.contains(test)).unwrap_or_default();
    let cargo = line.split_once("cargo ").unwrap_or_else(|| panic!("no {test} in {plan}")).1;
    says(&format!("BERTH_TEST_SHIM={BUILT} cargo {cargo} {more}"), expected);
}

/// The picture has the steps of the demo as it is now, one that went well, and is small.
pub(crate) fn picture() {
    let (demo, picture) = (read("packaging/demo.sh"), read("packaging/demo.svg"));
    assert!(read("README.md").contains("packaging/demo.svg"), "README.md does not show it");
    assert!(picture.len() < 60 << 10, "{} bytes", picture.len());
    let mut rest = picture.as_str();
    let steps = demo.lines().filter_map(|line| line.strip_prefix("step ")).map(|step| {
        let step = step.trim_matches(['\'', '"']);
        step.split_once("$(").map_or(step, |(begin, _)| begin)
    });
    for step in steps.chain(["nothing: no process, no mount, no cgroup, no socket, no FIFO"]) {
        let at = rest.find(step);
        let at = at.unwrap_or_else(|| panic!("lacks {step:?}: run packaging/picture.sh again"));
        rest = &rest[at..];
    }
}

/// Every page that has links leads somewhere with them, and the files that it speaks of are there.
pub(crate) fn links() {
    for page in ["README.md", ".github/CONTRIBUTING.md", "packaging/SECURITY.md"] {
        links_of(&Path::new(REPOSITORY).join(page));
        let text = read(page);
        let ends = |c: char| !c.is_ascii_alphanumeric() && !"/._-".contains(c);
        let named = text.split(ends).map(|word| word.trim_end_matches(['.', '/']));
        for path in named.filter(|word| word.starts_with("tests/") || word.starts_with("src/")) {
            assert!(Path::new(REPOSITORY).join(path).exists(), "{page} speaks of {path}");
        }
    }
}

/// The links of a page are headings of it, or files beside it.
#[track_caller]
pub(crate) fn links_of(page: &Path) {
    let text = fs::read_to_string(page).unwrap();
    let links = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    let pictures = text.split("src=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    for link in links.chain(pictures).filter(|link| !link.starts_with("https://")) {
        let (file, heading) = link.split_once('#').unwrap_or((link, ""));
        let file = if file.is_empty() { page.into() } else { page.parent().unwrap().join(file) };
        assert!(file.exists(), "{}: {link}", page.display());
        let plain =
            |line: &str| line.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-");
        let has =
            |text: String| text.lines().any(|line| line.starts_with('#') && plain(line) == heading);
        assert!(heading.is_empty() || has(fs::read_to_string(&file).unwrap()), "no {link}");
    }
}

/// Each configuration of berth that a document shows is one.
pub(crate) fn configurations() {
    let file = std::env::temp_dir().join(format!("berth-documents-{}.toml", std::process::id()));
    for document in ["README.md", ".github/CONTRIBUTING.md"] {
        let blocks = commands::blocks(&read(document), "toml");
        assert!(!blocks.is_empty(), "{document}");
        for block in blocks {
            fs::write(&file, &block).unwrap();
            let output =
                command::run(Command::new(BUILT).args(["config", "check"]).arg(&file), b"");
            let _ = fs::remove_file(&file);
            assert!(output.status == 0, "{document}: {block}{}", output.stderr);
        }
    }
    for path in ["packaging/picture.sh", "tests/documents/table.rs", "config/docker.json"] {
        assert!(Path::new(REPOSITORY).join(path).exists(), "{path}");
    }
}
