//! The log of events, on standard error: for people on a terminal, a JSON object a line elsewhere.

use std::io::{self, IsTerminal};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{LogConfig, LogFormat};

/// Starts logging for the whole process. A subscriber that is there already, as in tests, is left alone.
/// What comes back changes the filter.
pub(super) fn start(config: &LogConfig) -> LogFilter {
    let (filter, handle) = reload::Layer::new(filter(config));
    let terminal = io::stderr().is_terminal();
    let for_people = match config.format {
        LogFormat::Auto => terminal,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let outcome = if for_people {
        registry.with(layer.with_ansi(terminal)).try_init()
    } else {
        registry.with(layer.json().flatten_event(true).with_span_list(false)).try_init()
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "another subscriber logs already");
    }
    LogFilter(handle)
}

/// What is logged, as it can be changed while the process runs.
#[derive(Debug, Clone)]
pub(super) struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// Logs what `config` asks for from now on.
    pub(super) fn change(&self, config: &LogConfig) {
        if let Err(error) = self.0.reload(filter(config)) {
            tracing::debug!(%error, "another subscriber logs");
        }
    }
}

fn filter(config: &LogConfig) -> EnvFilter {
    // The store's own account of itself is for its developers; whoever wants it names it.
    let quiet = ["fjall", "lsm_tree"].into_iter().filter(|target| !config.filter.contains(target));
    let filter = quiet.fold(config.filter.clone(), |filter, target| format!("{filter},{target}=warn"));
    EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new("info"))
}
