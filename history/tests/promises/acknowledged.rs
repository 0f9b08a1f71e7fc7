//! What is acknowledged arrives, and nothing else does (P1, P2).

use kentongan_history::{Action, Connect, Promise, Publish, SECOND, Settings, What, check};

use super::script::{EVER, TOPIC, pair};

#[test]
fn p1_acknowledged_messages_arrive_or_are_counted_as_dropped() {
    let mut kept = pair(1);
    kept.publish("pub", 1, 1);
    kept.deliver("sub", 1, 1);
    kept.mark(What::Quiesced);
    kept.keeps_all();

    let mut counted = pair(1);
    counted.publish("pub", 1, 1);
    counted.mark(What::Dropped { reason: "queue_full", count: 1, client: None });
    counted.mark(What::Quiesced);
    counted.keeps_all();

    let mut lost = pair(1);
    lost.publish("pub", 1, 1);
    lost.mark(What::Quiesced);
    lost.breaks(Promise::P1);

    let mut lost_beside_a_counted_one = pair(1);
    lost_beside_a_counted_one.publish("pub", 1, 1);
    lost_beside_a_counted_one.publish("pub", 2, 1);
    lost_beside_a_counted_one.mark(What::Dropped { reason: "queue_full", count: 1, client: None });
    lost_beside_a_counted_one.mark(What::Quiesced);
    assert_eq!(lost_beside_a_counted_one.broken(), [Promise::P1, Promise::P1], "either of them");
}

/// F7: where wall time bridged a stop, expiry errs by as much as that was set wrong.
#[test]
fn p1_a_message_is_not_owed_when_it_has_expired_by_a_clock_that_was_set() {
    let missing = |clocks_set_max: u64| {
        let mut script = pair(1);
        script.publish_expiring("pub", 1, 4);
        script.wait(2);
        script.publish("pub", 2, 1);
        script.deliver("sub", 2, 1);
        check(&script.history, &Settings { clocks_set_max, ..Settings::default() }).len()
    };
    assert_eq!(missing(3 * SECOND), 0);
    assert_eq!(missing(SECOND), 1);
}

/// F7: a clock that runs fast ends an expiry early by as much, and no earlier (found by simulation, seed 22851).
#[test]
fn p1_a_message_is_not_owed_when_it_has_expired_by_a_clock_that_runs_fast() {
    let missing = |clocks_fast_permille_max: u64, waited: u64| {
        let mut script = pair(1);
        script.publish_expiring("pub", 1, 50);
        script.wait(waited);
        script.publish("pub", 2, 1);
        script.deliver("sub", 2, 1);
        check(&script.history, &Settings { clocks_fast_permille_max, ..Settings::default() }).len()
    };
    assert_eq!(missing(40, 48), 0);
    assert_eq!(missing(40, 47), 1);
    assert_eq!(missing(0, 48), 1);
}

/// The refusal of one PUBLISH says nothing of another of the same message.
#[test]
fn p2_a_message_that_is_tried_again_after_a_refusal_may_come() {
    let mut script = pair(2);
    let sent = script.send("pub", 1, 2);
    script.acknowledge("pub", sent.packet_id, 2, 0x97);
    script.line("pub", Action::PublishSent(Publish { dup: true, ..sent }));
    script.deliver("sub", 1, 2);
    script.keeps_all();
}

#[test]
fn p1_what_was_not_acknowledged_may_arrive_or_not() {
    let mut missing = pair(1);
    missing.send("pub", 1, 1);
    missing.mark(What::Quiesced);
    missing.keeps_all();

    let mut there = pair(1);
    there.send("pub", 1, 1);
    there.deliver("sub", 1, 1);
    there.mark(What::Quiesced);
    there.keeps_all();
}

#[test]
fn p1_a_message_that_a_later_one_overtook_is_lost() {
    let mut lost = pair(1);
    lost.publish("pub", 1, 1);
    lost.publish("pub", 2, 1);
    lost.deliver("sub", 2, 1);
    lost.close("sub");
    lost.breaks(Promise::P1);
}

#[test]
fn p1_a_subscription_in_doubt_owes_nothing() {
    // A CONNECT with Clean Start got no answer: the session may be a new one.
    let mut doubt = pair(1);
    doubt.close("sub");
    doubt.connections.insert("sub", 2);
    let clean = Connect { clean_start: true, session_expiry: EVER, will: None };
    doubt.line("sub", Action::ConnectSent(Box::new(clean)));
    doubt.close("sub");
    doubt.resume("sub", EVER);
    doubt.publish("pub", 1, 1);
    doubt.mark(What::Quiesced);
    doubt.keeps_all();
}

#[test]
fn p2_only_what_was_published_is_delivered() {
    let mut ghost = pair(1);
    ghost.deliver("sub", 1, 1);
    ghost.breaks(Promise::P2);

    let mut refused = pair(1);
    let sent = refused.send("pub", 1, 1);
    refused.acknowledge("pub", sent.packet_id, 1, 0x97);
    refused.keeps_all();
    refused.deliver("sub", 1, 1);
    refused.breaks(Promise::P2);
}

#[test]
fn p2_nothing_published_after_unsuback_arrives() {
    let mut before = pair(1);
    before.publish("pub", 1, 1);
    before.unsubscribe("sub", TOPIC);
    before.deliver("sub", 1, 1);
    before.keeps_all();

    let mut after = pair(1);
    after.unsubscribe("sub", TOPIC);
    after.publish("pub", 1, 1);
    after.deliver("sub", 1, 1);
    after.breaks(Promise::P2);
}

#[test]
fn p2_overlapping_subscriptions_give_one_copy_at_the_highest_qos() {
    let mut highest = pair(0);
    highest.subscribe("sub", "plant/#", 2);
    highest.publish("pub", 1, 2);
    highest.deliver("sub", 1, 2);
    highest.keeps_all();

    let mut lower = pair(0);
    lower.subscribe("sub", "plant/#", 2);
    lower.publish("pub", 1, 2);
    lower.deliver("sub", 1, 0);
    lower.breaks(Promise::P2);
}
