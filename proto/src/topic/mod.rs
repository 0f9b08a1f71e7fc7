//! Topic Names, Topic Filters and shared subscriptions: each parsed once, at the edge.

mod filter;
mod share;

pub use filter::{TopicFilter, contains, matches};
pub use share::{ParsedFilter, SharedFilter};

/// Longest Topic Name or Topic Filter [MQTT-4.7.3-3].
pub const TOPIC_BYTES_MAX: usize = 65_535;

/// Why a text is no Topic Name or no Topic Filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// [MQTT-4.7.3-1]
    #[error("it is empty")]
    Empty,
    /// [MQTT-4.7.3-2]
    #[error("it contains U+0000")]
    Nul,
    /// [MQTT-4.7.3-3]
    #[error("it is longer than 65535 bytes")]
    TooLong,
    /// [MQTT-4.7.0-1]
    #[error("a topic name has no wildcards")]
    WildcardInName,
    /// [MQTT-4.7.1-1], [MQTT-4.7.1-2]
    #[error("a wildcard must fill a whole level, and '#' must be the last")]
    WildcardMisplaced,
    /// [MQTT-4.8.2-1], [MQTT-4.8.2-2]
    #[error("a shared subscription is $share/NAME/FILTER, its name without '/', '+' and '#'")]
    Share,
}

fn check_text(text: &str) -> Result<(), TopicError> {
    match text {
        "" => Err(TopicError::Empty),
        _ if text.len() > TOPIC_BYTES_MAX => Err(TopicError::TooLong),
        _ if text.as_bytes().contains(&0) => Err(TopicError::Nul),
        _ => Ok(()),
    }
}

/// Checks that a text is a Topic Name.
///
/// # Errors
/// Which rule it breaks.
pub fn check_topic_name(name: &str) -> Result<(), TopicError> {
    check_text(name)?;
    if name.bytes().any(|byte| matches!(byte, b'+' | b'#')) {
        return Err(TopicError::WildcardInName);
    }
    Ok(())
}
