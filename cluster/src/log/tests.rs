use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::disk::SimDisk;

fn record(index: u64, payload: &str) -> Record {
    Record { group: GroupId(3), index, payload: Bytes::copy_from_slice(payload.as_bytes()) }
}

fn open(disk: &SimDisk, segment_bytes: u64) -> Result<(Log, Vec<Record>), LogError> {
    let mut records = Vec::new();
    let log = Log::open(Arc::new(disk.clone()), segment_bytes, |record| records.push(record))?;
    Ok((log, records))
}

fn append(log: &mut Log, records: &[Record]) -> io::Result<()> {
    for record in records {
        log.add(record);
    }
    log.write()?;
    log.sync(SyncSite::LogRound)
}

#[test]
fn what_was_synced_is_read_again_over_segments() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 100).expect("opened");
    let records: Vec<_> = (1..=20).map(|index| record(index, "some payload")).collect();
    for record in &records {
        append(&mut log, std::slice::from_ref(record)).expect("written");
        log.rotate_if_full().expect("rotated");
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
        append(&mut log, &[record(1, "first"), record(2, "second")]).expect("written");
        log.add(&record(3, "third"));
        log.add(&record(4, "fourth"));
        log.write().expect("written");
        disk.power_cycle(|_, unsynced| torn.min(unsynced));
        let (mut log, records) = open(&disk, 1000).expect("opened");
        assert!(records.len() >= 2 && records.len() <= 4, "torn at {torn}: {}", records.len());
        let next = records.len() as u64 + 1;
        append(&mut log, &[record(next, "again")]).expect("written");
        disk.power_cycle(|_, _| 0);
        assert_eq!(open(&disk, 1000).expect("opened").1.len() as u64, next);
    }
}

/// F9: a bit flipped in what was acknowledged is detected wherever a later record vouches for it, and nothing is cut off.
#[test]
fn a_flipped_bit_in_the_middle_is_refused_and_not_repaired() {
    let fresh = || {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk, 100_000).expect("opened");
        for index in 1..=5 {
            append(&mut log, &[record(index, "payload")]).expect("written");
        }
        disk
    };
    let name = segment_name(0);
    let length = fresh().read(&name).expect("read").len();
    let record_bytes = RECORD_BYTES + "payload".len();
    for position in 0..length - record_bytes {
        let disk = fresh();
        disk.damage(&name, |bytes| bytes[position] ^= 0x10);
        let before = disk.read(&name).expect("read");
        let refused = open(&disk, 100_000);
        assert!(
            matches!(refused, Err(LogError::Damaged { .. } | LogError::NewerFormat { .. })),
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
        append(&mut log, &[record(index, "payload")]).expect("written");
        log.rotate_if_full().expect("rotated");
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
fn a_newer_format_is_refused() {
    let disk = SimDisk::new();
    drop(open(&disk, 100).expect("opened"));
    disk.damage(&segment_name(0), |bytes| bytes[8] = 9);
    assert!(matches!(open(&disk, 100), Err(LogError::NewerFormat { found: 9, .. })));
}

/// F11: only what every group's checkpoint covers is removed.
#[test]
fn segments_are_purged_only_behind_checkpoints() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 60).expect("opened");
    for index in 1..=4 {
        append(&mut log, &[record(index, "payload")]).expect("written");
        log.rotate_if_full().expect("rotated");
    }
    assert_eq!(log.purge(&BTreeMap::new()).expect("purged"), 0);
    assert_eq!(log.purge(&BTreeMap::from([(GroupId(3), 2)])).expect("purged"), 2);
    assert_eq!(log.purge(&BTreeMap::from([(GroupId(3), 99)])).expect("purged"), 2, "the last segment stays");
    disk.power_cycle(|_, _| 0);
    assert_eq!(open(&disk, 60).expect("opened").1, []);
}

/// F10: what could not be written for want of room is written once there is some, and nothing of it twice.
#[test]
fn a_full_disk_loses_nothing() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 1000).expect("opened");
    append(&mut log, &[record(1, "payload")]).expect("written");
    disk.set_free_bytes(Some(10));
    log.add(&record(2, "payload"));
    assert_eq!(log.write().map_err(|error| error.kind()), Err(io::ErrorKind::StorageFull));
    disk.set_free_bytes(None);
    log.write().expect("written");
    log.sync(SyncSite::LogRound).expect("synced");
    assert_eq!(open(&disk, 1000).expect("opened").1, [record(1, "payload"), record(2, "payload")]);
}
