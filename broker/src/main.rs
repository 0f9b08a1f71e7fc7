//! The broker, from its command line.

fn main() {}
