//! What one family of series is called, and the text form of all.

use std::collections::BTreeMap;

use prometheus::core::Metric as _;
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};
use prometheus::{Histogram, TextEncoder};

/// What the values of a family mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// A state.
    Gauge,
    /// Observations by size.
    Histogram,
}

/// One name with its help and labels.
#[derive(Debug)]
pub struct Family {
    /// The name.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// What its values mean.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}

impl Family {
    /// The names that queries use.
    pub fn names(&self) -> Vec<String> {
        match self.kind {
            Kind::Counter | Kind::Gauge => vec![self.name.to_owned()],
            Kind::Histogram => {
                ["bucket", "sum", "count"].map(|end| format!("{}_{end}", self.name)).into()
            }
        }
    }
}

/// Declares families: a doc comment, an identifier, the kind, the name and the labels.
macro_rules! families {
    ($($(#[doc = $help:literal])+ $id:ident: $kind:ident $name:literal [$($label:literal),*];)*) => {
        $(
            $(#[doc = $help])+
            pub static $id: $crate::observe::metrics::Family = $crate::observe::metrics::Family {
                name: $name,
                help: concat!($($help),+),
                kind: $crate::observe::metrics::Kind::$kind,
                labels: &[$($label),*],
            };
        )*
        static FAMILIES: &[&$crate::observe::metrics::Family] = &[$(&$id),*];
    };
}
pub(super) use families;

/// The answer to one scrape while it is written.
#[derive(Default)]
pub(super) struct Page(BTreeMap<&'static str, MetricFamily>);

impl Page {
    /// One value of a counter or gauge.
    pub(super) fn value(&mut self, family: &'static Family, labels: &[&str], value: f64) {
        let mut metric = proto::Metric::default();
        match family.kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            Kind::Histogram => unreachable!("a histogram is added whole"),
        }
        self.add(family, labels, metric);
    }

    /// All of one histogram.
    pub(super) fn histogram(&mut self, family: &'static Family, labels: &[&str], h: &Histogram) {
        self.add(family, labels, h.metric());
    }

    fn add(&mut self, family: &'static Family, labels: &[&str], mut metric: proto::Metric) {
        debug_assert_eq!(family.labels.len(), labels.len(), "{}", family.name);
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        metric.set_label(family.labels.iter().zip(labels).map(pair).collect());
        self.0.entry(family.name).or_insert_with(|| head(family)).mut_metric().push(metric);
    }

    pub(super) fn text(self) -> String {
        let families: Vec<MetricFamily> = self.0.into_values().collect();
        TextEncoder::new().encode_to_string(&families).expect("no family is empty or nameless")
    }
}

fn head(family: &Family) -> MetricFamily {
    let mut head = MetricFamily::default();
    head.set_name(family.name.to_owned());
    head.set_help(family.help.trim().to_owned());
    head.set_field_type(match family.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    head
}
