//! Records histories of the model, checks them, and says how fast.
//!
//!     cargo run --release -p kentongan-history --example seeds -- FIRST COUNT EVENTS [--print]

use std::time::{Duration, Instant};

use kentongan_history::{check, model};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, otherwise: u64| {
        arguments.get(index).and_then(|argument| argument.parse().ok()).unwrap_or(otherwise)
    };
    let (first, count, size) = (number(0, 0), number(1, 100), number(2, 10_000));
    let print = arguments.iter().any(|argument| argument == "--print");
    let (mut events, mut violations, mut checking) = (0, 0, Duration::ZERO);
    for seed in first..first + count {
        let recording = model::record(seed, size as usize);
        if print {
            for index in 0..recording.history.events().len() {
                println!("{index:>6} {}", recording.history.describe(index));
            }
        }
        let started = Instant::now();
        let found = check(&recording.history, &model::settings());
        checking += started.elapsed();
        events += recording.history.events().len();
        violations += found.len();
        for violation in &found {
            println!("seed {seed}: {violation}");
        }
    }
    let rate = events as f64 / checking.as_secs_f64();
    println!("{count} histories, {events} events, {violations} violations, checked at {rate:.0} events/s");
}
