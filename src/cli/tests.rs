use super::word::{Caller, Need, Word};
use super::words::{FLAGS, VARIABLES, WORDS};
use super::*;

fn parse_words(line: &str) -> Result<Command> {
    parse(line.split_whitespace().map(OsString::from))
}

fn flags() -> Flags {
    Flags { namespace: "ns".into(), id: "x".into(), ..Flags::default() }
}

#[test]
fn flags_are_read_as_go_reads_them() {
    let debug = Flags { debug: true, ..flags() };
    let full = Flags {
        address: "/run/c.sock".into(),
        publish_binary: "/bin/containerd".into(),
        bundle: Some("/b".into()),
        ..debug.clone()
    };
    let cases = [
        (
            "containerd's order",
            "-namespace ns -address /run/c.sock -publish-binary /bin/containerd -id x \
             -bundle /b -debug delete",
            Command::Delete(full),
        ),
        ("one dash", "-namespace ns -id x start", Command::Start(flags())),
        ("two dashes", "--namespace ns --id x start", Command::Start(flags())),
        ("equals", "--namespace=ns -id=x start", Command::Start(flags())),
        ("switch", "-namespace ns -id x -debug start", Command::Start(debug)),
        ("switch off", "-debug -debug=false -namespace ns -id x start", Command::Start(flags())),
        ("daemon", "-namespace ns -id x", Command::Daemon(flags())),
        ("unknown switch", "-new -namespace ns -id x start", Command::Start(flags())),
        ("unknown with value", "-new 1 -namespace ns -id x start", Command::Start(flags())),
        ("unknown with =", "--new=a=b -namespace ns -id x start", Command::Start(flags())),
        ("unknown before command", "-namespace ns -id x -new start", Command::Start(flags())),
        ("other shims' flags", "-socket /s -namespace ns -id x", Command::Daemon(flags())),
        ("last one wins", "-id y -namespace ns -id x start", Command::Start(flags())),
        ("words after the command", "-namespace ns -id x start -id y", Command::Start(flags())),
        ("end of flags", "-namespace ns -id x -- start", Command::Start(flags())),
        ("holder", "hold-sandbox pod", Command::Holder),
        ("info", "-info", Command::Info),
        ("v", "-v", Command::Version),
        ("version", "--version", Command::Version),
        ("help", "-help", Command::Help(None)),
        ("h", "-h start", Command::Help(None)),
        ("help of a command", "ps --help", Command::Help(Some("ps"))),
        ("help of two", "config -h", Command::Help(Some("config"))),
        ("help of one of two", "config show -origin -help", Command::Help(Some("config show"))),
        ("help of containerd's", "start -help", Command::Help(Some("start"))),
        ("man", "man", Command::Man),
        ("a file like a flag", "config check -- -f", Command::ConfigCheck("-f".into())),
        ("ps", "ps", Command::Ps(PsFormat::Table)),
        ("ps as a table", "ps -json -json=false", Command::Ps(PsFormat::Table)),
        ("ps as JSON", "ps --json", Command::Ps(PsFormat::Json)),
        ("logs", "logs pod", Command::Logs("pod".into())),
        ("doctor", "doctor", Command::Doctor(DoctorQuery::default())),
        (
            "doctor with all",
            "doctor --fix -json -state /s --address=/a",
            Command::Doctor(DoctorQuery {
                fix: true,
                json: true,
                state: Some("/s".into()),
                address: Some("/a".into()),
            }),
        ),
        (
            "metrics over HTTP",
            "metrics --listen 127.0.0.1:9090",
            Command::Metrics(MetricsTarget::Listen(([127, 0, 0, 1], 9090).into())),
        ),
        (
            "metrics in a file",
            "metrics -textfile=/f",
            Command::Metrics(MetricsTarget::File("/f".into())),
        ),
        ("empty value", "-address= -namespace ns -id x start", Command::Start(flags())),
    ];
    for (name, line, expected) in cases {
        assert_eq!(parse_words(line).unwrap(), expected, "{name}");
    }
}

#[test]
fn a_wrong_command_line_is_refused_by_name() {
    let cases = [
        ("unknown command", "-id x stop", "\"stop\""),
        ("missing value", "-namespace ns -id", "-id"),
        ("not a switch", "-debug=maybe start", "\"maybe\""),
        ("single dash", "- start", "\"-\""),
        ("ps of something", "ps pod", "ps [-json]"),
        ("logs of nothing", "logs", "logs ID"),
        ("logs of two", "logs a b", "logs ID"),
        ("logs of a flag", "logs -f", "logs ID"),
        ("metrics for nobody", "metrics", "metrics -listen"),
        ("metrics twice", "metrics -textfile a -listen b", "metrics -listen"),
        ("metrics nowhere", "metrics -listen localhost", "\"localhost\""),
        ("a command mistyped", "metrcis", "\"metrics\" was meant?"),
        (
            "a flag mistyped",
            "config show --orign",
            "unknown flag -orign of config show: -origin was",
        ),
        ("a second word mistyped", "config shwo", "\"shwo\"; usage: config show [-origin]"),
        ("no second word", "config", "or config check FILE; see config -help"),
        ("no value", "config show -config", "-config needs its FILE; usage: config show"),
        ("an annotation without", "config show -annotation x", "\"x\" has no `=`"),
        (
            "a switch with more",
            "ps -json=maybe",
            "-json is true or false, not \"maybe\"; usage: ps",
        ),
        ("a flag in front", "-json ps", "flag -json stands before ps; usage: ps [-json]"),
        ("containerd's flags in front", "-id x logs x", "have flags before logs; usage: logs ID"),
        ("another shell", "completions tcsh", "one of bash, zsh, fish, not \"tcsh\"; usage:"),
    ];
    for (name, line, expected) in cases {
        let error = parse_words(line).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

/// What a person may write for a value.
fn sample(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "127.0.0.1:1",
        Kind::File | Kind::Directory => "/d/f",
        Kind::Id => "pod",
        Kind::Annotation => "key=value",
        Kind::Word(words) => words[0].0,
    }
}

/// The shortest command line of a command, and the same with each of its flags.
fn lines(word: &Word) -> (Option<String>, Vec<String>) {
    let operand = word.operand.map(|value| format!(" {}", sample(value.kind))).unwrap_or_default();
    let flags = word.flags.iter().map(|flag| {
        let value = flag.value.map(|value| format!(" {}", sample(value.kind))).unwrap_or_default();
        format!("{} -{}{value}{operand}", word.name, flag.name)
    });
    let alone = (word.need == Need::Any).then(|| format!("{}{operand}", word.name));
    (alone, flags.collect())
}

#[test]
fn every_command_and_flag_of_the_definition_is_parsed_and_counts() {
    let mut all = Vec::new();
    for word in WORDS {
        let (alone, with) = lines(word);
        all.extend(alone.into_iter().chain(with).map(|line| parse_words(&line).unwrap()));
    }
    all.push(parse_words("").unwrap());
    for flag in FLAGS.iter().filter(|flag| !flag.help.ends_with("ignored")) {
        let value = flag.value.map(|value| sample(value.kind)).unwrap_or_default();
        for name in [Some(flag.name), flag.short].into_iter().flatten() {
            let parsed = parse_words(&format!("-{name} {value}")).unwrap();
            assert!(flag.short != Some(name) || all.contains(&parsed), "-{name}");
            all.extend((flag.name == name).then_some(parsed));
        }
    }
    for (number, one) in all.iter().enumerate() {
        assert!(!all[..number].contains(one), "{one:?} is there twice");
    }
}

#[test]
fn help_and_the_manual_page_name_all_there_is() {
    let all = help(None);
    // As a reader of the page sees it.
    let page = ["\\fB", "\\fI", "\\fR"].iter().fold(man(), |page, font| page.replace(font, ""));
    let page = page.replace("\\-", "-").replace("\\(aq", "'");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (flat, flat_page) = (words(&all).to_lowercase(), words(&page).to_lowercase());
    let told = |text: &str, says: &str| {
        let says = words(says).to_lowercase();
        assert!(text.contains(&says) || text.contains(&says.replace('`', "")), "{says}: {text}");
    };
    for word in WORDS.iter().filter(|word| word.caller != Caller::Berth) {
        let Command::Help(topic) = parse_words(&format!("{} -help", word.name)).unwrap() else {
            panic!("{}", word.name)
        };
        let own = words(&help(topic)).to_lowercase();
        for says in [&*word::usage(word), word.summary] {
            [&flat, &flat_page, &own].iter().for_each(|text| told(text, says));
        }
        let flags: Vec<_> = word.flags.iter().map(word::synopsis).collect();
        let examples = word.examples.iter().flat_map(|one| [one.line, one.says]);
        let more = word.flags.iter().map(|flag| flag.help).chain(flags.iter().map(|flag| &**flag));
        for says in word.about.iter().copied().chain(examples).chain(more) {
            [&flat_page, &own].iter().for_each(|text| told(text, says));
        }
    }
    let named = VARIABLES.iter().copied().chain(FLAGS.iter().map(|flag| (flag.name, flag.help)));
    for (name, says) in named {
        [&flat, &flat_page].iter().for_each(|text| told(text, name));
        [&flat, &flat_page].iter().for_each(|text| told(text, says));
    }
    for (name, says) in words::FILES.iter().chain(words::EXITS) {
        told(&flat_page, name);
        told(&flat_page, says);
    }
    assert!(!all.contains(HOLDER) && !all.contains(COMPLETE) && !page.contains(HOLDER));
    assert!(all.is_ascii() && all.lines().all(|line| line.len() <= 120), "{all}");
}

#[test]
fn what_the_environment_may_say_is_in_the_definition() {
    fn sources(dir: &std::path::Path, texts: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => sources(&entry.path(), texts),
                false => texts.extend(std::fs::read_to_string(entry.path())),
            }
        }
    }
    // What is explained with another one, the user's session, or for tests.
    let known = ["GRPC_ADDRESS", "HOME", "DBUS_SESSION_BUS_ADDRESS", "BERTH_TEST_GRACE"];
    let mut texts = Vec::new();
    sources(concat!(env!("CARGO_MANIFEST_DIR"), "/src").as_ref(), &mut texts);
    let mut read = 0;
    for text in &texts {
        let marks = ["var(\"", "var_os(\"", "&str = \"BERTH_", "(\"endpoint\", \"OTEL_"];
        let names = marks.iter().flat_map(|mark| {
            let start = mark.rfind('"').unwrap() + 1;
            text.match_indices(mark).map(move |(at, _)| text[at + start..].split('"').next())
        });
        for name in names
            .flatten()
            .filter(|name| name.chars().all(|one| "_".contains(one) || one.is_ascii_uppercase()))
        {
            let told = VARIABLES.iter().any(|(told, _)| *told == name);
            let known = known.contains(&name) || name.starts_with("OTEL_"); // with their endpoint
            assert!(told || known, "{name} is not among the variables of words.rs");
            read += usize::from(told);
        }
    }
    assert!(read >= VARIABLES.len() - 1, "only {read} were found");
}

#[test]
fn every_example_is_a_command_line() {
    let examples: Vec<_> = WORDS.iter().flat_map(|word| word.examples).collect();
    for example in &examples {
        let line = example.line.split(['|', '>']).next().unwrap();
        parse_words(line).unwrap();
    }
    assert!(examples.len() >= 8);
}

#[test]
fn the_manual_page_is_in_the_order_of_pages_and_without_stray_requests() {
    let page = man();
    let sections: Vec<_> = page.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
    let expected = "NAME SYNOPSIS DESCRIPTION COMMANDS OPTIONS ENVIRONMENT FILES|EXIT STATUS|EXAMPLES SEE ALSO";
    assert_eq!(sections.join(" "), expected.replace('|', " "));
    let known = [".TH ", ".SH ", ".TP", ".IP", ".PP", ".RS", ".RE", ".br", ".in", ".nf", ".fi"];
    for (number, line) in page.lines().enumerate() {
        let request = line.starts_with(['.', '\'']);
        assert!(!request || known.iter().any(|one| line.starts_with(one)), "{number}: {line}");
        assert!(!line.is_empty() && line.is_ascii() && line.len() <= 160, "{number}: {line}");
        let marks = ["\\fB", "\\fI"].map(|mark| line.matches(mark).count());
        assert_eq!(marks.iter().sum::<usize>(), line.matches("\\fR").count(), "{number}: {line}");
    }
}

#[test]
fn each_place_of_a_command_line_completes_to_what_may_stand_there() {
    let look = |kind| -> Offers {
        let words = match kind {
            Kind::Id => &["pod-a", "pod-b", "web", "line\nbreak"][..],
            _ => &["a.preset=big", "a.preset=small", "a.runtime=runsc"][..],
        };
        words.iter().map(|word| ((*word).to_owned(), "it".to_owned())).collect()
    };
    let cases = [
        ("commands", "m", "words metrics man"),
        ("the first of two words", "conf", "words config"),
        ("the second", "config |", "words show check"),
        ("flags of the program", "-v", "words -version"),
        ("behind one that takes a word", "-namespace |", "words"),
        ("a file behind one", "-address |", "files"),
        ("a directory after =", "-bundle=/d", "directories"),
        ("a command behind flags", "-id x -debug del", "words delete"),
        ("flags", "config show |", "words -origin -config -annotation"),
        ("flags, and help", "config show -", "words -origin -config -annotation -help"),
        ("with two dashes", "config show --o", "words --origin"),
        ("not again", "config show -origin -o", "words"),
        (
            "but for those of which many may be",
            "config show -annotation x=y -a",
            "words -annotation",
        ),
        ("a flag's file", "config show -config |", "files"),
        ("after =", "config show --config=/e", "files"),
        ("keys first", "config show -annotation |", "words a.preset= a.runtime="),
        ("then values", "config show -annotation a.preset=", "words a.preset=big a.preset=small"),
        ("keys after =", "config show -annotation=a.p", "words -annotation=a.preset="),
        (
            "values after =",
            "config show -annotation=a.preset=s",
            "words -annotation=a.preset=small",
        ),
        ("one of two flags", "metrics |", "words -listen -textfile"),
        ("no second", "metrics -listen x:1 -", "words"),
        ("the file of the other", "metrics -textfile |", "files"),
        ("an operand", "config check |", "files"),
        ("ids", "logs pod", "words pod-a pod-b"),
        ("all ids", "logs |", "words pod-a pod-b web"),
        ("one only", "logs web |", "words"),
        ("shells", "completions |", "words bash zsh fish"),
        ("nothing behind what is wrong", "nonsense |", "words"),
        ("nor behind half of it", "config nonsense |", "words"),
    ];
    for (name, line, expected) in cases {
        let typed: Vec<_> =
            line.split(' ').map(|word| OsString::from(word.trim_matches('|'))).collect();
        let text = complete(&typed, &look);
        let words: Vec<_> = text.lines().map(|line| line.split('\t').next().unwrap()).collect();
        assert_eq!(words.join(" "), expected, "{name}");
    }
    assert!(complete(&[], &look).starts_with("words\nstart\t"), "nothing typed");
    let odd = [OsString::from("logs"), OsString::from_vec(vec![0xff, 0xfe])];
    assert_eq!(complete(&odd, &look), "words\n", "not UTF-8");
}

#[test]
fn each_shell_has_a_script_that_asks_this_program() {
    for shell in ["bash", "zsh", "fish"] {
        let Command::Completions(script) = parse_words(&format!("completions {shell}")).unwrap()
        else {
            panic!("{shell}")
        };
        assert!(script.contains(PROGRAM) && script.contains(&format!(" {COMPLETE} ")), "{shell}");
        assert!(
            script.lines().take(2).any(|line| line.starts_with(&format!("# {shell} "))),
            "{shell}"
        );
    }
}
