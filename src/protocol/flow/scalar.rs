//! Numbers, words and UTF-8, a piece at a time.

/// Where in a number the reading stands (RFC 8259, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Behind the minus sign.
    Minus,
    /// Behind a leading zero: no digit may follow.
    Zero,
    /// In the digits before the point.
    Whole,
    /// Behind the point.
    Point,
    /// In the digits behind it.
    Fraction,
    /// Behind the `e`.
    E,
    /// Behind the sign of the exponent.
    Sign,
    /// In the digits of the exponent.
    Exponent,
}

impl Number {
    /// The number that begins with `first`.
    pub fn begin(first: u8) -> Option<Number> {
        match first {
            b'-' => Some(Number::Minus),
            b'0' => Some(Number::Zero),
            b'1'..=b'9' => Some(Number::Whole),
            _ => None,
        }
    }

    /// After one byte more; `None` if that does not belong to the number.
    pub fn then(self, b: u8) -> Option<Number> {
        use Number::{E, Exponent, Fraction, Minus, Point, Sign, Whole, Zero};
        Some(match (self, b) {
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Whole, b'0'..=b'9') => Whole,
            (Zero | Whole, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Whole | Fraction, b'e' | b'E') => E,
            (E, b'+' | b'-') => Sign,
            (E | Sign | Exponent, b'0'..=b'9') => Exponent,
            _ => return None,
        })
    }

    /// Whether it may end here.
    pub fn is_whole(self) -> bool {
        matches!(self, Number::Zero | Number::Whole | Number::Fraction | Number::Exponent)
    }
}

/// Checks that text is UTF-8, wherever it is cut.
#[derive(Default)]
pub struct Utf8 {
    // The beginning of a character whose end has not come yet.
    open: [u8; 4],
    len: usize,
}

impl Utf8 {
    /// Whether `piece` goes on well.
    pub fn push(&mut self, mut piece: &[u8]) -> bool {
        while self.len > 0 && !piece.is_empty() {
            self.open[self.len] = piece[0];
            self.len += 1;
            piece = &piece[1..];
            match std::str::from_utf8(&self.open[..self.len]) {
                Ok(_) => self.len = 0,
                Err(e) if e.error_len().is_some() => return false,
                // No character is longer than four bytes, so there is room for one more.
                Err(_) => {}
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => true,
            Err(e) if e.error_len().is_some() => false,
            Err(e) => {
                let rest = &piece[e.valid_up_to()..];
                self.open[..rest.len()].copy_from_slice(rest);
                self.len = rest.len();
                true
            }
        }
    }

    /// Whether the last character is whole.
    pub fn is_whole(&self) -> bool {
        self.len == 0
    }
}

/// Whether a string may hold these bytes as they are (RFC 8259, section 7).
pub fn has_no_control(bytes: &[u8]) -> bool {
    // All of them, without leaving early: the compiler makes wide instructions of it.
    bytes.iter().fold(0, |found, b| found | u8::from(*b < 0x20)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_json() {
        let is_number = |text: &str| {
            let mut bytes = text.bytes();
            let first = bytes.next().and_then(Number::begin);
            bytes.fold(first, |n, b| n?.then(b))
        };
        for good in ["0", "-0", "10", "1.50", "-1e5", "0e0", "1E+07", "12.0e-9"] {
            assert!(is_number(good).is_some_and(Number::is_whole), "{good}");
        }
        for bad in ["", "-", "01", "1.", ".5", "1e", "1e+", "+1", "1.e1", "0x1"] {
            assert!(!is_number(bad).is_some_and(Number::is_whole), "{bad}");
        }
    }

    #[test]
    fn characters_may_be_cut_anywhere() {
        let text = "aé€😀z";
        for at in 0..=text.len() {
            for to in at..=text.len() {
                let mut utf8 = Utf8::default();
                let bytes = text.as_bytes();
                assert!(utf8.push(&bytes[..at]) && utf8.push(&bytes[at..to]));
                assert!(utf8.push(&bytes[to..]) && utf8.is_whole());
            }
        }
        for bad in [&b"\xff"[..], b"\xc3\x28", b"\xed\xa0\x80", b"\xf8"] {
            let mut utf8 = Utf8::default();
            assert!(!bad.chunks(1).all(|b| utf8.push(b)));
        }
        let mut cut = Utf8::default();
        assert!(cut.push(b"\xe2\x82") && !cut.is_whole());
    }
}
