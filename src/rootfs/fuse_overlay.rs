//! fuse-overlayfs(1) in the kernel's place: which overlays it can mount, and how it is told. Pure.

use nix::mount::MsFlags;

use super::options::{Options, Overlay};
use crate::config::Choice;

/// When fuse-overlayfs mounts an overlay, and not the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FuseOverlay {
    Never,
    /// Where the kernel refuses.
    Fallback,
    Always,
}

impl FuseOverlay {
    /// What the configuration's `choice` means: by itself only a rootless berth falls back.
    pub(crate) fn of(choice: Choice, rootless: bool) -> Self {
        match choice {
            Choice::Off => Self::Never,
            Choice::On => Self::Always,
            Choice::Auto if rootless => Self::Fallback,
            Choice::Auto => Self::Never,
        }
    }
}

/// What fuse-overlayfs understands of an overlay's options, beside its directories.
const OWN_OPTIONS: [&str; 1] = ["volatile"];

/// Options that only say how the kernel keeps its books: the files are the same without them.
const KERNEL_OPTIONS: [&str; 10] = [
    "userxattr",
    "index=",
    "xino=",
    "nfs_export=",
    "uuid=",
    "metacopy=off",
    "redirect_dir=off",
    "redirect_dir=nofollow",
    "override_creds",
    "nooverride_creds",
];

/// The flags that fuse-overlayfs passes on. The others change nothing about what the files are.
const FLAGS: [(MsFlags, &str); 4] = [
    (MsFlags::MS_RDONLY, "ro"),
    (MsFlags::MS_NOSUID, "nosuid"),
    (MsFlags::MS_NODEV, "nodev"),
    (MsFlags::MS_NOEXEC, "noexec"),
];

/// The options of an overlay in the words of fuse-overlayfs, after its `-o`.
///
/// # Errors
/// What it could not do as `options` ask for.
pub(super) fn words(options: &Options) -> Result<String, String> {
    if options.owners.is_some() || !options.propagation.is_empty() {
        return Err("fuse-overlayfs knows neither uidmap and gidmap nor propagation".into());
    }
    let overlay = Overlay::parse(&options.data);
    let layers = overlay.written_layers().ok_or("fuse-overlayfs knows no data-only layers")?;
    if layers.is_empty() {
        return Err("the overlay has no lower layers".into());
    }
    let mut directories = layers.clone();
    let mut words = vec![format!("lowerdir={}", layers.join(":"))];
    for word in overlay.others() {
        if let Some(path) = word.strip_prefix("upperdir=").or(word.strip_prefix("workdir=")) {
            directories.push(path);
        } else if is_for_the_kernel(word) {
            log::debug!("overlay option {word} is not for fuse-overlayfs: left out");
            continue;
        } else if !OWN_OPTIONS.contains(&word) {
            return Err(format!("fuse-overlayfs does not know option {word:?}"));
        }
        words.push(word.to_owned());
    }
    if let Some(path) = directories.into_iter().find(|path| !is_plain(path)) {
        return Err(format!("fuse-overlayfs may misread the path {path:?}"));
    }
    let flags = FLAGS.iter().filter(|(flag, _)| options.flags.contains(*flag));
    words.extend(flags.map(|(_, word)| (*word).to_owned()));
    Ok(words.join(","))
}

fn is_for_the_kernel(word: &str) -> bool {
    KERNEL_OPTIONS.iter().any(|option| {
        if option.ends_with('=') { word.starts_with(option) } else { word == *option }
    })
}

/// Whether fuse-overlayfs takes `path` for what it is. Its versions differ in how they unescape,
/// and two slashes at the start name a plugin.
fn is_plain(path: &str) -> bool {
    path.starts_with('/') && !path.starts_with("//") && !path.contains([':', ',', '\\', '"'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Options {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        Options::parse("overlay", &words).unwrap()
    }

    #[test]
    fn only_a_rootless_berth_falls_back_by_itself() {
        use Choice::{Auto, Off, On};
        let cases = [
            (Auto, false, FuseOverlay::Never),
            (Auto, true, FuseOverlay::Fallback),
            (On, false, FuseOverlay::Always),
            (On, true, FuseOverlay::Always),
            (Off, false, FuseOverlay::Never),
            (Off, true, FuseOverlay::Never),
        ];
        for (choice, rootless, expected) in cases {
            assert_eq!(FuseOverlay::of(choice, rootless), expected, "{choice:?} {rootless}");
        }
    }

    #[test]
    fn an_overlay_is_put_into_the_words_of_fuse_overlayfs() {
        type Row<'a> = (&'a str, &'a [&'a str], Result<&'a str, &'a str>);
        let cases: [Row<'_>; 13] = [
            (
                "containerd's",
                &["index=off", "userxattr", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"],
                Ok("lowerdir=/a:/b,workdir=/w,upperdir=/u"),
            ),
            ("read-only", &["lowerdir=/a:/b", "ro", "relatime"], Ok("lowerdir=/a:/b,ro")),
            (
                "flags",
                &["lowerdir=/a", "volatile", "nodev", "nosuid", "noexec"],
                Ok("lowerdir=/a,volatile,nosuid,nodev,noexec"),
            ),
            ("harmless", &["lowerdir=/a", "xino=auto", "metacopy=off"], Ok("lowerdir=/a")),
            ("other file contents", &["lowerdir=/a", "metacopy=on"], Err("option \"metacopy=on\"")),
            ("unknown", &["lowerdir=/a", "index2"], Err("option \"index2\"")),
            ("data-only layers", &["lowerdir=/a::/b"], Err("data-only")),
            ("no layers", &["upperdir=/u", "workdir=/w"], Err("no lower")),
            ("an escaped colon", &["lowerdir=/a\\:b"], Err("misread the path")),
            ("a comma", &["lowerdir=/a", "upperdir=/u,v"], Err("misread the path")),
            ("other owners", &["lowerdir=/a", "uidmap=0:1:1", "gidmap=0:1:1"], Err("uidmap")),
            ("propagation", &["lowerdir=/a", "rslave"], Err("propagation")),
            ("a plugin's name", &["lowerdir=//plugin/x/y"], Err("misread the path")),
        ];
        for (name, input, expected) in cases {
            match (words(&options(input)), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{name}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{name}: {why}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }
}
