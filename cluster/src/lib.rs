//! The replicated log, its storage, and the driver of the state machines upon it.
