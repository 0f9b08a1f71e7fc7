//! Enhanced authentication, with a mechanism plugged into a broker inside this process.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use kentongan::auth::{Authority, Mechanism, MechanismStep};
use kentongan_proto::mqtt::*;

use crate::support::{Client, Plugged, connect};

/// Asks for a word, and then for another.
#[derive(Default)]
struct TwoWords(u8);

impl Mechanism for TwoWords {
    fn step(&mut self, data: Option<&[u8]>) -> MechanismStep {
        self.0 += 1;
        match (self.0, data) {
            (1, Some(b"one")) => MechanismStep::Continue(Some(Bytes::from_static(b"and?"))),
            (2, Some(b"two")) => {
                MechanismStep::Success { identity: Arc::from("somebody"), data: Some(Bytes::from_static(b"welcome")) }
            }
            _ => MechanismStep::Failure(ReasonCode::NotAuthorized),
        }
    }
}

fn start() -> SocketAddr {
    let mechanism = Box::new(|| -> Box<dyn Mechanism> { Box::new(TwoWords::default()) });
    Plugged::start(Authority::default().with_mechanism("TWO-WORDS", mechanism)).address
}

fn auth(reason_code: ReasonCode, method: &str, data: &'static [u8]) -> Packet {
    Packet::Auth(Auth {
        reason_code,
        properties: AuthProperties {
            authentication_method: Some(method.to_owned()),
            authentication_data: Some(Bytes::from_static(data)),
            ..AuthProperties::default()
        },
    })
}

fn begin(address: SocketAddr) -> Client {
    let mut client = Client::at(address, ProtocolVersion::V5);
    let mut asked = connect(ProtocolVersion::V5, "a");
    asked.properties.authentication_method = Some("TWO-WORDS".to_owned());
    asked.properties.authentication_data = Some(Bytes::from_static(b"one"));
    client.send(&Packet::Connect(Box::new(asked)));
    client
}

fn expect_challenge(client: &mut Client) {
    let expected = auth(ReasonCode::ContinueAuthentication, "TWO-WORDS", b"and?");
    assert_eq!(client.receive(), expected);
}

fn authenticated(address: SocketAddr) -> Client {
    let mut client = begin(address);
    expect_challenge(&mut client);
    client.send(&auth(ReasonCode::ContinueAuthentication, "TWO-WORDS", b"two"));
    let connack = client.expect_connack();
    assert_eq!(connack.reason_code, ReasonCode::Success);
    assert_eq!(connack.properties.authentication_method.as_deref(), Some("TWO-WORDS"));
    assert_eq!(connack.properties.authentication_data.as_deref(), Some(&b"welcome"[..]));
    client
}

/// Conformance: [MQTT5-4.12.0-2], [MQTT5-4.12.0-5]
#[test]
fn an_exchange_goes_on_with_auth_and_ends_with_connack() {
    authenticated(start()).expect_nothing();
}

/// Conformance: [MQTT5-4.12.0-3]
#[test]
fn an_answer_that_does_not_continue_the_exchange_is_refused() {
    let address = start();
    for answer in [
        auth(ReasonCode::ReAuthenticate, "TWO-WORDS", b"two"),
        auth(ReasonCode::ContinueAuthentication, "OTHER", b"two"),
    ] {
        let mut client = begin(address);
        expect_challenge(&mut client);
        client.send(&answer);
        assert_eq!(client.expect_connack().reason_code, ReasonCode::ProtocolError);
        client.expect_closed();
    }
    let mut client = begin(address);
    expect_challenge(&mut client);
    client.send(&auth(ReasonCode::ContinueAuthentication, "TWO-WORDS", b"wrong"));
    assert_eq!(client.expect_connack().reason_code, ReasonCode::NotAuthorized);
    client.expect_closed();
}

/// Conformance: [MQTT5-4.12.1-1], [MQTT5-4.12.1-2]
#[test]
fn re_authentication_keeps_its_method_and_failing_it_ends_the_connection() {
    let address = start();
    let mut client = authenticated(address);
    client.send(&auth(ReasonCode::ReAuthenticate, "TWO-WORDS", b"one"));
    expect_challenge(&mut client);
    client.send(&auth(ReasonCode::ContinueAuthentication, "TWO-WORDS", b"two"));
    assert_eq!(client.receive(), auth(ReasonCode::Success, "TWO-WORDS", b"welcome"));
    client.expect_nothing();
    client.send(&auth(ReasonCode::ReAuthenticate, "TWO-WORDS", b"wrong"));
    client.expect_disconnect(ReasonCode::NotAuthorized);
    let mut client = authenticated(address);
    client.send(&auth(ReasonCode::ReAuthenticate, "OTHER", b"one"));
    client.expect_disconnect(ReasonCode::ProtocolError);
}
