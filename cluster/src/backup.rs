//! A backup: one file with what all groups of a cluster had, for a new cluster to begin with ([`crate::seed`]).
//!
//! ```text
//! magic "KTGBACK\0" | version u32 | frames
//! frame: length u32 | kind u8 | number u64 | payload | crc u32
//! ```
//!
//! Numbers are little-endian. `length` is that of the payload, `number` counts the frames from 0, `crc` covers everything of the frame before
//! it: so none is missing, comes twice or has moved. First comes the *header*, then of each group a *group* (its number, u16), its
//! checkpoint as nodes send it to each other ([`crate::state::chunks`]) in frames of *data*, and a *group end*; the directory is one of
//! them. Then the *end*, without which a file is no backup, and nothing.
//!
//! What is read is bounded by what is there: nothing is allocated because a length says so.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message as _;

use crate::identity::GroupId;

const MAGIC: &[u8; 8] = b"KTGBACK\0";

/// Raised when the bytes of a backup change their meaning.
pub const FORMAT_VERSION: u32 = 1;

/// Longest payload of a frame; nodes cut what they send much shorter.
const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

const KIND_HEADER: u8 = 1;
const KIND_GROUP: u8 = 2;
const KIND_DATA: u8 = 3;
const KIND_GROUP_END: u8 = 4;
const KIND_END: u8 = 5;

/// What a backup is of.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Header {
    /// The cluster's id.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster_id: Bytes,
    /// The record of its formation.
    #[prost(bytes = "bytes", tag = "2")]
    pub formation: Bytes,
    /// The program's version that wrote it.
    #[prost(string, tag = "3")]
    pub program: String,
    /// When it was begun, by the clock of the machine that wrote it: milliseconds since 1970.
    #[prost(uint64, tag = "4")]
    pub begun_ms: u64,
    /// Groups in it, the directory among them.
    #[prost(uint32, tag = "5")]
    pub groups: u32,
}

/// Why a backup cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file system said no.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// It is something else.
    #[error("{0} is no backup of a cluster")]
    Foreign(PathBuf),
    /// Written by another version.
    #[error(
        "{path} has backup format {found}; this version knows only {FORMAT_VERSION}: use the version that wrote it"
    )]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It was not written to its end, or was cut since.
    #[error(
        "{path} ends at byte {at}, before its end: it was cut, or its backup was interrupted; nothing was restored"
    )]
    Cut {
        /// The file.
        path: PathBuf,
        /// Where it ends.
        at: u64,
    },
    /// It is not what was written.
    #[error("{path} is damaged at byte {at} ({what}): use another backup; nothing was restored")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the frame begins that is not right.
        at: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Writes a backup beside its name, and gives it that name when all of it is safe.
#[derive(Debug)]
pub struct BackupWriter {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    number: u64,
    bytes: u64,
}

impl BackupWriter {
    /// Begins one. Only its owner may read it: it holds what everybody sent.
    ///
    /// # Errors
    /// There is a file of that name, or the file system said no.
    pub fn create(path: &Path, header: &Header) -> Result<Self, BackupError> {
        let at = |error| BackupError::Io { path: path.to_owned(), error };
        if path.try_exists().map_err(at)? {
            return Err(at(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file of this name")));
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
            // What an interrupted one left.
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial).map_err(at)?;
        let file = BufWriter::with_capacity(256 * 1024, file);
        let mut writer = Self { path: path.to_owned(), partial, file, number: 0, bytes: 0 };
        let start = [&MAGIC[..], &FORMAT_VERSION.to_le_bytes()].concat();
        writer.write(&start)?;
        writer.frame(KIND_HEADER, &header.encode_to_vec())?;
        Ok(writer)
    }

    /// From here on comes this group.
    ///
    /// # Errors
    /// The file system said no.
    pub fn begin_group(&mut self, group: GroupId) -> Result<(), BackupError> {
        self.frame(KIND_GROUP, &group.0.to_le_bytes())
    }

    /// A part of the group's checkpoint.
    ///
    /// # Errors
    /// The file system said no.
    pub fn data(&mut self, data: &[u8]) -> Result<(), BackupError> {
        data.chunks(PAYLOAD_BYTES_MAX).try_for_each(|part| self.frame(KIND_DATA, part))
    }

    /// All of the group was written.
    ///
    /// # Errors
    /// The file system said no.
    pub fn end_group(&mut self) -> Result<(), BackupError> {
        self.frame(KIND_GROUP_END, &[])
    }

    /// Bytes so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Everything was written: makes it safe, and gives it its name. Says how long it is.
    ///
    /// # Errors
    /// The file system said no.
    pub fn finish(mut self) -> Result<u64, BackupError> {
        self.frame(KIND_END, &[])?;
        let path = self.path.clone();
        let at = |error| BackupError::Io { path: path.clone(), error };
        self.file.flush().map_err(at)?;
        // These have no sites: no node's disk is concerned.
        self.file.get_ref().sync_all().map_err(at)?;
        fs::rename(&self.partial, &self.path).map_err(at)?;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(at)?;
        Ok(self.bytes)
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> Result<(), BackupError> {
        let mut bytes = Vec::with_capacity(FRAME_BYTES + payload.len());
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        self.number += 1;
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| BackupError::Io { path: self.path.clone(), error })
    }
}

impl Drop for BackupWriter {
    fn drop(&mut self) {
        // It has its real name by now, or is worth nothing. If it stays, the next one removes it.
        let _ = fs::remove_file(&self.partial);
    }
}

/// What a frame has beside its payload.
const FRAME_BYTES: usize = 4 + 1 + 8 + 4;

/// What comes next in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Frame {
    Header(Header),
    Group(GroupId),
    Data(Bytes),
    GroupEnd,
    End,
}

/// Reads a backup from its beginning to its end.
#[derive(Debug)]
pub struct BackupReader<R = BufReader<File>> {
    path: PathBuf,
    file: R,
    header: Header,
    number: u64,
    /// Bytes read.
    at: u64,
    groups: u32,
}

impl BackupReader {
    /// Opens a backup.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn open(path: &Path) -> Result<Self, BackupError> {
        let file = File::open(path).map_err(|error| BackupError::Io { path: path.to_owned(), error })?;
        Self::over(path, BufReader::with_capacity(256 * 1024, file))
    }
}

impl<R: Read> BackupReader<R> {
    /// Reads a backup from anywhere; `path` is what it is called.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn over(path: &Path, file: R) -> Result<Self, BackupError> {
        let header = Header::default();
        let mut reader = Self { path: path.to_owned(), file, header, number: 0, at: 0, groups: 0 };
        let start = reader.take(MAGIC.len() + 4)?;
        let Some(version) = start.strip_prefix(&MAGIC[..]).and_then(|rest| rest.first_chunk::<4>()) else {
            return Err(BackupError::Foreign(reader.path));
        };
        match u32::from_le_bytes(*version) {
            FORMAT_VERSION => {}
            found => return Err(BackupError::OtherFormat { path: reader.path, found }),
        }
        match reader.frame()? {
            Frame::Header(header) => reader.header = header,
            _ => return Err(reader.damaged(reader.at, "it does not begin with a header")),
        }
        Ok(reader)
    }

    /// What it is of.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Goes on to the next group. `None`: there was a good end, and nothing behind it.
    ///
    /// # Errors
    /// It is cut or damaged.
    pub fn next_group(&mut self) -> Result<Option<GroupData<'_, R>>, BackupError> {
        let begun = self.at;
        match self.frame()? {
            Frame::Group(group) => {
                self.groups += 1;
                Ok(Some(GroupData { group, reader: self, ended: false }))
            }
            Frame::End if self.groups != self.header.groups => {
                Err(self.damaged(begun, "it ends before its last group"))
            }
            Frame::End => match self.file.read(&mut [0]) {
                Ok(0) => Ok(None),
                Ok(_) => Err(self.damaged(self.at, "something stands behind its end")),
                Err(error) => Err(BackupError::Io { path: self.path.clone(), error }),
            },
            _ => Err(self.damaged(begun, "a group was to begin")),
        }
    }

    fn damaged(&self, at: u64, what: &'static str) -> BackupError {
        BackupError::Damaged { path: self.path.clone(), at, what }
    }

    /// So many bytes, and no room for more than there are.
    fn take(&mut self, length: usize) -> Result<Vec<u8>, BackupError> {
        let mut bytes = Vec::new();
        let read = self.file.by_ref().take(length as u64).read_to_end(&mut bytes);
        read.map_err(|error| BackupError::Io { path: self.path.clone(), error })?;
        self.at += bytes.len() as u64;
        if bytes.len() < length {
            return Err(BackupError::Cut { path: self.path.clone(), at: self.at });
        }
        Ok(bytes)
    }

    fn frame(&mut self) -> Result<Frame, BackupError> {
        let begun = self.at;
        let mut bytes = self.take(4 + 1 + 8)?;
        let length = bytes.first_chunk::<4>().map_or(0, |length| u32::from_le_bytes(*length) as usize);
        if length > PAYLOAD_BYTES_MAX {
            return Err(self.damaged(begun, "a frame that is too long"));
        }
        bytes.extend(self.take(length + 4)?);
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if crc != crc32fast::hash(body).to_le_bytes() {
            return Err(self.damaged(begun, "its checksum is another"));
        }
        if body[5..13] != self.number.to_le_bytes() {
            return Err(self.damaged(begun, "a frame is missing, or comes twice"));
        }
        self.number += 1;
        let (kind, payload) = (body[4], Bytes::copy_from_slice(&body[13..]));
        match kind {
            KIND_HEADER => match Header::decode(payload) {
                Ok(header) => Ok(Frame::Header(header)),
                Err(_) => Err(self.damaged(begun, "its header cannot be read")),
            },
            KIND_GROUP => match payload.first_chunk::<2>() {
                Some(group) if payload.len() == 2 => Ok(Frame::Group(GroupId(u16::from_le_bytes(*group)))),
                _ => Err(self.damaged(begun, "the number of a group")),
            },
            KIND_DATA => Ok(Frame::Data(payload)),
            KIND_GROUP_END => Ok(Frame::GroupEnd),
            KIND_END => Ok(Frame::End),
            _ => Err(self.damaged(begun, "an unknown kind of frame")),
        }
    }
}

/// The parts of one group's checkpoint. Must be read to its end before the next group.
#[derive(Debug)]
pub struct GroupData<'a, R = BufReader<File>> {
    /// Whose.
    pub group: GroupId,
    reader: &'a mut BackupReader<R>,
    ended: bool,
}

impl<R: Read> Iterator for GroupData<'_, R> {
    type Item = Result<Bytes, BackupError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let begun = self.reader.at;
        let next = match self.reader.frame() {
            Ok(Frame::Data(data)) => return Some(Ok(data)),
            Ok(Frame::GroupEnd) => None,
            Ok(_) => Some(Err(self.reader.damaged(begun, "a group does not end"))),
            Err(error) => Some(Err(error)),
        };
        self.ended = true;
        next
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header { cluster_id: Bytes::from_static(&[7; 16]), groups: 2, program: "test".to_owned(), ..Header::default() }
    }

    /// Two groups, the first in two parts.
    fn write(path: &Path) {
        let mut writer = BackupWriter::create(path, &header()).expect("begun");
        for (group, parts) in [(3, &[&b"one"[..], b"two"][..]), (u16::MAX, &[&b"three"[..]])] {
            writer.begin_group(GroupId(group)).expect("written");
            parts.iter().for_each(|part| writer.data(part).expect("written"));
            writer.end_group().expect("written");
        }
        writer.finish().expect("finished");
    }

    fn bytes() -> Vec<u8> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("backup");
        write(&path);
        fs::read(path).expect("read")
    }

    fn read(bytes: &[u8]) -> Result<Vec<(u16, Vec<u8>)>, BackupError> {
        let mut reader = BackupReader::over(Path::new("backup"), bytes)?;
        let mut groups = Vec::new();
        while let Some(mut data) = reader.next_group()? {
            let parts = data.by_ref().collect::<Result<Vec<_>, _>>()?;
            groups.push((data.group.0, parts.concat()));
        }
        Ok(groups)
    }

    #[test]
    fn a_backup_is_read_as_it_was_written() {
        let expected = vec![(3, b"onetwo".to_vec()), (u16::MAX, b"three".to_vec())];
        assert_eq!(read(&bytes()).expect("whole"), expected);
    }

    /// It holds everybody's messages. What is not finished has not its name.
    #[test]
    fn only_its_owner_reads_it_and_an_unfinished_one_is_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("backup");
        let mut writer = BackupWriter::create(&path, &header()).expect("begun");
        writer.begin_group(GroupId(1)).expect("written");
        assert!(!path.exists());
        drop(writer);
        assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 0);

        fs::write(directory.path().join("backup.partial"), "of one that was killed").expect("written");
        write(&path);
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 1);
        let again = BackupWriter::create(&path, &header());
        assert!(again.is_err_and(|error| error.to_string().contains("there is a file of this name")));
    }

    #[test]
    fn one_that_is_cut_anywhere_is_refused() {
        let whole = bytes();
        for length in 0..whole.len() {
            let refused = read(&whole[..length]).expect_err("cut");
            assert!(matches!(refused, BackupError::Cut { at, .. } if at == length as u64), "{length}: {refused}");
        }
        assert!(matches!(read(&[&whole[..], b"x"].concat()), Err(BackupError::Damaged { .. })));
    }

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        let whole = bytes();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
    }

    /// Each frame is right by itself.
    #[test]
    fn a_frame_that_is_left_out_or_repeated_is_missed() {
        let whole = bytes();
        let mut frames = Vec::new();
        let mut at = MAGIC.len() + 4;
        while at < whole.len() {
            let length = u32::from_le_bytes(*whole[at..].first_chunk::<4>().expect("a length")) as usize + FRAME_BYTES;
            frames.push(&whole[at..at + length]);
            at += length;
        }
        for left_out in 0..frames.len() {
            let mut fewer = frames.clone();
            let frame = fewer.remove(left_out);
            assert!(read(&[&whole[..12], &fewer.concat()].concat()).is_err(), "without {left_out}");
            fewer.insert(left_out, frame);
            fewer.insert(left_out, frame);
            assert!(read(&[&whole[..12], &fewer.concat()].concat()).is_err(), "{left_out} twice");
        }
    }

    proptest! {
        /// Whatever the bytes are, also with checksums that are right: no panic, and nothing allocated on trust.
        #[test]
        fn bytes_that_nobody_wrote_are_refused(frames in prop::collection::vec((0u8..7, prop::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let mut bytes = [&MAGIC[..], &FORMAT_VERSION.to_le_bytes()].concat();
            for (number, (kind, payload)) in frames.iter().enumerate() {
                let from = bytes.len();
                bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
                bytes.push(*kind);
                bytes.extend_from_slice(&(number as u64).to_le_bytes());
                bytes.extend_from_slice(payload);
                let crc = crc32fast::hash(&bytes[from..]);
                bytes.extend_from_slice(&crc.to_le_bytes());
            }
            let mut reader = match BackupReader::over(Path::new("backup"), &bytes[..]) {
                Ok(reader) => reader,
                Err(_) => return Ok(()),
            };
            while let Ok(Some(data)) = reader.next_group() {
                let group = data.group;
                if let Ok(unpacked) = crate::state::Unpacked::begin(group, data) {
                    for pair in unpacked {
                        if pair.is_err() {
                            break;
                        }
                    }
                }
            }
        }
    }
}
