//! Every interleaving of a SUBSCRIBE with a match, by loom: [`super::shard`]'s own source over loom's types.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

mod sync {
    pub use std::sync::PoisonError;

    pub use loom::sync::RwLock;
    pub use loom::sync::atomic::{AtomicU64, Ordering};
}

#[expect(dead_code, reason = "the model asks for no figures")]
#[allow(clippy::duplicate_mod, reason = "the same source over other types is what is to be tried")]
#[path = "shard.rs"]
mod shard;

use shard::{Change, Shard};

type Targets = Vec<u16>;

fn subscribe(shard: &Shard<Targets>, target: u16) {
    shard.write(|targets| {
        targets.push(target);
        ((), Change::Changed { occupied: true })
    });
}

fn unsubscribe(shard: &Shard<Targets>, target: u16) {
    shard.write(|targets| {
        targets.retain(|&known| known != target);
        ((), Change::Changed { occupied: !targets.is_empty() })
    });
}

/// What a cache keeps: a match, and the generation it was stamped with.
fn matched(shard: &Shard<Targets>) -> (u64, Targets) {
    let mut found = Vec::new();
    let generation = shard.read(|targets| found.clone_from(targets));
    (generation, found)
}

/// P1: a publisher that heard of a SUBACK never takes a cached match for current that lacks the subscription.
#[test]
fn no_match_without_a_subscription_is_current_after_its_suback() {
    for already_occupied in [false, true] {
        loom::model(move || {
            let shard = Arc::new(Shard::new(Targets::new()));
            if already_occupied {
                subscribe(&shard, 1);
            }
            let suback = Arc::new(AtomicBool::new(false));
            let subscriber = {
                let (shard, suback) = (Arc::clone(&shard), Arc::clone(&suback));
                thread::spawn(move || {
                    subscribe(&shard, 7);
                    suback.store(true, Ordering::Release);
                })
            };
            let (generation, mut targets) = matched(&shard);
            let heard = suback.load(Ordering::Acquire);
            if shard.generation() != generation {
                targets = matched(&shard).1;
            }
            assert!(!heard || targets.contains(&7), "a stale match passed for current");
            let joined = subscriber.join();
            assert!(joined.is_ok(), "the subscriber panicked");
            assert!(matched(&shard).1.contains(&7), "lost");
        });
    }
}

/// P2: nothing that is published after an UNSUBACK goes by a cached match from before.
#[test]
fn no_match_with_a_subscription_is_current_after_its_unsuback() {
    loom::model(|| {
        let shard = Arc::new(Shard::new(Targets::new()));
        subscribe(&shard, 7);
        let unsuback = Arc::new(AtomicBool::new(false));
        let subscriber = {
            let (shard, unsuback) = (Arc::clone(&shard), Arc::clone(&unsuback));
            thread::spawn(move || {
                unsubscribe(&shard, 7);
                unsuback.store(true, Ordering::Release);
            })
        };
        let (generation, mut targets) = matched(&shard);
        let heard = unsuback.load(Ordering::Acquire);
        if shard.generation() != generation {
            targets = matched(&shard).1;
        }
        assert!(!heard || !targets.contains(&7), "a stale match passed for current");
        let joined = subscriber.join();
        assert!(joined.is_ok(), "the subscriber panicked");
    });
}

/// Two that subscribe at once outdate what was matched before, between and after: no generation comes twice.
#[test]
fn concurrent_changes_each_raise_the_generation() {
    loom::model(|| {
        let shard = Arc::new(Shard::new(Targets::new()));
        let writers: Vec<_> = [1, 2]
            .map(|target| {
                let shard = Arc::clone(&shard);
                thread::spawn(move || subscribe(&shard, target))
            })
            .into();
        let (generation, targets) = matched(&shard);
        for writer in writers {
            assert!(writer.join().is_ok(), "a writer panicked");
        }
        let now = matched(&shard);
        assert_eq!(now.1.len(), 2);
        assert!(now.0 != generation || now.1 == targets, "a change left the generation as it was");
    });
}
