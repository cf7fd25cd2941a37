//! Which encoding of an asset a request gets: RFC 9110 §12.5.3, on what was encoded at deploy.

use http::header::{self, HeaderMap};

use crate::assets::{Asset, Representation};

/// A quality, in thousandths (RFC 9110 §12.4.2).
type Quality = u16;

/// What `Accept-Encoding` says, over all its lines.
#[derive(Debug, Default)]
struct Accepted {
    /// The field is there.
    stated: bool,
    named: Vec<(String, Quality)>,
    others: Option<Quality>,
}

impl Accepted {
    fn read(headers: &HeaderMap) -> Self {
        let mut accepted = Self::default();
        for line in headers.get_all(header::ACCEPT_ENCODING) {
            accepted.stated = true;
            let Ok(line) = line.to_str() else { continue };
            for element in line.split(',') {
                accepted.take(element);
            }
        }
        accepted
    }

    fn take(&mut self, element: &str) {
        let mut parts = element.split(';').map(str::trim);
        let Some(coding) = parts.next().filter(|c| !c.is_empty()) else { return };
        let mut quality = 1000;
        for parameter in parts {
            let Some((name, value)) = parameter.split_once('=') else { return };
            if name.trim().eq_ignore_ascii_case("q") {
                // Not a number: the element says nothing.
                let Some(q) = parse_quality(value.trim()) else { return };
                quality = q;
            }
        }
        if coding == "*" {
            self.others.get_or_insert(quality);
        } else {
            self.named.push((coding.to_ascii_lowercase(), quality));
        }
    }

    fn of(&self, coding: &str) -> Option<Quality> {
        let same = |name: &str| name == coding || (name == "x-gzip" && coding == "gzip");
        self.named.iter().find(|(name, _)| same(name)).map(|(_, q)| *q)
    }
}

/// 0 to 1 with at most three decimals.
fn parse_quality(text: &str) -> Option<Quality> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let thousandths: Quality = format!("{decimals:0<3}").parse().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

/// The representation to send: the highest quality, and among equals the fewest bytes. `None` when
/// the request excludes all there are (406).
pub fn choose<'a>(asset: &'a Asset, headers: &HeaderMap) -> Option<&'a Representation> {
    let accepted = Accepted::read(headers);
    // What is stored encoded has no other form.
    if !accepted.stated || asset.identity.coding.is_some() {
        // Anything is acceptable; who says nothing may well decode nothing.
        return Some(&asset.identity);
    }
    let encoded = asset.encoded.iter().filter_map(|r| {
        let quality = accepted.of(r.coding?.name()).or(accepted.others)?;
        (quality > 0).then_some((quality, r))
    });
    // Unless it is excluded, the plain one is acceptable, after all that was asked for.
    let plain = match accepted.of("identity").or(accepted.others) {
        Some(0) => None,
        Some(quality) => Some((quality, &asset.identity)),
        None => Some((0, &asset.identity)),
    };
    let best = encoded.chain(plain).min_by_key(|(quality, r)| (1000 - quality, r.size));
    best.map(|(_, representation)| representation)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn chosen(accept: &[&str]) -> &'static str {
        let asset = sample::asset();
        let mut headers = HeaderMap::new();
        for line in accept {
            headers.append(header::ACCEPT_ENCODING, line.parse().unwrap());
        }
        match choose(&asset, &headers) {
            None => "406",
            Some(r) => r.coding.map_or("identity", |c| c.name()),
        }
    }

    /// Sizes in the sample: br 40, zstd 45, gzip 50, plain 100.
    #[test]
    fn every_encoding_against_every_quality() {
        for (accept, expected) in [
            (&[][..], "identity"),
            (&[""], "identity"),
            (&["gzip"], "gzip"),
            (&["x-gzip"], "gzip"),
            (&["GZIP"], "gzip"),
            (&["zstd"], "zstd"),
            (&["br"], "br"),
            (&["gzip, deflate, br, zstd"], "br"),
            (&["gzip", "br"], "br"),
            (&["gzip;q=1.0, br;q=0.9"], "gzip"),
            (&["gzip;q=0.5, zstd;q=0.501"], "zstd"),
            (&["br;q=0, gzip"], "gzip"),
            (&["br;q=0.000, zstd;q=0, gzip;q=0"], "identity"),
            (&["*"], "br"),
            (&["*;q=0"], "406"),
            (&["*;q=0, gzip"], "gzip"),
            (&["*;q=0, identity"], "identity"),
            (&["br;q=0, *"], "zstd"),
            (&["identity"], "identity"),
            (&["identity;q=0"], "406"),
            (&["identity;q=0, *"], "br"),
            (&["identity;q=0, zstd;q=0.1"], "zstd"),
            (&["identity;q=1, br;q=0.5"], "identity"),
            (&["identity;q=0.5, br;q=0.5"], "br"),
            (&["*;q=0.5, identity;q=0.9"], "identity"),
            (&["deflate"], "identity"),
            (&["deflate, identity;q=0"], "406"),
            (&["br;q=1.5, gzip"], "gzip"),
            (&["br;q=x, gzip;q=0.0001"], "identity"),
            (&["br ; q=0.3 , gzip ; q=0.2"], "br"),
            (&[",, ,br,"], "br"),
        ] {
            assert_eq!(chosen(accept), expected, "{accept:?}");
        }
    }
}
