//! How far behind a node is, measured without trusting two clocks. Pure: every time is handed in, in
//! milliseconds of the caller's own CLOCK_BOOTTIME.

mod deferred;
mod estimate;
mod history;
mod published;

pub use deferred::{Deferred, Written};
pub use estimate::Lag;
pub use history::History;
pub use published::{Behind, Published};
