//! The log of events, on standard error: for people on a terminal, a JSON object a line elsewhere.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{self, FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{LogConfig, LogFormat};
use crate::log_lines;

/// Starts logging for the whole process, which does not wait for who reads it. A subscriber that is there already, as in tests, is left
/// alone. What comes back changes the filter.
pub(super) fn start(config: &LogConfig) -> LogFilter {
    let (filter, handle) = reload::Layer::new(filter(config));
    let terminal = io::stderr().is_terminal();
    let for_people = match config.format {
        LogFormat::Auto => terminal,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(log_lines::begin());
    let outcome = if for_people {
        registry.with(layer.fmt_fields(on_one_line()).with_ansi(terminal)).try_init()
    } else {
        registry.with(layer.json().flatten_event(true).with_span_list(false)).try_init()
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "another subscriber logs already");
    }
    LogFilter(handle)
}

/// Fields as people read them, without what would begin a line of its own or speak to the terminal: a Client Identifier may contain
/// anything, and must not look like another event.
fn on_one_line() -> impl for<'writer> FormatFields<'writer> + 'static {
    let field = |writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| match field.name() {
        "message" => write!(writer, "{}", Escaped(value)),
        name if writer.has_ansi_escapes() => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{}", Escaped(value)),
        name => write!(writer, "{name}={}", Escaped(value)),
    };
    format::debug_fn(field).delimited(" ")
}

struct Escaped<'a>(&'a dyn fmt::Debug);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

        impl fmt::Write for Escaping<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                // Those that break lines without being control characters among them.
                let is_plain = |one: char| !one.is_control() && !matches!(one, '\u{2028}' | '\u{2029}');
                text.chars().try_for_each(|one| match is_plain(one) {
                    true => self.0.write_char(one),
                    false => write!(self.0, "{}", one.escape_default()),
                })
            }
        }

        use fmt::Write as _;
        write!(Escaping(f), "{:?}", self.0)
    }
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Abuse: [refusals-logged]
    #[test]
    fn what_clients_say_stays_on_the_line_of_its_event() {
        for is_terminal in [false, true] {
            let written = Written::default();
            let writer = written.clone();
            let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
            let layer = layer.fmt_fields(on_one_line()).with_ansi(is_terminal);
            let client_id = "a\n2026 INFO forged\u{2028}\x1b[2J ü";
            tracing::subscriber::with_default(Registry::default().with(layer), || {
                tracing::info!(%client_id, reason = ?"b\r", count = 7, "refused");
            });
            let written = written.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let text = String::from_utf8(written).expect("UTF-8");
            assert_eq!(text.matches(['\n', '\r', '\u{2028}']).count(), 1, "{text:?}");
            assert!(text.ends_with('\n') && !text.contains("\x1b[2J") && text.contains(" refused "), "{text:?}");
            assert!(text.contains("a\\n2026 INFO forged\\u{2028}\\u{1b}[2J ü"), "{text:?}");
            if !is_terminal {
                assert!(text.ends_with(" ü reason=\"b\\r\" count=7\n"), "{text:?}");
            }
        }
    }
}
