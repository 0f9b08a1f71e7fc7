//! Keys that a server has (JWKS), fetched again and again in the background.
//!
//! Nobody who connects waits for it. What was fetched last stands as long as nothing newer can be had; before the first time, tokens
//! cannot be judged, and clients are told to come again. A token that names a key nobody knows may be signed with one that is newer than
//! what was fetched: then it is fetched sooner, but at a bounded rate, since anybody can name keys.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::keys::Keys;
use crate::config::{HttpUrl, JwtConfig};
use crate::http_client::{HttpClient, HttpClientOptions};
use crate::metrics::count_jwks_fetch;

/// Time between two fetches at the least, whatever tokens name and however they end.
const INTERVAL_MIN: Duration = Duration::from_secs(10);

/// A set of 64 keys of 8192 bits with their certificates.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// What a server has.
#[derive(Debug)]
pub struct FetchedKeys {
    url: HttpUrl,
    refresh: Duration,
    client: HttpClient,
    /// What the settings said of it.
    config: JwtConfig,
    keys: RwLock<Option<Arc<Keys>>>,
    wanted: Notify,
    is_driven: AtomicBool,
}

impl FetchedKeys {
    /// `None`: the settings name no server. Nothing is fetched before somebody drives [`Self::fetching`]. Until then what `before`
    /// has stands, if it is from the same place: other intervals, or other authorities for it, are no reason to lock clients out.
    ///
    /// # Errors
    /// Its authorities cannot be read.
    pub(super) fn new(config: &JwtConfig, before: Option<&Self>) -> Result<Option<Arc<Self>>, String> {
        let Some(url) = config.jwks_url.clone() else {
            return Ok(None);
        };
        let keys = before.filter(|before| before.url == url).and_then(Self::keys);
        let options = HttpClientOptions {
            ca_file: config.jwks_ca_file.clone(),
            body_bytes_max: BODY_BYTES_MAX,
            ..HttpClientOptions::default()
        };
        Ok(Some(Arc::new(Self {
            url,
            refresh: Duration::from_secs(config.jwks_refresh_seconds.get().into()),
            client: HttpClient::new(&options).map_err(|error| error.to_string())?,
            config: config.clone(),
            keys: RwLock::new(keys),
            wanted: Notify::new(),
            is_driven: AtomicBool::new(false),
        })))
    }

    /// Whether it is what `config` says too, so that what it has can stay.
    pub(super) fn is_as(&self, config: &JwtConfig) -> bool {
        let own = &self.config;
        (own.jwks_url.as_ref(), own.jwks_ca_file.as_ref(), own.jwks_refresh_seconds)
            == (config.jwks_url.as_ref(), config.jwks_ca_file.as_ref(), config.jwks_refresh_seconds)
    }

    /// What was fetched last.
    pub(super) fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As if they had been fetched.
    #[cfg(test)]
    pub(super) fn take_up(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
    }

    /// Somebody names a key that is not there.
    pub(super) fn want_newer(&self) {
        self.wanted.notify_one();
    }

    async fn fetch(&self) -> Result<Keys, String> {
        let answer = self.client.get(&self.url).await.map_err(|error| error.to_string())?;
        if !answer.status.is_success() {
            return Err(format!("the answer is {}", answer.status));
        }
        Keys::of_jwks(&answer.body, false)
    }

    /// Fetches until nobody has the keys any more. To be driven on a runtime of tokio; `None`: that is being done.
    pub fn fetching(keys: &Arc<Self>) -> Option<impl Future<Output = ()> + use<>> {
        let is_driven = keys.is_driven.swap(true, Ordering::Relaxed);
        (!is_driven).then(|| Self::keep_fetching(Arc::downgrade(keys)))
    }

    async fn keep_fetching(keys: Weak<Self>) {
        let mut has_failed = false;
        loop {
            let Some(own) = keys.upgrade() else { return };
            let fetched = own.fetch().await;
            count_jwks_fetch(fetched.is_ok());
            match fetched {
                Ok(fetched) => {
                    if has_failed || own.keys().is_none() {
                        tracing::info!(server = own.url.authority(), "the keys of tokens were fetched");
                    }
                    has_failed = false;
                    *own.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(fetched));
                }
                Err(error) => {
                    has_failed = true;
                    let has_some = own.keys().is_some();
                    tracing::warn!(
                        server = own.url.authority(),
                        error,
                        has_some,
                        "the keys of tokens cannot be fetched (auth.jwt.jwks_url)"
                    );
                }
            }
            let refresh = own.refresh;
            let is_without = own.keys().is_none();
            drop(own);
            tokio::time::sleep(INTERVAL_MIN.min(refresh)).await;
            let Some(own) = keys.upgrade().filter(|_| !is_without) else { continue };
            let rest = refresh.saturating_sub(INTERVAL_MIN);
            // Held meanwhile, also if no settings name it any more: that is seen at the next turn.
            let _ = tokio::time::timeout(rest, own.wanted.notified()).await;
        }
    }
}
