//! What is said to the server and what it says: docs/reference/http-authentication.yaml in code.
//!
//! The server is believed about who may come in and what he may, and about nothing else: what it says is bounded and parsed here, and
//! an answer that is not understood as a whole is none. Fields that are not known are not passed over, since one of them may
//! be a condition.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use kentongan_proto::mqtt::ProtocolVersion;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::granted::GrantedRules;
use crate::config::ListenAddress;

/// Body of an answer: the most rules that a login may bring, with room.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A user name as the server may say it; as long as MQTT could carry one.
const IDENTITY_BYTES_MAX: usize = 65_535;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// Whether a client may come in.
    Login,
    /// What a client may that is in, or that another method lets in.
    Rights,
}

/// Whom it is about.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What.
    pub ask: Ask,
    /// Client Identifier.
    pub client_id: &'a str,
    /// As CONNECT says it.
    pub user_name: Option<&'a str>,
    /// Likewise. Not sent when it is about rights.
    pub password: Option<&'a [u8]>,
    /// Who the broker holds the client to be, when it is about rights. Empty: nobody in particular.
    pub identity: Option<&'a str>,
    /// Whom a certificate names.
    pub certified: Option<&'a str>,
    /// `None`: a Unix socket.
    pub address: Option<IpAddr>,
    /// The listener's address.
    pub listener: &'a ListenAddress,
    /// Of MQTT.
    pub version: ProtocolVersion,
}

#[derive(Serialize)]
struct Request<'a> {
    ask: Ask,
    client_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<&'a str>,
    /// A password that is no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    password_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    listener: &'a ListenAddress,
    protocol: &'static str,
}

impl Asked<'_> {
    /// The body of the request.
    #[must_use]
    pub fn json(&self) -> Bytes {
        let text = self.password.map(std::str::from_utf8);
        let request = Request {
            ask: self.ask,
            client_id: self.client_id,
            username: self.user_name,
            password: text.and_then(Result::ok),
            password_base64: self
                .password
                .filter(|_| text.is_some_and(|text| text.is_err()))
                .map(|it| BASE64.encode(it)),
            identity: self.identity,
            certificate: self.certified,
            address: self.address.map(|address| address.to_canonical()),
            listener: self.listener,
            protocol: match self.version {
                ProtocolVersion::V3_1 => "3.1",
                ProtocolVersion::V3_1_1 => "3.1.1",
                ProtocolVersion::V5 => "5",
            },
        };
        // Made of texts and addresses: nothing in it cannot be written.
        Bytes::from(serde_json::to_vec(&request).unwrap_or_default())
    }
}

/// What the server decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It may come in, or stay.
    Allow(Allowed),
    /// It may not.
    Deny,
    /// Somebody else is to say.
    Ignore,
}

/// How it may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Whom its sessions belong to. `None`: whom it says.
    pub identity: Option<Arc<str>>,
    /// `None`: what the files say.
    pub rules: Option<GrantedRules>,
    /// How long.
    pub expires_seconds: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Allow,
    Deny,
    Ignore,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    result: Outcome,
    identity: Option<String>,
    #[serde(default)]
    superuser: bool,
    acl: Option<Value>,
    expires: Option<u32>,
}

/// Reads the body of an answer.
///
/// # Errors
/// What is wrong with it, for the log. Then nothing is decided.
pub fn parse(body: &[u8]) -> Result<Decision, String> {
    // serde would take a list of the values as well.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(String::from("it is no object of JSON"));
    }
    let answer: Answer = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let Answer { result, identity, superuser, acl, expires } = answer;
    match result {
        Outcome::Deny => return Ok(Decision::Deny),
        Outcome::Ignore => return Ok(Decision::Ignore),
        Outcome::Allow => {}
    }
    if let Some(identity) = &identity
        && (identity.is_empty() || identity.len() > IDENTITY_BYTES_MAX || identity.chars().any(char::is_control))
    {
        return Err(String::from("`identity` is empty, too long, or has a control character"));
    }
    if expires == Some(0) {
        return Err(String::from("`expires` is 0"));
    }
    let rules = match (superuser, acl) {
        (true, Some(_)) => return Err(String::from("`superuser` and `acl`: it is one of them")),
        (true, None) => Some(GrantedRules::all()),
        (false, acl) => {
            acl.map(|acl| GrantedRules::parse(&acl)).transpose().map_err(|error| format!("`acl`: {error}"))?
        }
    };
    Ok(Decision::Allow(Allowed { identity: identity.map(Arc::from), rules, expires_seconds: expires }))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use serde_json::json;

    use super::*;

    fn asked() -> Asked<'static> {
        static LISTENER: ListenAddress = ListenAddress::Ip(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8883));
        Asked {
            ask: Ask::Login,
            client_id: "dev-7",
            user_name: Some("ana"),
            password: Some(b"tabuh"),
            identity: None,
            certified: Some("CN of it"),
            address: Some("::ffff:192.0.2.7".parse().expect("an address")),
            listener: &LISTENER,
            version: ProtocolVersion::V5,
        }
    }

    fn json_of(asked: &Asked<'_>) -> Value {
        serde_json::from_slice(&asked.json()).expect("JSON")
    }

    #[test]
    fn a_request_says_what_is_known_and_leaves_out_what_is_not() {
        let login = json!({
            "ask": "login", "client_id": "dev-7", "username": "ana", "password": "tabuh", "certificate": "CN of it",
            "address": "192.0.2.7", "listener": "0.0.0.0:8883", "protocol": "5",
        });
        assert_eq!(json_of(&asked()), login);
        let binary = Asked { password: Some(b"\xff\x00"), ..asked() };
        assert_eq!(json_of(&binary)["password_base64"], "/wA=");
        assert_eq!(json_of(&binary).get("password"), None);
        let rights = Asked {
            ask: Ask::Rights,
            user_name: None,
            password: None,
            identity: Some("ana"),
            certified: None,
            address: None,
            version: ProtocolVersion::V3_1_1,
            ..asked()
        };
        let expected = json!({
            "ask": "rights", "client_id": "dev-7", "identity": "ana", "listener": "0.0.0.0:8883", "protocol": "3.1.1",
        });
        assert_eq!(json_of(&rights), expected);
    }

    #[test]
    fn an_answer_is_understood_as_a_whole() {
        let parse = |value: Value| parse(value.to_string().as_bytes()).expect("an answer");
        assert_eq!(parse(json!({ "result": "deny" })), Decision::Deny);
        assert_eq!(parse(json!({ "result": "ignore" })), Decision::Ignore);
        assert_eq!(parse(json!({ "result": "allow" })), Decision::Allow(Allowed::default()));
        let acl = json!({ "pub": ["a/%c"] });
        let full = parse(json!({ "result": "allow", "identity": "ana", "acl": acl, "expires": 60 }));
        let rules = GrantedRules::parse(&acl).expect("rules");
        let identity = Some(Arc::from("ana"));
        assert_eq!(full, Decision::Allow(Allowed { identity, rules: Some(rules), expires_seconds: Some(60) }));
        let Decision::Allow(all) = parse(json!({ "result": "allow", "superuser": true })) else { panic!("allowed") };
        assert_eq!(all.rules, Some(GrantedRules::all()));
    }

    /// Abuse: [http-authentication]
    #[test]
    fn an_answer_that_is_not_understood_is_none() {
        for (body, expected) in [
            ("", "no object"),
            ("yes", "no object"),
            (r#"["allow",null,true,null,null]"#, "no object"),
            ("{", "EOF"),
            ("{}", "missing field `result`"),
            (r#"{"result":"allowed"}"#, "unknown variant"),
            (r#"{"result":"allow"}{}"#, "trailing characters"),
            (r#"{"result":"allow","result":"deny"}"#, "duplicate field"),
            (r#"{"result":"allow","only_on":"tuesday"}"#, "unknown field"),
            (r#"{"result":"allow","identity":""}"#, "`identity` is empty"),
            (r#"{"result":"allow","identity":"a\u0000b"}"#, "`identity` is empty"),
            (r#"{"result":"allow","identity":7}"#, "invalid type"),
            (r#"{"result":"allow","superuser":"yes"}"#, "invalid type"),
            (r#"{"result":"allow","expires":0}"#, "`expires` is 0"),
            (r#"{"result":"allow","expires":-1}"#, "invalid value"),
            (r#"{"result":"allow","expires":1e300}"#, "invalid type"),
            (r#"{"result":"allow","superuser":true,"acl":{}}"#, "`superuser` and `acl`"),
            (r#"{"result":"allow","acl":{"pub":["a/#/b"]}}"#, "`acl`: "),
            (r#"{"result":"allow","acl":"a"}"#, "`acl`: "),
        ] {
            let error = parse(body.as_bytes()).expect_err(body);
            assert!(error.contains(expected), "{body}: {error}");
        }
        let deep = format!(r#"{{"result":"allow","acl":{}"#, "[".repeat(ANSWER_BYTES_MAX));
        assert!(parse(deep.as_bytes()).expect_err("deep").contains("recursion limit"));
        assert!(parse(b"{\"result\":\"allow\xff\"}").is_err());
    }
}
