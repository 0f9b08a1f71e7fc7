//! What clients do against one node, and that a history of theirs is not believed once it is tampered with.

use kentongan_history::{Event, Promise, check};
use rand::seq::IndexedRandom as _;

use super::*;
use crate::simulation::{Plan, World};

/// What a few seeds must come to, whatever else they do.
const EVERYTHING: [&str; 39] = [
    "-> CONNECT",
    "<- CONNACK",
    "-> SUBSCRIBE",
    "<- SUBACK",
    "-> UNSUBSCRIBE",
    "<- UNSUBACK",
    "-> PUBLISH",
    "<- PUBACK",
    "<- PUBREC",
    "-> PUBREL",
    "<- PUBCOMP",
    "<- PUBLISH",
    "-> PUBACK",
    "-> PUBREC",
    "<- PUBREL",
    "-> PUBCOMP",
    "<- PINGRESP",
    "-> DISCONNECT",
    "<- DISCONNECT",
    "session begun",
    "session resumed",
    "resent in the same session",
    "taken over",
    "published on a replaced connection",
    "acknowledged late",
    "fell silent",
    "vanished",
    "left",
    "left with the will",
    "message with expiry published",
    "retained message published",
    "retained message deleted",
    "retained will",
    "will of QoS 0",
    "will of QoS 1",
    "will of QoS 2",
    "will with delay",
    "subscribed as one of a group",
    "subscription taken back at once",
];

/// A run of a node that is alone and is as it should be: its history, and how often clients did what.
fn run(number: u64) -> (History, BTreeMap<&'static str, u64>) {
    let seed = 8 * number;
    let mut world = World::new(seed, Plan::of_seed(seed));
    let outcome = world.run();
    if std::env::var_os("KENTONGAN_PRINT").is_some() {
        let history = world.history();
        (0..history.events().len()).for_each(|index| println!("{index:>7} {}", history.describe(index)));
    }
    let outcome = outcome.unwrap_or_else(|why| panic!("KENTONGAN_SEED={seed}: {why}"));
    (world.history().clone(), outcome.counts)
}

#[test]
fn clients_do_everything_and_one_node_keeps_its_promises() {
    let mut counts = BTreeMap::new();
    for seed in 1..4 {
        let of_seed = run(seed).1;
        assert!(of_seed["<- PUBLISH"] > 1_000, "seed {seed}: {of_seed:?}");
        for (what, count) in of_seed {
            *counts.entry(what).or_insert(0) += count;
        }
    }
    let missing: Vec<_> = EVERYTHING.into_iter().filter(|what| !counts.contains_key(what)).collect();
    assert!(missing.is_empty(), "{missing:?} never came: {counts:#?}");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    assert_eq!(run(1).0.events(), run(1).0.events());
    assert_ne!(run(1).0.events(), run(2).0.events());
}

/// The promises that a history breaks after `tamper` was there.
fn broken(history: &History, tamper: impl FnOnce(&mut Vec<Event>)) -> Vec<Promise> {
    let mut history = history.clone();
    tamper(history.events_mut());
    check(&history, &Workload::settings()).into_iter().map(|violation| violation.promise).collect()
}

/// Where messages with that QoS were delivered, for the first time, and not for being retained.
fn deliveries(history: &History, qos: u8) -> Vec<usize> {
    let is_one = |event: &Event| match &event.what {
        What::Client { action: Action::Delivered(one), .. } => {
            one.qos == qos && !one.dup && !one.retain && one.message.is_some()
        }
        _ => false,
    };
    (0..history.events().len()).filter(|&at| is_one(&history.events()[at])).collect()
}

#[test]
fn a_delivery_that_is_taken_out_or_put_in_is_noticed() {
    let history = run(1).0;
    let mut random = SmallRng::seed_from_u64(1);
    let chosen =
        |qos, random: &mut SmallRng| -> Vec<usize> { deliveries(&history, qos).sample(random, 20).copied().collect() };
    for at in chosen(2, &mut random) {
        // Under another Packet Identifier, as a node would send it that forgot.
        let promises = broken(&history, |events| {
            let mut again = events[at].clone();
            again.at += 1;
            if let What::Client { action: Action::Delivered(one), .. } = &mut again.what {
                one.packet_id = 60_000;
            }
            events.insert(at + 1, again);
        });
        // That of a will is broken by P9 instead.
        let noticed = promises.iter().any(|promise| matches!(promise, Promise::P3 | Promise::P9));
        assert!(noticed, "event {at} came twice: {promises:?}");
    }
    // Not each is owed for sure: subscriptions change, clients go, and nodes fail.
    let noticed = |&at: &usize| broken(&history, |events| drop(events.remove(at))).contains(&Promise::P1);
    let lost = chosen(1, &mut random).iter().filter(|at| noticed(at)).count();
    assert!(lost > 0, "20 were lost, and none was missed");
}
