//! Certificates of the listeners: read at the start, and again when they or the settings change.

use std::sync::{Arc, Weak};

use anyhow::Context;

use super::ListenerContext;
use super::serve::Listener;
use crate::config::{ListenerConfig, Settings, TlsConfig};
use crate::metrics::{ReloadOutcome, TlsMetrics};
use crate::tls::{Endpoint, Files, Handshakes, TlsFileError};

/// A listener that serves TLS if `config` says so.
///
/// # Errors
/// Which file cannot be used, and why. A broker that starts without what it was told to show would be found by nobody.
pub(super) fn start(
    context: &Arc<ListenerContext>,
    settings: &Settings,
    metrics: &TlsMetrics,
) -> anyhow::Result<Arc<ListenerContext>> {
    let Some(tls) = &context.config.tls else {
        return Ok(Arc::clone(context));
    };
    let handshakes = Arc::new(Handshakes::new(&context.address, metrics.clone()));
    let endpoint = Endpoint::new(tls, &Files::read(tls), handshakes, None).with_context(|| {
        format!("cannot serve TLS on {}: mend the file or name another in [listener.tls]", context.address)
    })?;
    let context = context.reloaded(context.config.clone(), settings).with_tls(Some(Arc::new(endpoint)));
    Ok(Arc::new(context))
}

impl Listener {
    /// What its next connections are served with if they are served as `config` says. Nothing changes by that.
    ///
    /// # Errors
    /// Which file cannot be used, and why; it is counted and logged.
    pub(super) fn prepare(
        &self,
        config: &ListenerConfig,
        metrics: &TlsMetrics,
    ) -> Result<Option<Arc<Endpoint>>, TlsFileError> {
        let before = self.context.borrow();
        let tls = config.tls.as_ref().map(|tls| renewed(&before, tls, metrics)).transpose();
        tls.inspect_err(|error| refuse(&before, error, metrics))
    }

    /// Serves its next connections as `config` and `settings` say, with what was [prepared](Self::prepare).
    pub(super) fn reload(
        &mut self,
        config: &ListenerConfig,
        settings: &Settings,
        tls: Option<Arc<Endpoint>>,
        metrics: &TlsMetrics,
    ) {
        let before = Arc::clone(&self.context.borrow());
        self.take_up(&before, before.reloaded(config.clone(), settings).with_tls(tls), metrics);
    }

    /// Looks at the files of its certificates, and serves its next connections with what has come there.
    pub(super) fn look_at_certificates(&mut self, settings: &Settings, metrics: &TlsMetrics) {
        let before = Arc::clone(&self.context.borrow());
        let (Some(tls), Some(endpoint)) = (&before.config.tls, &before.tls) else {
            return;
        };
        let files = Files::read(tls);
        if !self.watch.look(&files, endpoint.is_made_of(&files)) {
            return;
        }
        match Endpoint::new(tls, &files, endpoint.handshakes(), Some(endpoint)) {
            Ok(endpoint) => {
                let context = before.reloaded(before.config.clone(), settings).with_tls(Some(Arc::new(endpoint)));
                self.take_up(&before, context, metrics);
            }
            Err(error) => refuse(&before, &error, metrics),
        }
    }

    /// Whether one of its lists of revoked certificates has run out. The log says so once for each set of files.
    pub(super) fn has_expired_list(&mut self, now_seconds: i64) -> bool {
        let context = Arc::clone(&self.context.borrow());
        let Some(endpoint) = context.tls.as_ref().filter(|tls| tls.has_expired_list(now_seconds)) else {
            return false;
        };
        let is_known = |known: &Weak<Endpoint>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(endpoint));
        if !self.expired.as_ref().is_some_and(is_known) {
            self.expired = Some(Arc::downgrade(endpoint));
            tracing::warn!(
                listener = %context.address, crl_expired = %endpoint.settings().crl_expired,
                "a list of revoked certificates (tls.crl_file) has run out: put a newer one in its place"
            );
        }
        true
    }

    /// Serves its next connections as `after` has it, and then says so if that shows other certificates than `before`.
    fn take_up(&self, before: &ListenerContext, after: ListenerContext, metrics: &TlsMetrics) {
        let is_same = |tls: &Arc<Endpoint>| before.tls.as_ref().is_some_and(|before| Arc::ptr_eq(before, tls));
        let is_new = after.tls.as_ref().is_some_and(|tls| !is_same(tls));
        self.context.send_replace(Arc::new(after));
        if is_new {
            metrics.reloaded(ReloadOutcome::Applied);
            tracing::info!(listener = %before.address, "new certificates are in use");
        }
    }
}

/// TLS as `config` and its files say now; that of before if neither changed.
fn renewed(before: &ListenerContext, config: &TlsConfig, metrics: &TlsMetrics) -> Result<Arc<Endpoint>, TlsFileError> {
    let files = Files::read(config);
    let same = before.tls.as_ref().filter(|tls| tls.settings() == config && tls.is_made_of(&files));
    if let Some(endpoint) = same {
        return Ok(Arc::clone(endpoint));
    }
    let handshakes = before.tls.as_ref().map(|tls| tls.handshakes());
    let handshakes = handshakes.unwrap_or_else(|| Arc::new(Handshakes::new(&before.address, metrics.clone())));
    Endpoint::new(config, &files, handshakes, before.tls.as_deref()).map(Arc::new)
}

fn refuse(listener: &ListenerContext, error: &TlsFileError, metrics: &TlsMetrics) {
    metrics.reloaded(ReloadOutcome::Refused);
    tracing::error!(listener = %listener.address, %error, "new certificates cannot be used, those of before stay");
}
