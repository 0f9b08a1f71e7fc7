//! An inbox as one thread sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Wake, Waker};

use super::inbox::Inbox;

struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn only_a_resting_arbiter_is_woken_and_only_once() {
    let inbox = Inbox::new(10);
    let count = Arc::new(Count(AtomicU32::new(0)));
    let waker = Waker::from(Arc::clone(&count));
    inbox.push(1, 4);
    assert_eq!(count.0.load(Ordering::SeqCst), 0, "nobody rests");
    assert!(!inbox.arm(&waker), "something is there already");
    assert_eq!(inbox.pop(), Some(1));
    inbox.release(4);
    assert!(inbox.arm(&waker));
    inbox.push(2, 4);
    inbox.push(3, 4);
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    assert!(!inbox.is_overloaded());
    inbox.push(4, 4);
    assert!(inbox.is_overloaded());
}
