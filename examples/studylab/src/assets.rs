//! The files of `public/`, read once at the start into a fixed list. A request names a file of that
//! list or gets 404: no path of a request ever reaches the file system.
//!
//! At an edge these are answered from the artifact, without the app; here they are for running
//! alone and for an edge whose asset store is away.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path as RequestPath, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::app::{App, NO_STORE};

const MAX_FILES: usize = 256;
const MAX_DEPTH: usize = 4;
const MAX_FILE: u64 = 8 << 20;
const MANIFEST: &str = "manifest.json";

struct Asset {
    bytes: Bytes,
    kind: &'static str,
}

/// The list.
#[derive(Default)]
pub struct Assets {
    files: HashMap<String, Asset>,
    /// Source name → fingerprinted name.
    manifest: HashMap<String, String>,
    fingerprinted: HashSet<String>,
}

impl Assets {
    /// Reads `dir`. What cannot be read is said and left out: the app works without its style.
    pub fn load(dir: &Path) -> Self {
        let mut assets = Self::default();
        if let Err(err) = assets.read_dir(dir, "", 0) {
            eprintln!("studylab: {}: {err}", dir.display());
        }
        if let Some(manifest) = assets.files.get(MANIFEST) {
            match serde_json::from_slice::<HashMap<String, String>>(&manifest.bytes) {
                Ok(names) => assets.manifest = names,
                Err(err) => eprintln!("studylab: {MANIFEST}: {err}"),
            }
        }
        assets.fingerprinted = assets.manifest.values().cloned().collect();
        assets
    }

    /// Where a page finds the file with this source name.
    pub fn url(&self, source: &str) -> String {
        format!("/assets/{}", self.manifest.get(source).map_or(source, String::as_str))
    }

    fn read_dir(&mut self, dir: &Path, prefix: &str, depth: usize) -> std::io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = format!("{prefix}{name}");
            // Neither follows a symbolic link.
            let (kind, length) = (entry.file_type()?, entry.metadata()?.len());
            if kind.is_dir() && depth < MAX_DEPTH {
                self.read_dir(&entry.path(), &format!("{name}/"), depth + 1)?;
            } else if kind.is_file() && length <= MAX_FILE && self.files.len() < MAX_FILES {
                let asset = Asset { bytes: fs::read(entry.path())?.into(), kind: kind_of(&name) };
                self.files.insert(name, asset);
            }
        }
        Ok(())
    }
}

/// `GET /assets/{path}`
pub async fn serve(
    State(app): State<Arc<App>>,
    RequestPath(path): RequestPath<String>,
) -> Response {
    let Some(asset) = app.assets.files.get(&path) else {
        return (StatusCode::NOT_FOUND, [NO_STORE], "no such asset\n").into_response();
    };
    let cache = if app.assets.fingerprinted.contains(&path) {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    let headers = [
        (header::CONTENT_TYPE, asset.kind),
        (header::CACHE_CONTROL, cache),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, asset.bytes.clone()).into_response()
}

fn kind_of(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, ext)| ext) {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("ico") => "image/x-icon",
        Some("png") => "image/png",
        Some("webp") => "image/webp",
        Some("woff2") => "font/woff2",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_what_was_there_without_links() {
        let dir = tempfile::tempdir().unwrap();
        let public = dir.path().join("public");
        fs::create_dir_all(public.join("img")).unwrap();
        fs::write(dir.path().join("secret"), "s").unwrap();
        fs::write(public.join("app.css"), "body{}").unwrap();
        fs::write(public.join("img/a.svg"), "<svg/>").unwrap();
        fs::write(public.join(MANIFEST), r#"{"app.css":"app.0123abcd.css"}"#).unwrap();
        std::os::unix::fs::symlink("../secret", public.join("link.txt")).unwrap();
        let assets = Assets::load(&public);
        let mut names: Vec<_> = assets.files.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["app.css", "img/a.svg", "manifest.json"]);
        assert_eq!(assets.url("app.css"), "/assets/app.0123abcd.css");
        assert_eq!(assets.url("app.js"), "/assets/app.js");
    }

    #[test]
    fn without_a_directory_there_are_no_assets() {
        assert!(Assets::load("/nonexistent".as_ref()).files.is_empty());
    }
}
