//! Random sequences of calls and exits against a model of the lifecycle, for single containers and pods,
//! and a reader of the events that they lead to.
//!
//! `BERTH_TEST_SEED=N` repeats the sequences of one seed, `BERTH_TEST_SEEDS=N` tries so many,
//! `BERTH_TEST_STEPS=N` sets their length. A sequence that fails is made shorter as long as it does.

mod calls;
mod draw;
mod expect;
mod player;
mod story;
mod waits;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;
use std::time::{Duration, Instant};

use self::draw::{Call, Dice, Script, Step};
use self::expect::Model;
use self::player::{Player, fake};
use self::story::Life;
use crate::support::{Code, Host, Shim, Spec, eventually, skipped};

/// How long a failed sequence is made shorter.
const SHRINK: Duration = Duration::from_secs(60);

/// What is played with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stage {
    /// With the runtime that the environment names, or with one that makes processes alone.
    is_real: bool,
    /// A pod's sandbox and containers, or one container.
    is_pod: bool,
}

const SINGLE: [&str; 1] = ["c"];
const POD: [&str; 5] = ["pod", "a", "b", "a", "b"];

impl Stage {
    fn ids(self) -> &'static [&'static str] {
        if self.is_pod { &POD } else { &SINGLE }
    }

    fn model(self) -> Model {
        Model {
            is_real: self.is_real,
            sandbox: self.is_pod.then_some("pod"),
            is_guest: false,
            containers: BTreeMap::new(),
        }
    }
}

#[test]
fn random_lives_of_a_container_are_as_the_model_has_them() {
    many(Stage { is_real: false, is_pod: false }, 6, 250);
}

#[test]
fn random_lives_of_a_pod_are_as_the_model_has_them() {
    many(Stage { is_real: false, is_pod: true }, 6, 300);
}

#[test]
fn random_lives_under_a_real_runtime_are_as_the_model_has_them() {
    many(Stage { is_real: true, is_pod: false }, 2, 80);
    many(Stage { is_real: true, is_pod: true }, 2, 80);
}

#[test]
fn random_lives_at_once_are_as_the_model_has_them() {
    for is_real in [false, true] {
        let stage = Stage { is_real, is_pod: true };
        each_seed(if is_real { 1 } else { 4 }, |seed| {
            at_once(stage, seed, number("BERTH_TEST_STEPS", if is_real { 40 } else { 120 }));
        });
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

fn each_seed(count: u64, play: impl Fn(u64)) {
    if skipped("the codes and the order that the model has") {
        return;
    }
    let first = std::env::var("BERTH_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
    let count = number("BERTH_TEST_SEEDS", count);
    for seed in first.map_or(1..=count, |seed: u64| seed..=seed) {
        eprintln!("BERTH_TEST_SEED={seed}");
        play(seed);
    }
}

/// Plays sequences of `length` steps by one client; panics with the shortest that was found to fail.
fn many(stage: Stage, seeds: u64, length: u64) {
    each_seed(seeds, |seed| {
        let mut steps = Vec::new();
        let mut dice = Dice::new(seed);
        let length = number("BERTH_TEST_STEPS", length);
        let drawn = attempt(stage, &mut |player| {
            for _ in 0..length {
                let step = draw(&mut dice, &player.model, stage.ids(), steps.last());
                steps.push(step);
                player.play(&step);
            }
        });
        let Err(words) = drawn else { return };
        let (steps, words) = shorter(stage, steps, words);
        let steps: Vec<_> = steps.iter().map(|step| format!("{step:?}")).collect();
        panic!("{stage:?}, seed {seed}: {words}\n{} steps:\n{}", steps.len(), steps.join("\n"));
    });
}

/// A step; more often than not one that can be done.
fn draw(dice: &mut Dice, model: &Model, ids: &[&'static str], last: Option<&Step>) -> Step {
    if let Some(last) = last.filter(|_| dice.roll(12) == 0) {
        return *last; // twice the same
    }
    let drawn: Vec<_> = (0..3).map(|_| Step::draw(dice, ids)).collect();
    *drawn.iter().find(|step| model.allows(step).contains(&Code::OK)).unwrap_or(&drawn[0])
}

/// Drops steps for as long as the rest fails too.
fn shorter(stage: Stage, mut steps: Vec<Step>, mut words: String) -> (Vec<Step>, String) {
    let begin = Instant::now();
    let mut size = steps.len() / 2;
    while size > 0 {
        let mut from = 0;
        while from < steps.len() && begin.elapsed() < SHRINK {
            let mut rest = steps.clone();
            rest.drain(from..(from + size).min(steps.len()));
            let again =
                attempt(stage, &mut |player| rest.iter().for_each(|step| player.play(step)));
            match again {
                Err(said) => (steps, words) = (rest, said),
                Ok(()) => from += size,
            }
        }
        size /= 2;
    }
    (steps, words)
}

/// Lets a player act on a host of its own, and compares the events with what it has seen.
fn attempt(stage: Stage, act: &mut dyn FnMut(&mut Player<'_>)) -> Result<(), String> {
    let tried = catch_unwind(AssertUnwindSafe(|| {
        let host = Host::new();
        let fake = (!stage.is_real).then(|| fake(&host));
        let shim = host.start(stage.ids()[0], Spec::idle());
        let mut player = Player::new(&shim, fake, stage.model());
        act(&mut player);
        player.finish();
        end(&host, &shim, &[player]);
    }));
    tried.map_err(|panic| match panic.downcast::<String>() {
        Ok(words) => *words,
        Err(panic) => (*panic.downcast::<&str>().unwrap()).to_owned(),
    })
}

/// One client for each of three containers, all at once; the sandbox stays.
fn at_once(stage: Stage, seed: u64, length: u64) {
    let host = Host::new();
    let fake = (!stage.is_real).then(|| fake(&host));
    let shim = host.start("pod", Spec::idle());
    let mut sandbox = Player::new(&shim, fake.clone(), stage.model());
    for call in [Call::Create(Script::Idle, false), Call::Start(false)] {
        sandbox.play(&Step { call, id: "pod", exec: "" });
    }
    let mut players = thread::scope(|scope| {
        let client = |(number, id): (u64, &'static str)| {
            let (shim, fake) = (&shim, fake.clone());
            scope.spawn(move || {
                let model = Model { is_guest: true, ..stage.model() };
                let mut player = Player::new(shim, fake, model);
                let mut dice = Dice::new(seed << 8 | number);
                let mut last = None;
                for _ in 0..length {
                    let step = draw(&mut dice, &player.model, &[id], last.as_ref());
                    player.play(&step);
                    last = Some(step);
                }
                player.finish();
                player
            })
        };
        let clients: Vec<_> = (0..).zip(["a", "b", "c"]).map(client).collect();
        let joined = clients
            .into_iter()
            .map(|client| client.join().unwrap_or_else(|why| resume_unwind(why)));
        joined.collect::<Vec<_>>()
    });
    sandbox.finish();
    players.push(sandbox);
    end(&host, &shim, &players);
}

/// Ends the daemon, so that every event has come, and compares them.
fn end(host: &Host, shim: &Shim<'_>, players: &[Player<'_>]) {
    drop(shim.shutdown("")); // the connection may close before the answer is read
    shim.wait_gone();
    let events = host.sink.events();
    let all: Vec<_> = events.iter().map(|event| event.line.as_str()).collect();
    let told = story::read(&events).unwrap_or_else(|why| panic!("{why}\n{}", all.join("\n")));
    let seen = players.iter().map(|player| player.lives.len()).sum::<usize>();
    assert_eq!(told.len(), seen, "processes\n{}", all.join("\n"));
    for player in players {
        for (place, life) in player.lives.iter().enumerate() {
            let nth = player.lives[..place].iter().filter(|other| other.name == life.name).count();
            let told = told.iter().filter(|told| told.name == life.name).nth(nth);
            let same = told.is_some_and(|told| is_same(told, life, player.unseen.get(&place)));
            assert!(same, "events tell of {told:?}, calls of {life:?}\n{}", all.join("\n"));
        }
        for (id, lines) in &player.lines {
            compare(id, lines, &host.sink.of(id));
        }
    }
    let left = || std::fs::read_dir(host.dir().join("fake.d")).into_iter().flatten().count();
    eventually("the runtime's files to go", || (left() == 0).then_some(()));
}

fn is_same(told: &Life, seen: &Life, unseen: Option<&Vec<u32>>) -> bool {
    let exit = match (seen.exit, unseen, told.exit) {
        (None, Some(statuses), Some((status, _))) => statuses.contains(&status),
        (seen, _, told) => seen == told,
    };
    exit && (&told.name, told.started) == (&seen.name, seen.started) && told.pid == seen.pid
}

/// The events that follow from calls, in the order of the answers.
fn compare(id: &str, expected: &[(String, bool)], told: &[String]) {
    let topics = |line: &&String| !line.starts_with("exit ") && !line.starts_with("oom ");
    let mut told = told.iter().filter(topics).peekable();
    for (line, may_be_missing) in expected {
        let matches = told.peek().is_some_and(|told| {
            told.as_str() == line || (line.starts_with("delete") && told.starts_with(line.as_str()))
        });
        assert!(matches || *may_be_missing, "{:?} in place of {line:?} of {id}", told.peek());
        if matches {
            told.next();
        }
    }
    assert_eq!(told.next(), None, "more than was done with {id}");
}
