//! The shim binary; see the library for everything.

fn main() {}
