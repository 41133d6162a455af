//! What is done: steps, and their random choice.

/// xorshift64*: small, and the same everywhere.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % sides
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())]
    }
}

/// What a process does once it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    Idle,
    /// It ends with this status, at once or a little later.
    Ends(u32, bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// With a runtime that fails, or not.
    Create(Script, bool),
    Start(bool),
    Exec(Script),
    Kill(i32, bool),
    Pause,
    Resume,
    State,
    /// In the background; its answer is looked at in the end.
    Wait,
    Pids,
    CloseIo,
    Resize,
    Delete,
    Update(&'static str),
    Stats,
    Connect,
    Shutdown,
    /// No call: it gets a signal from elsewhere.
    Dies(i32),
    /// No call: what is about to end has ended, and the shim knows.
    Settle,
}

/// One step; `exec` is empty for the init process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub call: Call,
    pub id: &'static str,
    pub exec: &'static str,
}

/// How often each call is drawn.
const CALLS: &[(usize, Call)] = &[
    (6, Call::Create(Script::Idle, false)),
    (10, Call::Start(false)),
    (9, Call::Exec(Script::Idle)),
    (5, Call::Kill(0, false)),
    (3, Call::Pause),
    (4, Call::Resume),
    (6, Call::State),
    (6, Call::Wait),
    (2, Call::Pids),
    (2, Call::CloseIo),
    (1, Call::Resize),
    (7, Call::Delete),
    (2, Call::Update("")),
    (2, Call::Stats),
    (1, Call::Connect),
    (1, Call::Shutdown),
    (3, Call::Dies(0)),
    (6, Call::Settle),
];
const EXECS: [&str; 8] = ["e", "f", "g", "h", "e", "f", "", ""];
/// In place of an exec id or an id; one is the container's own.
const WRONG: [&str; 4] = ["no", "../x", "a b", "c"];
/// With these each process ends, or not: 0, 28 and those that are none.
pub const SIGNALS: [i32; 8] = [9, 9, 15, 15, 0, 28, 99, 9];
pub const UPDATES: [&str; 4] =
    ["{\"pids\":{\"limit\":50}}", "{}", "[]", "{\"memory\":null,\"pids\":{\"limit\":70}}"];

impl Step {
    /// A step with one of `ids`, whether or not it makes sense.
    pub fn draw(dice: &mut Dice, ids: &[&'static str]) -> Self {
        let total = CALLS.iter().map(|(weight, _)| weight).sum();
        let mut point = dice.roll(total);
        let hit = CALLS.iter().find(|(weight, _)| {
            let hit = point < *weight;
            point = point.saturating_sub(*weight);
            hit
        });
        let script = match dice.roll(6) {
            0 => Script::Ends(u32::try_from(dice.roll(4)).unwrap(), false),
            1 => Script::Ends(u32::try_from(dice.roll(255)).unwrap(), true),
            _ => Script::Idle,
        };
        let unlucky = dice.roll(6) == 0;
        let call = match hit.unwrap().1 {
            Call::Create(..) => Call::Create(script, unlucky),
            Call::Start(_) => Call::Start(unlucky),
            Call::Exec(_) => Call::Exec(script),
            Call::Kill(..) => Call::Kill(dice.pick(&SIGNALS), dice.roll(3) == 0),
            Call::Update(_) => Call::Update(dice.pick(&UPDATES)),
            Call::Dies(_) => Call::Dies(9),
            other => other,
        };
        let mut id = dice.pick(ids);
        let mut exec = match call {
            Call::Exec(_) => EXECS[dice.roll(6)],
            // Its containers first of all.
            Call::Delete | Call::Kill(..) | Call::Dies(_) => dice.pick(&EXECS),
            _ => dice.pick(&EXECS[4..]),
        };
        match dice.roll(40) {
            0 => id = dice.pick(&WRONG[..3]),
            1 if !exec.is_empty() => exec = dice.pick(&WRONG),
            _ => {}
        }
        Self { call, id, exec }
    }
}
