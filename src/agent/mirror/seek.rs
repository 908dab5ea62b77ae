//! The source's rollback needs contents that it has no more: those that lie here in the trash, or still at their place in
//! the tree, are sent to it. Whoever asks knows a content's digest and size, so nobody learns what he does not know.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::MirrorTree;
use crate::apply::{Displaced, content_of, seek_trashed};
use crate::disk::Dir;
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{Digest, TreePath};
use crate::peer::{PIECE, Sought};
use crate::plan::CONTROL_DIR;
use crate::scan::read_full;

/// The source hears at least so often that somebody still looks.
const SAY: Duration = Duration::from_secs(2);

/// Where a content is.
#[derive(Clone, Debug)]
enum Place {
    Tree(TreePath),
    Trash(Displaced),
}

/// Ends the search when nobody waits for it any more.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Looks for what the source seeks, and sends what it is asked for.
pub(super) async fn help(tree: Arc<MirrorTree>, round: u64) {
    let done = tokio::select! {
        () = tree.cancel.cancelled() => return,
        done = try_help(&tree, round) => done,
    };
    match done {
        Ok(0) => {}
        Ok(sent) => tracing::info!(tree = tree.name(), "sent {sent} contents to the source, for a rollback"),
        Err(e) => tracing::warn!(tree = tree.name(), "cannot help the source's rollback: {e}"),
    }
}

async fn try_help(tree: &Arc<MirrorTree>, round: u64) -> Result<u64> {
    let Some(sought) = tree.client.sought(round).await? else { return Ok(0) };
    let sought = Arc::new(sought);
    let cancel = Cancel(Arc::default());
    let (say, mut hear) = channel(64);
    let (path, of, stop) = (tree.config.path.clone(), sought.clone(), cancel.0.clone());
    let search = spawn_blocking(move || search(&path, &of, &stop, &say));
    let mut places: HashMap<u32, Place> = HashMap::new();
    let mut sent = 0;
    loop {
        let (found, done) = gather(&mut hear).await;
        let indexes: Vec<u32> = found.iter().map(|(index, _)| *index).collect();
        places.extend(found);
        // an error counts as nothing found; what was found before it is of use all the same
        let Some(asked) = tree.client.found(round, &indexes, done).await? else { break };
        for index in asked {
            let Some((place, sought)) = places.get(&index).zip(sought.get(index as usize)) else {
                return Err(Error::integrity("the source asks for something that was not offered"));
            };
            sent += u64::from(send(tree, round, index, place, sought).await?);
        }
        if done {
            break;
        }
    }
    drop((hear, cancel));
    let failed = |e| Error::new(Class::Permanent, format!("the search failed: {e}"));
    search.await.map_err(failed)??;
    Ok(sent)
}

/// What was found until now or soon, and whether that is all.
async fn gather(hear: &mut Receiver<(u32, Place)>) -> (Vec<(u32, Place)>, bool) {
    let mut found = Vec::new();
    match timeout(SAY, hear.recv()).await {
        Err(_) => return (found, false),
        Ok(None) => return (found, true),
        Ok(Some(first)) => found.push(first),
    }
    while let Ok(next) = hear.try_recv() {
        found.push(next);
    }
    (found, false)
}

/// Blocking.
fn search(
    path: &std::path::Path,
    sought: &[Sought],
    cancel: &AtomicBool,
    say: &Sender<(u32, Place)>,
) -> Result<()> {
    let root = Dir::open_root(path).context(|| "open the tree".into())?;
    let mut wanted: HashMap<Digest, (u64, TreePath)> = HashMap::new();
    let mut index_of: HashMap<Digest, u32> = HashMap::new();
    for (index, what) in (0u32..).zip(sought) {
        let here = open_in(&root, &what.path).ok();
        if here.and_then(|fd| content_of(&fd, what.size, cancel)) == Some(what.digest) {
            if say.blocking_send((index, Place::Tree(what.path.clone()))).is_err() {
                return Ok(());
            }
            continue;
        }
        wanted.insert(what.digest, (what.size, what.path.clone()));
        index_of.insert(what.digest, index);
    }
    let control = match root.open_child(CONTROL_DIR) {
        Err(Errno::NOENT) => return Ok(()),
        control => control.context(|| "open .syncagent".into())?,
    };
    seek_trashed(&control, &mut wanted, cancel, &mut |digest, displaced| {
        let Some(index) = index_of.get(&digest) else { return true };
        // who does not hear any more needs no more
        say.blocking_send((*index, Place::Trash(displaced))).is_ok()
    })
}

fn open_in(root: &Dir, path: &TreePath) -> rustix::io::Result<OwnedFd> {
    let (parent, name) = path.split();
    root.open(&TreePath::new(parent).unwrap_or_default())?.open_file(name)
}

/// Sends one content; says whether all of it could be read.
async fn send(tree: &Arc<MirrorTree>, round: u64, index: u32, place: &Place, what: &Sought) -> Result<bool> {
    let (path, place) = (tree.config.path.clone(), place.clone());
    let opened = blocking(move || {
        let root = Dir::open_root(&path)?;
        match place {
            Place::Tree(path) => open_in(&root, &path),
            Place::Trash(displaced) => displaced.open(&root.open_child(CONTROL_DIR)?),
        }
    });
    let Ok(file) = opened.await else {
        // it went meanwhile
        tree.client.piece(round, index, 0, Bytes::new()).await?;
        return Ok(false);
    };
    let file = Arc::new(file);
    let mut from = 0;
    while from < what.size {
        let most = usize::try_from(what.size - from).unwrap_or(PIECE).min(PIECE);
        let of = file.clone();
        let read = blocking(move || {
            let mut piece = vec![0; most];
            let n = read_full(&*of, &mut piece)?;
            piece.truncate(n);
            Ok(piece)
        });
        // an empty one says that there is no more
        let piece = read.await.unwrap_or_default();
        let n = piece.len() as u64;
        tree.client.piece(round, index, from, piece.into()).await?;
        if n == 0 {
            return Ok(false);
        }
        from += n;
    }
    Ok(true)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> rustix::io::Result<T> + Send + 'static,
) -> rustix::io::Result<T> {
    spawn_blocking(work).await.unwrap_or(Err(Errno::IO))
}
