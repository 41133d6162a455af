//! The FIFOs of one process.

use std::path::Path;

use super::{Host, Reader, mkfifo};

/// Which streams a process gets: stdin, stdout, stderr.
pub type Set = [bool; 3];

/// FIFOs for the streams of one process, and readers on its output.
pub struct Streams {
    /// What Create and Exec are told; empty where there is no stream.
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    out: Option<Reader>,
    err: Option<Reader>,
}

impl Host {
    /// FIFOs in a directory `name`, of the streams in `set`, and readers.
    pub fn streams(&self, name: &str, set: Set) -> Streams {
        let streams = self.unread_streams(name, set);
        let reader = |path: &str| Some(path).filter(|path| !path.is_empty()).map(Reader::open);
        let (out, err) = (reader(&streams.stdout), reader(&streams.stderr));
        Streams { out, err, ..streams }
    }

    /// FIFOs in a directory `name`, of the streams in `set`, that nobody reads.
    pub fn unread_streams(&self, name: &str, set: Set) -> Streams {
        let dir = self.dir().join("fifo").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let fifo = |on: bool, name: &str| if on { mkfifo(&dir.join(name)) } else { String::new() };
        let stdin = fifo(set[0], "in");
        let [stdout, stderr] = [fifo(set[1], "out"), fifo(set[2], "err")];
        Streams { stdin, stdout, stderr, out: None, err: None }
    }
}

impl Streams {
    /// Gives them to a Create.
    pub fn to_create(&self, request: &mut containerd_shim_protos::api::CreateTaskRequest) {
        request.stdin = self.stdin.clone();
        request.stdout = self.stdout.clone();
        request.stderr = self.stderr.clone();
    }

    /// Gives them to an Exec.
    pub fn to_exec(&self, request: &mut containerd_shim_protos::api::ExecProcessRequest) {
        request.stdin = self.stdin.clone();
        request.stdout = self.stdout.clone();
        request.stderr = self.stderr.clone();
    }

    /// The writing end of stdin, once the shim has opened its end.
    pub fn writer(&self) -> std::fs::File {
        super::writer(Path::new(&self.stdin))
    }

    pub fn out(&self) -> &Reader {
        self.out.as_ref().unwrap()
    }

    pub fn err(&self) -> &Reader {
        self.err.as_ref().unwrap()
    }

    /// Closes the reading end of stdout and opens it again with nobody in between but the shim;
    /// `meanwhile` runs while it is closed. Returns what had arrived before.
    pub fn reopen_out(&mut self, meanwhile: impl FnOnce()) -> String {
        let mut reader = self.out.take().unwrap();
        let before = reader.stop();
        meanwhile();
        self.out = Some(Reader::open(&self.stdout));
        before
    }
}
