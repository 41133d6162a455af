//! The commands that the documents show; pure.

/// Every document, below the repository.
pub(crate) const DOCUMENTS: [&str; 13] = [
    "README.md",
    ".github/CONTRIBUTING.md",
    "packaging/INSTALL",
    "packaging/SECURITY.md",
    "config/berth.toml",
    "config/buildkitd.toml",
    "config/containerd-1.toml",
    "config/containerd-2.toml",
    "config/runtimeclass.yaml",
    "packaging/kubernetes/Containerfile",
    "packaging/kubernetes/base/kustomization.yaml",
    "packaging/kubernetes/pauseless/kustomization.yaml",
    "packaging/kubernetes/remove/kustomization.yaml",
];

/// How commands begin. With an argument behind it, a program is a command; alone, it is only spoken of.
const PROGRAMS: &[&str] = &[
    "./install.sh ",
    "apt ",
    "cargo ",
    "cd ",
    "containerd config ",
    "containerd-shim-berth-v1 ",
    "crictl ",
    "ctr ",
    "curl ",
    "docker ",
    "git ",
    "kill -USR1 ",
    "kubectl ",
    "kustomize ",
    "make ",
    "man ",
    "nerdctl ",
    "packaging/picture.sh",
    "ps -",
    "sudo ",
    "source ",
    "systemctl ",
];

/// A command, with blanks as it would have them in a shell, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) text: String,
    pub(crate) document: String,
}

/// The commands of a document, in their order.
pub(crate) fn commands(document: &str, text: &str) -> Vec<Shown> {
    let found = match document.rsplit_once('.').map(|(_, kind)| kind) {
        Some("md") => markdown(text),
        Some("toml" | "yaml") => comments(text),
        _ if document.ends_with("Containerfile") => comments(text),
        _ => indented(text),
    };
    let found = found.into_iter().map(|text| squeezed(&text)).filter(|text| !text.is_empty());
    found.map(|text| Shown { text, document: document.to_owned() }).collect()
}

/// The text of each fenced block of this kind.
pub(crate) fn blocks(text: &str, kind: &str) -> Vec<String> {
    let parts = text.split("```").enumerate().filter(|(index, _)| index % 2 == 1);
    let blocks = parts.filter_map(|(_, part)| part.split_once('\n'));
    blocks.filter(|(word, _)| *word == kind).map(|(_, block)| block.to_owned()).collect()
}

/// The examples of a manual page.
pub(crate) fn examples(page: &str) -> Vec<Shown> {
    let section = page.split_once(".SH EXAMPLES\n").map_or("", |(_, section)| section);
    let section = section.split_once(".SH ").map_or(section, |(section, _)| section);
    let plain = [("\\fB", ""), ("\\fR", ""), ("\\-", "-"), ("\\(aq", "'"), ("\\e", "\\")];
    let section = plain.iter().fold(section.to_owned(), |text, (from, to)| text.replace(from, to));
    let found = section.lines().filter(|line| is_command(line)).map(squeezed);
    found.map(|text| Shown { text, document: "the manual page".into() }).collect()
}

/// Every line of a `sh` block, those of a `console` block that have a prompt, and code in sentences and tables.
fn markdown(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, part) in text.split("```").enumerate() {
        let (kind, block) = part.split_once('\n').unwrap_or_default();
        match (index % 2, kind) {
            (0, _) => found.extend(spans(part)),
            (_, "sh") => found.extend(block.replace("\\\n", "").lines().map(uncommented)),
            (_, "console") => found
                .extend(block.lines().filter_map(|line| line.strip_prefix("$ ")).map(uncommented)),
            _ => {}
        }
    }
    found
}

/// What is between single backticks and is a command.
fn spans(text: &str) -> Vec<String> {
    let spans = text.split('`').enumerate().filter(|(index, _)| index % 2 == 1);
    let spans = spans.map(|(_, span)| squeezed(span));
    spans.filter(|span| is_command(span)).collect()
}

/// The comments of a file: code in sentences, and lines that are set off and begin with a program.
fn comments(text: &str) -> Vec<String> {
    let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix('#')).collect();
    let mut found = spans(&lines.join("\n"));
    found.extend(
        lines.iter().filter(|line| line.starts_with("  ")).filter_map(|line| set_off(line)),
    );
    found
}

fn indented(text: &str) -> Vec<String> {
    text.lines().filter(|line| line.starts_with("  ")).filter_map(set_off).collect()
}

/// A command with what is said of it behind several blanks.
fn set_off(line: &str) -> Option<String> {
    let line = line.trim();
    let command = line.split_once("  ").map_or(line, |(command, _)| command);
    is_command(command).then(|| command.to_owned())
}

fn is_command(text: &str) -> bool {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(' ').filter(|(word, _)| is_assignment(word)) {
        rest = after;
    }
    PROGRAMS.iter().any(|program| rest.starts_with(program))
}

/// `NAME=value`, before a program.
fn is_assignment(word: &str) -> bool {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    word.split_once('=').is_some_and(|(name, _)| is_name(name))
}

/// Without a comment at its end.
fn uncommented(line: &str) -> String {
    if line.starts_with('#') {
        return String::new();
    }
    line.split_once(" #").map_or(line, |(command, _)| command).to_owned()
}

fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What is read of a document that has one of everything.
pub(crate) fn check() {
    let texts = |document: &str, text: &str| {
        commands(document, text).into_iter().map(|shown| shown.text).collect::<Vec<_>>()
    };
    let rows: [(&str, &str, &str, &[&str]); 5] = [
        ("a block", "x.md", "```sh\nmake a   # why\n\n# no\nany b\n```", &["make a", "any b"]),
        ("a session", "x.md", "```console\n$ any b\nprinted\n```", &["any b"]),
        ("sentences", "x.md", "`make` and `A_B=1 cargo\ntest`, `runc x`", &["A_B=1 cargo test"]),
        (
            "a comment",
            "x.toml",
            "#   ctr run X    says\n# ctr run\nctr = 1 # `make a`\n",
            &["ctr run X"],
        ),
        ("text", "INSTALL", "make a\n    sudo ./b    says\n", &["sudo ./b"]),
    ];
    for (name, document, text, expected) in rows {
        assert_eq!(texts(document, text), expected, "{name}");
    }
    let page = ".SH EXAMPLES\n.TP\n\\fBctr run \\-d\\fR\nWhy.\n.SH SEE ALSO\nctr run\n";
    let found = examples(page).into_iter().map(|shown| shown.text).collect::<Vec<_>>();
    assert_eq!(found, ["ctr run -d"], "a manual page");
}
