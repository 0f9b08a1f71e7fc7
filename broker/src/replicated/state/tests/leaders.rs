//! A change of leader.

use super::*;
use crate::connection_key::{ALL_PLACES, ConnectionKey};
use crate::peers::wire::{PendingClaim, Resync, ServedSession};

fn has(sent: &[u16]) -> Has {
    Has { sent: sent.iter().filter_map(|&id| PacketId::new(id)).collect(), ..Has::default() }
}

/// [MQTT-4.4.0-1]: a living connection gets what it has not, and nothing that it has.
#[test]
fn a_new_leader_sends_only_what_the_owner_has_not() {
    let mut script = Script::new();
    let opened = script.connect(true, 100);
    let (owner, epoch) = (opened.owner, opened.epoch);
    script.subscribe(epoch, "t", false);
    for payload in ["one", "two"] {
        let mut message = script.message(payload);
        message.message.as_mut().expect("a message").qos = 2;
        script.lane_batch(vec![message]);
    }
    let mut effects = Vec::new();
    script.state.resync("c", owner, epoch, &has(&[1]), &mut effects);
    assert_eq!(deliveries(&effects), [sent(2, false, "two")]);
    let under_way = |id| {
        let (packet_id, message) = (PacketId::new(id).expect("not zero"), record(1, "one").into_message(0));
        Effect::HasBeenSent { owner, packet_id, weight_bytes: message.weight_bytes() }
    };
    assert_eq!(effects[0], under_way(1), "it is sent no more than there is room for beside this");
    script.acknowledge(epoch, 5, 1);
    effects.clear();
    script.state.resync("c", owner, epoch, &has(&[1, 2]), &mut effects);
    let pubrel = |id| {
        let (kind, reason) = (AckKind::PubRel, ReasonCode::Success);
        Effect::Acknowledge { owner, epoch, kind, packet_id: PacketId::new(id).expect("not zero"), reason }
    };
    assert_eq!(effects, [pubrel(1), under_way(2)], "PUBREC was committed, PUBREL was not sent");
    effects.clear();
    let released = Has { released: has(&[1]).sent, ..has(&[1, 2]) };
    script.state.resync("c", owner, epoch, &released, &mut effects);
    assert_eq!(effects, [under_way(2)], "it has everything");
    script.disconnect(epoch, false);
    let opened = script.connect(false, 100);
    script.state.resync("c", opened.owner, opened.epoch, &has(&[]), &mut effects);
    assert_eq!(deliveries(&effects), [sent(2, true, "two")], "perhaps the second time: DUP");
}

/// P4: leadership is handed over without any fault, and what a leader could not send before it was told what its owners have
/// goes out for the first time, also to a client that resumed its session (found by simulation).
#[test]
fn a_new_leader_marks_only_what_was_in_flight_before_the_connection() {
    let mut script = Script::new();
    let epoch = script.connect(true, 100).epoch;
    script.subscribe(epoch, "t", false);
    script.publish("one");
    script.disconnect(epoch, false);
    let opened = script.connect(false, 100);
    script.publish("two");
    script.restart();
    let resync = |script: &Script| {
        let mut effects = Vec::new();
        script.state.resync("c", opened.owner, opened.epoch, &has(&[]), &mut effects);
        deliveries(&effects)
    };
    assert_eq!(resync(&script), [sent(1, true, "one"), sent(2, false, "two")]);
    script.acknowledge(opened.epoch, 4, 1);
    assert_eq!(resync(&script), [sent(2, false, "two")]);
}

/// P12: a connection that is gone and was never told that its claim was granted says nothing of it in a resync. Nobody else would
/// ask it to let go, and whoever comes next would wait for it for ever (found by simulation).
#[test]
fn who_does_not_know_that_it_owns_a_session_is_asked_to_let_go() {
    let mut script = Script::new();
    let opened = script.connect(false, 60);
    let owner = opened.owner;
    let close = |script: &Script, process, unknown: bool| {
        let mut effects = Vec::new();
        script.state.close_unknown(process, |_| unknown, &mut effects);
        effects
    };
    let here = (owner.node, owner.incarnation);
    assert_eq!(close(&script, here, false), [], "it is served");
    assert_eq!(close(&script, (owner.node, owner.incarnation + 1), true), [], "that of another process");
    let effects = close(&script, here, true);
    assert!(matches!(&effects[..], [Effect::Close { epoch, .. }] if *epoch == opened.epoch), "{effects:?}");
}

/// P7, [MQTT-4.4.0-1]: a resync may come in parts that overlap with those before them. Who was said in one of those may have been sent
/// something since, and who is in none yet says nothing by not being in this one; nor do the clients of another arbiter.
#[test]
fn a_part_of_a_resync_is_about_its_own_places_and_no_others() {
    let mut script = Script::new();
    let at = |arbiter, place| ConnectionKey::new(arbiter, place, 1).raw();
    let by = |connection| Owner { incarnation: 1, connection, node: 2 };
    let served = [at(0, 3), at(0, 12), at(0, 25)];
    let unknown = [at(0, 4), at(0, 13), at(0, 26), at(1, 13)];
    let claiming = [at(0, 5), at(0, 14), at(0, 27)];
    for connection in served.into_iter().chain(unknown).chain(claiming) {
        script.apply(Command::Connect(claim(by(connection), &connection.to_string())));
    }
    let epoch = |connection: u64| script.state.sessions[&*connection.to_string()].epoch;
    let resync = Resync {
        incarnation: 1,
        arbiter: 0,
        // As if they had been taken over and not told.
        sessions: Vec::from(served.map(|connection| ServedSession {
            client_id: connection.to_string(),
            epoch: epoch(connection) + 100,
            connection,
            ..ServedSession::default()
        })),
        claims: Vec::from(claiming.map(|connection| PendingClaim { client_id: connection.to_string(), connection })),
        ..Resync::default()
    };
    let answered = |places: std::ops::Range<u32>| {
        let mut effects = Vec::new();
        assert_eq!(script.state.answer_resync(2, &resync, &places, &mut effects), []);
        let answered = |effect: &Effect| match effect {
            Effect::Close { owner, epoch: of, .. } if *of == epoch(owner.connection) + 100 => {
                (owner.connection, "told")
            }
            Effect::Close { owner, .. } => (owner.connection, "unknown"),
            Effect::Opened(opened) => (opened.owner.connection, "granted"),
            other => panic!("{other:?}"),
        };
        effects.iter().map(answered).collect::<Vec<_>>()
    };
    let second = [(at(0, 12), "told"), (at(0, 14), "granted"), (at(0, 13), "unknown")];
    assert_eq!(answered(10..20), second, "neither what was said before nor what follows");
    assert_eq!(answered(ALL_PLACES).len(), served.len() + claiming.len() + unknown.len() - 1);
}

/// P7: who was taken over, or taken for dead, and never heard of it, is told when it says that it serves the session.
#[test]
fn an_owner_of_another_time_is_told_to_close() {
    let mut script = Script::new();
    let old = script.connect(true, 100);
    let new = script.connect(false, 100);
    let close =
        |opened: &OpenedSession| Effect::Close { owner: opened.owner, client_id: Arc::from("c"), epoch: opened.epoch };
    let mut effects = Vec::new();
    script.state.resync("c", old.owner, old.epoch, &has(&[]), &mut effects);
    assert_eq!(effects, [close(&old)]);
    effects.clear();
    script.state.resync("c", new.owner, new.epoch, &has(&[]), &mut effects);
    assert_eq!(effects, []);
}

/// A claim whose answer was lost with a leader is answered by the next one, with all that follows from it.
#[test]
fn a_claim_without_an_answer_is_answered_again() {
    let mut script = Script::new();
    let first = script.connect(true, 100);
    script.subscribe(first.epoch, "t", false);
    script.publish("one");
    let mut effects = Vec::new();
    assert_eq!(script.state.claim_again("c", first.owner, &mut effects), None);
    assert!(
        matches!(&effects[0], Effect::Opened(opened) if opened.epoch == first.epoch && opened.subscriptions.len() == 1)
    );
    assert_eq!(deliveries(&effects), [sent(1, false, "one")]);
    let next = Owner { connection: 99, ..first.owner };
    let waiting = Connect { owner: Some(next), wait_for_release: true, ..claim(next, "c") };
    script.apply(Command::Connect(waiting));
    effects.clear();
    assert_eq!(script.state.claim_again("c", next, &mut effects), None);
    let close = Effect::Close { owner: first.owner, client_id: Arc::from("c"), epoch: first.epoch };
    assert_eq!(effects, [close], "it is the present owner's turn");
    effects.clear();
    assert_eq!(script.state.claim_again("nobody", next, &mut effects), None);
    let refused = Effect::Refused { owner: next, reason: ReasonCode::ServerUnavailable };
    assert_eq!(effects, [refused], "its claim was refused, and the word is lost");
    effects.clear();
    // The one that it waits for was never told that it had been granted, and lets go without having been served.
    let released = script.state.claim_again("c", first.owner, &mut effects).expect("it lets go");
    assert_eq!(effects, [Effect::Refused { owner: first.owner, reason: ReasonCode::SessionTakenOver }]);
    assert_eq!((released.epoch, released.never_began), (first.epoch, true));
    let effects = script.apply(Command::Released(released));
    assert!(matches!(effects.last(), Some(Effect::Opened(opened)) if opened.owner == next), "{effects:?}");
}

/// P6: a page that was on its way when another connection claimed the session went by a window that nothing goes into any more: with a small
/// queue it would be dropped, and the read be over. It is the next one's to read.
#[test]
fn a_page_that_comes_behind_a_claim_is_read_again() {
    let config = GroupConfig { queue_messages_max: 1, ..config() };
    let mut script = Script { state: GroupState::new(config), ..Script::new() };
    script.apply(Command::Level(command::Level { level: 3 }));
    let first = script.connect(true, 100);
    let read = script.subscribe(first.epoch, "#", true).expect("a read");
    let page = |read| {
        let (client_id, filter) = ("c".to_owned(), "#".to_owned());
        let messages = (1..=2).map(|number| record(number, &number.to_string())).collect();
        Command::RetainedPage(RetainedPage { client_id, filter, read, messages, last: true, ..RetainedPage::default() })
    };
    let next = Owner { connection: 99, ..first.owner };
    script.apply(Command::Connect(Connect { window_max: 2, ..claim(next, "c") }));
    assert_eq!(script.apply(page(read)), []);
    script.restart();
    let effects = script.apply(released(first.epoch, false));
    let opened = effects.iter().find_map(|effect| match effect {
        Effect::Opened(opened) => Some(opened),
        _ => None,
    });
    let again = opened.expect("it is its turn").subscriptions[0].read.expect("a read");
    let effects = script.apply(page(again));
    assert_eq!(deliveries(&effects).len(), 2);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Dropped { .. })));
}

/// A QoS 2 message that was applied is answered, whoever leads.
#[test]
fn what_a_client_waits_for_is_answered_by_a_new_leader() {
    let mut script = Script::new();
    let opened = script.connect(true, 100);
    let (owner, epoch) = (opened.owner, opened.epoch);
    let (client_id, message) = ("c".to_owned(), Some(record(1, "x")));
    script.apply(Command::Receive(Receive { client_id, epoch, packet_id: 7, message, delay_ms: None }));
    let id = |id| PacketId::new(id).expect("not zero");
    let answer = |kind, packet_id, reason| Effect::Acknowledge { owner, epoch, kind, packet_id, reason };
    let waits = Has { receiving: vec![id(7), id(8)], completing: vec![id(7), id(9)], ..Has::default() };
    let mut effects = Vec::new();
    script.state.resync("c", owner, epoch, &waits, &mut effects);
    let expected = [
        answer(AckKind::PubRec, id(7), ReasonCode::Success),
        answer(AckKind::PubRec, id(8), ReasonCode::QuotaExceeded),
        answer(AckKind::PubComp, id(9), ReasonCode::Success),
    ];
    assert_eq!(effects, expected, "7 was not released yet");
}
