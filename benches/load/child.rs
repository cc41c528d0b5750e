//! The role that stands for an upstream over stdio: one mock server that reads lines and writes
//! lines, one call after the other, as most such servers do.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use crate::job::Mock;
use crate::mock::{Said, Server};

/// Bytes read at once: as many as a pipe holds.
const READ: usize = 64 << 10;

/// Serve until stdin ends. Each `tools/call` keeps the processor busy for `work` first.
///
/// # Errors
/// What the pipes say.
pub fn run(mock: Mock, work: Duration) -> std::io::Result<()> {
    let server = Server::new(mock);
    let (mut stdin, mut stdout) = (std::io::stdin().lock(), std::io::stdout().lock());
    let (mut inbox, mut out) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; READ];
    loop {
        let n = stdin.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        inbox.extend_from_slice(&buffer[..n]);
        let mut done = 0;
        while let Some(end) = memchr::memchr(b'\n', &inbox[done..]) {
            let line = &inbox[done..done + end];
            done += end + 1;
            let begin = out.len();
            match server.answer(line, &mut out) {
                Said::Nothing => out.truncate(begin),
                Said::Message { .. } if !work.is_zero() => {
                    spin(work);
                    out.push(b'\n');
                    // A server that works on each call also answers each by itself.
                    stdout.write_all(&out)?;
                    stdout.flush()?;
                    out.clear();
                }
                _ => out.push(b'\n'),
            }
        }
        inbox.drain(..done);
        stdout.write_all(&out)?;
        stdout.flush()?;
        out.clear();
    }
}

fn spin(work: Duration) {
    let end = Instant::now() + work;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}
