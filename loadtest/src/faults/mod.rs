//! The fault lab: a cluster of real processes under load, the faults of docs/reliability.md, and a judgement.
//!
//! `schedule` says what is done, `lab` runs one cluster, `inject` does it to its nodes, `mesh` is the network between the nodes and `machine` their
//! clocks and disks, `members` lets nodes come, go and change; `kentongan_workload` are the clients, `kentongan_history` judges what they saw, and `counts` says whether
//! that was enough to mean anything.

mod counts;
mod inject;
mod lab;
mod machine;
mod members;
mod mesh;
mod schedule;

use std::{
    fmt,
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use kentongan_history::{Promise, SECOND, Settings, Violation, check};
use serde::{Deserialize, Serialize};

use crate::report::{Progress, Table, count};
use counts::{Counts, Episode};
use lab::{Load, Seen};
pub use schedule::{Fault, Schedule};
use schedule::{Injection, Step};

/// Below any of these a run shows nothing.
const ACKNOWLEDGED_MIN: u64 = 30_000;
const TAKEOVERS_MIN: u64 = 200;
const WILLS_MIN: u64 = 100;
const TIGHT_SUBSCRIBES_MIN: u64 = 500;

/// So many kinds of session there are.
const KINDS: usize = 4;

/// QoS 1 and 2 messages in flight to one session: the broker's Receive Maximum, and a margin for what is on its way.
const IN_FLIGHT_MAX: u32 = 128;

/// Of what is wrong, so much is shown.
const SHOWN_MAX: usize = 12;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program of the nodes.
    pub program: PathBuf,
    /// Another version of it, for a rolling upgrade.
    pub other_program: Option<PathBuf>,
    /// What is done to them.
    pub schedule: Schedule,
    /// The faults that were asked for.
    pub faults: Vec<Fault>,
    /// How many clients.
    pub clients: usize,
    /// QoS 1 and 2 messages a second in all.
    pub messages_per_second: f64,
    /// Where the schedule is kept, and the histories and logs of clusters with which something is wrong.
    pub keep: PathBuf,
    /// Keep all histories.
    pub keep_all: bool,
    /// Begin no further cluster after so many minutes.
    pub minutes: Option<f64>,
    /// A fault that could not be injected is no failure.
    pub allow_skips: bool,
    /// Nor is it that little was done.
    pub allow_little: bool,
}

/// A fault, over all times that it was injected.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Which one.
    pub fault: Fault,
    /// What was seen, each time.
    pub episodes: Vec<Episode>,
    /// Broken promises that show after its beginning, before that of the next fault.
    pub violations: u64,
    /// Those of P1: acknowledged messages that did not arrive.
    pub lost: u64,
    /// Why it was not injected, or not each time.
    pub skipped: Vec<String>,
}

/// What was seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// Of what was drawn.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// A row for each fault that was asked for.
    pub rows: Vec<Row>,
    /// What was done in all.
    pub counts: Counts,
    /// Seconds under load.
    pub seconds: f64,
    /// Seconds in which the machine did not let the nodes work: no promise of time ran meanwhile.
    pub stalled_seconds: f64,
    /// What is wrong.
    pub failures: Vec<String>,
    /// Where the schedule, and what is needed to look into failures, lies.
    pub kept: PathBuf,
}

/// Does all of it, one cluster after the other.
pub fn run(plan: &Plan, progress: &Progress) -> Result<Results> {
    let schedule = &plan.schedule;
    ensure!(schedule.nodes >= 3, "of fewer than three nodes none may be lost");
    fs::create_dir_all(&plan.keep).with_context(|| format!("making {}", plan.keep.display()))?;
    let path = plan.keep.join("schedule.json");
    fs::write(&path, serde_json::to_string_pretty(schedule)?)?;
    progress.say(&format!("seed {}, schedule in {}", schedule.seed, path.display()));

    let mut results = Results::new(plan);
    for (number, steps) in schedule.clusters.iter().enumerate() {
        if plan.minutes.is_some_and(|minutes| results.seconds > minutes * 60.0) {
            break;
        }
        progress.at("clusters", number as u64, schedule.clusters.len() as u64);
        let load = Load {
            program: &plan.program,
            other_program: plan.other_program.as_deref(),
            nodes: schedule.nodes,
            clients: plan.clients,
            messages_per_second: plan.messages_per_second,
            seed: schedule.seed.wrapping_add((number as u64) << 32),
        };
        let seen = lab::run(&load, steps, progress).with_context(|| format!("cluster {}", number + 1))?;
        results.take_in(number, seen, steps, plan, progress)?;
    }
    results.judge(plan);
    Ok(results)
}

impl Results {
    fn new(plan: &Plan) -> Self {
        let row = |&fault: &Fault| Row { fault, episodes: Vec::new(), violations: 0, lost: 0, skipped: Vec::new() };
        Self {
            seed: plan.schedule.seed,
            nodes: plan.schedule.nodes,
            rows: plan.faults.iter().map(row).collect(),
            counts: Counts::default(),
            seconds: 0.0,
            stalled_seconds: 0.0,
            failures: Vec::new(),
            kept: plan.keep.clone(),
        }
    }

    /// Nothing is wrong.
    pub fn is_ok(&self) -> bool {
        self.failures.is_empty()
    }

    fn row(&mut self, fault: Fault) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.fault == fault)
    }

    fn take_in(&mut self, number: usize, seen: Seen, steps: &[Step], plan: &Plan, progress: &Progress) -> Result<()> {
        let Seen { history, marks, findings, skipped, stalled, loaded, nodes } = seen;
        let violations = check(&history, &settings(plan.schedule.nodes, steps));
        let (counts, episodes) = counts::read(&history, marks);
        let name = format!("cluster {}", number + 1);
        progress.say(&format!(
            "{name}: {} events, {} acknowledged, {} violations, stalled by the machine for {:.1} s",
            count(history.events().len() as f64),
            count(counts.acknowledged as f64),
            violations.len(),
            stalled.as_secs_f64()
        ));
        if plan.keep_all || !violations.is_empty() || !findings.is_empty() {
            let kept = plan.keep.join(format!("cluster-{}", number + 1));
            fs::create_dir_all(&kept)?;
            history.write_json_lines(BufWriter::new(File::create(kept.join("history.jsonl"))?))?;
            fs::write(kept.join("violations.txt"), texts(&violations).join("\n"))?;
            lab::keep_logs(&nodes, &kept)?;
        }
        for violation in &violations {
            self.attribute(violation, &history, &episodes);
        }
        self.failures.extend(texts(&violations).into_iter().take(SHOWN_MAX).map(|text| format!("{name}: {text}")));
        if violations.len() > SHOWN_MAX {
            self.failures.push(format!("{name}: and {} more broken promises", violations.len() - SHOWN_MAX));
        }
        self.failures.extend(findings.into_iter().map(|finding| format!("{name}: {finding}")));
        for (injection, reason) in skipped {
            if let Some(row) = self.row(injection.fault()) {
                row.skipped.push(reason);
            }
        }
        for episode in episodes {
            if let Some(row) = self.row(episode.mark.fault) {
                row.episodes.push(episode);
            }
        }
        self.counts.add(&counts);
        self.seconds += loaded.as_secs_f64();
        self.stalled_seconds += stalled.as_secs_f64();
        Ok(())
    }

    /// To the last fault that began before the last event which shows it.
    fn attribute(&mut self, violation: &Violation, history: &kentongan_history::History, episodes: &[Episode]) {
        let shown = violation.events.last().map_or(0, |&(index, _)| history.events()[index].at);
        let last_before = episodes.iter().rev().find(|episode| episode.mark.began <= shown).or(episodes.first());
        if let Some(row) = last_before.map(|episode| episode.mark.fault).and_then(|fault| self.row(fault)) {
            row.violations += 1;
            row.lost += u64::from(violation.promise == Promise::P1);
        }
    }

    /// Whether it was enough to mean anything.
    fn judge(&mut self, plan: &Plan) {
        if !plan.allow_skips {
            let skipped = self.rows.iter().flat_map(|row| row.skipped.iter().map(move |reason| (row.fault, reason)));
            let mut texts: Vec<_> = skipped.map(|(fault, why)| format!("{fault:?} was not injected: {why}")).collect();
            texts.dedup();
            self.failures.extend(texts);
        }
        if !plan.allow_little {
            let Counts { acknowledged, takeovers, wills, tight_subscribes, .. } = self.counts;
            let kinds = self.counts.kinds.len() as u64;
            let wanted = [
                ("acknowledged messages", acknowledged, ACKNOWLEDGED_MIN),
                ("takeovers", takeovers, TAKEOVERS_MIN),
                ("wills", wills, WILLS_MIN),
                ("subscribes with a publish within 10 ms of the SUBACK", tight_subscribes, TIGHT_SUBSCRIBES_MIN),
                ("kinds of session", kinds, KINDS as u64),
            ];
            let missing = wanted.into_iter().filter(|(_, found, least)| found < least);
            self.failures.extend(missing.map(|(what, found, least)| {
                format!(
                    "the run does not count: {} {what}, and {} are needed",
                    count(found as f64),
                    count(least as f64)
                )
            }));
        }
    }
}

/// What the checker must know of these faults.
fn settings(nodes: usize, steps: &[Step]) -> Settings {
    // Where most clocks are right, one that is wrong counts for nothing.
    let skew = |step: &Step| match step.injection {
        Injection::Clock { seconds, .. } | Injection::StartWithClock { seconds, .. } if nodes < 3 => {
            seconds.unsigned_abs() * SECOND
        }
        _ => 0,
    };
    Settings {
        in_flight_max: IN_FLIGHT_MAX,
        clock_skew_max: steps.iter().map(skew).max().unwrap_or(0),
        ..Settings::default()
    }
}

fn texts(violations: &[Violation]) -> Vec<String> {
    violations.iter().map(ToString::to_string).collect()
}

/// Reads a schedule that a run kept.
pub fn read_schedule(path: &Path) -> Result<Schedule> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no schedule", path.display()))
}

impl Row {
    /// Seconds until all was acknowledged again, where it can be told: middle and longest.
    fn recovered(&self) -> Option<(f64, f64)> {
        let mut waits: Vec<_> = self.episodes.iter().filter_map(|episode| episode.recovered).collect();
        waits.sort_unstable();
        let seconds = |wait: u64| wait as f64 / SECOND as f64;
        Some((seconds(*waits.get(waits.len() / 2)?), seconds(*waits.last()?)))
    }

    fn cells(&self) -> Vec<String> {
        let sum = |of: fn(&Episode) -> u64| count(self.episodes.iter().map(of).sum::<u64>() as f64);
        let seconds = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.2} s"));
        let recovered = self.recovered();
        vec![
            format!("{:?} {}", self.fault, self.fault.title()),
            self.episodes.len().to_string(),
            seconds(recovered.map(|(middle, _)| middle)),
            seconds(recovered.map(|(_, longest)| longest)),
            sum(|episode| episode.acknowledged),
            sum(|episode| episode.delivered),
            sum(|episode| episode.duplicated),
            count(self.lost as f64),
            count(self.violations as f64),
        ]
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "fault",
            "times",
            "recovered, median",
            "longest",
            "acknowledged",
            "delivered",
            "duplicated",
            "lost",
            "violations",
        ]);
        self.rows.iter().for_each(|row| table.row(row.cells()));
        let sum = |of: fn(&Row) -> u64| count(self.rows.iter().map(of).sum::<u64>() as f64);
        let Counts { acknowledged, delivered, duplicated, takeovers, wills, tight_subscribes, ref kinds } = self.counts;
        let number = |value: u64| count(value as f64);
        table.row(vec![
            "all".into(),
            sum(|row| row.episodes.len() as u64),
            String::new(),
            String::new(),
            number(acknowledged),
            number(delivered),
            number(duplicated),
            sum(|row| row.lost),
            sum(|row| row.violations),
        ]);
        write!(f, "{table}")?;
        for row in &self.rows {
            let mut reasons = row.skipped.clone();
            reasons.dedup();
            for reason in reasons {
                writeln!(f, "NOT INJECTED: {:?} {}: {reason}", row.fault, row.fault.title())?;
            }
        }
        let kinds: Vec<_> = kinds.iter().map(String::as_str).collect();
        writeln!(
            f,
            "{} nodes, seed {}: {} takeovers, {} wills, {} subscribes with a publish within 10 ms of the SUBACK; sessions \
             {}; {:.0} s under load, the machine stalled the nodes for {:.0} s",
            self.nodes,
            self.seed,
            number(takeovers),
            number(wills),
            number(tight_subscribes),
            kinds.join(", "),
            self.seconds,
            self.stalled_seconds
        )?;
        writeln!(f, "kept in {}", self.kept.display())?;
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        Ok(())
    }
}
