//! One source of settings, read and checked by itself, so that whatever is wrong is blamed on its file and line.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml_edit::{Document, Item, TableLike, Value};

use super::Settings;
use super::origin::{Origin, Problem};
use super::schema::Field;

/// The prefix of our environment variables.
pub const ENVIRONMENT_PREFIX: &str = "KENTONGAN_";

/// Names the file; a flag of its own, not a setting.
pub const CONFIG_VARIABLE: &str = "KENTONGAN_CONFIG";

/// What one source said.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) values: toml::Table,
    /// By key, such as `session.receive_maximum` or `listener[0].address`.
    pub(super) origins: BTreeMap<String, Origin>,
}

/// A key in a file, while it is checked.
struct Leaf {
    key: String,
    span: Range<usize>,
    is_secret: bool,
}

impl Layer {
    /// Reads a TOML file that was found at `path`.
    pub(super) fn from_toml(path: &Path, text: &str) -> Result<Self, Vec<Problem>> {
        let at = |offset: usize| Origin::File { path: path.to_owned(), line: Some(line_of(text, offset)) };
        let document = Document::parse(text).map_err(|error| {
            let offset = error.span().map_or(text.len(), |span| span.start);
            vec![Problem { origin: at(offset), message: one_line(error.message()) }]
        })?;

        let mut walk = Walk { leaves: Vec::new(), unknown: Vec::new() };
        walk.table(document.as_table(), Settings::FIELDS, "");
        if !walk.unknown.is_empty() {
            let problem = |(span, message): (Range<usize>, String)| Problem { origin: at(span.start), message };
            return Err(walk.unknown.into_iter().map(problem).collect());
        }

        let typed: Result<Settings, _> = toml::from_str(text);
        if let Err(error) = typed {
            let offset = error.span().map_or(0, |span| span.start);
            let leaf = walk.leaves.iter().find(|leaf| leaf.span.contains(&offset));
            let message = one_of_several(text, offset, error.message())
                .unwrap_or_else(|| wrong_type(leaf.map(|leaf| (leaf.key.as_str(), leaf.is_secret)), error.message()));
            return Err(vec![Problem { origin: at(offset), message }]);
        }
        let values = toml::from_str(text)
            .map_err(|error| vec![Problem { origin: at(0), message: one_line(error.message()) }])?;
        let origins = walk.leaves.into_iter().map(|leaf| (leaf.key, at(leaf.span.start))).collect();
        Ok(Self { values, origins })
    }

    /// Reads one variable of the environment; `None` if it is none of ours after all.
    pub(super) fn from_variable(name: &str, text: &str) -> Result<Option<Self>, Problem> {
        let origin = Origin::Environment(name.to_owned());
        let Some(path) = name.strip_prefix(ENVIRONMENT_PREFIX).filter(|_| name != CONFIG_VARIABLE) else {
            return Ok(None);
        };
        let path: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let Some(field) = find(&path).filter(|field| field.children.is_none() || field.repeated) else {
            if is_service_link(name) {
                return Ok(None);
            }
            return Err(Problem { origin, message: unknown_variable(&path) });
        };
        let value = if field.is_text { toml::Value::String(text.to_owned()) } else { read_value(text) };
        Self::single(&path, value, origin).map(Some)
    }

    /// A single value, from the environment or a flag.
    pub(super) fn single(path: &[&str], value: toml::Value, origin: Origin) -> Result<Self, Problem> {
        let (name, sections) = path.split_last().expect("a setting has a name");
        let mut values = toml::Table::from_iter([((*name).to_owned(), value.clone())]);
        for section in sections.iter().rev() {
            values = toml::Table::from_iter([((*section).to_owned(), toml::Value::Table(values))]);
        }
        let key = path.join(".");
        let is_secret = find(path).is_some_and(|field| field.is_secret);
        if let Err(error) = Settings::deserialize(toml::Value::Table(values.clone())) {
            let message = wrong_type(Some((&key, is_secret)), error.message());
            return Err(Problem { origin, message });
        }
        let origins = leaves(&key, &value).into_iter().map(|leaf| (leaf, origin.clone())).collect();
        Ok(Self { values, origins })
    }

    /// Lays `stronger` over this layer: sections key by key, everything else, lists included, as a whole.
    pub(super) fn merge(&mut self, stronger: Self) {
        for key in stronger.origins.keys() {
            let whole = key.split('[').next().unwrap_or(key);
            self.origins.retain(|own, _| own != whole && !own.starts_with(&format!("{whole}[")));
        }
        self.origins.extend(stronger.origins);
        merge_tables(&mut self.values, stronger.values);
    }
}

/// The keys that a value sets: itself, or those in a list of sections.
fn leaves(key: &str, value: &toml::Value) -> Vec<String> {
    let sections: Option<Vec<&toml::Table>> =
        value.as_array().and_then(|list| list.iter().map(toml::Value::as_table).collect());
    match sections {
        Some(sections) if !sections.is_empty() => sections
            .iter()
            .enumerate()
            .flat_map(|(index, section)| section.keys().map(move |name| format!("{key}[{index}].{name}")))
            .collect(),
        _ => vec![key.to_owned()],
    }
}

fn merge_tables(weaker: &mut toml::Table, stronger: toml::Table) {
    for (name, value) in stronger {
        match (weaker.get_mut(&name), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => merge_tables(below, above),
            (_, value) => {
                weaker.insert(name, value);
            }
        }
    }
}

/// The field at a path of keys.
pub(super) fn find(path: &[&str]) -> Option<&'static Field> {
    let (first, rest) = path.split_first()?;
    let mut field = Settings::FIELDS.iter().find(|field| field.name == *first)?;
    for name in rest {
        field = field.child(name)?;
    }
    Some(field)
}

/// The value that `text` is for the setting `key`, on a command line.
pub(super) fn read_assigned(key: &str, text: &str) -> Result<toml::Value, String> {
    let path: Vec<&str> = key.split('.').collect();
    match find(&path) {
        Some(Field { children: Some(children), repeated: false, .. }) => {
            let example = children.first().map_or("KEY", |child| child.name);
            Err(format!("`{key}` is a section; set a key of it, such as {key}.{example}=VALUE"))
        }
        Some(field) if field.is_text => Ok(toml::Value::String(text.to_owned())),
        Some(_) => Ok(read_value(text)),
        None => {
            let (name, sections) = path.split_last().expect("splitting gives at least one part");
            let siblings = find(sections).and_then(|field| field.children).unwrap_or(Settings::FIELDS);
            Err(unknown_key(siblings, &sections.join("."), name))
        }
    }
}

/// A value from the environment: what TOML reads as one, else a text (and then the type check says what was meant).
fn read_value(text: &str) -> toml::Value {
    let document: Result<toml::Table, _> = toml::from_str(&format!("value = {text}"));
    let value = document.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

/// Whether Kubernetes made up the variable for a Service called `kentongan` or `kentongan-…`; it does so unasked.
fn is_service_link(name: &str) -> bool {
    let rest = name.trim_start_matches("KENTONGAN");
    rest.contains("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || rest.ends_with("_PORT")
        || rest.contains("_TCP")
        || rest.contains("_UDP")
}

struct Walk {
    leaves: Vec<Leaf>,
    unknown: Vec<(Range<usize>, String)>,
}

impl Walk {
    fn table(&mut self, table: &dyn TableLike, fields: &'static [Field], prefix: &str) {
        for (name, item) in table.iter() {
            let span = table.get_key_value(name).and_then(|(key, _)| key.span()).or(item.span()).unwrap_or(0..0);
            let key = join(prefix, name);
            let Some(field) = fields.iter().find(|field| field.name == name) else {
                self.unknown.push((span, unknown_key(fields, prefix, name)));
                continue;
            };
            let end = item.span().map_or(span.end, |value| value.end);
            match field.children {
                Some(children) => self.section(item, field, children, &key, span.start..end.max(span.end)),
                None => self.leaves.push(Leaf { key, span: span.start..end, is_secret: field.is_secret }),
            }
        }
    }

    fn section(&mut self, item: &Item, field: &Field, children: &'static [Field], key: &str, span: Range<usize>) {
        if let (false, Some(table)) = (field.repeated, item.as_table_like()) {
            self.table(table, children, key);
        } else if let (true, Some(tables)) = (field.repeated, item.as_array_of_tables()) {
            for (index, table) in tables.iter().enumerate() {
                self.table(table, children, &format!("{key}[{index}]"));
            }
        } else if let (true, Some(array)) = (field.repeated, item.as_array()) {
            for (index, table) in array.iter().enumerate().filter_map(|(index, value)| Some((index, inline(value)?))) {
                self.table(table, children, &format!("{key}[{index}]"));
            }
            if array.is_empty() {
                self.leaves.push(Leaf { key: key.to_owned(), span, is_secret: false });
            }
        } else {
            // Not a section at all: the type check says so.
            self.leaves.push(Leaf { key: key.to_owned(), span, is_secret: false });
        }
    }
}

fn inline(value: &Value) -> Option<&dyn TableLike> {
    value.as_inline_table().map(|table| table as &dyn TableLike)
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count()
}

fn one_line(message: &str) -> String {
    message.trim().lines().map(str::trim).collect::<Vec<_>>().join(", ")
}

/// What the type check found, without the value if that is a secret.
fn wrong_type(key: Option<(&str, bool)>, message: &str) -> String {
    match key {
        Some((key, true)) => format!("`{key}` must be text"),
        Some((key, false)) => format!("`{key}`: {}", one_line(message)),
        None => one_line(message),
    }
}

/// What is wrong with a section of which there may be several, and that begins like one of which there is one.
fn one_of_several(text: &str, offset: usize, message: &str) -> Option<String> {
    let line = text.get(offset..)?.lines().next()?.trim();
    let name = line.strip_prefix('[')?.split(']').next().filter(|name| !name.starts_with('['))?;
    let is_list = message.starts_with("invalid type: map, expected a sequence");
    is_list.then(|| format!("`{name}`: there may be several, so each begins with two brackets: [[{name}]]"))
}

fn unknown_key(fields: &'static [Field], prefix: &str, name: &str) -> String {
    let key = join(prefix, name);
    match suggest(fields, name) {
        Some(suggestion) => format!("unknown key `{key}`; did you mean `{suggestion}`?"),
        None => format!("unknown key `{key}`; docs/reference/settings.md lists all keys"),
    }
}

fn unknown_variable(path: &[&str]) -> String {
    if let Some(first) = find(path).and_then(|section| section.children?.first()) {
        let example = environment_name(&format!("{}.{}", path.join("."), first.name));
        return format!("this is a section; set a key of it, such as {example}");
    }
    // Compared without telling `_` from `__`, which is what people get wrong.
    let spelt = path.join("_");
    let likeness = |key: &str| strsim::normalized_damerau_levenshtein(&key.replace('.', "_"), &spelt);
    let keys = Settings::FIELDS.iter().flat_map(|field| match field.children {
        Some(children) if !field.repeated => {
            children.iter().map(|child| format!("{}.{}", field.name, child.name)).collect()
        }
        _ => vec![field.name.to_owned()],
    });
    let best = keys.map(|key| (likeness(&key), key)).max_by(|one, other| one.0.total_cmp(&other.0));
    match best.filter(|(likeness, _)| *likeness >= 0.7) {
        Some((_, key)) => format!("there is no such setting; did you mean {}?", environment_name(&key)),
        None => String::from("there is no such setting; docs/reference/settings.md lists all of them"),
    }
}

/// How a key is spelt in the environment.
fn environment_name(key: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// The key that was probably meant: one of the same section, else (with its section) one of another.
fn suggest(fields: &'static [Field], name: &str) -> Option<String> {
    let near = |candidate: &str| {
        let likeness = strsim::normalized_damerau_levenshtein(candidate, name);
        let shortened = candidate.starts_with(name) || name.starts_with(candidate);
        if shortened && name.len() > 3 { likeness.max(0.75) } else { likeness }
    };
    let best = |candidates: Vec<(String, f64)>, least: f64| {
        let best = candidates.into_iter().max_by(|one, other| one.1.total_cmp(&other.1))?;
        (best.1 >= least).then_some(best.0)
    };
    let here = fields.iter().map(|field| (field.name.to_owned(), near(field.name))).collect();
    let other_sections = Settings::FIELDS.iter().flat_map(|section| {
        let children = section.children.unwrap_or_default();
        children.iter().map(move |field| (format!("{}.{}", section.name, field.name), near(field.name)))
    });
    best(here, 0.6).or_else(|| best(other_sections.collect(), 0.8))
}
