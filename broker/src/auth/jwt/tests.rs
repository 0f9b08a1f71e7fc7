use std::time::Instant;

use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use super::*;

const SECRET: &[u8; 32] = b"a secret of thirty-two bytes....";

/// By the wall clock.
const NOW_SECONDS: u64 = 1_800_000_000;

const NOW: Now = Now { process_ms: 5_000, wall_ms: NOW_SECONDS * 1000 };

const NAMES: Names<'static> = Names { client_id: "dev-7", user_name: "ana" };

fn encoded(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

/// A token whose signature `sign` makes.
fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", encoded(header), encoded(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn by_secret(secret: &[u8]) -> impl FnOnce(&[u8]) -> Vec<u8> {
    move |message| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
}

fn hs256(claims: &Value) -> String {
    token(&json!({ "alg": "HS256", "typ": "JWT" }), claims, by_secret(SECRET))
}

fn good() -> Value {
    json!({ "sub": "ana", "exp": NOW_SECONDS + 60 })
}

fn pair(algorithm: &'static EcdsaSigningAlgorithm) -> (EcdsaKeyPair, Vec<u8>) {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("randomness");
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).expect("a key");
    let point = pair.public_key().as_ref().to_vec();
    (pair, point)
}

pub(crate) fn es256_pair() -> (EcdsaKeyPair, Vec<u8>) {
    pair(&ECDSA_P256_SHA256_FIXED_SIGNING)
}

fn by_pair(pair: &EcdsaKeyPair) -> impl FnOnce(&[u8]) -> Vec<u8> {
    move |message| pair.sign(&SystemRandom::new(), message).expect("signed").as_ref().to_vec()
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
}

/// A point of P-256 as a public key.
pub(crate) fn pem_of(point: &[u8]) -> String {
    let head =
        b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
    pem(&[&head[..], point].concat())
}

fn ed_pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a key")
}

pub(crate) fn ed_pem() -> String {
    let head = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
    pem(&[&head[..], ed_pair().public_key().as_ref()].concat())
}

pub(crate) fn jwk_of_ec(name: &str, point: &[u8]) -> Value {
    let [x, y] = [&point[1..33], &point[33..]].map(|part| URL_SAFE_NO_PAD.encode(part));
    json!({ "kty": "EC", "kid": name, "crv": "P-256", "x": x, "y": y })
}

/// A key made for these tests, and for nothing else.
fn rsa_pair() -> RsaKeyPair {
    let der = PrivatePkcs8KeyDer::from_pem_slice(include_bytes!("rsa_of_tests.pem")).expect("PEM");
    RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).expect("a key")
}

fn rsa_jwk(name: &str) -> Value {
    let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(rsa_pair().public());
    json!({ "kty": "RSA", "kid": name, "n": URL_SAFE_NO_PAD.encode(public.n), "e": URL_SAFE_NO_PAD.encode(public.e) })
}

fn by_rsa(encoding: &'static dyn RsaEncoding) -> impl FnOnce(&[u8]) -> Vec<u8> {
    move |message| {
        let pair = rsa_pair();
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(encoding, &SystemRandom::new(), message, &mut signature).expect("signed");
        signature
    }
}

fn config(text: &str) -> JwtConfig {
    toml::from_str(text).expect("a section")
}

fn tokens_of(text: &str, keys: Keys) -> Tokens {
    signature::install();
    Tokens { config: config(text), of_files: RwLock::new(Arc::new(FileKeys { keys, digest: [0; 32] })), fetched: None }
}

fn secret() -> Keys {
    Keys::of_secret(SECRET).expect("a secret")
}

fn set_of(entries: &[Value]) -> Keys {
    Keys::of_jwks(json!({ "keys": entries }).to_string().as_bytes(), true).expect("a set")
}

fn judge(tokens: &Tokens, token: &str) -> Result<TokenLogin, TokenError> {
    tokens.judge(token.as_bytes(), NAMES, NOW, None)
}

fn error(tokens: &Tokens, token: &str) -> TokenError {
    judge(tokens, token).expect_err(token)
}

#[test]
fn a_good_token_says_who_and_until_when() {
    let tokens = tokens_of("leeway_seconds = 5", secret());
    let login = judge(&tokens, &hs256(&good())).expect("good");
    assert_eq!((&*login.identity, login.mark.key.is_some()), ("ana", true));
    let granted = login.granted.expect("an end");
    assert_eq!((granted.expires_ms(), granted.has_rules()), (Some(5_000 + 65_000), false));
    assert!(tokens.stands_by(login.mark) && !tokens.stands_by(TokenMark { key: Some(1), ..login.mark }));
    let endless = tokens_of("require_expiry = false", secret());
    assert_eq!(judge(&endless, &hs256(&json!({ "sub": "ana" }))).expect("good").granted, None);
}

#[test]
fn each_algorithm_with_a_key_of_its_kind() {
    let (es256, es256_point) = es256_pair();
    let (es384, es384_point) = pair(&ECDSA_P384_SHA384_FIXED_SIGNING);
    let [x, y] = [&es384_point[1..49], &es384_point[49..]].map(|part| URL_SAFE_NO_PAD.encode(part));
    let ed =
        json!({ "kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(ed_pair().public_key()) });
    let tokens = tokens_of(
        "",
        set_of(&[
            jwk_of_ec("es256", &es256_point),
            json!({ "kty": "EC", "kid": "es384", "crv": "P-384", "x": x, "y": y }),
            ed,
            rsa_jwk("rsa"),
            json!({ "kty": "oct", "kid": "hs", "k": URL_SAFE_NO_PAD.encode(SECRET) }),
        ]),
    );
    let head = |algorithm: &str, name: &str| json!({ "alg": algorithm, "kid": name });
    let all = [
        token(&head("HS256", "hs"), &good(), by_secret(SECRET)),
        token(&head("HS512", "hs"), &good(), |message| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, SECRET), message).as_ref().to_vec()
        }),
        token(&head("ES256", "es256"), &good(), by_pair(&es256)),
        token(&head("ES384", "es384"), &good(), by_pair(&es384)),
        token(&head("EdDSA", "ed"), &good(), |message| ed_pair().sign(message).as_ref().to_vec()),
        token(&head("RS256", "rsa"), &good(), by_rsa(&RSA_PKCS1_SHA256)),
        token(&head("PS512", "rsa"), &good(), by_rsa(&RSA_PSS_SHA512)),
    ];
    for good in &all {
        assert!(judge(&tokens, good).is_ok(), "{good}");
        let (message, signature) = good.rsplit_once('.').expect("three parts");
        let other = if signature.starts_with('A') { "B" } else { "A" };
        let forged = format!("{message}.{other}{}", &signature[1..]);
        assert_eq!(error(&tokens, &forged), TokenError::BadSignature, "{forged}");
    }
    let nameless = token(&json!({ "alg": "EdDSA" }), &good(), |message| ed_pair().sign(message).as_ref().to_vec());
    assert!(judge(&tokens, &nameless).is_ok(), "those of its algorithm are tried");
    let pem = tokens_of("", Keys::of_pem(pem_of(&es256_point).as_bytes()).expect("a key"));
    assert!(judge(&pem, &all[2]).is_ok(), "a key without a name is for any");
}

#[test]
fn no_token_says_by_what_it_is_verified() {
    let (pair, point) = es256_pair();
    let tokens = tokens_of("", set_of(&[jwk_of_ec("ec", &point), rsa_jwk("rsa")]));
    let pem = pem_of(&point);
    let rsa = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(rsa_pair().public());
    // Whoever has a public key signs with it as if it were a secret.
    for secret in [pem.as_bytes(), pem.trim_end().as_bytes(), &point, &rsa.n] {
        for name in ["ec", "rsa"] {
            let forged = token(&json!({ "alg": "HS256", "kid": name }), &good(), by_secret(secret));
            assert_eq!(error(&tokens, &forged), TokenError::WrongAlgorithm, "{name}");
        }
    }
    let unsigned = |algorithm: &str| token(&json!({ "alg": algorithm, "kid": "ec" }), &good(), |_| Vec::new());
    for none in ["none", "None", "NONE", ""] {
        assert_eq!(error(&tokens, &unsigned(none)), TokenError::Malformed, "{none}");
    }
    assert_eq!(error(&tokens, &unsigned("ES256")), TokenError::BadSignature);
    assert_eq!(error(&tokens, &unsigned("ES384")), TokenError::WrongAlgorithm, "another of the same kind");
    // A key of its own in the header, which nobody here has asked for.
    let (other, other_point) = es256_pair();
    let head = json!({ "alg": "ES256", "kid": "ec", "jwk": jwk_of_ec("ec", &other_point), "jku": "http://127.0.0.1/" });
    assert_eq!(error(&tokens, &token(&head, &good(), by_pair(&other))), TokenError::BadSignature);
    assert!(judge(&tokens, &token(&head, &good(), by_pair(&pair))).is_ok());
    let critical = json!({ "alg": "ES256", "kid": "ec", "crit": ["exp"] });
    assert_eq!(error(&tokens, &token(&critical, &good(), by_pair(&pair))), TokenError::Malformed);
    let unknown = json!({ "alg": "ES256", "kid": "other" });
    assert_eq!(error(&tokens, &token(&unknown, &good(), by_pair(&pair))), TokenError::UnknownKey);
    // A key for one algorithm only.
    let only = tokens_of("", {
        let mut entry = rsa_jwk("rsa");
        entry["alg"] = json!("RS256");
        set_of(&[entry])
    });
    let ps512 = token(&json!({ "alg": "PS512", "kid": "rsa" }), &good(), by_rsa(&RSA_PSS_SHA512));
    assert_eq!(error(&only, &ps512), TokenError::WrongAlgorithm);
    assert!(judge(&only, &token(&json!({ "alg": "RS256" }), &good(), by_rsa(&RSA_PKCS1_SHA256))).is_ok());
}

#[test]
fn what_its_claims_must_say() {
    let tokens = tokens_of(
        "leeway_seconds = 10\nissuer = \"maker\"\naudience = \"broker\"\nrequired_claims = [\"dev=%c\", \"user=%u\", \"tier=1\"]",
        secret(),
    );
    let all = json!({
        "sub": "ana", "exp": NOW_SECONDS + 1, "nbf": NOW_SECONDS - 1, "iss": "maker", "aud": ["x", "broker"],
        "dev": "dev-7", "user": "ana", "tier": 1,
    });
    assert!(judge(&tokens, &hs256(&all)).is_ok());
    let now = NOW_SECONDS as f64;
    for (claim, value, expected) in [
        ("exp", json!(now - 9.0), None),
        ("exp", json!(now - 10.0), Some(TokenError::Expired)),
        ("exp", json!(0), Some(TokenError::Expired)),
        ("exp", json!(-1), Some(TokenError::Malformed)),
        ("exp", json!(1e300), Some(TokenError::Malformed)),
        ("exp", json!("soon"), Some(TokenError::Malformed)),
        ("exp", Value::Null, Some(TokenError::Malformed)),
        ("nbf", json!(now + 10.0), None),
        ("nbf", json!(now + 11.0), Some(TokenError::NotYet)),
        ("nbf", json!([]), Some(TokenError::Malformed)),
        ("iss", json!("maker/"), Some(TokenError::WrongIssuer)),
        ("iss", json!(["maker"]), Some(TokenError::WrongIssuer)),
        ("aud", json!("broker"), None),
        ("aud", json!("other"), Some(TokenError::WrongAudience)),
        ("aud", json!(["x", 1]), Some(TokenError::WrongAudience)),
        ("dev", json!("dev-8"), Some(TokenError::MissingClaim)),
        ("user", json!(""), Some(TokenError::MissingClaim)),
        ("tier", json!("1"), None),
        ("tier", json!([1]), Some(TokenError::MissingClaim)),
        ("sub", json!(""), Some(TokenError::NoIdentity)),
        ("sub", json!(7), Some(TokenError::NoIdentity)),
        ("sub", json!("a\u{1}b"), Some(TokenError::NoIdentity)),
        ("acl", Value::Null, None),
        ("acl", json!({ "sub": ["x"] }), None),
        ("acl", json!({ "sub": ["x/#/y"] }), Some(TokenError::BadRules)),
        ("acl", json!("all"), Some(TokenError::BadRules)),
    ] {
        let mut claims = all.clone();
        claims[claim] = value.clone();
        assert_eq!(judge(&tokens, &hs256(&claims)).err(), expected, "{claim} {value}");
    }
    for (claim, expected) in [
        ("exp", TokenError::NoExpiry),
        ("iss", TokenError::WrongIssuer),
        ("aud", TokenError::WrongAudience),
        ("dev", TokenError::MissingClaim),
        ("sub", TokenError::NoIdentity),
    ] {
        let mut claims = all.clone();
        claims.as_object_mut().expect("an object").remove(claim);
        assert_eq!(error(&tokens, &hs256(&claims)), expected, "without {claim}");
    }
    let nameless = Names { user_name: "", ..NAMES };
    assert!(tokens.judge(hs256(&all).as_bytes(), nameless, NOW, None).is_err(), "an empty name is none");
}

#[test]
fn what_is_huge_or_deep_is_refused() {
    let tokens = tokens_of("", secret());
    let mut claims = good();
    claims["more"] = json!("x".repeat(8192));
    assert_eq!(error(&tokens, &hs256(&claims)), TokenError::TooLarge);
    let deep = format!("{{\"sub\":\"ana\",\"x\":{}", "[".repeat(4000));
    let message = format!("{}.{}", encoded(&json!({ "alg": "HS256" })), URL_SAFE_NO_PAD.encode(deep));
    let signed = format!("{message}.{}", URL_SAFE_NO_PAD.encode(by_secret(SECRET)(message.as_bytes())));
    assert_eq!(error(&tokens, &signed), TokenError::Malformed);
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"x\":{}", "{\"a\":".repeat(800)));
    assert_eq!(error(&tokens, &format!("{header}.e30.AA")), TokenError::Malformed);
    for broken in
        ["e30.e30.", "e30..", "eyJhbGciOiJIUzI1NiJ9.e30.!", "eyJhbGciOiJIUzI1NiJ9.e30", "..", "", "eyJ.eyJ.eyJ"]
    {
        assert!(judge(&tokens, broken).is_err(), "{broken}");
    }
    assert!(tokens.judge(&[0xFF, 0x00, b'.', b'.'], NAMES, NOW, None).is_err());
}

#[test]
fn what_looks_like_a_token() {
    assert!(
        looks_like_token(hs256(&good()).as_bytes())
            && looks_like_token(b"eyJhIjoxfQ.e30.")
            && looks_like_token(b"eyAA..")
    );
    for other in
        ["", "tabuh", "a.b.c", "eyJhIjoxfQ.e30", "eyJhIjoxfQ.e30.a.b", "eyJhIjoxfQ.e30.p@ss", "W10A.e30.x", "eyJ.."]
    {
        assert!(!looks_like_token(other.as_bytes()), "{other}");
    }
}

#[test]
fn a_signature_is_remembered_with_its_key_and_nothing_else_is() {
    let (pair, point) = es256_pair();
    let tokens = tokens_of("", set_of(&[jwk_of_ec("ec", &point)]));
    let remembered = Remembered::new(10, 300).expect("randomness").expect("something to remember");
    let signed = token(&json!({ "alg": "ES256", "kid": "ec" }), &good(), by_pair(&pair));
    let judged = |tokens: &Tokens, wall_ms| {
        tokens.judge(signed.as_bytes(), NAMES, Now { wall_ms, ..NOW }, Some(&remembered)).map(|login| login.identity)
    };
    assert_eq!(judged(&tokens, NOW.wall_ms).as_deref(), Ok("ana"));
    let key = tokens.of_files().keys.named(Some("ec")).next().expect("the key").fingerprint;
    assert!(remembered.knows(key, REMEMBERED_AS, signed.as_bytes(), NOW.process_ms));
    assert_eq!(judged(&tokens, NOW.wall_ms + 100_000), Err(TokenError::Expired), "its claims are looked at each time");
    let (_, other_point) = es256_pair();
    let rotated = tokens_of("", set_of(&[jwk_of_ec("ec", &other_point)]));
    assert_eq!(judged(&rotated, NOW.wall_ms), Err(TokenError::BadSignature), "another key of that name");
    let forged = token(&json!({ "alg": "ES256", "kid": "ec" }), &good(), |_| vec![1; 64]);
    assert!(tokens.judge(forged.as_bytes(), NAMES, NOW, Some(&remembered)).is_err());
    assert!(!remembered.knows(key, REMEMBERED_AS, forged.as_bytes(), NOW.process_ms));
}

fn connect_with(token: &str) -> Connect {
    Connect {
        version: kentongan_proto::mqtt::ProtocolVersion::V5,
        bridge: false,
        clean_start: true,
        keep_alive: 0,
        client_id: NAMES.client_id.to_owned(),
        will: None,
        user_name: None,
        password: Some(token.to_owned().into()),
        properties: kentongan_proto::mqtt::ConnectProperties::default(),
    }
}

/// With keys that the server of `jwks_url` had when it was asked.
fn tokens_fetched(text: &str, keys: Keys) -> Tokens {
    let fetched = FetchedKeys::new(&config(text), None).expect("a client").expect("a server");
    fetched.take_up(keys);
    Tokens { fetched: Some(fetched), ..tokens_of(text, Keys::default()) }
}

/// Abuse: [authorize]
#[test]
fn who_came_by_a_token_stays_as_long_as_one_like_it_would_be_judged_the_same() {
    let (pair, point) = es256_pair();
    let keys = || set_of(&[jwk_of_ec("ec", &point)]);
    let signed = token(&json!({ "alg": "ES256", "kid": "ec" }), &good(), by_pair(&pair));
    let authority = Authority::default();
    let judge_by = |tokens: Tokens| {
        let policy = Policy { tokens: Some(Arc::new(tokens)), ..Policy::default() };
        authority.change(policy, &crate::config::AuthConfig::default()).expect("no thread is needed");
    };
    let come_in = || match authority.by_token(&authority.policy(), &connect_with(&signed), NOW) {
        Some(Progress::Identified(identified, _)) => identified,
        other => panic!("it is good: {other:?}"),
    };
    const URL: &str = "jwks_url = \"http://127.0.0.1:9/a\"\n";
    judge_by(tokens_fetched(URL, keys()));
    let by_fetched = come_in();
    judge_by(tokens_of("", keys()));
    let by_file = come_in();
    let with = |more: &str| format!("{URL}{more}");
    for (text, stays) in [
        (with(""), true),
        (with("jwks_refresh_seconds = 7\nleeway_seconds = 1\ntoken_bytes_max = 9000"), true),
        (String::from("jwks_url = \"http://127.0.0.1:9/b\""), false),
        (with("issuer = \"maker\""), false),
        (with("audience = \"broker\""), false),
        (with("required_claims = [\"dev=%c\"]"), false),
        (with("identity_claim = \"name\""), false),
        (with("acl_claim = \"rights\""), false),
        (with("require_expiry = false"), false),
    ] {
        judge_by(tokens_fetched(&text, keys()));
        assert_eq!(authority.is_still(&by_fetched), stays, "{text}");
        let of_files = text.replace("jwks_url", "#");
        judge_by(tokens_of(&of_files, keys()));
        assert!(!authority.is_still(&by_fetched), "no server is asked: {text}");
        assert_eq!(authority.is_still(&by_file), stays || !text.contains('/') || text.contains("/b"), "{text}");
    }
    judge_by(tokens_of("", secret()));
    assert!(!authority.is_still(&by_file), "its key is gone");
}

#[test]
fn a_token_that_names_its_key_is_held_against_that_one_first() {
    let (pair, point) = es256_pair();
    let nameless = || {
        let mut entry = jwk_of_ec("", &es256_pair().1);
        entry.as_object_mut().expect("an object").remove("kid");
        entry
    };
    let four = || (0..4).map(|_| nameless()).collect::<Vec<_>>();
    let signed = token(&json!({ "alg": "ES256", "kid": "ec" }), &good(), by_pair(&pair));
    let with_named = [four(), vec![jwk_of_ec("ec", &point)]].concat();
    assert!(judge(&tokens_of("", set_of(&with_named)), &signed).is_ok(), "whatever stands before it");
    // Those without a name in a file do not stand before what a server has.
    let mut both = tokens_fetched("jwks_url = \"http://127.0.0.1:9/\"", set_of(&with_named));
    both.of_files = RwLock::new(Arc::new(FileKeys { keys: set_of(&four()), digest: [0; 32] }));
    assert!(judge(&both, &signed).is_ok());
    // Nor before one there that has none either.
    let last = {
        let mut entry = jwk_of_ec("", &point);
        entry.as_object_mut().expect("an object").remove("kid");
        entry
    };
    let mut both = tokens_fetched("jwks_url = \"http://127.0.0.1:9/\"", set_of(&[last]));
    both.of_files = RwLock::new(Arc::new(FileKeys { keys: set_of(&four()), digest: [0; 32] }));
    assert!(judge(&both, &signed).is_ok());
}

#[test]
fn more_keys_without_a_name_than_are_tried_are_refused() {
    let nameless = |count: usize| {
        let entry = || {
            let mut entry = jwk_of_ec("", &es256_pair().1);
            entry.as_object_mut().expect("an object").remove("kid");
            entry
        };
        json!({ "keys": (0..count).map(|_| entry()).collect::<Vec<_>>() }).to_string()
    };
    let read = |text: &str| Keys::of_jwks(text.as_bytes(), true);
    assert!(read(&nameless(4)).is_ok());
    assert!(read(&nameless(5)).expect_err("too many").contains("without a name"));
    let mut keys = read(&nameless(4)).expect("few");
    assert!(keys.add(Keys::of_pem(ed_pem().as_bytes()).expect("a key")).is_ok(), "of another algorithm");
    assert!(keys.add(Keys::of_pem(pem_of(&es256_pair().1).as_bytes()).expect("a key")).is_err());
}

#[test]
fn fetched_keys_stay_if_they_are_fetched_from_the_same_place() {
    let (_, point) = es256_pair();
    let before = tokens_fetched("jwks_url = \"http://127.0.0.1:9/a\"", set_of(&[jwk_of_ec("ec", &point)]));
    let keys_after = |text: &str| {
        let after = Tokens::read(&config(text), Some(&before)).expect("settings");
        after.fetched().expect("a server").keys().is_some_and(|keys| keys.has_named(Some("ec")))
    };
    assert!(keys_after("jwks_url = \"http://127.0.0.1:9/a\""));
    assert!(keys_after("jwks_url = \"http://127.0.0.1:9/a\"\njwks_refresh_seconds = 7"));
    assert!(!keys_after("jwks_url = \"http://127.0.0.1:9/b\""));
}

/// What the module says about time, for whoever doubts it: `cargo test -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn what_verifying_costs() {
    let (pair, point) = es256_pair();
    let tokens = tokens_of("", set_of(&[jwk_of_ec("ec", &point), rsa_jwk("rsa")]));
    let remembered = Remembered::new(10, 300).expect("randomness").expect("something to remember");
    let ec = token(&json!({ "alg": "ES256", "kid": "ec" }), &good(), by_pair(&pair));
    let rsa = token(&json!({ "alg": "RS256", "kid": "rsa" }), &good(), by_rsa(&RSA_PKCS1_SHA256));
    for (name, token, remembered) in
        [("ES256", &ec, None), ("RS256", &rsa, None), ("ES256, remembered", &ec, Some(&remembered))]
    {
        let begun = Instant::now();
        for _ in 0..1000 {
            tokens.judge(token.as_bytes(), NAMES, NOW, remembered).expect("good");
        }
        println!("{name}: {:?} each", begun.elapsed() / 1000);
    }
}

proptest! {
    #[test]
    fn no_bytes_are_too_much(bytes in prop::collection::vec(any::<u8>(), 0..300), header in ".{0,40}", claims in ".{0,60}") {
        let tokens = tokens_of("", secret());
        let _ = looks_like_token(&bytes);
        prop_assert!(tokens.judge(&bytes, NAMES, NOW, None).is_err());
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signed = format!("{message}.{}", URL_SAFE_NO_PAD.encode(by_secret(SECRET)(message.as_bytes())));
        prop_assert!(judge(&tokens, &signed).is_err());
    }
}
