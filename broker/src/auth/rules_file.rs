//! Rules as a TOML file, for what mosquitto's ACL file cannot say.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::connection::networks::Network;

use super::password_file::FileError;
use super::rights::{Effect, PUBLISH, Pattern, READ, Rule, Whom, qos_bits};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Names for several users.
    #[serde(default)]
    groups: BTreeMap<String, Vec<String>>,
    rule: Vec<toml::Spanned<Written>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    effect: WrittenEffect,
    users: Option<Vec<String>>,
    groups: Option<Vec<String>>,
    anonymous: Option<bool>,
    client_ids: Option<Vec<String>>,
    addresses: Option<Vec<String>>,
    actions: Option<Vec<Action>>,
    topics: Option<Vec<String>>,
    qos: Option<Vec<u8>>,
    retain: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenEffect {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Publish,
    Subscribe,
}

/// Reads a file.
///
/// # Errors
/// It is unreadable, no TOML, has no rule, or one that cannot be meant.
pub(super) fn read(path: &Path) -> Result<Vec<Rule>, FileError> {
    parse(path, &FileError::read(path)?)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<Rule>, FileError> {
    let line = |offset: usize| 1 + text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count();
    let file: File = toml::from_str(text).map_err(|error| {
        let message = error.message().lines().map(str::trim).collect::<Vec<_>>().join(", ");
        match error.span() {
            Some(span) => FileError::line(path, line(span.start), message),
            None => FileError::whole(path, message),
        }
    })?;
    if file.rule.is_empty() {
        return Err(FileError::whole(path, "there is no [[rule]] in it: nobody could do anything"));
    }
    let rule = |written: &toml::Spanned<Written>| {
        let read = rule(written.get_ref(), &file.groups);
        read.map_err(|message| FileError::line(path, line(written.span().start), message))
    };
    file.rule.iter().map(rule).collect()
}

fn rule(written: &Written, groups: &BTreeMap<String, Vec<String>>) -> Result<Rule, String> {
    let boxed = |names: &Vec<String>| names.iter().map(|name| Box::from(name.as_str())).collect::<Vec<Box<str>>>();
    let mut users = written.users.as_ref().map(boxed);
    for name in written.groups.iter().flatten() {
        let members = groups.get(name).ok_or_else(|| format!("there is no group {name:?} in [groups]"))?;
        users.get_or_insert_default().extend(boxed(members));
    }
    if written.anonymous == Some(false) {
        return Err(String::from("`anonymous` can only be true; who is not anonymous has a name: give `users`"));
    }
    let network = |text: &String| text.parse::<Network>().map_err(|_| format!("{text:?} is no address and no network"));
    let networks = written.addresses.as_ref().map(|list| list.iter().map(network).collect()).transpose()?;
    let actions = written.actions.as_deref().unwrap_or(&[Action::Publish, Action::Subscribe]);
    let actions = actions.iter().fold(0, |bits, action| {
        bits | match action {
            Action::Publish => PUBLISH,
            Action::Subscribe => READ,
        }
    });
    if written.retain.is_some() && actions != PUBLISH {
        return Err(String::from("`retain` is about publishing: it needs `actions = [\"publish\"]`"));
    }
    let pattern = |text: &String| Pattern::parse(text);
    let topics = written.topics.as_ref().map(|list| list.iter().map(pattern).collect()).transpose()?;
    let qos = qos_bits(written.qos.as_deref().unwrap_or(&[0, 1, 2])).ok_or("`qos` is a list of 0, 1 and 2")?;
    let lists = [
        users.as_ref().map(Vec::len),
        written.client_ids.as_ref().map(Vec::len),
        written.addresses.as_ref().map(Vec::len),
        written.topics.as_ref().map(Vec::len),
        written.qos.as_ref().map(Vec::len),
        written.actions.as_ref().map(Vec::len),
    ];
    if lists.contains(&Some(0)) {
        return Err(String::from("an empty list: the rule would never fit"));
    }
    Ok(Rule {
        effect: match written.effect {
            WrittenEffect::Allow => Effect::Allow,
            WrittenEffect::Deny => Effect::Deny,
        },
        whom: Whom {
            users,
            anonymous: written.anonymous.unwrap_or(false),
            client_ids: written.client_ids.as_ref().map(boxed),
            networks,
        },
        actions,
        topics,
        qos,
        retain: written.retain,
    })
}

#[cfg(test)]
mod tests {
    use kentongan_proto::mqtt::QoS;

    use super::super::rights::{Rights, Rules, Site, Subject};
    use super::*;

    const FILE: &str = r#"
[groups]
operators = ["ana", "budi"]

[[rule]]
effect = "deny"
groups = ["operators"]
addresses = ["203.0.113.0/24"]

[[rule]]
effect = "allow"
groups = ["operators"]

[[rule]]
effect = "deny"
actions = ["publish"]
retain = true

[[rule]]
effect = "allow"
client_ids = ["dev-*"]
topics = ["plant/%c/#", "all"]
qos = [0, 1]

[[rule]]
effect = "allow"
anonymous = true
actions = ["subscribe"]
topics = ["news/#"]
"#;

    fn rights(identity: &str, client_id: &str, address: &str) -> Rights {
        let ordered = parse(Path::new("rules"), FILE).expect("a file").into();
        let site = Site::Address(address.parse().expect("an address"));
        Rules { ordered, acl_file: None }.for_subject(&Subject { identity, client_id, site })
    }

    #[test]
    fn rules_of_every_kind_in_their_order() {
        let ana = rights("ana", "c", "192.0.2.1");
        assert!(ana.may_publish("$control/x", QoS::ExactlyOnce, true), "every topic");
        assert!(!rights("ana", "c", "203.0.113.9").may_read("x", QoS::AtMostOnce));
        let device = rights("citra", "dev-7", "192.0.2.1");
        assert!(
            device.may_publish("plant/dev-7/t", QoS::AtLeastOnce, false) && device.may_read("all", QoS::AtMostOnce)
        );
        assert!(!device.may_publish("plant/dev-7/t", QoS::AtLeastOnce, true), "not to be retained");
        assert!(!device.may_publish("plant/dev-7/t", QoS::ExactlyOnce, false));
        assert!(!device.may_publish("plant/dev-8/t", QoS::AtMostOnce, false));
        assert!(!device.may_read("news/x", QoS::AtMostOnce));
        let nobody = rights("", "c", "192.0.2.1");
        assert!(nobody.may_read("news/x", QoS::ExactlyOnce) && !nobody.may_publish("news/x", QoS::AtMostOnce, false));
    }

    #[test]
    fn users_and_groups_of_one_rule_are_all_meant() {
        let text = "[groups]\nx = [\"ana\"]\ny = [\"budi\"]\n\
                    [[rule]]\neffect = \"allow\"\nusers = [\"citra\"]\ngroups = [\"x\", \"y\"]\n";
        let rules = Rules { ordered: parse(Path::new("rules"), text).expect("a file").into(), acl_file: None };
        let may = |identity| {
            let subject = Subject { identity, client_id: "c", site: Site::Away };
            rules.for_subject(&subject).may_read("x", QoS::AtMostOnce)
        };
        assert_eq!(["ana", "budi", "citra", "dewi", ""].map(may), [true, true, true, false, false]);
    }

    #[test]
    fn a_rule_that_cannot_be_meant_is_named() {
        for (text, expected) in [
            ("", "rules, line 1: missing field `rule`"),
            ("rule = []", "rules: there is no [[rule]]"),
            ("[[rule]]\ntopics = [\"x\"]", "rules, line 1: missing field `effect`"),
            ("[[rule]]\neffect = \"allow\"\ntopic = \"x\"", "rules, line 3: unknown field `topic`"),
            ("\n[[rule]]\neffect = \"allow\"\ngroups = [\"x\"]", "rules, line 2: there is no group \"x\""),
            ("[[rule]]\neffect = \"allow\"\ntopics = [\"a#\"]", "rules, line 1: \"a#\" is no topic filter"),
            ("[[rule]]\neffect = \"allow\"\naddresses = [\"x\"]", "rules, line 1: \"x\" is no address"),
            ("[[rule]]\neffect = \"allow\"\nqos = [3]", "rules, line 1: `qos` is a list"),
            ("[[rule]]\neffect = \"deny\"\nretain = true", "rules, line 1: `retain` is about publishing"),
            ("[[rule]]\neffect = \"deny\"\nusers = []", "rules, line 1: an empty list"),
            ("[[rule]]\neffect = \"deny\"\nclient_ids = []", "rules, line 1: an empty list"),
            ("[[rule]]\neffect = \"deny\"\naddresses = []", "rules, line 1: an empty list"),
            ("[[rule]]\neffect = \"deny\"\ntopics = []", "rules, line 1: an empty list"),
            ("[[rule]]\neffect = \"deny\"\nqos = []", "rules, line 1: an empty list"),
            ("[[rule]]\neffect = \"deny\"\nactions = []", "rules, line 1: an empty list"),
            ("[[rule]]\neffect = \"deny\"\nanonymous = false", "rules, line 1: `anonymous` can only be true"),
        ] {
            let error = parse(Path::new("rules"), text).expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
