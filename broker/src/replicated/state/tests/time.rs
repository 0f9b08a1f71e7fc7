//! Time.

use super::*;

/// P10: one whose time has come is not resumed, though its timer has not run yet.
#[test]
fn a_session_is_over_when_its_time_has_come_not_when_its_timer_runs() {
    let mut script = Script::new();
    let epoch = script.connect(true, 10).epoch;
    script.disconnect(epoch, false);
    script.state.clock_ms += 10_000 + CLOCK_LAG_MS_MAX;
    assert!(!script.connect(false, 10).session_present);
}

/// What a new leader does, and what a checkpoint writes, is the same whatever the keys of a replica's tables are.
#[test]
fn the_same_history_has_its_effects_and_writes_in_the_same_order() {
    let replica = || {
        let mut script = Script::new();
        for number in 0..20 {
            let (client_id, epoch) = (format!("c{number}"), number + 1);
            let connect = Connect { session_expiry_seconds: 100, ..claim(owner(1, number), &client_id) };
            script.apply(Command::Connect(connect));
            let filter =
                |filter: String| SubscribeFilter { filter, qos: 1, retain_handling: 2, ..SubscribeFilter::default() };
            let filters = vec![filter("t".to_owned()), filter(format!("$share/g{number}/t"))];
            script.apply(Command::Subscribe(Subscribe {
                client_id,
                epoch,
                packet_id: 1,
                filters,
                ..Subscribe::default()
            }));
        }
        script.publish("one");
        let mut effects = Vec::new();
        script.state.lead(&mut effects);
        (effects, script.state.take_dirty())
    };
    let (effects, writes) = replica();
    let sessions = effects.iter().filter(|effect| matches!(effect, Effect::Session { .. })).count();
    let shares = effects.iter().filter(|effect| matches!(effect, Effect::ShareOnline { .. })).count();
    assert_eq!((sessions, shares), (20, 20));
    assert!(writes.len() > 40, "sessions and what waits in them: {}", writes.len());
    assert_eq!((effects, writes), replica());
}
