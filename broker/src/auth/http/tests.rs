use kentongan_proto::mqtt::ConnectProperties;

use super::*;
use crate::config::{AuthConfig, ListenerConfig, Settings};

const NOW: Now = Now { process_ms: 1_000, wall_ms: 1_800_000_000_000 };

fn allow(expires_seconds: Option<u32>) -> Decision {
    Decision::Allow(Allowed { expires_seconds, ..Allowed::default() })
}

fn identified(progress: Progress) -> Identified {
    match progress {
        Progress::Identified(identified, _) => identified,
        other => panic!("somebody is let in: {other:?}"),
    }
}

fn connect() -> Connect {
    Connect {
        version: ProtocolVersion::V5,
        bridge: false,
        clean_start: true,
        keep_alive: 0,
        client_id: "c".to_owned(),
        will: None,
        user_name: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

fn listener() -> ListenerContext {
    let address: std::net::SocketAddr = "127.0.0.1:1883".parse().expect("an address");
    ListenerContext::new(ListenerConfig::default(), &Settings::default(), address)
}

/// Of everybody the rights are asked for.
fn asking() -> (Authority, AuthConfig) {
    let text = "[http]\nrights_url = \"http://127.0.0.1:9/\"\nrights_for_all = true";
    let config: AuthConfig = toml::from_str(text).expect("settings");
    let mut authority = Authority::default();
    authority.open(&config).expect("a thread");
    (authority, config)
}

/// Abuse: [http-authentication]
#[test]
fn no_word_of_the_server_outlives_what_somebody_came_in_by() {
    let authority = Authority::default();
    let say =
        |granted: &Granted, decision| authority.on_rights("ana", granted, RenewedRights::of(&authority, decision), NOW);
    let by_token = Identified {
        granted: Granted::new(None, Some(60_000)),
        ..Identified::plainly(Arc::from("ana"), Credential::Mechanism)
    };
    let granted = |decision| {
        let progress = rights_granted(by_token.clone(), AuthenticationOutcome::Token, decision, NOW.process_ms);
        identified(progress).granted.expect("rights")
    };
    for first in [allow(Some(3600)), allow(None), Decision::Ignore] {
        let granted = granted(first);
        assert_eq!(granted.expires_ms(), Some(60_000));
        for again in [allow(Some(3600)), allow(None), Decision::Ignore] {
            assert_eq!(say(&granted, again), Renewal::Confirmed, "the token ends all the same");
        }
    }
    let Renewal::Prolonged(sooner) = say(&granted(allow(None)), allow(Some(10))) else { panic!("it ends sooner") };
    assert_eq!(sooner.expires_ms(), Some(11_000));
    let Renewal::Prolonged(later) = say(&sooner, allow(Some(3600))) else { panic!("it ends later again") };
    assert_eq!(later.expires_ms(), Some(60_000));

    // Whom the server lets in itself, it lets stay for as long as it says.
    let by_server = Granted::by_server(None, Some(60_000), None);
    let Renewal::Prolonged(later) = say(&by_server, allow(Some(3600))) else { panic!("it ends later") };
    assert_eq!(later.expires_ms(), Some(3_601_000));
}

/// Abuse: [http-authentication]
#[test]
fn who_came_by_a_mechanism_is_that_one_also_if_the_settings_are_read_again_meanwhile() {
    let (authority, config) = asking();
    let (connect, listener) = (connect(), listener());
    let origin = Origin { certified: Some(Arc::from("meter")), ..Origin::default() };
    let answered_late = |identified: Identified| {
        let progress = authority.let_in_by_mechanism(identified, &connect, &listener, &origin, NOW);
        let Progress::Ask(Question::Server(question)) = progress else { panic!("the server is asked: {progress:?}") };
        authority.change(authority.read(&config).expect("settings"), &config).expect("threads");
        let ServerQuestion { server, mark, generation, about, .. } = question;
        let answer = ServerAnswer { server, decision: Ok(Decision::Ignore), mark, generation, about };
        authority.on_server_answer(answer, Visitor { connect: &connect, listener: &listener, origin: &origin }, NOW)
    };
    let ana = Identified::plainly(Arc::from("ana"), Credential::Mechanism);
    let progress = answered_late(ana.clone());
    let Progress::Ask(Question::Server(again)) = progress else { panic!("it is asked again: {progress:?}") };
    assert!(
        matches!(&again.about, About::Rights(identified, AuthenticationOutcome::Mechanism) if *identified == ana),
        "{:?}",
        again.about
    );
    let no_user = Identified { credential: Credential::Password(7), ..ana };
    let progress = answered_late(no_user);
    assert!(
        matches!(&progress, Progress::Refused(refusal, _) if refusal.reason == ReasonCode::NotAuthorized),
        "{progress:?}"
    );
}
