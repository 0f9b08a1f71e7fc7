//! What differs between the settings in force and those read again.

use super::address::ListenAddress;
use super::schema::Field;
use super::settings::ListenerConfig;
use super::{ConfigError, Settings};

/// A setting that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key, such as `session.receive_maximum`; those of a listener name its address.
    pub key: String,
    /// Whether a running broker takes the new value in.
    pub reloaded: bool,
}

const API_TOKENS: &str = "api.tokens_file";

/// How `new` differs from what is in force: from `started` where a setting needs a restart, so that it is named until
/// that restart, and from `last`, the settings read last, where it does not.
///
/// Listeners are told apart by their addresses, not by their places in the list.
#[must_use]
pub fn changes(started: &Settings, last: &Settings, new: &Settings) -> Vec<Change> {
    let mut changes = Vec::new();
    let (started_values, last_values, new_values) = (to_table(started), to_table(last), to_table(new));
    compare(Settings::FIELDS, "", [&started_values, &last_values, &new_values], &mut changes);
    // Secrets look alike as values.
    if started.http.token != new.http.token {
        changes.push(Change { key: String::from("http.token"), reloaded: false });
    }
    if started.events.webhook.secret != new.events.webhook.secret {
        changes.push(Change { key: String::from("events.webhook.secret"), reloaded: false });
    }
    if last.auth.http.header_value != new.auth.http.header_value {
        changes.push(Change { key: String::from("auth.http.header_value"), reloaded: true });
    }
    // A broker without an API has nothing that could listen before it is started anew.
    if started.api.tokens_file.is_none() {
        changes.retain(|change| change.key != API_TOKENS);
        if new.api.tokens_file.is_some() {
            changes.push(Change { key: String::from(API_TOKENS), reloaded: false });
        }
    }
    compare_listeners(started, last, new, &mut changes);
    changes
}

fn to_table(value: impl serde::Serialize) -> toml::Table {
    toml::Table::try_from(value).expect("settings are made of what TOML can express")
}

fn compare(fields: &[Field], prefix: &str, [started, last, new]: [&toml::Table; 3], changes: &mut Vec<Change>) {
    for field in fields.iter().filter(|field| !field.repeated && !field.is_secret) {
        if let Some(children) = field.children {
            let section = |table: &toml::Table| table.get(field.name).and_then(toml::Value::as_table).cloned();
            let [started, last, new] = [started, last, new].map(|table| section(table).unwrap_or_default());
            compare(children, &format!("{prefix}{}.", field.name), [&started, &last, &new], changes);
            continue;
        }
        let before = if field.reloaded { last } else { started };
        if before.get(field.name) != new.get(field.name) {
            changes.push(Change { key: format!("{prefix}{}", field.name), reloaded: field.reloaded });
        }
    }
}

fn compare_listeners(started: &Settings, last: &Settings, new: &Settings, changes: &mut Vec<Change>) {
    for (name, listener) in named(&started.listener) {
        let Some(now) = new.listener_like(&name) else {
            changes.push(Change { key: format!("listener {} (gone)", name.0), reloaded: false });
            continue;
        };
        let last = last.listener_like(&name).unwrap_or(listener);
        let tables = [to_table(listener), to_table(last), to_table(now)];
        compare(ListenerConfig::FIELDS, &format!("listener {} ", name.0), tables.each_ref(), changes);
    }
    for (name, _) in named(&new.listener).filter(|(name, _)| started.listener_like(name).is_none()) {
        changes.push(Change { key: format!("listener {} (new)", name.0), reloaded: false });
    }
}

/// The address of a listener, and how many before it have the same: ports chosen by the system all read 0.
pub type ListenerName = (ListenAddress, usize);

fn named(listeners: &[ListenerConfig]) -> impl Iterator<Item = (ListenerName, &ListenerConfig)> {
    listeners.iter().enumerate().map(|(index, one)| {
        let same = listeners[..index].iter().filter(|other| other.address == one.address).count();
        ((one.address.clone(), same), one)
    })
}

impl Settings {
    /// The name of the listener at `index`.
    #[must_use]
    pub fn listener_name(&self, index: usize) -> Option<ListenerName> {
        named(&self.listener).nth(index).map(|(name, _)| name)
    }

    /// The listener called `name`.
    #[must_use]
    pub fn listener_like(&self, name: &ListenerName) -> Option<&ListenerConfig> {
        named(&self.listener).find(|(own, _)| own == name).map(|(_, one)| one)
    }
}

/// Whoever read the settings at the start, and can do so again.
pub trait Reload {
    /// Reads the settings again, from the sources of the start: files as they are now, the environment and the command
    /// line as they were.
    ///
    /// # Errors
    /// Everything that is wrong, with its file and line.
    fn read(&self) -> Result<Settings, ConfigError>;

    /// Logs as `settings` say from now on.
    fn change_log_filter(&self, settings: &Settings);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Settings {
        toml::from_str(text).unwrap()
    }

    fn keys(started: &str, last: &str, new: &str) -> Vec<(String, bool)> {
        changes(&read(started), &read(last), &read(new)).into_iter().map(|one| (one.key, one.reloaded)).collect()
    }

    #[test]
    fn what_needs_a_restart_is_named_until_there_is_one() {
        let new = "arbiters = 2\n[log]\nfilter = \"debug\"\n";
        let both = [(String::from("arbiters"), false), (String::from("log.filter"), true)];
        assert_eq!(keys("", "", new), both);
        assert_eq!(keys("", new, new), both[..1]);
        assert_eq!(keys("", new, ""), both[1..]);
        assert_eq!(keys("", "", ""), []);
    }

    #[test]
    fn listeners_are_compared_by_address() {
        let one = "[[listener]]\naddress = \"127.0.0.1:1\"\n";
        let two = "[[listener]]\naddress = \"127.0.0.1:2\"\n";
        let capped = "connections_max = 1\nbacklog = 7\n";
        let name = |key: &str, reloaded| (format!("listener 127.0.0.1:{key}"), reloaded);
        let (before, swapped) = (format!("{one}{two}"), format!("{two}{one}"));
        assert_eq!(keys(&before, &before, &swapped), []);
        assert_eq!(
            keys(&before, &before, &format!("{swapped}{capped}")),
            [name("1 backlog", false), name("1 connections_max", true)]
        );
        assert_eq!(keys(one, one, two), [name("1 (gone)", false), name("2 (new)", false)]);
    }

    #[test]
    fn a_new_secret_is_noticed_and_not_shown() {
        let token = |text: &str| format!("[http]\ntoken = \"{text}\"\n");
        assert_eq!(keys(&token("a"), &token("a"), &token("b")), [(String::from("http.token"), false)]);
        let secret = |text: &str| format!("[events.webhook]\nsecret = \"{text}\"\n");
        let (old, new) = (secret("the one of before"), secret("the one after it"));
        let change = [(String::from("events.webhook.secret"), false)];
        assert_eq!(keys(&old, &old, &new), change);
        assert_eq!(keys(&old, &new, &new), change, "until there is a restart");
    }

    #[test]
    fn an_api_can_be_closed_by_a_reload_and_not_opened() {
        let api = "[api]\ntokens_file = \"tokens\"\n";
        let key = |reloaded| [(String::from("api.tokens_file"), reloaded)];
        assert_eq!(keys(api, api, ""), key(true));
        assert_eq!(keys(api, "", api), key(true));
        assert_eq!(keys("", "", api), key(false));
        assert_eq!(keys("", api, api), key(false), "until there is a restart");
        assert_eq!(keys("", api, ""), []);
    }
}
