//! The checker accepts what a correct cluster shows, however odd it looks.

use kentongan_history::{check, model};

/// No history of the model breaks a promise.
#[test]
fn histories_of_a_correct_cluster_are_accepted() {
    let mut events = 0;
    for seed in 0..1_000 {
        let recording = model::record(seed, 300 + (seed as usize % 5) * 200);
        events += recording.history.events().len();
        let violations = check(&recording.history, &model::settings());
        assert!(violations.is_empty(), "seed {seed}: {} violations, first {}", violations.len(), violations[0]);
    }
    assert!(events > 500_000, "{events} events");
}
