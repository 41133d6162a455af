//! The rules of the configuration.

mod sources;
mod values;
