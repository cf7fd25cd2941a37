//! Byte ranges: RFC 9110 §14. A range request that makes no sense is served whole; one that cannot
//! be satisfied is answered 416; one that would cost more than the whole is served whole.

use std::ops::Range;

/// Ranges in one request, at most: more are a way to make much work with few bytes (§17.15).
const MOST: usize = 16;

/// What a `Range` field asks of a representation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// All of it.
    Whole,
    /// These parts, in this order, none of them empty.
    Parts(Vec<Range<u64>>),
    /// Nothing that it has.
    Unsatisfiable,
}

/// Reads `field` for a representation of `size` bytes.
pub fn read(field: &str, size: u64) -> Asked {
    let Some((unit, set)) = field.split_once('=') else { return Asked::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Asked::Whole;
    }
    let mut parts = Vec::new();
    let mut asked = 0;
    for spec in set.split(',').map(str::trim).filter(|s| !s.is_empty()) {
        asked += 1;
        if asked > MOST {
            return Asked::Whole;
        }
        match one(spec, size) {
            None => return Asked::Whole,
            Some(range) if range.is_empty() => {}
            Some(range) => parts.push(range),
        }
    }
    if asked == 0 {
        return Asked::Whole;
    }
    if parts.is_empty() {
        return Asked::Unsatisfiable;
    }
    let bytes = parts.iter().fold(0u64, |sum, r| sum.saturating_add(r.end - r.start));
    if parts.len() > 1 && bytes > size { Asked::Whole } else { Asked::Parts(parts) }
}

/// One range; empty when the representation has nothing of it, `None` when it is not one.
fn one(spec: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    let (first, last) = (first.trim_end(), last.trim_start());
    if first.is_empty() {
        let suffix = number(last)?;
        return Some(size.saturating_sub(suffix)..size);
    }
    let first = number(first)?;
    let end = if last.is_empty() {
        size
    } else {
        let last = number(last)?;
        if last < first {
            return None;
        }
        last.saturating_add(1).min(size)
    };
    Some(if first >= size { 0..0 } else { first..end })
}

/// Digits only; more than fit mean "beyond any end".
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges are what is meant")]
mod tests {
    use super::*;

    /// The cases of RFC 9110 §14.1.2 and §14.2, and what is made of the rest.
    #[test]
    fn every_form_of_range() {
        let parts = |p: &[Range<u64>]| Asked::Parts(p.to_vec());
        for (field, expected) in [
            ("bytes=0-499", parts(&[0..500])),
            ("bytes=500-999", parts(&[500..1000])),
            ("bytes=-500", parts(&[9500..10_000])),
            ("bytes=9500-", parts(&[9500..10_000])),
            ("bytes=0-0,-1", parts(&[0..1, 9999..10_000])),
            ("bytes= 0-999, 4500-5499, -1000", parts(&[0..1000, 4500..5500, 9000..10_000])),
            ("bytes=500-600,601-999", parts(&[500..601, 601..1000])),
            ("bytes=500-700,601-999", parts(&[500..701, 601..1000])),
            ("BYTES=0-0", parts(&[0..1])),
            ("bytes=0-", parts(&[0..10_000])),
            ("bytes=0-99999", parts(&[0..10_000])),
            ("bytes=-99999", parts(&[0..10_000])),
            ("bytes=9999-9999", parts(&[9999..10_000])),
            ("bytes=10000-", Asked::Unsatisfiable),
            ("bytes=10000-10001", Asked::Unsatisfiable),
            ("bytes=-0", Asked::Unsatisfiable),
            ("bytes=10000-,20000-30000", Asked::Unsatisfiable),
            ("bytes=10000-,0-1", parts(&[0..2])),
            ("bytes=99999999999999999999999-", Asked::Unsatisfiable),
            ("bytes=0-99999999999999999999999", parts(&[0..10_000])),
            ("bytes=5-2", Asked::Whole),
            ("bytes=0-1,5-2", Asked::Whole),
            ("bytes=", Asked::Whole),
            ("bytes=,", Asked::Whole),
            ("bytes=a-b", Asked::Whole),
            ("bytes=1", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=--1", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("bytes 0-1", Asked::Whole),
            ("items=0-1", Asked::Whole),
            ("bytes=0-9999,0-9999", Asked::Whole),
        ] {
            assert_eq!(read(field, 10_000), expected, "{field}");
        }
        let many = format!("bytes={}", vec!["0-0"; MOST + 1].join(","));
        assert_eq!(read(&many, 10_000), Asked::Whole);
        assert_eq!(read("bytes=0-", 0), Asked::Unsatisfiable);
    }
}
