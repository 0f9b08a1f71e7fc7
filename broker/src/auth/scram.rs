//! SCRAM-SHA-256 (RFC 5802, RFC 7677): who knows the password shows it without sending it, and sees that we know it too.
//!
//! Only for users whose line of the password file has the keys that this takes (`$scram-sha-256$`): they cannot be made of
//! another hash. Channel binding is not offered. Somebody who is no user is asked as users are, the same each time, and told no
//! sooner than others that it failed.

use std::num::NonZeroU32;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use kentongan_proto::mqtt::ReasonCode;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};
use subtle::ConstantTimeEq;

use super::password_file::ITERATIONS_MAX;
use super::{Mechanism, MechanismStep, Policy, StoredPassword};

/// The Authentication Method.
pub(super) const METHOD: &str = "SCRAM-SHA-256";

/// Rounds of what we write, as RFC 7677 asks at least; more would be the clients' work at each connection.
pub(super) const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("not 0");

const KEY_BYTES: usize = digest::SHA256_OUTPUT_LEN;

const SALT_BYTES: usize = 16;

/// Of an entry that was made elsewhere.
const SALT_BYTES_MAX: usize = 1024;

const NONCE_BYTES: usize = 18;

/// What is kept of a password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ScramKeys {
    pub(super) iterations: NonZeroU32,
    pub(super) salt: Box<[u8]>,
    stored_key: [u8; KEY_BYTES],
    server_key: [u8; KEY_BYTES],
}

impl ScramKeys {
    fn derive(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Self {
        let mut salted = [0; KEY_BYTES];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password, &mut salted);
        let client_key = mac(&salted, b"Client Key");
        Self { iterations, salt: salt.into(), stored_key: sha256(&client_key), server_key: mac(&salted, b"Server Key") }
    }

    /// Those of a password, with a salt of their own.
    pub(super) fn new(password: &[u8]) -> anyhow::Result<Self> {
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new().fill(&mut salt).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        Ok(Self::derive(password, &salt, ITERATIONS))
    }

    /// Reads `ITERATIONS`, `SALT`, `STORED_KEY`, `SERVER_KEY`, the last three in base64.
    pub(super) fn parse(iterations: &str, salt: &str, stored_key: &str, server_key: &str) -> Result<Self, String> {
        let bytes =
            |text: &str| BASE64.decode(text).map_err(|_| String::from("not base64 where salt or keys should be"));
        let key = |text: &str| {
            <[u8; KEY_BYTES]>::try_from(bytes(text)?.as_slice()).map_err(|_| String::from("not a key of 32 bytes"))
        };
        let iterations = iterations.parse::<NonZeroU32>().ok().filter(|number| number.get() <= ITERATIONS_MAX);
        let iterations = iterations.ok_or("the number of iterations cannot be used")?;
        let salt = bytes(salt)?;
        if salt.len() > SALT_BYTES_MAX {
            return Err(format!("a salt of {} bytes; at most {SALT_BYTES_MAX}", salt.len()));
        }
        Ok(Self { iterations, salt: salt.into(), stored_key: key(stored_key)?, server_key: key(server_key)? })
    }

    /// As it stands in a password file.
    pub(super) fn to_line(&self) -> String {
        let [salt, stored_key, server_key] =
            [&*self.salt, &self.stored_key, &self.server_key].map(|one| BASE64.encode(one));
        format!("$scram-sha-256${}${salt}${stored_key}${server_key}", self.iterations)
    }

    /// Whether it is the password, sent as it is.
    pub(super) fn matches(&self, password: &[u8]) -> bool {
        let asked = Self::derive(password, &self.salt, self.iterations);
        asked.stored_key.ct_eq(&self.stored_key).into()
    }

    fn client_proof_is_right(&self, message: &[u8], proof: &[u8]) -> bool {
        let signature = mac(&self.stored_key, message);
        let Ok(proof) = <[u8; KEY_BYTES]>::try_from(proof) else {
            return false;
        };
        let client_key: [u8; KEY_BYTES] = std::array::from_fn(|index| proof[index] ^ signature[index]);
        sha256(&client_key).ct_eq(&self.stored_key).into()
    }
}

fn mac(key: &[u8], message: &[u8]) -> [u8; KEY_BYTES] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    let mut bytes = [0; KEY_BYTES];
    bytes.copy_from_slice(tag.as_ref());
    bytes
}

fn sha256(message: &[u8]) -> [u8; KEY_BYTES] {
    let mut bytes = [0; KEY_BYTES];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, message).as_ref());
    bytes
}

/// Where an exchange is.
enum State {
    /// Nothing was said.
    Begun,
    /// We said the nonce, salt and rounds.
    Challenged {
        user: Box<str>,
        /// `None`: there is no such user.
        keys: Option<ScramKeys>,
        gs2_header: String,
        nonce: String,
        /// What both sign, without the last part.
        signed: String,
    },
    /// It succeeded or failed.
    Over,
}

/// One exchange.
pub(super) struct Scram {
    policy: Arc<Policy>,
    state: State,
    server_nonce: Option<String>,
}

impl Scram {
    pub(super) fn new(policy: Arc<Policy>) -> Self {
        let mut bytes = [0; NONCE_BYTES];
        // Without randomness nobody gets in: an old exchange could be played again.
        let server_nonce = SystemRandom::new().fill(&mut bytes).is_ok().then(|| BASE64.encode(bytes));
        Self { policy, state: State::Begun, server_nonce }
    }

    fn first(&mut self, message: &str) -> Option<Bytes> {
        let gs2_header = ["n,,", "y,,"].into_iter().find(|header| message.starts_with(header))?;
        let bare = &message[gs2_header.len()..];
        let mut parts = bare.split(',');
        let user = unescaped(parts.next()?.strip_prefix("n=")?)?;
        let client_nonce = parts.next()?.strip_prefix("r=").filter(|nonce| !nonce.is_empty())?;
        // What extensions ask for we cannot know.
        if parts.next().is_some() || !client_nonce.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) {
            return None;
        }
        let file = self.policy.passwords.as_ref()?;
        let keys = match file.stored(&user) {
            Some(StoredPassword::Scram(keys)) => Some(keys.clone()),
            _ => None,
        };
        let (salt, iterations) = match &keys {
            Some(keys) => (BASE64.encode(&keys.salt), keys.iterations),
            None => {
                let (salt, iterations) = file.challenge_of_stranger(&user);
                (BASE64.encode(salt), iterations)
            }
        };
        let nonce = format!("{client_nonce}{}", self.server_nonce.as_ref()?);
        let answer = format!("r={nonce},s={salt},i={iterations}");
        let signed = format!("{bare},{answer}");
        let gs2_header = gs2_header.to_owned();
        self.state = State::Challenged { user: user.into(), keys, gs2_header, nonce, signed };
        Some(Bytes::from(answer))
    }

    fn last(message: &str, challenged: State) -> Option<(Box<str>, Bytes)> {
        let State::Challenged { user, keys, gs2_header, nonce, signed } = challenged else {
            return None;
        };
        let (without_proof, proof) = message.rsplit_once(",p=")?;
        let mut parts = without_proof.split(',');
        let is_bound = parts.next()?.strip_prefix("c=")? == BASE64.encode(gs2_header);
        let is_same_nonce = parts.next()?.strip_prefix("r=")? == nonce;
        if !is_bound || !is_same_nonce || parts.next().is_some() {
            return None;
        }
        let proof = BASE64.decode(proof).ok()?;
        let signed = format!("{signed},{without_proof}");
        let keys = keys.filter(|keys| keys.client_proof_is_right(signed.as_bytes(), &proof))?;
        let signature = BASE64.encode(mac(&keys.server_key, signed.as_bytes()));
        Some((user, Bytes::from(format!("v={signature}"))))
    }
}

impl Mechanism for Scram {
    fn stored_password(&self, identity: &str) -> Option<&StoredPassword> {
        self.policy.passwords.as_ref()?.stored(identity)
    }

    fn step(&mut self, data: Option<&[u8]>) -> MechanismStep {
        let message = data.and_then(|data| std::str::from_utf8(data).ok()).unwrap_or_default();
        match std::mem::replace(&mut self.state, State::Over) {
            State::Begun => match self.first(message) {
                Some(challenge) => MechanismStep::Continue(Some(challenge)),
                None => MechanismStep::Failure(ReasonCode::NotAuthorized),
            },
            challenged @ State::Challenged { .. } => match Self::last(message, challenged) {
                Some((user, data)) => MechanismStep::Success { identity: Arc::from(user), data: Some(data) },
                None => MechanismStep::Failure(ReasonCode::NotAuthorized),
            },
            State::Over => MechanismStep::Failure(ReasonCode::NotAuthorized),
        }
    }
}

/// A name with `=2C` for a comma and `=3D` for an equals sign.
fn unescaped(text: &str) -> Option<String> {
    let mut parts = text.split('=');
    let mut name = parts.next()?.to_owned();
    for part in parts {
        let (sign, rest) = match (part.strip_prefix("2C"), part.strip_prefix("3D")) {
            (Some(rest), _) => (',', rest),
            (None, Some(rest)) => ('=', rest),
            (None, None) => return None,
        };
        name.push(sign);
        name.push_str(rest);
    }
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "user";

    /// RFC 7677, section 3; the password is `pencil`.
    fn exchange() -> Scram {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        let keys = ScramKeys::derive(b"pencil", &salt, ITERATIONS);
        let policy = Policy::of_users(&format!("{USER}:{}\n", keys.to_line())).expect("a file");
        let server_nonce = Some("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_owned());
        Scram { server_nonce, ..Scram::new(Arc::new(policy)) }
    }

    fn step(scram: &mut Scram, message: &str) -> Result<String, bool> {
        let text = |data: Option<Bytes>| String::from_utf8(data.expect("data").to_vec()).expect("UTF-8");
        match scram.step(Some(message.as_bytes())) {
            MechanismStep::Continue(data) => Ok(text(data)),
            MechanismStep::Success { identity, data } => {
                assert_eq!(&*identity, USER);
                Ok(text(data))
            }
            MechanismStep::Failure(reason) => Err(reason == ReasonCode::NotAuthorized),
        }
    }

    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const LAST: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    #[test]
    fn the_exchange_of_rfc_7677() {
        let mut scram = exchange();
        let challenge = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        assert_eq!(step(&mut scram, FIRST).as_deref(), Ok(challenge));
        assert_eq!(step(&mut scram, LAST).as_deref(), Ok("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
        assert_eq!(step(&mut scram, LAST), Err(true), "it is over");
    }

    /// What was overheard is of no use: our nonce is another one each time.
    #[test]
    fn an_exchange_cannot_be_played_again() {
        let mut scram = Scram::new(Arc::clone(&exchange().policy));
        assert!(step(&mut scram, FIRST).is_ok());
        assert_eq!(step(&mut scram, LAST), Err(true));
    }

    #[test]
    fn no_two_exchanges_begin_alike() {
        let mut challenges = Vec::new();
        for _ in 0..2 {
            challenges.push(step(&mut Scram::new(Arc::clone(&exchange().policy)), FIRST));
        }
        assert!(challenges[0].is_ok() && challenges[0] != challenges[1]);
        let salt = |user: &str| {
            let challenge = step(&mut exchange(), &format!("n,,n={user},r=abc")).expect("a challenge");
            challenge.split(',').nth(1).expect("a salt").to_owned()
        };
        assert_ne!(salt("nobody"), salt("somebody"), "or strangers would be known by theirs");
    }

    /// What somebody who knows the password answers with, whatever stands before the proof.
    fn signed_last(scram: &Scram, without_proof: &str) -> String {
        let State::Challenged { signed, .. } = &scram.state else { panic!("no challenge is out") };
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        let mut salted = [0; KEY_BYTES];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &salt, b"pencil", &mut salted);
        let client_key = mac(&salted, b"Client Key");
        let signature = mac(&sha256(&client_key), format!("{signed},{without_proof}").as_bytes());
        let proof: [u8; KEY_BYTES] = std::array::from_fn(|index| client_key[index] ^ signature[index]);
        format!("{without_proof},p={}", BASE64.encode(proof))
    }

    /// That the proof is right is not enough: it must be of what was said before, and of nothing that nobody understands.
    #[test]
    fn the_last_message_repeats_what_the_exchange_began_with() {
        let right = LAST.split_once(",p=").expect("a proof").0;
        let changed = [right.replace("biws", "eSws"), right.replace("r=rO", "r=rP"), format!("{right},x=y")];
        for (without_proof, is_right) in changed.iter().map(|text| (text.as_str(), false)).chain([(right, true)]) {
            let mut scram = exchange();
            assert!(step(&mut scram, FIRST).is_ok());
            let last = signed_last(&scram, without_proof);
            assert_eq!(step(&mut scram, &last).is_ok(), is_right, "{last}");
        }
    }

    #[test]
    fn whoever_is_not_the_user_fails_at_the_end() {
        for last in
            [LAST.replace("p=d", "p=e"), LAST.replace("biws", "eSws"), LAST.replace("r=rO", "r=rP"), String::new()]
        {
            let mut scram = exchange();
            assert!(step(&mut scram, FIRST).is_ok());
            assert_eq!(step(&mut scram, &last), Err(true), "{last}");
        }
        let of_stranger = || step(&mut exchange(), "n,,n=nobody,r=abc").expect("a challenge");
        assert_eq!(of_stranger(), of_stranger(), "a salt that changes would tell");
        assert!(of_stranger().ends_with(",i=4096"));
        let mut scram = exchange();
        assert!(step(&mut scram, "n,,n=nobody,r=rOprNGfwEbeRWgbNEkqO").is_ok());
        assert_eq!(step(&mut scram, LAST), Err(true));
    }

    #[test]
    fn what_cannot_be_understood_fails() {
        for first in [
            "",
            "n,,",
            "p=tls-unique,,n=user,r=a",
            "n,a=other,n=user,r=a",
            "n,,n=user,r=",
            "n,,m=x,n=user,r=a",
            "n,,n=us=er,r=a",
            "n,,n=,r=a",
            "n,,n=user,r=a,x=y",
        ] {
            assert_eq!(step(&mut exchange(), first), Err(true), "{first}");
        }
        assert_eq!(unescaped("a=2Cb=3Dc").as_deref(), Some("a,b=c"));
    }

    #[test]
    fn the_same_keys_serve_a_password_that_is_sent() {
        let keys = ScramKeys::new(b"tabuh").expect("random bytes");
        assert!(keys.matches(b"tabuh") && !keys.matches(b"tabuh7"));
    }
}
