//! A result that is kept ready and given to many: the bytes are shared, not copied into each
//! response.

use bytes::Bytes;

use super::message::{Kind, response};

/// A raw result that is kept with the end of the response around it. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared(Bytes);

impl Prepared {
    /// Of a raw result. With room for one byte more behind it nothing is copied.
    pub fn new(mut result: Vec<u8>) -> Prepared {
        result.push(b'}');
        Prepared(result.into())
    }

    /// The raw result.
    pub fn result(&self) -> Bytes {
        self.0.slice(..self.0.len() - 1)
    }

    /// How many bytes are kept.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// The response with this id in two pieces: a short one, and one that all responses share.
    pub fn response(&self, id: &[u8]) -> (Bytes, Bytes) {
        let mut head = response(id, Kind::Result, b"");
        // The other piece ends it.
        head.truncate(head.len() - 1);
        (head, self.0.clone())
    }

    /// The response with this id as a whole.
    pub fn whole(&self, id: &[u8]) -> Bytes {
        response(id, Kind::Result, &self.result())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_are_the_whole_and_the_large_one_is_shared() {
        let prepared = Prepared::new(br#"{"tools":[1.50]}"#.to_vec());
        assert_eq!(&prepared.result()[..], br#"{"tools":[1.50]}"#);
        for id in [&b"7"[..], b"\"a\\\"b\"", b""] {
            let (head, rest) = prepared.response(id);
            assert_eq!([head, rest].concat(), prepared.whole(id));
        }
        let (_, a) = prepared.response(b"1");
        let (_, b) = prepared.response(b"2");
        assert_eq!(a.as_ptr(), b.as_ptr());
    }
}
