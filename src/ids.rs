//! Names and numbers from outside, checked once, where they enter.

use std::fmt;

use crate::error::{Error, Result};

/// Longest container or exec id, as containerd's `pkg/identifiers` has it.
const MAX_LEN: usize = 76;

/// Checks an id against containerd's rule: 1 to 76 bytes of `[A-Za-z0-9]`, joined by single
/// characters of `_.-`. Such an id is also safe as a file name and as one path component.
fn check(what: &str, id: &str) -> Result<()> {
    let refuse = |why: &str| Err(Error::Invalid(format!("invalid {what} {id:?}: {why}")));
    if id.is_empty() {
        return refuse("it is empty");
    }
    if id.len() > MAX_LEN {
        return refuse("it is longer than 76 bytes");
    }
    let mut joined = true; // an id may not begin with a joining character
    for byte in id.bytes() {
        let joiner = matches!(byte, b'_' | b'.' | b'-');
        if !(byte.is_ascii_alphanumeric() || joiner) || (joiner && joined) {
            return refuse("it must be letters and digits joined by single `_`, `.` or `-`");
        }
        joined = joiner;
    }
    if joined {
        return refuse("it must end with a letter or digit");
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) struct $name(Box<str>);

        impl $name {
            /// Takes `id` if it follows containerd's rule for identifiers.
            ///
            /// # Errors
            /// [`Error::Invalid`] that quotes the id and says which rule it breaks.
            pub(crate) fn new(id: &str) -> Result<Self> {
                check($what, id)?;
                Ok(Self(id.into()))
            }

            /// The id as text.
            pub(crate) fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A container's (task's) id; its bundle's directory has this name.
    ContainerId,
    "container id"
);
id!(
    /// An exec process's id, unique within its container.
    ExecId,
    "exec id"
);
id!(
    /// A containerd namespace: part of the socket's name and of the runtime's root.
    Namespace,
    "namespace"
);

/// Lower-case hexadecimal, as names that are hashes have it.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// A process id as this shim's PID namespace sees it; always positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pid(i32);

impl Pid {
    /// `None` for 0 and negative numbers, which kill(2) and wait(2) take for whole groups.
    pub(crate) fn new(pid: i32) -> Option<Self> {
        (pid > 0).then_some(Self(pid))
    }

    /// The number for a system call.
    pub(crate) fn get(self) -> i32 {
        self.0
    }

    /// The number as protobuf messages carry it.
    pub(crate) fn wire(self) -> u32 {
        self.0.unsigned_abs()
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_containerds_rule() {
        let long = "a".repeat(77);
        let cases = [
            ("plain", "abc", true),
            ("digest-like", &long[..64], true),
            ("joined", "k8s.io_a-b.c", true),
            ("empty", "", false),
            ("path", "../x", false),
            ("slash", "a/b", false),
            ("hidden", ".a", false),
            ("two joiners", "a..b", false),
            ("trailing joiner", "a-", false),
            ("blank", "a b", false),
            ("unicode", "ä", false),
            ("nul", "a\0", false),
            ("77 bytes", &long, false),
        ];
        for (name, id, good) in cases {
            assert_eq!(ContainerId::new(id).is_ok(), good, "{name}");
        }
    }
}
