//! Claims in a cluster: the present owner may be on another node.

use super::*;

/// P7: after the new CONNACK nothing of the old connection counts, and the new CONNACK waits for the old one's end.
#[test]
fn a_claim_waits_until_the_owner_before_it_has_let_go() {
    let mut script = Script::new();
    let (old, new) = (owner(1, 7), owner(2, 9));
    assert_eq!(script.apply(Command::Connect(claim(old, "c"))), [session(true), opened(old, 1, false)]);
    assert_eq!(script.apply(Command::Connect(claim(new, "c"))), [close(old, 1)]);
    assert_eq!(script.disconnect(2, true), [], "the new one is not granted yet");
    script.restart();
    let mut lead = Vec::new();
    script.state.lead(&mut lead);
    assert_eq!(lead, [session(true), close(old, 1)], "a new leader asks again");
    assert_eq!(script.apply(released(2, true)), [], "nobody but the old owner can say so");
    assert_eq!(script.apply(released(1, true)), [opened(new, 2, true)]);
    assert_eq!(script.apply(released(1, true)), [], "said again");
}

/// P9: an owner that ended by itself, before it heard of the claim that waits for it, says so with DISCONNECT. That is its last
/// word; what it is told to close after that it no longer knows, and would be taken for an abnormal end.
#[test]
fn a_disconnect_that_crosses_a_claim_lets_go() {
    for (publish_will, expected) in [(false, 0), (true, 1)] {
        let mut script = Script::new();
        let (old, new) = (owner(1, 7), owner(2, 9));
        script.apply(Command::Connect(Connect { will: will(0), ..claim(old, "c") }));
        assert_eq!(script.apply(Command::Connect(claim(new, "c"))), [close(old, 1)]);
        let effects = script.disconnect(1, publish_will);
        assert_eq!(routes(&effects), expected, "abnormal: {publish_will}");
        assert_eq!(effects.last(), Some(&opened(new, 2, true)));
        assert_eq!(script.apply(released(1, true)), [], "the answer to being told to close");
        assert_eq!(script.disconnect(1, true), [], "said again");
    }
}

/// Of several that wait, the last one counts.
#[test]
fn a_third_claim_takes_the_place_of_the_one_that_waits() {
    let mut script = Script::new();
    let (old, second, third) = (owner(1, 7), owner(2, 9), owner(1, 8));
    script.apply(Command::Connect(claim(old, "c")));
    script.apply(Command::Connect(claim(second, "c")));
    let effects = script.apply(Command::Connect(claim(third, "c")));
    let refused = Effect::Refused { owner: second, reason: ReasonCode::SessionTakenOver };
    assert_eq!(effects, [refused, close(old, 1)]);
    assert_eq!(script.apply(released(1, true)), [opened(third, 3, true)]);
}

/// A SUBSCRIBE whose answer may be lost is asked again. Another read would be one that nobody reads, and what waits behind
/// it would wait for ever (found by simulation, seed 26).
#[test]
fn a_subscription_that_is_asked_for_again_keeps_its_read() {
    let mut script = Script::new();
    let opened = script.connect(false, 60);
    let read = script.subscribe(opened.epoch, "t", true);
    assert!(read.is_some());
    assert_eq!(script.subscribe_once_more(opened.epoch, "t", true, true), read);
    assert_eq!(script.subscribe_once_more(opened.epoch, "gone", true, true), None);
    assert!(!script.state.sessions["c"].subscriptions.contains_key("gone"), "it was unsubscribed since");
}

/// The same of an UNSUBSCRIBE: what was subscribed to since stays. It was taken away, and its SUBSCRIBE, asked for again too,
/// was granted and stood nowhere (found by simulation: P1).
#[test]
fn an_unsubscribe_that_is_asked_for_again_takes_nothing_away() {
    let mut script = Script::new();
    let epoch = script.connect(false, 60).epoch;
    let unsubscribe = |again| {
        let (client_id, filters) = ("c".to_owned(), vec!["t".to_owned()]);
        Command::Unsubscribe(Unsubscribe { client_id, epoch, packet_id: 1, filters, again, ..Unsubscribe::default() })
    };
    script.subscribe(epoch, "t", false);
    script.apply(unsubscribe(false));
    script.subscribe(epoch, "t", false);
    let effects = script.apply(unsubscribe(true));
    assert!(matches!(&effects[..], [Effect::Unsubscribed { outcomes, .. }] if outcomes.len() == 1), "{effects:?}");
    assert!(script.state.sessions["c"].subscriptions.contains_key("t"));
}

/// What a new leader is asked again, because an answer was lost, is answered again; nothing else happens.
#[test]
fn a_claim_that_is_proposed_again_is_answered_again() {
    let mut script = Script::new();
    let (old, new) = (owner(1, 7), owner(2, 9));
    let with_will = Connect { will: will(0), ..claim(old, "c") };
    script.apply(Command::Connect(with_will.clone()));
    assert_eq!(script.apply(Command::Connect(with_will)), [opened(old, 2, false)], "its will is not published");
    script.apply(Command::Connect(claim(new, "c")));
    assert_eq!(script.apply(Command::Connect(claim(new, "c"))), [close(old, 2)]);
}

/// P9, [MQTT-3.1.3-9]: whoever is taken over has its will published, unless it said goodbye, or the will has a delay
/// and the session goes on.
#[test]
fn a_takeover_publishes_the_will_unless_it_is_delayed_and_the_session_goes_on() {
    for (delay, clean_start, publish_will, expected) in
        [(0, false, true, 1), (5, false, true, 0), (5, true, true, 1), (0, false, false, 0), (5, true, false, 0)]
    {
        let mut script = Script::new();
        script.apply(Command::Connect(Connect { will: will(delay), ..claim(owner(1, 7), "c") }));
        script.apply(Command::Connect(Connect { clean_start, ..claim(owner(2, 9), "c") }));
        let at_once = routes(&script.apply(released(1, publish_will)));
        let later = routes(&script.tick(60_000));
        assert_eq!((at_once, later), (expected, 0), "{delay} s, clean start {clean_start}, abnormal {publish_will}");
    }
}

fn fence(node: u64) -> Command {
    Command::Fence(Fence { below: 2, sessions_max: 10, node })
}

fn fenced(node: u64) -> Effect {
    Effect::Fenced { node, below: 2, more: false }
}

/// The first incarnation of a node.
fn lost(node: u64) -> Command {
    Command::Lost(Lost { node, incarnation: 1, sessions_max: 10 })
}

fn was_lost(node: u64) -> Effect {
    Effect::Lost { node, incarnation: 1, more: false }
}

/// P5, P7: a message that the old connection had on its way to another group, or node, is refused there when that has heard of the
/// death, and not before. Until then it could come behind what the new connection publishes, and take effect after its CONNACK.
#[test]
fn a_claim_of_what_a_dead_node_left_behind_waits_until_that_is_lost() {
    for (expiry, comes_first) in [(100, true), (100, false), (0, true), (0, false)] {
        let mut script = Script::new();
        let (old, new) = (owner(1, 7), owner(2, 9));
        let connect = |owner| {
            let with =
                Connect { session_expiry_seconds: expiry, keep_transient: true, will: will(0), ..claim(owner, "c") };
            Command::Connect(with)
        };
        script.apply(connect(old));
        if comes_first {
            assert_eq!(script.apply(connect(new)), [close(old, 1)]);
        }
        let effects = script.apply(fence(1));
        assert_eq!(routes(&effects), 1, "its will waits for nobody (P9): {effects:?}");
        assert_eq!(effects.last(), Some(&fenced(1)));
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Opened(_))), "{effects:?}");
        script.restart();
        if !comes_first {
            assert_eq!(script.apply(connect(new)), []);
        }
        assert_eq!(script.apply(connect(new)), [], "proposed again, it waits for the same");
        script.restart();
        let mut effects = Vec::new();
        assert_eq!(script.state.claim_again("c", new, &mut effects), None);
        assert_eq!(effects, [], "nor does a new leader grant it");
        assert_eq!(script.state.not_known_to_be_lost().collect::<Vec<_>>(), [(1, 1)]);
        assert_eq!(script.apply(lost(3)), [was_lost(3)], "another one");
        let effects = script.apply(lost(1));
        let granted = |effect: &Effect| matches!(effect, Effect::Opened(opened) if opened.owner == new);
        assert!(granted(&effects[0]) && effects[1..] == [was_lost(1)], "{effects:?}");
        script.restart();
        assert_eq!(script.state.not_known_to_be_lost().count(), 0);
        let again = script.apply(connect(owner(3, 1)));
        assert_eq!(
            again,
            [close(new, script.state.sessions["c"].waiting.as_ref().map_or(0, |waiting| waiting.owner_epoch))]
        );
    }
}

/// Of what a living node has nothing waits, whoever else died.
#[test]
fn a_takeover_between_living_nodes_waits_for_no_dead_one() {
    let mut script = Script::new();
    script.apply(Command::Connect(claim(owner(1, 7), "d")));
    script.apply(Command::Connect(claim(owner(2, 7), "c")));
    script.apply(fence(1));
    assert_eq!(script.apply(Command::Connect(claim(owner(3, 9), "c"))), [close(owner(2, 7), 2)]);
    assert_eq!(script.apply(released(2, false)), [opened(owner(3, 9), 3, true)]);
}

/// Some group may have lost its majority, and then nobody knows when the dead node is lost: the client may try again, or elsewhere.
#[test]
fn a_claim_that_waits_for_a_dead_node_is_refused_in_time() {
    let mut script = Script::new();
    let (old, new) = (owner(1, 7), owner(2, 9));
    script.apply(Command::Connect(claim(old, "c")));
    script.apply(fence(1));
    script.apply(Command::Connect(Connect { clean_start: true, ..claim(new, "c") }));
    assert_eq!(script.tick(4000), [], "its clock may have lagged when the claim came");
    script.restart();
    let refused = |owner, reason| Effect::Refused { owner, reason };
    assert_eq!(script.tick(500), [refused(new, ReasonCode::ServerUnavailable)]);
    script.restart();
    script.apply(Command::Connect(claim(new, "c")));
    let newer = owner(3, 1);
    let effects = script.apply(Command::Connect(claim(newer, "c")));
    assert_eq!(effects, [refused(new, ReasonCode::SessionTakenOver)]);
    assert_eq!(
        script.apply(lost(1)),
        [opened(newer, 2, true), was_lost(1)],
        "its session is there, Clean Start was refused"
    );
}

/// The node of the claim may die while it waits, and the next one of the first node as well.
#[test]
fn a_claim_whose_node_died_gets_nothing_of_what_a_dead_node_left_behind() {
    let mut script = Script::new();
    let (old, new) = (owner(1, 7), owner(2, 9));
    script.apply(Command::Connect(claim(old, "c")));
    script.apply(fence(1));
    script.apply(Command::Connect(claim(new, "c")));
    assert_eq!(script.apply(fence(2)), [fenced(2)]);
    let refused = Effect::Refused { owner: new, reason: ReasonCode::ServerUnavailable };
    assert_eq!(script.apply(lost(1)), [refused, was_lost(1)]);
    script.restart();
    assert_eq!(script.apply(Command::Connect(claim(owner(3, 1), "c"))), [opened(owner(3, 1), 2, true)]);
}

/// Security 2: of a transient session nothing is left that says whose it was, but a claim of another identity waits for none of it.
#[test]
fn another_identity_does_not_take_the_place_of_a_claim_that_waits_for_a_dead_node() {
    let mut script = Script::new();
    let (old, new, other) = (owner(1, 7), owner(2, 9), owner(2, 10));
    let transient = |owner| Connect { session_expiry_seconds: 0, keep_transient: true, ..claim(owner, "c") };
    script.apply(Command::Connect(transient(old)));
    script.apply(fence(1));
    assert_eq!(script.apply(Command::Connect(transient(new))), []);
    let stranger = Connect { identity: "mallory".to_owned(), ..transient(other) };
    let refused = Effect::Refused { owner: other, reason: ReasonCode::NotAuthorized };
    assert_eq!(script.apply(Command::Connect(stranger)), [refused]);
    assert_eq!(script.apply(lost(1)), [transient_opened(new, 2), was_lost(1)]);
}

/// As many as there were connected, a few at a time.
#[test]
fn what_a_dead_node_left_behind_is_set_free_in_bounded_steps() {
    let mut script = Script::new();
    for number in 0..5 {
        script.apply(Command::Connect(claim(owner(1, number), &format!("c{number}"))));
    }
    script.apply(fence(1));
    script.apply(Command::Connect(claim(owner(2, 1), "c4")));
    let step = || Command::Lost(Lost { node: 1, incarnation: 1, sessions_max: 2 });
    let more = Effect::Lost { node: 1, incarnation: 1, more: true };
    assert_eq!([script.apply(step()), script.apply(step())], [[more.clone()], [more]]);
    script.restart();
    let effects = script.apply(step());
    assert!(matches!(&effects[..], [Effect::Opened(_), Effect::Lost { more: false, .. }]), "{effects:?}");
}

/// A dead claim takes nothing from the session, whose owner goes all the same.
#[test]
fn a_fence_drops_the_claim_that_died() {
    let mut script = Script::new();
    let (old, new) = (owner(1, 7), owner(2, 9));
    script.apply(Command::Connect(claim(old, "c")));
    script.apply(Command::Connect(claim(new, "c")));
    assert_eq!(script.apply(fence(1)), [fenced(1)]);
    assert_eq!(script.apply(lost(1)), [opened(new, 3, true), was_lost(1)]);

    let newer = owner(3, 1);
    script.apply(Command::Connect(claim(newer, "c")));
    assert_eq!(script.apply(fence(3)), [close(new, 3), fenced(3)]);
    script.restart();
    let mut lead = Vec::new();
    script.state.lead(&mut lead);
    assert!(lead.contains(&close(new, 3)), "a new leader asks again: {lead:?}");
    script.disconnect(3, false);
    assert_eq!(script.state.sessions["c"].owner, None, "it has let go, and nobody is next");
    let late = script.apply(Command::Connect(claim(owner(1, 70), "c")));
    let refused = Effect::Refused { owner: owner(1, 70), reason: ReasonCode::ServerUnavailable };
    assert_eq!(late, [refused], "nobody would ever release it");
}

/// What the owner said while a claim waited did not count. If it was not told of the claim, and that one's node died, it would be
/// taken to have said nothing, and its SUBSCRIBE, asked again, to have been applied.
#[test]
fn an_owner_whose_words_did_not_count_is_closed_although_the_claim_died() {
    let mut script = Script::new();
    let (old, new) = (owner(1, 7), owner(2, 9));
    script.apply(Command::Connect(Connect { session_expiry_seconds: 100, ..claim(old, "c") }));
    script.apply(Command::Connect(Connect { clean_start: true, ..claim(new, "c") }));
    assert_eq!(script.subscribe(1, "t", true), None, "it does not count");
    script.apply(Command::Fence(Fence { below: 2, sessions_max: 10, node: 2 }));
    let mut effects = Vec::new();
    script.state.resync("c", old, 1, &Has::default(), &mut effects);
    assert_eq!(effects, [close(old, 1)]);
    script.apply(released(1, true));
    let session = &script.state.sessions["c"];
    assert!(
        session.owner.is_none() && session.waiting.is_none(),
        "the session stays; the dead claim's Clean Start never was one"
    );
}

/// Incarnations of one node say nothing about those of another.
/// A copy of a group begins a new cluster: whoever was connected is gone, and no position of the outbox comes twice, for other groups
/// may have had one that this copy has not given yet.
#[test]
fn a_group_that_begins_anew_lets_go_of_everybody_and_repeats_no_position() {
    let mut script = Script::new();
    script.apply(Command::Connect(Connect { session_expiry_seconds: 100, will: will(0), ..claim(owner(7, 1), "c") }));
    script.apply(Command::Connect(Connect { session_expiry_seconds: 100, ..claim(owner(8, 1), "d") }));
    let before = script.state.last_position;
    let effects = script.apply(Command::BeginAnew(command::BeginAnew::beyond_everything()));
    assert_eq!(routes(&effects), 1, "the will of the one that had one");
    assert!(script.state.sessions.values().all(|session| session.owner.is_none()));
    assert!(script.state.outbox.keys().all(|&position| position > before + 1_000_000));
    assert!(script.state.is_fenced(7, 1_000_000) && script.state.is_fenced(8, 1_000_000));
    let again = script.apply(Command::Connect(claim(owner(9, 1), "c")));
    assert!(again.iter().any(|effect| matches!(effect, Effect::Opened(_))), "at once: {again:?}");
}

#[test]
fn a_fence_concerns_one_node() {
    let mut script = Script::new();
    let lane = |node, number| {
        let message = LaneMessage { number, message: Some(record(number, "x")), ..LaneMessage::default() };
        let (incarnation, messages) = (1, vec![message]);
        Command::Lane(LaneBatch { lane: 5, incarnation, messages, node, ..LaneBatch::default() })
    };
    let answered = |node, number| Effect::LaneAnswered { node, lane: 5, number, refused: vec![] };
    assert_eq!(script.apply(lane(1, 1)), [answered(1, 1)]);
    assert_eq!(script.apply(lane(2, 1)), [answered(2, 1)], "a lane of the same number elsewhere");
    script.apply(Command::Fence(Fence { below: 2, sessions_max: 10, node: 1 }));
    script.restart();
    assert_eq!(script.apply(lane(1, 2)), []);
    assert_eq!(script.apply(lane(2, 2)), [answered(2, 2)]);
    assert_eq!(script.state.lanes.len(), 1, "one number for a node outlives its lanes");
}

/// A fence works in bounded steps, and says whether it is done.
#[test]
fn a_fence_releases_so_many_sessions_at_a_time() {
    let mut script = Script::new();
    for number in 0..5 {
        script.apply(Command::Connect(claim(owner(1, number), &format!("c{number}"))));
    }
    let mut steps = 0;
    loop {
        steps += 1;
        let effects = script.apply(Command::Fence(Fence { below: 2, sessions_max: 2, node: 1 }));
        if effects.last() == Some(&Effect::Fenced { node: 1, below: 2, more: false }) {
            break;
        }
    }
    assert_eq!(steps, 3);
    assert!(script.state.sessions.values().all(|session| session.owner.is_none()));
}

/// P9: the will of a transient session survives its node, the session does not.
#[test]
fn the_will_of_a_transient_session_is_published_when_its_node_dies() {
    let mut script = Script::new();
    let transient =
        Connect { session_expiry_seconds: 0, keep_transient: true, will: will(30), ..claim(owner(1, 7), "c") };
    let effects = script.apply(Command::Connect(transient.clone()));
    let expected = OpenedSession {
        owner: owner(1, 7),
        client_id: Arc::from("c"),
        epoch: 1,
        persistent: false,
        session_present: false,
        subscriptions: Vec::new(),
        received: Vec::new(),
    };
    assert_eq!(effects, [Effect::Opened(expected)], "no session that publishes would have to reach");
    assert_eq!(script.subscribe(1, "t", false), None);
    script.restart();
    let effects = script.apply(Command::Fence(Fence { below: 2, sessions_max: 10, node: 1 }));
    assert_eq!(routes(&effects), 1, "at once: the session ends with its connection [MQTT-3.1.2-8]");
    assert_eq!(script.state.sessions(), 0);
    script.apply(lost(1));

    script.apply(Command::Connect(Connect { owner: Some(owner(2, 1)), ..transient }));
    assert_eq!(routes(&script.disconnect(2, false)), 0, "[MQTT-3.14.4-3]");
    assert_eq!(script.state.sessions(), 0);
}

/// What the rules of a login allowed is not asked of files, which say nothing about it; and that is not forgotten.
#[test]
fn a_will_keeps_that_its_login_allowed_it() {
    for is_granted in [false, true] {
        let mut script = Script::new();
        let will = will(20).map(|will| WillRecord { is_granted, ..will });
        script.apply(Command::Connect(Connect { will, session_expiry_seconds: 100, ..claim(owner(1, 7), "c") }));
        script.disconnect(1, true);
        script.restart();
        let effects = script.tick(20_000 + CLOCK_LAG_MS_MAX);
        let routed = effects.iter().find_map(|effect| match effect {
            Effect::Route { position } => script.state.outbox_entry(*position),
            _ => None,
        });
        let entry = routed.expect("the will");
        assert_eq!((entry.will_of.as_deref(), entry.is_granted), (Some(""), is_granted));
        script.restart();
        let stored = script.state.outbox.values().map(|entry| entry.is_granted).collect::<Vec<_>>();
        assert_eq!(stored, [is_granted]);
    }
}

/// Security 2: another identity neither resumes nor takes over, nor does it disturb.
///
/// Abuse: [session-identity]
#[test]
fn another_identity_gets_nothing_of_a_session() {
    let mut script = Script::new();
    script.apply(Command::Connect(claim(owner(1, 7), "c")));
    let stranger = Connect { identity: "mallory".to_owned(), clean_start: true, ..claim(owner(1, 8), "c") };
    let refused = Effect::Refused { owner: owner(1, 8), reason: ReasonCode::NotAuthorized };
    assert_eq!(script.apply(Command::Connect(stranger)), [refused]);
    assert!(script.state.sessions["c"].served().is_some());
}
