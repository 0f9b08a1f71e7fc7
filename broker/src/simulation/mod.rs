//! Whole nodes in one thread, with their disks, clocks and clients, on simulated time and from a seed.

pub mod workload;
