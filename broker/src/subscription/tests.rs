//! Both tables against a list and the words of the standard.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;

use kentongan_proto::mqtt::QoS;
use proptest::prelude::*;

use super::trie::{FilterValue, WildcardTrie};
use super::*;

/// Section 4.7, level by level: the oracle.
fn is_match(filter: &str, topic: &str) -> bool {
    fn levels_match(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) | ([], []) => true,
            (["+", filter @ ..], [_, topic @ ..]) => levels_match(filter, topic),
            ([level, filter @ ..], [named, topic @ ..]) => level == named && levels_match(filter, topic),
            _ => false,
        }
    }
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (filter, topic): (Vec<&str>, Vec<&str>) = (filter.split('/').collect(), topic.split('/').collect());
    levels_match(&filter, &topic)
}

fn matched(index: &SubscriptionIndex, topic: &str) -> Matched {
    let mut matched = Matched::default();
    index.matches(topic, topic_hash(topic), &mut matched);
    matched
}

fn local(subscriptions: &LocalSubscriptions, topic: &str) -> Vec<LocalMatch> {
    let mut found = Vec::new();
    subscriptions.matches(topic, topic_hash(topic), &mut found);
    found.sort_by_key(|target| target.connection);
    found
}

fn connections(found: &[LocalMatch]) -> Vec<u64> {
    found.iter().map(|target| target.connection).collect()
}

fn subscription(connection: u64, qos: QoS) -> LocalSubscription {
    LocalSubscription {
        connection,
        qos,
        no_local: false,
        retain_as_published: false,
        subscription_identifier: None,
        persistent: false,
        held: false,
    }
}

fn identified(connection: u64, qos: QoS, identifier: u32) -> LocalSubscription {
    LocalSubscription { subscription_identifier: NonZeroU32::new(identifier), ..subscription(connection, qos) }
}

fn member(connection: u64) -> ShareMember {
    ShareMember {
        target: ShareTarget::Connection { arbiter: (connection % 4) as u16, connection },
        client_id_hash: topic_hash(&connection.to_string()),
        node: 0,
        qos0_only: false,
    }
}

fn indexed(number: NodeNumber) -> IndexedNode {
    IndexedNode { number, identity: u64::from(number) + 100 }
}

/// Levels of which few differ, empty ones and `$` ones among them, so that filters and topics meet.
fn level() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "c", "", "$s"])
}

fn topic() -> impl Strategy<Value = String> {
    prop::collection::vec(level(), 1..5).prop_map(|levels| levels.join("/"))
}

fn filter() -> impl Strategy<Value = String> {
    let level = prop_oneof![3 => level(), 1 => Just("+")];
    (prop::collection::vec(level, 0..5), any::<bool>()).prop_map(|(mut levels, below)| {
        if below || levels.is_empty() {
            levels.push("#");
        }
        levels.join("/")
    })
}

#[derive(Debug, Clone)]
enum Step {
    Subscribe(String, u64, u8),
    Unsubscribe(String, u64),
    /// Undoes one that stands, so that not all undoing fails.
    UnsubscribeNth(usize),
    Publish(String),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (filter(), 0..6u64, any::<u8>()).prop_map(|(filter, who, how)| Step::Subscribe(filter, who, how)),
        1 => (filter(), 0..6u64).prop_map(|(filter, who)| Step::Unsubscribe(filter, who)),
        2 => any::<usize>().prop_map(Step::UnsubscribeNth),
        3 => topic().prop_map(Step::Publish),
    ]
}

fn target(who: u64) -> Target {
    match who {
        0..3 => Target::Arbiter(who as u16 * 100),
        3 => Target::Node(3),
        4 => Target::Group(4),
        // The same node: what wants any QoS hides what wants less.
        _ => Target::NodeQos0(3),
    }
}

fn options(connection: u64, how: u8) -> LocalSubscription {
    LocalSubscription {
        connection,
        qos: QoS::from_bits(how & 3).unwrap_or(QoS::AtMostOnce),
        no_local: how & 4 != 0,
        retain_as_published: how & 8 != 0,
        subscription_identifier: NonZeroU32::new(u32::from(how >> 4)),
        persistent: connection.is_multiple_of(2),
        held: false,
    }
}

/// What one copy must look like, from a list of subscriptions.
fn merge_of(subscriptions: &[LocalSubscription]) -> Option<(QoS, bool, Vec<u32>)> {
    let qos = subscriptions.iter().map(|subscription| subscription.qos).max()?;
    let retain = subscriptions.iter().any(|subscription| subscription.retain_as_published);
    let mut identifiers: Vec<u32> =
        subscriptions.iter().filter_map(|each| each.subscription_identifier).map(NonZeroU32::get).collect();
    identifiers.sort_unstable();
    Some((qos, retain, identifiers))
}

fn terms(merged: &Merged) -> (QoS, bool, Vec<u32>) {
    let mut identifiers = merged.subscription_identifiers.to_vec();
    identifiers.sort_unstable();
    (merged.qos, merged.retain_as_published, identifiers)
}

fn check_global(index: &SubscriptionIndex, naive: &BTreeMap<(String, u64), u32>, topic: &str) {
    let wanted = naive.keys().filter(|(filter, _)| is_match(filter, topic)).map(|&(_, who)| target(who));
    let (mut arbiters, mut groups, mut nodes, mut nodes_qos0) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for target in wanted {
        match target {
            Target::Arbiter(arbiter) => arbiters.push(arbiter),
            Target::Group(group) => groups.push(group),
            Target::Node(node) => nodes.push(node),
            Target::NodeQos0(node) => nodes_qos0.push(node),
        }
    }
    nodes_qos0.extend(&nodes);
    for list in [&mut arbiters, &mut groups] {
        list.sort_unstable();
        list.dedup();
    }
    for list in [&mut nodes, &mut nodes_qos0] {
        list.sort_unstable();
        list.dedup();
    }
    let matched = matched(index, topic);
    assert_eq!(matched.arbiters.iter().collect::<Vec<_>>(), arbiters, "arbiters of {topic:?}");
    assert_eq!(matched.groups.to_vec(), groups, "groups of {topic:?}");
    assert_eq!(matched.nodes_for(QoS::AtLeastOnce).collect::<Vec<_>>(), nodes, "nodes of {topic:?}");
    assert_eq!(matched.nodes_for(QoS::AtMostOnce).collect::<Vec<_>>(), nodes_qos0, "nodes for QoS 0 of {topic:?}");
    assert!(index.is_current(&matched));
}

fn check_local(found: &[LocalMatch], naive: &BTreeMap<(String, u64), LocalSubscription>, topic: &str) {
    let mut wanted: BTreeMap<u64, Vec<LocalSubscription>> = BTreeMap::new();
    for ((filter, who), subscription) in naive {
        if is_match(filter, topic) {
            wanted.entry(*who).or_default().push(*subscription);
        }
    }
    let mut found = found.to_vec();
    found.sort_by_key(|target| target.connection);
    assert_eq!(connections(&found), wanted.keys().copied().collect::<Vec<_>>(), "connections of {topic:?}");
    for target in &found {
        let all = &wanted[&target.connection];
        let own: Vec<_> = all.iter().filter(|subscription| !subscription.no_local).copied().collect();
        assert_eq!(Some(terms(target.merged())), merge_of(all), "terms of {topic:?}");
        assert_eq!(target.own().map(terms), merge_of(&own), "own terms of {topic:?}");
        assert_eq!(target.persistent, all[0].persistent);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Section 4.7, any order of SUBSCRIBE, UNSUBSCRIBE and PUBLISH: both tables and the cache before them say what
    /// a list and the oracle say, and end as empty as they began.
    #[test]
    fn tables_and_cache_agree_with_a_list(steps in prop::collection::vec(step(), 1..120)) {
        let index = SubscriptionIndex::new();
        let mut locals = LocalSubscriptions::new();
        let mut cache = MatchCache::new();
        let mut counts: BTreeMap<(String, u64), u32> = BTreeMap::new();
        let mut naive: BTreeMap<(String, u64), LocalSubscription> = BTreeMap::new();
        for step in steps {
            let removal = match step {
                Step::Subscribe(filter, who, how) => {
                    let subscription = options(who, how);
                    index.subscribe(&filter, target(who));
                    *counts.entry((filter.clone(), who)).or_default() += 1;
                    let new = locals.insert(&filter, &subscription);
                    prop_assert_eq!(new, naive.insert((filter, who), subscription).is_none());
                    None
                }
                Step::Publish(topic) => {
                    let cached = cache.take(&topic, topic_hash(&topic), &index, &locals);
                    check_local(&cached.local, &naive, &topic);
                    let fresh = matched(&index, &topic);
                    prop_assert_eq!(cached.global.arbiters, fresh.arbiters);
                    prop_assert_eq!(&cached.global.groups, &fresh.groups);
                    cache.put_back(cached);
                    check_global(&index, &counts, &topic);
                    check_local(&local(&locals, &topic), &naive, &topic);
                    let mut each = Vec::new();
                    locals.matches_each(&topic, topic_hash(&topic), &mut each);
                    let wanted = naive.keys().filter(|(filter, _)| is_match(filter, &topic)).count();
                    prop_assert_eq!(each.len(), wanted, "one copy for each subscription");
                    let mut of_each = Vec::new();
                    for connection in connections(&local(&locals, &topic)) {
                        locals.each_of(connection, &topic, topic_hash(&topic), |found| of_each.push(found));
                    }
                    let matching = naive.iter().filter(|((filter, _), _)| is_match(filter, &topic));
                    let wanted: Vec<_> = matching.map(|(_, subscription)| *subscription).collect();
                    let is_wanted = of_each.iter().all(|found| wanted.contains(found));
                    prop_assert!(is_wanted && of_each.len() == wanted.len(), "{of_each:?} is not {wanted:?}");
                    None
                }
                Step::Unsubscribe(filter, who) => Some((filter, who)),
                Step::UnsubscribeNth(nth) => counts.keys().nth(nth % counts.len().max(1)).cloned(),
            };
            let Some((filter, who)) = removal else { continue };
            let stood = counts.contains_key(&(filter.clone(), who));
            prop_assert_eq!(index.unsubscribe(&filter, target(who)), stood);
            if let Some(count) = counts.get_mut(&(filter.clone(), who)) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&(filter.clone(), who));
                }
            }
            let removed = naive.remove(&(filter.clone(), who)).is_some();
            prop_assert_eq!(locals.remove(&filter, who), removed);
        }
        prop_assert_eq!(index.subscriptions(), counts.values().sum::<u32>() as usize);
        prop_assert_eq!(locals.len(), naive.len());
        for ((filter, who), count) in counts {
            for _ in 0..count {
                prop_assert!(index.unsubscribe(&filter, target(who)));
            }
        }
        prop_assert_eq!((index.subscriptions(), index.filters()), (0, 0));
    }

    /// Members that come and go: a pick is always one of them, and the group is gone with the last.
    #[test]
    fn a_pick_is_always_a_member(steps in prop::collection::vec((0..12u64, any::<bool>(), any::<bool>()), 1..60)) {
        let index = SubscriptionIndex::new();
        let mut members: BTreeMap<u64, bool> = BTreeMap::new();
        for (who, joins, qos0_only) in steps {
            let one = ShareMember { qos0_only, ..member(who) };
            if joins {
                index.join_share("g", "a/+", one);
                members.insert(who, qos0_only);
            } else {
                prop_assert_eq!(index.leave_share("g", "a/+", &one.target), members.remove(&who).is_some());
            }
            prop_assert_eq!(index.subscriptions(), members.len());
            let shares = matched(&index, "a/b").shares;
            prop_assert_eq!(shares.len(), usize::from(!members.is_empty()));
            for (share, strategy) in shares.iter().flat_map(|share| STRATEGIES.map(|strategy| (share, strategy))) {
                for qos0 in [false, true] {
                    let eligible = |&(&other, &qos0_only): &(&u64, &bool)| other != who && (qos0 || !qos0_only);
                    let picked = share.pick(strategy, 1, 2, PassedOver::Connection(who), qos0);
                    match picked {
                        None => prop_assert!(!members.iter().any(|each| eligible(&each))),
                        Some(ShareTarget::Connection { connection, .. }) => {
                            let key = members.get_key_value(&connection);
                            prop_assert!(key.is_some_and(|each| eligible(&each)), "{:?} picked {}", strategy, connection);
                        }
                        Some(other) => prop_assert!(false, "{:?} is no connection", other),
                    }
                }
            }
        }
    }
}

/// What some node or group says of some filter.
fn told() -> impl Strategy<Value = (usize, u16, bool, u32)> {
    let half = || prop::sample::select(vec![0, 0, 1, 2, 700, 0xFFFF]);
    (0..6usize, 0..2u16, any::<bool>(), half(), half())
        .prop_map(|(filter, who, node, high, low)| (filter, who, node, high << 16 | low))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Values that jump by any amount: the index always says what the last ones say, and nothing is left behind them.
    #[test]
    fn the_index_follows_what_nodes_and_groups_say(steps in prop::collection::vec(told(), 1..60)) {
        const FILTERS: [&str; 6] = ["a/b", "a/+", "#", "$share/g/a/b", "$share/g/a/+", "$share/h/a/b"];
        let index = SubscriptionIndex::new();
        index.subscribe("a/b", Target::Arbiter(1));
        let mut values: BTreeMap<(usize, u16, bool), u32> = BTreeMap::new();
        let say = |key: (usize, u16, bool), old, new| match key {
            (filter, who, true) => index.set_node(FILTERS[filter], indexed(who.into()), old, new),
            (filter, who, false) => index.set_group(FILTERS[filter], who, old, new),
        };
        for (filter, who, node, value) in steps {
            let key = (filter, who, node);
            let old = values.insert(key, value).unwrap_or(0);
            say(key, old, value);

            let found = matched(&index, "a/b");
            let plain = |node: bool, wants: fn(u32) -> bool| -> Vec<u16> {
                let wants = |who: &u16| (0..3).any(|filter| values.get(&(filter, *who, node)).is_some_and(|value| wants(*value)));
                (0..2).filter(wants).collect()
            };
            let nodes = |qos| found.nodes_for(qos).map(|node| node as u16).collect::<Vec<_>>();
            prop_assert_eq!(nodes(QoS::AtMostOnce), plain(true, |value| value > 0));
            prop_assert_eq!(nodes(QoS::ExactlyOnce), plain(true, |value| value >> 16 > 0));
            prop_assert_eq!(found.groups.to_vec(), plain(false, |value| value > 0));
            for (shared, name) in FILTERS.iter().enumerate().skip(3) {
                let members: u32 = values
                    .iter()
                    .filter(|((filter, ..), _)| *filter == shared)
                    .map(|((_, _, node), value)| (value >> 16) + if *node { value & 0xFFFF } else { 0 })
                    .sum();
                let share = found.shares.iter().find(|share| share.subscription_name() == *name);
                prop_assert_eq!(share.map_or(0, |share| share.len()), members as usize, "{}", name);
                prop_assert_eq!(share.is_some(), members > 0);
            }
        }
        for (key, value) in values {
            say(key, value, 0);
        }
        prop_assert_eq!((index.subscriptions(), index.filters()), (1, 1), "only the arbiter's own is left");
    }
}

/// What is told is 0 exactly if nothing is wanted, and more than fits is told as the most that does.
#[test]
fn counts_that_do_not_fit_are_told_as_the_most_that_do() {
    let mut interest = NodeInterest::default();
    assert_eq!(interest.to_value(), 0);
    interest.change(InterestKind::Any, true);
    interest.change(InterestKind::Qos0Only, true);
    interest.change(InterestKind::Any, false);
    interest.change(InterestKind::Any, false);
    assert_eq!(NodeInterest::from_value(interest.to_value()), NodeInterest { any: 0, qos0_only: 1 });
    let many = NodeInterest { any: 70_000, qos0_only: u32::MAX };
    assert_eq!(NodeInterest::from_value(many.to_value()), NodeInterest { any: 65_535, qos0_only: 65_535 });
    let sessions = ShareSessions { members: 70_000, online: 3 };
    assert_eq!(ShareSessions::from_value(sessions.to_value()), ShareSessions { members: 65_535, online: 3 });
    assert_eq!(ShareSessions { members: 0, online: 5 }.to_value(), 0, "nobody can be online who is no member");
}

/// Only the first and the last subscription of a node, and a change of what it wants, outdate matches.
#[test]
fn a_node_with_more_subscriptions_outdates_nothing() {
    let index = SubscriptionIndex::new();
    let value = |any, qos0_only| NodeInterest { any, qos0_only }.to_value();
    index.set_node("a/b", indexed(1), 0, value(0, 1));
    let found = matched(&index, "a/b");
    index.set_node("a/b", indexed(1), value(0, 1), value(0, 9));
    assert!(index.is_current(&found));
    index.set_node("a/b", indexed(1), value(0, 9), value(1, 9));
    assert!(!index.is_current(&found));
    let found = matched(&index, "a/b");
    index.set_node("a/b", indexed(1), value(1, 9), value(5, 0));
    assert!(index.is_current(&found));
    index.set_node("a/b", indexed(1), value(5, 0), 0);
    assert!(matched(&index, "a/b").is_empty() && index.filters() == 0);
}

const STRATEGIES: [PickStrategy; 6] = [
    PickStrategy::RoundRobin,
    PickStrategy::Random,
    PickStrategy::Sticky,
    PickStrategy::HashClient,
    PickStrategy::HashTopic,
    PickStrategy::LeastInflight,
];

/// The examples of section 4.7.1, and the clauses about empty levels and case.
#[test]
fn wildcards_match_as_the_standard_shows() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        (
            "sport/tennis/player1/#",
            &["sport/tennis/player1", "sport/tennis/player1/score/wimbledon"],
            &["sport/tennis/player2"],
        ),
        ("sport/#", &["sport", "sport/", "sport/tennis"], &["sports", "Sport/tennis", "/sport"]),
        ("#", &["a", "/", "", "a/b/c"], &["$SYS", "$SYS/a"]),
        ("+", &["finance", ""], &["/finance", "$SYS"]),
        ("+/+", &["/finance", "a/b"], &["finance", "a/b/c", "$SYS/a"]),
        ("/+", &["/finance", "/"], &["finance", "//"]),
        ("sport/+/player1", &["sport/tennis/player1", "sport//player1"], &["sport/player1"]),
        ("sport/+", &["sport/", "sport/tennis"], &["sport", "sport/tennis/player1"]),
        ("+/tennis/#", &["sport/tennis", "sport/tennis/a/b"], &["sport", "$SYS/tennis"]),
        ("+/#", &["a", "a/b", "/"], &["$SYS", "$SYS/a"]),
        ("$SYS/#", &["$SYS", "$SYS/monitor"], &["SYS/monitor"]),
        ("$SYS/+/x", &["$SYS/a/x"], &["$SYS/a"]),
        ("a//b", &["a//b"], &["a/b", "a///b"]),
        ("ACCOUNTS", &["ACCOUNTS"], &["Accounts"]),
    ];
    for &(filter, yes, no) in cases {
        let index = SubscriptionIndex::new();
        index.subscribe(filter, Target::Group(1));
        let mut locals = LocalSubscriptions::new();
        locals.insert(filter, &subscription(1, QoS::AtMostOnce));
        for &topic in yes.iter().chain(no) {
            let expected = yes.contains(&topic);
            assert_eq!(is_match(filter, topic), expected, "the oracle: {filter} {topic}");
            assert_eq!(!matched(&index, topic).is_empty(), expected, "{filter} {topic}");
            assert_eq!(!local(&locals, topic).is_empty(), expected, "{filter} {topic}");
        }
    }
}

#[derive(Debug, Default)]
struct Wanted(bool);

impl FilterValue for Wanted {
    fn is_empty(&self) -> bool {
        !self.0
    }
}

fn trie_of<'f>(filters: impl IntoIterator<Item = &'f str>) -> WildcardTrie<Wanted> {
    let mut trie: WildcardTrie<Wanted> = WildcardTrie::default();
    for filter in filters {
        trie.upsert(filter, |wanted| wanted.0 = true);
    }
    trie
}

/// However many `+` lead to a node, it is visited once: a hostile filter costs the nodes it made, and no more.
#[test]
fn hostile_filters_cost_a_look_up_only_their_own_nodes() {
    // Each combination of `a` and `+` over ten levels, closed so that none matches.
    let combinations: Vec<String> = (0..1 << 10)
        .map(|bits: u32| {
            let levels: Vec<&str> = (0..10).map(|at| if bits >> at & 1 == 1 { "+" } else { "a" }).collect();
            levels.join("/") + "/x"
        })
        .collect();
    let trie = trie_of(combinations.iter().map(String::as_str));
    let mut found = 0;
    let visited = trie.matches(&["a"; 12].join("/"), |_| found += 1);
    assert_eq!(found, 0);
    assert!(visited <= trie.nodes(), "{visited} of {}", trie.nodes());
    assert!(visited < 2 << 10, "no more than the distinct beginnings");

    // A chain of `+` costs its length, whatever else is subscribed.
    let mut filters = vec!["+/+/+/+/+/#".to_owned(), "+/+/+/+/+/+/+/+".to_owned(), "#".to_owned()];
    filters.extend((0..10_000).map(|at| format!("+/level{at}/#")));
    let trie = trie_of(filters.iter().map(String::as_str));
    let mut found = 0;
    let visited = trie.matches("a/level7/c/d/e/f/g/h", |_| found += 1);
    assert_eq!(found, 4);
    assert!(visited <= 11, "{visited}");

    // A topic of nothing but separators ends where the filters do.
    let visited = trie.matches(&"/".repeat(60_000), |_| {});
    assert!(visited <= 10, "{visited}");
}

/// A trie whose filters are all gone is one node, whatever it once held.
#[test]
fn what_leads_nowhere_is_pruned() {
    let filters = ["a/+/c", "a/+", "a/#", "a/b/+/d/#", "+/+", "#", "a/+/c/#"];
    let mut trie = trie_of(filters);
    assert_eq!(trie.len(), filters.len());
    for filter in filters {
        assert!(trie.get(filter).is_some(), "{filter}");
        assert!(trie.update(filter, |wanted| wanted.0 = false).is_some(), "{filter}");
        assert!(trie.get(filter).is_none(), "{filter}");
    }
    assert_eq!((trie.len(), trie.nodes()), (0, 1));
    assert!(trie.update("a/+", |_| ()).is_none(), "gone");
}

/// Point 12 of the design's hot path: a SUBSCRIBE elsewhere leaves the caches as they are.
#[test]
fn a_match_is_outdated_only_by_what_may_concern_it() {
    let index = SubscriptionIndex::new();
    let mut locals = LocalSubscriptions::new();
    let before = matched(&index, "plant/1");
    let stamp = locals.matches("plant/1", topic_hash("plant/1"), &mut Vec::new());
    let elsewhere = |kind: fn(&str) -> usize, of: &str| -> String {
        let names = (0..).map(|at| format!("other{at}"));
        names.into_iter().find(|name| kind(name) != kind(of)).unwrap_or_default()
    };
    let exact = elsewhere(|topic| shard_of(topic_hash(topic)), "plant/1");
    let wildcard = elsewhere(first_level_shard, "plant") + "/#";
    for filter in [&exact, &wildcard] {
        index.subscribe(filter, Target::Group(1));
        locals.insert(filter, &subscription(1, QoS::AtMostOnce));
    }
    assert!(index.is_current(&before) && locals.is_current(&stamp), "nothing of it changed");
    for filter in ["plant/1", "plant/#", "plant/+", "#", "+/1"] {
        let before = matched(&index, "plant/1");
        let stamp = locals.matches("plant/1", topic_hash("plant/1"), &mut Vec::new());
        index.subscribe(filter, Target::Group(1));
        locals.insert(filter, &subscription(1, QoS::AtMostOnce));
        assert!(!index.is_current(&before), "{filter}");
        assert!(!locals.is_current(&stamp), "{filter}");
    }
}

/// Ten thousand clients of one arbiter that subscribe to one topic outdate its matches once.
#[test]
fn only_the_first_and_last_of_a_target_outdate_matches() {
    let index = SubscriptionIndex::new();
    index.subscribe("a/b", Target::Arbiter(3));
    let first = matched(&index, "a/b");
    index.subscribe("a/b", Target::Arbiter(3));
    assert!(index.unsubscribe("a/b", Target::Arbiter(3)));
    assert!(index.is_current(&first));
    assert!(index.unsubscribe("a/b", Target::Arbiter(3)));
    assert!(!index.is_current(&first));
    assert!(!index.unsubscribe("a/b", Target::Arbiter(3)), "none is left");
    assert!(!Matched::default().is_empty() || !index.is_current(&Matched::default()), "never made, never current");
}

/// [MQTT-3.3.4-2, MQTT-3.3.4-4]: overlapping subscriptions give one copy at the highest QoS with all identifiers.
#[test]
fn overlapping_subscriptions_merge_into_one_copy() {
    let mut locals = LocalSubscriptions::new();
    locals.insert("a/b", &identified(1, QoS::AtMostOnce, 5));
    locals.insert("a/+", &identified(1, QoS::ExactlyOnce, 6));
    locals.insert("#", &LocalSubscription { retain_as_published: true, ..subscription(1, QoS::AtLeastOnce) });
    locals.insert("a/+", &subscription(2, QoS::AtLeastOnce));
    let found = local(&locals, "a/b");
    assert_eq!(connections(&found), [1, 2]);
    assert_eq!(terms(found[0].merged()), (QoS::ExactlyOnce, true, vec![5, 6]));
    assert_eq!(terms(found[1].merged()), (QoS::AtLeastOnce, false, vec![]));

    let mut each = Vec::new();
    locals.matches_each("a/b", topic_hash("a/b"), &mut each);
    assert_eq!(each.len(), 4, "one copy for each subscription");
}

/// [MQTT-3.8.3-3]: what a client published comes back to it only by subscriptions that are not No Local.
#[test]
fn no_local_subscriptions_leave_out_what_the_client_published() {
    let no_local = |identified: LocalSubscription| LocalSubscription { no_local: true, ..identified };
    let mut locals = LocalSubscriptions::new();
    locals.insert("a", &no_local(identified(1, QoS::ExactlyOnce, 1)));
    locals.insert("b", &no_local(identified(1, QoS::ExactlyOnce, 2)));
    locals.insert("+", &identified(1, QoS::AtMostOnce, 3));
    locals.insert("c/#", &no_local(subscription(1, QoS::AtMostOnce)));
    let found = local(&locals, "a");
    assert_eq!(terms(found[0].merged()), (QoS::ExactlyOnce, false, vec![1, 3]), "from others, all");
    assert_eq!(found[0].own().map(terms), Some((QoS::AtMostOnce, false, vec![3])), "from itself");
    assert_eq!(local(&locals, "c/d")[0].own(), None, "nothing but No Local");
    assert_eq!(local(&locals, "d")[0].own(), Some(local(&locals, "d")[0].merged()), "no No Local");
}

/// [MQTT-3.8.4-3]: a SUBSCRIBE to the same filter replaces the subscription.
#[test]
fn subscribing_again_replaces_the_options() {
    let mut locals = LocalSubscriptions::new();
    assert!(locals.insert("a/#", &identified(1, QoS::AtMostOnce, 1)));
    assert!(!locals.insert("a/#", &identified(1, QoS::ExactlyOnce, 2)));
    assert_eq!(locals.len(), 1);
    assert_eq!(terms(local(&locals, "a/b")[0].merged()), (QoS::ExactlyOnce, false, vec![2]));
}

/// A subscription is held from SUBSCRIBE until its retained messages are sent, and caches see both.
#[test]
fn held_subscriptions_are_released_together() {
    let mut locals = LocalSubscriptions::new();
    let (mut cache, index) = (MatchCache::new(), SubscriptionIndex::new());
    let held = LocalSubscription { held: true, ..subscription(1, QoS::AtMostOnce) };
    let mut is_held = |locals: &LocalSubscriptions| {
        let cached = cache.take("a/b", topic_hash("a/b"), &index, locals);
        let held = cached.local.iter().any(|target| target.held);
        cache.put_back(cached);
        held
    };
    for filter in ["a/b", "a/+", "+/b", "gone/b"] {
        locals.insert(filter, &held);
        locals.insert(filter, &subscription(2, QoS::AtMostOnce));
    }
    assert!(locals.remove("gone/b", 1));
    assert!(is_held(&locals));
    locals.release_held(1);
    assert!(!is_held(&locals));
    locals.release_held(1);
    assert_eq!(locals.len(), 7, "releasing takes nothing away");
}

/// One that is taken anew and holds nothing back any more is not among those that do.
#[test]
fn who_subscribes_anew_without_waiting_holds_nothing() {
    let mut locals = LocalSubscriptions::new();
    let held = LocalSubscription { held: true, ..subscription(1, QoS::AtMostOnce) };
    for filter in ["a/b", "a/+"] {
        locals.insert(filter, &held);
        locals.insert(filter, &subscription(1, QoS::AtMostOnce));
        assert!(!locals.holds(1, "a/b"), "{filter}");
        locals.insert(filter, &held);
        assert!(locals.is_holding(1, filter) && locals.holds(1, "a/b"), "{filter}");
        locals.insert(filter, &LocalSubscription { connection: 2, ..held });
        locals.insert(filter, &subscription(1, QoS::AtMostOnce));
        assert_eq!((locals.holds(1, "a/b"), locals.holds(2, "a/b")), (false, true), "{filter}");
        locals.remove(filter, 2);
    }
}

/// All subscriptions of a connection may hold live messages back: what one of them does is told without looking at the others.
#[test]
fn many_filters_that_hold_come_and_go_in_a_moment() {
    let began = std::time::Instant::now();
    let mut locals = LocalSubscriptions::new();
    let held = LocalSubscription { held: true, ..subscription(1, QoS::AtMostOnce) };
    let filters: Vec<String> = (0..20_000).map(|number| format!("a/+/{number}")).collect();
    for filter in &filters {
        assert!(!locals.is_holding(1, filter));
        locals.insert(filter, &held);
    }
    for filter in &filters {
        locals.insert(filter, &held);
        assert!(locals.is_holding(1, filter));
        locals.remove(filter, 1);
    }
    assert_eq!(locals.release_held(1).len(), 0);
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Thousands of subscribers of one filter come and go without a walk past all of them, and none is mistaken.
#[test]
fn a_crowd_keeps_track_of_its_members() {
    let mut locals = LocalSubscriptions::new();
    for connection in 0..5000 {
        assert!(locals.insert("news", &identified(connection, QoS::AtMostOnce, connection as u32 + 1)));
        locals.insert("+", &subscription(connection, QoS::AtLeastOnce));
    }
    for connection in (0..5000).filter(|connection| connection % 1000 != 7) {
        assert!(locals.remove("news", connection));
        assert!(!locals.remove("news", connection));
    }
    let found = local(&locals, "news");
    assert_eq!(found.len(), 5000, "merged, each once");
    let with_both: Vec<_> =
        found.iter().filter(|target| !target.merged().subscription_identifiers.is_empty()).collect();
    assert_eq!(with_both.iter().map(|target| target.connection).collect::<Vec<_>>(), [7, 1007, 2007, 3007, 4007]);
    for target in with_both {
        assert_eq!(terms(target.merged()), (QoS::AtLeastOnce, false, vec![target.connection as u32 + 1]));
    }
}

/// The cache holds no more than its bound, and no long topics, and is right all the while.
#[test]
fn the_cache_is_bounded() {
    let index = SubscriptionIndex::new();
    let mut locals = LocalSubscriptions::new();
    for connection in 0..3000 {
        locals.insert("#", &subscription(connection, QoS::AtMostOnce));
    }
    let mut cache = MatchCache::new();
    for at in 0..300 {
        let topic = format!("t/{at}");
        let cached = cache.take(&topic, topic_hash(&topic), &index, &locals);
        assert_eq!(cached.local.len(), 3000);
        cache.put_back(cached);
    }
    assert!(cache.bytes() <= cache::BYTES_MAX, "{}", cache.bytes());

    let long = "x".repeat(300);
    for _ in 0..2 {
        let cached = cache.take(&long, topic_hash(&long), &index, &locals);
        cache.put_back(cached);
    }
    assert_eq!(cache.take_hits_and_misses(), (0, 302), "a long topic is not kept");
    for _ in 0..3 {
        let cached = cache.take("t/299", topic_hash("t/299"), &index, &locals);
        cache.put_back(cached);
    }
    assert!(cache.take_hits_and_misses().0 >= 1, "kept at the second time at the latest");
}

/// One connection whose subscriptions all have an identifier is one match, however many they are.
#[test]
fn the_cache_counts_identifiers() {
    const FILTERS: u32 = 64;
    const CONNECTIONS: u64 = 8;
    let index = SubscriptionIndex::new();
    let mut locals = LocalSubscriptions::new();
    let filters = (0..FILTERS).map(|at| (0..6).map(move |level| if at >> level & 1 == 0 { "a" } else { "+" }));
    for (filter, at) in filters.zip(1..) {
        let filter = filter.chain(["#"]).collect::<Vec<_>>().join("/");
        for connection in 0..CONNECTIONS {
            locals.insert(&filter, &identified(connection, QoS::AtMostOnce, at));
        }
    }
    let mut cache = MatchCache::new();
    for at in 0..100 {
        let topic = format!("{}{at}", "a/".repeat(6));
        let cached = cache.take(&topic, topic_hash(&topic), &index, &locals);
        let identifiers: usize = cached.local.iter().map(|target| target.merged().subscription_identifiers.len()).sum();
        assert_eq!((cached.local.len(), identifiers), (CONNECTIONS as usize, CONNECTIONS as usize * FILTERS as usize));
        assert!(cached.local.iter().map(LocalMatch::memory_bytes).sum::<usize>() > identifiers * size_of::<u32>());
        cache.put_back(cached);
    }
    let there = cache.slots().map(|cached| cached.local.iter().map(LocalMatch::memory_bytes).sum::<usize>());
    let there: usize = there.sum();
    assert!(there == cache.bytes() && there <= cache::BYTES_MAX, "{there}");
}

/// Both halves of a slot are validated on their own: another arbiter's match does not spoil ours.
#[test]
fn a_slot_filled_for_another_arbiter_knows_no_global_targets() {
    let index = SubscriptionIndex::new();
    let mut locals = LocalSubscriptions::new();
    index.subscribe("a", Target::Group(2));
    locals.insert("a", &subscription(1, QoS::AtMostOnce));
    let mut cache = MatchCache::new();
    let cached = cache.take_local("a", topic_hash("a"), &locals);
    assert_eq!((cached.local.len(), cached.global.is_empty()), (1, true));
    cache.put_back(cached);
    let cached = cache.take("a", topic_hash("a"), &index, &locals);
    assert_eq!((cached.local.len(), cached.global.groups.to_vec()), (1, vec![2]));
}

/// P11: members of a share get messages in turn, and the share goes with the last of them.
#[test]
fn a_share_lives_as_long_as_it_has_members() {
    let index = SubscriptionIndex::new();
    for connection in 0..3 {
        index.join_share("g", "a/+", member(connection));
    }
    index.join_share("h", "a/b", member(9));
    index.subscribe("a/b", Target::Arbiter(1));
    let found = matched(&index, "a/b");
    let mut names: Vec<_> = found.shares.iter().map(|share| share.subscription_name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["$share/g/a/+", "$share/h/a/b"]);
    assert!(found.arbiters.contains(1) && !found.arbiters.contains(0), "a member alone makes no subscriber");

    let share = index.share("g", "a/+").expect("it has members");
    assert_eq!((share.name(), share.filter(), share.len()), ("g", "a/+", 3));
    let mut picked: Vec<_> =
        (0..9).filter_map(|_| share.pick(PickStrategy::RoundRobin, 0, 0, PassedOver::Nobody, false)).collect();
    picked.sort_by_key(|target| format!("{target:?}"));
    let expected: Vec<_> = (0..3).flat_map(|connection| [member(connection).target; 3]).collect();
    assert_eq!(picked, expected, "each a third");

    for connection in 0..3 {
        assert!(index.is_current(&found), "members come and go without outdating");
        assert!(index.leave_share("g", "a/+", &member(connection).target));
    }
    assert!(!index.is_current(&found), "the share is gone");
    assert!(index.share("g", "a/+").is_none() && !index.leave_share("g", "a/+", &member(0).target));
    assert_eq!(share.pick(PickStrategy::RoundRobin, 0, 0, PassedOver::Nobody, false), None, "held on to, but empty");
}

/// Looked for one after the other, the 70,000th of a filter took so long that its node lost its lease.
#[test]
fn the_shares_of_a_filter_are_kept_in_order() {
    let index = SubscriptionIndex::new();
    let names: Vec<_> = (0..1000).map(|number| format!("{:03}", number * 7 % 1000)).collect();
    for (name, connection) in names.iter().zip(0..) {
        index.join_share(name, "a/+", member(connection));
        index.join_share(name, "a/b", member(connection));
    }
    let found = matched(&index, "a/x");
    assert_eq!(found.shares.len(), 1000);
    assert!(found.shares.is_sorted_by_key(|share| share.name().to_owned()));
    for (name, connection) in names.iter().zip(0..) {
        assert_eq!(index.share(name, "a/+").expect("it has a member").name(), name);
        assert!(index.leave_share(name, "a/+", &member(connection).target));
        assert!(index.share(name, "a/+").is_none() && index.share(name, "a/b").is_some());
    }
}

/// From whichever member it starts, each of the others is asked once; a message with a QoS passes over those that get none by
/// this way.
#[test]
fn who_may_not_read_a_message_is_followed_by_every_other_member_once() {
    let index = SubscriptionIndex::new();
    for connection in 0..5 {
        index.join_share("g", "a", ShareMember { qos0_only: connection == 2, ..member(connection) });
    }
    let share = index.share("g", "a").expect("it has members");
    for first in 0..5 {
        for (online_only, expected) in [(true, vec![0, 1, 2, 3, 4]), (false, vec![0, 1, 3, 4])] {
            let mut asked = vec![first];
            while let Some(next) = share.next_here(asked[asked.len() - 1], asked.len() as u8, online_only) {
                asked.push(next);
            }
            asked.sort_unstable();
            if expected.contains(&first) {
                assert_eq!(asked, expected, "from {first}");
            }
        }
    }
    assert_eq!(share.next_here(9, 1, true), None, "a stranger");
}

/// Persistent members weigh by their number, and wait while others are online.
#[test]
fn sessions_are_picked_by_their_group() {
    let index = SubscriptionIndex::new();
    let session =
        ShareMember { target: ShareTarget::Session { group: 5 }, client_id_hash: 0, node: 0, qos0_only: false };
    index.join_share("g", "a", member(1));
    for _ in 0..3 {
        index.join_share("g", "a", session);
    }
    let share = index.share("g", "a").expect("it has members");
    let sessions_of_four = |strategy, excluded: Option<u64>, qos0| {
        let picks = (0..4).filter_map(|topic| {
            share.pick(strategy, 0, topic, excluded.map_or(PassedOver::Nobody, PassedOver::Connection), qos0)
        });
        picks.filter(|target| *target == session.target).count()
    };
    assert_eq!(sessions_of_four(PickStrategy::RoundRobin, None, false), 3, "three of four members");
    assert_eq!(sessions_of_four(PickStrategy::RoundRobin, None, true), 0, "QoS 0 enters no log");
    share.set_sessions_online(5, 0);
    for strategy in STRATEGIES {
        assert_eq!(sessions_of_four(strategy, None, false), 0, "{strategy:?}: one is online elsewhere");
        assert_eq!(sessions_of_four(strategy, Some(1), false), 4, "{strategy:?}: nobody else is left");
    }
    for left in (0..3).rev() {
        assert!(index.leave_share("g", "a", &session.target), "{left}");
    }
    assert!(!index.leave_share("g", "a", &session.target));
    assert_eq!(share.len(), 1);
}

fn with_nodes(members: &[(NodeNumber, NodeInterest)]) -> (SubscriptionIndex, std::sync::Arc<ShareGroup>) {
    let index = SubscriptionIndex::new();
    for &(node, interest) in members {
        index.set_node("$share/g/a", indexed(node), 0, interest.to_value());
    }
    let share = index.share("g", "a").expect("it has members");
    (index, share)
}

const fn node(node: NodeNumber) -> ShareTarget {
    ShareTarget::Node { node }
}

/// Each node gets as many as it has members, and for QoS 0 those count that get the rest by their groups.
#[test]
fn nodes_weigh_by_their_members() {
    let interest = |any, qos0_only| NodeInterest { any, qos0_only };
    let (_index, share) = with_nodes(&[(1, interest(1, 3)), (2, interest(2, 0)), (3, interest(0, 1))]);
    assert_eq!(share.len(), 7);
    let picks = |online_only, of: NodeNumber| {
        let picks = (0..21).map(|_| share.pick(PickStrategy::RoundRobin, 0, 0, PassedOver::Nobody, online_only));
        picks.filter(|picked| *picked == Some(node(of))).count()
    };
    assert_eq!([1, 2, 3].map(|of| picks(false, of)), [7, 14, 0]);
    assert_eq!([1, 2, 3].map(|of| picks(true, of)), [12, 6, 3]);
}

/// A process that runs for years may have heard of more starts of other nodes than 16 bits can number.
#[test]
fn nodes_with_high_numbers_are_told_apart() {
    const HIGH: NodeNumber = u16::MAX as NodeNumber + 2;
    let one = NodeInterest { any: 1, qos0_only: 0 };
    let (index, share) = with_nodes(&[(1, one), (HIGH, one)]);
    index.set_node("a", indexed(HIGH), 0, one.to_value());
    assert_eq!(matched(&index, "a").nodes_for(QoS::AtLeastOnce).collect::<Vec<_>>(), [HIGH]);
    for gone in [HIGH, 1] {
        let stays = HIGH + 1 - gone;
        index.set_node("$share/g/a", indexed(gone), one.to_value(), 0);
        for strategy in STRATEGIES {
            let picks = (0..3).map(|_| share.pick(strategy, 1, 2, PassedOver::Nobody, false));
            assert!(picks.into_iter().all(|picked| picked == Some(node(stays))), "{strategy:?}");
        }
        index.set_node("$share/g/a", indexed(gone), 0, one.to_value());
    }
}

/// What is spread is spread among the members here, and groups, as long as somebody is connected here. What another node
/// handed over stays here.
#[test]
fn nodes_come_after_members_here() {
    let some = NodeInterest { any: 5, qos0_only: 0 };
    let (index, share) = with_nodes(&[(1, some)]);
    index.join_share("g", "a", member(7));
    for strategy in STRATEGIES {
        let pick = |passed_over| share.pick(strategy, 1, 2, passed_over, false);
        match strategy {
            PickStrategy::HashClient | PickStrategy::HashTopic => {
                let picks: Vec<_> =
                    (0..200).map(|key| share.pick(strategy, key, key, PassedOver::Nobody, false)).collect();
                let here = picks.iter().filter(|picked| **picked == Some(member(7).target)).count();
                assert!((15..70).contains(&here), "about a sixth: {here}");
            }
            _ => assert_eq!(pick(PassedOver::Nobody), Some(member(7).target), "{strategy:?}"),
        }
        assert_eq!(pick(PassedOver::Connection(7)), Some(node(1)), "{strategy:?}");
        assert_eq!(pick(PassedOver::Node(1)), Some(member(7).target), "{strategy:?}");
        let here = |passed_over| share.pick_here(strategy, 1, 2, passed_over, false);
        assert_eq!(here(PassedOver::Nobody), Some(member(7).target), "{strategy:?}");
        assert_eq!(here(PassedOver::Connection(7)), None, "{strategy:?}");
    }
    assert!(index.leave_share("g", "a", &member(7).target));
    for strategy in STRATEGIES {
        assert_eq!(share.pick(strategy, 1, 2, PassedOver::Node(1), false), Some(node(1)), "{strategy:?}: nobody else");
    }
    // Sessions that wait for their client are rather picked than a node that has just said that it has nobody.
    index.set_group("$share/g/a", 3, 0, ShareSessions { members: 1, online: 0 }.to_value());
    for strategy in STRATEGIES {
        assert_eq!(share.pick(strategy, 1, 2, PassedOver::Nobody, false), Some(node(1)), "{strategy:?}");
        let session = Some(ShareTarget::Session { group: 3 });
        assert_eq!(share.pick(strategy, 1, 2, PassedOver::Node(1), false), session, "{strategy:?}");
    }
}

/// What an outbox keeps is not picked for a node that is dead and not lost yet, not even if there is nobody else.
#[test]
fn the_dead_are_not_picked() {
    let one = NodeInterest { any: 1, qos0_only: 0 };
    let (index, share) = with_nodes(&[(1, one), (2, one), (3, one)]);
    for strategy in STRATEGIES {
        for passed_over in [PassedOver::Nobody, PassedOver::Node(1), PassedOver::Node(3)] {
            let pick =
                |is_dead: &dyn Fn(NodeNumber) -> bool| share.pick_living(strategy, 1, 2, passed_over, false, is_dead);
            assert_eq!(pick(&|node| node != 3), Some(node(3)), "{strategy:?}");
            assert_eq!(pick(&|_| true), None, "{strategy:?}");
        }
    }
    index.set_group("$share/g/a", 3, 0, ShareSessions { members: 1, online: 0 }.to_value());
    let picked = share.pick_living(PickStrategy::RoundRobin, 1, 2, PassedOver::Nobody, false, &|_| true);
    assert_eq!(picked, Some(ShareTarget::Session { group: 3 }));
}

/// Nodes give a message back in turn, of which many members are told that have gone: it comes to the one that has some, and if there is
/// none, to sessions that wait for their client.
#[test]
fn what_several_nodes_give_back_comes_to_one_that_has_members() {
    const GIVEN_BACK_MAX: u32 = 16;
    let interest = |any| NodeInterest { any, qos0_only: 0 };
    let reaches = |share: &ShareGroup, strategy, key: u64, takes: &dyn Fn(ShareTarget) -> bool| {
        let mut passed_over = PassedOver::Nobody;
        (1..=GIVEN_BACK_MAX).any(|times| {
            let picked =
                share.pick_living(strategy, key, key, passed_over, false, &|_| false).expect("some are told of");
            if let ShareTarget::Node { node } = picked {
                passed_over = PassedOver::given_back(node, times);
            }
            takes(picked)
        })
    };
    for strategy in STRATEGIES {
        for living in 1..=5 {
            let members: Vec<_> = (1..=5).map(|node| (node, interest(if node == living { 1 } else { 1000 }))).collect();
            let (_index, share) = with_nodes(&members);
            for key in 0..50 {
                assert!(
                    reaches(&share, strategy, key, &|picked| picked == node(living)),
                    "{strategy:?} {living} {key}"
                );
            }
        }
        let (index, share) = with_nodes(&[(1, interest(1000)), (2, interest(1000))]);
        index.set_group("$share/g/a", 3, 0, ShareSessions { members: 1, online: 0 }.to_value());
        let session = ShareTarget::Session { group: 3 };
        assert!(reaches(&share, strategy, 7, &|picked| picked == session), "{strategy:?}");
        index.join_share("g", "a", member(7));
        for times in 2..=GIVEN_BACK_MAX {
            let picked = share.pick(strategy, 7, 7, PassedOver::given_back(1, times), false);
            assert_eq!(picked, Some(member(7).target), "{strategy:?}: who is here takes it");
        }
        let dead = |_| true;
        assert!(index.leave_share("g", "a", &member(7).target));
        let picked = share.pick_living(strategy, 7, 7, PassedOver::given_back(1, 2), false, &dead);
        assert_eq!(picked, Some(session), "{strategy:?}: the dead have no turn");
    }
}

/// A member that was stuck to, or that a hash leads to, is not left because another one joins on this node.
#[test]
fn a_node_that_was_picked_for_good_is_kept() {
    let one = NodeInterest { any: 1, qos0_only: 0 };
    let (index, share) = with_nodes(&[(1, one), (2, one)]);
    let stuck = share.pick(PickStrategy::Sticky, 0, 0, PassedOver::Nobody, false);
    let hashed = |key| share.pick(PickStrategy::HashTopic, 0, mix_topic(key), PassedOver::Nobody, false);
    let before: Vec<_> = (0..100).map(hashed).collect();
    assert!(before.contains(&Some(node(1))) && before.contains(&Some(node(2))));
    index.join_share("g", "a", member(7));
    assert_eq!(share.pick(PickStrategy::Sticky, 0, 0, PassedOver::Nobody, false), stuck);
    for (key, before) in (0..).zip(before) {
        let now = hashed(key);
        assert!(now == before || now == Some(member(7).target), "only the new one takes some");
    }
}

/// Nodes are as loaded as what they were handed from here makes for each of their members.
#[test]
fn nodes_are_picked_by_what_they_were_handed() {
    let (index, share) =
        with_nodes(&[(1, NodeInterest { any: 1, qos0_only: 0 }), (2, NodeInterest { any: 2, qos0_only: 0 })]);
    index.set_group("$share/g/a", 3, 0, ShareSessions { members: 1, online: 1 }.to_value());
    let pick = || share.pick(PickStrategy::LeastInflight, 0, 0, PassedOver::Nobody, false);
    share.set_sessions_in_flight(3, 9);
    for _ in 0..2 {
        share.began_at_node(1);
        share.began_at_node(2);
    }
    assert!((0..5).all(|_| pick() == Some(node(2))));
    for _ in 0..3 {
        share.ended_at_node(1);
    }
    assert!((0..5).all(|_| pick() == Some(node(1))), "never below zero");
    share.set_sessions_in_flight(3, 0);
    share.began_at_node(1);
    assert_eq!(pick(), Some(ShareTarget::Session { group: 3 }));
}

/// Whoever picks, on whichever node: the same key goes to the same member, though nodes know each other by numbers of their own, and of
/// the members elsewhere only how many there are.
#[test]
fn all_nodes_lead_a_key_to_the_same_member() {
    struct Node {
        identity: u64,
        _index: SubscriptionIndex,
        share: std::sync::Arc<ShareGroup>,
        /// By their numbers, from the first on.
        others: [u64; 2],
        first_number: NodeNumber,
    }
    let node = |identity: u64, connections: &[u64], others: [(u64, u32); 2], first_number: NodeNumber| {
        let index = SubscriptionIndex::new();
        for &connection in connections {
            index.join_share("g", "a", ShareMember { node: identity, ..member(connection) });
        }
        for (number, (identity, any)) in (first_number..).zip(others) {
            let value = NodeInterest { any, qos0_only: 0 }.to_value();
            index.set_node("$share/g/a", IndexedNode { number, identity }, 0, value);
        }
        index.set_group("$share/g/a", 3, 0, ShareSessions { members: 5, online: 2 }.to_value());
        let share = index.share("g", "a").expect("it has members");
        Node { identity, _index: index, share, others: others.map(|(identity, _)| identity), first_number }
    };
    let (one, two, three) = (71, 72, 73);
    let nodes = [
        node(one, &[1, 2, 3], [(two, 2), (three, 1)], 0),
        node(two, &[4, 5], [(three, 1), (one, 3)], 40),
        node(three, &[6], [(one, 3), (two, 2)], 7),
    ];
    let receiver = |node: &Node, key| {
        let picked = node.share.pick(PickStrategy::HashTopic, 0, key, PassedOver::Nobody, false);
        let Some(ShareTarget::Node { node: number }) = picked else {
            return picked;
        };
        let there = node.others[(number - node.first_number) as usize];
        let there = nodes.iter().find(|node| node.identity == there)?;
        there.share.pick_here(PickStrategy::HashTopic, 0, key, PassedOver::Nobody, false)
    };
    let mut picked: HashMap<Option<ShareTarget>, u32> = HashMap::new();
    for key in (0..1000).map(mix_topic) {
        let receivers: HashSet<_> = nodes.iter().map(|node| receiver(node, key)).collect();
        assert_eq!(receivers.len(), 1, "{key}: {receivers:?}");
        receivers.into_iter().for_each(|receiver| *picked.entry(receiver).or_default() += 1);
    }
    assert_eq!(picked.len(), 7, "six connections and a group");
    let of_group = picked.remove(&Some(ShareTarget::Session { group: 3 }));
    assert!(of_group.is_some_and(|count| (190..310).contains(&count)), "two of eight: {of_group:?}");
    assert!(picked.values().all(|count| (75..175).contains(count)), "one of eight each: {picked:?}");
}

/// Whoever leaves moves only what it had; the same key goes to the same member.
#[test]
fn hashing_strategies_keep_to_a_member() {
    let index = SubscriptionIndex::new();
    for connection in 0..10 {
        index.join_share("g", "a", member(connection));
    }
    let share = index.share("g", "a").expect("it has members");
    let picks = || -> Vec<_> {
        (0..1000)
            .map(|topic| share.pick(PickStrategy::HashTopic, 0, mix_topic(topic), PassedOver::Nobody, false))
            .collect()
    };
    let before = picks();
    assert_eq!(picks(), before);
    let gone = Some(member(4).target);
    let had = before.iter().filter(|target| **target == gone).count();
    assert!((50..200).contains(&had), "about a tenth: {had}");
    index.leave_share("g", "a", &member(4).target);
    for (now, before) in picks().into_iter().zip(before) {
        assert!(now == before || before == gone, "it had nothing to do with it");
    }
}

fn mix_topic(topic: u64) -> u64 {
    topic_hash(&topic.to_string())
}

#[test]
fn a_sticky_share_keeps_its_member_until_it_leaves() {
    let index = SubscriptionIndex::new();
    for connection in 1..5 {
        index.join_share("g", "a", member(connection));
    }
    let share = index.share("g", "a").expect("it has members");
    let pick = || share.pick(PickStrategy::Sticky, 0, 0, PassedOver::Nobody, false);
    let first = pick();
    assert!(first.is_some() && (0..10).all(|_| pick() == first));
    index.leave_share("g", "a", &first.expect("picked"));
    let second = pick();
    assert!(second.is_some() && second != first && (0..10).all(|_| pick() == second));
}

#[test]
fn the_least_loaded_member_is_picked() {
    let index = SubscriptionIndex::new();
    for connection in 1..4 {
        index.join_share("g", "a", member(connection));
    }
    let share = index.share("g", "a").expect("it has members");
    for connection in [1, 1, 3] {
        share.began(connection);
    }
    let pick = |excluded: Option<u64>| {
        let passed_over = excluded.map_or(PassedOver::Nobody, PassedOver::Connection);
        share.pick(PickStrategy::LeastInflight, 0, 0, passed_over, false)
    };
    assert!((0..5).all(|_| pick(None) == Some(member(2).target)));
    assert_eq!(pick(Some(2)), Some(member(3).target));
    share.ended(1);
    share.ended(1);
    share.ended(1);
    share.began(2);
    assert!((0..5).all(|_| pick(None) == Some(member(1).target)), "never below zero");
}

/// A group is as loaded as the least loaded of its sessions, until it says so again by what it was handed.
#[test]
fn groups_are_picked_by_the_load_of_their_sessions() {
    let index = SubscriptionIndex::new();
    index.join_share("g", "a", member(1));
    for group in [3, 4, 4] {
        let target = ShareTarget::Session { group };
        index.join_share("g", "a", ShareMember { target, client_id_hash: 0, node: 0, qos0_only: false });
    }
    let share = index.share("g", "a").expect("it has members");
    let pick = || share.pick(PickStrategy::LeastInflight, 0, 0, PassedOver::Nobody, false);
    share.began(1);
    share.began(1);
    share.set_sessions_in_flight(3, 2);
    share.set_sessions_in_flight(4, 1);
    let session = |group| Some(ShareTarget::Session { group });
    assert_eq!([pick(), pick()], [session(4), session(4)], "two sessions take one more each");
    share.set_sessions_in_flight(3, 0);
    assert_eq!([pick(), pick()], [session(3), session(3)]);
    share.set_sessions_online(3, 0);
    share.set_sessions_online(4, 0);
    assert_eq!(pick(), Some(member(1).target), "nobody there is connected");
}

/// Threads that subscribe, unsubscribe and match at once: what stands throughout is always found.
#[test]
fn readers_and_writers_share_the_index() {
    let index = SubscriptionIndex::new();
    let filters = ["a/b", "a/+", "#", "+/b", "a/#"];
    for (filter, group) in filters.iter().zip(0..) {
        index.subscribe(filter, Target::Group(group));
    }
    std::thread::scope(|scope| {
        for thread in 0..2u16 {
            let index = &index;
            scope.spawn(move || {
                for round in 0..2000 {
                    let filter = filters[round % filters.len()];
                    index.subscribe(filter, Target::Arbiter(thread));
                    assert!(matched(index, "a/b").arbiters.contains(thread), "its own subscription");
                    assert!(index.unsubscribe(filter, Target::Arbiter(thread)));
                    assert!(!matched(index, "a/b").arbiters.contains(thread), "its own end");
                }
            });
        }
        for _ in 0..2000 {
            assert_eq!(matched(&index, "a/b").groups.to_vec(), [0, 1, 2, 3, 4]);
        }
    });
    assert_eq!(index.subscriptions(), filters.len());
}

/// P11: members come and go on some threads while others pick: a share with a steady member never has none.
#[test]
fn picks_and_membership_may_be_concurrent() {
    let index = SubscriptionIndex::new();
    index.join_share("g", "a/b", member(100));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let index = &index;
            scope.spawn(move || {
                for _ in 0..2000 {
                    index.join_share("g", "a/b", member(thread));
                    index.join_share("h", "a/b", member(thread));
                    assert!(index.leave_share("h", "a/b", &member(thread).target));
                    assert!(index.leave_share("g", "a/b", &member(thread).target));
                }
            });
        }
        for round in 0..2000 {
            let found = matched(&index, "a/b");
            let steady = found.shares.iter().find(|share| share.name() == "g").expect("it has a steady member");
            let strategy = STRATEGIES[round % STRATEGIES.len()];
            assert!(
                steady.pick(strategy, round as u64, 7, PassedOver::Connection(round as u64 % 2), false).is_some(),
                "{strategy:?}"
            );
        }
    });
    assert_eq!(index.subscriptions(), 1);
}
