//! Whoever issues tokens (JWT) to the clients of a storm.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PublicKeyData};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use tempfile::TempDir;

use crate::wire::handshake::Login;

/// A run is over long before.
const GOOD_FOR: Duration = Duration::from_secs(24 * 3600);

/// Signs by ECDSA on P-256 (ES256).
pub struct Issuer {
    key: EcdsaKeyPair,
    public_key: PathBuf,
    /// Held as long as a broker may read it.
    _dir: TempDir,
}

impl Issuer {
    /// With a key of its own.
    pub fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let key = KeyPair::generate()?;
        let public_key = dir.path().join("issuer.pem");
        fs::write(&public_key, pem(&key)).context("writing a public key")?;
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der(), &SystemRandom::new())
                .map_err(|error| anyhow!("a key that was just made is refused: {error}"))?;
        Ok(Self { key, public_key, _dir: dir })
    }

    /// Settings of a broker that takes its tokens.
    pub fn settings(&self) -> String {
        let path: &Path = &self.public_key;
        format!("[auth.jwt]\npublic_key_file = {:?}\n", path.display().to_string())
    }

    /// `PREFIX0`, `PREFIX1`, …, each with a token of its own as its password.
    pub fn logins(&self, prefix: &str, count: usize) -> Result<Vec<Login>> {
        let until = SystemTime::now().duration_since(UNIX_EPOCH)? + GOOD_FOR;
        let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","typ":"JWT"}"#);
        let random = SystemRandom::new();
        let login = |number| {
            let user = format!("{prefix}{number}");
            let claims = serde_json::json!({ "sub": user, "exp": until.as_secs() });
            let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
            let signature = self.key.sign(&random, signed.as_bytes()).map_err(|_| anyhow!("no token was signed"))?;
            Ok(Login { user, password: format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)) })
        };
        (0..count).map(login).collect()
    }
}

fn pem(key: &KeyPair) -> String {
    let der = base64::engine::general_purpose::STANDARD.encode(key.subject_public_key_info());
    let lines: String = der.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{lines}-----END PUBLIC KEY-----\n")
}
