//! Wills (P9).

use kentongan_history::{Action, ClosedBy, Connect, MessageId, Promise, Settings, What, Will, check};

use super::script::{EVER, Script, TOPIC, pair};

/// A will that two subscriptions of a session match is owed to it once, and so one drop excuses it.
#[test]
fn p9_a_will_that_is_missing_is_missed_once_a_session() {
    let missing = |drops: u64| {
        let mut script = Script::default();
        script.connect("sub", EVER);
        script.subscribe("sub", TOPIC, 1);
        script.subscribe("sub", "plant/#", 1);
        script.connect_with_will("pub", 1, 0);
        script.wait(2);
        script.close("pub");
        script.wait(30);
        if drops > 0 {
            script.mark(What::Dropped { reason: "queue_full", count: drops, client: Some("sub") });
        }
        script.mark(What::Quiesced);
        script
    };
    missing(0).breaks(Promise::P9);
    missing(1).keeps_all();
}

#[test]
fn p9_a_will_is_published_once_per_abnormal_end() {
    let ended = || {
        let mut script = pair(1);
        script.connect_with_will("ill", 9, 0);
        script.wait(2);
        script.close("ill");
        script
    };
    let mut once = ended();
    once.wait(1);
    once.deliver("sub", 9, 1);
    once.wait(30);
    once.mark(What::Quiesced);
    once.keeps_all();

    let mut twice = ended();
    twice.deliver_as("sub", 9, 1, 7, false, false);
    twice.deliver_as("sub", 9, 1, 8, false, false);
    twice.breaks(Promise::P9);

    let mut never = ended();
    never.wait(30);
    never.mark(What::Quiesced);
    never.breaks(Promise::P9);

    let mut late = ended();
    late.wait(20);
    late.deliver("sub", 9, 1);
    late.breaks(Promise::P9);
}

/// A will that was lost with the only process that knew of it takes no drop from another (found by simulation, seed 280).
#[test]
fn p9_a_will_dies_with_a_node_that_is_alone_if_its_session_was_to_end_anyway() {
    let settings = Settings { transient_wills_die_with_node: true, ..Settings::default() };
    let missing = |session_expiry: u32, crashes_after: u64, settings: &Settings| {
        let mut script = pair(1);
        let will = Will { topic: TOPIC, qos: 1, retain: false, delay: 0, message: MessageId(9) };
        script.connect_with("ill", Connect { clean_start: false, session_expiry, will: Some(will) }, false);
        script.wait(2);
        script.close("ill");
        script.wait(crashes_after);
        script.mark(What::NodeCrashed { node: 1 });
        script.wait(1);
        script.mark(What::NodeRecovered { node: 1 });
        script.wait(60);
        script.mark(What::Quiesced);
        check(&script.history, settings).len()
    };
    assert_eq!(missing(0, 1, &settings), 0);
    assert_eq!(missing(0, 60, &settings), 1, "it was published long before");
    assert_eq!(missing(60, 1, &settings), 1, "its group knew of it");
    assert_eq!(missing(0, 1, &Settings::default()), 1, "in a cluster all do");
}

/// A node that is cut off is dead to the others before its clients know.
#[test]
fn p9_a_will_may_come_while_its_client_still_talks_to_a_node_that_is_cut_off() {
    let with = |cut_off: bool| {
        let mut script = Script::default();
        script.connect("budi", EVER);
        script.subscribe("budi", TOPIC, 1);
        script.connect_with_will("ani", 1, 1);
        if cut_off {
            let kind = "partition";
            script.mark(What::FaultBegan { fault: 1, kind });
        }
        script.wait(8);
        script.deliver("budi", 1, 1);
        script.line("ani", Action::PingResp);
        script.wait(4);
        script.close("ani");
        if cut_off {
            script.mark(What::FaultHealed { fault: 1 });
        }
        script
    };
    with(true).keeps_all();
    with(false).breaks(Promise::P9);
}

#[test]
fn p9_no_will_after_a_normal_disconnect_that_was_acted_on() {
    let mut script = pair(1);
    script.connect_with_will("well", 9, 0);
    script.line("well", Action::DisconnectSent { reason: 0, session_expiry: None });
    script.line("well", Action::ConnectionClosed { by: ClosedBy::Server });
    script.wait(30);
    script.keeps_all();
    script.deliver("sub", 9, 1);
    script.breaks(Promise::P9);
}

/// [MQTT-3.1.2-8]: only who is accepted has a will.
#[test]
fn p9_no_will_of_a_client_that_was_refused() {
    let refused = |reason: u8, dies: bool| {
        let mut script = pair(1);
        let will = Will { topic: TOPIC, qos: 1, retain: false, delay: 0, message: MessageId(9) };
        let connect = Connect { clean_start: false, session_expiry: EVER, will: Some(will) };
        script.connections.insert("ill", 1);
        script.nodes.insert("ill", 2);
        script.line("ill", Action::ConnectSent(Box::new(connect)));
        script.line("ill", Action::ConnAck { reason, session_present: false, session_expiry: None });
        script.line("ill", Action::ConnectionClosed { by: ClosedBy::Server });
        if dies {
            script.mark(What::NodeCrashed { node: 2 });
        }
        script.wait(30);
        script.keeps_all();
        script.deliver("sub", 9, 1);
        script
    };
    refused(0x88, false).breaks(Promise::P9);
    refused(0x9C, true).breaks(Promise::P9);
    refused(0x88, true).keeps_all();
}

#[test]
fn p9_resuming_cancels_a_delayed_will() {
    let mut script = pair(1);
    script.connect_with_will("ill", 9, 10);
    script.close("ill");
    script.wait(3);
    script.resume("ill", EVER);
    script.wait(30);
    script.keeps_all();
    script.deliver("sub", 9, 1);
    script.breaks(Promise::P9);
}

/// Whether it still comes in time to cancel the will, only the server's clock says (found by simulation, seed 568).
#[test]
fn p9_resuming_when_the_delay_has_just_passed_may_cancel_the_will() {
    let resumed_after = |seconds: u64| {
        let mut script = pair(1);
        script.connect_with_will("ill", 9, 10);
        script.wait(2);
        script.line("ill", Action::DisconnectSent { reason: 4, session_expiry: None });
        script.line("ill", Action::ConnectionClosed { by: ClosedBy::Server });
        script.wait(seconds);
        script.resume("ill", EVER);
        script.wait(30);
        script.mark(What::Quiesced);
        script
    };
    resumed_after(10).keeps_all();
    resumed_after(12).breaks(Promise::P9);
}

/// The server ended the connection, and published the will, before the client had read what was under way (found by
/// simulation, seed 482).
#[test]
fn p9_a_will_is_not_owed_to_who_subscribed_while_its_client_was_still_reading() {
    let mut script = Script::default();
    script.connect_with_will("ill", 9, 0);
    script.connect("sub", EVER);
    script.subscribe("sub", TOPIC, 1);
    script.line("ill", Action::PingResp);
    script.line("ill", Action::DisconnectReceived { reason: 0x8d });
    script.line("ill", Action::ConnectionClosed { by: ClosedBy::Server });
    script.wait(30);
    script.mark(What::Quiesced);
    script.keeps_all();
}
