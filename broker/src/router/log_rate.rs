//! Bounds the lines of the log that anybody can cause from outside.

pub use kentongan_cluster::log_rate::LogRate;

/// The beginning of a text from a client: the log needs no more of it.
pub fn excerpt(text: &str) -> &str {
    const CHARACTERS_MAX: usize = 128;
    text.char_indices().nth(CHARACTERS_MAX).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_ends_between_characters() {
        let long = "ü".repeat(1000);
        assert_eq!(excerpt(&long), "ü".repeat(128));
        assert_eq!(excerpt("short"), "short");
    }
}
