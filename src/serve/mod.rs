//! What an agent answers on its local socket, and how the other commands ask. The rights on the socket's file
//! are the administrator's rights.

mod ask;
mod local;

pub use ask::ask;
pub use local::local;
