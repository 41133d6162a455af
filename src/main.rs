//! The shim binary; see the library for everything.

use std::io::Write as _;
use std::process::ExitCode;
use std::{env, io};

fn main() -> ExitCode {
    match berth::run(env::args_os(), &mut io::stdout().lock()) {
        Ok(code) => code,
        Err(error) => {
            // containerd shows this line to the user; where stderr is gone nobody can be told.
            let line = error.to_string().trim_end().replace('\n', " ");
            let _ = writeln!(io::stderr(), "berth: {line}");
            ExitCode::FAILURE
        }
    }
}
