use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::disk::{ReadFile, RealDisk, SimDisk, Unsynced};

const GROUP: GroupId = GroupId(3);

/// An entry of term 1.
fn entry(index: u64, payload: &str) -> LogEntry {
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    LogEntry { id: LogId { index, term: 1 }, kind: EntryKind::Commands, payload }
}

fn open(disk: &SimDisk, segment_bytes: u64) -> Result<(Log, Vec<LogEntry>), LogError> {
    let (log, mut groups) = Log::open(Arc::new(disk.clone()), segment_bytes)?;
    Ok((log, groups.remove(&GROUP).unwrap_or_default().entries))
}

fn add(log: &mut Log, entry: &LogEntry) {
    log.add_entry(GROUP, entry.id, entry.kind, &entry.payload);
}

/// The name of the first segment.
fn first_segment(disk: &SimDisk) -> String {
    disk.list().expect("listed").remove(0)
}

fn append(log: &mut Log, entries: &[LogEntry]) -> io::Result<()> {
    for entry in entries {
        add(log, entry);
    }
    log.write()?;
    log.sync(SyncSite::LogRound)
}

#[test]
fn what_was_synced_is_read_again_over_segments() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 100).expect("opened");
    let records: Vec<_> = (1..=20).map(|index| entry(index, "some payload")).collect();
    for record in &records {
        append(&mut log, std::slice::from_ref(record)).expect("written");
        log.rotate_if_full(|_| None).expect("rotated");
    }
    assert!(disk.list().expect("listed").len() > 5);
    disk.power_cycle(|_, _| 0);
    assert_eq!(open(&disk, 100).expect("opened").1, records);
}

/// F9: cut at any byte of its unsynced tail, the log starts and has everything that was synced, nothing torn.
#[test]
fn a_tail_torn_at_any_byte_is_cut_off() {
    for torn in 0..200 {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk, 1000).expect("opened");
        append(&mut log, &[entry(1, "first"), entry(2, "second")]).expect("written");
        add(&mut log, &entry(3, "third"));
        add(&mut log, &entry(4, "fourth"));
        log.write().expect("written");
        disk.power_cycle(|_, unsynced| torn.min(unsynced));
        let (mut log, records) = open(&disk, 1000).expect("opened");
        assert!(records.len() >= 2 && records.len() <= 4, "torn at {torn}: {}", records.len());
        let next = records.len() as u64 + 1;
        append(&mut log, &[entry(next, "again")]).expect("written");
        disk.power_cycle(|_, _| 0);
        assert_eq!(open(&disk, 1000).expect("opened").1.len() as u64, next);
    }
}

/// F9: blocks are not written in order, so what is left behind a torn place may be a payload, and a client may have made that look
/// like a record which knows the place to be safe, and have guessed where it stands. If it were believed, a power cut would keep the node
/// from starting.
#[test]
fn a_payload_that_looks_like_a_record_vouches_for_nothing() {
    for torn in 1..=200 {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk, 100_000).expect("opened");
        append(&mut log, &[entry(1, "first")]).expect("written");
        let from = log.position() as usize;
        add(&mut log, &entry(2, "second"));
        let mut forged = Vec::new();
        // Of what goes into a record a client knows all but the salt.
        record::encode_hard_state(&mut forged, (Salt(0), from as u64 + 1), GROUP, HardState::default());
        add(&mut log, &LogEntry { payload: forged.into(), ..entry(3, "") });
        log.write().expect("written");
        disk.damage(&first_segment(&disk), |bytes| {
            let until = bytes.len().min(from + torn);
            bytes[from..until].fill(0);
        });
        let (_, entries) = open(&disk, 100_000).unwrap_or_else(|error| panic!("{torn} bytes are zeros: {error}"));
        assert_eq!(entries, [entry(1, "first")], "{torn} bytes are zeros");
    }
}

/// A segment that the version before salts began.
fn write_segment_of_version_2(disk: &SimDisk, records: &[u8]) {
    let mut bytes = [&SEGMENT_MAGIC[..], &2_u32.to_le_bytes(), &[0; 12]].concat();
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend_from_slice(records);
    let mut file = disk.append_to(&format!("log-{:020}", 0)).expect("made");
    file.append(&bytes).expect("written");
    file.sync(SyncSite::LogRound).expect("synced");
    disk.sync_directory(SyncSite::LogSegmentName).expect("synced");
}

/// What a node has on its disk is read by later versions, and goes on where it ends.
#[test]
fn a_segment_without_a_salt_is_read_and_goes_on() {
    let disk = SimDisk::new();
    let mut records = Vec::new();
    for old in [entry(1, "one"), entry(2, "two")] {
        record::encode_entry(&mut records, (Salt(0), HEADER_BYTES as u64), GROUP, old.id, old.kind, &old.payload);
    }
    write_segment_of_version_2(&disk, &records);
    let (mut log, entries) = open(&disk, 10).expect("opened");
    assert_eq!(entries, [entry(1, "one"), entry(2, "two")]);
    append(&mut log, &[entry(3, "three")]).expect("written");
    log.rotate_if_full(|_| None).expect("rotated");
    append(&mut log, &[entry(4, "four")]).expect("written");
    disk.power_cycle(|_, _| 0);
    assert_eq!(disk.list().expect("listed").len(), 2);
    let all = [entry(1, "one"), entry(2, "two"), entry(3, "three"), entry(4, "four")];
    assert_eq!(open(&disk, 10).expect("opened").1, all);
    disk.damage(&first_segment(&disk), |bytes| bytes[HEADER_BYTES + 5] ^= 1);
    assert!(matches!(open(&disk, 10), Err(LogError::Damaged { .. })), "its records are checked as before");
}

/// The power goes as a segment is begun, and again when that was removed, begun anew by the next process, and its removal not safe.
#[test]
fn a_segment_that_was_never_finished_may_come_back_beside_the_one_in_its_place() {
    for (before, start) in [(true, 0), (false, 0), (true, 1), (false, 1)] {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk, 60).expect("opened");
        append(&mut log, &[entry(1, "first")]).expect("written");
        if start > 0 {
            log.rotate_if_full(|_| None).expect("rotated");
            append(&mut log, &[entry(2, "second")]).expect("written");
        }
        let last = disk.list().expect("listed").pop().expect("one");
        let other = if before { "0000000000000000" } else { "ffffffffffffffff" };
        let other = format!("{}{other}", &last[..last.len() - other.len()]);
        for left in [0, 11, HEADER_BYTES - 1] {
            let mut file = disk.append_to(&other).expect("made");
            file.append(&disk.read(&last).expect("read")[..left]).expect("written");
            disk.damage(&last, |bytes| bytes.extend([1; 50]));
            let (_, entries) = open(&disk, 60).expect("opened");
            assert_eq!(entries.len() as u64, 1 + start, "{left} bytes, before {before}");
            assert!(!disk.list().expect("listed").contains(&other));
        }
    }
}

/// F9: a bit flipped in what was acknowledged is detected wherever a later record vouches for it, and nothing is cut off.
#[test]
fn a_flipped_bit_in_the_middle_is_refused_and_not_repaired() {
    let fresh = || {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk, 100_000).expect("opened");
        for index in 1..=5 {
            append(&mut log, &[entry(index, "payload")]).expect("written");
        }
        (disk, log.position() as usize)
    };
    let (disk, length) = fresh();
    let name = first_segment(&disk);
    let entry_bytes = record::RECORD_BYTES + "payload".len();
    for position in 0..length - entry_bytes {
        let (disk, _) = fresh();
        disk.damage(&name, |bytes| bytes[position] ^= 0x10);
        let before = disk.read(&name).expect("read");
        let refused = open(&disk, 100_000);
        assert!(
            matches!(refused, Err(LogError::Damaged { .. } | LogError::OtherFormat { .. })),
            "a flip at {position} was not seen"
        );
        assert_eq!(disk.read(&name).expect("read"), before, "nothing was changed");
    }
}

#[test]
fn damage_in_an_earlier_segment_is_refused() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 60).expect("opened");
    for index in 1..=3 {
        append(&mut log, &[entry(index, "payload")]).expect("written");
        log.rotate_if_full(|_| None).expect("rotated");
    }
    let names = disk.list().expect("listed");
    disk.damage(&names[0], |bytes| {
        bytes.pop();
    });
    assert!(matches!(open(&disk, 60), Err(LogError::Damaged { .. })));
    disk.remove(&names[1]).expect("removed");
    assert!(matches!(open(&disk, 60), Err(LogError::Damaged { .. })), "a segment is missing");
}

#[test]
fn another_format_is_refused() {
    let disk = SimDisk::new();
    drop(open(&disk, 100).expect("opened"));
    for version in [1, 9] {
        disk.damage(&first_segment(&disk), |bytes| bytes[8] = version);
        assert!(matches!(open(&disk, 100), Err(LogError::OtherFormat { .. })));
    }
}

/// F11: only what every group's checkpoint covers is removed.
#[test]
fn segments_are_purged_only_behind_checkpoints() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 60).expect("opened");
    for index in 1..=4 {
        append(&mut log, &[entry(index, "payload")]).expect("written");
        log.rotate_if_full(|_| None).expect("rotated");
    }
    assert_eq!(log.purge(&BTreeMap::new()).expect("purged"), 0);
    assert_eq!(log.purge(&BTreeMap::from([(GROUP, 2)])).expect("purged"), 2);
    assert_eq!(log.purge(&BTreeMap::from([(GROUP, 99)])).expect("purged"), 2, "the last segment stays");
    disk.power_cycle(|_, _| 0);
    let (_, groups) = Log::open(Arc::new(disk), 60).expect("opened");
    let base = LogId { index: 4, term: 1 };
    assert_eq!(groups[&GROUP], GroupLog { base, ..GroupLog::default() }, "the opening says where the log ended");
}

/// One that cannot be removed stays with all behind it, and the next purge tries again; one that somebody else removed is gone.
#[test]
fn a_segment_that_cannot_be_removed_leaves_no_gap() {
    for (kind, removed) in [(io::ErrorKind::PermissionDenied, 0), (io::ErrorKind::NotFound, 3)] {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk, 60).expect("opened");
        let add = |log: &mut Log, index| {
            append(log, &[entry(index, "payload")]).expect("written");
            log.rotate_if_full(|_| None).expect("rotated");
        };
        (1..=4).for_each(|index| add(&mut log, index));
        for stuck in 0..2 {
            let name = disk.list().expect("listed")[stuck].clone();
            disk.stick(Some((&name, kind)));
            if kind == io::ErrorKind::NotFound {
                disk.stick(None);
                disk.remove(&name).expect("removed behind the log's back");
            }
            let purged = log.purge(&BTreeMap::from([(GROUP, 3)]));
            assert_eq!(purged.map_err(|error| error.kind()).is_ok(), kind == io::ErrorKind::NotFound);
            drop(open(&disk, 60).expect("there is no gap"));
            if removed > 0 {
                break;
            }
        }
        disk.stick(None);
        (5..=6).for_each(|index| add(&mut log, index));
        log.purge(&BTreeMap::from([(GROUP, 5)])).expect("purged");
        let (_, left) = open(&disk, 60).expect("there is no gap");
        assert_eq!(left, [entry(6, "payload")]);
    }
}

/// F10: what could not be written for want of room is written once there is some, and nothing of it twice.
#[test]
fn a_full_disk_loses_nothing() {
    // Nothing is written ahead in a segment that is full.
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 1).expect("opened");
    append(&mut log, &[entry(1, "payload")]).expect("written");
    disk.set_free_bytes(Some(10));
    add(&mut log, &entry(2, "payload"));
    assert_eq!(log.write().map_err(|error| error.kind()), Err(io::ErrorKind::StorageFull));
    disk.set_free_bytes(None);
    log.write().expect("written");
    log.sync(SyncSite::LogRound).expect("synced");
    assert_eq!(open(&disk, 1).expect("opened").1, [entry(1, "payload"), entry(2, "payload")]);
}

/// F10: rounds go on in what was written ahead; the first that does not fit gives the rest of it back.
#[test]
fn a_full_disk_has_room_for_what_was_written_ahead() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 500).expect("opened");
    append(&mut log, &[entry(1, "payload")]).expect("written");
    disk.set_free_bytes(Some(0));
    let mut written = vec![entry(1, "payload")];
    let refused = loop {
        let next = entry(written.len() as u64 + 1, "payload");
        match append(&mut log, std::slice::from_ref(&next)) {
            Ok(()) => written.push(next),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    assert!(written.len() > 5, "{} fit", written.len());
    let name = first_segment(&disk);
    assert_eq!(disk.read(&name).expect("read").len() as u64, log.position(), "the rest is given back");
    disk.set_free_bytes(None);
    log.write().expect("written");
    log.sync(SyncSite::LogRound).expect("synced");
    written.push(entry(written.len() as u64 + 1, "payload"));
    disk.power_cycle(|_, _| 0);
    assert_eq!(open(&disk, 500).expect("opened").1, written);
}

/// Raft, section 5.3: a leader overwrites what was never committed.
#[test]
fn an_entry_takes_the_place_of_what_stands_behind_it() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 10_000).expect("opened");
    append(&mut log, &[entry(1, "a"), entry(2, "b"), entry(3, "c")]).expect("written");
    let other = LogEntry { id: LogId { index: 2, term: 2 }, ..entry(2, "other") };
    append(&mut log, std::slice::from_ref(&other)).expect("written");
    assert_eq!(open(&disk, 10_000).expect("opened").1, [entry(1, "a"), other]);
}

/// Entries overwritten across a segment, of which the older one went.
#[test]
fn an_overwritten_opening_is_read_behind_a_checkpoint() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 60).expect("opened");
    append(&mut log, &[entry(1, "a"), entry(2, "b"), entry(3, "c")]).expect("written");
    log.rotate_if_full(|_| None).expect("rotated");
    let later = |index| LogEntry { id: LogId { index, term: 2 }, ..entry(index, "later") };
    append(&mut log, &[later(2), later(3), later(4)]).expect("written");
    assert_eq!(log.purge(&BTreeMap::from([(GROUP, 2)])).expect("purged"), 0, "the opening reaches to 3");
    assert_eq!(log.purge(&BTreeMap::from([(GROUP, 4)])).expect("purged"), 1);
    assert_eq!(open(&disk, 60).expect("opened").1, [later(2), later(3), later(4)]);
}

#[test]
fn a_gap_between_entries_is_refused() {
    let mut log = GroupLog::default();
    log.put(GROUP, entry(1, "a")).expect("follows");
    assert!(matches!(log.put(GROUP, entry(3, "c")), Err(LogError::Gap { expected: 2, found: 3, .. })));
}

/// The state of every group outlives the segment in which it was written.
#[test]
fn hard_states_and_bases_are_in_every_opening() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 60).expect("opened");
    let hard = HardState { term: 7, vote: 2, commit: 5 };
    log.add_base(GroupId(9), LogId { index: 5, term: 5 });
    log.add_hard_state(GroupId(9), hard);
    append(&mut log, &[entry(1, "a")]).expect("written");
    log.rotate_if_full(|_| None).expect("rotated");
    assert_eq!(log.purge(&BTreeMap::from([(GROUP, 1), (GroupId(9), 5)])).expect("purged"), 1);
    disk.power_cycle(|_, _| 0);
    let (_, groups) = Log::open(Arc::new(disk), 60).expect("opened");
    assert_eq!((groups[&GroupId(9)].base, groups[&GroupId(9)].hard), (LogId { index: 5, term: 5 }, hard));
    assert_eq!(groups[&GROUP].last(), LogId { index: 1, term: 1 });
}

/// A snapshot takes the place of the log.
#[test]
fn a_base_takes_the_place_of_all_entries() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 10_000).expect("opened");
    append(&mut log, &[entry(1, "a"), entry(2, "b")]).expect("written");
    let base = LogId { index: 8, term: 3 };
    log.add_base(GROUP, base);
    append(&mut log, &[LogEntry { id: LogId { index: 9, term: 3 }, ..entry(9, "i") }]).expect("written");
    let (_, groups) = Log::open(Arc::new(disk), 10_000).expect("opened");
    assert_eq!((groups[&GROUP].base, groups[&GROUP].entries.len()), (base, 1));
}

/// The power goes while a segment begins: at any byte of it the log is whole.
#[test]
fn a_torn_opening_is_no_segment() {
    for torn in 0..200 {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk, 60).expect("opened");
        append(&mut log, &[entry(1, "first")]).expect("written");
        log.rotate_if_full(|_| None).expect("rotated");
        let names = disk.list().expect("listed");
        disk.damage(&names[1], |bytes| bytes.truncate(torn));
        let (mut log, entries) = open(&disk, 60).expect("opened");
        assert_eq!(entries, [entry(1, "first")], "torn at {torn}");
        append(&mut log, &[entry(2, "second")]).expect("written");
        assert_eq!(open(&disk, 60).expect("opened").1.len(), 2, "torn at {torn}");
    }
}

/// What a group may lose of its entries if it is told that its log begins behind a base, and of those that follow only some are left:
/// none, whatever is missing of the one write that says so.
#[test]
fn an_opening_that_takes_entries_over_is_there_as_a_whole_or_not_at_all() {
    const IDLE: GroupId = GroupId(9);
    let carried = Carried { base: LogId { index: 1, term: 1 }, entries: vec![entry(2, "second"), entry(3, "third")] };
    let begun = || {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk, 500).expect("opened");
        for entry in [&entry(1, "first"), &carried.entries[0], &carried.entries[1]] {
            log.add_entry(IDLE, entry.id, entry.kind, &entry.payload);
        }
        let mut index = 0;
        while disk.list().expect("listed").len() < 3 {
            index += 1;
            append(&mut log, &[entry(index, "payload")]).expect("written");
            log.rotate_if_full(|group| (group == IDLE).then(|| carried.clone())).expect("rotated");
        }
        (disk, index)
    };
    let (disk, last) = begun();
    let name = disk.list().expect("listed").pop().expect("the one that was begun");
    let written = disk.read(&name).expect("read").len();
    assert!(written > HEADER_BYTES + 5 * record::RECORD_BYTES, "it takes entries over");
    type Loss = fn(&mut Vec<u8>, usize);
    let losses: [(&str, Loss); 3] = [
        ("its beginning is left", |bytes, at| bytes.truncate(at)),
        ("its end is left", |bytes, at| bytes[..at].fill(0)),
        ("its end is not written", |bytes, at| bytes[at..].fill(0)),
    ];
    for (what, loss) in losses {
        for at in 0..=written {
            let (disk, _) = begun();
            disk.damage(&name, |bytes| loss(bytes, at));
            for start in 1..=2 {
                let (mut log, groups) = Log::open(Arc::new(disk.clone()), 500).expect("opened");
                let idle = &groups[&IDLE];
                assert!(idle.entries.ends_with(&carried.entries), "{what} at {at}, start {start}: {idle:?}");
                let end = groups[&GROUP].last().index;
                assert_eq!(end, last + start - 1, "{what} at {at}, start {start}");
                append(&mut log, &[entry(end + 1, "again")]).expect("written");
            }
        }
    }
}

/// A record has the salt of the segment that it was made for.
#[test]
fn what_is_still_to_be_written_goes_to_the_segment_that_it_was_made_for() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 60).expect("opened");
    append(&mut log, &[entry(1, "payload")]).expect("written");
    add(&mut log, &entry(2, "payload"));
    log.rotate_if_full(|_| None).expect("not now");
    append(&mut log, &[entry(3, "payload")]).expect("written");
    log.rotate_if_full(|_| None).expect("rotated");
    append(&mut log, &[entry(4, "payload")]).expect("written");
    assert_eq!(disk.list().expect("listed").len(), 2);
    assert_eq!(open(&disk, 60).expect("opened").1.len(), 4);
}

/// F10: no room for a segment leaves the old one longer, and no trace.
#[test]
fn a_segment_that_finds_no_room_is_not_begun() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 60).expect("opened");
    append(&mut log, &[entry(1, "payload")]).expect("written");
    disk.set_free_bytes(Some(10));
    log.rotate_if_full(|_| None).expect("stays");
    disk.set_free_bytes(None);
    assert_eq!(disk.list().expect("listed").len(), 1);
    append(&mut log, &[entry(2, "payload")]).expect("written");
    assert_eq!(open(&disk, 60).expect("opened").1.len(), 2);
}

/// F10: no descriptor for a segment leaves the old one longer as well.
#[test]
fn a_segment_that_finds_no_descriptor_is_begun_when_there_is_one() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 60).expect("opened");
    disk.set_out_of_descriptors(true);
    for index in 1..=3 {
        append(&mut log, &[entry(index, "payload")]).expect("written");
        log.rotate_if_full(|_| None).expect("stays");
    }
    assert_eq!(disk.list().expect("listed").len(), 1);
    disk.set_out_of_descriptors(false);
    log.rotate_if_full(|_| None).expect("rotated");
    append(&mut log, &[entry(4, "payload")]).expect("written");
    assert_eq!(disk.list().expect("listed").len(), 2);
    disk.power_cycle(|_, _| 0);
    assert_eq!(open(&disk, 60).expect("opened").1.len(), 4);
}

/// F5: a disk that does not answer moves no counter, so that somebody else must be able to see since when it has not.
#[test]
fn who_looks_sees_how_long_the_disk_has_been_at_work() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 10_000).expect("opened");
    let (under_way, seen) = (Arc::clone(log.under_way()), Arc::new(std::sync::Mutex::new(Vec::new())));
    let seen_there = Arc::clone(&seen);
    disk.watch(move |_| {
        seen_there.lock().expect("nobody panics").push(under_way.age());
    });
    append(&mut log, &[entry(1, &"payload".repeat(2000))]).expect("written");
    log.rotate_if_full(|_| None).expect("rotated");
    log.free_bytes().expect("looked at");
    log.purge(&BTreeMap::from([(GROUP, 1)])).expect("purged");
    let during = seen.lock().expect("nobody panics").clone();
    assert!(during.len() >= 9 && during.iter().all(|age| !age.is_zero()), "{during:?}: whatever it does there");
    assert_eq!(log.under_way().age(), Duration::ZERO);
}

/// Where a disk has no room for the second segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoRoom {
    /// For its name.
    Name,
    /// Behind so many bytes of it.
    Behind(usize),
    /// Which is only found out when it is made safe there.
    At(SyncSite),
    /// For more than half of what is to be written ahead, in the first one too; though it seems that there is.
    Ahead,
}

/// A disk that runs full as soon as it has one segment.
struct Full {
    disk: SimDisk,
    at: NoRoom,
}

struct FullFile {
    file: Box<dyn AppendFile>,
    at: NoRoom,
}

fn full<T>() -> io::Result<T> {
    Err(io::ErrorKind::StorageFull.into())
}

impl AppendFile for FullFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.at {
            NoRoom::Behind(room) if bytes.len() > room => self.file.append(&bytes[..room]).and_then(|()| full()),
            _ => self.file.append(bytes),
        }
    }

    fn reserve(&mut self, until: u64) -> io::Result<()> {
        match self.at {
            NoRoom::Ahead => self.file.reserve(until / 2).and_then(|()| full()),
            _ => self.file.reserve(until),
        }
    }

    fn sync(&mut self, site: SyncSite) -> io::Result<()> {
        if self.at == NoRoom::At(site) { full() } else { self.file.sync(site) }
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.truncate(length)
    }
}

impl Disk for Full {
    fn append_to(&self, name: &str) -> io::Result<Box<dyn AppendFile>> {
        match self.at {
            at if at != NoRoom::Ahead && begin_of(name).0 == 0 => self.disk.append_to(name),
            NoRoom::Name => full(),
            at => Ok(Box::new(FullFile { file: self.disk.append_to(name)?, at })),
        }
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.disk.read(name)
    }

    fn open_to_read(&self, name: &str) -> io::Result<Box<dyn ReadFile>> {
        self.disk.open_to_read(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_directory(&self, site: SyncSite) -> io::Result<()> {
        if self.at == NoRoom::At(site) { full() } else { self.disk.sync_directory(site) }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(if self.at == NoRoom::Ahead { u64::MAX } else { 0 })
    }
}

/// A log whose first segment is full, on a disk without room for another.
fn on_full(at: NoRoom) -> (SimDisk, Log) {
    let disk = SimDisk::new();
    drop(open(&disk, 60).expect("begun"));
    let full = Full { disk: disk.clone(), at };
    let (mut log, _) = Log::open(Arc::new(full), 60).expect("opened");
    append(&mut log, &[entry(1, "payload")]).expect("written");
    (disk, log)
}

/// F9, F10: the name of a segment for which there was no room is removed and may come back with a power cut, with anything that was
/// written of it, into the midst of what the old segment has by then.
#[test]
fn a_segment_that_found_no_room_and_comes_back_is_not_believed() {
    let whole = {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk, 60).expect("opened");
        append(&mut log, &[entry(1, "payload")]).expect("written");
        log.rotate_if_full(|_| None).expect("rotated");
        let name = disk.list().expect("listed").pop().expect("two segments");
        disk.read(&name).expect("read").len()
    };
    let kinds = [Unsynced::Lost, Unsynced::Torn, Unsynced::Holed, Unsynced::Kept];
    let mut came_back = 0;
    for room in [NoRoom::Name].into_iter().chain((0..whole).map(NoRoom::Behind)) {
        let (disk, mut log) = on_full(room);
        log.rotate_if_full(|_| None).expect("the old one is just longer");
        append(&mut log, &[entry(2, "payload"), entry(3, "payload")]).expect("written");
        for (names, bytes) in kinds.iter().flat_map(|&names| kinds.map(|bytes| (names, bytes))) {
            let left = disk.after_power_cut(names, bytes);
            came_back += left.list().expect("listed").len() - 1;
            for last in 3..=4 {
                let (mut log, entries) =
                    open(&left, 60).unwrap_or_else(|error| panic!("{room:?}, {names:?}, {bytes:?}: {error}"));
                let indexes: Vec<u64> = entries.iter().map(|entry| entry.id.index).collect();
                assert_eq!(indexes, (1..=last).collect::<Vec<_>>(), "{room:?}, {names:?}, {bytes:?}");
                append(&mut log, &[entry(last + 1, "payload")]).expect("written");
            }
        }
    }
    assert!(came_back >= whole, "it came back {came_back} times");
}

/// F9, F10: the old segment is the last one, though the name of another stands behind it again, and its end may be torn.
#[test]
fn what_was_not_made_safe_beside_a_segment_that_comes_back_is_cut_off() {
    let kinds = [Unsynced::Lost, Unsynced::Torn, Unsynced::Holed, Unsynced::Kept];
    let mut torn = 0;
    for room in 0..HEADER_BYTES {
        let (disk, mut log) = on_full(NoRoom::Behind(room));
        let begun = log.position();
        log.rotate_if_full(|_| None).expect("the old one is just longer");
        append(&mut log, &[entry(2, "payload")]).expect("written");
        add(&mut log, &entry(3, "payload"));
        add(&mut log, &entry(4, "payload"));
        log.write().expect("written");
        for (names, bytes) in kinds.iter().flat_map(|&names| kinds.map(|bytes| (names, bytes))) {
            let left = disk.after_power_cut(names, bytes);
            let came_back = left.list().expect("listed").len() > 1;
            let (mut log, entries) =
                open(&left, 60).unwrap_or_else(|error| panic!("{room} bytes, {names:?}, {bytes:?}: {error}"));
            let last = entries.len() as u64;
            assert!((2..=4).contains(&last), "{room} bytes, {names:?}, {bytes:?}: {last}");
            torn += u32::from(came_back && last < 4);
            assert_eq!(left.list().expect("listed").len(), 1, "it is gone again");
            append(&mut log, &[entry(last + 1, "payload")]).expect("written");
            assert_eq!(open(&left, 60).expect("opened").1.len() as u64, last + 1);
        }
        // Up to where the other was to begin all is safe, and is missed, be it a part of a record or the whole of it.
        for missing in [1, record::RECORD_BYTES + "payload".len()] {
            let left = kinds.map(|names| disk.after_power_cut(names, Unsynced::Kept));
            let left = left.into_iter().find(|left| left.list().expect("listed").len() > 1).expect("it comes back");
            left.damage(&first_segment(&left), |bytes| bytes.truncate(begun as usize - missing));
            for _ in 0..2 {
                assert!(
                    matches!(open(&left, 60), Err(LogError::Damaged { .. })),
                    "{room} bytes, {missing} are missing"
                );
            }
        }
    }
    assert!(torn > 0, "it never came back beside a torn end");
}

/// F10: all of it may be on the disk, and come back after a power cut, so what is written behind it in its place would be called
/// damaged. The node ends over it, as over every sync that fails.
#[test]
fn a_segment_that_was_written_and_not_made_safe_is_not_taken_for_want_of_room() {
    for site in [SyncSite::LogSegmentHeader, SyncSite::LogSegmentName] {
        let (disk, mut log) = on_full(NoRoom::At(site));
        let error = log.rotate_if_full(|_| None).expect_err("it failed");
        assert!(!is_full(&error), "{site}: {error:?}");
        drop(log);
        assert_eq!(open(&disk, 60).expect("opened").1, [entry(1, "payload")], "the next process goes on");
    }
}

/// A segment that several steps are written ahead in, and that is not a multiple of them.
const LARGE_SEGMENT_BYTES: u64 = 2 * AHEAD_BYTES + 1000;

/// A log on real files, and how long the last of them is.
fn real() -> (tempfile::TempDir, Arc<dyn Disk>, Log) {
    let directory = tempfile::tempdir().expect("a directory");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::existing(directory.path()));
    let (log, _) = Log::open(Arc::clone(&disk), LARGE_SEGMENT_BYTES).expect("opened");
    (directory, disk, log)
}

fn last_length(directory: &tempfile::TempDir, disk: &dyn Disk) -> u64 {
    let name = disk.list().expect("listed").pop().expect("a segment");
    directory.path().join(name).metadata().expect("it is there").len()
}

/// As many entries as rounds, each of them small, until `until` says so.
fn fill(log: &mut Log, mut until: impl FnMut(&Log) -> bool) -> u64 {
    let payload = "x".repeat(10_000);
    for index in 1.. {
        append(log, &[entry(index, &payload)]).expect("written");
        log.rotate_if_full(|_| None).expect("rotated");
        if until(log) {
            return index;
        }
    }
    unreachable!("it ends")
}

/// A sync of a small round has neither a length nor blocks to write, but at each step.
#[test]
fn the_log_is_written_ahead_in_steps() {
    let (directory, disk, mut log) = real();
    let mut lengths = BTreeMap::new();
    let last = fill(&mut log, |log| {
        *lengths.entry(last_length(&directory, &*disk)).or_insert(0) += 1;
        assert!(log.position() <= last_length(&directory, &*disk));
        log.position() > AHEAD_BYTES * 3 / 2
    });
    assert_eq!(lengths.keys().copied().collect::<Vec<_>>(), [AHEAD_BYTES, 2 * AHEAD_BYTES]);
    assert!(lengths.values().all(|&rounds| rounds > 10), "{lengths:?}");
    let end = log.position();
    // The process is killed.
    drop(log);
    let (mut log, groups) = Log::open(Arc::clone(&disk), LARGE_SEGMENT_BYTES).expect("opened");
    assert_eq!((groups[&GROUP].entries.len() as u64, log.position(), log.bytes()), (last, end, end));
    assert_eq!(last_length(&directory, &*disk), end, "the rest is cut off");
    append(&mut log, &[entry(last + 1, "again")]).expect("written");
    assert_eq!(last_length(&directory, &*disk), 2 * AHEAD_BYTES);
    assert_eq!(log.bytes(), log.position());
    let end = log.position();
    log.end().expect("ended");
    assert_eq!(last_length(&directory, &*disk), end, "who opens it next finds nothing to cut off");
    append(&mut log, &[entry(last + 2, "again")]).expect("it may go on");
    let (_, groups) = Log::open(disk, LARGE_SEGMENT_BYTES).expect("opened");
    assert_eq!(groups[&GROUP].entries.len() as u64, last + 2);
}

/// One that is not the last may have nothing behind its records.
#[test]
fn a_full_segment_has_its_records_only() {
    let (directory, disk, mut log) = real();
    let last = fill(&mut log, |_| disk.list().expect("listed").len() == 4);
    let names = disk.list().expect("listed");
    for pair in names.windows(2) {
        let [full, next] = [&pair[0], &pair[1]].map(|name| begin_of(name).0);
        let length = directory.path().join(&pair[0]).metadata().expect("it is there").len();
        assert_eq!(length, next - full);
        assert!(length >= LARGE_SEGMENT_BYTES, "{length}");
    }
    let (_, groups) = Log::open(disk, LARGE_SEGMENT_BYTES).expect("opened");
    assert_eq!(groups[&GROUP].entries.len() as u64, last);
}

/// They would be written twice.
#[test]
fn large_rounds_are_not_written_ahead_of() {
    let (directory, disk, mut log) = real();
    let large = "x".repeat(LARGE_ROUND_BYTES);
    for index in 1..=3 {
        append(&mut log, &[entry(index, &large)]).expect("written");
        assert_eq!(last_length(&directory, &*disk), log.position());
    }
    append(&mut log, &[entry(4, "small")]).expect("written");
    assert_eq!(last_length(&directory, &*disk), AHEAD_BYTES);
    for index in 5..30 {
        append(&mut log, &[entry(index, &large)]).expect("written");
    }
    assert_eq!(last_length(&directory, &*disk), log.position(), "they go beyond it");
    let (_, groups) = Log::open(disk, LARGE_SEGMENT_BYTES).expect("opened");
    assert_eq!(groups[&GROUP].entries.len(), 29);
}

/// F10: what is kept free for others, and a disk that is nearly full, are not filled; nor is it looked for at each round.
#[test]
fn the_log_is_not_written_ahead_where_little_is_free() {
    const KEPT_FREE: u64 = 1_000_000;
    for (free, is_ahead) in [(0, false), (KEPT_FREE + AHEAD_BYTES, false), (KEPT_FREE + 2 * AHEAD_BYTES, true)] {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk, LARGE_SEGMENT_BYTES).expect("opened");
        log.keep_free(KEPT_FREE);
        disk.set_free_bytes(Some(free.max(50_000)));
        let mut looked = Vec::new();
        for index in 1..=20 {
            let before = disk.operations();
            append(&mut log, &[entry(index, "payload")]).expect("written");
            // But for the append and the sync.
            if disk.operations() > before + 2 {
                looked.push(index);
            }
            let length = disk.read(&first_segment(&disk)).expect("read").len() as u64;
            assert_eq!(length, if is_ahead { AHEAD_BYTES } else { log.position() }, "{free} bytes are free");
        }
        assert_eq!(looked, [1], "{free} bytes are free");
        // At the next step there may be some.
        disk.set_free_bytes(None);
        let mut index = 20;
        while log.position() <= AHEAD_BYTES {
            index += 1;
            append(&mut log, &[entry(index, &"x".repeat(10_000))]).expect("written");
        }
        assert_eq!(disk.read(&first_segment(&disk)).expect("read").len() as u64, 2 * AHEAD_BYTES);
    }
}

/// F10: it is a help, and nothing that the log needs.
#[test]
fn a_log_that_cannot_be_written_ahead_goes_on() {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(Full { disk: sim.clone(), at: NoRoom::Ahead });
    let (mut log, _) = Log::open(Arc::clone(&disk), 700).expect("opened");
    let mut tried = Vec::new();
    for index in 1..=30 {
        let before = sim.operations();
        append(&mut log, &[entry(index, "payload")]).expect("written");
        if sim.operations() > before + 2 {
            tried.push(log.segments.len());
        }
        log.rotate_if_full(|_| None).expect("rotated");
        let (_, groups) = Log::open(Arc::new(sim.after_kill()), 700).expect("opened");
        assert_eq!(groups[&GROUP].entries.len() as u64, index);
    }
    assert_eq!(tried, (1..=log.segments.len()).collect::<Vec<_>>(), "once in each segment, of one step");
    assert!(tried.len() > 2, "{tried:?}");
}

/// Counts the warnings of a thread.
#[derive(Default)]
struct Warnings(std::sync::atomic::AtomicU64);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// F9: zeros behind the records are no damage and not worth a word. What stands behind zeros is judged as if there were none.
#[test]
fn what_was_written_ahead_is_cut_off() {
    let entries: Vec<_> = (1..=3).map(|index| entry(index, "payload")).collect();
    let record = record::RECORD_BYTES + "payload".len();
    type Change = fn(&mut Vec<u8>, usize, usize);
    type Left = Option<(usize, u64)>;
    // What happens to a file whose records end at the second number, the last of which has the length of the third; how many entries
    // are left, and whether that is reported.
    let changes: [(&str, Change, Left); 6] = [
        ("nothing", |_, _, _| {}, Some((3, 0))),
        ("it is longer", |bytes, _, _| bytes.resize(2_000_000, 0), Some((3, 0))),
        ("garbage behind", |bytes, end, _| bytes[end + 5..end + 100].fill(7), Some((3, 1))),
        ("garbage behind zeros, as a power cut may leave", |bytes, _, _| bytes.extend([1; 50]), Some((3, 1))),
        ("the last record is lost", |bytes, end, record| bytes[end - record..end].fill(0), Some((2, 0))),
        ("what was safe is lost", |bytes, end, record| bytes[end - 2 * record..end - record].fill(0), None),
    ];
    for (what, change, expected) in changes {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk, LARGE_SEGMENT_BYTES).expect("opened");
        for entry in &entries {
            append(&mut log, std::slice::from_ref(entry)).expect("written");
        }
        let end = log.position() as usize;
        let name = first_segment(&disk);
        assert_eq!(disk.read(&name).expect("read").len() as u64, AHEAD_BYTES);
        disk.damage(&name, |bytes| change(bytes, end, record));
        let warnings = Arc::new(Warnings::default());
        let opened = tracing::subscriber::with_default(Arc::clone(&warnings), || open(&disk, LARGE_SEGMENT_BYTES));
        let Some((left, reported)) = expected else {
            assert!(matches!(opened, Err(LogError::Damaged { .. })), "{what}");
            continue;
        };
        let (mut log, found) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(found, entries[..left], "{what}");
        assert_eq!(warnings.0.load(std::sync::atomic::Ordering::Relaxed), reported, "{what}");
        assert_eq!(disk.read(&name).expect("read").len() as u64, log.position(), "{what}");
        append(&mut log, &[entry(left as u64 + 1, "again")]).expect("written");
        disk.power_cycle(|_, _| 0);
        assert_eq!(open(&disk, LARGE_SEGMENT_BYTES).expect("opened").1.len(), left + 1, "{what}");
    }
}

/// F9: what is written ahead stands behind an opening that was safe. Were a damaged one cut off as a torn end, what it says of
/// each group would be gone without a word.
#[test]
fn a_damaged_opening_before_what_was_written_ahead_is_refused() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 60).expect("opened");
    append(&mut log, &[entry(1, "first")]).expect("written");
    log.rotate_if_full(|_| None).expect("rotated");
    let name = disk.list().expect("listed").pop().expect("two segments");
    let opening_end = disk.read(&name).expect("read").len();
    for at in HEADER_BYTES..opening_end {
        let damaged = disk.after_kill();
        damaged.damage(&name, |bytes| {
            bytes[at] ^= 1;
            bytes.resize(1000, 0);
        });
        assert!(matches!(open(&damaged, 60), Err(LogError::Damaged { .. })), "a flip at {at}");
    }
}

/// F9: what stands behind an opening says that it was safe, be it what is written ahead.
#[test]
fn nothing_stands_behind_an_opening_that_is_not_safe() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 500).expect("opened");
    disk.watch(|disk| {
        let left = disk.after_power_cut(Unsynced::Lost, Unsynced::Lost).contents();
        for (name, bytes) in disk.contents() {
            let opening_end = HEADER_BYTES + u32_at(&bytes, HEADER_BYTES - 8).unwrap_or(0) as usize;
            let opening = bytes.get(..opening_end).filter(|_| bytes.len() > opening_end);
            assert!(
                opening.is_none_or(|opening| left.get(&name).is_some_and(|left| left.starts_with(opening))),
                "{name}"
            );
        }
    });
    for index in 1..=30 {
        append(&mut log, &[entry(index, "payload")]).expect("written");
        log.rotate_if_full(|_| None).expect("rotated");
    }
    assert!(disk.list().expect("listed").len() > 3);
}
