//! Protobuf messages <-> our types; pure. But for `service`, the only code that sees a message.

pub(crate) mod bootstrap;
pub(crate) mod options;
