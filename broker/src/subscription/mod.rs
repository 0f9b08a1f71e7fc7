//! Who subscribed to what.
