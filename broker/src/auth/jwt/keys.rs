//! Keys that tokens are signed with, and what each is for.
//!
//! A key says by itself which algorithms it is for: a secret for HMAC, a public key for those of its kind, or the one that its entry in
//! a key set names. What a token says in its header is held against that, and never the other way round.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use ring::digest;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use serde::Deserialize as _;
use serde_json::Value;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Keys in one set.
pub(super) const KEYS_MAX: usize = 64;

/// Keys without a name for one algorithm, in files or on the server: each is tried for every token of that algorithm.
pub(super) const NAMELESS_MAX: usize = 4;

/// The size of the smallest digest: a shorter secret is the weakest place of its tokens (RFC 7518, section 3.2).
const SECRET_BYTES_MIN: usize = 32;

/// Of a modulus: 2048 to 8192 bits.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    id: Option<Box<str>>,
    algorithms: Box<[Algorithm]>,
    pub(super) decoding: DecodingKey,
    /// Tells it from others.
    pub(super) fingerprint: u64,
}

impl Key {
    fn new(id: Option<String>, algorithms: &[Algorithm], decoding: DecodingKey, material: &[&[u8]]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&[decoding.family() as u8]);
        material.iter().for_each(|part| context.update(part));
        let mut fingerprint = [0; 8];
        fingerprint.copy_from_slice(&context.finish().as_ref()[..8]);
        let fingerprint = u64::from_le_bytes(fingerprint);
        Self { id: id.map(Into::into), algorithms: algorithms.into(), decoding, fingerprint }
    }

    /// Whether tokens of that algorithm may be signed with it.
    pub(super) fn is_for(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// Whether to verify costs next to nothing.
    pub(super) fn is_quick(&self) -> bool {
        self.decoding.family() == AlgorithmFamily::Hmac
    }
}

/// Some keys.
#[derive(Debug, Default)]
pub(super) struct Keys(Vec<Key>);

impl Keys {
    /// Those by which a token is signed that names the key `id`. All, if it names none.
    pub(super) fn named(&self, id: Option<&str>) -> impl Iterator<Item = &Key> {
        self.0.iter().filter(move |key| id.is_none() || key.id.as_deref() == id)
    }

    /// Those by which it may be signed as well: they have no name.
    pub(super) fn nameless(&self, id: Option<&str>) -> impl Iterator<Item = &Key> {
        self.0.iter().filter(move |key| id.is_some() && key.id.is_none())
    }

    /// Whether there is one of that name.
    pub(super) fn has_named(&self, id: Option<&str>) -> bool {
        id.is_some() && self.0.iter().any(|key| key.id.as_deref() == id)
    }

    /// Whether that key is among them.
    pub(super) fn has(&self, fingerprint: u64) -> bool {
        self.0.iter().any(|key| key.fingerprint == fingerprint)
    }

    /// Adds others.
    ///
    /// # Errors
    /// They are too many together.
    pub(super) fn add(&mut self, others: Self) -> Result<(), String> {
        self.0.extend(others.0);
        self.check_count()
    }

    /// Whether each of them is tried for a token that it may have signed.
    fn check_count(&self) -> Result<(), String> {
        if self.0.len() > KEYS_MAX {
            return Err(format!("more than {KEYS_MAX} keys"));
        }
        let is_one_too_many = |key: &Key| {
            let nameless = self.0.iter().filter(|other| other.id.is_none());
            let alike = nameless.filter(|other| key.algorithms.iter().any(|&algorithm| other.is_for(algorithm)));
            key.id.is_none() && alike.count() > NAMELESS_MAX
        };
        if self.0.iter().any(is_one_too_many) {
            return Err(format!("more than {NAMELESS_MAX} keys without a name (kid) for one algorithm"));
        }
        Ok(())
    }

    /// The contents of a file with a secret.
    ///
    /// # Errors
    /// It is too short, or a key of another kind.
    pub(super) fn of_secret(contents: &[u8]) -> Result<Self, String> {
        // Who takes a public key for a secret lets in whoever has read it.
        let is_pem = contents.windows(10).any(|window| window == b"-----BEGIN");
        if is_pem || SubjectPublicKeyInfo::from_der(contents).is_ok() {
            return Err(String::from("this is a key, not a secret: public keys belong into `public_key_file`"));
        }
        let secret = contents.strip_suffix(b"\n").unwrap_or(contents);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        Ok(Self(vec![secret_key(None, AlgorithmFamily::Hmac.algorithms(), secret)?]))
    }

    /// The contents of a file with public keys (PEM).
    ///
    /// # Errors
    /// There is none in it, or one that is not supported.
    pub(super) fn of_pem(contents: &[u8]) -> Result<Self, String> {
        if PrivateKeyDer::pem_slice_iter(contents).any(|found| found.is_ok()) {
            return Err(String::from(
                "there is a private key in it: whoever has that makes tokens; give the public one",
            ));
        }
        let found: Result<Vec<_>, _> = SubjectPublicKeyInfoDer::pem_slice_iter(contents).collect();
        let found = found.map_err(|error| format!("no PEM: {error}"))?;
        if found.is_empty() {
            return Err(String::from("there is no public key in it (BEGIN PUBLIC KEY)"));
        }
        Ok(Self(found.iter().map(|der| public_key(der)).collect::<Result<_, _>>()?))
    }

    /// A JSON Web Key Set. Entries that are not for signatures, or of a kind that is not known, are passed over (RFC 7517, section
    /// 5). `with_secrets`: secrets among them count.
    ///
    /// # Errors
    /// It is none, or there is no key in it.
    pub(super) fn of_jwks(contents: &[u8], with_secrets: bool) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(contents).map_err(|error| format!("no JSON: {error}"))?;
        let entries =
            set.get("keys").and_then(Value::as_array).ok_or("no key set: there is no list of `keys` in it")?;
        if entries.len() > KEYS_MAX {
            return Err(format!("more than {KEYS_MAX} keys"));
        }
        let read = |entry: &Value| Jwk::deserialize(entry).ok().and_then(|jwk| of_jwk(&jwk, with_secrets));
        let keys: Vec<_> = entries.iter().filter_map(read).collect();
        if keys.is_empty() {
            return Err(String::from("there is no key in it that verifies signatures"));
        }
        let keys = Self(keys);
        keys.check_count()?;
        Ok(keys)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(path: &Path, parse: impl FnOnce(&[u8]) -> Result<Self, String>) -> Result<Self, String> {
        parse(&std::fs::read(path).map_err(|error| error.to_string())?)
    }
}

fn secret_key(id: Option<String>, algorithms: &[Algorithm], secret: &[u8]) -> Result<Key, String> {
    if secret.len() < SECRET_BYTES_MIN {
        return Err(format!("the secret has {} bytes, it needs {SECRET_BYTES_MIN}", secret.len()));
    }
    Ok(Key::new(id, algorithms, DecodingKey::from_secret(secret), &[secret]))
}

fn rsa_key(id: Option<String>, algorithms: &[Algorithm], modulus: &[u8], exponent: &[u8]) -> Result<Key, String> {
    let trimmed = |number: &'_ [u8]| number.iter().copied().skip_while(|&byte| byte == 0).collect::<Vec<u8>>();
    let (n, e) = (trimmed(modulus), trimmed(exponent));
    if !MODULUS_BYTES.contains(&n.len()) || e.is_empty() || e.len() > 8 {
        return Err(String::from("an RSA key has 2048 to 8192 bits"));
    }
    Ok(Key::new(id, algorithms, DecodingKey::from_rsa_raw_components(&n, &e), &[&n, &e]))
}

fn point_key(id: Option<String>, algorithm: Algorithm, point: &[u8]) -> Key {
    Key::new(id, &[algorithm], DecodingKey::from_ec_der(point), &[point])
}

/// By the size of an uncompressed point.
fn curve_of(point: &[u8]) -> Option<Algorithm> {
    match (point.first(), point.len()) {
        (Some(4), 65) => Some(Algorithm::ES256),
        (Some(4), 97) => Some(Algorithm::ES384),
        _ => None,
    }
}

fn public_key(der: &[u8]) -> Result<Key, String> {
    let unsupported = || String::from("only RSA, P-256, P-384 and Ed25519 keys are supported");
    let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| unsupported())?;
    // RFC 8410: the library below knows no such name.
    if info.algorithm.algorithm.to_id_string() == "1.3.101.112" {
        return ed_key(None, &info.subject_public_key.data).ok_or_else(unsupported);
    }
    match info.parsed().map_err(|_| unsupported())? {
        PublicKey::RSA(key) => rsa_key(None, AlgorithmFamily::Rsa.algorithms(), key.modulus, key.exponent),
        PublicKey::EC(point) => {
            let algorithm = curve_of(point.data()).ok_or_else(unsupported)?;
            Ok(point_key(None, algorithm, point.data()))
        }
        _ => Err(unsupported()),
    }
}

fn ed_key(id: Option<String>, key: &[u8]) -> Option<Key> {
    (key.len() == 32).then(|| Key::new(id, &[Algorithm::EdDSA], DecodingKey::from_ed_der(key), &[key]))
}

fn of_jwk(jwk: &Jwk, with_secrets: bool) -> Option<Key> {
    let common = &jwk.common;
    let verifies = |operations: &Vec<KeyOperations>| operations.contains(&KeyOperations::Verify);
    if common.public_key_use.as_ref().is_some_and(|of| *of != PublicKeyUse::Signature)
        || common.key_operations.as_ref().is_some_and(|operations| !verifies(operations))
    {
        return None;
    }
    let id = common.key_id.clone();
    let decoded = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    // One that is named must be of the kind of the key.
    let named = |own: &[Algorithm]| match common.key_algorithm {
        None => Some(own.to_vec()),
        Some(name) => algorithm_named(name).filter(|named| own.contains(named)).map(|named| vec![named]),
    };
    match &jwk.algorithm {
        AlgorithmParameters::RSA(key) => {
            let algorithms = named(AlgorithmFamily::Rsa.algorithms())?;
            rsa_key(id, &algorithms, &decoded(&key.n)?, &decoded(&key.e)?).ok()
        }
        AlgorithmParameters::EllipticCurve(key) => {
            let point = [&[4u8][..], &*decoded(&key.x)?, &*decoded(&key.y)?].concat();
            let algorithm = match key.curve {
                EllipticCurve::P256 => Algorithm::ES256,
                EllipticCurve::P384 => Algorithm::ES384,
                _ => return None,
            };
            named(&[algorithm])?;
            (curve_of(&point) == Some(algorithm)).then(|| point_key(id, algorithm, &point))
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            named(&[Algorithm::EdDSA])?;
            ed_key(id, &decoded(&key.x)?)
        }
        AlgorithmParameters::OctetKey(key) if with_secrets => {
            let algorithms = named(AlgorithmFamily::Hmac.algorithms())?;
            secret_key(id, &algorithms, &decoded(&key.value)?).ok()
        }
        _ => None,
    }
}

fn algorithm_named(name: KeyAlgorithm) -> Option<Algorithm> {
    Algorithm::try_from(name).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{ed_pem, es256_pair, jwk_of_ec, pem_of};
    use super::*;

    #[test]
    fn a_public_key_is_never_taken_for_a_secret() {
        let (_, point) = es256_pair();
        let pem = pem_of(&point);
        let error = Keys::of_secret(pem.as_bytes()).expect_err("a key");
        assert!(error.starts_with("this is a key"), "{error}");
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).expect("a key");
        assert!(Keys::of_secret(&der).expect_err("a key").starts_with("this is a key"));
        let keys = Keys::of_pem(pem.as_bytes()).expect("a key");
        let all = [AlgorithmFamily::Hmac, AlgorithmFamily::Rsa, AlgorithmFamily::Ec, AlgorithmFamily::Ed];
        let algorithms = all.iter().flat_map(|family| family.algorithms()).copied();
        let own: Vec<_> = algorithms.filter(|&one| keys.0[0].is_for(one)).collect();
        assert_eq!(own, [Algorithm::ES256]);
    }

    #[test]
    fn a_secret_is_long_enough_and_ends_before_its_line() {
        assert!(Keys::of_secret(&[b'x'; 31]).is_err() && Keys::of_secret(b"").is_err());
        let same = [&b"0123456789abcdef0123456789abcdef"[..], b"0123456789abcdef0123456789abcdef\r\n"];
        let [one, other] = same.map(|text| Keys::of_secret(text).expect("a secret").0.remove(0).fingerprint);
        assert_eq!(one, other);
    }

    #[test]
    fn a_file_of_keys_has_public_ones_only() {
        let (_, point) = es256_pair();
        let both = pem_of(&point) + &ed_pem();
        assert_eq!(Keys::of_pem(both.as_bytes()).expect("two keys").0.len(), 2);
        assert!(Keys::of_pem(b"nothing").expect_err("none").contains("there is no public key"));
        let private = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(Keys::of_pem(private.as_bytes()).expect_err("private").contains("private key"));
    }

    #[test]
    fn of_a_key_set_what_is_for_something_else_is_passed_over() {
        let (_, point) = es256_pair();
        let good = jwk_of_ec("a", &point);
        let with = |more: Value| {
            let mut entry = good.clone();
            entry.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            entry
        };
        let secret = json!({ "kty": "oct", "kid": "s", "k": URL_SAFE_NO_PAD.encode([7; 32]) });
        let others = [
            with(json!({ "use": "enc" })),
            with(json!({ "key_ops": ["sign"] })),
            with(json!({ "alg": "HS256" })),
            with(json!({ "alg": "ES384" })),
            with(json!({ "alg": "RSA-OAEP" })),
            with(json!({ "crv": "P-384" })),
            with(json!({ "x": "AAAA" })),
            json!({ "kty": "future", "kid": "f" }),
            json!("no key"),
            secret.clone(),
        ];
        for other in &others {
            let set = json!({ "keys": [other] }).to_string();
            assert!(Keys::of_jwks(set.as_bytes(), false).is_err(), "{other}");
            let set = json!({ "keys": [other, good, with(json!({ "alg": "ES256", "use": "sig" }))] }).to_string();
            assert_eq!(Keys::of_jwks(set.as_bytes(), false).expect("a set").0.len(), 2, "{other}");
        }
        let set = json!({ "keys": [secret] }).to_string();
        assert_eq!(Keys::of_jwks(set.as_bytes(), true).expect("a set").0.len(), 1);
        for wrong in ["", "[]", "{\"keys\": {}}", "{\"keys\": []}"] {
            assert!(Keys::of_jwks(wrong.as_bytes(), true).is_err(), "{wrong}");
        }
        let many = json!({ "keys": vec![good; KEYS_MAX + 1] }).to_string();
        assert!(Keys::of_jwks(many.as_bytes(), true).is_err());
    }

    #[test]
    fn a_name_selects_among_those_that_have_one() {
        let mut keys = Keys::default();
        for name in [Some("a"), Some("b"), None] {
            let key = secret_key(
                name.map(str::to_owned),
                &[Algorithm::HS256],
                &[name.map_or(0, |name| name.as_bytes()[0]); 32],
            );
            keys.add(Keys(vec![key.expect("a secret")])).expect("few");
        }
        let names = |id| keys.named(id).chain(keys.nameless(id)).map(|key| key.id.as_deref()).collect::<Vec<_>>();
        assert_eq!(names(Some("a")), [Some("a"), None]);
        assert_eq!(names(Some("c")), [None]);
        assert_eq!(names(None), [Some("a"), Some("b"), None]);
    }
}
