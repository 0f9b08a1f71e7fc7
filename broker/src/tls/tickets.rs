//! Tickets with which a client resumes a TLS session without a certificate being shown again.
//!
//! What a server must remember of a session travels with the client, sealed. The keys are not kept anywhere: each is derived
//! from a secret and the number of its epoch, so nodes that share the secret (`tls.ticket_key_file`) open each other's
//! tickets, all change keys at the same time, and nothing has to be agreed on. Without such a file the secret is drawn when
//! the process starts: then only this process resumes, until it ends.
//!
//! When the secret is replaced, tickets of the one before are opened for [`GRACE_SECONDS`] more, and no more are sealed under
//! it: the nodes of a cluster do not all look at their files at the same moment, and a fleet does not make full handshakes
//! because of it. Only a restart forgets a secret at once.
//!
//! A ticket stands for a handshake in which the client was checked. Therefore what it was checked against goes into the
//! keys: with another authority, another list of revoked certificates or another demand, tickets of before open no more,
//! and those of a listener that asks for no certificate are worth nothing on one that does. The certificate itself is in the
//! ticket, and in every ticket that is got by that one; that it has not run out meanwhile is looked at each time
//! ([`super::Endpoint::check_again`]).

use std::fmt;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest;
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;

use super::material::Digest;

/// How long tickets are sealed under one key.
const EPOCH_SECONDS: u64 = 6 * 3600;

/// How long a ticket is good: at the least, as it is opened in the epoch after its own too.
const LIFETIME_SECONDS: u32 = EPOCH_SECONDS as u32;

/// How long tickets under a secret that was replaced are opened.
pub(super) const GRACE_SECONDS: u64 = EPOCH_SECONDS;

/// In front of a ticket: its epoch and the nonce.
const HEADER_BYTES: usize = 8 + NONCE_LEN;

/// Seals and opens tickets.
pub(super) struct Tickets {
    secret: Secret,
    /// The one before it, and the second until which its tickets are opened.
    replaced: Option<(Secret, u64)>,
    /// What clients are checked against.
    policy: Digest,
    random: SystemRandom,
    now_seconds: fn() -> u64,
}

/// What keys are derived from.
#[derive(Clone)]
struct Secret {
    key: Prk,
    /// Tells it from others.
    digest: Digest,
}

impl Secret {
    fn new(purpose: &[u8], secret: &[u8]) -> Option<Self> {
        let digest = digest::digest(&digest::SHA256, secret).as_ref().try_into().ok()?;
        Some(Self { key: Salt::new(HKDF_SHA256, purpose).extract(secret), digest })
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    /// Under the secret in `shared`, or one of this process.
    pub(super) fn new(shared: Option<&[u8]>, policy: Digest) -> Option<Self> {
        let secret = match shared {
            Some(secret) => Secret::new(b"kentongan shared ticket secret", secret)?,
            None => Secret::new(b"kentongan ticket secret", secret_of_process()?)?,
        };
        Some(Self { secret, replaced: None, policy, random: SystemRandom::new(), now_seconds })
    }

    /// The same in the place of `before`, whose tickets it opens for a while. Not those of clients that were checked against
    /// something else.
    pub(super) fn in_place_of(self, before: &Self) -> Self {
        let replaced = if before.secret.digest == self.secret.digest {
            before.replaced.clone()
        } else {
            Some((before.secret.clone(), (self.now_seconds)() + GRACE_SECONDS))
        };
        Self { replaced, ..self }
    }

    fn epoch(&self) -> u64 {
        (self.now_seconds)() / EPOCH_SECONDS
    }

    fn key(&self, secret: &Secret, epoch: u64) -> Option<LessSafeKey> {
        let epoch = epoch.to_be_bytes();
        let info: [&[u8]; 2] = [&epoch, &self.policy];
        let key = secret.key.expand(&info, &AES_256_GCM).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(key)))
    }

    fn open(&self, secret: &Secret, epoch: u64, nonce: [u8; NONCE_LEN], sealed: &[u8]) -> Option<Vec<u8>> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let mut opened = sealed.to_vec();
        let length = self.key(secret, epoch)?.open_in_place(nonce, Aad::empty(), &mut opened).ok()?.len();
        opened.truncate(length);
        Some(opened)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let epoch = self.epoch();
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(HEADER_BYTES + plain.len() + AES_256_GCM.tag_len());
        ticket.extend_from_slice(&epoch.to_be_bytes());
        ticket.extend_from_slice(&nonce);
        let mut sealed = plain.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key(&self.secret, epoch)?.seal_in_place_append_tag(nonce, Aad::empty(), &mut sealed).ok()?;
        ticket.append(&mut sealed);
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (header, sealed) = ticket.split_at_checked(HEADER_BYTES)?;
        let (epoch, nonce) = header.split_at_checked(8)?;
        let epoch = u64::from_be_bytes(epoch.try_into().ok()?);
        // The one before, and that of a node whose clock is ahead.
        if epoch.abs_diff(self.epoch()) > 1 {
            return None;
        }
        let nonce = nonce.try_into().ok()?;
        let replaced = self.replaced.as_ref().filter(|(_, until)| (self.now_seconds)() < *until);
        self.open(&self.secret, epoch, nonce, sealed).or_else(|| self.open(&replaced?.0, epoch, nonce, sealed))
    }
}

/// One for all listeners: what they demand of clients tells their tickets apart.
fn secret_of_process() -> Option<&'static [u8; 32]> {
    static SECRET: OnceLock<Option<[u8; 32]>> = OnceLock::new();
    let draw = || {
        let mut secret = [0; 32];
        SystemRandom::new().fill(&mut secret).ok().map(|()| secret)
    };
    SECRET.get_or_init(draw).as_ref()
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"thirty-two bytes, or a few more.";
    const POLICY: Digest = [7; 32];

    fn at(secret: &[u8], policy: Digest, now_seconds: fn() -> u64) -> Tickets {
        Tickets { now_seconds, ..Tickets::new(Some(secret), policy).unwrap() }
    }

    const FIRST: fn() -> u64 = || 1000 * EPOCH_SECONDS;

    #[test]
    fn a_node_opens_the_tickets_of_another_that_has_the_same_secret() {
        let ticket = at(SECRET, POLICY, FIRST).encrypt(b"session").unwrap();
        assert_eq!(at(SECRET, POLICY, FIRST).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(at(b"another secret of about that length", POLICY, FIRST).decrypt(&ticket), None);
        assert_eq!(Tickets::new(None, POLICY).unwrap().decrypt(&ticket), None);
    }

    /// The nodes of a cluster come to the new secret one after the other.
    #[test]
    fn tickets_of_a_secret_that_was_replaced_are_opened_for_a_while() {
        const OTHER: &[u8] = b"another secret of about that length";
        let before = at(SECRET, POLICY, FIRST);
        let ticket = before.encrypt(b"session").unwrap();
        let opens = |tickets: &Tickets, now: fn() -> u64, ticket: &[u8]| {
            let (secret, replaced) = (tickets.secret.clone(), tickets.replaced.clone());
            Tickets { secret, replaced, now_seconds: now, ..at(SECRET, tickets.policy, now) }.decrypt(ticket).is_some()
        };
        let after = at(OTHER, POLICY, FIRST).in_place_of(&before);
        let still_not_there = || 1000 * EPOCH_SECONDS + GRACE_SECONDS - 1;
        assert!(opens(&after, still_not_there, &ticket));
        assert!(!opens(&after, || 1000 * EPOCH_SECONDS + GRACE_SECONDS, &ticket));
        let new_ticket = after.encrypt(b"session").unwrap();
        assert!(!opens(&before, FIRST, &new_ticket), "the new one is in use");
        // Only another certificate of the server: the grace goes on, and ends when it would have.
        let renewed = at(OTHER, POLICY, still_not_there).in_place_of(&after);
        assert!(opens(&renewed, still_not_there, &ticket) && opens(&renewed, FIRST, &new_ticket));
        assert!(!opens(&renewed, || 1000 * EPOCH_SECONDS + GRACE_SECONDS, &ticket));
        let demanding = at(OTHER, [8; 32], FIRST).in_place_of(&before);
        assert!(!opens(&demanding, FIRST, &ticket), "what clients are checked against is another thing");
    }

    /// Whoever revokes a certificate wants it refused, ticket or not.
    #[test]
    fn tickets_end_with_what_their_clients_were_checked_against() {
        let ticket = at(SECRET, POLICY, FIRST).encrypt(b"session").unwrap();
        assert_eq!(at(SECRET, [8; 32], FIRST).decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_is_opened_in_its_epoch_and_the_next_only() {
        let ticket = at(SECRET, POLICY, FIRST).encrypt(b"session").unwrap();
        let opens = |now| at(SECRET, POLICY, now).decrypt(&ticket).is_some();
        assert!(opens(|| 1001 * EPOCH_SECONDS - 1) && opens(|| 1002 * EPOCH_SECONDS - 1));
        assert!(!opens(|| 1002 * EPOCH_SECONDS));
        assert!(opens(|| 1000 * EPOCH_SECONDS - 1), "made by a node whose clock is ahead");
        assert!(!opens(|| 999 * EPOCH_SECONDS - 1));
    }

    #[test]
    fn a_ticket_that_was_tampered_with_is_none() {
        let tickets = at(SECRET, POLICY, FIRST);
        let ticket = tickets.encrypt(b"session").unwrap();
        for at in 0..ticket.len() {
            let mut other = ticket.clone();
            other[at] ^= 1;
            assert_eq!(tickets.decrypt(&other), None, "byte {at}");
            assert_eq!(tickets.decrypt(&ticket[..at]), None, "cut at {at}");
        }
    }
}
