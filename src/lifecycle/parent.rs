//! Whose trace a request belongs to: the client's, where it sent a valid `traceparent`
//! (W3C Trace Context level 1, section 3.2).

/// What a valid `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace; not 0.
    pub trace: u128,
    /// The span that the request was sent from; not 0.
    pub span: u64,
}

impl TraceParent {
    /// Reads a header's value: version 00, ids that are not 0, lower-case hex. Anything else is none,
    /// and the trace begins here.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let lower = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let dashes = value.len() == 55 && [2, 35, 52].iter().all(|at| value[*at] == b'-');
        if !dashes || !value.starts_with(b"00") {
            return None;
        }
        let hex = |from: usize, to: usize| {
            let digits = &value[from..to];
            let digits = digits.iter().all(lower).then(|| std::str::from_utf8(digits).ok())??;
            u128::from_str_radix(digits, 16).ok()
        };
        hex(53, 55)?;
        let (trace, span) = (hex(3, 35)?, u64::try_from(hex(36, 52)?).ok()?);
        (trace != 0 && span != 0).then_some(Self { trace, span })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_valid_or_none() {
        let good = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read = TraceParent::parse(good).unwrap();
        assert_eq!(format!("{:032x}", read.trace), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(read.span, 0xb7ad_6b71_6920_3331);
        for bad in [
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "",
        ] {
            assert_eq!(TraceParent::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
