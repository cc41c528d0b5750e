//! What is measured besides the cells under load, by name.

/// Figures by name, and what has to be said with them.
#[derive(Default)]
pub struct Facts {
    figures: Vec<(&'static str, f64)>,
    /// Sentences.
    pub notes: Vec<String>,
    /// Answers that were wrong.
    pub errors: Vec<String>,
}

impl Facts {
    /// Keep one.
    pub fn set(&mut self, name: &'static str, value: f64) {
        eprintln!("{name}: {value:.2}");
        self.figures.push((name, value));
    }

    /// One, if it was measured.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// All.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.figures.iter().copied()
    }
}

/// The measurements that are no cells: name, and what it measures.
pub const ALL: [(&str, &str); 7] = [
    ("start", "from exec to the first full tools/list"),
    ("stdio", "one child behind the gateway, and alone"),
    ("sessions", "memory of idle sessions with their streams"),
    ("rounds", "memory over rounds of sessions opened and ended"),
    ("catalog", "10,000 tools after one upstream has changed its list"),
    ("large", "memory while a large answer streams through"),
    ("cores", "two processors against one"),
];
