//! Load, comparison and verification for MQTT brokers.
//!
//! `engine` is the generator; `scenario` uses it, one file a scenario; `measure` counts; `compare`
//! starts brokers and does the rows; `cluster` does so with nodes that are one broker; `faults` does
//! everything to such nodes that they must bear; `abuse` are clients that do so to one broker; `wire` is bytes.

mod abuse;
mod certificates;
mod cli;
mod cluster;
mod compare;
mod engine;
mod faults;
mod figure;
mod fleet;
mod link;
mod measure;
mod nodes;
mod process;
mod quota;
mod report;
mod scenario;
mod wire;

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use cli::{Cli, Command, RunPlan};
use report::Progress;
use scenario::{Broker, Outcome, connect, idle, large, retained, traffic};

fn main() -> ExitCode {
    match start(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kentongan-loadtest: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// True when all went as it should.
fn start(cli: &Cli) -> Result<bool> {
    raise_descriptor_limit().context("raising the limit of open descriptors")?;
    let progress = Progress::new();
    type Scenario<'a> = Box<dyn FnOnce(&Broker) -> Result<Outcome> + 'a>;
    let progress = &progress;
    let (at, scenario): (_, Scenario<'_>) = match &cli.command {
        Command::Compare(arguments) => return compare(arguments, progress),
        Command::Cluster(arguments) => return cluster(arguments, progress),
        Command::Faults(arguments) => return faults(arguments, progress),
        Command::Abuse(arguments) => return abuse(arguments, progress),
        Command::Run(run) => match run.plan() {
            RunPlan::Traffic(plan) => (&run.at, Box::new(move |broker| traffic::run(&plan, broker, progress))),
            RunPlan::Connect(plan) => (&run.at, Box::new(move |broker| connect::run(&plan, broker, progress))),
        },
        Command::Idle(idle) => (&idle.at, Box::new(|broker| idle::run(&idle.plan(), broker, progress))),
        Command::Large(large) => (&large.at, Box::new(|broker| large::run(&large.plan(), broker, progress))),
        Command::Retained(retained) => {
            (&retained.at, Box::new(|broker| retained::run(&retained.plan(), broker, progress)))
        }
    };
    let started = at.start()?;
    let outcome = at.broker(started.as_ref()).and_then(|broker| scenario(&broker));
    progress.clear();
    let outcome = outcome?;
    publish(&outcome, at.json.as_deref())?;
    Ok(outcome.is_clean())
}

fn compare(arguments: &cli::Compare, progress: &Progress) -> Result<bool> {
    let recipe = |text: &str| arguments.programs.recipe(text);
    let plan = compare::Plan {
        a: recipe(&arguments.a),
        b: recipe(&arguments.b),
        rows: compare::rows::select(&arguments.rows, arguments.seconds, arguments.seed)?,
        baseline: compare::rows::baseline(arguments.seconds, arguments.seed),
        rounds: usize::from(arguments.rounds),
    };
    let comparison = compare::run(&plan, progress);
    progress.clear();
    let comparison = comparison?;
    publish(&comparison, arguments.json.as_deref())?;
    let failed = |row: &compare::RowResult| matches!(row.verdict, compare::Verdict::Failed(_));
    Ok(if arguments.enforce { comparison.is_ok() } else { !comparison.rows.iter().any(failed) })
}

fn cluster(arguments: &cli::Cluster, progress: &Progress) -> Result<bool> {
    let results = cluster::run(&arguments.plan(), progress);
    progress.clear();
    let results = results?;
    publish(&results, arguments.json.as_deref())?;
    Ok(if arguments.enforce { results.is_ok() } else { !results.has_failed() })
}

fn faults(arguments: &cli::Faults, progress: &Progress) -> Result<bool> {
    let results = faults::run(&arguments.plan()?, progress);
    progress.clear();
    let results = results?;
    publish(&results, arguments.json.as_deref())?;
    Ok(results.is_ok())
}

fn abuse(arguments: &cli::Abuse, progress: &Progress) -> Result<bool> {
    let results = abuse::run(&arguments.plan()?, progress);
    progress.clear();
    let results = results?;
    publish(&results, arguments.json.as_deref())?;
    Ok(results.is_ok())
}

/// To people on standard output; as JSON where asked for.
fn publish(result: &(impl Serialize + std::fmt::Display), json: Option<&Path>) -> Result<()> {
    let report = report::Report { conditions: report::Conditions::now(), result };
    if json == Some(Path::new("-")) {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    print!("{result}");
    if let Some(path) = json {
        fs::write(path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Every connection is a descriptor, ours and, as brokers inherit the limit, theirs.
fn raise_descriptor_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = report::Table::new(&["", &self.scenario]);
        let mut line = |name: &str, value: String| table.row(vec![name.into(), value]);
        line("published in all", report::count(self.published_in_all as f64));
        line("measured", format!("{:.2} s", self.seconds));
        if self.published + self.delivered > 0 {
            line("published", report::count(self.published as f64));
            line("delivered", report::count(self.delivered as f64));
            line("messages a second", report::count(self.messages_per_second()));
        }
        if let Some(used) = &self.broker_cpu {
            if let Some(ns) = self.cpu_ns_per_message {
                line("broker CPU per message", format!("{ns:.0} ns"));
            }
            line("broker CPU, of one core", format!("{:.1} %", used.share() * 100.0));
        }
        line("generator CPU, of one core", format!("{:.1} %", self.own_share * 100.0));
        if self.own_stall_ms > 0.0 {
            line("generator away at most", report::microseconds(self.own_stall_ms * 1e3));
        }
        if self.latency.count > 0 {
            let us = report::microseconds;
            line("latency p50", us(self.latency.p50_us));
            line("latency p99", us(self.latency.p99_us));
            line("latency p99.9", us(self.latency.p999_us));
            line("latency max", us(self.latency.max_us));
        }
        if let (Some(before), Some(after)) = (self.memory_before, self.memory_after) {
            line("resident before", report::mebibytes(before.resident_bytes));
            line("resident after", report::mebibytes(after.resident_bytes));
            line("resident peak", report::mebibytes(after.peak_bytes));
        }
        for (name, value) in &self.extra {
            let digits =
                if value.abs() < 100.0 && value.fract() != 0.0 { format!("{value:.2}") } else { report::count(*value) };
            line(name, digits);
        }
        let found = &self.findings;
        line(
            "lost / duplicated / out of order",
            format!("{} / {} / {}", found.lost, found.duplicated, found.out_of_order),
        );
        write!(f, "{table}")?;
        if let Some(void) = &self.void {
            writeln!(f, "VOID: {void}")?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        Ok(())
    }
}
