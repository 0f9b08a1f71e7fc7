//! Connections that are accepted and say nothing, and others that stall in a TLS handshake: at once.

use std::{io::Write, net::TcpStream, thread, time::Duration};

use anyhow::{Context, Result};

use super::{
    Plan,
    victim::Victim,
    witness::{Visitor, Witnesses},
};
use crate::{
    figure::{Figure, Unit},
    link::Layer,
    measure::now_ns,
};

/// Connections without a word.
const SILENT: usize = 5_000;

/// Connections with a part of a handshake.
const STALLED: usize = 500;

/// How often all of them come: they are closed after ten seconds, and come again.
const ROUNDS: usize = 3;

/// How long they stay: less than the broker's patience with them.
const STAY: Duration = Duration::from_secs(8);

pub fn run(plan: &Plan) -> Result<Vec<Figure>> {
    let victim = Victim::start(&plan.program, "", &[])?;
    let (metrics, tls) = (victim.metrics(), Layer::tls(false, None)?);
    let plain = Visitor::new("plain", victim.plain, Layer::Plain);
    let witnesses = Witnesses::start(vec![plain.clone(), Visitor::new("TLS", victim.tls, tls.clone())], &plain)?;
    let (mut silent_at_once, mut stalled_at_once, mut opening_ns) = (0.0_f64, 0.0_f64, 0);
    for _ in 0..ROUNDS {
        let began = now_ns();
        let silent: Vec<_> = (0..SILENT).map(|_| TcpStream::connect(victim.plain)).collect();
        let stalled: Vec<_> = (0..STALLED).map(|number| stall(&victim, &tls, number)).collect();
        opening_ns = opening_ns.max(now_ns() - began);
        while now_ns() - began < STAY.as_nanos() as u64 {
            stalled_at_once = stalled_at_once.max(metrics.value("kentongan_tls_handshakes_in_progress")?);
            silent_at_once = silent_at_once.max(metrics.value("process_open_fds")?);
            thread::sleep(Duration::from_millis(100));
        }
        let opened = silent.into_iter().collect::<std::io::Result<Vec<_>>>().context("opening a silent connection")?;
        let stalled = stalled.into_iter().collect::<Result<Vec<_>>>().context("stalling a handshake")?;
        drop((opened, stalled));
    }
    let mut figures = vec![
        Figure::new("descriptors of the broker at once", silent_at_once, Unit::Count)
            .at_least((SILENT + STALLED) as f64),
        Figure::new("stalled handshakes at once", stalled_at_once, Unit::Count).at_least(STALLED as f64),
        Figure::new("until all were open", opening_ns as f64 / 1e3, Unit::Microseconds),
    ];
    figures.extend(witnesses.end(true)?);
    let resident = victim.memory()?.peak_bytes;
    figures.push(Figure::new("resident memory of the broker, peak", resident as f64, Unit::Bytes));
    Ok(figures)
}

/// A connection with nothing of a handshake, with the beginning of a record, or with all of the first message: the broker has
/// done its work for that one, and waits.
fn stall(victim: &Victim, tls: &Layer, number: usize) -> Result<Box<dyn std::any::Any>> {
    let mut socket = TcpStream::connect(victim.tls)?;
    match number % 3 {
        0 => Ok(Box::new(socket)),
        1 => {
            socket.write_all(&[22, 3, 1, 0, 200, 1, 0])?;
            Ok(Box::new(socket))
        }
        _ => {
            let mut link = tls.over(socket, number)?;
            // Of TLS this is the first message; what is to be said waits for the answer, which nobody reads.
            link.write_all(b"never sent")?;
            Ok(Box::new(link))
        }
    }
}
