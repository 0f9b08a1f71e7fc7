use super::*;

const SITE: SyncSite = SyncSite::LogRound;

/// A file with `synced` safe, of which the first byte differs from those that follow.
fn with(synced: &[u8]) -> (SimDisk, Box<dyn AppendFile>) {
    let disk = SimDisk::new();
    let mut file = disk.append_to("f").expect("made");
    disk.sync_directory(SITE).expect("synced");
    file.append(synced).expect("written");
    file.sync(SITE).expect("synced");
    (disk, file)
}

fn left(disk: &SimDisk, bytes: Unsynced) -> Vec<u8> {
    disk.after_power_cut(Unsynced::Kept, bytes).contents()["f"].clone()
}

fn cycled(disk: &SimDisk, kept: usize) -> Vec<u8> {
    let disk = disk.after_kill();
    disk.power_cycle(|_, _| kept);
    disk.contents()["f"].clone()
}

#[test]
fn room_that_was_reserved_and_not_synced_may_be_lost_in_part() {
    let (disk, mut file) = with(b"abcd");
    file.reserve(12).expect("reserved");
    assert_eq!(disk.contents()["f"], b"abcd\0\0\0\0\0\0\0\0");
    assert_eq!(left(&disk, Unsynced::Lost), b"abcd");
    assert_eq!(left(&disk, Unsynced::Torn), b"abcd\0\0\0\0");
    assert_eq!(left(&disk, Unsynced::Holed), b"abcd\0\0\0\0\0\0\0\0");
    assert_eq!(left(&disk, Unsynced::Kept), b"abcd\0\0\0\0\0\0\0\0");
    file.append(b"efgh").expect("written");
    assert_eq!(left(&disk, Unsynced::Lost), b"abcd");
    assert_eq!(left(&disk, Unsynced::Torn), b"abcdef\0\0");
    assert_eq!(left(&disk, Unsynced::Holed), b"abcd\0\0gh\0\0\0\0");
    assert_eq!(left(&disk, Unsynced::Kept), b"abcdefgh\0\0\0\0");
    assert_eq!(cycled(&disk, 0), b"abcd");
    assert_eq!(cycled(&disk, 3), b"abcdefg");
    assert_eq!(cycled(&disk, 4), b"abcdefgh\0\0\0\0");
}

/// A power cut leaves zeros where something was appended to room that was safe.
#[test]
fn room_that_was_synced_stays_whatever_is_lost_of_what_was_appended_to_it() {
    let (disk, mut file) = with(b"abcd");
    file.reserve(12).expect("reserved");
    file.sync(SITE).expect("synced");
    file.append(b"efgh").expect("written");
    assert_eq!(disk.contents()["f"], b"abcdefgh\0\0\0\0");
    assert_eq!(left(&disk, Unsynced::Lost), b"abcd\0\0\0\0\0\0\0\0");
    assert_eq!(left(&disk, Unsynced::Torn), b"abcdef\0\0\0\0\0\0");
    assert_eq!(left(&disk, Unsynced::Holed), b"abcd\0\0gh\0\0\0\0");
    assert_eq!(left(&disk, Unsynced::Kept), b"abcdefgh\0\0\0\0");
    assert_eq!(cycled(&disk, 0), b"abcd\0\0\0\0\0\0\0\0");
    assert_eq!(cycled(&disk, 1), b"abcde\0\0\0\0\0\0\0");
    file.sync(SITE).expect("synced");
    // Beyond the room as well.
    file.append(b"ijklmn").expect("written");
    assert_eq!(left(&disk, Unsynced::Lost), b"abcdefgh\0\0\0\0");
    assert_eq!(left(&disk, Unsynced::Torn), b"abcdefghijk\0\0");
    assert_eq!(left(&disk, Unsynced::Holed), b"abcdefgh\0\0\0lmn");
    assert_eq!(cycled(&disk, 5), b"abcdefghijklm");
}

#[test]
fn room_that_was_cut_off_comes_back_until_that_is_synced() {
    let (disk, mut file) = with(b"abcd");
    file.reserve(8).expect("reserved");
    file.sync(SITE).expect("synced");
    file.append(b"ef").expect("written");
    file.truncate(6).expect("cut");
    assert_eq!(disk.contents()["f"], b"abcdef");
    assert_eq!(left(&disk, Unsynced::Lost), b"abcd\0\0\0\0");
    assert_eq!(left(&disk, Unsynced::Torn), b"abcde\0");
    assert_eq!(left(&disk, Unsynced::Kept), b"abcdef");
    assert_eq!(cycled(&disk, 0), b"abcd\0\0\0\0");
    file.sync(SITE).expect("synced");
    for bytes in [Unsynced::Lost, Unsynced::Torn, Unsynced::Holed, Unsynced::Kept] {
        assert_eq!(left(&disk, bytes), b"abcdef");
    }
}

#[test]
fn appending_to_reserved_room_takes_none() {
    let (disk, mut file) = with(b"abcd");
    disk.set_free_bytes(Some(8));
    let full = |outcome: io::Result<()>| outcome.map_err(|error| error.kind()) == Err(io::ErrorKind::StorageFull);
    assert!(full(file.reserve(13)));
    assert_eq!(disk.contents()["f"], b"abcd");
    file.reserve(10).expect("reserved");
    assert_eq!(disk.free_bytes().expect("known"), 2);
    file.append(b"efgh").expect("written");
    assert_eq!(disk.free_bytes().expect("known"), 2);
    assert!(full(file.append(b"ijklm")));
    file.append(b"ijkl").expect("written");
    assert_eq!(disk.free_bytes().expect("known"), 0);
    file.truncate(4).expect("cut");
    assert_eq!(disk.free_bytes().expect("known"), 8);
}

/// What the simulated disk shows is what the real one does.
#[test]
fn files_grow_and_shrink_alike_on_both_disks() {
    let directory = tempfile::tempdir().expect("a directory");
    let disks: [Box<dyn Disk>; 2] = [Box::new(RealDisk::existing(directory.path())), Box::new(SimDisk::new())];
    for disk in disks {
        let holds = |expected: &[u8]| assert_eq!(disk.read("f").expect("read"), expected);
        let mut file = disk.append_to("f").expect("made");
        file.append(b"ab").expect("written");
        file.reserve(6).expect("reserved");
        holds(b"ab\0\0\0\0");
        file.append(b"cd").expect("written");
        holds(b"abcd\0\0");
        file.reserve(5).expect("there is that much");
        holds(b"abcd\0\0");
        file.append(b"efgh").expect("written");
        holds(b"abcdefgh");
        file.reserve(200_000).expect("reserved");
        assert_eq!(disk.read("f").expect("read").len(), 200_000);
        file.append(b"ij").expect("written");
        file.truncate(9).expect("cut");
        holds(b"abcdefghi");
        file.append(b"k").expect("written");
        holds(b"abcdefghik");
        file.reserve(12).expect("reserved");
        file.sync(SITE).expect("synced");
        // Who opens it takes what is there for its content.
        let mut file = disk.append_to("f").expect("opened");
        file.append(b"l").expect("written");
        holds(b"abcdefghik\0\0l");
    }
}
