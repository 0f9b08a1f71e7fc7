//! Who may what: rules in an order, of which the first that fits decides.
//!
//! A rule allows or denies publishing to topics, or reading what is published there. What no rule fits is denied. The rules
//! that a client can meet are picked out once, when it connects, with its names put in ([`Rights`]); what is left to do for a
//! message is to compare topics. Those that name nobody who asks are the same for all and shared (`section.rs`).
//!
//! A Topic Filter is judged by what it matches, not as if it were a topic: what is asked for must lie within what one rule
//! allows, and must not touch what a rule before that denies.

use std::net::IpAddr;
use std::sync::Arc;

use kentongan_proto::mqtt::QoS;
use kentongan_proto::topic::TopicFilter;

use crate::connection::networks::{Network, any_contains};

use super::section::{Picked, Picking, Section, Sections};

/// Whether a rule gives or takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Allow,
    Deny,
}

/// What a rule is about, as bits.
pub(super) const PUBLISH: u8 = 1;
/// Likewise.
pub(super) const READ: u8 = 2;

/// Bits of all three.
pub(super) const ANY_QOS: u8 = 0b111;

/// Whom a rule is for; where several things are said, all must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Whom {
    /// One of these users.
    pub users: Option<Vec<Box<str>>>,
    /// One that is nobody in particular; if users are named, it is either.
    pub anonymous: bool,
    /// One of these Client Identifiers; `*` at the end stands for the rest.
    pub client_ids: Option<Vec<Box<str>>>,
    /// From one of these networks.
    pub networks: Option<Vec<Network>>,
}

/// Whom rights are looked up for.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Empty: nobody in particular.
    pub identity: &'a str,
    /// Its Client Identifier.
    pub client_id: &'a str,
    /// Where it is.
    pub site: Site,
}

/// Where somebody is, as rules for networks see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// It connected from there.
    Address(IpAddr),
    /// It is connected and has no address, as over a Unix socket: it is in no network.
    NoAddress,
    /// It is not connected, as when a will is due: what was said about its address when it connected holds.
    Away,
}

impl From<Option<IpAddr>> for Site {
    /// Of a connection.
    fn from(address: Option<IpAddr>) -> Self {
        address.map_or(Self::NoAddress, Self::Address)
    }
}

impl Whom {
    fn is(&self, subject: &Subject<'_>, effect: Effect) -> bool {
        let named = |users: &Vec<Box<str>>| users.iter().any(|user| **user == *subject.identity);
        let is_user = match (&self.users, subject.identity) {
            (None, "") => true,
            (None, _) => !self.anonymous,
            (Some(_), "") => self.anonymous,
            (Some(users), _) => named(users),
        };
        let is_client = |patterns: &Vec<Box<str>>| {
            patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(beginning) => subject.client_id.starts_with(beginning),
                None => **pattern == *subject.client_id,
            })
        };
        let is_there = |networks: &Vec<Network>| match subject.site {
            Site::Address(address) => any_contains(networks, address),
            Site::NoAddress => false,
            Site::Away => effect == Effect::Allow,
        };
        is_user && self.client_ids.as_ref().is_none_or(is_client) && self.networks.as_ref().is_none_or(is_there)
    }
}

/// A Topic Filter, perhaps with `%u` and `%c` for the names of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    text: Arc<str>,
    has_user: bool,
    has_client_id: bool,
}

impl Pattern {
    /// A filter as it stands.
    pub(super) fn literal(text: &str) -> Result<Self, String> {
        TopicFilter::parse(text).map_err(|error| format!("{text:?} is no topic filter: {error}"))?;
        Ok(Self { text: Arc::from(text), has_user: false, has_client_id: false })
    }

    /// A filter in which `%u` and `%c` stand for names.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        Ok(Self { has_user: text.contains("%u"), has_client_id: text.contains("%c"), ..Self::literal(text)? })
    }

    /// Bytes as it was written.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    fn has_names(&self) -> bool {
        self.has_user || self.has_client_id
    }

    /// With the names put in. `None`: there is no such name, or it is one that may not stand in a topic.
    fn fill(&self, subject: &Subject<'_>) -> Option<Arc<str>> {
        if !self.has_names() {
            return Some(Arc::clone(&self.text));
        }
        if (self.has_user && (subject.identity.is_empty() || is_dangerous(subject.identity)))
            || (self.has_client_id && is_dangerous(subject.client_id))
        {
            return None;
        }
        Some(Arc::from(with_names(&self.text, subject.identity, subject.client_id)))
    }

    /// Whether with these names in it, it begins with a `$` that nobody wrote there: a wildcard that stands first reaches no such
    /// topic [MQTT-4.7.2-1], and no name should reach further.
    fn becomes_special(&self, filled: &str) -> bool {
        filled.starts_with('$') && !self.text.starts_with('$')
    }
}

/// `text` with the names of a client for `%u` and `%c`. In one pass: a name that contains `%c` is not a pattern itself.
pub(crate) fn with_names(text: &str, identity: &str, client_id: &str) -> String {
    let mut filled = String::with_capacity(text.len() + identity.len() + client_id.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(behind) = rest.strip_prefix("%u") {
            filled.push_str(identity);
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix("%c") {
            filled.push_str(client_id);
            rest = behind;
        } else {
            filled.push('%');
            rest = &rest[1..];
        }
    }
    filled.push_str(rest);
    filled
}

/// Whether a name would reach further in a filter than one level of one topic.
pub(crate) fn is_dangerous(name: &str) -> bool {
    name.chars().any(|one| matches!(one, '+' | '#' | '/') || one.is_control())
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub effect: Effect,
    pub whom: Whom,
    /// [`PUBLISH`], [`READ`] or both.
    pub actions: u8,
    /// `None`: every topic, those that begin with `$` included.
    pub topics: Option<Vec<Pattern>>,
    /// A bit for each QoS.
    pub qos: u8,
    /// Of a PUBLISH.
    pub retain: Option<bool>,
}

impl Rule {
    /// For anybody, about one filter.
    pub(super) fn about(effect: Effect, actions: u8, topic: Pattern) -> Self {
        Self { actions, topics: Some(vec![topic]), ..Self::about_all(effect) }
    }

    /// For anybody, about everything.
    pub(super) fn about_all(effect: Effect) -> Self {
        Self { effect, whom: Whom::default(), actions: PUBLISH | READ, topics: None, qos: ANY_QOS, retain: None }
    }

    /// As it is for one client.
    fn pick_out(&self, subject: &Subject<'_>, picked: &mut Vec<Picked>) {
        if !self.whom.is(subject, self.effect) {
            return;
        }
        match &self.topics {
            None => picked.push(self.about_filter(None)),
            Some(patterns) => {
                for pattern in patterns {
                    match pattern.fill(subject) {
                        Some(filter) if self.effect == Effect::Allow && pattern.becomes_special(&filter) => {}
                        Some(filter) => picked.push(self.about_filter(Some(filter))),
                        // Somebody with such a name would escape what is denied by it.
                        None if self.effect == Effect::Deny && !(pattern.has_user && subject.identity.is_empty()) => {
                            picked.push(self.about_filter(None));
                        }
                        None => {}
                    }
                }
            }
        }
    }

    /// As it is for everybody whom it is for, if no topic names who asks.
    fn pick_for_all(&self, picked: &mut Vec<Picked>) {
        match &self.topics {
            None => picked.push(self.about_filter(None)),
            Some(patterns) => {
                picked.extend(patterns.iter().map(|pattern| self.about_filter(Some(Arc::clone(&pattern.text)))));
            }
        }
    }

    fn about_filter(&self, filter: Option<Arc<str>>) -> Picked {
        Picked { effect: self.effect, actions: self.actions, qos: self.qos, retain: self.retain, filter }
    }

    fn has_names(&self) -> bool {
        self.topics.iter().flatten().any(Pattern::has_names)
    }

    /// Whether both are met by the same clients, in the same words.
    fn stands_with(&self, other: &Self) -> bool {
        if self.has_names() || other.has_names() {
            return self.has_names() && other.has_names();
        }
        // Without an address it depends on the effect whom a rule about networks is for.
        self.whom == other.whom && (self.whom.networks.is_none() || self.effect == other.effect)
    }
}

/// Rules in an order.
#[derive(Debug, Default)]
pub(super) struct Lines {
    runs: Vec<Run>,
    /// What they deny: all that counts for somebody whose login brings rules of its own.
    denials: Vec<Run>,
}

/// Rules that stand one after the other.
#[derive(Debug)]
enum Run {
    /// The same for all whom they are for.
    Shared { whom: Whom, effect: Effect, section: Arc<Section> },
    /// With the names of each client in them.
    ByName(Box<[Rule]>),
}

impl Run {
    fn all_of(rules: &[Rule]) -> Vec<Self> {
        let mut runs = Vec::new();
        let mut rest = rules;
        while let Some(first) = rest.first() {
            let (run, behind) = rest.split_at(rest.iter().take_while(|rule| rule.stands_with(first)).count());
            runs.push(if first.has_names() {
                Self::ByName(run.into())
            } else {
                let mut picked = Vec::new();
                run.iter().for_each(|rule| rule.pick_for_all(&mut picked));
                Self::Shared { whom: first.whom.clone(), effect: first.effect, section: Section::shared(picked) }
            });
            rest = behind;
        }
        runs
    }

    fn pick_out(&self, subject: &Subject<'_>, picking: &mut Picking) {
        match self {
            Self::Shared { whom, effect, section } if whom.is(subject, *effect) => picking.share(section),
            Self::Shared { .. } => {}
            Self::ByName(rules) => rules.iter().for_each(|rule| rule.pick_out(subject, &mut picking.own)),
        }
    }
}

impl From<Vec<Rule>> for Lines {
    fn from(rules: Vec<Rule>) -> Self {
        let runs = Run::all_of(&rules);
        // To deny everything to everybody, as a last line does, is to say what is so without it.
        let catch_all = Rule::about_all(Effect::Deny);
        let denials = rules.into_iter().filter(|rule| rule.effect == Effect::Deny && *rule != catch_all);
        Self { runs, denials: Run::all_of(&denials.collect::<Vec<_>>()) }
    }
}

impl Lines {
    fn pick_out(&self, subject: &Subject<'_>, picking: &mut Picking) {
        self.runs.iter().for_each(|run| run.pick_out(subject, picking));
    }

    fn pick_denials(&self, subject: &Subject<'_>, picking: &mut Picking) {
        self.denials.iter().for_each(|run| run.pick_out(subject, picking));
    }
}

/// The bits of some QoS levels.
pub(super) fn qos_bits(levels: &[u8]) -> Option<u8> {
    levels.iter().try_fold(0, |bits, &level| (level <= 2).then(|| bits | 1 << level))
}

/// All rules that there are.
#[derive(Debug, Default)]
pub struct Rules {
    /// These come first.
    pub(super) ordered: Lines,
    pub(super) acl_file: Option<super::acl_file::AclFile>,
}

impl Rules {
    /// What a client may do.
    #[must_use]
    pub fn for_subject(&self, subject: &Subject<'_>) -> Rights {
        let mut picking = Picking::default();
        self.ordered.pick_out(subject, &mut picking);
        if let Some(file) = &self.acl_file {
            file.for_subject(subject).for_each(|lines| lines.pick_out(subject, &mut picking));
        }
        Rights { picked: picking.finish() }
    }

    /// What the files deny to a client, whatever they allow it.
    fn pick_denials(&self, subject: &Subject<'_>, picking: &mut Picking) {
        self.ordered.pick_denials(subject, picking);
        let of_file = self.acl_file.iter().flat_map(|file| file.about(subject.identity));
        of_file.for_each(|lines| lines.pick_denials(subject, picking));
    }

    /// The rules of a TOML file.
    #[cfg(test)]
    pub(super) fn of_toml(text: &str) -> Self {
        let ordered = super::rules_file::parse(std::path::Path::new("rules"), text).expect("rules");
        Self { ordered: ordered.into(), acl_file: None }
    }

    /// Those of mosquitto's.
    #[cfg(test)]
    pub(super) fn of_acl(text: &str) -> Self {
        let acl_file = super::acl_file::AclFile::parse(std::path::Path::new("acl"), text).expect("a file");
        Self { ordered: Lines::default(), acl_file: Some(acl_file) }
    }
}

/// What one client may do.
#[derive(Debug)]
pub struct Rights {
    picked: Sections,
}

impl Rights {
    /// Of a client whose login brings rules ([`super::granted`]).
    pub(super) fn granted(files: Option<&Rules>, rules: &[Rule], subject: &Subject<'_>) -> Self {
        let mut picking = Picking::default();
        if let Some(files) = files {
            files.pick_denials(subject, &mut picking);
        }
        for rule in rules {
            rule.pick_out(subject, &mut picking.own);
        }
        Self { picked: picking.finish() }
    }

    /// Whether they have in common what costs memory.
    #[cfg(test)]
    pub(super) fn shares_rules_with(&self, other: &Self) -> bool {
        self.picked.shares_with(&other.picked)
    }

    /// Of somebody who may nothing at all.
    #[must_use]
    pub fn none() -> Self {
        Self { picked: Sections::default() }
    }

    /// Whether it may publish to the topic.
    #[must_use]
    pub fn may_publish(&self, topic: &str, qos: QoS, retain: bool) -> bool {
        self.decide(topic, |rule| rule.is_about(PUBLISH, qos) && rule.retain.is_none_or(|own| own == retain))
    }

    /// Whether a message of the topic may reach it.
    #[must_use]
    pub fn may_read(&self, topic: &str, qos: QoS) -> bool {
        self.decide(topic, |rule| rule.is_about(READ, qos))
    }

    fn decide(&self, topic: &str, is_about: impl Fn(&Picked) -> bool) -> bool {
        self.picked.first(topic, is_about).is_some_and(|rule| rule.effect == Effect::Allow)
    }

    /// Whether what comes of a subscription that is granted must be looked at all the same, because it comes at a QoS of its own.
    #[must_use]
    pub fn reading_depends_on_qos(&self) -> bool {
        self.picked.reading_depends_on_qos()
    }

    /// Whether it may read whatever the filter matches.
    #[must_use]
    pub fn may_subscribe(&self, filter: &TopicFilter, qos: QoS) -> bool {
        self.picked.deciding(filter.as_str(), qos).is_some_and(|rule| rule.effect == Effect::Allow)
    }
}

/// Whether there is a topic that both filters match.
pub(crate) fn overlaps(one: &str, other: &str) -> bool {
    // A wildcard at the first level does not reach topics that begin with `$` [MQTT-4.7.2-1].
    let begins_wild = |filter: &str| filter.starts_with(['+', '#']);
    if (begins_wild(one) && other.starts_with('$')) || (begins_wild(other) && one.starts_with('$')) {
        return false;
    }
    let mut one = one.split('/');
    let mut other = other.split('/');
    loop {
        match (one.next(), other.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
            (Some(level), Some(same)) if level == same => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use kentongan_proto::topic;
    use proptest::prelude::*;

    use super::*;

    fn subject<'a>(identity: &'a str, client_id: &'a str) -> Subject<'a> {
        Subject { identity, client_id, site: Site::Address("192.0.2.7".parse().expect("an address")) }
    }

    fn rule(effect: Effect, actions: u8, filter: &str) -> Rule {
        Rule::about(effect, actions, Pattern::parse(filter).expect("a filter"))
    }

    fn rights(rules: Vec<Rule>, subject: &Subject<'_>) -> Rights {
        Rules { ordered: rules.into(), acl_file: None }.for_subject(subject)
    }

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::parse(text).expect("a filter")
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rules = vec![
            rule(Effect::Deny, READ, "a/secret/#"),
            rule(Effect::Allow, READ | PUBLISH, "a/#"),
            rule(Effect::Deny, PUBLISH, "a/b"),
            rule(Effect::Allow, PUBLISH, "b/+"),
        ];
        let rights = rights(rules, &subject("u", "c"));
        assert!(rights.may_publish("a/b", QoS::AtMostOnce, false), "allowed before it is denied");
        assert!(rights.may_publish("a/secret/x", QoS::AtMostOnce, false), "only reading is denied");
        assert!(!rights.may_read("a/secret", QoS::AtMostOnce));
        assert!(!rights.may_read("b/c", QoS::AtMostOnce), "no rule fits");
        assert!(!rights.may_publish("b/c/d", QoS::AtMostOnce, false));
    }

    #[test]
    fn a_filter_must_lie_within_what_is_allowed_and_not_touch_what_is_denied() {
        let rules = vec![rule(Effect::Deny, READ, "a/+/secret"), rule(Effect::Allow, READ, "a/#")];
        let rights = rights(rules, &subject("u", "c"));
        let may = |text: &str| rights.may_subscribe(&filter(text), QoS::AtLeastOnce);
        for allowed in ["a/b", "a/b/c", "a/+/c", "a/b/secret/x", "a"] {
            assert!(may(allowed), "{allowed}");
        }
        for refused in ["a/#", "a/b/secret", "a/+/+", "a/b/#", "+/b", "#", "b", "$SYS/#"] {
            assert!(!may(refused), "{refused}");
        }
        let rules =
            vec![rule(Effect::Allow, READ, "b/+"), rule(Effect::Deny, READ, "#"), rule(Effect::Allow, READ, "$x/#")];
        let rights = self::rights(rules, &subject("u", "c"));
        let may = |text: &str| rights.may_subscribe(&filter(text), QoS::AtLeastOnce);
        assert!(may("b/+") && may("b/c") && !may("b/#") && !may("b/+/c") && !may("b"), "a filter is no topic");
        assert!(may("$x/+"), "no wildcard reaches `$`");
    }

    /// Abuse: [names-in-patterns]
    #[test]
    fn names_are_put_in_where_they_are_harmless() {
        let rules = || vec![rule(Effect::Allow, READ, "u/%u/c/%c/#"), rule(Effect::Allow, READ, "100%/x")];
        let may = |identity, client_id, text: &str| {
            rights(rules(), &subject(identity, client_id)).may_subscribe(&filter(text), QoS::AtMostOnce)
        };
        assert!(may("ana", "7", "u/ana/c/7/x"));
        assert!(!may("ana", "7", "u/ana/c/8/x"));
        assert!(may("%c", "7", "u/%c/c/7/x"), "a name is no pattern");
        assert!(may("", "7", "100%/x") && !may("", "7", "u//c/7/x"), "nobody has no name");
        for dangerous in ["+", "#", "a/b", "a\u{1}b", "a\u{9f}"] {
            for text in ["u/ana/c/7/x", "u/+/c/7/x"] {
                assert!(!may(dangerous, "7", text) && !may("ana", dangerous, text), "{dangerous:?} {text}");
            }
        }
        assert!(
            !may("a\u{1}b", "7", "u/a\u{1}b/c/7/x") && !may("ana", "\u{9f}", "u/ana/c/\u{9f}/x"),
            "not even its own"
        );
        let denied = vec![rule(Effect::Deny, PUBLISH, "u/%u"), rule(Effect::Allow, PUBLISH, "#")];
        let may = |identity| rights(denied.clone(), &subject(identity, "c")).may_publish("x", QoS::AtMostOnce, false);
        assert!(may("ana") && may(""));
        assert!(!may("a/b"), "who cannot be named in what is denied is denied everything");
    }

    /// [MQTT-4.7.2-1]: what begins with `$` nobody means who does not write it.
    ///
    /// Abuse: [names-in-patterns]
    #[test]
    fn no_name_makes_a_filter_begin_with_a_dollar() {
        let rules = |effect| {
            let filters = ["%c/#", "%u/#", "%u%c", "in/%c/#", "$own/%c"];
            filters.map(|filter| rule(effect, READ | PUBLISH, filter)).to_vec()
        };
        let allowed = rights(rules(Effect::Allow), &subject("$u", "$SYS"));
        let may_read = |text: &str| allowed.may_subscribe(&filter(text), QoS::AtMostOnce);
        for refused in ["$SYS/#", "$SYS/broker/uptime", "$u/x", "$u$SYS"] {
            assert!(!may_read(refused) && !allowed.may_read(refused, QoS::AtMostOnce), "{refused}");
        }
        assert!(
            may_read("in/$SYS/x") && may_read("$own/$SYS"),
            "there the name stands further behind, or the rule says so"
        );
        let denied = [rules(Effect::Deny), vec![Rule::about_all(Effect::Allow)]].concat();
        let denied = rights(denied, &subject("$u", "$SYS"));
        assert!(!denied.may_read("$SYS/x", QoS::AtMostOnce) && !denied.may_read("$u/x", QoS::AtMostOnce));
        assert!(denied.may_read("other", QoS::AtMostOnce), "what is denied is what it says");
    }

    #[test]
    fn whom_a_rule_is_for() {
        let one = |whom: Whom| vec![Rule { whom, ..rule(Effect::Allow, READ, "x") }];
        let may = |whom: Whom, identity, client_id| {
            rights(one(whom), &subject(identity, client_id)).may_read("x", QoS::AtMostOnce)
        };
        let named = |names: &[&str]| Some(names.iter().map(|&name| Box::from(name)).collect::<Vec<_>>());
        let users = |anonymous| Whom { users: named(&["ana", "budi"]), anonymous, ..Whom::default() };
        assert!(may(users(false), "ana", "c") && !may(users(false), "citra", "c") && !may(users(false), "", "c"));
        assert!(may(users(true), "", "c") && !may(users(true), "citra", "c"));
        let nobody = || Whom { anonymous: true, ..Whom::default() };
        assert!(may(nobody(), "", "c") && !may(nobody(), "ana", "c"));
        let clients = || Whom { client_ids: named(&["dev-*", "hub"]), ..Whom::default() };
        assert!(may(clients(), "x", "dev-7") && may(clients(), "x", "hub") && !may(clients(), "x", "hub-2"));
        let from = |text: &str| Whom { networks: Some(vec![text.parse().expect("a network")]), ..Whom::default() };
        assert!(may(from("192.0.2.0/24"), "x", "c") && !may(from("192.0.3.0/24"), "x", "c"));
        assert!(may(from("0.0.0.0/0"), "x", "c") && !may(from("::/0"), "x", "c") && may(from("192.0.2.7"), "x", "c"));
        assert!(
            may(from("::ffff:192.0.2.7"), "x", "c") && may(from("::ffff:192.0.2.0/120"), "x", "c"),
            "the same in IPv6"
        );
        let away = Subject { site: Site::Away, ..subject("x", "c") };
        assert!(rights(one(from("10.0.0.0/8")), &away).may_read("x", QoS::AtMostOnce), "it was let in there");
        let outside = Rule { whom: from("192.0.2.0/24"), ..rule(Effect::Deny, READ, "x") };
        let denied = |subject: &Subject<'_>| {
            !rights(vec![outside.clone(), rule(Effect::Allow, READ, "x")], subject).may_read("x", QoS::AtMostOnce)
        };
        assert!(denied(&subject("x", "c")) && !denied(&away), "nor was it denied there");
        let both = vec![outside.clone(), Rule { effect: Effect::Allow, ..outside.clone() }];
        assert!(rights(both, &away).may_read("x", QoS::AtMostOnce), "each rule by what it says");
        let whoever = |site, whom| rights(one(whom), &Subject { site, ..subject("x", "c") });
        for whole in ["0.0.0.0/0", "::/0"] {
            assert!(!whoever(Site::NoAddress, from(whole)).may_read("x", QoS::AtMostOnce), "it comes from no network");
        }
        assert_eq!(Site::from(None), Site::NoAddress);
        assert!(whoever(Site::NoAddress, Whom::default()).may_read("x", QoS::AtMostOnce));
    }

    #[test]
    fn networks_contain_addresses_of_their_family() {
        let contains = |network: &str, address: &str| {
            network.parse::<Network>().expect("a network").contains(address.parse().expect("an address"))
        };
        assert!(contains("192.0.2.0/25", "192.0.2.127") && !contains("192.0.2.0/25", "192.0.2.128"));
        assert!(contains("192.0.2.0/24", "::ffff:192.0.2.1"), "as sockets of both families have it");
        assert!(contains("::ffff:192.0.2.0/120", "192.0.2.1") && contains("::ffff:192.0.2.1", "::ffff:192.0.2.1"));
        assert!(!contains("::ffff:192.0.2.0/120", "192.0.3.1"));
        assert!(contains("2001:db8::/33", "2001:db8:7fff::1") && !contains("2001:db8::/33", "2001:db8:8000::1"));
        assert!(contains("::/0", "2001:db8::1") && !contains("::/0", "192.0.2.1"));
        assert!(!contains("0.0.0.0/0", "2001:db8::1"));
    }

    #[test]
    fn conditions_on_qos_and_retain() {
        let qos = qos_bits(&[0, 1]).expect("levels");
        let rules = vec![Rule { qos, retain: Some(false), ..rule(Effect::Allow, PUBLISH | READ, "x") }];
        let rights = rights(rules, &subject("u", "c"));
        assert!(rights.may_publish("x", QoS::AtLeastOnce, false));
        assert!(!rights.may_publish("x", QoS::ExactlyOnce, false) && !rights.may_publish("x", QoS::AtMostOnce, true));
        assert!(rights.may_subscribe(&filter("x"), QoS::AtLeastOnce));
        assert!(!rights.may_subscribe(&filter("x"), QoS::ExactlyOnce));
        assert!(rights.reading_depends_on_qos());
        let published = Rule { qos, ..rule(Effect::Allow, PUBLISH, "x") };
        let of_any = rule(Effect::Allow, READ, "x");
        assert!(!self::rights(vec![published, of_any], &subject("u", "c")).reading_depends_on_qos());
        assert_eq!(qos_bits(&[3]), None);
    }

    fn levels() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "+", "", "$x"]), 1..4)
            .prop_flat_map(|levels| prop::bool::ANY.prop_map(move |more| (levels.clone(), more)))
            .prop_map(|(levels, more)| levels.join("/") + if more { "/#" } else { "" })
    }

    fn topics() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "", "$x"]), 1..5).prop_map(|levels| levels.join("/"))
    }

    proptest! {
        /// Who may subscribe may read whatever comes of it.
        /// Abuse: [authorize]
        #[test]
        fn nothing_comes_of_a_subscription_that_may_not_be_read(
            rules in prop::collection::vec((prop::bool::ANY, levels()), 1..5),
            asked in levels(),
            topic in topics(),
        ) {
            let effect = |allow| if allow { Effect::Allow } else { Effect::Deny };
            let parsed = |text: &String| TopicFilter::parse(text).is_ok();
            let rules: Vec<_> = rules.iter().filter(|(_, text)| parsed(text))
                .map(|(allow, text)| rule(effect(*allow), READ, text)).collect();
            let rights = rights(rules, &subject("u", "c"));
            if let Ok(asked) = TopicFilter::parse(&asked)
                && rights.may_subscribe(&asked, QoS::AtMostOnce)
                && asked.matches(&topic)
            {
                prop_assert!(rights.may_read(&topic, QoS::AtMostOnce));
            }
        }

        #[test]
        fn filters_that_match_one_topic_overlap(one in levels(), other in levels(), topic in topics()) {
            if topic::matches(&one, &topic) && topic::matches(&other, &topic) {
                prop_assert!(overlaps(&one, &other) && overlaps(&other, &one));
            }
        }
    }
}
