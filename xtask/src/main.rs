//! Checks and generators that the project runs on itself.
fn main() {}
