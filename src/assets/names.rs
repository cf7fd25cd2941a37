//! Which names carry a fingerprint of their content.

/// Letters and digits a fingerprint has at least: Vango writes 8 hexadecimal digits, Vite 8 of
/// base64url.
const LEAST: usize = 8;

/// Whether the last segment of `path` looks like `name.<hash>.ext` or `name-<hash>.ext`.
///
/// A hash is hexadecimal, or has a digit or an upper-case letter in it, so that `jquery-component.js`
/// is not taken for one. Looking like one is not enough to be kept for ever: the build's manifest must
/// name the file too.
pub fn looks_fingerprinted(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some((stem, extension)) = name.split_once('.').and_then(|_| name.rsplit_once('.')) else {
        return false;
    };
    // `app.0123abcd.js.map` carries its fingerprint before two extensions.
    let stems = [Some(stem), stem.rsplit_once('.').map(|(s, _)| s)];
    !extension.is_empty()
        && stems.into_iter().flatten().any(|stem| {
            let dotted =
                stem.rsplit_once('.').is_some_and(|(n, hash)| !n.is_empty() && is_hash(hash));
            // A hash of base64url may have a - in it: every one may be where it begins.
            let dashed =
                || stem.match_indices(['-', '.']).any(|(at, _)| at > 0 && is_hash(&stem[at + 1..]));
            dotted || dashed()
        })
}

fn is_hash(text: &str) -> bool {
    let letters = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let hex = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
    (LEAST..=64).contains(&text.len())
        && text.bytes().all(letters)
        && (text.bytes().all(hex)
            || text.bytes().any(|b| b.is_ascii_digit() || b.is_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_told_from_names() {
        for yes in [
            "mark.0de621e9.svg",
            "a/b/app.deadbeef.css",
            "index-DiwrgTda.js",
            "index-B_-3xkZQ.css",
            "vendor.react-4f2a9c01.js",
            "app.0123abcd.js.map",
        ] {
            assert!(looks_fingerprinted(yes), "{yes}");
        }
        for no in [
            "app.css",
            "jquery-component.js",
            "index.html",
            "favicon.ico",
            "photo-1.png",
            "0de621e9",
            ".0de621e9.svg",
            "",
            "README",
            "app.min.js",
        ] {
            assert!(!looks_fingerprinted(no), "{no}");
        }
    }
}
