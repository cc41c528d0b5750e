//! Any text as a configuration: it is read, or every problem is told, and no secret is.

use std::io;

use crate::config::secret::Scrubber;
use crate::config::{Config, parse};

/// What no text of ours may hold: it is in each value that stands for a secret.
const MARK: &str = "zQ9vX4kR7";

// Values as they come: plain, like a part of an address, with what a file or a header cannot carry.
fn variable(name: &str) -> Option<String> {
    Some(match name {
        "HOME" => "/home/somebody".into(),
        "EMPTY" => String::new(),
        "URL" => format!("https://user:{MARK}@host.example/{MARK}#x"),
        "LINES" => format!("{MARK}\n{MARK}\r\n\u{1}"),
        "ODD" => format!("${{{MARK}}} \"{MARK}\" é file:/{MARK}"),
        "KEY" | "TOKEN" | "A" | "B" => format!("{MARK}-{name}-0123456789abcdefgh"),
        _ => return None,
    })
}

fn file(path: &str) -> io::Result<String> {
    match path {
        "/key" => Ok(format!("{MARK}-file-0123456789abcdefgh\n")),
        "/empty" => Ok("\n".into()),
        "/odd" => Ok(format!("a\n{MARK}\u{0}\n")),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Panics if something does not hold for `data`.
pub fn holds(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.contains(MARK) {
        return;
    }
    match parse(text, "weir.toml", &variable, &file) {
        Ok(config) => valid(&config, text),
        Err(problems) => {
            let told = problems.to_string();
            assert!(!told.contains(MARK), "a secret is told:\n{told}");
            assert!(!problems.all.is_empty(), "refused without a reason");
            let lines = text.split('\n').count();
            for problem in &problems.all {
                assert!(problem.line <= lines && !problem.message.is_empty(), "{problem:?}");
                assert!(!problem.remedy.is_empty(), "nothing to do about {problem:?}");
            }
        }
    }
}

fn valid(config: &Config, text: &str) {
    let secrets = config.secrets();
    let scrubber = Scrubber::new(secrets.iter().cloned());
    for upstream in &config.upstreams {
        if let Some(why) = &upstream.dormant {
            assert!(!why.contains(MARK), "a secret is told: {why}");
            continue;
        }
        assert!(upstream.max_call_timeout >= upstream.call_timeout);
        // What came from outside the file is known as a secret, wherever it was put.
        for secret in upstream.secrets() {
            let shown = scrubber.scrub(secret.expose()).into_owned();
            assert!(!shown.contains(MARK), "a log would show {shown:?}");
        }
    }
    // The same file is the same configuration.
    let again = parse(text, "weir.toml", &variable, &file).map_err(|p| p.to_string());
    assert!(again.is_ok_and(|again| {
        again.gateway == config.gateway && again.upstreams == config.upstreams
    }));
}
