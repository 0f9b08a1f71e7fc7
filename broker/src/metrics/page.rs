//! The text that Prometheus reads, for what is read from its owners when somebody asks rather than counted here.

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;

use kentongan_cluster::times::{BOUNDS, Times};

use super::{Family, Kind};

/// A gauge, and how it is read.
pub(super) type Read<T> = (Family, fn(&T) -> f64);

/// The same of what may not be known.
pub(super) type ReadIfKnown<T> = (Family, fn(&T) -> Option<f64>);

/// A counter, and where it is.
pub(super) type Counted<T> = (Family, fn(&T) -> &AtomicU64);

/// A value of a label, what it means, and where its counter is.
pub(super) type CountedBy<T> = (&'static str, &'static str, fn(&T) -> &AtomicU64);

/// Appends families to a text.
pub(super) struct Page<'a>(pub(super) &'a mut String);

impl Page<'_> {
    /// A family with its one value.
    pub(super) fn one(&mut self, family: &Family, value: f64) {
        self.head(family);
        let _ = write!(self.0, "{} {value}\n\n", family.name);
    }

    /// A family with a value for each of these values of its label; if there are none, it is left out.
    pub(super) fn each<L: std::fmt::Display>(&mut self, family: &Family, values: impl IntoIterator<Item = (L, f64)>) {
        let label = family.label.map_or("", |label| label.name);
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return;
        }
        self.head(family);
        for (of, value) in values {
            let _ = writeln!(self.0, "{}{{{label}=\"{}\"}} {value}", family.name, escaped(&of.to_string()));
        }
        self.0.push('\n');
    }

    /// A family of times.
    pub(super) fn times(&mut self, family: &Family, times: &Times) {
        self.head(family);
        let name = family.name;
        let bounds = BOUNDS.iter().map(|bound| bound.as_secs_f64().to_string()).chain([String::from("+Inf")]);
        let mut count = 0;
        for (bound, more) in bounds.zip(times.buckets()) {
            count += more;
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = write!(self.0, "{name}_sum {}\n{name}_count {count}\n\n", times.sum().as_secs_f64());
    }

    fn head(&mut self, family: &Family) {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let (name, help) = (family.name, escaped(&family.description()));
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }
}

/// What operators chose, the names of nodes, may be anything.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::counters::LabelInfo;
    use super::*;

    fn family(kind: Kind, label: Option<LabelInfo>) -> Family {
        Family { name: "kentongan_x", kind, doc: &[" One.", " Two."], label }
    }

    #[test]
    fn a_label_may_be_anything() {
        let label = LabelInfo { name: "peer", values: &[], meanings: &["Who."] };
        let mut text = String::new();
        Page(&mut text).each(&family(Kind::Gauge, Some(label)), [("a\"b\\c\nd", 1.0), ("e", 0.5)]);
        let expected = "# HELP kentongan_x One. Two.\n# TYPE kentongan_x gauge\n\
                        kentongan_x{peer=\"a\\\"b\\\\c\\nd\"} 1\nkentongan_x{peer=\"e\"} 0.5\n\n";
        assert_eq!(text, expected);
        Page(&mut text).each(&family(Kind::Gauge, Some(label)), [("", 0.0); 0]);
        assert_eq!(text, expected, "nothing is said of a family without series");
    }

    #[test]
    fn each_bucket_of_times_holds_those_before_it() {
        let times = Times::default();
        times.record(Duration::from_micros(70));
        times.record(Duration::from_millis(2));
        times.record(Duration::from_secs(60));
        let mut text = String::new();
        Page(&mut text).times(&family(Kind::Histogram, None), &times);
        for line in [
            "# TYPE kentongan_x histogram",
            "kentongan_x_bucket{le=\"0.0001\"} 1",
            "kentongan_x_bucket{le=\"0.001\"} 1",
            "kentongan_x_bucket{le=\"0.0025\"} 2",
            "kentongan_x_bucket{le=\"10\"} 2",
            "kentongan_x_bucket{le=\"+Inf\"} 3",
            "kentongan_x_sum 60.00207",
            "kentongan_x_count 3",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is not in {text}");
        }
    }
}
