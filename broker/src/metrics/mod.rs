//! Counters of the hot path and their export.
