//! Uploads: what the edge lacks of an artifact, and what it has that need not be made again.

use std::collections::HashSet;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

use crate::artifact::{ASKED, ArtifactError, BATCH_BYTES};
use crate::id::Digest;

use super::Admin;
use super::problem::Problem;
use super::records::{Answer, digest};
use super::types::{Batch, BlobList, EncodedFile, EncodedFiles, Encoding, EncodingsRequest};

/// Largest blob that can be uploaded.
const BLOB_LIMIT: u64 = 5 * 1024 * 1024 * 1024;

/// Bytes of a list of digests.
const LIST_BYTES: usize = 1024 * 1024;

/// Batches that are taken at the same time.
pub const MOST_BATCHES: usize = 8;

/// How long a whole batch may take to come.
const BATCH_TIME: Duration = Duration::from_secs(300);

/// Whether a blob of an artifact is here.
#[utoipa::path(head, path = "/v1/blobs/{digest}", tag = "commands",
    params(("digest" = String, Path, description = "sha256:HEX")),
    responses(
        (status = 200, description = "It is"),
        (status = 404, description = "It is not"),
        (status = 503, description = "The artifact store cannot be read")))]
pub async fn has_blob(
    State(admin): State<Admin>,
    Path(text): Path<String>,
) -> Result<StatusCode, Problem> {
    let has = admin.artifacts.has(&digest(&text)?).await.map_err(Problem::unavailable)?;
    Ok(if has { StatusCode::OK } else { StatusCode::NOT_FOUND })
}

/// Uploads a blob of an artifact; its digest is checked on the way in.
#[utoipa::path(put, path = "/v1/blobs/{digest}", tag = "commands",
    params(("digest" = String, Path, description = "sha256:HEX")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "It is kept"),
        (status = 503, description = "The artifact store cannot be written")))]
pub async fn put_blob(
    State(admin): State<Admin>,
    Path(text): Path<String>,
    body: Body,
) -> Result<StatusCode, Problem> {
    let digest = digest(&text)?;
    let stream = body.into_data_stream();
    match admin.artifacts.put(&digest, BLOB_LIMIT, stream).await {
        Ok(_) => Ok(StatusCode::CREATED),
        Err(e) if e.retryable() => Err(Problem::unavailable(e)),
        Err(e) => Err(Problem::bad(e)),
    }
}

/// Which of these blobs are not here, or damaged. Those that are here are kept for an hour from now on, also
/// without a deployment.
#[utoipa::path(post, path = "/v1/blobs/missing", tag = "commands", request_body = BlobList,
    responses(
        (status = 200, description = "Those that have to be uploaded", body = BlobList),
        (status = 503, description = "The artifact store cannot be read")))]
pub async fn missing(State(admin): State<Admin>, body: Body) -> Answer<BlobList> {
    let asked: BlobList = list(body).await?;
    let digests = digests(&asked.digests)?;
    let missing = admin.artifacts.missing(digests).await.map_err(Problem::unavailable)?;
    Ok(Json(BlobList { digests: missing.iter().map(ToString::to_string).collect() }))
}

/// Uploads many small blobs at once: an archive of tar, each blob a file that is named by the hexadecimal digits
/// of its digest and has at most a mebibyte; at most 16 MiB and 8192 blobs.
#[utoipa::path(post, path = "/v1/blobs", tag = "commands",
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses(
        (status = 201, description = "They are stored", body = Batch),
        (status = 503, description = "The artifact store cannot be written, or takes too many at a time")))]
pub async fn put_blobs(
    State(admin): State<Admin>,
    body: Body,
) -> Result<(StatusCode, Json<Batch>), Problem> {
    // Each is in memory.
    let Ok(_one) = admin.batches.try_acquire() else {
        return Err(Problem::unavailable("too many uploads go on at the same time; try again"));
    };
    let archive = whole(body, BATCH_BYTES).await?;
    match admin.artifacts.put_batch(archive).await {
        Ok(stored) => Ok((StatusCode::CREATED, Json(Batch { stored: stored as u64 }))),
        Err(e) if e.retryable() => Err(Problem::unavailable(e)),
        Err(e @ ArtifactError::TooLarge { .. }) => {
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, e.to_string()))
        }
        Err(e) => Err(Problem::bad(e)),
    }
}

/// Encodings of files that deployments which are kept have already: who deploys the same files again need not
/// make them.
#[utoipa::path(post, path = "/v1/blobs/encodings", tag = "commands", request_body = EncodingsRequest,
    responses((status = 200, description = "Those that are known", body = EncodedFiles)))]
pub async fn encodings(State(admin): State<Admin>, body: Body) -> Answer<EncodedFiles> {
    let asked: EncodingsRequest = list(body).await?;
    let wanted: HashSet<Digest> = digests(&asked.digests)?.into_iter().collect();
    let mut files = Vec::new();
    let mut told = HashSet::new();
    let snapshot = admin.node.snapshots.load();
    let shelves = snapshot.environments().flat_map(|view| &view.assets);
    let indexes = shelves.filter_map(|shelf| shelf.index.as_ref());
    for index in indexes.filter(|index| index.encoder() == asked.encoder) {
        for asset in index.assets() {
            let Ok(media_type) = asset.media_type.to_str() else { continue };
            let plain = &asset.identity;
            // What came with a file is not what would be made of it.
            if plain.coding.is_none()
                && !asset.given
                && wanted.contains(&plain.digest)
                && told.insert((plain.digest, media_type.to_owned()))
            {
                let encodings = asset.encoded.iter().filter_map(|e| {
                    let (coding, digest) = (e.coding?.name().to_owned(), e.digest.to_string());
                    Some(Encoding { coding, digest, size: e.size })
                });
                files.push(EncodedFile {
                    digest: plain.digest.to_string(),
                    media_type: media_type.to_owned(),
                    encodings: encodings.collect(),
                });
            }
        }
    }
    Ok(Json(EncodedFiles { files }))
}

async fn whole(body: Body, limit: usize) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BATCH_TIME, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(e)) if e.to_string().contains("length limit") => {
            let why = format!("the body has more than {limit} bytes");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, why))
        }
        Ok(Err(e)) => Err(Problem::bad(e)),
        Err(_) => {
            let why = format!("the body did not come within {BATCH_TIME:?}");
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, why))
        }
    }
}

/// A JSON body that is longer than others may be.
async fn list<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    let bytes = whole(body, LIST_BYTES).await?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, e.to_string()))
}

fn digests(asked: &[String]) -> Result<Vec<Digest>, Problem> {
    if asked.len() > ASKED {
        return Err(Problem::bad(format!(
            "expected at most {ASKED} digests, found {}",
            asked.len()
        )));
    }
    asked.iter().map(|text| digest(text)).collect()
}
