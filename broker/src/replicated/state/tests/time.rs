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

/// Devices that went away together expire together, on the thread that keeps the lease.
#[test]
fn sessions_that_expire_together_end_a_few_in_each_tick() {
    const SESSIONS: u64 = 5;
    const MESSAGES: usize = 5_000;
    let config = GroupConfig { queue_messages_max: MESSAGES, queue_bytes_max: 100_000_000, ..config() };
    let mut script = Script { state: GroupState::new(config), ..Script::new() };
    let apply = |script: &mut Script, command| script.state.apply(command, &mut Vec::new());
    for number in 0..SESSIONS {
        let (client_id, epoch) = (format!("c{number}"), number + 1);
        apply(&mut script, Command::Connect(claim(owner(1, number), &client_id)));
        let filter =
            SubscribeFilter { filter: "t".to_owned(), qos: 1, retain_handling: 2, ..SubscribeFilter::default() };
        let subscribe = Subscribe {
            client_id: client_id.clone(),
            epoch,
            packet_id: 1,
            filters: vec![filter],
            ..Subscribe::default()
        };
        apply(&mut script, Command::Subscribe(subscribe));
        apply(&mut script, Command::Disconnect(Disconnect { client_id, epoch, ..Disconnect::default() }));
    }
    let messages = (0..MESSAGES).map(|_| script.message("x")).collect();
    let batch = LaneBatch { lane: 1 << 12, incarnation: 1, messages, ..LaneBatch::default() };
    apply(&mut script, Command::Lane(batch));
    let queued =
        |script: &Script| script.state.sessions.values().map(|session| session.outbound.queue_len()).sum::<usize>();
    assert_eq!(queued(&script), SESSIONS as usize * MESSAGES);

    let effects = script.tick(100_000 + CLOCK_LAG_MS_MAX);
    let ended = effects.iter().filter(|effect| **effect == Effect::SessionExpired).count();
    assert_eq!((ended, queued(&script)), (4, MESSAGES), "as much as one entry may cost");
    script.tick(1);
    assert_eq!(script.state.sessions.len(), 0, "the rest is not forgotten");
}
