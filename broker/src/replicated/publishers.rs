//! One copy of the Client Identifier of whoever publishes much.
//!
//! Each message names its publisher (No Local). As it comes out of a record it has a copy of its own, which no bound counts:
//! [`Message::weight_bytes`](crate::message::Message::weight_bytes) is the same on replicas of every version. A Client Identifier may have 64 KiB,
//! and thousands of messages of a few bytes each may be kept; so all of one thread's share a long one. Whoever wants another copy must
//! say another CONNECT of that size.

use std::cell::RefCell;
use std::sync::Arc;

use hashbrown::HashSet;

/// Shorter ones cost less than to look for them.
const SHARED_BYTES_MIN: usize = 128;

/// Bytes that may be known of those that no message has any more, beside as many as messages have.
const FORGOTTEN_AT_BYTES_MIN: usize = 1024 * 1024;

/// Those that messages have, and some that none has any more.
#[derive(Debug, Default)]
struct Publishers {
    known: HashSet<Arc<str>, foldhash::fast::RandomState>,
    bytes: usize,
    forget_at_bytes: usize,
}

thread_local! {
    static PUBLISHERS: RefCell<Publishers> = RefCell::default();
}

impl Publishers {
    fn share(&mut self, publisher: String) -> Arc<str> {
        if let Some(known) = self.known.get(publisher.as_str()) {
            return Arc::clone(known);
        }
        if self.bytes >= self.forget_at_bytes {
            self.known.retain(|publisher| Arc::strong_count(publisher) > 1);
            self.bytes = self.known.iter().map(|publisher| publisher.len()).sum();
            self.forget_at_bytes = self.bytes.saturating_mul(2).max(FORGOTTEN_AT_BYTES_MIN);
        }
        self.bytes += publisher.len();
        let publisher = Arc::<str>::from(publisher);
        self.known.insert(Arc::clone(&publisher));
        publisher
    }
}

/// A Client Identifier for a message that is kept.
pub(super) fn shared(publisher: String) -> Arc<str> {
    if publisher.len() < SHARED_BYTES_MIN {
        return Arc::from(publisher);
    }
    PUBLISHERS.with_borrow_mut(|publishers| publishers.share(publisher))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_no_message_has_any_more_are_forgotten() {
        let name = |number: usize| format!("{number:065000}");
        let mut publishers = Publishers::default();
        let kept: Vec<_> = (0..10).map(|number| publishers.share(name(number))).collect();
        for number in 0..1_000 {
            publishers.share(name(number));
            assert!(publishers.bytes <= 2 * FORGOTTEN_AT_BYTES_MIN, "{} bytes", publishers.bytes);
        }
        for (number, kept) in kept.iter().enumerate() {
            assert!(Arc::ptr_eq(kept, &publishers.share(name(number))));
        }
    }
}
