//! Manual pages: of the command line by clap_mangen, of the settings from their reference page.

use std::fmt::Write as _;
use std::fs;

use anyhow::Context;

/// A page of each command, with the name of its file.
pub fn of_command(command: clap::Command) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let directory = tempfile::tempdir()?;
    clap_mangen::generate_to(command, directory.path())?;
    let mut pages = Vec::new();
    for entry in fs::read_dir(directory.path())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a name of a command")?;
        // Those of `help` say what all others say.
        if !name.contains("-help") {
            pages.push((name.to_owned(), fs::read(&path)?));
        }
    }
    Ok(pages)
}

/// kentongan.toml(5), of a reference page with headings, paragraphs and lists.
pub fn of_settings(markdown: &str) -> String {
    let mut page = String::from(HEAD);
    // A heading begins a paragraph by itself, and so does the head, which has the title.
    let mut is_begun = true;
    let mut is_after_empty = false;
    for line in markdown.lines().filter(|line| !line.starts_with("<!--") && !line.starts_with("# ")) {
        if line.is_empty() {
            is_after_empty = true;
            continue;
        }
        let numbered = line.split_once(". ").filter(|(number, _)| number.bytes().all(|one| one.is_ascii_digit()));
        let (request, text, is_heading) = if let Some(section) = line.strip_prefix("## ") {
            (String::from(".SH "), section, true)
        } else if let Some(key) = line.strip_prefix("### ") {
            (String::from(".SS "), key, true)
        } else if let Some(item) = line.strip_prefix("- ") {
            (String::from(".IP \\(bu 2\n"), item, false)
        } else if let Some((number, item)) = numbered {
            (format!(".IP {number}. 3\n"), item, false)
        } else if is_after_empty && !is_begun {
            (String::from(".PP\n"), line, false)
        } else {
            (String::new(), line.trim_start(), false)
        };
        let _ = writeln!(page, "{request}{}", inline(text, is_heading));
        (is_begun, is_after_empty) = (is_heading, false);
    }
    page
}

const HEAD: &str = "\
.ie \\n(.g .ds Aq \\(aq
.el .ds Aq '
.TH kentongan.toml 5
.SH NAME
kentongan.toml \\- settings of the MQTT broker kentongan(1)
.SH DESCRIPTION
";

/// Text with nothing in it that roff takes for a request. Code is bold, unless all of it is a heading; of a link its text is left.
fn inline(markdown: &str, is_heading: bool) -> String {
    let mut text = String::new();
    let mut is_code = false;
    let mut rest = markdown;
    while let Some(next) = rest.chars().next() {
        rest = &rest[next.len_utf8()..];
        match next {
            '`' if is_heading => {}
            '`' => {
                is_code = !is_code;
                text.push_str(if is_code { "\\fB" } else { "\\fR" });
            }
            '\\' => text.push_str("\\e"),
            '-' if is_code => text.push_str("\\-"),
            '\'' => text.push_str("\\*(Aq"),
            '[' if !is_code && let Some((shown, behind)) = link(rest) => {
                text.push_str(&inline(shown, is_heading));
                rest = behind;
            }
            other => text.push(other),
        }
    }
    // What begins a line with a dot would be a request.
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

/// The text of a link, behind its `[`, and what comes after it.
fn link(rest: &str) -> Option<(&str, &str)> {
    let (shown, behind) = rest.split_once("](")?;
    let (_, behind) = behind.split_once(')')?;
    (!shown.contains(['[', ']'])).then_some((shown, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_settings_becomes_a_manual_page() {
        let markdown = "<!-- Made. -->\n\n# Settings\n\nFirst, see the [other\npage](x.md).\n\n1. flags,\n\n## `[[listener]]`\n\n.5 of `a-b`'s\n\n### `x`\n\nText\nin two lines.\n\n- Type: `\\`\n";
        let page = of_settings(markdown);
        let body = page.strip_prefix(HEAD).expect("the head");
        let expected = "First, see the [other\npage](x.md).\n.IP 1. 3\nflags,\n.SH [[listener]]\n\\&.5 of \\fBa\\-b\\fR\\*(Aqs\n\
                        .SS x\nText\nin two lines.\n.IP \\(bu 2\nType: \\fB\\e\\fR\n";
        assert_eq!(body, expected);
        assert_eq!(inline("see [`a`](b.md) and [x]", false), "see \\fBa\\fR and [x]");
    }
}
