//! The way from an engine to those that watch it: each has a queue of its own, of bounded length, and takes all that is in
//! it at once. So whoever tells many changes together wakes each watcher once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use super::kv::Event;
use crate::error::{Error, Kind, Result};

/// How many events a watcher may lag behind before it hears [`Event::Lost`] instead. Some 100 bytes each.
const BACKLOG: usize = 16 * 1024;

/// The end where events are told. Its copies tell the same watchers; when the last of them goes, watching ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Watchers(Arc<Telling>);

/// The same for one who does not keep the others from ending.
#[derive(Clone, Debug)]
pub(super) struct WeakWatchers(Weak<Telling>);

#[derive(Debug, Default)]
struct Telling(Mutex<Vec<Arc<Queue>>>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    closed: bool,
}

impl Watchers {
    /// A watch that hears what is told from now on.
    pub fn subscribe(&self) -> Watch {
        let queue = Arc::<Queue>::default();
        lock(&self.0.0).push(Arc::clone(&queue));
        Watch { queue, of: Arc::downgrade(&self.0) }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        lock(&self.0.0).len()
    }

    /// Tells one thing. Nobody listening is no error.
    pub fn tell(&self, event: Event) {
        self.tell_all(vec![event]);
    }

    /// Tells things in their order, all at once.
    pub fn tell_all(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let watchers = lock(&self.0.0);
        let Some((last, others)) = watchers.split_last() else { return };
        for queue in others {
            queue.put(events.clone());
        }
        last.put(events);
    }

    pub fn downgrade(&self) -> WeakWatchers {
        WeakWatchers(Arc::downgrade(&self.0))
    }
}

impl WeakWatchers {
    pub fn upgrade(&self) -> Option<Watchers> {
        self.0.upgrade().map(Watchers)
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        for queue in self.0.get_mut().unwrap_or_else(PoisonError::into_inner) {
            lock(&queue.waiting).closed = true;
            queue.more.notify_one();
        }
    }
}

impl Queue {
    fn put(&self, events: Vec<Event>) {
        let mut waiting = lock(&self.waiting);
        if waiting.events.len() + events.len() > BACKLOG {
            waiting.events.clear();
            waiting.events.push_back(Event::Lost);
        }
        // More at once than may wait was lost as a whole.
        if events.len() < BACKLOG {
            waiting.events.extend(events);
        }
        drop(waiting);
        self.more.notify_one();
    }
}

/// A subscription to [`Event`]s. Lagging far behind becomes [`Event::Lost`].
#[derive(Debug)]
pub struct Watch {
    queue: Arc<Queue>,
    of: Weak<Telling>,
}

impl Watch {
    /// The next event; an error when the engine was dropped.
    pub async fn next(&mut self) -> Result<Event> {
        self.take(VecDeque::pop_front).await
    }

    /// All events that wait, at least one; an error when the engine was dropped.
    pub async fn next_all(&mut self) -> Result<VecDeque<Event>> {
        self.take(|events| (!events.is_empty()).then(|| std::mem::take(events))).await
    }

    /// The next event, if there is one by now.
    pub fn try_next(&mut self) -> Option<Event> {
        lock(&self.queue.waiting).events.pop_front()
    }

    async fn take<T>(&mut self, take: impl Fn(&mut VecDeque<Event>) -> Option<T>) -> Result<T> {
        loop {
            {
                let mut waiting = lock(&self.queue.waiting);
                if let Some(taken) = take(&mut waiting.events) {
                    return Ok(taken);
                }
                if waiting.closed {
                    return Err(Error::new(
                        Kind::Unavailable,
                        "the metadata engine's push channel is closed",
                    ));
                }
            }
            self.queue.more.notified().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(of) = self.of.upgrade() {
            lock(&of.0).retain(|queue| !Arc::ptr_eq(queue, &self.queue));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::kv::Change;
    use crate::types::Ino;

    fn event(n: usize) -> Event {
        Event::Changed { change: Change::Inode { ino: Ino(n as u64) }, by: None }
    }

    #[tokio::test]
    async fn each_hears_all_in_order() {
        let watchers = Watchers::default();
        watchers.tell(event(0));
        let (mut one, mut two) = (watchers.subscribe(), watchers.subscribe());
        watchers.tell_all((1..4).map(event).collect());
        watchers.tell(event(4));
        assert_eq!(one.next().await.expect("open"), event(1));
        assert_eq!(one.next_all().await.expect("open"), [event(2), event(3), event(4)]);
        assert_eq!((one.try_next(), two.try_next()), (None, Some(event(1))));
        drop(one);
        assert_eq!(watchers.len(), 1);
        drop(watchers);
        // What was told before the end is heard.
        assert_eq!(two.next_all().await.expect("open"), [event(2), event(3), event(4)]);
        assert_eq!(two.next().await.expect_err("closed").kind(), Kind::Unavailable);
        assert_eq!(two.next_all().await.expect_err("closed").kind(), Kind::Unavailable);
    }

    #[tokio::test]
    async fn who_lags_behind_hears_lost_and_what_came_then() {
        let watchers = Watchers::default();
        let (mut slow, mut quick) = (watchers.subscribe(), watchers.subscribe());
        let mut heard = 0;
        for n in 0..BACKLOG / 1000 + 1 {
            watchers.tell_all((0..1000).map(|i| event(n * 1000 + i)).collect());
            heard += quick.next_all().await.expect("open").len();
        }
        assert_eq!(heard, (BACKLOG / 1000 + 1) * 1000);
        assert_eq!(slow.next().await.expect("open"), Event::Lost);
        let rest = slow.next_all().await.expect("open");
        assert_eq!((rest.len(), &rest[999]), (1000, &event(heard - 1)));
        // What is too much by itself.
        watchers.tell_all((0..=BACKLOG).map(event).collect());
        assert_eq!(slow.next_all().await.expect("open"), [Event::Lost]);
        assert_eq!(slow.try_next(), None);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let watchers = Watchers::default();
        let mut watch = watchers.subscribe();
        let waiting = tokio::spawn(async move { (watch.next_all().await, watch.next().await) });
        tokio::task::yield_now().await;
        let weak = watchers.downgrade();
        weak.upgrade().expect("alive").tell(event(1));
        tokio::task::yield_now().await;
        drop(watchers);
        assert!(weak.upgrade().is_none());
        let (first, end) = waiting.await.expect("task");
        assert_eq!(first.expect("told"), [event(1)]);
        assert!(end.is_err());
    }
}
