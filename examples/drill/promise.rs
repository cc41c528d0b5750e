//! A promise, what was found, and whether it is kept.

/// What the stories have found so far.
#[derive(Default)]
pub struct Promises {
    broken: usize,
    made: usize,
}

impl Promises {
    /// One line.
    pub fn keep(&mut self, story: &str, promise: &str, figure: &str, kept: bool) {
        self.made += 1;
        self.broken += usize::from(!kept);
        let word = if kept { "pass" } else { "FAIL" };
        println!("{word}  {story:11} {promise:58} {figure}");
    }

    /// A story that could not be told to its end.
    pub fn fail(&mut self, story: &str, why: &str) {
        self.keep(story, "the story can be told", why, false);
    }

    /// The last line; whether all are kept.
    pub fn all(&self) -> bool {
        println!("{} of {} promises kept", self.made - self.broken, self.made);
        self.broken == 0 && self.made > 0
    }
}
