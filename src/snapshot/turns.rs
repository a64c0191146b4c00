//! Whose turn it is: how many may do something at once, and who is next. Who has waited longest past its time goes
//! first, so that a fleet that is too large falls behind evenly.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

/// A number of places, and the line before them.
#[derive(Debug)]
pub struct Turns(Mutex<Line>);

#[derive(Debug)]
struct Line {
    places: usize,
    taken: usize,
    /// By when they are due; those who are due together by the order in which they came.
    waiting: BTreeMap<(Due, u64), oneshot::Sender<Turn>>,
    /// How many have come so far.
    came: u64,
}

/// When somebody is due: first those who are not on any schedule.
pub type Due = Option<Instant>;

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub struct Turn(Arc<Turns>);

impl Turns {
    pub fn new(places: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Line { places, taken: 0, waiting: BTreeMap::new(), came: 0 })))
    }

    /// Changes the number of places. Nobody who has one loses it.
    pub fn set_places(self: &Arc<Self>, places: usize) {
        self.line().places = places;
        self.call();
    }

    /// Waits for a place. Those who wait without a due time are called first, then those who are overdue longest.
    /// Whoever stops waiting leaves the line.
    pub async fn wait(self: &Arc<Self>, due: Due) -> Turn {
        let called = {
            let mut line = self.line();
            let (call, called) = oneshot::channel();
            line.came += 1;
            let place = (due, line.came);
            line.waiting.insert(place, call);
            called
        };
        self.call();
        called.await.expect("nobody is dropped from the line")
    }

    /// Calls as many as there are free places.
    fn call(self: &Arc<Self>) {
        loop {
            let call = {
                let mut line = self.line();
                if line.taken >= line.places {
                    return;
                }
                let Some((_, call)) = line.waiting.pop_first() else { return };
                if call.is_closed() {
                    continue;
                }
                line.taken += 1;
                call
            };
            // One who has just left hands the place back by not taking it.
            drop(call.send(Turn(Arc::clone(self))));
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.line().taken -= 1;
        self.0.call();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    fn at(seconds: u64) -> Due {
        static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        Some(*BEGIN + Duration::from_secs(seconds))
    }

    #[test]
    fn who_is_asked_for_goes_first_and_then_who_is_overdue_longest() {
        let turns = Turns::new(1);
        let mut turn = turns.wait(at(1)).now_or_never();
        assert!(turn.is_some());
        let waits = [at(30), at(10), None, at(10), at(20)].map(|due| Box::pin(turns.wait(due)));
        let mut waits: Vec<_> = waits.into_iter().enumerate().collect();
        assert!(waits.iter_mut().all(|(_, wait)| wait.now_or_never().is_none()));
        let mut called = Vec::new();
        while !waits.is_empty() {
            drop(turn.take());
            waits.retain_mut(|(number, wait)| {
                let Some(new) = wait.now_or_never() else { return true };
                assert!(turn.replace(new).is_none(), "there is one place");
                called.push(*number);
                false
            });
        }
        assert_eq!(called, [2, 1, 3, 4, 0]);
    }

    #[test]
    fn who_leaves_the_line_holds_nobody_up() {
        let turns = Turns::new(1);
        let turn = turns.wait(at(1)).now_or_never().unwrap();
        let mut leaves = Box::pin(turns.wait(at(1)));
        let mut leaves_when_called = Box::pin(turns.wait(at(2)));
        let mut stays = Box::pin(turns.wait(at(3)));
        for wait in [&mut leaves, &mut leaves_when_called, &mut stays] {
            assert!(wait.now_or_never().is_none());
        }
        drop(leaves);
        drop(turn);
        drop(leaves_when_called);
        assert!(stays.now_or_never().is_some());
        assert_eq!(turns.line().taken, 0);
    }

    #[test]
    fn places_can_be_added_and_taken_away() {
        let turns = Turns::new(1);
        let one = turns.wait(at(1)).now_or_never().unwrap();
        let mut second = Box::pin(turns.wait(at(2)));
        assert!((&mut second).now_or_never().is_none());
        turns.set_places(2);
        let two = second.now_or_never().expect("there is a place now");
        turns.set_places(1);
        drop(one);
        let mut third = Box::pin(turns.wait(at(3)));
        assert!((&mut third).now_or_never().is_none());
        drop(two);
        assert!(third.now_or_never().is_some());
    }
}
