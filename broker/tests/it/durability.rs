//! What was acknowledged survives `kill -9`, under load, again and again.

mod history;
