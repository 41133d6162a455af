//! Checkpoint: a container's processes into a directory; and restore, which is the Start of one that was
//! created from such a directory.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::bundle::{self, Bundle};
use crate::container::Container;
use crate::container::container::Streams;
use crate::container::create::{Made, receive};
use crate::container::process::turn;
use crate::container::state::{Change, State};
use crate::container::undo::undo;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::ids::Pid;
use crate::io::{ConsoleSocket, OutsideFile, ProcessIo, TerminalIo, look_at};
use crate::runtime::args::Checkpoint;
use crate::runtime::{Call, help};
use crate::wire::checkpoint::CheckpointOptions;
use crate::wire::options::RuntimeOptions;

/// berth's file in an image: what a restore must know that CRIU does not keep.
const RECORD: &str = "berth.json";
/// The longest one that is read: it is a few hundred bytes.
const RECORD_LIMIT: u64 = 64 * 1024;
/// The directory of CRIU's logs where nobody says otherwise, as other shims have it.
const WORK: &str = "criu-work";

/// What a container is restored from.
pub(super) struct Image {
    dir: PathBuf,
    /// Where the client wants CRIU's logs; empty: it does not say.
    work: String,
}

impl Image {
    /// The image that Create is asked to restore. containerd before 2.0 passes on the options of a
    /// shim that is not its own without looking for the path in them.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless it is a directory; [`Error::Deadline`] where the file system hangs.
    pub(super) async fn asked(
        checkpoint: &str,
        options: &RuntimeOptions,
        deadline: Option<Instant>,
    ) -> Result<Option<Self>> {
        let dir = [checkpoint, &options.criu_image_path].into_iter().find(|dir| !dir.is_empty());
        let Some(dir) = dir else { return Ok(None) };
        let invalid = |why: &str| Error::Invalid(format!("checkpoint {dir:?}: {why}"));
        let path = PathBuf::from(dir);
        if !path.is_absolute() {
            return Err(invalid("the path is not absolute"));
        }
        match look_at(&path, "look at", deadline, |path| fs::metadata(path)).await {
            Ok(found) if found.is_dir() => {
                Ok(Some(Self { dir: path, work: options.criu_work_path.clone() }))
            }
            Ok(_) => Err(invalid("it is not a directory")),
            Err(Error::Io { source, .. }) => Err(invalid(&source.to_string())),
            Err(error) => Err(error),
        }
    }
}

/// What berth notes in an image.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    options: CheckpointOptions,
    outside: Vec<OutsideFile>,
}

impl Record {
    async fn save(&self, image: &Path, deadline: Option<Instant>) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|error| Error::Io {
            action: "encode",
            path: image.join(RECORD),
            source: error.into(),
        })?;
        let write = move |image: &Path| Ok(bundle::write(&image.join(RECORD), &text));
        look_at(image, "write to", deadline, write).await?
    }

    /// What an image says of itself. One that another shim made says nothing: what is in it was allowed
    /// when it was made, and is not refused now.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a record that makes no sense.
    fn load(image: &Path) -> Result<Self> {
        let path = image.join(RECORD);
        let text = match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let options = CheckpointOptions {
                    open_tcp: true,
                    external_unix_sockets: true,
                    file_locks: true,
                    ..CheckpointOptions::default()
                };
                return Ok(Self { options, outside: Vec::new() });
            }
            other => other,
        };
        text.and_then(|text| Ok(serde_json::from_slice(&text)?))
            .map_err(|error| Error::Invalid(format!("{}: {error}", path.display())))
    }
}

/// Reads a record. The image may be a stranger's, from a registry, and have anything under that name:
/// a FIFO or a device would keep the event loop waiting, a large file fill the memory.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let mut text = Vec::new();
    file.take(RECORD_LIMIT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > RECORD_LIMIT {
        return Err(io::Error::other(format!("it is longer than {RECORD_LIMIT} bytes")));
    }
    Ok(text)
}

/// A directory for CRIU's logs; one of our choice is removed, unless there is something to read in it.
struct Work {
    dir: PathBuf,
    is_ours: bool,
}

impl Work {
    async fn new(asked: &str, bundle: &Bundle, deadline: Option<Instant>) -> Result<Self> {
        let (dir, is_ours) = match asked {
            "" => {
                let work = bundle.dir().join("work"); // containerd's, on a disk
                let parent = if work.is_dir() { work } else { bundle.dir().to_owned() };
                (parent.join(WORK), true)
            }
            asked => (absolute("work path", asked)?, false),
        };
        make_dir(&dir, deadline).await?;
        Ok(Self { dir, is_ours })
    }

    /// The work is done, and its logs are of no more use.
    fn done(self) {
        if self.is_ours {
            let _ = fs::remove_dir_all(&self.dir); // containerd removes what is above
        }
    }
}

fn absolute(what: &str, path: &str) -> Result<PathBuf> {
    match Path::new(path) {
        path if path.is_absolute() => Ok(path.to_owned()),
        _ => Err(Error::Invalid(format!("{what} {path:?} is not an absolute path"))),
    }
}

async fn make_dir(dir: &Path, deadline: Option<Instant>) -> Result<()> {
    let make = |dir: &Path| DirBuilder::new().recursive(true).mode(0o700).create(dir);
    look_at(dir, "make", deadline, make).await
}

/// Whether both are one directory, by whatever links; the second need not be there.
async fn is_same(first: &Path, second: &Path, deadline: Option<Instant>) -> Result<bool> {
    if first == second {
        return Ok(true);
    }
    let other = second.to_owned();
    let compare = move |first: &Path| {
        let place = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
        Ok(place(&other).is_ok_and(|other| place(first).is_ok_and(|first| first == other)))
    };
    look_at(first, "look at", deadline, compare).await
}

/// Set as long as a checkpoint is under way that ends the container.
struct Leaving<'a>(&'a Container);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.leaving.set(false);
    }
}

impl Container {
    /// Saves the container's processes in a directory: that of the options, or `path`.
    /// `/tasks/checkpointed` follows, before the exit with 137 if the options ask for the end.
    ///
    /// containerd before 2.0 knows nothing of another shim's options: it then names a `path` of its own,
    /// which gets a copy of what the client wants elsewhere.
    ///
    /// # Errors
    /// [`Error::State`] unless it runs or is paused; [`Error::Invalid`] for paths; as the runtime and
    /// CRIU say. The container then goes on.
    pub(crate) async fn checkpoint(
        &self,
        path: &str,
        options: CheckpointOptions,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let _turn = turn(&self.adjusting, self.id.as_str(), deadline).await?;
        self.takes_checkpoint()?;
        let asked = if options.image_path.is_empty() { path } else { &options.image_path };
        let image = absolute("image path", asked)?;
        let copy = if path.is_empty() { image.clone() } else { absolute("checkpoint path", path)? };
        let work = Work::new(&options.work_path, &self.bundle, deadline).await?;
        make_dir(&image, deadline).await?;
        let outside = self.init.io().map_or(Ok(Vec::new()), |io| io.outside())?;
        self.leaving.set(options.exit);
        let leaving = Leaving(self);
        let checkpoint = Checkpoint { image: &image, work: &work.dir, options: &options };
        let criu: String = outside.iter().map(OutsideFile::external).collect();
        let call = self.call(deadline);
        self.runtime.checkpoint(&call, checkpoint, &criu).await?;
        Record { options, outside }.save(&image, deadline).await?;
        work.done();
        // It may have ended some other way by now, and nothing may follow the news of that.
        if self.init.state().exit().is_none() {
            let (id, image) = (self.id.clone(), image.clone());
            self.shared.events.queue(Event::Checkpointed { id, image });
        }
        // Later, as it may take longer than the news of the end can wait.
        if !is_same(&image, &copy, deadline).await? {
            self.copy(&image, &copy, &call).await?;
        }
        drop(leaving);
        Ok(())
    }

    fn takes_checkpoint(&self) -> Result<()> {
        let state = match self.init.state() {
            State::Running | State::Paused if self.init.is_dead() => "ending",
            State::Running | State::Paused => return Ok(()),
            state => state.name(),
        };
        Err(Error::State { id: self.id.to_string(), change: "checkpoint", state })
    }

    /// Copies an image; it may be large, and nothing else waits for that.
    async fn copy(&self, from: &Path, to: &Path, call: &Call<'_>) -> Result<()> {
        let mut all = OsString::from(from);
        all.push("/.");
        let args = ["-a".into(), all, to.into()];
        let limit = self.runtime.deadlines.of("checkpoint");
        let program = Path::new("/bin/cp");
        help(call.reaper, "copy", program, &args, self.bundle.dir(), limit).await
    }

    /// Start of a container that was created from a checkpoint: its processes run where they were.
    /// The caller has the init process's turn, and has checked that it may start.
    ///
    /// # Errors
    /// As the runtime and CRIU say. Nothing is left then, and Start can be tried again.
    pub(super) async fn restore(
        self: &Rc<Self>,
        image: &Image,
        deadline: Option<Instant>,
    ) -> Result<Pid> {
        self.init.may_run();
        let call = self.call(deadline);
        let made = match self.make_restored(image, &call).await {
            Ok(made) => made,
            Err(error) => {
                undo(&self.runtime, &call).await;
                self.init.never_ran();
                return Err(error);
            }
        };
        let pid = made.child.pid;
        self.init.apply(Change::Start);
        self.shared.events.queue(Event::Started { id: self.id.clone(), pid });
        self.clone().adopt(made);
        Ok(pid)
    }

    async fn make_restored(&self, image: &Image, call: &Call<'_>) -> Result<Made> {
        // As in Create: a pod that has ended since then has no namespaces to join any more.
        let in_pod = || self.shared.admits(&self.kind).map(drop);
        in_pod()?;
        let pid_file = self.bundle.init_pid_file();
        bundle::clear_pid_file(&pid_file);
        let load = |image: &Path| Ok(Record::load(image));
        let record = look_at(&image.dir, "read", call.deadline, load).await??;
        let Record { options, outside } = record;
        let work = Work::new(&image.work, &self.bundle, call.deadline).await?;
        let checkpoint = Checkpoint { image: &image.dir, work: &work.dir, options: &options };
        let criu: String = outside.iter().map(OutsideFile::inherit).collect();
        let mut streams = self.streams;
        // CRIU puts pipes in the place of whatever the outputs were.
        streams.policy.handover = false;
        let context = Streams::context(streams, &self.shared, call, &self.init.name);
        let mut state = self.bundle.state().ok_or_else(|| Error::NotFound {
            what: "berth's state in the bundle of",
            id: self.id.to_string(),
        })?;
        let watch = call.reaper.watch();
        let io = if self.init.stdio.terminal {
            let io = TerminalIo::open(&self.init.stdio, &context).await?;
            let socket = ConsoleSocket::bind(call.bundle.dir())?;
            let (path, runtime) = (Some(socket.path()), &self.runtime);
            runtime.restore(call, &pid_file, path, None, checkpoint, &criu).await?;
            io.attach(receive(socket).await?, &context)?
        } else {
            let mut stdio = self.init.stdio.clone();
            outside.iter().for_each(|file| file.claim(&mut stdio));
            let (io, child) = ProcessIo::open(&stdio, &context).await?;
            for file in &outside {
                file.dress(&child).map_err(Error::sys("prepare a pipe"))?;
            }
            let streams = Some([child.stdin, child.stdout, child.stderr]);
            self.runtime.restore(call, &pid_file, None, streams, checkpoint, &criu).await?;
            io
        };
        in_pod()?;
        let claimed = watch.claim(bundle::read_pid(&pid_file)?, call.ended())?;
        let made = Made::bind(&self.init, claimed, io, &self.bundle, &mut state)?;
        work.done();
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_a_short_regular_file_is_taken_for_a_record() {
        type Make = fn(&Path);
        let cases: [(&str, Make, Option<&str>); 8] = [
            ("none", |_| {}, None),
            ("berth's", |path| fs::write(path, "{\"outside\": []}").unwrap(), None),
            ("no JSON", |path| fs::write(path, "{").unwrap(), Some("EOF")),
            ("too long", |path| fs::write(path, vec![b' '; 65_537]).unwrap(), Some("65536")),
            ("a FIFO", |path| mkfifo(path, Mode::S_IRWXU).unwrap(), Some("regular")),
            ("a device", |path| symlink("/dev/zero", path).unwrap(), Some("regular")),
            ("a link to nothing", |path| symlink("/none", path).unwrap(), Some("regular")),
            ("a directory", |path| fs::create_dir(path).unwrap(), Some("regular")),
        ];
        for (name, make, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            make(&dir.path().join(RECORD));
            let said = Record::load(dir.path()).err().map(|error| error.to_string());
            match expected {
                None => assert_eq!(said, None, "{name}"),
                Some(words) => assert!(said.as_ref().unwrap().contains(words), "{name}: {said:?}"),
            }
        }
    }
}
