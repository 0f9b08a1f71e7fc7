//! Whether the seeds are of another cluster than this node.
//!
//! A node that belongs to a cluster goes on as its member, whatever its seeds are: they may be gone, or have other addresses by now. So one that was
//! started with the data directory of another cluster than that of its seeds would be missed among them, and nobody would say why. That its seeds
//! are wrong, and not the data directory, may be as well, and then its cluster needs it: it goes on, and says so.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, TryRecvError};
use kentongan_cluster::transport::{ClusterId, LinkError, PeerHello};

/// First pause before those are asked again that did not say of which cluster they are.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Longest such pause: each is twice the one before.
const PAUSE_MAX: Duration = Duration::from_secs(64);

type Asking = Receiver<Result<PeerHello, LinkError>>;

/// The seeds of a node that has a cluster.
#[derive(Debug)]
pub(super) struct Seeds {
    cluster: ClusterId,
    data_dir: PathBuf,
    /// Those that have not said of which cluster they are, and what they were asked.
    unknown: Vec<(String, Option<Asking>)>,
    /// When they are asked again. `None`: they were not asked yet.
    due: Option<Instant>,
    pause: Duration,
}

impl Seeds {
    /// Of a node of this cluster, by what is in its data directory.
    pub(super) fn new(seeds: Vec<String>, cluster: ClusterId, data_dir: PathBuf) -> Self {
        let unknown = seeds.into_iter().map(|seed| (seed, None)).collect();
        Self { cluster, data_dir, unknown, due: None, pause: PAUSE_MIN }
    }

    /// Takes in what they said, and asks those again (`who`) that it is time for. What the operator must hear, if anything: once of each.
    pub(super) fn look(&mut self, now: Instant, who: impl Fn(String) -> Asking) -> Option<String> {
        let mut strangers = Vec::new();
        self.unknown.retain_mut(|(seed, asking)| {
            let answer = match asking.as_ref().map(Receiver::try_recv) {
                None | Some(Err(TryRecvError::Empty)) => return true,
                Some(Ok(answer)) => answer.ok(),
                Some(Err(TryRecvError::Disconnected)) => None,
            };
            *asking = None;
            // Who does not answer may be down; who has no cluster may be about to have one.
            let Some((hello, theirs)) = answer.and_then(|hello| hello.cluster.map(|theirs| (hello, theirs))) else {
                return true;
            };
            if theirs != self.cluster {
                strangers.push(format!("{seed} ({}) of cluster {theirs}", hello.name));
            }
            false
        });
        if self.due.is_none_or(|due| now >= due) {
            if self.due.is_some() {
                self.pause = PAUSE_MAX.min(self.pause * 2);
            }
            self.due = Some(now + self.pause);
            for (seed, asking) in self.unknown.iter_mut().filter(|(_, asking)| asking.is_none()) {
                *asking = Some(who(seed.clone()));
            }
        }
        (!strangers.is_empty()).then(|| self.warning(&strangers))
    }

    fn warning(&self, strangers: &[String]) -> String {
        let Self { cluster, data_dir, .. } = self;
        format!(
            "of the seeds (--seeds) of this node is {}, but this node is a member of cluster {cluster}, by what is in its data directory {}, and \
             goes on as that: if it is to be a node of its seeds' cluster, stop it and start it with an empty data directory (--data-dir), and it \
             joins; if not, name nodes of its own cluster as its seeds",
            strangers.join(" and "),
            data_dir.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use crossbeam::channel::{Sender, bounded};
    use kentongan_cluster::{FeatureLevels, NodeId};

    use super::*;

    const OWN: ClusterId = ClusterId(7);

    fn hello(cluster: Option<ClusterId>) -> PeerHello {
        PeerHello {
            cluster,
            node: NodeId(2),
            name: "n2".to_owned(),
            incarnation: None,
            protocol: 1,
            feature_levels: FeatureLevels { min: 1, max: 1 },
            nonce: 0,
            address: String::new(),
            start: 0,
        }
    }

    #[derive(Default)]
    struct Asked(RefCell<BTreeMap<String, Sender<Result<PeerHello, LinkError>>>>);

    impl Asked {
        fn who(&self, seed: String) -> Asking {
            let (answer, asking) = bounded(1);
            assert!(self.0.borrow_mut().insert(seed, answer).is_none(), "it is asked once at a time");
            asking
        }

        fn answer(&self, seed: &str, answer: Result<PeerHello, LinkError>) {
            self.0.borrow_mut().remove(seed).expect("it is asked").send(answer).expect("it is waited for");
        }
    }

    fn seeds(names: &[&str]) -> Seeds {
        Seeds::new(names.iter().map(|&name| name.to_owned()).collect(), OWN, PathBuf::from("/data/n1"))
    }

    #[test]
    fn seeds_of_another_cluster_are_named_once_with_both_and_what_to_do() {
        let (mut seeds, asked, begun) = (seeds(&["a:1", "b:1", "c:1"]), Asked::default(), Instant::now());
        let mut look = |seconds| seeds.look(begun + Duration::from_secs(seconds), |seed| asked.who(seed));
        assert_eq!(look(0), None);
        asked.answer("a:1", Ok(hello(Some(OWN))));
        asked.answer("b:1", Ok(hello(Some(ClusterId(8)))));
        let warning = look(0).expect("they are of another one");
        assert!(!warning.contains("a:1") && !warning.contains("c:1"), "{warning}");
        for part in ["b:1 (n2)", &ClusterId(8).to_string(), &OWN.to_string(), "/data/n1", "empty data directory"] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
        asked.answer("c:1", Ok(hello(Some(ClusterId(8)))));
        assert!(look(1).is_some_and(|warning| warning.contains("c:1") && !warning.contains("b:1")));
        assert_eq!(look(100), None);
        assert!(asked.0.borrow().is_empty(), "all of them are known");
    }

    /// Restarted before the others, or with seeds that are gone by now; and this node may be among them.
    #[test]
    fn who_does_not_answer_or_has_no_cluster_yet_is_asked_again_less_and_less() {
        let (mut seeds, asked, begun) = (seeds(&["a:1", "b:1"]), Asked::default(), Instant::now());
        let mut again = Vec::new();
        for second in 0..200 {
            assert_eq!(seeds.look(begun + Duration::from_secs(second), |seed| asked.who(seed)), None);
            if !asked.0.borrow().is_empty() {
                again.push(second);
                asked.answer("a:1", Err(LinkError::Silent));
                asked.answer("b:1", Ok(hello(None)));
            }
        }
        assert_eq!(again, [0, 1, 3, 7, 15, 31, 63, 127, 191]);
    }
}
