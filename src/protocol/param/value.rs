//! One argument as text, and when a number is the same as another.

use crate::protocol::walk;

use super::{Kind, Param, Said, Unfit};

/// Largest integer that every reader of JSON holds exactly: 2^53 - 1.
pub const INTEGER_MAX: i64 = (1 << 53) - 1;

/// How much of a parameter's name is told to the caller.
const NAME_MAX: usize = 128;

/// What the raw value says.
pub(super) fn said(param: &Param, raw: &str) -> Result<Option<Said>, Unfit> {
    let name = || param.path.join(".").chars().take(NAME_MAX).collect::<String>();
    let plain = |text: &str| Some(Said { text: text.to_owned(), integer: None });
    Ok(match raw.as_bytes().first() {
        Some(b'"') => plain(&walk::string(raw.as_bytes()).ok_or_else(|| Unfit::NoText(name()))?),
        Some(b't' | b'f') => plain(raw),
        Some(b'-' | b'0'..=b'9') => match number(raw) {
            Number::Integer(n) => Some(Said { text: n.to_string(), integer: Some(n) }),
            Number::Large if param.kind == Kind::Integer => return Err(Unfit::Range(name())),
            // Not what the schema asks for. The tool may take it all the same.
            Number::Large | Number::Fraction => plain(raw),
        },
        _ => None,
    })
}

/// The integer that a header says in decimals: `42`, `42.0`.
pub(super) fn decimal(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    match number(text) {
        Number::Integer(n) => Some(n),
        Number::Large | Number::Fraction => None,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Number {
    /// Within ±[`INTEGER_MAX`].
    Integer(i64),
    /// An integer outside of it.
    Large,
    Fraction,
}

// Exact: a float would round `9007199254740991.4` to an integer.
fn number(text: &str) -> Number {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    // One that does not fit is as good as the largest that does.
    let huge = if exponent.starts_with('-') { i64::MIN / 4 } else { i64::MAX / 4 };
    let exponent = exponent.parse::<i64>().unwrap_or(huge).clamp(i64::MIN / 4, i64::MAX / 4);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let short = digits.trim_end_matches('0');
    let scale = exponent - fraction.len() as i64 + (digits.len() - short.len()) as i64;
    let short = short.trim_start_matches('0');
    if short.is_empty() {
        return Number::Integer(0);
    }
    if scale < 0 {
        return Number::Fraction;
    }
    // 2^53 has 16 digits.
    if short.len() as i64 + scale > 16 {
        return Number::Large;
    }
    let value = short.parse::<i64>().unwrap_or(i64::MAX).saturating_mul(10i64.pow(scale as u32));
    match value {
        n if n > INTEGER_MAX => Number::Large,
        n if negative => Number::Integer(-n),
        n => Number::Integer(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_exactly() {
        for (text, wanted) in [
            ("42", Number::Integer(42)),
            ("42.0", Number::Integer(42)),
            ("4.20e1", Number::Integer(42)),
            ("4200E-2", Number::Integer(42)),
            ("-0.0", Number::Integer(0)),
            ("0e999999999999999999999", Number::Integer(0)),
            ("-9007199254740991", Number::Integer(-INTEGER_MAX)),
            ("9007199254740992", Number::Large),
            ("1e16", Number::Large),
            ("1e999999999999999999999", Number::Large),
            ("42.5", Number::Fraction),
            ("9007199254740991.4", Number::Fraction),
            ("42.00000000000000000000001", Number::Fraction),
            ("1e-999999999999999999999", Number::Fraction),
        ] {
            assert_eq!(number(text), wanted, "{text}");
        }
        for (text, wanted) in [
            ("42", Some(42)),
            ("-42.00", Some(-42)),
            ("4.2e1", None),
            ("+42", None),
            ("42.", None),
            (".0", None),
            ("", None),
            ("0x2a", None),
            ("42.5", None),
        ] {
            assert_eq!(decimal(text), wanted, "{text}");
        }
    }
}
