//! Packets that are almost right: nothing they contain may make the codec panic, and whatever it takes it must give back.
//!
//! `KENTONGAN_MUTATIONS` says how many (200,000 if it is not set), `KENTONGAN_SEED` repeats a run.

mod judge;
mod samples;

use judge::{decode, encode, judge};
use kentongan_proto::mqtt::codec::{self, FrameStatus, Limits};
use samples::{VERSIONS, packets};

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// What is written is what was meant, byte by byte as it arrives.
#[test]
fn every_packet_survives_encoding_however_it_is_cut() {
    for version in VERSIONS {
        for (sender, packet) in packets(version) {
            let bytes = encode(&packet, version);
            assert_eq!(bytes.len(), codec::encoded_len(&packet, version), "{packet:?}");
            assert_eq!(decode(&bytes, version, sender).as_ref(), Some(&packet));
            for end in 0..bytes.len() {
                let status = codec::split_frame(&bytes[..end], sender, &Limits::default());
                match status {
                    Ok(FrameStatus::Incomplete { needed }) => assert!(needed == 0 || needed == bytes.len()),
                    other => panic!("cut at {end}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn mutated_packets_never_panic_and_what_is_taken_is_given_back() {
    let count = std::env::var("KENTONGAN_MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000_u64);
    let seed = std::env::var("KENTONGAN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5EED_u64);
    println!("KENTONGAN_SEED={seed}");
    let mut random = Random(seed);
    let valid: Vec<_> = VERSIONS
        .iter()
        .flat_map(|&version| {
            packets(version).into_iter().map(move |(sender, packet)| (version, sender, encode(&packet, version)))
        })
        .collect();
    let (mut taken, mut refused) = (0_u64, 0_u64);
    for _ in 0..count {
        let (version, sender, original) = &valid[random.below(valid.len())];
        let mut bytes = original.clone();
        for _ in 0..=random.below(4) {
            mutate(&mut bytes, &valid[random.below(valid.len())].2, &mut random);
        }
        if judge(&bytes, *version, *sender) > 0 {
            taken += 1;
        } else {
            refused += 1;
        }
    }
    println!("{taken} taken, {refused} refused");
    assert!(taken > count / 1000 && refused > count / 10, "the mutations are no trial");
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    if bytes.is_empty() {
        bytes.extend_from_slice(other);
        return;
    }
    let at = random.below(bytes.len());
    match random.below(7) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 => bytes.truncate(at),
        3 => bytes.insert(at, random.next() as u8),
        4 => {
            bytes.remove(at);
        }
        5 => {
            let from = random.below(other.len());
            bytes.splice(at..at, other[from..].iter().copied());
        }
        // Remaining Length as it now is, so that the mutation reaches the fields behind it.
        _ => {
            if bytes.len() > 2 && bytes.len() < 130 {
                bytes[1] = (bytes.len() - 2) as u8;
            }
        }
    }
}
