//! Encodings that come with a file, as other files beside it: `app.js.br` and `app.js.gz` of `app.js`, as bundlers'
//! compression plugins, Hugo, WhiteNoise and `zopfli` write them, and nginx's `gzip_static` expects them.

use std::collections::HashMap;

use crate::assets::{Coding, Encoded, Entry};

use super::each::each;
use super::source::{File, unchanged};
use super::{ArtifactError, encode};

const SUFFIXES: [(&str, Coding); 3] =
    [("br", Coding::Br), ("gz", Coding::Gzip), ("zst", Coding::Zstd)];

/// A file, what may be an encoding of it, and how.
type Pair = (usize, usize, Coding);

/// Gives each of `entries` those of the others that decode to it and are smaller. One that does not (an older
/// build's) is a file like any other, no more: what is sent for a name is one content, however it is encoded.
pub fn take(entries: &mut [Entry], found: &[File<'_>]) -> Result<(), ArtifactError> {
    let names: HashMap<&str, usize> =
        entries.iter().enumerate().map(|(at, e)| (e.path.as_str(), at)).collect();
    let beside = |at: usize, suffix: &str, coding: Coding| {
        let other = *names.get(format!("{}.{suffix}", entries[at].path).as_str())?;
        // The contract may say that the suffix means nothing of the kind.
        let is_one =
            entries[other].coding == Some(coding) && entries[other].size < entries[at].size;
        is_one.then_some((at, other, coding))
    };
    let plain = (0..entries.len()).filter(|at| entries[*at].coding.is_none());
    let pairs: Vec<Pair> =
        plain.flat_map(|at| SUFFIXES.iter().filter_map(move |(s, c)| beside(at, s, *c))).collect();
    let read = |at: usize| unchanged(found[at].1, &entries[at].digest);
    let same = each(&pairs, &mut |_, _| {}, |(at, other, coding)| {
        let plain = read(*at)?;
        Ok(encode::decode(*coding, &read(*other)?, plain.len()).is_some_and(|d| d == plain))
    })?;
    for ((at, other, coding), _) in pairs.into_iter().zip(same).filter(|(_, same)| *same) {
        let (digest, size) = (entries[other].digest, entries[other].size);
        entries[at].encodings.push(Encoded { coding, digest, size, given: true });
    }
    Ok(())
}
