//! Two brokers, row by row: A, B, A, B, … so that what else the machine does falls on both alike.

pub mod broker;
pub mod rows;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    link::Layer,
    report::{Progress, Table, count, microseconds, nanoseconds},
    scenario::{self, Outcome},
};
use broker::{Recipe, Running};
use rows::{Row, Target, Work};

/// What a comparison is to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The broker that has targets.
    pub a: Recipe,
    /// The broker that it is measured against.
    pub b: Recipe,
    /// What is done.
    pub rows: Vec<Row>,
    /// What rows with a target of their own broker are measured against.
    pub baseline: Option<Work>,
    /// How often each row is done with each broker.
    pub rounds: usize,
}

/// One broker in one row, over all rounds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Side {
    /// Medians over the rounds that are not void: nanoseconds of CPU per message.
    pub cpu_ns_per_message: Option<f64>,
    /// Microseconds.
    pub p50_us: Option<f64>,
    /// Microseconds.
    pub p99_us: Option<f64>,
    /// Published and delivered.
    pub messages_per_second: Option<f64>,
    /// The busiest the generator was.
    pub own_share_max: f64,
    /// Every round.
    pub rounds: Vec<Outcome>,
}

/// How a row came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Within the target.
    Ok,
    /// Above the target.
    Over,
    /// Its figures are not to be used, for this reason.
    Void(String),
    /// A broker lost messages, or worse.
    Failed(String),
}

/// One row of the table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RowResult {
    /// Its name.
    pub row: String,
    /// What it does, in words.
    pub scenario: String,
    /// Broker A.
    pub a: Side,
    /// Broker B.
    pub b: Side,
    /// Broker A in the baseline, or without counting, in the same rounds, where the target refers to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Side>,
    /// Median over the rounds of A / B.
    pub ratio: Option<f64>,
    /// Median over the rounds of A / A in the baseline.
    pub ratio_of_baseline: Option<f64>,
    /// Median over the rounds of A − A in the baseline, in nanoseconds.
    #[serde(default)]
    pub above_baseline_ns: Option<f64>,
    /// What is aimed at.
    pub target: Target,
    /// How it came out.
    pub verdict: Verdict,
}

/// A whole comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    /// Name of broker A.
    pub a: String,
    /// Name of broker B.
    pub b: String,
    /// Rounds of each row.
    pub rounds: usize,
    /// The rows.
    pub rows: Vec<RowResult>,
}

/// Starts both brokers and does all rows.
pub fn run(plan: &Plan, progress: &Progress) -> Result<Comparison> {
    let mut a = Running::start(&plan.a)?;
    let mut b = Running::start(&plan.b)?;
    let mut uncounted = Uncounted::start(plan)?;
    let mut results = Vec::new();
    for row in &plan.rows {
        let mut sides = [Side::default(), Side::default()];
        let mut baseline = Side::default();
        for _ in 0..plan.rounds {
            let layer = row.over.layer()?;
            sides[0].rounds.push(run_once(&row.work, &layer, &plan.a, &mut a, progress)?);
            sides[1].rounds.push(run_once(&row.work, &layer, &plan.b, &mut b, progress)?);
            // In the same round, as what else the machine does changes from minute to minute.
            match (row.target, &plan.baseline, &mut uncounted) {
                (Target::OfBaseline(_) | Target::OfOtherAndAbove(..), Some(work), _) => {
                    baseline.rounds.push(run_once(work, &Layer::Plain, &plan.a, &mut a, progress)?);
                }
                (Target::Uncounted(_), _, Some(Uncounted { recipe, running })) => {
                    baseline.rounds.push(run_once(&row.work, &layer, recipe, running, progress)?);
                }
                _ => {}
            }
        }
        let [a, b] = sides;
        let result = evaluate(row, a, b, baseline);
        progress.say(&result.to_string());
        results.push(result);
    }
    Ok(Comparison { a: plan.a.name(), b: plan.b.name(), rounds: plan.rounds, rows: results })
}

/// Broker A once more, with metrics off.
struct Uncounted {
    recipe: Recipe,
    running: Running,
}

impl Uncounted {
    /// Only if a row asks for it, and A can be told to.
    fn start(plan: &Plan) -> Result<Option<Self>> {
        let is_wanted = plan.rows.iter().any(|row| matches!(row.target, Target::Uncounted(_)));
        let Some(recipe) = plan.a.uncounted().filter(|_| is_wanted) else {
            return Ok(None);
        };
        let running = Running::start(&recipe)?;
        Ok(Some(Self { recipe, running }))
    }
}

/// A broker that ends is started again, for the rows to come.
fn run_once(
    work: &Work,
    layer: &Layer,
    recipe: &Recipe,
    running: &mut Running,
    progress: &Progress,
) -> Result<Outcome> {
    let broker = running.broker_over(layer.clone());
    let outcome = match work {
        Work::Traffic(plan) => scenario::traffic::run(plan, &broker, progress),
        Work::Connect(plan) => scenario::connect::run(plan, &broker, progress),
    };
    let mut outcome =
        outcome.unwrap_or_else(|error| Outcome { failures: vec![format!("{error:#}")], ..Outcome::default() });
    if running.has_ended() {
        outcome.failures.push(format!("the broker ended; {}", running.log_tail()));
        *running = Running::start(recipe)?;
    }
    Ok(outcome)
}

fn evaluate(row: &Row, mut a: Side, mut b: Side, mut baseline: Side) -> RowResult {
    a.summarise();
    b.summarise();
    baseline.summarise();
    let ratio = median_ratio(&a, &b);
    let ratio_of_baseline = median_ratio(&a, &baseline);
    let above_baseline_ns = median_of_rounds(&a, &baseline, |a, baseline| a - baseline);
    let figures = Figures { ratio, ratio_of_baseline, above_baseline_ns };
    let verdict = verdict(row.target, &a, &b, &baseline, figures);
    let (row, scenario, target) = (row.name.into(), row.describe(), row.target);
    let baseline = (!baseline.rounds.is_empty()).then_some(baseline);
    RowResult { row, scenario, a, b, baseline, ratio, ratio_of_baseline, above_baseline_ns, target, verdict }
}

/// Medians over the rounds, of which a target says what they may be.
#[derive(Debug, Clone, Copy)]
struct Figures {
    ratio: Option<f64>,
    ratio_of_baseline: Option<f64>,
    above_baseline_ns: Option<f64>,
}

fn verdict(target: Target, a: &Side, b: &Side, baseline: &Side, figures: Figures) -> Verdict {
    for (side, name) in [(a, "A"), (b, "B"), (baseline, "A in the baseline")] {
        if let Some(failure) = side.rounds.iter().flat_map(|outcome| &outcome.failures).next() {
            return Verdict::Failed(format!("{name}: {failure}"));
        }
    }
    let Figures { ratio, ratio_of_baseline, above_baseline_ns } = figures;
    let (bounds, other) = match target {
        Target::OfOther(limit) => (vec![(ratio, limit)], b),
        Target::OfBaseline(limit) | Target::Uncounted(limit) => (vec![(ratio_of_baseline, limit)], baseline),
        Target::OfOtherAndAbove(limit, above_ns) => (vec![(ratio, limit), (above_baseline_ns, above_ns)], b),
        Target::Nothing => (vec![(ratio, f64::INFINITY)], b),
    };
    if 2 * usable_pairs(a, other) <= a.rounds.len() {
        let void = a.rounds.iter().chain(&other.rounds).find_map(|outcome| outcome.void.clone());
        return Verdict::Void(void.unwrap_or_else(|| "nothing was measured".into()));
    }
    if bounds.iter().any(|(figure, _)| figure.is_none()) {
        return Verdict::Void("the CPU time was not measured".into());
    }
    let is_within = |(figure, limit): &(Option<f64>, f64)| figure.is_some_and(|figure| figure <= *limit);
    if bounds.iter().all(is_within) { Verdict::Ok } else { Verdict::Over }
}

impl Side {
    fn summarise(&mut self) {
        // A void row still shows its figures; its verdict says what they are worth.
        let some_usable = self.rounds.iter().any(is_usable);
        let counts = |outcome: &&Outcome| {
            if some_usable { is_usable(outcome) } else { outcome.is_clean() }
        };
        let over = |figure: &dyn Fn(&Outcome) -> Option<f64>| {
            median(self.rounds.iter().filter(counts).filter_map(figure).collect())
        };
        self.cpu_ns_per_message = over(&|outcome| outcome.cpu_ns_per_message);
        self.p50_us = over(&|outcome| Some(outcome.latency.p50_us));
        self.p99_us = over(&|outcome| Some(outcome.latency.p99_us));
        self.messages_per_second = over(&|outcome| Some(outcome.messages_per_second()));
        self.own_share_max = self.rounds.iter().map(|outcome| outcome.own_share).fold(0.0, f64::max);
    }
}

fn is_usable(outcome: &Outcome) -> bool {
    outcome.void.is_none() && outcome.is_clean()
}

fn usable_pairs(a: &Side, b: &Side) -> usize {
    a.rounds.iter().zip(&b.rounds).filter(|(a, b)| is_usable(a) && is_usable(b)).count()
}

/// The median of the ratios, round by round, over those that are usable on both sides; if none is,
/// over those that are only void.
fn median_ratio(a: &Side, b: &Side) -> Option<f64> {
    median_of_rounds(a, b, |a, b| a / b)
}

/// Likewise, of what `compare` makes of the two figures of a round.
fn median_of_rounds(a: &Side, b: &Side, compare: impl Fn(f64, f64) -> f64) -> Option<f64> {
    let some_usable = usable_pairs(a, b) > 0;
    let counts = |outcome: &Outcome| {
        if some_usable { is_usable(outcome) } else { outcome.is_clean() }
    };
    let figures = a
        .rounds
        .iter()
        .zip(&b.rounds)
        .filter(|(a, b)| counts(a) && counts(b))
        .filter_map(|(a, b)| Some(compare(a.cpu_ns_per_message?, b.cpu_ns_per_message?)));
    median(figures.collect())
}

/// `None` of nothing.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

impl RowResult {
    /// The ratio that the target is about.
    fn figure(&self) -> String {
        let ratio = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.2}"));
        match self.target {
            Target::OfOther(_) | Target::Nothing => ratio(self.ratio),
            Target::OfOtherAndAbove(..) => {
                format!("{} +{} ns", ratio(self.ratio), nanoseconds(self.above_baseline_ns))
            }
            Target::OfBaseline(_) | Target::Uncounted(_) => format!("{} own", ratio(self.ratio_of_baseline)),
        }
    }
}

impl std::fmt::Display for RowResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (a, b) = (nanoseconds(self.a.cpu_ns_per_message), nanoseconds(self.b.cpu_ns_per_message));
        let (row, figure, target, verdict) = (&self.row, self.figure(), self.target, &self.verdict);
        write!(f, "{row}: {a} ns, {b} ns, ratio {figure} (target {target}): {verdict}")
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OfOther(limit) => write!(f, "{limit}"),
            Self::OfBaseline(limit) | Self::Uncounted(limit) => write!(f, "own×{limit}"),
            Self::OfOtherAndAbove(limit, above_ns) => write!(f, "{limit} +{above_ns} ns"),
            Self::Nothing => write!(f, "-"),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ok => write!(f, "ok"),
            Self::Over => write!(f, "OVER"),
            Self::Void(reason) => write!(f, "void: {reason}"),
            Self::Failed(reason) => write!(f, "FAILED: {reason}"),
        }
    }
}

impl Comparison {
    /// Every row is within its target.
    pub fn is_ok(&self) -> bool {
        self.rows.iter().all(|row| row.verdict == Verdict::Ok)
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "A = {}, B = {}; medians of {} rounds; CPU ns per message published or delivered",
            self.a, self.b, self.rounds
        )?;
        let mut table = Table::new(&[
            "row", "A ns", "B ns", "A/B", "target", "A p50", "B p50", "A p99", "B p99", "A msg/s", "B msg/s", "own",
            "verdict",
        ]);
        let time = |value: Option<f64>| value.map_or_else(|| "-".into(), microseconds);
        let number = |value: Option<f64>| value.map_or_else(|| "-".into(), count);
        for row in &self.rows {
            table.row(vec![
                row.row.clone(),
                nanoseconds(row.a.cpu_ns_per_message),
                nanoseconds(row.b.cpu_ns_per_message),
                row.figure(),
                row.target.to_string(),
                time(row.a.p50_us),
                time(row.b.p50_us),
                time(row.a.p99_us),
                time(row.b.p99_us),
                number(row.a.messages_per_second),
                number(row.b.messages_per_second),
                format!("{:.0}/{:.0} %", row.a.own_share_max * 100.0, row.b.own_share_max * 100.0),
                row.verdict.to_string(),
            ]);
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(figures: &[f64]) -> Side {
        let outcome = |ns: &f64| Outcome { cpu_ns_per_message: Some(*ns), ..Outcome::default() };
        Side { rounds: figures.iter().map(outcome).collect(), ..Side::default() }
    }

    fn verdict_of(a: Side, b: Side) -> Verdict {
        let row = rows::select(&["fan-in".into()], 1.0, 0).unwrap().remove(0);
        evaluate(&row, a, b, Side::default()).verdict
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_own_ratios() {
        // A slow moment of the machine hits both brokers of a round.
        let ratio = median_ratio(&side(&[10.0, 100.0, 12.0]), &side(&[100.0, 1000.0, 100.0]));
        assert_eq!(ratio, Some(0.1));
        assert_eq!(verdict_of(side(&[10.0, 100.0, 12.0]), side(&[100.0, 1000.0, 100.0])), Verdict::Ok);
        assert_eq!(verdict_of(side(&[50.0]), side(&[100.0])), Verdict::Over);
    }

    #[test]
    fn a_row_is_void_unless_most_rounds_count() {
        let mut a = side(&[10.0, 10.0, 10.0]);
        a.rounds[0].void = Some("busy".into());
        assert_eq!(verdict_of(a.clone(), side(&[100.0; 3])), Verdict::Ok);
        a.rounds[1].void = Some("busy".into());
        assert_eq!(verdict_of(a, side(&[100.0; 3])), Verdict::Void("busy".into()));
    }

    #[test]
    fn what_counting_costs_is_measured_against_the_same_row_without() {
        let row = rows::select(&["metrics".into()], 1.0, 0).unwrap().remove(0);
        let with = |ns| evaluate(&row, side(&[ns; 3]), side(&[1000.0; 3]), side(&[100.0; 3]));
        assert_eq!(with(114.0).verdict, Verdict::Ok);
        assert_eq!(with(116.0).verdict, Verdict::Over);
        assert_eq!(with(116.0).figure(), "1.16 own");
        let unmeasured = evaluate(&row, side(&[100.0; 3]), side(&[1000.0; 3]), Side::default());
        assert!(matches!(unmeasured.verdict, Verdict::Void(_)), "a broker that cannot be told not to count");
    }

    #[test]
    fn tls_is_held_to_the_other_broker_and_to_our_own_without_it() {
        let row = rows::select(&["tls".into()], 1.0, 0).unwrap().remove(0);
        let result = |ours, other| evaluate(&row, side(&[ours; 3]), side(&[other; 3]), side(&[100.0; 3]));
        assert_eq!(result(590.0, 4000.0).verdict, Verdict::Ok);
        assert_eq!(result(590.0, 4000.0).figure(), "0.15 +490 ns");
        assert_eq!(result(610.0, 4000.0).verdict, Verdict::Over, "more than 500 ns above our own");
        assert_eq!(result(310.0, 1000.0).verdict, Verdict::Over, "more than 0.3 of the other's");
        let unmeasured = evaluate(&row, side(&[100.0; 3]), side(&[1000.0; 3]), Side::default());
        assert!(matches!(unmeasured.verdict, Verdict::Void(_)));
    }

    #[test]
    fn one_loss_fails_a_row() {
        let mut b = side(&[100.0; 3]);
        b.rounds[2].failures.push("1 lost".into());
        assert_eq!(verdict_of(side(&[1.0; 3]), b), Verdict::Failed("B: 1 lost".into()));
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
