//! Mount options as containerd writes them, fstab's words, and what they ask of the kernel. Pure.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use crate::error::{Error, Result};
use crate::sys::loop_device::Caching;

/// The options of one mount, sorted by who understands them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// What mount(2) takes as flags, without the propagation.
    pub(super) flags: MsFlags,
    /// The propagation to give the mount, if any: it takes a call of its own.
    pub(super) propagation: MsFlags,
    /// `loop`: the source is a file that has to become a block device first.
    pub(super) looped: Option<Caching>,
    /// `uidmap` and `gidmap`: whose files the container is to see.
    pub(super) owners: Option<OwnerMap>,
    /// What only the file system understands, in order.
    pub(super) data: Vec<String>,
}

/// The two maps of a user namespace, as `/proc/PID/uid_map` takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnerMap {
    pub(super) uid: String,
    pub(super) gid: String,
}

/// What a word does to the flags.
#[derive(Clone, Copy)]
enum Effect {
    Set(MsFlags),
    Clear(MsFlags),
    Spread(MsFlags),
}

/// What `word` means to mount(2), or `None` if it is for the file system.
fn effect(word: &str) -> Option<Effect> {
    use Effect::{Clear, Set, Spread};
    Some(match word {
        "defaults" => Set(MsFlags::empty()),
        "ro" => Set(MsFlags::MS_RDONLY),
        "rw" => Clear(MsFlags::MS_RDONLY),
        "nosuid" => Set(MsFlags::MS_NOSUID),
        "suid" => Clear(MsFlags::MS_NOSUID),
        "nodev" => Set(MsFlags::MS_NODEV),
        "dev" => Clear(MsFlags::MS_NODEV),
        "noexec" => Set(MsFlags::MS_NOEXEC),
        "exec" => Clear(MsFlags::MS_NOEXEC),
        "sync" => Set(MsFlags::MS_SYNCHRONOUS),
        "async" => Clear(MsFlags::MS_SYNCHRONOUS),
        "dirsync" => Set(MsFlags::MS_DIRSYNC),
        "mand" => Set(MsFlags::MS_MANDLOCK),
        "nomand" => Clear(MsFlags::MS_MANDLOCK),
        "noatime" => Set(MsFlags::MS_NOATIME),
        "atime" => Clear(MsFlags::MS_NOATIME),
        "nodiratime" => Set(MsFlags::MS_NODIRATIME),
        "diratime" => Clear(MsFlags::MS_NODIRATIME),
        "relatime" => Set(MsFlags::MS_RELATIME),
        "norelatime" => Clear(MsFlags::MS_RELATIME),
        "strictatime" => Set(MsFlags::MS_STRICTATIME),
        "nostrictatime" => Clear(MsFlags::MS_STRICTATIME),
        "remount" => Set(MsFlags::MS_REMOUNT),
        "bind" => Set(MsFlags::MS_BIND),
        "rbind" => Set(MsFlags::MS_BIND.union(MsFlags::MS_REC)),
        "shared" => Spread(MsFlags::MS_SHARED),
        "slave" => Spread(MsFlags::MS_SLAVE),
        "private" => Spread(MsFlags::MS_PRIVATE),
        "unbindable" => Spread(MsFlags::MS_UNBINDABLE),
        "rshared" => Spread(MsFlags::MS_SHARED.union(MsFlags::MS_REC)),
        "rslave" => Spread(MsFlags::MS_SLAVE.union(MsFlags::MS_REC)),
        "rprivate" => Spread(MsFlags::MS_PRIVATE.union(MsFlags::MS_REC)),
        "runbindable" => Spread(MsFlags::MS_UNBINDABLE.union(MsFlags::MS_REC)),
        _ => return None,
    })
}

impl Options {
    /// Whether they make an overlay of a mount of type `kind`, and not a bind mount or a change.
    pub(super) fn make_overlay(&self, kind: &str) -> bool {
        kind == "overlay" && !self.flags.intersects(MsFlags::MS_BIND | MsFlags::MS_REMOUNT)
    }

    /// Sorts the options of a mount of type `kind`. A later word overrides an earlier one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a malformed or lone `uidmap`/`gidmap` and as [`without_private`].
    pub(super) fn parse(kind: &str, words: &[String]) -> Result<Self> {
        let none = MsFlags::empty();
        let mut options =
            Self { flags: none, propagation: none, looped: None, owners: None, data: Vec::new() };
        // The type of a bind mount means nothing to the kernel, so it may as well mean this to us.
        match kind {
            "bind" => options.flags = MsFlags::MS_BIND,
            "rbind" => options.flags = MsFlags::MS_BIND | MsFlags::MS_REC,
            _ => {}
        }
        let (mut looped, mut uid, mut gid) = (false, None, None);
        for word in without_private(words)? {
            match effect(word) {
                Some(Effect::Set(flags)) => options.flags |= flags,
                Some(Effect::Clear(flags)) => options.flags -= flags,
                Some(Effect::Spread(flags)) => options.propagation = flags,
                None if word == "loop" => looped = true,
                None => match word.split_once('=') {
                    Some(("uidmap", map)) => uid = Some(id_map(word, map)?),
                    Some(("gidmap", map)) => gid = Some(id_map(word, map)?),
                    _ => options.data.push(word.to_owned()),
                },
            }
        }
        if looped {
            options.looped = Some(take_caching(&mut options.data));
        }
        options.owners = match (uid, gid) {
            (Some(uid), Some(gid)) => Some(OwnerMap { uid, gid }),
            (None, None) => None,
            _ => return Err(Error::Invalid("mount options uidmap and gidmap go together".into())),
        };
        Ok(options)
    }
}

/// `words` without those that are meant for containerd or mount(8) itself: `X-containerd.*` and
/// every other `X-*` and `x-*`. containerd's mount manager acts on its own before the shim runs.
///
/// # Errors
/// [`Error::Invalid`] for `X-containerd.dmverity`: without it a layer would be used unverified.
pub(super) fn without_private(words: &[String]) -> Result<Vec<&str>> {
    if let Some(word) = words.iter().find(|word| word.starts_with("X-containerd.dmverity=")) {
        return Err(Error::Invalid(format!(
            "mount option {word:?}: dm-verity is set up by containerd's mount manager, not by the \
             shim; set `dmverity_mode = \"off\"` in the erofs snapshotter, or enable the manager"
        )));
    }
    let private = |word: &str| word.starts_with("X-") || word.starts_with("x-");
    Ok(words.iter().map(String::as_str).filter(|word| !private(word)).collect())
}

/// Takes `direct-io` out of `data`, where it has a meaning for loop devices only.
fn take_caching(data: &mut Vec<String>) -> Caching {
    let words = data.len();
    data.retain(|word| word != "direct-io");
    if data.len() == words { Caching::Cached } else { Caching::Direct }
}

/// `container:host:size`, several with commas between, to the lines of `/proc/PID/uid_map`.
fn id_map(word: &str, ranges: &str) -> Result<String> {
    let mut lines = String::new();
    for range in ranges.split(',') {
        let numbers: Option<Vec<u32>> =
            range.split(':').map(|number| number.parse().ok()).collect();
        let Some([inside, outside, size]) = numbers.as_deref() else {
            return Err(Error::Invalid(format!(
                "mount option {word:?}: {range:?} is not container-id:host-id:size"
            )));
        };
        lines.push_str(&format!("{inside} {outside} {size}\n"));
    }
    Ok(lines)
}

/// The option that lists an overlay's lower layers, topmost first.
const LOWER: &str = "lowerdir=";

/// The lower layers of an overlay mount and its other options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlay<'a> {
    layers: Vec<Layer<'a>>,
    others: Vec<&'a str>,
}

/// A lower layer, with the colons that stand before it: two if it only holds file contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layer<'a> {
    separator: &'static str,
    path: &'a str,
}

/// How the options of an overlay get through mount(2), which takes one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// As they are.
    Whole(String),
    /// With layers relative to `directory`, which has to be the working directory.
    Relative { directory: PathBuf, data: String },
    /// Not even so: the layers need shorter names.
    Staged,
}

impl<'a> Overlay<'a> {
    /// Finds the lower layers in `data`. With several `lowerdir=` the last counts, as it does in
    /// the kernel.
    pub(super) fn parse(data: &'a [String]) -> Self {
        let (lower, others): (Vec<&str>, Vec<&str>) =
            data.iter().map(String::as_str).partition(|word| word.starts_with(LOWER));
        let lower = lower.last().map_or("", |word| &word[LOWER.len()..]);
        Self { layers: split_layers(lower), others }
    }

    /// The directories of the lower layers, topmost first.
    pub(super) fn layers(&self) -> impl Iterator<Item = PathBuf> {
        self.layers.iter().map(|layer| PathBuf::from(unescape(layer.path)))
    }

    /// The lower layers as they are written, topmost first; `None` if one only holds file contents.
    pub(super) fn written_layers(&self) -> Option<Vec<&'a str>> {
        let plain = |layer: &Layer<'a>| Some(layer.path).filter(|_| layer.separator == ":");
        self.layers.iter().map(plain).collect()
    }

    /// The options that do not list the lower layers.
    pub(super) fn others(&self) -> impl Iterator<Item = &'a str> {
        self.others.iter().copied()
    }

    /// How to mount it where `limit` bytes of options are too many.
    pub(super) fn passage(&self, limit: usize) -> Passage {
        let whole = self.data(self.layers.iter().map(|layer| layer.path));
        if whole.len() < limit {
            return Passage::Whole(whole);
        }
        match self.relative() {
            Some((directory, data)) if data.len() < limit => Passage::Relative { directory, data },
            _ => Passage::Staged,
        }
    }

    /// The options with layers named `0`, `1` and so on.
    pub(super) fn staged(&self) -> String {
        let names: Vec<String> = (0..self.layers.len()).map(|index| index.to_string()).collect();
        self.data(names.iter().map(String::as_str))
    }

    /// The deepest directory above all layers, and the options seen from there.
    fn relative(&self) -> Option<(PathBuf, String)> {
        let mut common = Path::new(self.layers.first()?.path).parent()?;
        for layer in &self.layers {
            while !Path::new(layer.path).starts_with(common) || Path::new(layer.path) == common {
                common = common.parent()?;
            }
        }
        let strip = |layer: &Layer<'a>| Path::new(layer.path).strip_prefix(common).ok()?.to_str();
        let names: Option<Vec<&str>> = self.layers.iter().map(strip).collect();
        let data = self.data(names?.into_iter());
        Some((PathBuf::from(unescape(common.to_str()?)), data))
    }

    /// The options as one string, with the layers under these names.
    fn data<'n>(&self, names: impl Iterator<Item = &'n str>) -> String {
        let mut lower = String::new();
        for (layer, name) in self.layers.iter().zip(names) {
            lower.push_str(if lower.is_empty() { LOWER } else { layer.separator });
            lower.push_str(name);
        }
        let words = self.others.iter().copied();
        let words: Vec<&str> =
            words.chain(Some(lower.as_str()).filter(|l| !l.is_empty())).collect();
        words.join(",")
    }
}

/// Splits at colons that no backslash escapes. An empty name, of `::`, marks the next as data only.
fn split_layers(lower: &str) -> Vec<Layer<'_>> {
    let (mut layers, mut start, mut escaped, mut separator) = (Vec::new(), 0, false, ":");
    for (at, byte) in lower.bytes().chain([b':']).enumerate() {
        if byte == b':' && !escaped {
            let path = &lower[start..at];
            start = at + 1;
            if path.is_empty() {
                separator = "::";
            } else {
                layers.push(Layer { separator, path });
                separator = ":";
            }
        }
        escaped = byte == b'\\' && !escaped;
    }
    layers
}

/// A path as the system calls take it: overlay's options write `:` and others with a backslash.
fn unescape(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut letters = path.chars();
    while let Some(letter) = letters.next() {
        plain.push(if letter == '\\' { letters.next().unwrap_or(letter) } else { letter });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn words_become_flags_or_data() {
        let none = MsFlags::empty();
        let bind = MsFlags::MS_BIND;
        type Row<'a> = (&'a str, &'a str, &'a [&'a str], MsFlags, MsFlags, &'a [&'a str]);
        let cases: [Row<'_>; 10] = [
            ("nothing", "ext4", &[], none, none, &[]),
            ("defaults", "ext4", &["defaults"], none, none, &[]),
            (
                "flags",
                "ext4",
                &["ro", "nosuid"],
                MsFlags::MS_RDONLY | MsFlags::MS_NOSUID,
                none,
                &[],
            ),
            ("the last wins", "ext4", &["ro", "noexec", "rw"], MsFlags::MS_NOEXEC, none, &[]),
            (
                "data",
                "xfs",
                &["nouuid", "ro", "logbufs=8"],
                MsFlags::MS_RDONLY,
                none,
                &["nouuid", "logbufs=8"],
            ),
            (
                "rbind",
                "bind",
                &["rbind", "ro"],
                bind | MsFlags::MS_REC | MsFlags::MS_RDONLY,
                none,
                &[],
            ),
            ("a bind by its type", "bind", &["rw"], bind, none, &[]),
            ("propagation", "bind", &["rslave"], bind, MsFlags::MS_SLAVE | MsFlags::MS_REC, &[]),
            (
                "private words",
                "tmpfs",
                &["X-containerd.custom=v", "x-systemd.automount", "mode=0755"],
                none,
                none,
                &["mode=0755"],
            ),
            ("direct-io of others", "fancyfs", &["direct-io"], none, none, &["direct-io"]),
        ];
        for (name, kind, input, flags, propagation, data) in cases {
            let expected =
                Options { flags, propagation, looped: None, owners: None, data: words(data) };
            assert_eq!(Options::parse(kind, &words(input)).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn loop_and_owner_maps_are_taken_out_of_the_data() {
        let parse = |input: &[&str]| Options::parse("ext4", &words(input)).unwrap();
        let options = parse(&["direct-io", "loop", "noload"]);
        assert_eq!(options.looped, Some(Caching::Direct));
        assert_eq!(options.data, ["noload"]);
        assert_eq!(parse(&["loop"]).looped, Some(Caching::Cached));
        let options = parse(&["uidmap=0:1000:10,10:5000:1", "gidmap=0:2000:65536"]);
        let owners =
            OwnerMap { uid: "0 1000 10\n10 5000 1\n".into(), gid: "0 2000 65536\n".into() };
        assert_eq!((options.owners, options.data), (Some(owners), vec![]));
    }

    #[test]
    fn what_cannot_be_done_as_asked_is_refused() {
        let cases: [(&str, &[&str], &str); 5] = [
            ("a lone map", &["uidmap=0:0:1"], "go together"),
            ("a short map", &["uidmap=0:1", "gidmap=0:0:1"], "\"0:1\" is not"),
            ("a negative id", &["uidmap=0:-1:1", "gidmap=0:0:1"], "\"0:-1:1\" is not"),
            ("an empty range", &["uidmap=0:0:1,", "gidmap=0:0:1"], "\"\" is not"),
            ("dm-verity", &["ro", "X-containerd.dmverity=/x"], "dm-verity"),
        ];
        for (name, input, expected) in cases {
            let error = Options::parse("erofs", &words(input)).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }

    #[test]
    fn overlay_options_are_shortened_only_as_far_as_needed() {
        let relative = |directory: &str, data: &str| Passage::Relative {
            directory: directory.into(),
            data: data.into(),
        };
        let cases: [(&str, &[&str], usize, Passage); 9] = [
            (
                "fits",
                &["lowerdir=/s/1/fs:/s/2/fs", "upperdir=/u"],
                40,
                Passage::Whole("upperdir=/u,lowerdir=/s/1/fs:/s/2/fs".into()),
            ),
            (
                "nothing else",
                &["lowerdir=/s/1:/s/2"],
                40,
                Passage::Whole("lowerdir=/s/1:/s/2".into()),
            ),
            ("no layers", &["upperdir=/u"], 40, Passage::Whole("upperdir=/u".into())),
            (
                "too long",
                &["lowerdir=/snaps/1/fs:/snaps/2/fs", "index=off"],
                32,
                relative("/snaps", "index=off,lowerdir=1/fs:2/fs"),
            ),
            (
                "names with a common start",
                &["lowerdir=/snaps/11:/snaps/12"],
                20,
                relative("/snaps", "lowerdir=11:12"),
            ),
            (
                "a layer above another",
                &["lowerdir=/snaps/a/b:/snaps/a"],
                20,
                relative("/snaps", "lowerdir=a/b:a"),
            ),
            (
                "data-only layers",
                &["lowerdir=/snaps/1::/snaps/2::/snaps/3"],
                20,
                relative("/snaps", "lowerdir=1::2::3"),
            ),
            (
                "escaped colons",
                &["lowerdir=/sn\\:ps/a\\:b:/sn\\:ps/c"],
                20,
                relative("/sn:ps", "lowerdir=a\\:b:c"),
            ),
            ("too long anyway", &["lowerdir=/snaps/1:/snaps/2"], 9, Passage::Staged),
        ];
        for (name, data, limit, expected) in cases {
            assert_eq!(Overlay::parse(&words(data)).passage(limit), expected, "{name}");
        }
        let staged = words(&["lowerdir=/a\\:b:/c::/d", "upperdir=/u"]);
        let overlay = Overlay::parse(&staged);
        assert_eq!(overlay.staged(), "upperdir=/u,lowerdir=0:1::2");
        assert_eq!(overlay.layers().collect::<Vec<_>>(), ["/a:b", "/c", "/d"].map(PathBuf::from));
    }
}
