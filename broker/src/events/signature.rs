//! The signature of a request, as Standard Webhooks has it: HMAC-SHA256 over its number, its time and its body. So a receiver knows from
//! whom it is, that it is whole, that it is not an old one that somebody sends again, and whether it came before.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{HeaderName, HeaderValue, InvalidHeaderValue};
use ring::hmac;

/// Signs with one key.
pub(super) struct Signer(hmac::Key);

/// Without the key.
impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    pub(super) fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The headers of a request. `id` is the same when it is tried again, `seconds` (since 1970) is when it is tried.
    ///
    /// # Errors
    /// `id` has a character that cannot stand in a header.
    pub(super) fn headers(
        &self,
        id: &str,
        seconds: u64,
        body: &[u8],
    ) -> Result<[(HeaderName, HeaderValue); 3], InvalidHeaderValue> {
        Ok([
            (HeaderName::from_static("webhook-id"), HeaderValue::from_str(id)?),
            (HeaderName::from_static("webhook-timestamp"), HeaderValue::from(seconds)),
            (HeaderName::from_static("webhook-signature"), HeaderValue::from_str(&self.sign(id, seconds, body))?),
        ])
    }

    fn sign(&self, id: &str, seconds: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(format!("{id}.{seconds}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification, <https://www.standardwebhooks.com>.
    #[test]
    fn a_request_is_signed_as_the_specification_has_it() {
        let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signer = Signer::new(&key);
        let signature = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(!format!("{signer:?}").contains("Key"));
    }
}
