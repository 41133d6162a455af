//! The reader of events: whether they can be the story of one shim, and whose lives they tell.

use std::collections::BTreeMap;

use crate::support::Event;

/// Seconds and nanoseconds.
pub type Time = (i64, i32);

/// A process from Create or Exec to its Delete, as calls or events tell of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// The container's id, `/` and the exec id if any.
    pub name: String,
    pub pid: u32,
    pub started: bool,
    pub exit: Option<(u32, Time)>,
}

/// A container as far as its events have told.
#[derive(Default)]
struct Told {
    created: bool,
    started: bool,
    paused: bool,
    exited: bool,
    /// Exec processes by name, with the place of their lives.
    execs: BTreeMap<String, usize>,
    life: usize,
}

/// The lives that `events` tell, in the order of their beginnings.
///
/// # Errors
/// The event that breaks the order of [containerd's documentation]: create, start, exec-added,
/// exec-started, paused and resumed in turns, the exits of exec processes, the exit of init, delete;
/// nothing after that, and nothing twice.
///
/// [containerd's documentation]: https://github.com/containerd/containerd/blob/main/docs/runtime-v2.md#events
pub fn read(events: &[Event]) -> Result<Vec<Life>, String> {
    let (mut lives, mut told) = (Vec::new(), BTreeMap::<String, Told>::new());
    for (number, event) in events.iter().enumerate() {
        let wrong = |why: &str| {
            let before: Vec<_> = events[number.saturating_sub(12)..number].iter().collect();
            let before: Vec<_> = before.iter().map(|event| event.line.as_str()).collect();
            format!("event {:?}: {why}; before it: {before:?}", event.line)
        };
        let mut words = event.line.split(' ');
        let (topic, name) = (words.next().unwrap(), words.next().unwrap());
        let status = words.next().map(|status| status.parse().unwrap());
        let exit = status.zip(event.exited_at);
        let id = name.split('/').next().unwrap();
        let container = told.entry(id.to_owned()).or_default();
        take(container, &mut lives, (topic, name, id == name), event.pid, exit).map_err(wrong)?;
        if topic == "delete" {
            told.remove(id);
        }
    }
    match told.keys().next() {
        Some(id) => Err(format!("the story of {id:?} has no end")),
        None => Ok(lives),
    }
}

fn take(
    told: &mut Told,
    lives: &mut Vec<Life>,
    (topic, name, is_init): (&str, &str, bool),
    pid: u32,
    exit: Option<(u32, Time)>,
) -> Result<(), &'static str> {
    let check = |right: bool, why: &'static str| if right { Ok(()) } else { Err(why) };
    check(told.created || topic == "create", "there is no such container")?;
    check(!told.exited || topic == "delete", "the container has ended")?;
    let exec = told.execs.get(name).copied();
    match topic {
        "create" => {
            check(!told.created, "it exists")?;
            (told.created, told.life) = (true, lives.len());
            lives.push(Life { name: name.into(), pid, ..Life::default() });
        }
        "start" => {
            check(!told.started && lives[told.life].pid == pid, "twice, or of another process")?;
            told.started = true;
            lives[told.life].started = true;
        }
        "exec-added" => {
            let runs = exec.is_some_and(|life| lives[life].started && lives[life].exit.is_none());
            check(!runs, "it runs")?;
            told.execs.insert(name.into(), lives.len());
            lives.push(Life { name: name.into(), ..Life::default() });
        }
        "exec-started" => {
            let life = &mut lives[exec.ok_or("it was not added")?];
            check(!life.started, "twice")?;
            (life.started, life.pid) = (true, pid);
        }
        "paused" => {
            check(told.started && !told.paused, "it does not run")?;
            told.paused = true;
        }
        "resumed" => {
            check(told.paused, "it is not paused")?;
            told.paused = false;
        }
        "oom" => {}
        "exit" if is_init => {
            let runs = |life: &usize| lives[*life].started && lives[*life].exit.is_none();
            check(!told.execs.values().any(runs), "an exec process is left")?;
            check(lives[told.life].pid == pid, "of another process")?;
            told.exited = true;
            lives[told.life].exit = exit;
        }
        "exit" => {
            let life = &mut lives[exec.ok_or("it was not added")?];
            check(life.started && life.exit.is_none(), "it does not run")?;
            check(life.pid == pid, "of another process")?;
            life.exit = exit;
        }
        "delete" => {
            let life = &lives[told.life];
            check(told.exited && life.pid == pid, "before its end, or of another process")?;
            check(life.exit == exit, "not the exit that was told")?;
        }
        _ => return Err("of a kind that nobody asked for"),
    }
    Ok(())
}

/// The reader itself: what it must not let pass.
#[test]
fn the_reader_refuses_what_is_no_story() {
    let event = |line: &&str| {
        let at = line.starts_with("exit") || line.starts_with("delete");
        let exited_at = at.then_some((7, 0));
        Event { line: (*line).to_owned(), namespace: String::new(), pid: 1, exited_at }
    };
    let good = ["create c", "start c", "exec-added c/e", "exec-started c/e", "paused c"];
    let end = ["resumed c", "exit c/e 1", "exit c 0", "delete c 0"];
    let good = [&good[..], &end].concat();
    let told = |lines: &[&str]| read(&lines.iter().map(event).collect::<Vec<_>>());
    assert_eq!(told(&good).unwrap().len(), 2);
    let twice = [&good[..], &good].concat();
    assert_eq!(told(&twice).unwrap().len(), 4);
    for (index, line) in good.iter().enumerate() {
        // `resumed` may be missing at the end, and so may what the exec process did.
        let least = ["exec-added c/e", "resumed c"].contains(line);
        let without = [&good[..index], &good[index + 1..]].concat();
        assert_eq!(told(&without).is_err(), *line != "resumed c", "without {line}");
        let again = [&good[..=index], &good[index..]].concat();
        let may = *line == "exec-added c/e"; // deleted in between
        assert_eq!(told(&again).is_err(), !may, "{line} twice");
        if index + 1 < good.len() && !least {
            let mut swapped = good.clone();
            swapped.swap(index, index + 1);
            let unbound = ["start c exec-added c/e", "exec-started c/e paused c"];
            let may = unbound.contains(&format!("{line} {}", good[index + 1]).as_str());
            assert_eq!(told(&swapped).is_err(), !may, "{line} after {}", good[index + 1]);
        }
    }
    assert!(told(&["create c", "exit c 1", "delete c 2"]).is_err(), "another status");
}
