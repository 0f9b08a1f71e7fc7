use super::*;

const JOINER: Incarnation = Incarnation(9);

fn source_id() -> SourceId {
    SourceId::Node(NodeId::new(1).expect("not zero"), Incarnation(5))
}

fn group_id() -> SourceId {
    SourceId::Group(GroupId(0))
}

fn filter(name: &str) -> Arc<str> {
    Arc::from(name)
}

fn entries(entries: &[(&str, u32)]) -> Vec<Entry> {
    entries.iter().map(|&(name, value)| (filter(name), value)).collect()
}

fn snapshot(version: u64, as_of: u64, piece: u32, last: bool, all: &[(&str, u32)]) -> Update {
    let content = Content::Snapshot { piece, last, entries: entries(all) };
    Update { source: source_id(), version: Version(version), as_of, content }
}

fn delta(from: u64, to: u64, as_of: u64, changes: &[(&str, u32)]) -> Update {
    let content = Content::Delta { from: Version(from), changes: entries(changes) };
    Update { source: source_id(), version: Version(to), as_of, content }
}

fn change(name: &str, old: u32, new: u32) -> TableOutput {
    TableOutput::Change { source: source_id(), filter: filter(name), old, new }
}

fn confirm(version: u64) -> TableOutput {
    TableOutput::Confirm { source: source_id(), version: Version(version) }
}

fn ask(have: Option<u64>) -> TableOutput {
    TableOutput::Ask { source: source_id(), have: have.map(Version) }
}

mod source {
    use super::*;

    const BYTES_MAX: usize = 1024;

    fn all(source: &Source, feed: &mut Feed, as_of: u64, bytes_max: usize) -> Vec<Update> {
        std::iter::from_fn(|| source.next(feed, as_of, bytes_max)).collect()
    }

    fn with(filters: &[(&str, u32)]) -> Source {
        let mut source = Source::new(source_id());
        for &(name, value) in filters {
            source.set(&filter(name), value);
        }
        source
    }

    #[test]
    fn a_new_receiver_gets_a_snapshot_and_then_what_changes() {
        let mut source = with(&[("b", 1), ("a", 2)]);
        let mut feed = source.feed(None);
        assert_eq!(all(&source, &mut feed, 7, BYTES_MAX), [snapshot(2, 7, 0, true, &[("a", 2), ("b", 1)])]);
        source.set(&filter("c"), 1);
        source.set(&filter("a"), 0);
        assert_eq!(all(&source, &mut feed, 7, BYTES_MAX), [delta(2, 4, 7, &[("c", 1), ("a", 0)])]);
    }

    #[test]
    fn an_empty_source_is_a_snapshot_too() {
        let source = with(&[]);
        let mut feed = source.feed(None);
        assert_eq!(all(&source, &mut feed, 7, BYTES_MAX), [snapshot(0, 7, 0, true, &[])]);
    }

    #[test]
    fn what_does_not_change_makes_no_version() {
        let mut source = with(&[("a", 2)]);
        assert_eq!(source.set(&filter("a"), 2), Version(1));
        assert_eq!(source.set(&filter("z"), 0), Version(1));
        assert_eq!(source.set(&filter("a"), 3), Version(2));
    }

    #[test]
    fn snapshots_and_deltas_are_cut_to_size() {
        let mut source = with(&[("a", 1), ("b", 1), ("c", 1)]);
        let mut feed = source.feed(None);
        let pieces = [snapshot(3, 7, 0, false, &[("a", 1), ("b", 1)]), snapshot(3, 7, 1, true, &[("c", 1)])];
        assert_eq!(all(&source, &mut feed, 7, 40), pieces);
        for name in ["d", "e", "f"] {
            source.set(&filter(name), 1);
        }
        let deltas = [delta(3, 5, 0, &[("d", 1), ("e", 1)]), delta(5, 6, 8, &[("f", 1)])];
        assert_eq!(all(&source, &mut feed, 8, 40), deltas, "only the last is complete as of anything");
    }

    /// Half of an entry's changes under its version would be confirmed as all of them.
    #[test]
    fn the_changes_of_one_entry_are_not_cut() {
        let mut source = Source::new(source_id());
        for name in ["a", "b", "c"] {
            source.set_at(Version(10), &filter(name), 1);
        }
        source.set_at(Version(11), &filter("d"), 1);
        let mut feed = source.feed(Some(Version(0)));
        let deltas = [delta(0, 10, 0, &[("a", 1), ("b", 1), ("c", 1)]), delta(10, 11, 7, &[("d", 1)])];
        assert_eq!(all(&source, &mut feed, 7, 20), deltas);
    }

    /// No queue has room for it and no frame holds it, so the link would break over it again and again.
    #[test]
    fn an_entry_that_changes_too_much_for_one_update_is_a_snapshot_in_pieces() {
        let name = |number: u32| filter(&format!("filter/{number:04}"));
        let mut source = Source::new(group_id());
        source.set_at(Version(9), &filter("early"), 1);
        let mut table = Table::new();
        table.follow(group_id());
        let mut taken = |update: Update| {
            let mut outputs = Vec::new();
            table.on_update(LinkId(1), update, &mut outputs);
            assert!(!outputs.iter().any(|output| matches!(output, TableOutput::Ask { .. })), "{outputs:?}");
        };
        let mut feed = source.feed(None);
        all(&source, &mut feed, 7, BYTES_MAX).into_iter().for_each(&mut taken);
        source.set_at(Version(10), &filter("before"), 1);
        for number in 0..2000 {
            source.set_at(Version(11), &name(number), 1);
        }
        source.set_at(Version(12), &name(0), 2);
        let updates = all(&source, &mut feed, 8, BYTES_MAX);
        for update in &updates {
            let (Content::Snapshot { entries, .. } | Content::Delta { changes: entries, .. }) = &update.content;
            let bytes: usize = entries.iter().map(|(filter, _)| entry_bytes(filter)).sum();
            assert!(bytes <= BYTES_MAX, "{bytes} bytes in one update");
        }
        assert!(matches!(updates[0].content, Content::Delta { .. }), "what came before it goes by itself");
        updates.into_iter().for_each(&mut taken);
        assert_eq!(table.have(group_id()), Some(Version(12)));
        let wanted = |number| table.value(group_id(), &name(number));
        assert_eq!((wanted(0), wanted(1), wanted(1999)), (2, 1, 1));
        assert_eq!(["early", "before"].map(|name| table.value(group_id(), name)), [1, 1]);
        assert!(table.missing(8, [group_id()]).is_empty(), "it is complete as of what it was sent for");

        source.set_at(Version(13), &filter("after"), 1);
        let changes = Content::Delta { from: Version(12), changes: entries(&[("after", 1)]) };
        let update = Update { source: group_id(), version: Version(13), as_of: 8, content: changes };
        assert_eq!(all(&source, &mut feed, 8, BYTES_MAX), [update], "and then what changes, as before");
    }

    #[test]
    fn what_changes_during_a_snapshot_follows_it() {
        let mut source = with(&[("a", 1), ("b", 1), ("c", 1)]);
        let mut feed = source.feed(None);
        assert_eq!(source.next(&mut feed, 7, 20), Some(snapshot(3, 7, 0, false, &[("a", 1)])));
        source.set(&filter("a"), 0);
        source.set(&filter("c"), 0);
        let rest = [snapshot(3, 7, 1, true, &[("b", 1)]), delta(3, 5, 8, &[("a", 0), ("c", 0)])];
        assert_eq!(all(&source, &mut feed, 8, 1024), rest, "the snapshot is as of its begin");
    }

    #[test]
    fn who_comes_back_soon_gets_what_changed() {
        let source = with(&[("a", 1), ("b", 1), ("c", 1)]);
        let mut feed = source.feed(Some(Version(2)));
        assert_eq!(all(&source, &mut feed, 7, BYTES_MAX), [delta(2, 3, 7, &[("c", 1)])]);
    }

    #[test]
    fn who_comes_back_late_gets_everything() {
        let mut source = Source::new(source_id()).with_recent_bytes_max(40);
        for name in ["a", "b", "c", "d"] {
            source.set(&filter(name), 1);
        }
        let mut feed = source.feed(Some(Version(1)));
        let everything = snapshot(4, 7, 0, true, &[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
        assert_eq!(all(&source, &mut feed, 7, BYTES_MAX), [everything]);
        let mut feed = source.feed(Some(Version(2)));
        assert_eq!(all(&source, &mut feed, 7, BYTES_MAX), [delta(2, 4, 7, &[("c", 1), ("d", 1)])]);
    }

    /// The joiner waits for it, and what it confirmed before did not count.
    #[test]
    fn when_the_directory_moved_on_an_empty_delta_says_so_once() {
        let source = with(&[("a", 1)]);
        let mut feed = source.feed(Some(Version(1)));
        assert_eq!(all(&source, &mut feed, 7, BYTES_MAX), [delta(1, 1, 7, &[])]);
        assert_eq!(all(&source, &mut feed, 7, BYTES_MAX), []);
        assert_eq!(all(&source, &mut feed, 8, BYTES_MAX), [delta(1, 1, 8, &[])]);
    }

    #[test]
    fn a_new_leader_sends_deltas_to_receivers_of_the_old_one() {
        let mut old = Source::new(group_id());
        let mut new = Source::new(group_id());
        for replica in [&mut old, &mut new] {
            replica.set_at(Version(10), &filter("a"), 1);
        }
        old.set_at(Version(12), &filter("b"), 1);
        let mut feed = new.feed(Some(Version(12)));
        new.next(&mut feed, 7, BYTES_MAX);
        assert_eq!(new.next(&mut feed, 7, BYTES_MAX), None, "it is behind, and says nothing old");
        new.set_at(Version(12), &filter("b"), 1);
        new.set_at(Version(13), &filter("c"), 1);
        let changes = Content::Delta { from: Version(12), changes: entries(&[("c", 1)]) };
        let update = Update { source: group_id(), version: Version(13), as_of: 7, content: changes };
        assert_eq!(new.next(&mut feed, 7, BYTES_MAX), Some(update));
    }

    #[test]
    fn a_restored_replica_has_no_recent_changes() {
        let source = Source::restored(source_id(), Version(20), entries(&[("a", 1), ("b", 0)]));
        let mut feed = source.feed(Some(Version(19)));
        assert_eq!(all(&source, &mut feed, 7, BYTES_MAX), [snapshot(20, 7, 0, true, &[("a", 1)])]);
    }
}

mod table {
    use super::*;

    const LINK: LinkId = LinkId(1);

    fn following() -> Table {
        let mut table = Table::new();
        table.follow(source_id());
        table
    }

    fn take(table: &mut Table, link: LinkId, update: Update) -> Vec<TableOutput> {
        let mut outputs = Vec::new();
        table.on_update(link, update, &mut outputs);
        outputs
    }

    /// Holds `a` and `b` at version 3, as of 7.
    fn holding() -> Table {
        let mut table = following();
        let outputs = take(&mut table, LINK, snapshot(3, 7, 0, true, &[("a", 1), ("b", 2)]));
        assert_eq!(outputs, [change("a", 0, 1), change("b", 0, 2), confirm(3)]);
        table
    }

    #[test]
    fn changes_come_before_the_confirmation() {
        let mut table = holding();
        let outputs = take(&mut table, LINK, delta(3, 5, 7, &[("c", 1), ("a", 0)]));
        assert_eq!(outputs, [change("a", 1, 0), change("c", 0, 1), confirm(5)]);
        assert_eq!([table.value(source_id(), "a"), table.value(source_id(), "c")], [0, 1]);
    }

    #[test]
    fn a_snapshot_replaces_what_was_held() {
        let mut table = holding();
        let outputs = take(&mut table, LINK, snapshot(8, 7, 0, true, &[("b", 2), ("c", 1)]));
        assert_eq!(outputs, [change("a", 1, 0), change("c", 0, 1), confirm(8)]);
    }

    #[test]
    fn a_snapshot_in_pieces_changes_nothing_before_its_last() {
        let mut table = holding();
        assert_eq!(take(&mut table, LINK, snapshot(8, 7, 0, false, &[("b", 2)])), []);
        assert_eq!(take(&mut table, LINK, snapshot(8, 7, 1, false, &[("c", 1)])), []);
        let outputs = take(&mut table, LINK, snapshot(8, 7, 2, true, &[("d", 1)]));
        assert_eq!(outputs, [change("a", 1, 0), change("c", 0, 1), change("d", 0, 1), confirm(8)]);
    }

    #[test]
    fn what_is_older_is_ignored_and_what_is_held_is_confirmed_again() {
        let mut table = holding();
        assert_eq!(take(&mut table, LINK, snapshot(2, 9, 0, true, &[])), [confirm(3)]);
        assert_eq!(take(&mut table, LINK, delta(1, 2, 9, &[("b", 0)])), [confirm(3)]);
        assert_eq!(take(&mut table, LINK, delta(2, 3, 7, &[("b", 2)])), [confirm(3)]);
        assert_eq!(table.missing(9, [source_id()]), [source_id()], "nor is what is older complete as of anything");
    }

    /// Version 3 is known; 2 took back what 3 gave again. A publish matched between the two would miss it.
    #[test]
    fn an_overlapping_delta_takes_nothing_back() {
        let mut table = holding();
        let outputs = take(&mut table, LINK, delta(1, 4, 7, &[("b", 0), ("b", 2), ("c", 1)]));
        assert_eq!(outputs, [change("c", 0, 1), confirm(4)]);
    }

    #[test]
    fn a_delta_that_presumes_more_than_is_held_is_not_taken() {
        let mut table = holding();
        assert_eq!(take(&mut table, LINK, delta(4, 5, 7, &[("c", 1)])), [ask(Some(3))]);
        let mut table = following();
        assert_eq!(take(&mut table, LINK, delta(0, 5, 7, &[("c", 1)])), [ask(None)]);
    }

    #[test]
    fn pieces_of_two_links_are_not_mixed() {
        let mut table = holding();
        assert_eq!(take(&mut table, LINK, snapshot(8, 7, 0, false, &[("b", 2)])), []);
        assert_eq!(take(&mut table, LinkId(2), snapshot(8, 7, 1, true, &[("d", 1)])), [ask(Some(3))]);
        assert_eq!(take(&mut table, LINK, snapshot(9, 7, 1, true, &[("d", 1)])), [ask(Some(3))], "nor of two versions");
    }

    /// What was confirmed binds this node also while the link is down.
    #[test]
    fn a_broken_link_takes_only_the_half_of_a_snapshot_with_it() {
        let mut table = holding();
        take(&mut table, LINK, snapshot(8, 7, 0, false, &[("z", 2)]));
        table.on_link_closed(LINK);
        assert_eq!(take(&mut table, LINK, snapshot(8, 7, 1, true, &[])), [ask(Some(3))]);
        assert_eq!(table.have(source_id()), Some(Version(3)));
        assert_eq!(table.value(source_id(), "b"), 2);
    }

    #[test]
    fn a_lost_source_takes_its_filters_with_it_and_does_not_come_back() {
        let mut table = holding();
        let mut outputs = Vec::new();
        table.drop_source(source_id(), &mut outputs);
        assert_eq!(outputs, [change("a", 1, 0), change("b", 2, 0)]);
        assert_eq!(take(&mut table, LINK, snapshot(8, 9, 0, true, &[("a", 1)])), []);
        assert_eq!(table.sources().count(), 0);
    }

    #[test]
    fn a_joiner_waits_for_what_was_taken_after_its_join_was_applied() {
        let mut table = following();
        table.follow(group_id());
        let both = || [source_id(), group_id()];
        assert_eq!(table.missing(8, both()), both());
        take(&mut table, LINK, snapshot(3, 7, 0, true, &[]));
        assert_eq!(table.missing(8, both()), both(), "taken too early");
        take(&mut table, LINK, delta(3, 3, 8, &[]));
        assert_eq!(table.missing(8, both()), [group_id()]);
    }

    #[test]
    fn half_a_snapshot_completes_nothing() {
        let mut table = following();
        take(&mut table, LINK, snapshot(3, 9, 0, false, &[]));
        assert_eq!(table.missing(8, [source_id()]), [source_id()]);
    }
}

mod barrier {
    use super::*;

    const A: Incarnation = Incarnation(2);
    const B: Incarnation = Incarnation(3);

    fn barrier() -> Barrier {
        let mut barrier = Barrier::of_node(100);
        barrier.on_joined(A);
        barrier.on_joined(B);
        barrier
    }

    fn confirmed(barrier: &mut Barrier, by: Incarnation, version: u64) -> Vec<u64> {
        let mut released = Vec::new();
        barrier.on_confirmed(by, Version(version), &mut released);
        released
    }

    fn lost(barrier: &mut Barrier, incarnation: Incarnation) -> Vec<u64> {
        let mut released = Vec::new();
        barrier.on_lost(incarnation, &mut released);
        released
    }

    #[test]
    fn a_version_passes_when_everyone_holds_it() {
        let mut barrier = barrier();
        assert_eq!(barrier.wait(Version(3), 30), Ok(false));
        assert_eq!(barrier.wait(Version(3), 31), Ok(false));
        assert_eq!(barrier.wait(Version(4), 40), Ok(false));
        assert_eq!(confirmed(&mut barrier, A, 9), []);
        assert_eq!(confirmed(&mut barrier, B, 2), []);
        assert_eq!(confirmed(&mut barrier, B, 3), [30, 31]);
        assert_eq!(barrier.wait(Version(3), 32), Ok(true));
        assert_eq!(confirmed(&mut barrier, B, 1), [], "an old confirmation takes nothing back");
        assert_eq!(barrier.wait(Version(3), 33), Ok(true));
        assert_eq!(confirmed(&mut barrier, B, 4), [40]);
        assert_eq!(barrier.waiting(), 0);
    }

    #[test]
    fn who_is_lost_is_not_waited_for() {
        let mut barrier = barrier();
        barrier.wait(Version(1), 10).expect("room");
        assert_eq!(confirmed(&mut barrier, A, 1), []);
        assert_eq!(lost(&mut barrier, B), [10]);
        assert_eq!(confirmed(&mut barrier, B, 5), [], "nor does it come back");
        assert_eq!(lost(&mut barrier, A), []);
        assert_eq!(barrier.wait(Version(7), 70), Ok(true), "alone");
    }

    #[test]
    fn a_joiner_counts_from_its_join_on() {
        let mut barrier = barrier();
        barrier.wait(Version(1), 10).expect("room");
        assert_eq!(confirmed(&mut barrier, JOINER, 1), [], "not known yet: it will confirm again");
        barrier.on_joined(JOINER);
        assert_eq!(confirmed(&mut barrier, A, 1), []);
        assert_eq!(confirmed(&mut barrier, B, 1), []);
        barrier.on_joined(JOINER);
        assert_eq!(confirmed(&mut barrier, JOINER, 1), [10]);
    }

    #[test]
    fn a_new_leader_of_a_group_first_learns_who_joined() {
        let mut barrier = Barrier::of_group(100);
        barrier.on_joined(A);
        assert_eq!(barrier.wait(Version(1), 10), Ok(false));
        assert_eq!(confirmed(&mut barrier, A, 1), []);
        barrier.on_joined(JOINER);
        let mut released = Vec::new();
        barrier.on_receivers_known(&mut released);
        assert_eq!(released, []);
        assert_eq!(confirmed(&mut barrier, JOINER, 1), [10]);
    }

    #[test]
    fn waiters_are_bounded() {
        let mut barrier = Barrier::of_node(2);
        barrier.on_joined(A);
        assert_eq!(barrier.wait(Version(1), 10), Ok(false));
        assert_eq!(barrier.wait(Version(2), 20), Ok(false));
        assert_eq!(barrier.wait(Version(2), 21), Err(BarrierFull { waiters_max: 2 }));
        assert_eq!(confirmed(&mut barrier, A, 1), [10]);
        assert_eq!(barrier.wait(Version(2), 21), Ok(false));
    }
}
