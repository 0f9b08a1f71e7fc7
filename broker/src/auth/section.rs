//! Rules with the names of a client put in, in their order, and an index over them where there are many.
//!
//! What a rule says is the same for everybody unless it names who asks. Rules of that kind are made into a [`Section`] once, when the
//! files are read, and whoever meets them shares it: a thousand rules cost a connection one pointer, and a message one look-up.

use std::sync::Arc;

use kentongan_proto::mqtt::QoS;
use kentongan_proto::topic;
use smallvec::SmallVec;

use super::rights::{ANY_QOS, Effect, READ, overlaps};
use crate::subscription::{FilterValue, WildcardTrie};

/// From so many rules on a look-up takes less than trying them one by one.
const INDEXED_FROM: usize = 32;

/// A rule as it is for a client: about one filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picked {
    pub effect: Effect,
    pub actions: u8,
    pub qos: u8,
    pub retain: Option<bool>,
    /// `None`: every topic.
    pub filter: Option<Arc<str>>,
}

impl Picked {
    pub(super) fn is_about(&self, action: u8, qos: QoS) -> bool {
        self.actions & action != 0 && self.qos & (1 << qos as u8) != 0
    }

    /// Whether it says of everything that the filter matches that it may be read, or of something of it that it may not.
    fn decides(&self, filter: &str) -> bool {
        self.filter.as_ref().is_none_or(|own| match self.effect {
            Effect::Allow => topic::contains(own, filter),
            Effect::Deny => overlaps(own, filter),
        })
    }

    fn matches(&self, topic: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| topic::matches(filter, topic))
    }
}

/// Some rules, in their order.
#[derive(Debug)]
pub(super) struct Section {
    rules: Box<[Picked]>,
    index: Option<Index>,
}

impl Section {
    /// For many clients, who share it.
    pub(super) fn shared(rules: Vec<Picked>) -> Arc<Self> {
        let index = (rules.len() >= INDEXED_FROM).then(|| Index::new(&rules));
        Arc::new(Self { rules: rules.into(), index })
    }

    /// For one client: few, or an index over them would cost each connection more than it saves.
    fn own(rules: Vec<Picked>) -> Arc<Self> {
        Arc::new(Self { rules: rules.into(), index: None })
    }

    /// The first of those that `is_about` admits which fits the topic.
    fn first(&self, topic: &str, is_about: impl Fn(&Picked) -> bool) -> Option<&Picked> {
        match &self.index {
            None => self.rules.iter().find(|rule| is_about(rule) && rule.matches(topic)),
            Some(index) => index.first(topic, |number| is_about(&self.rules[number])).map(|number| &self.rules[number]),
        }
    }
}

impl Section {
    /// The first that decides whether a filter may be subscribed to.
    fn deciding(&self, filter: &str, qos: QoS) -> Option<&Picked> {
        let decides = |rule: &Picked| rule.is_about(READ, qos) && rule.decides(filter);
        match &self.index {
            None => self.rules.iter().find(|rule| decides(rule)),
            Some(index) => {
                index.deciding(filter, |number| decides(&self.rules[number])).map(|number| &self.rules[number])
            }
        }
    }
}

/// Numbers of rules, by their filters.
#[derive(Debug)]
struct Index {
    by_filter: WildcardTrie<Numbers>,
    /// Those about every topic.
    everywhere: Vec<u32>,
    /// Those with a filter that deny, which need not contain what they overlap.
    denies: Vec<u32>,
}

/// Ascending.
#[derive(Debug, Default)]
struct Numbers(SmallVec<[u32; 2]>);

impl FilterValue for Numbers {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Index {
    fn new(rules: &[Picked]) -> Self {
        let mut index = Self { by_filter: WildcardTrie::default(), everywhere: Vec::new(), denies: Vec::new() };
        for (number, rule) in (0..).zip(rules) {
            if rule.effect == Effect::Deny && rule.filter.is_some() {
                index.denies.push(number);
            }
            match &rule.filter {
                Some(filter) => index.by_filter.upsert(filter, |numbers| numbers.0.push(number)),
                None => index.everywhere.push(number),
            }
        }
        index
    }

    /// The first that decides about a filter. What contains it would match it if it were a topic: `+` and `#` are only below their like.
    fn deciding(&self, filter: &str, decides: impl Fn(usize) -> bool) -> Option<usize> {
        let first = self.first(filter, &decides);
        let before = |&&number: &&u32| first.is_none_or(|first| (number as usize) < first);
        let denies =
            self.denies.iter().take_while(before).map(|&number| number as usize).find(|&number| decides(number));
        denies.or(first)
    }

    fn first(&self, topic: &str, admits: impl Fn(usize) -> bool) -> Option<usize> {
        let mut first: Option<u32> = None;
        let mut look = |numbers: &[u32]| {
            let before = |&&number: &&u32| first.is_none_or(|first| number < first);
            first = numbers.iter().take_while(before).find(|&&number| admits(number as usize)).copied().or(first);
        };
        look(&self.everywhere);
        self.by_filter.matches(topic, |numbers| look(&numbers.0));
        first.map(|number| number as usize)
    }
}

/// All that one client meets, in its order.
#[derive(Debug, Default)]
pub(super) struct Sections(SmallVec<[Arc<Section>; 2]>);

impl Sections {
    /// The first rule of those that `is_about` admits which fits the topic.
    pub(super) fn first(&self, topic: &str, is_about: impl Fn(&Picked) -> bool) -> Option<&Picked> {
        self.0.iter().find_map(|section| section.first(topic, &is_about))
    }

    /// The first rule that decides whether a filter may be subscribed to.
    pub(super) fn deciding(&self, filter: &str, qos: QoS) -> Option<&Picked> {
        self.0.iter().find_map(|section| section.deciding(filter, qos))
    }

    #[cfg(test)]
    pub(super) fn shares_with(&self, other: &Self) -> bool {
        self.0.iter().any(|one| other.0.iter().any(|same| Arc::ptr_eq(one, same)))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Picked> {
        self.0.iter().flat_map(|section| &section.rules)
    }

    /// Whether it depends on the QoS of a message if the client may read it.
    pub(super) fn reading_depends_on_qos(&self) -> bool {
        self.iter().any(|rule| rule.actions & READ != 0 && rule.qos != ANY_QOS)
    }
}

/// [`Sections`] that are being put together.
#[derive(Debug, Default)]
pub(super) struct Picking {
    sections: Sections,
    /// Those of this client alone, behind the sections.
    pub own: Vec<Picked>,
}

impl Picking {
    /// Adds what others have too.
    pub(super) fn share(&mut self, section: &Arc<Section>) {
        self.end_own();
        self.sections.0.push(Arc::clone(section));
    }

    fn end_own(&mut self) {
        if !self.own.is_empty() {
            self.sections.0.push(Section::own(std::mem::take(&mut self.own)));
        }
    }

    pub(super) fn finish(mut self) -> Sections {
        self.end_own();
        self.sections
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rights::PUBLISH;
    use super::*;

    fn picked() -> impl Strategy<Value = Picked> {
        let filter = prop::sample::select(vec![
            None,
            Some("#"),
            Some("+"),
            Some("a"),
            Some("a/#"),
            Some("a/+"),
            Some("+/b"),
            Some("a/b/+"),
            Some("$x/#"),
            Some("+/+/#"),
        ]);
        (prop::bool::ANY, 1..=3u8, filter).prop_map(|(allow, actions, filter)| Picked {
            effect: if allow { Effect::Allow } else { Effect::Deny },
            actions,
            qos: ANY_QOS,
            retain: None,
            filter: filter.map(Arc::from),
        })
    }

    proptest! {
        /// What is looked up is what would be found one by one.
        #[test]
        fn the_index_finds_the_first_that_fits(
            rules in prop::collection::vec(picked(), INDEXED_FROM..2 * INDEXED_FROM),
            topic in "[ab$x]{0,2}(/[ab]){0,3}",
        ) {
            let (indexed, plain) = (Section::shared(rules.clone()), Section::own(rules));
            prop_assert!(indexed.index.is_some());
            for action in [READ, PUBLISH] {
                let first = |section: &Section| {
                    let found = section.first(&topic, |rule| rule.is_about(action, QoS::AtMostOnce))?;
                    section.rules.iter().position(|rule| std::ptr::eq(rule, found))
                };
                prop_assert_eq!(first(&indexed), first(&plain));
            }
        }
    }

    proptest! {
        /// The same of what decides about a subscription.
        #[test]
        fn the_index_finds_the_first_that_decides_about_a_filter(
            rules in prop::collection::vec(picked(), INDEXED_FROM..2 * INDEXED_FROM),
            filter in "(\\+|[ab]|\\$x)(/[ab]|/\\+){0,3}(/#)?|#",
        ) {
            let (indexed, plain) = (Section::shared(rules.clone()), Section::own(rules));
            let first = |section: &Section| {
                let found = section.deciding(&filter, QoS::AtMostOnce)?;
                section.rules.iter().position(|rule| std::ptr::eq(rule, found))
            };
            prop_assert_eq!(first(&indexed), first(&plain));
        }
    }

    /// Filters of one SUBSCRIBE times rules of a fleet must not be what an arbiter has to look at.
    #[test]
    fn a_thousand_rules_are_not_tried_one_by_one_for_a_filter() {
        let rule = |number: usize| Picked {
            effect: Effect::Allow,
            actions: READ,
            qos: ANY_QOS,
            retain: None,
            filter: Some(Arc::from(format!("fleet/{number}/+"))),
        };
        let rules: Vec<_> = (0..1000).map(rule).collect();
        let index = Index::new(&rules);
        for (filter, expected, tries_max) in
            [("fleet/999/+", Some(999), 1), ("fleet/7/x", Some(7), 1), ("a/+", None, 0)]
        {
            let tries = std::cell::Cell::new(0);
            let decides = |number: usize| {
                tries.set(tries.get() + 1);
                rules[number].decides(filter)
            };
            assert_eq!(index.deciding(filter, decides), expected);
            assert!(tries.get() <= tries_max, "{filter}: {} tries", tries.get());
        }
    }

    /// Says what that takes: `cargo test --release -- --ignored --nocapture what_a_large_subscribe_takes`.
    #[test]
    #[ignore = "a measurement"]
    fn what_a_large_subscribe_takes() {
        let rule = |number: usize| Picked {
            effect: Effect::Allow,
            actions: READ,
            qos: ANY_QOS,
            retain: None,
            filter: Some(Arc::from(format!("fleet/{number}/+"))),
        };
        let rules: Vec<_> = (0..1000).map(rule).collect();
        for (what, section) in [("indexed", Section::shared(rules.clone())), ("one by one", Section::own(rules))] {
            let began = std::time::Instant::now();
            let found =
                (0..1024).filter(|number| section.deciding(&format!("f/{number}"), QoS::AtMostOnce).is_some()).count();
            println!("{what}: 1024 filters of which {found} are allowed, against 1000 rules: {:?}", began.elapsed());
        }
    }

    #[test]
    fn what_is_shared_and_what_is_not_stand_in_their_order() {
        let rule = |effect, filter: &str| Picked {
            effect,
            actions: READ,
            qos: ANY_QOS,
            retain: None,
            filter: Some(Arc::from(filter)),
        };
        let mut picking = Picking::default();
        picking.own.push(rule(Effect::Deny, "a/x"));
        picking.share(&Section::shared(vec![rule(Effect::Allow, "a/#")]));
        picking.own.push(rule(Effect::Deny, "a/y"));
        let sections = picking.finish();
        let effect = |topic| sections.first(topic, |_| true).map(|rule| rule.effect);
        assert_eq!(["a/x", "a/y", "b"].map(effect), [Some(Effect::Deny), Some(Effect::Allow), None]);
        assert_eq!(sections.iter().count(), 3);
    }
}
