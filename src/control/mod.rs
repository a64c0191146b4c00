//! The control channel: clients `NOTIFY powa_collector` and are answered on a channel that they name.

pub mod listener;
pub mod permission;
pub mod protocol;
