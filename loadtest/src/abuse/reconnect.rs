//! All lose their connections at once, and all come back at once.

use std::{
    net::{IpAddr, Ipv4Addr},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{
    Plan,
    tokens::Issuer,
    victim::{Users, Victim},
    witness::{Visitor, Witnesses},
};
use crate::{
    figure::{Figure, Unit},
    fleet::{self, Fleet},
    link::Layer,
    measure::{CpuSample, SECOND, now_ns},
    scenario::run_number,
};

/// All are back within this.
const BACK_US_MAX: f64 = 60e6;

/// The same, if each of them has a password that was not verified yet.
const COLD_US_MAX: f64 = 300e6;

/// How long they are waited for.
const PATIENCE_NS: u64 = 600 * SECOND;

/// New connections a second while everything is still well.
const OPENED_PER_SECOND: u64 = 1000;

/// Certificates that the clients share: one for each would take this program longer than what it measures.
const CERTIFICATES: usize = 100;

/// Users that come from elsewhere meanwhile, each of them once.
const VISITORS: usize = 10_000;

/// Between passwords from elsewhere: each costs the thread that verifies them as much as one of those that are waited for.
const PASSWORD_PAUSE: Duration = Duration::from_millis(500);

/// By what the broker knows its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Not at all.
    Nothing,
    /// A certificate.
    Certificate,
    /// User name and password.
    Password,
    /// A token.
    Token,
}

pub fn run(plan: &Plan, by: By) -> Result<Vec<Figure>> {
    let (users, strangers) = (Users::new("member", plan.clients), Users::new("stranger", VISITORS));
    let issuer = Issuer::new()?;
    let victim = match by {
        By::Password => Victim::start(&plan.program, "", &[&users, &strangers])?,
        By::Token => Victim::start(&plan.program, &issuer.settings(), &[])?,
        By::Nothing | By::Certificate => Victim::start(&plan.program, "", &[])?,
    };
    let run = run_number(plan.seed);
    let mut fleet = match by {
        By::Nothing => fleet::Plan::new(victim.plain, plan.clients, run),
        By::Certificate => {
            fleet::Plan { layers: certified(&victim)?, ..fleet::Plan::new(victim.certified, plan.clients, run) }
        }
        By::Password => fleet::Plan { logins: users.logins(), ..fleet::Plan::new(victim.passwords, plan.clients, run) },
        By::Token => fleet::Plan {
            logins: issuer.logins("member", plan.clients)?,
            ..fleet::Plan::new(victim.passwords, plan.clients, run)
        },
    };
    fleet.seed = plan.seed;
    let plain = Visitor::new("plain", victim.plain, Layer::Plain);
    let mut visitors = vec![plain.clone()];
    match by {
        By::Nothing => {}
        By::Certificate => visitors.push(Visitor::new("TLS", victim.tls, Layer::tls(false, None)?)),
        By::Password => visitors.push(Visitor {
            // The broker lets addresses take turns.
            from: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)),
            logins: strangers.logins(),
            pause: PASSWORD_PAUSE,
            ..Visitor::new("password, from elsewhere", victim.passwords, Layer::Plain)
        }),
        By::Token => visitors.push(Visitor {
            logins: issuer.logins("stranger", VISITORS)?,
            ..Visitor::new("token", victim.passwords, Layer::Plain)
        }),
    }
    let mut figures = Vec::new();
    let is_new_to_broker = matches!(by, By::Password | By::Token);
    let fleet = if is_new_to_broker {
        let witnesses = Witnesses::start(visitors.clone(), &plain)?;
        let watch = Watch::begin(&victim)?;
        let fleet = Fleet::start(fleet)?;
        figures.extend(watch.until_served(
            "never seen",
            &fleet,
            plan.clients,
            if by == By::Password { COLD_US_MAX } else { BACK_US_MAX },
        )?);
        let refused = victim.metrics().labelled("kentongan_authentications_total", "busy")?;
        figures.push(Figure::new("never seen: told to come again", refused as f64, Unit::Count));
        figures.extend(of("never seen", witnesses.end(true)?));
        fleet
    } else {
        fleet.opened_per_second = OPENED_PER_SECOND;
        let fleet = Fleet::start(fleet)?;
        Watch::begin(&victim)?.until_served("", &fleet, plan.clients, f64::INFINITY)?;
        fleet
    };
    let witnesses = Witnesses::start(visitors, &plain)?;
    let watch = Watch::begin(&victim)?;
    fleet.cut()?;
    figures.extend(watch.until_served("back", &fleet, plan.clients, BACK_US_MAX)?);
    figures.extend(of("back", witnesses.end(false)?));
    let came = fleet.end()?;
    figures.push(Figure::new("CONNECT that was refused or broken off", came.refused as f64, Unit::Count));
    figures.push(Figure::new("sessions that were lost", came.lost_sessions as f64, Unit::Count).at_most(0.0));
    Ok(figures)
}

fn certified(victim: &Victim) -> Result<Vec<Layer>> {
    let layer = |number| Layer::tls(false, Some(&victim.certificates.client(&format!("member{number}"))?));
    (0..CERTIFICATES).map(layer).collect()
}

fn of(what: &str, figures: Vec<Figure>) -> impl Iterator<Item = Figure> {
    figures.into_iter().map(move |figure| Figure { name: format!("{what}: {}", figure.name), ..figure })
}

/// From when it begins until all are served.
struct Watch {
    pid: u32,
    began_ns: u64,
    cpu: CpuSample,
}

impl Watch {
    fn begin(victim: &Victim) -> Result<Self> {
        Ok(Self { pid: victim.pid(), began_ns: now_ns(), cpu: CpuSample::of(victim.pid())? })
    }

    fn until_served(self, what: &str, fleet: &Fleet, clients: usize, limit_us: f64) -> Result<Vec<Figure>> {
        let mut half_ns = None;
        while fleet.served() < clients {
            fleet.check()?;
            let passed = now_ns() - self.began_ns;
            ensure!(passed < PATIENCE_NS, "{} of {clients} clients were served", fleet.served());
            if fleet.served() >= clients / 2 {
                half_ns.get_or_insert(passed);
            }
            thread::sleep(Duration::from_millis(2));
        }
        let all_ns = now_ns() - self.began_ns;
        let cpu = CpuSample::of(self.pid)?.since(&self.cpu);
        let us = |ns: u64| ns as f64 / 1e3;
        Ok(vec![
            Figure::new(&format!("{what}: half of all clients"), us(half_ns.unwrap_or(all_ns)), Unit::Microseconds),
            Figure::new(&format!("{what}: all clients"), us(all_ns), Unit::Microseconds).at_most(limit_us),
            Figure::new(
                &format!("{what}: broker CPU a client"),
                us(cpu.on_cpu_ns) / clients as f64,
                Unit::Microseconds,
            ),
        ])
    }
}
