//! The floor that touches the disk: directory handles that cannot leave their tree, atomic small
//! files, mounts, locks, owners. Everything above names paths by a handle and a checked name.

mod atomic;
mod beneath;
mod clock;
mod counter;
mod flush;
mod lease;
mod lock;
mod mount;
mod owner;
mod process;
mod tree;

pub use atomic::{ensure_dir_all, put_atomic, write_atomic};
pub use beneath::{Dir, FileKind, Stat, now};
pub(crate) use beneath::{chmod_fd, chown_fd, set_mtime_fd, stat_fd};
pub use clock::{boot_ms, wall_ms};
pub use counter::HighWater;
pub use flush::sync_dirs;
pub use lease::{ignore_break_signal, open_for_writing};
pub use lock::{Holder, Lock, Locked};
pub use mount::{FsClass, MountId, is_mount_root, place_in_fs};
pub use owner::{OwnerPolicy, Owners, group_id, user_id};
pub use process::{Stat as ProcessStat, process_end};
pub use tree::{remove_tree, remove_tree_until, tree_size, tree_size_until};
