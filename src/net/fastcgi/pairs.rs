//! Name-value pairs (section 3.4): the variables of a request, and of an application (section 4.1).

use bytes::{BufMut, BytesMut};

use super::record::MalformedRecord;

/// The variables that `FCGI_GET_VALUES` may ask for (section 4.1).
pub(crate) const MAX_CONNS: &[u8] = b"FCGI_MAX_CONNS";
pub(crate) const MAX_REQS: &[u8] = b"FCGI_MAX_REQS";
pub(crate) const MPXS_CONNS: &[u8] = b"FCGI_MPXS_CONNS";

/// The bit that marks the length of a name or value as one of 31 bits (section 3.4).
const LONG: u32 = 0x8000_0000;
/// The longest name or value of a pair in bytes.
const PAIR_PART_MAX: usize = 0x7fff_ffff;

/// Appends a name-value pair (section 3.4).
pub(crate) fn encode_pair(name: &[u8], value: &[u8], out: &mut BytesMut) {
    let part = |bytes: &'_ [u8]| bytes.len().min(PAIR_PART_MAX);
    let (name, value) = (&name[..part(name)], &value[..part(value)]);
    for length in [name.len(), value.len()] {
        match u8::try_from(length) {
            Ok(short @ 0..0x80) => out.put_u8(short),
            _ => out.put_u32(length as u32 | LONG),
        }
    }
    out.put_slice(name);
    out.put_slice(value);
}

/// The pairs in a complete stream or content. After an error there are no more.
#[derive(Clone, Debug)]
pub(crate) struct NameValuePairs<'a>(&'a [u8]);

impl<'a> NameValuePairs<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take_length(&mut self) -> Option<usize> {
        let (&first, rest) = self.0.split_first()?;
        if first < 0x80 {
            self.0 = rest;
            return Some(usize::from(first));
        }
        let (length, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        usize::try_from(u32::from_be_bytes(*length) & !LONG).ok()
    }

    fn take_pair(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let (name, value) = (self.take_length()?, self.take_length()?);
        let (name, rest) = self.0.split_at_checked(name)?;
        let (value, rest) = rest.split_at_checked(value)?;
        self.0 = rest;
        Some((name, value))
    }
}

impl<'a> Iterator for NameValuePairs<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), MalformedRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let pair = self.take_pair();
        if pair.is_none() {
            self.0 = &[];
        }
        Some(pair.ok_or_else(|| MalformedRecord("a FastCGI name-value pair extends beyond its stream".to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pairs_beyond_their_stream_are_rejected_without_an_allocation() {
        let pairs = |bytes| NameValuePairs::new(bytes).collect::<Result<Vec<_>, _>>();
        assert_eq!(pairs(b"\x01\x02abc\x80\0\0\x01\0x").unwrap(), [(&b"a"[..], &b"bc"[..]), (b"x", b"")]);
        for bytes in [&b"\x01"[..], b"\x01\x01a", b"\x80\0\0", b"\xff\xff\xff\xff\xff\xff\xff\xffab", b"\0\x80"] {
            assert!(pairs(bytes).is_err(), "{bytes:?}");
            assert_eq!(NameValuePairs::new(bytes).count(), 1, "{bytes:?}");
        }
        assert_eq!(pairs(b"\0\0").unwrap(), [(&b""[..], &b""[..])]);
    }

    proptest! {
        #[test]
        fn pairs_are_decoded_as_encoded(
            pairs in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..200), prop::collection::vec(any::<u8>(), 0..200)), 0..6),
        ) {
            let mut bytes = BytesMut::new();
            pairs.iter().for_each(|(name, value)| encode_pair(name, value, &mut bytes));
            let decoded: Vec<_> = NameValuePairs::new(&bytes).map(|pair| pair.unwrap()).collect();
            prop_assert_eq!(decoded, pairs.iter().map(|(name, value)| (&name[..], &value[..])).collect::<Vec<_>>());
        }
    }
}
