use std::io;

use super::*;
use crate::disk::{RealDisk, SimDisk, Unsynced};
use crate::group::Configuration;
use crate::identity::NodeId;
use crate::log::LogId;
use crate::state::{Checkpoint, MemoryState, StateStore, cut};

const GROUP: GroupId = GroupId(3);

fn base(index: u64) -> CheckpointBase {
    CheckpointBase { applied: LogId { index, term: 1 }, configuration: Configuration::of([NodeId(1)]) }
}

/// As they come from another node.
fn sent(index: u64, pairs: impl Iterator<Item = Pair> + Send + 'static) -> impl Iterator<Item = io::Result<Bytes>> {
    cut(&base(index), Box::new(pairs.map(Ok)))
}

fn spooler(disk: &Arc<dyn Disk>, store: &StateStore) -> Spooler {
    Spooler::new(Arc::clone(disk), store.reader(), 7, 0)
}

/// So many, all of whose keys begin with the same; the last third of them are long.
fn pairs(count: u32, value_bytes: usize) -> impl Iterator<Item = Pair> {
    (0..count)
        .map(move |number| {
            let tail = if number > count / 3 * 2 { 2 * PLACE_KEY_BYTES } else { 0 };
            let key = [&b"q"[..], &vec![b'x'; tail], &number.to_be_bytes()].concat();
            (key, vec![number as u8; value_bytes])
        })
        .collect::<std::collections::BTreeMap<_, _>>()
        .into_iter()
}

/// What would have to be in memory is on the disk, however much it is.
#[test]
fn a_longer_checkpoint_takes_no_more_memory() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(directory.path()).expect("opened"));
    let store = StateStore::in_memory(&MemoryState::default(), Arc::clone(&disk)).expect("opened");
    for megabytes in [1_u32, 64] {
        let values = (0..megabytes * 16).map(|number| (number.to_be_bytes().to_vec(), vec![number as u8; 64 * 1024]));
        let spool = spooler(&disk, &store).take_in(GROUP, sent(9, values)).expect("taken in");
        assert!(spool.bytes() > u64::from(megabytes) << 20);
        assert!(spool.memory_bytes() < 64 * 1024, "{} bytes of {megabytes} MB", spool.memory_bytes());
    }
    assert_eq!(disk.list().expect("listed"), [""; 0], "what is not installed goes");
}

/// Its state machine reads there what it would read in the store, and in the store once that has it.
#[test]
fn rows_are_read_from_the_file_and_then_from_the_store() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let mut store = StateStore::in_memory(&MemoryState::default(), Arc::clone(&disk)).expect("opened");
    let all: Vec<_> = pairs(3000, 40).collect();
    let spool = spooler(&disk, &store).take_in(GROUP, sent(9, pairs(3000, 40))).expect("taken in");
    for is_installed in [false, true] {
        if is_installed {
            store.install(&spool).expect("installed");
        }
        for (key, value) in all.iter().step_by(61) {
            assert_eq!(spool.get(key).expect("read").as_ref(), Some(value));
            assert_eq!(spool.get(&[key, &b"-"[..]].concat()).expect("read"), None);
        }
        for read_at_once in [1, 7, 1024] {
            let (mut from, mut read) = (vec![], vec![]);
            loop {
                let part = spool.range(&from, b"r", read_at_once).expect("read");
                let Some((last, _)) = part.last() else { break };
                from = [last, &[0][..]].concat();
                read.extend(part);
            }
            assert!(read == all, "{read_at_once} at once, installed {is_installed}");
        }
        assert!(spool.range(&all[10].0, &all[20].0, usize::MAX).expect("read") == all[10..20]);
    }
    assert_eq!(disk.list().expect("listed"), ["manifest"]);
    assert!(store.load(GROUP).expect("loaded") == all);
}

/// F10: what is installed is read without another descriptor.
#[test]
fn a_checkpoint_is_read_and_installed_while_no_file_can_be_opened() {
    let disk = SimDisk::new();
    let on_disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut store = StateStore::in_memory(&MemoryState::default(), Arc::clone(&on_disk)).expect("opened");
    // The manifest is open from the first checkpoint on.
    store.write(vec![Checkpoint { group: GROUP, base: base(5), writes: vec![] }]).expect("written");
    let all: Vec<_> = pairs(3000, 40).collect();
    let spool = spooler(&on_disk, &store).take_in(GROUP, sent(9, pairs(3000, 40))).expect("taken in");
    disk.set_out_of_descriptors(true);
    assert_eq!(spool.get(&all[700].0).expect("read").as_ref(), Some(&all[700].1));
    assert!(spool.range(&all[10].0, &all[20].0, usize::MAX).expect("read") == all[10..20]);
    store.install(&spool).expect("installed");
    assert!(store.load(GROUP).expect("loaded") == all);
    let refused = spooler(&on_disk, &store).take_in(GROUP, sent(12, pairs(3, 40))).expect_err("nothing is fetched");
    assert!(matches!(refused, SnapshotStreamError::Stream(SpoolError::Disk(_))), "{refused}");
}

/// P1, F8: what is there after it is what was before or what came, all of it, and the node fetches again.
#[test]
fn a_node_starts_with_all_or_nothing_of_a_checkpoint_wherever_the_power_goes() {
    let new: Vec<_> = (0..3_u8).map(|number| (vec![number], vec![number; 500_000])).collect();
    let (mut cuts, mut goes_on) = ([0; 2], true);
    let mut operations = 0;
    while goes_on {
        operations += 5;
        for (kept_of, names) in [(0, Unsynced::Lost), (1, Unsynced::Torn), (2, Unsynced::Kept)] {
            let (state, disk) = (MemoryState::default(), SimDisk::new());
            let on_disk: Arc<dyn Disk> = Arc::new(disk.clone());
            let mut store = StateStore::in_memory(&state, Arc::clone(&on_disk)).expect("opened");
            let old: Vec<_> = (0..40_u8).map(|number| (vec![number, 1], vec![7; 40_000])).collect();
            let writes = old.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
            store.write(vec![Checkpoint { group: GROUP, base: base(5), writes }]).expect("written");
            disk.cut_power_after(operations);
            let outcome = spooler(&on_disk, &store).take_in(GROUP, sent(9, new.clone().into_iter()));
            goes_on = !outcome.is_ok_and(|spool| store.install(&spool).is_ok());
            drop(store);
            state.power_cut(|unsynced| unsynced * kept_of / 2);
            let disk: Arc<dyn Disk> = Arc::new(disk.after_power_cut(names, names));
            let reopened = StateStore::in_memory(&state, Arc::clone(&disk));
            let mut store = reopened.unwrap_or_else(|error| panic!("after {operations} operations: {error}"));
            let index = store.bases()[&GROUP].applied.index;
            let expected = if index == 9 { &new } else { &old };
            assert!(store.load(GROUP).expect("loaded") == *expected, "{index} after {operations} operations");
            cuts[usize::from(index == 9)] += 1;
            assert!(disk.list().expect("listed").iter().all(|name| !name.starts_with(SPOOL_PREFIX)));

            let spool =
                spooler(&disk, &store).take_in(GROUP, sent(12, new.clone().into_iter())).expect("fetched again");
            store.install(&spool).expect("installed");
            assert_eq!(store.bases()[&GROUP].applied.index, 12);
        }
    }
    assert!(cuts[0] > 3 && cuts[1] > 3, "{cuts:?}");
}

/// A store that ended after the first batch of an install, its file, and what it says of it.
fn half_installed(disk: &SimDisk, pairs: Vec<Pair>) -> (MemoryState, String) {
    let (state, on_disk) = (MemoryState::default(), Arc::new(disk.clone()) as Arc<dyn Disk>);
    let mut store = StateStore::in_memory(&state, Arc::clone(&on_disk)).expect("opened");
    store.write(vec![Checkpoint { group: GROUP, base: base(5), writes: vec![] }]).expect("written");
    let spool = spooler(&on_disk, &store).take_in(GROUP, sent(9, pairs.into_iter())).expect("taken in");
    let note = super::super::note_bytes(5, spool.checksum(), spool.name());
    let first =
        vec![(super::super::base_key(GROUP).to_vec(), None), (super::super::note_key(GROUP).to_vec(), Some(note))];
    store.backend.commit(first).expect("taken");
    store.backend.sync().expect("synced");
    spool.begins();
    (state, spool.name().to_owned())
}

/// A state is never half replaced, and never by what nobody sent: not one bit of the file may change, nor may it end early.
#[test]
fn a_file_that_was_damaged_is_never_installed() {
    let pairs: Vec<_> = pairs(12, 10).collect();
    let disk = SimDisk::new();
    let (state, file) = half_installed(&disk, pairs.clone());
    let length = disk.contents()[&file].len();
    let damages = (0..length).flat_map(|at| [(at, 1), (at, 0x80)]);
    let refused = |disk: SimDisk, what: &str| {
        let before = state.clone();
        let refused = StateStore::in_memory(&before, Arc::new(disk.clone())).expect_err(what);
        assert!(matches!(refused, StateError::Spool { group: 3, .. }), "{what}: {refused}");
        assert!(disk.contents().contains_key(&file), "it may be mended");
    };
    for (at, bit) in damages {
        let damaged = disk.after_kill();
        damaged.damage(&file, |bytes| bytes[at] ^= bit);
        refused(damaged, &format!("bit {bit} at {at} of {length}"));
    }
    for left in 0..length {
        let damaged = disk.after_kill();
        damaged.damage(&file, |bytes| bytes.truncate(left));
        refused(damaged, &format!("{left} of {length}"));
    }
    let store = StateStore::in_memory(&state, Arc::new(disk)).expect("opened");
    assert!(store.load(GROUP).expect("loaded") == pairs);
}

/// What is read while it is installed is compared as well, before the group is said to be whole.
#[test]
fn a_file_that_is_damaged_before_it_is_installed_is_not_taken_for_whole() {
    let disk = SimDisk::new();
    let (state, on_disk) = (MemoryState::default(), Arc::new(disk.clone()) as Arc<dyn Disk>);
    let mut store = StateStore::in_memory(&state, Arc::clone(&on_disk)).expect("opened");
    let spool = spooler(&on_disk, &store).take_in(GROUP, sent(9, pairs(12, 10))).expect("taken in");
    disk.damage(spool.name(), |bytes| *bytes.last_mut().expect("some") ^= 1);
    let refused = store.install(&spool).expect_err("refused");
    assert!(matches!(refused, StateError::Spool { group: 3, .. }), "{refused}");
    assert_eq!(store.backend.read().base(GROUP).expect("read"), None);
}

/// A process of before there were checksums may have ended in the middle.
#[test]
fn a_note_without_a_checksum_is_read() {
    let pairs: Vec<_> = pairs(12, 10).collect();
    let disk = SimDisk::new();
    let (state, file) = half_installed(&disk, pairs.clone());
    let store = Arc::new(disk) as Arc<dyn Disk>;
    let old = [&5_u64.to_be_bytes()[..], file.as_bytes()].concat();
    let backend = super::super::backend::Backend::Memory(state.clone());
    backend.commit(vec![(super::super::note_key(GROUP).to_vec(), Some(old))]).expect("taken");
    let store = StateStore::in_memory(&state, store).expect("opened");
    assert!(store.load(GROUP).expect("loaded") == pairs);
}

/// What finds no room half way takes what is left of it. What was only fetched is in nobody's way, also where the start is refused.
#[test]
fn a_start_takes_up_a_checkpoint_only_where_there_is_room_and_first_makes_some() {
    let pairs: Vec<_> = pairs(300, 1000).collect();
    let disk = SimDisk::new();
    let (state, file) = half_installed(&disk, pairs.clone());
    disk.append_to("snapshot-1-0-7").expect("made").append(&[7; 300_000]).expect("written");
    let bytes: u64 = pairs.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
    let enough = 2 * bytes + super::super::START_BYTES_FREE;
    disk.set_free_bytes(Some(enough - 300_000 - 1));
    let refused = StateStore::in_memory(&state, Arc::new(disk.clone())).expect_err("refused");
    assert!(matches!(refused, StateError::NoRoom { group: 3, needed, free } if (needed, free) == (enough, enough - 1)));
    assert_eq!(disk.list().expect("listed"), ["manifest", &file]);
    // Of the others' files room comes, if only they have it.
    disk.append_to("snapshot-1-0-8").expect("made").append(&[7; 1000]).expect("written");
    disk.set_free_bytes(Some(enough - 1000));
    let store = StateStore::in_memory(&state, Arc::new(disk.clone())).expect("opened");
    assert!(store.load(GROUP).expect("loaded") == pairs);
    assert_eq!(disk.list().expect("listed"), ["manifest"]);
}

/// What finds no room is not written again and again, as far as it fits, for as long as there is not more of it.
#[test]
fn a_checkpoint_that_found_no_room_is_tried_again_when_there_is_more() {
    let disk = SimDisk::new();
    let on_disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let store = StateStore::in_memory(&MemoryState::default(), Arc::clone(&on_disk)).expect("opened");
    let spooler = Spooler::new(Arc::clone(&on_disk), store.reader(), 7, 1000);
    let fetched = AtomicU64::new(0);
    let values = || (0..40_u32).map(|number| (number.to_be_bytes().to_vec(), vec![7; 100_000]));
    let fetch = || -> Result<Spool, SpoolError> {
        spooler.expects_room(GROUP)?;
        let chunks = sent(9, values()).inspect(|chunk| {
            fetched.fetch_add(chunk.as_ref().expect("cut").len() as u64, Ordering::Relaxed);
        });
        spooler.take_in(GROUP, chunks).map_err(|error| match error {
            SnapshotStreamError::Stream(error) => error,
            malformed @ SnapshotStreamError::Malformed(_) => panic!("{malformed}"),
        })
    };
    let tries = |free: u64, tries: u32| {
        disk.set_free_bytes(Some(free));
        fetched.store(0, Ordering::Relaxed);
        let mut outcomes = (0..tries).map(|_| fetch()).collect::<Vec<_>>();
        let taken = free - disk.free_bytes().expect("known");
        assert!(outcomes.iter().any(Result::is_ok) || taken == 0, "what is not taken in takes no room");
        (outcomes.pop().expect("some"), fetched.load(Ordering::Relaxed))
    };
    let (refused, once) = tries(3_000_000, 1);
    assert!(
        matches!(refused, Err(SpoolError::NoRoom { wanted, free: 3_000_000 }) if wanted > 3_000_000),
        "{refused:?}"
    );
    let Err(SpoolError::NoRoom { wanted, .. }) = refused else { unreachable!("it was looked at") };
    assert!(once > 900_000, "{once}");
    assert_eq!(tries(3_000_000, LEFT_OUT_MAX).1, 0);
    assert_eq!(tries(3_000_000, 10).1, once, "what is sent may have become less");
    assert_eq!(tries(wanted - 1, 10).1, 0);
    // With each byte more it might be tried again.
    let (_, more) = tries(wanted, 10);
    assert!((once..2 * once).contains(&more), "{more}, and {once} before");
    assert_eq!(tries(wanted + wanted / 5, 10).1, 0);
    drop(tries(20_000_000, 1).0.expect("taken in"));
    assert!(spooler.expects_room(GROUP).is_ok());
}

/// Of a program that has no such files: it made the group anew, which must not be undone.
#[test]
fn a_note_beside_a_newer_checkpoint_is_dropped() {
    let (state, disk) = (MemoryState::default(), SimDisk::new());
    let on_disk: Arc<dyn Disk> = Arc::new(disk);
    let mut store = StateStore::in_memory(&state, Arc::clone(&on_disk)).expect("opened");
    let note = (super::super::note_key(GROUP).to_vec(), Some(super::super::note_bytes(0, 7, "snapshot-gone")));
    store.backend.commit(vec![note]).expect("taken");
    store.write(vec![Checkpoint { group: GROUP, base: base(5), writes: vec![] }]).expect("written");
    drop(store);
    let store = StateStore::in_memory(&state, Arc::clone(&on_disk)).expect("opened");
    assert_eq!(store.bases()[&GROUP].applied.index, 5);
    assert_eq!(store.backend.read().prefix(b"i").count(), 0);
}

/// Bytes of another node: what is not sorted could not be read.
#[test]
fn a_checkpoint_in_no_order_is_refused_and_leaves_nothing() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let store = StateStore::in_memory(&MemoryState::default(), Arc::clone(&disk)).expect("opened");
    let pairs = [b"b", b"a"].map(|key| (key.to_vec(), vec![]));
    let refused = spooler(&disk, &store).take_in(GROUP, sent(9, pairs.into_iter())).expect_err("refused");
    assert!(matches!(refused, SnapshotStreamError::Malformed(_)), "{refused}");
    assert_eq!(disk.list().expect("listed"), [""; 0]);
}
