//! The figures that are kept beside this benchmark, and what a new one means beside them.

use std::fmt::{self, Write as _};
use std::process::Command;

/// How far a figure may drift upwards. On a machine that nobody else uses, runs of one program
/// differ by a tenth of it.
const DRIFT_MAX: f64 = 0.03;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
const HEAD: &str =
    "# Instructions per call; written by `cargo bench --bench instructions -- --accept`.";
const ACCEPT: &str = "cargo bench --profile dev --bench instructions -- --accept";

/// Figures by scenario.
pub type Figures<'a> = [(&'a str, u64)];

/// What `instructions.txt` says.
pub struct Kept {
    /// What it was made with.
    made_with: String,
    figures: Vec<(String, u64)>,
}

/// What follows.
pub enum Verdict {
    /// No figures to compare with, and why.
    Incomparable(String),
    /// As expected.
    Same,
    /// These cost clearly less.
    Better(String),
    /// These cost clearly more.
    Worse(String),
}

impl Kept {
    /// The kept figures, if there are any.
    pub fn read() -> Option<Kept> {
        let text = std::fs::read_to_string(PATH).ok()?;
        let mut lines = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
        let made_with = lines.next()?.to_owned();
        let figures = lines.filter_map(|line| {
            let (name, figure) = line.split_once(' ')?;
            Some((name.to_owned(), figure.trim().parse().ok()?))
        });
        Some(Kept { made_with, figures: figures.collect() })
    }

    fn of(&self, name: &str) -> Option<u64> {
        self.figures.iter().find(|(n, _)| n == name).map(|(_, figure)| *figure)
    }
}

/// Keep these figures.
pub fn write(figures: &Figures) -> std::io::Result<()> {
    let mut text = format!("{HEAD}\n{}\n", made_with());
    for (name, figure) in figures {
        let _ = writeln!(text, "{name:<10} {figure:>12}");
    }
    std::fs::write(PATH, text)
}

/// A line for each figure, with its distance from the kept one.
pub fn table(figures: &Figures, kept: Option<&Kept>) -> String {
    let mut out = format!("{:<10} {:>12} {:>12} {:>8}", "call", "instructions", "kept", "drift");
    for (name, figure) in figures {
        let _ = write!(out, "\n{name:<10} {figure:>12}");
        if let Some(before) = kept.and_then(|k| k.of(name)) {
            let _ = write!(out, " {before:>12} {:>+7.1}%", drift(*figure, before) * 100.0);
        }
    }
    out
}

/// Compare with the kept figures.
pub fn judge(figures: &Figures, kept: Option<&Kept>) -> Verdict {
    let Some(kept) = kept else {
        return Verdict::Incomparable(format!("there is no {PATH}"));
    };
    let now = made_with();
    if kept.made_with != now {
        return Verdict::Incomparable(format!(
            "the kept figures were made with\n  {}\nand these with\n  {now}",
            kept.made_with
        ));
    }
    let (mut better, mut worse, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for (name, figure) in figures {
        match kept.of(name).map(|before| drift(*figure, before)) {
            None => missing.push(*name),
            Some(_) if kept.is_exceeded(name, *figure) => worse.push(*name),
            Some(by) if by < -DRIFT_MAX => better.push(*name),
            Some(_) => {}
        }
    }
    if !worse.is_empty() {
        Verdict::Worse(worse.join(", "))
    } else if !missing.is_empty() {
        Verdict::Incomparable(format!("there is no kept figure of {}", missing.join(", ")))
    } else if !better.is_empty() {
        Verdict::Better(better.join(", "))
    } else {
        Verdict::Same
    }
}

impl Kept {
    /// Whether a figure is further above the kept one than it may be.
    pub fn is_exceeded(&self, name: &str, figure: u64) -> bool {
        self.of(name).is_some_and(|before| drift(figure, before) > DRIFT_MAX)
    }
}

fn drift(now: u64, before: u64) -> f64 {
    now as f64 / before.max(1) as f64 - 1.0
}

// What the figures depend on besides our own code: the compiler, and what of the machine changes
// which instructions run (copying and searching pick theirs by what the processor can).
fn made_with() -> String {
    let ask = |program: &str, args: &[&str]| {
        let out = Command::new(program).args(args).output().ok();
        let out = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        out.lines().next().unwrap_or_default().trim().to_owned()
    };
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    #[cfg(target_arch = "x86_64")]
    let wide = if std::is_x86_feature_detected!("avx2") { "avx2" } else { "no avx2" };
    #[cfg(not(target_arch = "x86_64"))]
    let wide = "no x86";
    format!(
        "{}, {}-{}, {wide}, {}, {}",
        ask(&rustc, &["--version"]),
        std::env::consts::ARCH,
        std::env::consts::OS,
        ask("getconf", &["GNU_LIBC_VERSION"]),
        ask("valgrind", &["--version"]),
    )
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = DRIFT_MAX * 100.0;
        match self {
            Verdict::Incomparable(why) => {
                write!(f, "*** NOTHING WAS COMPARED *** {why}\nTo keep these figures: {ACCEPT}")
            }
            Verdict::Same => write!(f, "All within {percent} % of the kept figures."),
            Verdict::Better(names) => write!(
                f,
                "More than {percent} % cheaper than kept: {names}. Well done; keep it that way: {ACCEPT}"
            ),
            Verdict::Worse(names) => write!(
                f,
                "More than {percent} % dearer than kept: {names}.\nFind out what for, with \
                 `-- --profile NAME`. If it is worth it, say so in the commit, and: {ACCEPT}"
            ),
        }
    }
}
