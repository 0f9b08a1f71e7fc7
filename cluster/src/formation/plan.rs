//! What follows from what the seeds said. No network, no clock, no disk.

use super::FormationError;
use crate::NodeId;
use crate::directory::command::MemberRecord;
use crate::transport::PeerHello;

/// A seed's address, and what it answered last: who it is, or why it cannot be reached. `None` before it answered.
pub(super) type Seen<'a> = (&'a str, Option<&'a Result<PeerHello, String>>);

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: this is waited for.
    Wait(String),
    /// The same, and somebody must mend it.
    Mend(String),
    /// Ask these for the record of their cluster.
    Fetch(Vec<String>),
    /// Form a cluster with these: this node is the first seed, and all are there.
    Form(Vec<(String, NodeId)>),
}

/// Says what to do. `seen` has all seeds in the order of the list.
pub(super) fn next_step(me: &MemberRecord, seen: &[Seen<'_>]) -> Result<Step, FormationError> {
    let answered: Vec<(&str, &PeerHello)> =
        seen.iter().filter_map(|(seed, answer)| Some((*seed, answer.as_ref()?.as_ref().ok()?))).collect();
    if let Some((seed, other)) = answered.iter().find(|(_, other)| other.node.0 != me.node && other.name == me.name) {
        let (name, seed) = (me.name.clone(), (*seed).to_owned());
        return Err(FormationError::SameName { name, node: other.node, seed });
    }
    let copied = |(_, other): &&(&str, &PeerHello)| other.node.0 == me.node && other.name != me.name;
    if let Some((seed, other)) = answered.iter().find(copied) {
        // Before anything else: it is listed wherever the other one is.
        let both = format!("this node, {:?}, and the one at seed {seed}, {:?},", me.name, other.name);
        return Ok(Step::Mend(same_directory(&both, other.node)));
    }
    let of_clusters: Vec<String> =
        answered.iter().filter(|(_, hello)| hello.cluster.is_some()).map(|(seed, _)| (*seed).to_owned()).collect();
    if !of_clusters.is_empty() {
        return Ok(Step::Fetch(of_clusters));
    }
    if answered.len() < seen.len() {
        return Ok(Step::Wait(silent(seen)));
    }
    for (index, (seed, hello)) in answered.iter().enumerate() {
        let Some((earlier, same)) =
            answered[..index].iter().find(|(_, other)| other.node == hello.node || other.name == hello.name)
        else {
            continue;
        };
        // One process is called one thing, and has one nonce.
        let is_copied = same.node == hello.node && (same.name != hello.name || same.nonce != hello.nonce);
        if is_copied {
            let both = format!("seeds {earlier}, {:?}, and {seed}, {:?},", same.name, hello.name);
            return Ok(Step::Mend(same_directory(&both, hello.node)));
        }
        return Ok(Step::Mend(match same.node == hello.node {
            true => format!("seeds {earlier} and {seed} are one node, {:?}: name each node once", hello.name),
            false => format!(
                "seeds {earlier} and {seed} are both called {:?}: give each node a name of its own (--node)",
                hello.name
            ),
        }));
    }
    let is_me = |(_, hello): &(&str, &PeerHello)| hello.node.0 == me.node;
    match answered.first() {
        Some(first) if is_me(first) => {
            let others = answered.iter().filter(|seed| !is_me(seed));
            Ok(Step::Form(others.map(|(seed, hello)| ((*seed).to_owned(), hello.node)).collect()))
        }
        Some((seed, _)) if answered.iter().any(is_me) => {
            Ok(Step::Wait(format!("all seeds are there, and the first one, {seed}, forms the cluster")))
        }
        _ => Ok(Step::Wait(
            "all seeds are there and none of them is this node, so they form a cluster, which it then joins".to_owned(),
        )),
    }
}

/// Whoever makes an image of a machine may have started the node on it before.
fn same_directory(both: &str, node: NodeId) -> String {
    format!(
        "{both} have the same data directory, copied, and so are one node, {node}: stop them, empty all of these directories but one, and \
         start them again"
    )
}

/// Which seeds do not answer, and why.
fn silent(seen: &[Seen<'_>]) -> String {
    let silent: Vec<String> = seen
        .iter()
        .filter_map(|(seed, answer)| match answer {
            Some(Ok(_)) => None,
            Some(Err(error)) => Some(format!("{seed} ({error})")),
            None => Some(format!("{seed} (asked just now)")),
        })
        .collect();
    format!("waiting for {} of {} seeds: {}", silent.len(), seen.len(), silent.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FeatureLevels;
    use crate::transport::ClusterId;

    fn me() -> MemberRecord {
        MemberRecord { node: 1, name: "n1".into(), ..MemberRecord::default() }
    }

    fn is(node: u64, cluster: Option<u128>) -> Option<Result<PeerHello, String>> {
        let (node, cluster) = (NodeId(node), cluster.map(ClusterId));
        let name = format!("n{}", node.0);
        let feature_levels = FeatureLevels { min: 1, max: 1 };
        let address = String::new();
        Some(Ok(PeerHello {
            cluster,
            node,
            name,
            incarnation: None,
            protocol: 1,
            feature_levels,
            nonce: 0,
            address,
            start: 0,
        }))
    }

    fn step(answers: &[Option<Result<PeerHello, String>>]) -> Step {
        let names: Vec<String> = (0..answers.len()).map(|index| format!("s{index}")).collect();
        let seen: Vec<Seen<'_>> = names.iter().map(String::as_str).zip(answers.iter().map(Option::as_ref)).collect();
        next_step(&me(), &seen).unwrap()
    }

    fn waits_for(answers: &[Option<Result<PeerHello, String>>], expected: &str) {
        match step(answers) {
            Step::Wait(reason) | Step::Mend(reason) => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_seed_forms_once_all_are_there() {
        let others = vec![("s1".to_owned(), NodeId(2)), ("s2".to_owned(), NodeId(3))];
        assert_eq!(step(&[is(1, None), is(2, None), is(3, None)]), Step::Form(others));
        assert_eq!(step(&[is(1, None)]), Step::Form(Vec::new()));
    }

    #[test]
    fn seeds_that_do_not_answer_are_named_with_the_reason() {
        let refused = Some(Err("refused".to_owned()));
        let expected = "waiting for 2 of 3 seeds: s1 (refused), s2 (asked just now)";
        waits_for(&[is(1, None), refused, None], expected);
    }

    #[test]
    fn whoever_is_not_the_first_seed_waits_for_it() {
        waits_for(&[is(2, None), is(1, None)], "s0, forms the cluster");
        waits_for(&[is(2, None), is(3, None)], "none of them is this node");
    }

    #[test]
    fn where_there_is_a_cluster_none_is_formed() {
        assert_eq!(step(&[is(1, None), is(2, Some(7)), None]), Step::Fetch(vec!["s1".to_owned()]));
        let both = vec!["s1".to_owned(), "s2".to_owned()];
        assert_eq!(step(&[is(1, None), is(2, Some(7)), is(3, Some(8))]), Step::Fetch(both));
    }

    #[test]
    fn a_node_that_is_listed_twice_is_not_counted_twice() {
        waits_for(&[is(1, None), is(1, None)], "seeds s0 and s1 are one node");
        waits_for(&[is(1, None), is(2, None), is(2, None)], "seeds s1 and s2 are one node");
    }

    /// As of machines made from one image, on which the node had been started.
    #[test]
    fn copies_of_one_data_directory_are_to_be_mended_whoever_sees_them() {
        let called = |name: &str, node: u64, nonce: u64, cluster: Option<u128>| {
            let hello = is(node, cluster).unwrap().unwrap();
            Some(Ok(PeerHello { name: name.into(), nonce, ..hello }))
        };
        let mend = |answers: &[Option<Result<PeerHello, String>>], expected: &str| match step(answers) {
            Step::Mend(reason) => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{other:?}"),
        };
        let one = called("n1", 1, 7, None);
        let own = "this node, \"n1\", and the one at seed s1, \"n2\", have the same data directory, copied";
        mend(&[one.clone(), called("n2", 1, 8, None), None], own);
        // It would be taken for the one that is listed there.
        mend(&[one.clone(), called("n2", 1, 8, Some(3))], own);
        let others = "seeds s1, \"n2\", and s2, \"n3\", have the same data directory";
        mend(&[one.clone(), called("n2", 2, 8, None), called("n3", 2, 9, None)], others);
        mend(&[one.clone(), called("n2", 2, 8, None), called("n2", 2, 9, None)], "have the same data directory");
        mend(&[one.clone(), called("n2", 2, 8, None), called("n2", 2, 8, None)], "name each node once");
    }

    #[test]
    fn names_of_others_that_are_alike_are_waited_out_and_the_own_one_is_an_error() {
        let mut named = is(3, None);
        if let Some(Ok(hello)) = &mut named {
            hello.name = "n2".into();
        }
        waits_for(&[is(1, None), is(2, None), named.clone()], "seeds s1 and s2 are both called \"n2\"");
        if let Some(Ok(hello)) = &mut named {
            hello.name = "n1".into();
        }
        let error = next_step(&me(), &[("s0", is(1, None).as_ref()), ("s1", named.as_ref())]).unwrap_err();
        assert!(matches!(error, FormationError::SameName { node: NodeId(3), .. }), "{error}");
    }
}
