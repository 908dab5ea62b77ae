//! The source's rollback needs contents that it has no more: those that lie here in the trash, or still at their place in
//! the tree, are sent to it. Whoever asks knows a content's digest and size, so nobody learns what he does not know.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::MirrorTree;
use crate::apply::{Displaced, content_of, seek_trashed};
use crate::disk::Dir;
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{Digest, TreePath, counted};
use crate::peer::{MAX_SOUGHT, PIECE, Sought};
use crate::plan::{CONTROL_DIR, Filter};
use crate::scan::read_full;

/// The source hears at least so often that somebody is here.
const SAY: Duration = Duration::from_secs(1);
/// A search in which nothing moves for so long hangs: then it is not said any more that somebody looks.
const STUCK: Duration = Duration::from_secs(60);
/// A source that cannot be asked is asked again for so long.
const PATIENCE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(500);

/// Where a content is.
#[derive(Clone, Debug)]
enum Place {
    Tree(TreePath),
    Trash(Displaced),
}

/// What a search is at; it ends when nobody waits for it any more.
#[derive(Default)]
struct Search {
    cancel: AtomicBool,
    /// Files that were looked at.
    looked: AtomicU64,
}

struct Ends(Arc<Search>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.cancel.store(true, Ordering::Relaxed);
    }
}

/// Looks for what the source seeks, and sends what it is asked for, until the round is over.
pub(super) async fn help(tree: Arc<MirrorTree>, round: u64) {
    let mut sent = 0;
    let done = tokio::select! {
        () = tree.cancel.cancelled() => return,
        done = try_help(&tree, round, &mut sent) => done,
    };
    if sent > 0 {
        tracing::info!(tree = tree.name(), "sent {} to the source, for a rollback", counted(sent, "content"));
    }
    if let Err(e) = done {
        tracing::warn!(tree = tree.name(), "cannot help the source's rollback: {e}");
    }
}

async fn try_help(tree: &Arc<MirrorTree>, round: u64, sent: &mut u64) -> Result<()> {
    let mut sought = Vec::new();
    loop {
        let Some(page) = asked_again(|| tree.client.sought(round, sought.len())).await? else {
            return Ok(());
        };
        if page.is_empty() {
            break;
        }
        sought.extend(page);
    }
    let sought = Arc::new(sought);
    let filter = tree.config.filter()?;
    let ends = Ends(Arc::default());
    let (say, mut hear) = channel(MAX_SOUGHT);
    let (path, of, state) = (tree.config.path.clone(), sought.clone(), ends.0.clone());
    // an error counts as nothing found; what was found before it is of use all the same
    let search = spawn_blocking(move || search(&path, &filter, &of, &state, &say));
    let mut places: BTreeMap<u32, Place> = BTreeMap::new();
    let mut moved = (0, Instant::now());
    let mut done = false;
    loop {
        let (found, all) = if done { (Vec::new(), true) } else { gather(&mut hear).await };
        let looked = ends.0.looked.load(Ordering::Relaxed);
        if all || looked != moved.0 {
            moved = (looked, Instant::now());
        } else if moved.1.elapsed() >= STUCK {
            return Err(Error::new(Class::Transient, "the search hangs"));
        }
        let indexes: Vec<u32> = found.iter().map(|(index, _)| *index).collect();
        places.extend(found);
        let was_done = std::mem::replace(&mut done, all);
        let Some(asked) = asked_again(|| tree.client.found(round, &indexes, all)).await? else { break };
        let idle = asked.is_empty();
        for index in asked {
            let Some((place, what)) = places.get(&index).zip(sought.get(index as usize)) else {
                return Err(Error::integrity("the source asks for something that was not offered"));
            };
            match send(tree, round, index, place, what).await {
                Ok(whole) => *sent += u64::from(whole),
                Err(e) if e.class == Class::Transient => return Err(e),
                // it does not want that; it may want the others
                Err(e) => tracing::warn!(tree = tree.name(), "the content of {}: {e}", what.path),
            }
        }
        if was_done && idle {
            sleep(SAY).await;
        }
    }
    drop((hear, ends));
    let failed = |e| Error::new(Class::Permanent, format!("the search failed: {e}"));
    search.await.map_err(failed)?
}

/// Asks until there is an answer: what is transient may pass while the round lasts.
async fn asked_again<T, F: Future<Output = Result<T>>>(mut ask: impl FnMut() -> F) -> Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Err(e) if e.class == Class::Transient && Instant::now() < until => {
                tracing::debug!("asked again: {e}");
                sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}

/// What was found until now or soon, and whether that is all.
async fn gather(hear: &mut Receiver<(u32, Place)>) -> (Vec<(u32, Place)>, bool) {
    let mut found = Vec::new();
    match timeout(SAY, hear.recv()).await {
        Err(_) => return (found, false),
        Ok(None) => return (found, true),
        Ok(Some(first)) => found.push(first),
    }
    while found.len() < MAX_SOUGHT
        && let Ok(next) = hear.try_recv()
    {
        found.push(next);
    }
    (found, false)
}

/// Blocking.
fn search(
    path: &std::path::Path,
    filter: &Filter,
    sought: &[Sought],
    state: &Search,
    say: &Sender<(u32, Place)>,
) -> Result<()> {
    let root = Dir::open_root(path).context(|| "open the tree".into())?;
    let mut wanted: HashMap<Digest, (u64, TreePath)> = HashMap::new();
    let mut index_of: HashMap<Digest, u32> = HashMap::new();
    for (index, what) in (0u32..).zip(sought) {
        state.looked.fetch_add(1, Ordering::Relaxed);
        // what is excluded here was never the source's
        let here = if filter.excludes_path(&what.path) { None } else { root.open_file_at(&what.path).ok() };
        if here.and_then(|fd| content_of(&fd, what.size, &state.cancel)) == Some(what.digest) {
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
    let looked = &mut || {
        state.looked.fetch_add(1, Ordering::Relaxed);
    };
    seek_trashed(&control, &mut wanted, &state.cancel, looked, &mut |digest, displaced| {
        let Some(index) = index_of.get(&digest) else { return true };
        // who does not hear any more needs no more
        say.blocking_send((*index, Place::Trash(displaced))).is_ok()
    })
}

/// Sends one content; says whether all of it could be read.
async fn send(tree: &Arc<MirrorTree>, round: u64, index: u32, place: &Place, what: &Sought) -> Result<bool> {
    let (path, place) = (tree.config.path.clone(), place.clone());
    let opened = blocking(move || {
        let root = Dir::open_root(&path)?;
        match place {
            Place::Tree(path) => root.open_file_at(&path),
            Place::Trash(displaced) => displaced.open(&root.open_child(CONTROL_DIR)?),
        }
    });
    let piece =
        |from: u64, bytes: Bytes| asked_again(move || tree.client.piece(round, index, from, bytes.clone()));
    let Ok(file) = opened.await else {
        // it went meanwhile
        piece(0, Bytes::new()).await?;
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
        let bytes = read.await.unwrap_or_default();
        let n = bytes.len() as u64;
        piece(from, bytes.into()).await?;
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
