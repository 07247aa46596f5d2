//! The way to the kernel's caches: a queue of what it shall forget, for threads that may block.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::types::Invalidation;
use crate::types::Ino;

/// How many orders may wait for the kernel. Beyond that they are dropped: names follow within `--entry-ttl`, every open
/// asks the metadata in any case, and what was granted for longer is taken back as a whole.
const QUEUE: usize = 16 * 1024;
/// Names of one directory that are given out together.
const TOGETHER: usize = 64;

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Rings for one thread at a time.
    more: Condvar,
    /// An order was dropped.
    overflowed: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    orders: VecDeque<Invalidation>,
    /// One of the two ends is gone.
    closed: bool,
    /// Threads that have to be woken.
    asleep: usize,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that somebody looks.
    fn wake(&self, waiting: MutexGuard<'_, Waiting>) {
        let wake = waiting.asleep > 0;
        drop(waiting);
        if wake {
            self.more.notify_one();
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.more.notify_all();
    }
}

/// The end where orders are given. Never blocks: the thread at the other end may wait for locks that a request holds.
#[derive(Clone, Debug)]
pub struct Invalidations(Arc<Giving>);

#[derive(Debug)]
struct Giving(Arc<Queue>);

impl Drop for Giving {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The end where they are carried out, by any number of threads.
#[derive(Debug)]
pub struct Orders(Arc<Queue>);

impl Drop for Orders {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Invalidations {
    /// The two ends of a bounded queue.
    #[must_use]
    pub fn channel() -> (Self, Orders) {
        let queue = Arc::<Queue>::default();
        (Invalidations(Arc::new(Giving(Arc::clone(&queue)))), Orders(queue))
    }

    /// The name means something else, or nothing, or something for the first time.
    pub fn entry(&self, parent: Ino, name: Bytes) {
        self.send(Invalidation::Entry { parent, name });
    }

    /// The attributes changed.
    pub fn attrs(&self, ino: Ino) {
        self.send(Invalidation::Attrs { ino });
    }

    /// The data changed.
    pub fn pages(&self, ino: Ino) {
        self.send(Invalidation::Pages { ino });
    }

    /// Whether orders were dropped since this was last asked.
    pub(super) fn overflowed(&self) -> bool {
        self.0.0.overflowed.swap(false, Ordering::Relaxed)
    }

    /// Gives an order that must not be dropped: waits while the queue is full.
    pub(super) async fn send_surely(&self, mut order: Invalidation) {
        while let Err(back) = self.put(order) {
            order = back;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Gives many orders, in their order, and wakes for them once.
    pub(super) fn send_all(&self, orders: impl Iterator<Item = Invalidation>) {
        let mut waiting = self.0.0.lock();
        if waiting.closed {
            return;
        }
        for order in orders {
            if waiting.orders.len() >= QUEUE {
                tracing::debug!("invalidation queue full, dropped {order:?} and what came with it");
                self.0.0.overflowed.store(true, Ordering::Relaxed);
                break;
            }
            waiting.orders.push_back(order);
        }
        if !waiting.orders.is_empty() {
            self.0.0.wake(waiting);
        }
    }

    fn send(&self, order: Invalidation) {
        if let Err(order) = self.put(order) {
            tracing::debug!("invalidation queue full, dropped {order:?}");
            self.0.0.overflowed.store(true, Ordering::Relaxed);
        }
    }

    /// Gives the order back if there is no room. Into a closed queue everything goes: there is no kernel to tell.
    fn put(&self, order: Invalidation) -> Result<(), Invalidation> {
        let mut waiting = self.0.0.lock();
        if waiting.closed {
            return Ok(());
        }
        if waiting.orders.len() >= QUEUE {
            return Err(order);
        }
        waiting.orders.push_back(order);
        self.0.0.wake(waiting);
        Ok(())
    }
}

impl Orders {
    /// Waits for what is next: one order, or several names of one directory, in order: they wait for the same locks, and
    /// whatever the directory itself must forget is forgotten once for all of them. `None` when no more will come.
    pub fn next(&self) -> Option<Vec<Invalidation>> {
        let mut waiting = self.0.lock();
        loop {
            if let Some(first) = waiting.orders.pop_front() {
                let batch = with_neighbours(first, &mut waiting.orders);
                if !waiting.orders.is_empty() {
                    self.0.wake(waiting);
                }
                return Some(batch);
            }
            if waiting.closed {
                return None;
            }
            waiting.asleep += 1;
            waiting = self.0.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.asleep -= 1;
        }
    }

    /// Whatever waits now.
    #[must_use]
    pub fn take(&self) -> Vec<Invalidation> {
        self.0.lock().orders.drain(..).collect()
    }
}

fn with_neighbours(first: Invalidation, orders: &mut VecDeque<Invalidation>) -> Vec<Invalidation> {
    let mut batch = vec![first];
    let Invalidation::Entry { parent, .. } = batch[0] else { return batch };
    while batch.len() < TOGETHER
        && matches!(orders.front(), Some(Invalidation::Entry { parent: of, .. }) if *of == parent)
    {
        batch.extend(orders.pop_front());
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(parent: u64, name: &'static str) -> Invalidation {
        Invalidation::Entry { parent: Ino(parent), name: Bytes::from_static(name.as_bytes()) }
    }

    #[test]
    fn names_of_one_directory_come_together() {
        let (sender, orders) = Invalidations::channel();
        sender.entry(Ino(5), Bytes::from_static(b"a"));
        sender.entry(Ino(5), Bytes::from_static(b"b"));
        sender.entry(Ino(6), Bytes::from_static(b"c"));
        sender.attrs(Ino(6));
        sender.attrs(Ino(6));
        assert_eq!(orders.next().expect("open"), [name(5, "a"), name(5, "b")]);
        assert_eq!(orders.next().expect("open"), [name(6, "c")]);
        assert_eq!(orders.next().expect("open"), [Invalidation::Attrs { ino: Ino(6) }]);
        drop(sender);
        assert_eq!(
            orders.next().expect("what was given is carried out"),
            [Invalidation::Attrs { ino: Ino(6) }]
        );
        assert_eq!(orders.next(), None);
    }

    #[test]
    fn a_full_queue_drops_and_says_so() {
        let (sender, orders) = Invalidations::channel();
        for n in 0..=QUEUE as u64 {
            assert!(!sender.overflowed());
            sender.attrs(Ino(n));
        }
        assert!(sender.overflowed() && !sender.overflowed());
        assert_eq!(orders.take().len(), QUEUE);
    }

    #[test]
    fn threads_that_wait_are_woken_by_orders_and_by_the_end() {
        let (sender, orders) = Invalidations::channel();
        let orders = Arc::new(orders);
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let orders = Arc::clone(&orders);
                std::thread::spawn(move || std::iter::from_fn(|| orders.next()).flatten().count())
            })
            .collect();
        let copy = sender.clone();
        for n in 0..1000 {
            if n % 2 == 0 { copy.pages(Ino(n)) } else { sender.entry(Ino(1), Bytes::new()) }
        }
        drop(sender);
        drop(copy);
        let done: usize = threads.into_iter().map(|t| t.join().expect("no panic")).sum();
        assert_eq!(done, 1000);
    }
}
