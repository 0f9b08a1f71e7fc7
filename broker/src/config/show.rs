//! Settings for people: what is in effect and who said so, and the reference page.

use std::fmt::Write as _;

use super::load::Effective;
use super::origin::Origin;
use super::schema::Field;
use super::{REDACTED, Settings};

impl Effective {
    /// The settings as a configuration file would have them, each with its source behind it: all of them, or those that
    /// somebody made. Secrets are redacted.
    #[must_use]
    pub fn show(&self, defaults_too: bool) -> String {
        let values = to_table(&self.settings);
        let mut lines = Vec::new();
        self.show_table(&values, Settings::FIELDS, ["", ""], &mut lines);
        if !defaults_too {
            lines.retain(|(_, origin)| origin.is_none_or(|origin| *origin != Origin::Default));
            drop_empty_sections(&mut lines);
        }
        let width = lines.iter().filter_map(|(line, source)| source.as_ref().map(|_| line.len())).max().unwrap_or(0);
        let mut text = String::new();
        for (line, source) in lines {
            match source {
                Some(source) => writeln!(text, "{line:width$}  # {source}"),
                None => writeln!(text, "{line}"),
            }
            .expect("a String takes everything");
        }
        text
    }

    fn show_table<'a>(
        &'a self,
        values: &toml::Table,
        fields: &[Field],
        [prefix, section]: [&str; 2],
        lines: &mut Vec<(String, Option<&'a Origin>)>,
    ) {
        for field in fields.iter().filter(|field| field.children.is_none()) {
            let source = self.origin(&format!("{prefix}{}", field.name));
            let line = match values.get(field.name) {
                Some(_) if field.is_secret => format!("{} = \"{REDACTED}\"", field.name),
                Some(value) => format!("{} = {value}", field.name),
                None => format!("# {} is not set", field.name),
            };
            lines.push((line, Some(source)));
        }
        for (field, children) in fields.iter().filter_map(|field| Some((field, field.children?))) {
            match values.get(field.name) {
                Some(toml::Value::Table(table)) => {
                    lines.push((format!("\n[{section}{}]", field.name), None));
                    let below = [&format!("{prefix}{}.", field.name), &format!("{section}{}.", field.name)];
                    self.show_table(table, children, below.map(String::as_str), lines);
                }
                Some(toml::Value::Array(tables)) => {
                    for (index, table) in tables.iter().filter_map(|one| one.as_table()).enumerate() {
                        lines.push((format!("\n[[{section}{}]]", field.name), None));
                        let below =
                            [&format!("{prefix}{}[{index}].", field.name), &format!("{section}{}.", field.name)];
                        self.show_table(table, children, below.map(String::as_str), lines);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Takes out headings that no setting follows.
fn drop_empty_sections(lines: &mut Vec<(String, Option<&Origin>)>) {
    let headed: Vec<bool> = (0..lines.len())
        .map(|index| lines[index].1.is_some() || lines.get(index + 1).is_some_and(|(_, origin)| origin.is_some()))
        .collect();
    let mut headed = headed.into_iter();
    lines.retain(|_| headed.next().unwrap_or(true));
}

fn to_table(settings: &Settings) -> toml::Table {
    toml::Table::try_from(settings).expect("settings are made of what TOML can express")
}

/// The reference page of settings, in Markdown.
#[must_use]
pub fn reference_page() -> String {
    let defaults = to_table(&Settings::default());
    let mut page = String::from(PREFACE);
    page.push_str("\n## Before the first section\n");
    for field in Settings::FIELDS.iter().filter(|field| field.children.is_none()) {
        push_field(&mut page, field, "", defaults.get(field.name));
    }
    for section in Settings::FIELDS.iter().filter(|field| field.children.is_some()) {
        push_section(&mut page, section, "", defaults.get(section.name));
    }
    page
}

/// A section, and behind it those within it.
fn push_section(page: &mut String, section: &Field, within: &str, defaults: Option<&toml::Value>) {
    let name = format!("{within}{}", section.name);
    let heading = if section.repeated { format!("[[{name}]]") } else { format!("[{name}]") };
    let prefix = if section.repeated || !within.is_empty() { String::new() } else { format!("{name}.") };
    let _ = write!(page, "\n## `{heading}`\n\n{}\n", prose(section.doc));
    let of_section = (section.defaults)();
    let defaults = match defaults {
        Some(toml::Value::Array(sections)) => sections.first().and_then(toml::Value::as_table),
        Some(toml::Value::Table(section)) => Some(section),
        _ => of_section.as_ref(),
    };
    let (keys, sections): (Vec<&Field>, Vec<&Field>) =
        section.children.unwrap_or_default().iter().partition(|field| field.children.is_none());
    for field in keys {
        push_field(page, field, &prefix, defaults.and_then(|section| section.get(field.name)));
    }
    for section in sections {
        push_section(page, section, &format!("{name}."), defaults.and_then(|defaults| defaults.get(section.name)));
    }
}

const PREFACE: &str = "\
<!-- Made from the comments in broker/src/config/settings.rs by `cargo xtask docs`; change it there. -->

# Settings

A value may be said in several places; the first of these that says it wins:

1. flags of the [command line](command-line.md),
2. environment variables: `KENTONGAN_` and the key in capitals, two underscores between section and key, such as
   `KENTONGAN_SESSION__RECEIVE_MAXIMUM=64`; lists are written as in TOML,
3. the drop-in directory beside the file, `FILE.d/*.toml`, the last in the order of their names,
4. the file itself, TOML, named by `--config FILE` or `KENTONGAN_CONFIG`,
5. the defaults below.

Sections are merged key by key; a list, that of listeners included, is taken whole from the strongest source. An unknown
key is an error, wherever it stands. `kentongan config check FILE` says what is wrong, with file and line, in it and in the files that it names;
`kentongan config show --effective` prints every value and who said it, secrets redacted.

On SIGHUP the broker reads the files again; the command line and the environment are those of its start. If anything is
wrong, everything stays as it was and the log says what and where. Otherwise what is marked as reloaded takes effect, for
connections as of the next one, and the log names every other setting that differs from the one in force: that waits for
a restart.
";

fn push_field(page: &mut String, field: &Field, prefix: &str, default: Option<&toml::Value>) {
    let key = format!("{prefix}{}", field.name);
    let default = default.map_or_else(|| String::from("not set"), |value| format!("`{value}`"));
    let _ = write!(
        page,
        "\n### `{key}`\n\n{}\n\n- Type: {}\n- Default: {default}\n- Change: {}\n",
        prose(field.doc),
        (field.type_name)(),
        if field.reloaded { "reloaded on SIGHUP" } else { "needs a restart" }
    );
}

fn prose(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join("\n")
}
