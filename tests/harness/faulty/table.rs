//! The table: what goes wrong, and when.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::words::Asked;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What goes wrong with one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    pub delay: Duration,
    pub stall: bool,
    pub cut: Option<usize>,
    pub cut_request: Option<usize>,
    pub reset: bool,
    pub crash: bool,
    pub duplicate: bool,
    pub garble: bool,
    pub line: Option<usize>,
    pub crawl: Option<usize>,
    pub flood: Option<usize>,
    pub status: Option<u16>,
    pub first: bool,
    pub as_asked: bool,
}

impl Fault {
    /// The faults of a row, with commas between them.
    pub fn parse(text: &str) -> Result<Fault, String> {
        let mut fault = Fault::default();
        for one in text.split(',').map(str::trim) {
            let (word, value) = one.split_once(' ').unwrap_or((one, ""));
            let number = || value.trim().parse::<usize>().map_err(|_| format!("no number: {one}"));
            match word {
                "fine" => {}
                "stall" => fault.stall = true,
                "first" => fault.first = true,
                "reset" => fault.reset = true,
                "crash" => fault.crash = true,
                "duplicate" => fault.duplicate = true,
                "garble" => fault.garble = true,
                "as-asked" => fault.as_asked = true,
                "cut" => fault.cut = Some(number()?),
                "cut-request" => fault.cut_request = Some(number()?),
                "line" => fault.line = Some(number()?),
                "crawl" => fault.crawl = Some(number()?.max(1)),
                "flood" => fault.flood = Some(number()?.max(1)),
                "status" => fault.status = Some(number()? as u16),
                "delay" => {
                    let ms = value.trim().strip_suffix("ms").and_then(|n| n.parse().ok());
                    fault.delay = Duration::from_millis(ms.ok_or(format!("no time: {one}"))?);
                }
                _ => return Err(format!("no such fault: {one}")),
            }
        }
        Ok(fault)
    }
}

/// Rows, of which the first that fits counts.
#[derive(Clone, Debug, Default)]
pub struct Table(Vec<(String, String, Fault)>);

impl Table {
    /// A table as text; lines that begin with `#` say nothing.
    pub fn parse(text: &str) -> Result<Table, String> {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let rows = lines.map(|line| {
            let (when, what) = line.split_once("=>").ok_or(format!("no row: {line}"))?;
            let when = when.trim();
            let (method, tool) = when.split_once(' ').unwrap_or((when, ""));
            Ok((method.to_owned(), tool.trim().to_owned(), Fault::parse(what.trim())?))
        });
        rows.collect::<Result<_, String>>().map(Table)
    }

    /// What goes wrong with this.
    pub fn fault(&self, asked: &Asked) -> Fault {
        let row = self.0.iter().find(|(method, tool, _)| {
            (method == "*" || *method == asked.method) && (tool.is_empty() || *tool == asked.tool)
        });
        match row {
            Some((_, _, fault)) if fault.as_asked => Fault::parse(&asked.fault).unwrap_or_default(),
            Some((_, _, fault)) => fault.clone(),
            None => Fault::default(),
        }
    }

    /// Whether a call can say itself what is to go wrong with it.
    pub fn asks(&self) -> bool {
        self.0.iter().any(|(_, _, fault)| fault.as_asked || fault.cut_request.is_some())
    }
}

/// The table as it is now.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    now: Arc<Mutex<Arc<Table>>>,
    number: Arc<AtomicU64>,
}

impl Tables {
    /// What the file says, from now on. A file that cannot be read says what it said before.
    pub fn watch(path: Option<PathBuf>) -> Tables {
        let tables = Tables::default();
        let Some(path) = path else { return tables };
        let mut seen = None;
        tables.look(&path, &mut seen);
        let own = tables.clone();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(LOOK);
                own.look(&path, &mut seen);
            }
        });
        tables
    }

    fn look(&self, path: &PathBuf, seen: &mut Option<(SystemTime, u64)>) {
        let Ok(meta) = std::fs::metadata(path) else { return };
        let now = meta.modified().ok().map(|time| (time, meta.len()));
        if now == *seen {
            return;
        }
        match std::fs::read_to_string(path)
            .map_err(|e| e.to_string())
            .and_then(|t| Table::parse(&t))
        {
            Ok(table) => {
                *seen = now;
                *self.now.lock().unwrap() = Arc::new(table);
                self.number.fetch_add(1, Ordering::SeqCst);
            }
            Err(e) => eprintln!("{}: {e}", path.display()),
        }
    }

    /// The newest.
    pub fn now(&self) -> Arc<Table> {
        self.now.lock().unwrap().clone()
    }

    /// Another number with each table.
    pub fn number(&self) -> u64 {
        self.number.load(Ordering::SeqCst)
    }
}
