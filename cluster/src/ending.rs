//! The end of a process that must not go on.

use std::sync::OnceLock;

static BEFORE: OnceLock<fn()> = OnceLock::new();

/// Has `last` called before [`abort`] ends the process: what was logged may still be on its way, and the reason with it. The first call
/// holds. `last` must come back soon, and must not panic.
pub fn before_abort(last: fn()) {
    // A second one would be the same.
    let _ = BEFORE.set(last);
}

/// Ends the process at once, without what would be done at an end in good order.
pub fn abort() -> ! {
    if let Some(last) = BEFORE.get() {
        last();
    }
    std::process::abort()
}
