//! What comes with a login rather than from files: rules, and an end.
//!
//! A method that learns from elsewhere what a client may do, from the claims of its token or from a server's answer, hands it on in
//! [`Identified::granted`](super::Identified): it parses what it was told with [`GrantedRules::parse`], refuses the login if that
//! fails, and wraps both in [`Granted::new`]. That is all: [`Authority::rights`](super::Authority::rights) puts the names of the client
//! into the rules, whoever authorizes asks the [`Rights`](super::Rights) that come of it, on every path, and the connection ends when the
//! login does. A session that is resumed has what the new login grants, and loses what that one does not.
//!
//! How they go with the files' rules: a login that brings rules is judged by them alone, the first that fits decides and what none
//! fits is denied; but what a file denies to the client stays denied. What the files allow is for logins that bring none.
//!
//! The forms are those of EMQX. An object of lists, all of which allow:
//!
//! ```json
//! { "pub": ["plant/%c/#"], "sub": ["news/#"], "all": ["chat/%u/+"] }
//! ```
//!
//! and a list of rules in their order:
//!
//! ```json
//! [
//!   { "permission": "deny", "action": "publish", "topic": "plant/%c/config", "retain": true },
//!   { "permission": "allow", "action": "all", "topics": ["plant/%c/#"], "qos": [0, 1] }
//! ]
//! ```
//!
//! `${username}` and `${clientid}` mean the same as `%u` and `%c`. Whatever is not understood fails: a condition that was passed over
//! would grant more than was meant.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::rights::{Effect, PUBLISH, Pattern, READ, Rule, qos_bits};

/// Topic Filters in the rules of one login.
pub const FILTERS_MAX: usize = 256;

/// Their bytes: memory of a connection for as long as it stands.
pub const FILTER_BYTES_MAX: usize = 16 * 1024;

/// Rules of one login, of bounded number and size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrantedRules(Box<[Rule]>);

/// What a login brings. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// `None`: the files say what it may.
    rules: Option<GrantedRules>,
    /// On the process clock.
    expires_ms: Option<u64>,
    /// Where a server says what somebody may whom something else lets in: when that ends. Whatever the server says, `expires_ms` is
    /// never later.
    login_ends_ms: Option<u64>,
    /// And not by a token, say.
    is_of_server: bool,
}

impl Granted {
    /// `rules`: `None` leaves them to the files, which is not the same as none. `expires_ms`: when the login ends, on the process
    /// clock ([`Now::at_wall_ms`](super::Now::at_wall_ms)). `None` is returned for a login that brings neither.
    #[must_use]
    pub fn new(rules: Option<GrantedRules>, expires_ms: Option<u64>) -> Option<Arc<Self>> {
        (rules.is_some() || expires_ms.is_some()).then(|| Arc::new(Self { rules, expires_ms, ..Self::default() }))
    }

    /// What a server said that is asked again. `rules`: `None` leaves them to the files. `login_ends_ms`: when that ends by which
    /// the client came in, if it was not by the server; no word of the server outlives it.
    #[must_use]
    pub(crate) fn by_server(
        rules: Option<GrantedRules>,
        expires_ms: Option<u64>,
        login_ends_ms: Option<u64>,
    ) -> Arc<Self> {
        let expires_ms = expires_ms.into_iter().chain(login_ends_ms).min();
        Arc::new(Self { rules, expires_ms, login_ends_ms, is_of_server: true })
    }

    /// Whether a server said it that is asked again.
    #[must_use]
    pub(super) fn is_of_server(&self) -> bool {
        self.is_of_server
    }

    /// Whether the client may do the same by both.
    #[must_use]
    pub(super) fn has_same_rules(&self, other: &Self) -> bool {
        self.rules == other.rules
    }

    /// The rules, if it brings any.
    pub(super) fn rules(&self) -> Option<&[Rule]> {
        self.rules.as_ref().map(|rules| &*rules.0)
    }

    /// Whether the client is judged by what it brings.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        self.rules.is_some()
    }

    /// When that ends by which the client came in, on the process clock.
    #[must_use]
    pub(super) fn login_ends_ms(&self) -> Option<u64> {
        if self.is_of_server { self.login_ends_ms } else { self.expires_ms }
    }

    /// When the login ends, on the process clock.
    #[must_use]
    pub fn expires_ms(&self) -> Option<u64> {
        self.expires_ms
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lists {
    #[serde(default, rename = "pub")]
    publish: Vec<String>,
    #[serde(default, rename = "sub")]
    subscribe: Vec<String>,
    #[serde(default)]
    all: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    permission: Permission,
    action: Action,
    topic: Option<String>,
    topics: Option<Vec<String>>,
    qos: Option<Levels>,
    retain: Option<Retain>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Permission {
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    #[serde(alias = "pub")]
    Publish,
    #[serde(alias = "sub")]
    Subscribe,
    #[serde(alias = "pubsub")]
    All,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Levels {
    One(u8),
    Several(Vec<u8>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Retain {
    Only(bool),
    Word(String),
}

impl GrantedRules {
    /// Reads either form.
    ///
    /// # Errors
    /// What is wrong with it, for the log. The login must be refused then.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let rules = match value {
            Value::Object(_) => {
                let lists = Lists::deserialize(value).map_err(|error| error.to_string())?;
                let lists = [(PUBLISH, lists.publish), (READ, lists.subscribe), (PUBLISH | READ, lists.all)];
                let rules = lists.iter().filter(|(_, topics)| !topics.is_empty());
                rules.map(|(actions, topics)| allowed(*actions, topics)).collect::<Result<Vec<_>, _>>()?
            }
            Value::Array(list) => list.iter().map(rule).collect::<Result<Vec<_>, _>>()?,
            _ => return Err(String::from("it is neither an object of lists nor a list of rules")),
        };
        let filters = || rules.iter().flat_map(|rule| rule.topics.iter().flatten());
        if filters().count() > FILTERS_MAX {
            return Err(format!("more than {FILTERS_MAX} topic filters"));
        }
        if filters().map(Pattern::len).sum::<usize>() > FILTER_BYTES_MAX {
            return Err(format!("topic filters of more than {FILTER_BYTES_MAX} bytes together"));
        }
        Ok(Self(rules.into()))
    }

    /// Everything is allowed, but for what a file denies.
    pub(super) fn all() -> Self {
        Self(Box::from([Self::everything()]))
    }

    /// What they take in memory, about.
    pub(super) fn bytes(&self) -> usize {
        let filters = self.0.iter().flat_map(|rule| rule.topics.iter().flatten());
        filters.map(|filter| filter.len() + size_of::<Pattern>()).sum::<usize>() + size_of_val(&*self.0)
    }

    /// The rule that allows everything, but for what a file denies.
    pub(super) fn everything() -> Rule {
        Rule::about_all(Effect::Allow)
    }
}

fn allowed(actions: u8, topics: &[String]) -> Result<Rule, String> {
    Ok(Rule { actions, topics: Some(patterns(topics)?), ..Rule::about_all(Effect::Allow) })
}

fn patterns(topics: &[String]) -> Result<Vec<Pattern>, String> {
    // Before anything is made of them.
    if topics.len() > FILTERS_MAX {
        return Err(format!("more than {FILTERS_MAX} topic filters"));
    }
    topics.iter().map(|topic| pattern(topic)).collect()
}

fn pattern(topic: &str) -> Result<Pattern, String> {
    if topic.starts_with("eq ") {
        return Err(format!("{topic:?}: `eq` is not supported"));
    }
    let topic = topic.replace("${username}", "%u").replace("${clientid}", "%c");
    if topic.contains("${") {
        return Err(format!("{topic:?}: nothing stands for that but `${{username}}` and `${{clientid}}`"));
    }
    Pattern::parse(&topic)
}

fn rule(value: &Value) -> Result<Rule, String> {
    let written = Written::deserialize(value).map_err(|error| error.to_string())?;
    let topics = match (written.topic, written.topics) {
        (Some(topic), None) => patterns(&[topic])?,
        (None, Some(topics)) if !topics.is_empty() => patterns(&topics)?,
        _ => return Err(String::from("a rule has either `topic` or `topics`")),
    };
    let qos = match &written.qos {
        None => qos_bits(&[0, 1, 2]),
        Some(Levels::One(level)) => qos_bits(&[*level]),
        Some(Levels::Several(levels)) if levels.is_empty() => None,
        Some(Levels::Several(levels)) => qos_bits(levels),
    };
    let qos = qos.ok_or("`qos` is 0, 1 or 2, or a list of them")?;
    let actions = match written.action {
        Action::Publish => PUBLISH,
        Action::Subscribe => READ,
        Action::All => PUBLISH | READ,
    };
    let retain = match written.retain {
        None => None,
        Some(Retain::Word(word)) if word == "all" => None,
        Some(Retain::Only(retain)) if actions & PUBLISH != 0 => Some(retain),
        Some(_) => return Err(String::from("`retain` is true, false or \"all\", and about publishing")),
    };
    let effect = match written.permission {
        Permission::Allow => Effect::Allow,
        Permission::Deny => Effect::Deny,
    };
    Ok(Rule { actions, topics: Some(topics), qos, retain, ..Rule::about_all(effect) })
}

#[cfg(test)]
mod tests {
    use kentongan_proto::mqtt::QoS;
    use kentongan_proto::topic::TopicFilter;
    use serde_json::json;

    use super::super::rights::{Rights, Rules, Site, Subject};
    use super::*;

    fn parse(value: Value) -> Result<GrantedRules, String> {
        GrantedRules::parse(&value)
    }

    fn rights(files: Option<&Rules>, value: Value, subject: &Subject<'_>) -> Rights {
        let granted = Granted::new(Some(parse(value).expect("rules")), None).expect("rules");
        Rights::granted(files, granted.rules().expect("rules"), subject)
    }

    const ANA: Subject<'static> = Subject { identity: "ana", client_id: "dev-7", site: Site::Away };

    fn may_write(rights: &Rights, topic: &str) -> bool {
        rights.may_publish(topic, QoS::AtMostOnce, false)
    }

    fn may_read(rights: &Rights, topic: &str) -> bool {
        rights.may_read(topic, QoS::AtMostOnce)
    }

    #[test]
    fn an_object_of_lists_allows_what_it_names_and_nothing_else() {
        let acl = json!({ "pub": ["plant/%c/#"], "sub": ["news/+", "${username}/x"], "all": ["chat/${clientid}"] });
        let rights = rights(None, acl, &ANA);
        assert!(may_write(&rights, "plant/dev-7/t") && !may_read(&rights, "plant/dev-7/t"));
        assert!(!may_write(&rights, "plant/dev-8/t"), "another's");
        assert!(may_read(&rights, "news/x") && may_read(&rights, "ana/x") && !may_write(&rights, "news/x"));
        assert!(may_write(&rights, "chat/dev-7") && may_read(&rights, "chat/dev-7"));
        assert!(!may_read(&rights, "other") && !may_write(&rights, "other"), "what nothing fits is denied");
        let none = self::rights(None, json!({}), &ANA);
        assert!(!may_read(&none, "x") && !may_write(&none, "x"), "no rules are not the same as no `acl`");
    }

    #[test]
    fn of_a_list_of_rules_the_first_that_fits_decides() {
        let acl = json!([
            { "permission": "deny", "action": "publish", "topic": "a/secret" },
            { "permission": "allow", "action": "all", "topics": ["a/#", "b"], "qos": [0, 1] },
            { "permission": "allow", "action": "publish", "topic": "c", "retain": true, "qos": 2 },
            { "permission": "allow", "action": "pubsub", "topic": "d", "retain": "all" },
        ]);
        let rights = rights(None, acl, &ANA);
        assert!(!may_write(&rights, "a/secret") && may_read(&rights, "a/secret"));
        assert!(may_write(&rights, "b") && !rights.may_publish("b", QoS::ExactlyOnce, false));
        assert!(rights.may_publish("c", QoS::ExactlyOnce, true) && !rights.may_publish("c", QoS::ExactlyOnce, false));
        assert!(rights.may_publish("d", QoS::AtMostOnce, true) && may_read(&rights, "d"));
        let filter = |text: &str| TopicFilter::parse(text).expect("a filter");
        assert!(rights.may_subscribe(&filter("a/+"), QoS::AtLeastOnce));
        assert!(
            !rights.may_subscribe(&filter("a/+"), QoS::ExactlyOnce)
                && !rights.may_subscribe(&filter("#"), QoS::AtMostOnce)
        );
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (value, expected) in [
            (json!("a/#"), "neither an object"),
            (json!({ "publish": ["a"] }), "unknown field `publish`"),
            (json!({ "pub": "a" }), "expected a sequence"),
            (json!({ "pub": ["a/#/b"] }), "is no topic filter"),
            (json!({ "pub": ["eq a/#"] }), "`eq` is not supported"),
            (json!({ "pub": ["a/${cert_common_name}"] }), "nothing stands for that"),
            (json!([{ "permission": "allow", "action": "all", "topic": "a", "ipaddr": "10.0.0.1" }]), "unknown field"),
            (json!([{ "permission": "allow", "action": "all" }]), "either `topic` or `topics`"),
            (json!([{ "permission": "allow", "action": "all", "topics": [] }]), "either `topic` or `topics`"),
            (json!([{ "permission": "maybe", "action": "all", "topic": "a" }]), "unknown variant `maybe`"),
            (json!([{ "permission": "allow", "action": "all", "topic": "a", "qos": 3 }]), "`qos` is"),
            (json!([{ "permission": "allow", "action": "all", "topic": "a", "qos": [] }]), "`qos` is"),
            (json!([{ "permission": "allow", "action": "subscribe", "topic": "a", "retain": true }]), "`retain` is"),
            (json!({ "sub": vec!["a"; FILTERS_MAX + 1] }), "more than 256 topic filters"),
            (json!({ "sub": vec!["a"; FILTERS_MAX], "pub": ["a"] }), "more than 256 topic filters"),
            (json!({ "sub": ["a".repeat(FILTER_BYTES_MAX + 1)] }), "bytes together"),
        ] {
            let error = parse(value.clone()).expect_err(expected);
            assert!(error.contains(expected), "{value}: {error}");
        }
    }

    /// Abuse: [authorize]
    #[test]
    fn what_a_file_denies_stays_denied_and_what_it_allows_is_for_others() {
        let toml = r#"
            [[rule]]
            effect = "allow"
            users = ["ana"]
            topics = ["file/#"]
            [[rule]]
            effect = "deny"
            topics = ["plant/locked"]
            [[rule]]
            effect = "deny"
            users = ["budi"]
            topics = ["plant/#"]
            [[rule]]
            effect = "deny"
        "#;
        let files = Rules::of_toml(toml);
        let acl = || json!({ "all": ["plant/#"] });
        let ana = rights(Some(&files), acl(), &ANA);
        assert!(may_write(&ana, "plant/1") && may_read(&ana, "plant/1"), "the last rule says what is so without it");
        assert!(!may_write(&ana, "plant/locked") && !may_read(&ana, "plant/locked"));
        assert!(!may_read(&ana, "file/1"), "her token does not say so");
        let budi = rights(Some(&files), acl(), &Subject { identity: "budi", ..ANA });
        assert!(!may_write(&budi, "plant/1"));
    }

    /// A thousand of them cost each connection a pointer.
    #[test]
    fn what_a_file_denies_to_all_is_shared_among_them() {
        let denied: String = (0..100).map(|number| format!("pattern deny plant/{number}\n")).collect();
        let files = Rules::of_acl(&format!("{denied}pattern deny home/%u\n"));
        let [one, other] =
            ["ana", "budi"].map(|identity| rights(Some(&files), json!({ "all": ["#"] }), &Subject { identity, ..ANA }));
        assert!(one.shares_rules_with(&other));
        for number in [0, 99] {
            assert!(!may_read(&one, &format!("plant/{number}")));
        }
        assert!(may_read(&one, "plant/100") && may_read(&one, "home/budi") && !may_read(&one, "home/ana"));
    }

    #[test]
    fn nobody_escapes_what_an_acl_file_denies_by_its_name() {
        let files = Rules::of_acl("user ana\ntopic deny plant/own\npattern deny plant/locked\npattern deny home/%u\n");
        let may = |identity, topic: &str| {
            may_write(&rights(Some(&files), json!({ "all": ["#"] }), &Subject { identity, ..ANA }), topic)
        };
        assert!(may("ana", "plant/1") && !may("ana", "plant/own") && may("budi", "plant/own"));
        assert!(!may("ana", "plant/locked") && !may("ana", "home/ana") && may("ana", "home/budi"));
        assert!(!may("a/b", "plant/locked") && !may("a/b", "x"), "whoever cannot be named in what is denied");
    }
}
