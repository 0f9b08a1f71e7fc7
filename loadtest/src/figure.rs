//! One figure of what was measured: a name, a value, and what is aimed at.

use serde::{Deserialize, Serialize};

use crate::{
    compare::median,
    report::{count, mebibytes, microseconds},
};

/// In what a figure is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Nothing.
    Ratio,
    /// Nanoseconds of CPU.
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// How many.
    Count,
    /// Of a core, 1.0 being all of it.
    Share,
    /// Of memory.
    Bytes,
}

/// What is aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: Unit,
    /// What is aimed at, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
}

impl Figure {
    /// A figure that only informs.
    pub fn new(name: &str, value: f64, unit: Unit) -> Self {
        Self { name: name.to_owned(), value, unit, limit: None }
    }

    /// The same, with a target.
    pub fn limited(self, limit: Limit) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// The same, with what it may be at most.
    pub fn at_most(self, limit: f64) -> Self {
        self.limited(Limit::AtMost(limit))
    }

    /// The same, with what it may be at least.
    pub fn at_least(self, limit: f64) -> Self {
        self.limited(Limit::AtLeast(limit))
    }

    /// Whether it is within its target, if it has one.
    pub fn is_ok(&self) -> bool {
        match self.limit {
            None => true,
            Some(Limit::AtMost(limit)) => self.value <= limit,
            Some(Limit::AtLeast(limit)) => self.value >= limit,
        }
    }

    /// The value, for people.
    pub fn value_text(&self) -> String {
        self.unit.text(self.value)
    }

    /// The target, for people; empty if there is none.
    pub fn limit_text(&self) -> String {
        match self.limit {
            None => String::new(),
            Some(Limit::AtMost(limit)) => format!("≤ {}", self.unit.text(limit)),
            Some(Limit::AtLeast(limit)) => format!("≥ {}", self.unit.text(limit)),
        }
    }

    /// `ok`, `MISSED`, or nothing where there is no target.
    pub fn verdict(&self) -> &'static str {
        match self.limit {
            None => "",
            Some(_) if self.is_ok() => "ok",
            Some(_) => "MISSED",
        }
    }
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.3}"),
            Self::Nanoseconds => format!("{} ns", count(value)),
            Self::Microseconds => microseconds(value),
            Self::Count => count(value),
            Self::Share => format!("{:.1} %", value * 100.0),
            Self::Bytes => mebibytes(value as u64),
        }
    }
}

/// The medians of the rounds, figure by figure; of the targets likewise, which may depend on what the disk did.
/// All rounds have the same figures.
pub fn medians(rounds: &[Vec<Figure>]) -> Vec<Figure> {
    let Some(first) = rounds.first() else {
        return Vec::new();
    };
    let over = |at: usize, of: &dyn Fn(&Figure) -> Option<f64>| {
        median(rounds.iter().filter_map(|figures| of(figures.get(at)?)).collect())
    };
    let each = first.iter().enumerate().map(|(at, figure)| {
        let limit = over(at, &|figure| match figure.limit? {
            Limit::AtMost(limit) | Limit::AtLeast(limit) => Some(limit),
        });
        let limit = figure.limit.zip(limit).map(|(kind, limit)| match kind {
            Limit::AtMost(_) => Limit::AtMost(limit),
            Limit::AtLeast(_) => Limit::AtLeast(limit),
        });
        let value = over(at, &|figure| Some(figure.value)).unwrap_or(f64::NAN);
        Figure { value, limit, ..figure.clone() }
    });
    each.collect()
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.value_text())?;
        match self.limit {
            None => Ok(()),
            Some(_) => write!(f, " ({}: {})", self.limit_text(), self.verdict()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_could_not_be_measured_misses_its_target() {
        let figure = |limit| Figure::new("x", f64::NAN, Unit::Ratio).limited(limit);
        assert!(!figure(Limit::AtMost(2.0)).is_ok());
        assert!(!figure(Limit::AtLeast(2.0)).is_ok());
    }

    #[test]
    fn values_and_targets_are_medians_over_the_rounds() {
        let round = |value, limit| {
            vec![
                Figure::new("a second", value, Unit::Count).limited(Limit::AtLeast(limit)),
                Figure::new("beside", value * 2.0, Unit::Ratio),
            ]
        };
        let figures = medians(&[round(9000.0, 15_000.0), round(12_000.0, 10_000.0), round(11_000.0, 8000.0)]);
        assert_eq!(figures, round(11_000.0, 10_000.0));
        assert_eq!(figures[0].to_string(), "a second: 11,000 (≥ 10,000: ok)");
        assert_eq!(figures[1].verdict(), "");
        assert_eq!(medians(&[]), []);
    }
}
