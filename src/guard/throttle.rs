//! What counts as the upstream's wish that we slow down, and how far we obey it.

use std::time::Duration;

use crate::config::ThrottleConfig;

/// How much of a text is looked at. What means throttling is said in the first sentence; a long
/// answer is data, and scanning all of it would cost more than it tells.
const TEXT_MAX: usize = 4096;

/// The settings, ready for use.
#[derive(Debug)]
pub(super) struct Throttle {
    /// In lower case.
    texts: Vec<Box<[u8]>>,
    pause: Duration,
    pause_max: Duration,
}

impl Throttle {
    pub(super) fn new(config: &ThrottleConfig) -> Throttle {
        Throttle {
            // An empty text would be found in every answer.
            texts: (config.texts.iter())
                .filter(|text| !text.is_empty())
                .map(|text| text.to_ascii_lowercase().into_bytes().into())
                .collect(),
            pause: config.pause,
            pause_max: config.pause_max,
        }
    }

    /// The pause that is kept: as long as was asked or, without a number, as configured; never
    /// longer than we obey.
    pub(super) fn pause(&self, asked: Option<Duration>) -> Duration {
        asked.unwrap_or(self.pause).min(self.pause_max)
    }

    /// Whether the text holds one of the configured ones, in whatever (ASCII) case.
    pub(super) fn means_throttling(&self, text: &str) -> bool {
        if self.texts.is_empty() {
            return false;
        }
        let text = &text.as_bytes()[..text.len().min(TEXT_MAX)];
        let text = text.to_ascii_lowercase();
        self.texts.iter().any(|sign| memchr::memmem::find(&text, sign).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn throttle(texts: &[&str]) -> Throttle {
        Throttle::new(&ThrottleConfig {
            texts: texts.iter().map(ToString::to_string).collect(),
            pause: 5 * S,
            pause_max: 60 * S,
        })
    }

    #[test]
    fn texts_say_what_means_throttling() {
        let t = throttle(&["Rate Limit", "RESOURCE_EXHAUSTED"]);
        assert!(t.means_throttling("Error 429: account rate limited, please throttle"));
        assert!(t.means_throttling("resource_exhausted"));
        assert!(!t.means_throttling("no such invoice"));
        assert!(!t.means_throttling(""));
        assert!(!throttle(&[]).means_throttling("rate limit"));
        assert!(!throttle(&[""]).means_throttling("no such invoice"));
    }

    #[test]
    fn only_the_beginning_of_a_text_is_looked_at() {
        let t = throttle(&["rate limit"]);
        let at = |n: usize| format!("{}rate limit", "ü".repeat(n / 2));
        assert!(t.means_throttling(&at(TEXT_MAX - 10)));
        assert!(!t.means_throttling(&at(TEXT_MAX - 8)));
    }

    #[test]
    fn pause_is_the_default_and_pause_max_the_most() {
        let t = throttle(&[]);
        assert_eq!(t.pause(None), 5 * S);
        assert_eq!(t.pause(Some(7 * S)), 7 * S);
        assert_eq!(t.pause(Some(3600 * S)), 60 * S);
    }
}
