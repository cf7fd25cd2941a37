//! Which names carry a fingerprint of their content.

/// Letters and digits a fingerprint has at least: Vango writes 8 hexadecimal digits, Vite 8 of
/// base64url.
const LEAST: usize = 8;
/// A name that is nothing else has more: eight digits may be a date.
const LEAST_ALONE: usize = 16;

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

/// Whether a build that names the file means a name that changes with its content: one that looks so, or that is
/// a hash alone (`css/3f2a9c0112ab77de.css`, as Next and webpack write some).
pub fn names_its_content(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    let alone = (LEAST_ALONE..=64).contains(&stem.len()) && stem.bytes().all(is_hex);
    alone || looks_fingerprinted(path)
}

fn is_hex(b: u8) -> bool {
    b.is_ascii_digit() || matches!(b, b'a'..=b'f')
}

fn is_hash(text: &str) -> bool {
    let letters = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (LEAST..=64).contains(&text.len())
        && text.bytes().all(letters)
        && (text.bytes().all(is_hex)
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
            // Django, webpack, Next, esbuild, Parcel, Angular, Rails, Phoenix.
            "admin/css/base.6dbe1b2c4f0a.css",
            "123.abcdef01.chunk.js",
            "chunks/framework-64ad27b21261a9ce.js",
            "chunk-QWERTYUI.js",
            "index.8e0d62a1.js",
            "main.0123456789abcdef.js",
            "application-4bf2b9a3f6d8d7a2c1e0f9b8a7968574635241302f1e0d9c8b7a695847362514.css",
            "app-ed4bd7b1ed9cc5a2e5b5e8d0a6a1f7c4.js",
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
            "css/3f2a9c0112ab77de.css",
        ] {
            assert!(!looks_fingerprinted(no), "{no}");
        }
        assert!(names_its_content("css/3f2a9c0112ab77de.css"), "which a build names");
        assert!(
            names_its_content("3f2a9c0112ab77de.chunk.js") && names_its_content("a.0de621e9.js")
        );
        for no in ["20261130.css", "app.css", "3f2a9c0112ab77dg.css", ""] {
            assert!(!names_its_content(no), "{no}");
        }
    }
}
