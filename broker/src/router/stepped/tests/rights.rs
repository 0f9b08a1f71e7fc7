//! Rights that change, or must be asked for, while clients are connected.

use super::*;

/// A server that hears what it is asked and says nothing, and an authority that asks it about everybody.
fn silent_server() -> (std::net::TcpListener, Authority) {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = server.local_addr().expect("bound");
    let authority = authority_by(&format!("[http]\nurl = \"http://{address}/\"\ntimeout_milliseconds = 600000"));
    (server, authority)
}

fn authority_by(text: &str) -> Authority {
    let mut authority = Authority::default();
    authority.open(&toml::from_str(text).expect("settings")).expect("threads");
    authority
}

/// Whoever is gone has no place in a queue, and costs no request.
///
/// Abuse: [http-authentication]
#[test]
fn a_client_that_is_gone_while_somebody_is_asked_about_it_is_noticed() {
    let comes = || {
        let (server, authority) = silent_server();
        let connect = connect(ProtocolVersion::V5, "c".to_owned(), 0);
        let (arbiter, client, key) = claimant(Settings::default(), authority, connect);
        assert_eq!(arbiter.state.clients[key.index()].phase, Phase::Verifying);
        (server, arbiter, client)
    };
    let (_server, mut arbiter, client) = comes();
    drop(client);
    arbiter.run();
    assert_eq!(arbiter.state.connections(), 0, "it closed the connection");

    let (_server, mut arbiter, mut client) = comes();
    let publish = publish_to(&mut client, "t", "x");
    client.send(&publish);
    client.write(usize::MAX);
    arbiter.run();
    client.stream.reset();
    arbiter.run();
    assert_eq!(arbiter.state.connections(), 0, "it broke off");

    // It need not wait for CONNACK, nor for what comes of its message.
    let (_server, mut arbiter, mut client) = comes();
    let publish = publish_to(&mut client, "t", "x");
    client.send(&publish);
    client.write(usize::MAX);
    drop(client);
    arbiter.run();
    assert_eq!(arbiter.state.connections(), 1, "what it said before it went is still to be read");
}

const RIGHTS: &str = "[http]\nrights_url = \"http://127.0.0.1:9/\"\n";

/// A client of one of several nodes whose rights a server says, with a will that they allow.
fn client_with_rights_of_server() -> (SteppedArbiter, Client, ConnectionKey) {
    let will = Will {
        topic: "a/alarm".to_owned(),
        payload: Bytes::from_static(b"x"),
        qos: QoS::AtMostOnce,
        retain: false,
        properties: WillProperties::default(),
    };
    let connect = Connect { will: Some(will), ..connect(ProtocolVersion::V5, "c".to_owned(), 0) };
    let (mut arbiter, client, key) = claimant(Settings::default(), authority_by(RIGHTS), connect);
    grant(&mut arbiter, key);
    let session = arbiter.state.clients[key.index()].session.as_mut().expect("it is connected");
    session.granted = Some(Granted::by_server(None, None, None));
    arbiter.state.plan_renewal(key);
    (arbiter, client, key)
}

fn renewal_due(arbiter: &SteppedArbiter, key: ConnectionKey) -> u32 {
    let session = arbiter.state.clients[key.index()].session.as_ref().expect("it is connected");
    session.renewal.as_ref().expect("rights are asked for again").next_second()
}

#[test]
fn rights_that_a_server_did_not_say_are_soon_asked_for_again() {
    let (mut arbiter, _client, connection) = client_with_rights_of_server();
    let now = arbiter.state.now_seconds();
    assert!((now + 225..=now + 300).contains(&renewal_due(&arbiter, connection)));
    let rights = RenewedRights::undecided(&arbiter.state.shared.authority);
    tell(&mut arbiter, Event::RightsRenewed { connection, rights });
    assert!(renewal_due(&arbiter, connection) <= now + 300 / 8, "{}", renewal_due(&arbiter, connection));
}

#[test]
fn settings_that_are_read_again_reach_the_renewals_of_rights() {
    let (mut arbiter, _client, connection) = client_with_rights_of_server();
    let change = |arbiter: &mut SteppedArbiter, more: &str| {
        let config = toml::from_str(&format!("{RIGHTS}{more}")).expect("settings");
        let authority = &arbiter.state.shared.authority;
        let policy = authority.read(&config).expect("settings");
        authority.change(policy, &config).expect("no more threads");
        tell(arbiter, Event::PolicyChanged(Changed::WhoMayWhat));
    };
    let now = arbiter.state.now_seconds();
    let before = renewal_due(&arbiter, connection);
    change(&mut arbiter, "");
    assert_eq!(renewal_due(&arbiter, connection), before, "they are what they were");
    let from_before = RenewedRights::denied(&arbiter.state.shared.authority);
    change(&mut arbiter, "rights_seconds = 40");
    assert!(renewal_due(&arbiter, connection) <= now + 40);
    change(&mut arbiter, "rights_outdated_seconds_max = 7");
    assert_eq!(renewal_due(&arbiter, connection), now + 7);
    tell(&mut arbiter, Event::RightsRenewed { connection, rights: from_before });
    assert!(arbiter.state.clients[connection.index()].is_connected(), "another server said so, perhaps");
}

/// Plans change, and what was armed by earlier ones does not add up.
#[test]
fn one_deadline_of_a_connection_comes_up_at_a_time() {
    let (mut arbiter, _client, connection) = client_with_rights_of_server();
    for _ in 0..100 {
        let rights = RenewedRights::undecided(&arbiter.state.shared.authority);
        tell(&mut arbiter, Event::RightsRenewed { connection, rights });
        tell(&mut arbiter, Event::PolicyChanged(Changed::WhoMayWhat));
    }
    // Each of them a second sooner than the one before.
    assert!(arbiter.state.wheel.count() <= 15, "{}", arbiter.state.wheel.count());
}

/// P9 is about wills that a client may publish.
///
/// Abuse: [authorize]
#[test]
fn a_will_that_its_client_may_not_publish_any_more_is_not_left_to_the_group() {
    let is_left = |change: &dyn Fn(&mut SteppedArbiter, ConnectionKey)| {
        let (mut arbiter, _client, key) = client_with_rights_of_server();
        change(&mut arbiter, key);
        arbiter.state.end(key, EndCause::ClosedByPeer, None);
        let said = commands_to_group(&mut arbiter);
        match &said[..] {
            [SessionCommand::Connect(_), SessionCommand::Disconnect(end)] => end.publish_will,
            other => panic!("{other:?}"),
        }
    };
    let allow = |acl: serde_json::Value| {
        move |arbiter: &mut SteppedArbiter, key: ConnectionKey| {
            let rules = GrantedRules::parse(&acl).expect("rules");
            let session = arbiter.state.clients[key.index()].session.as_mut().expect("it is connected");
            session.granted = Some(Granted::by_server(Some(rules), None, None));
            let identified = session.identified();
            arbiter.state.apply_rights(key, &identified);
        }
    };
    assert!(is_left(&|_, _| {}));
    assert!(is_left(&allow(serde_json::json!({ "pub": ["a/#"] }))));
    assert!(!is_left(&allow(serde_json::json!({ "pub": ["b/#"], "sub": ["a/#"] }))));
    assert!(
        !is_left(&|arbiter, connection| {
            let rights = RenewedRights::denied(&arbiter.state.shared.authority);
            tell(arbiter, Event::RightsRenewed { connection, rights });
        }),
        "who may not be here says nothing more"
    );
    assert!(
        !is_left(&|arbiter, connection| {
            let config = ListenerConfig { allow_anonymous: Some(false), ..ListenerConfig::default() };
            let _ = arbiter.state.clients[connection.index()].listener.reloaded(config, &Settings::default());
            tell(arbiter, Event::PolicyChanged(Changed::WhoMayStay));
            assert!(arbiter.state.client(connection).is_none_or(|client| !client.is_connected()));
        }),
        "nor who would not be let in any more"
    );
    assert!(
        !is_left(&|arbiter, connection| {
            arbiter.state.shared.bans.set([("client-id:c", 0)].into_iter());
            arbiter.state.end_banned();
            assert!(arbiter.state.client(connection).is_none_or(|client| !client.is_connected()));
        }),
        "nor who is banned"
    );
}

/// Whoever is connected is looked at when users and rights are read again, but others have their turns meanwhile.
#[test]
fn new_rules_are_applied_to_some_connections_a_turn() {
    const CLIENTS: usize = 300;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("acl");
    std::fs::write(&file, "topic readwrite a\n").expect("written");
    let mut world = World::new(1);
    let clients: Vec<_> =
        (0..CLIENTS).map(|number| world.open(0, connect(ProtocolVersion::V5, format!("c{number}"), 0))).collect();
    let config = AuthConfig { acl_file: Some(file), ..AuthConfig::default() };
    let policy = world.shared.authority.read(&config).expect("it can be read");
    world.shared.authority.change(policy, &config).expect("it can be used");
    world.shared.inboxes[0].push(Event::PolicyChanged(Changed::WhoMayWhat), 0);
    let with_rights = |world: &World| {
        let sessions = world.arbiters[0].state.clients.iter().filter_map(|(_, client)| client.session.as_ref());
        sessions.filter(|session| session.rights.is_some()).count()
    };
    let mut turns = 0;
    let mut before = 0;
    while world.arbiters[0].step(0) {
        let now = with_rights(&world);
        assert!(now - before <= CLIENTS / 3, "{} in one turn", now - before);
        turns += usize::from(now > before);
        before = now;
    }
    assert_eq!((with_rights(&world), clients.len()), (CLIENTS, CLIENTS));
    assert!(turns > 3);
}

/// Between the moment in which new rules grant every subscription and that in which a connection hears of them, what comes by one
/// is looked at.
///
/// Abuse: [authorize]
#[test]
fn a_subscription_that_new_rules_grant_brings_no_more_than_may_be_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("acl");
    std::fs::write(&file, "topic write b\ntopic readwrite a\n").expect("written");
    let config = |acl_subscribe| AuthConfig { acl_file: Some(file.clone()), acl_subscribe, ..AuthConfig::default() };
    let mut authority = Authority::default();
    authority.open(&config(AclSubscribe::Covered)).expect("it can be read");
    let connect = connect(ProtocolVersion::V5, "c".to_owned(), 0);
    let (mut arbiter, mut client, connection) = claimant(Settings::default(), authority, connect);
    grant(&mut arbiter, connection);
    let authority = &arbiter.state.shared.authority;
    let granting = authority.read(&config(AclSubscribe::Filter)).expect("it can be read");
    authority.change(granting, &config(AclSubscribe::Filter)).expect("it can be used");
    let subscribe = subscribe_to(&mut client, &["#"], QoS::AtMostOnce);
    client.send(&subscribe);
    for topic in ["b", "a"] {
        let publish = publish_to(&mut client, topic, "x");
        client.send(&publish);
    }
    client.write(usize::MAX);
    arbiter.run();
    all_hear(&mut arbiter);
    let topics: Vec<_> = packets(&mut client)
        .into_iter()
        .filter_map(|packet| match packet {
            Packet::Publish(publish) => Some(publish.topic),
            _ => None,
        })
        .collect();
    assert_eq!(topics, ["a"]);
}

/// Says of everybody that it is Eve.
struct IsEve;

impl Mechanism for IsEve {
    fn step(&mut self, _: Option<&[u8]>) -> MechanismStep {
        MechanismStep::Success { identity: Arc::from("eve"), data: None }
    }
}

/// A ban on a user closes who is connected: whoever said to be that user when it connected, and whoever is that user and waits
/// for its Client Identifier.
///
/// Abuse: [bans]
#[test]
fn a_ban_on_a_user_is_about_whom_clients_said_to_be_and_about_whom_they_are() {
    let mut world = World::new(1);
    let comes = |world: &mut World, name: &str| {
        let connect = connect(ProtocolVersion::V5, name.to_owned(), 0);
        let mut client = world.open(0, Connect { user_name: Some(name.to_owned()), ..connect });
        assert!(matches!(packets(&mut client)[..], [Packet::ConnAck(_)]));
        client
    };
    let mut eve = comes(&mut world, "eve");
    let mut bob = comes(&mut world, "bob");
    world.shared.bans.set([("user:eve", 0)].into_iter());
    world.pass(1000);
    world.arbiters[0].run();
    assert!(matches!(packets(&mut eve)[..], [Packet::Disconnect(_)]));
    assert_eq!(packets(&mut bob), []);

    let authority = Authority::default().with_mechanism("M", Box::new(|| Box::new(IsEve) as Box<dyn Mechanism>));
    let properties = ConnectProperties { authentication_method: Some("M".to_owned()), ..ConnectProperties::default() };
    let connect = connect(ProtocolVersion::V5, "c".to_owned(), 0);
    let (mut arbiter, mut client, _) = claimant(Settings::default(), authority, Connect { properties, ..connect });
    assert_eq!(packets(&mut client), [], "its group has not answered");
    arbiter.state.shared.bans.set([("user:eve", 0)].into_iter());
    arbiter.on_second();
    arbiter.run();
    let packets = packets(&mut client);
    assert!(
        matches!(&packets[..], [Packet::ConnAck(connack)] if connack.reason_code == ReasonCode::Banned),
        "{packets:?}"
    );
}
