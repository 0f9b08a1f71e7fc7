//! Connections, sessions, expiry and recovery (P7, P8, P10, P12).

use kentongan_history::{Action, Answer, Connect, MessageId, Promise, Publish, What};

use super::script::{EVER, Script, TOPIC, pair};

#[test]
fn p7_nothing_of_the_old_connection_takes_effect_after_the_new_connack() {
    let mut script = pair(1);
    script.connect("pub", 0);
    let late = Publish {
        packet_id: 500,
        dup: false,
        qos: 1,
        retain: false,
        topic: TOPIC,
        expiry: None,
        message: MessageId(1),
        empty: false,
    };
    script.line_on("pub", 1, Action::PublishSent(late));
    script.keeps_all();
    script.line_on("pub", 1, Action::PubAckReceived(Answer { packet_id: 500, reason: 0 }));
    script.breaks(Promise::P7);
}

#[test]
fn p8_session_present_is_1_exactly_when_the_session_lives() {
    let comes_back = |clean_start: bool, session_present: bool| {
        let mut script = pair(1);
        script.close("sub");
        let connect = Connect { clean_start, session_expiry: EVER, will: None };
        script.connect_with("sub", connect, session_present);
        script
    };
    comes_back(false, true).keeps_all();
    comes_back(true, false).keeps_all();
    comes_back(false, false).breaks(Promise::P8);
    comes_back(true, true).breaks(Promise::P8);

    let mut never_seen = Script::default();
    never_seen.resume("sub", EVER);
    never_seen.breaks(Promise::P8);
}

#[test]
fn p10_sessions_live_as_long_as_their_expiry() {
    let comes_back = |after: u64, session_present: bool| {
        let mut script = Script::default();
        script.connect("sub", 20);
        script.close("sub");
        script.wait(after);
        let connect = Connect { clean_start: false, session_expiry: 20, will: None };
        script.connect_with("sub", connect, session_present);
        script
    };
    comes_back(10, true).keeps_all();
    comes_back(22, true).keeps_all();
    comes_back(22, false).keeps_all();
    comes_back(10, false).breaks(Promise::P10);
    comes_back(60, true).breaks(Promise::P10);
}

#[test]
fn p10_messages_come_until_their_expiry() {
    let mut in_time = pair(1);
    in_time.publish_expiring("pub", 1, 10);
    in_time.wait(9);
    in_time.deliver("sub", 1, 1);
    in_time.keeps_all();

    let mut expired = pair(1);
    expired.publish_expiring("pub", 1, 10);
    expired.wait(11);
    expired.mark(What::Quiesced);
    expired.keeps_all();

    let mut late = pair(1);
    late.publish_expiring("pub", 1, 10);
    late.wait(20);
    late.deliver("sub", 1, 1);
    late.breaks(Promise::P10);

    let mut early = pair(1);
    early.publish_expiring("pub", 1, 10);
    early.wait(5);
    early.mark(What::Quiesced);
    early.breaks(Promise::P1);
}

#[test]
fn p12_clients_are_served_soon_after_a_heal() {
    let healed = |wait: u64| {
        let mut script = Script::default();
        script.mark(What::FaultBegan { fault: 1, kind: "partition" });
        script.wait(10);
        script.mark(What::FaultHealed { fault: 1 });
        script.wait(wait);
        script.connections.insert("late", 1);
        let connect = Connect { clean_start: true, session_expiry: 0, will: None };
        script.line("late", Action::ConnectSent(Box::new(connect)));
        script.line("late", Action::ConnAck { reason: 0x88, session_present: false, session_expiry: None });
        script.wait(20);
        script.mark(What::Quiesced);
        script
    };
    healed(5).keeps_all();
    healed(15).breaks(Promise::P12);
}

#[test]
fn p12_the_registry_is_in_order_after_a_heal() {
    let registry = |owners: &[&'static str], routes: &[&'static str], leaderless: &[u16]| {
        let mut script = pair(1);
        script.mark(What::FaultBegan { fault: 1, kind: "partition" });
        script.mark(What::FaultHealed { fault: 1 });
        script.wait(15);
        script.mark(What::Registry {
            owners: owners.to_vec(),
            routes: routes.to_vec(),
            leaderless: leaderless.to_vec(),
        });
        script
    };
    registry(&["sub", "pub"], &[TOPIC], &[]).keeps_all();
    registry(&["sub", "pub", "sub"], &[TOPIC], &[]).breaks(Promise::P12);
    registry(&["sub", "pub"], &["nobody/wants"], &[]).breaks(Promise::P12);
    registry(&["sub", "pub"], &[TOPIC], &[3]).breaks(Promise::P12);
    registry(&["pub"], &[TOPIC], &[]).breaks(Promise::P12);
    registry(&["sub", "pub", "nobody"], &[TOPIC], &[]).breaks(Promise::P12);
}
