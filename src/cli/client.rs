//! Talks to the admin API of a running edge.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::request::Builder;
use ureq::http::{Request, Response};
use ureq::{Agent, AsSendBody, Body, BodyReader, SendBody};

use crate::admin::types::{Batch, BlobList, EncodedFiles, EncodingsRequest, ProblemBody};
use crate::artifact::{ASKED, Blob, Known};
use crate::assets::{ENCODER, Encoded};
use crate::config::Secret;
use crate::id::Digest;

/// Largest page of a list that is read.
const PAGE_BYTES: u64 = 64 * 1024 * 1024;

/// The address in `<…>; rel="next"` (RFC 8288), as the edge writes it: a path of its own.
fn next_page(link: &str) -> Option<String> {
    let (address, rel) = link.strip_prefix('<')?.split_once('>')?;
    (rel == "; rel=\"next\"" && address.starts_with('/')).then(|| address.to_owned())
}

/// No answer came.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Away(ureq::Error);

/// The client. Every call has a deadline, but for what streams.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    base: String,
    /// Goes into no error and no log.
    token: Option<Secret>,
}

impl Client {
    /// For the admin API at `base`, such as `http://127.0.0.1:9901` or the same without its scheme, with a
    /// token if it wants one.
    pub fn new(base: &str, token: Option<Secret>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(Duration::from_secs(600)))
            .proxy(None)
            .build();
        let scheme = if base.contains("://") { "" } else { "http://" };
        Self {
            agent: config.into(),
            base: format!("{scheme}{}", base.trim_end_matches('/')),
            token,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn run(&self, request: Builder, body: impl AsSendBody) -> Result<Response<Body>, ureq::Error> {
        self.agent.run(self.authorized(request).body(body)?)
    }

    fn authorized(&self, request: Builder) -> Builder {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {}", token.expose())),
            None => request,
        }
    }

    /// An answer that is no success is an error, in the edge's own words.
    fn success(&self, outcome: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>> {
        let mut response = outcome.map_err(|e| anyhow::Error::new(Away(e))).with_context(|| {
            format!(
                "no edge answers at {}: is `vango-edge run` running? (--admin says where)",
                self.base
            )
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.body_mut().read_to_string().unwrap_or_default();
        if status.as_u16() == 401 && self.token.is_none() {
            bail!(
                "{} asks for a token, and none was given: put it into a file and name that with \
                 --token-file, or into the environment variable VANGO_EDGE_TOKEN",
                self.base
            );
        }
        match serde_json::from_str::<ProblemBody>(&body) {
            Ok(problem) => bail!("{}", problem.detail),
            // An answer to HEAD has no words.
            Err(_) if status.as_u16() == 401 => bail!("{} does not know this token", self.base),
            Err(_) if status.as_u16() == 403 => {
                bail!("{}: this token may look and explain, and change nothing", self.base)
            }
            Err(_) => bail!("{} answered {status}: {}", self.base, body.trim()),
        }
    }

    fn json<T: DeserializeOwned>(&self, request: Builder, body: impl AsSendBody) -> Result<T> {
        Ok(self.success(self.run(request, body))?.body_mut().read_json()?)
    }

    /// GET, read as JSON.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Request::get(self.url(path)), ())
    }

    /// DELETE, read as JSON.
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Request::delete(self.url(path)), ())
    }

    fn answer_to(&self, path: &str, body: &impl Serialize) -> Result<Response<Body>> {
        let request = Request::post(self.url(path)).header("content-type", "application/json");
        self.success(self.run(request, serde_json::to_vec(body)?))
    }

    /// POST JSON, read as JSON.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        Ok(self.answer_to(path, body)?.body_mut().read_json()?)
    }

    /// PATCH JSON, read as JSON.
    pub fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let request = Request::patch(self.url(path)).header("content-type", "application/json");
        self.json(request, serde_json::to_vec(body)?)
    }

    /// POST JSON; what is answered, as it comes, for as long as that takes.
    pub fn stream(&self, path: &str, body: &impl Serialize) -> Result<BodyReader<'static>> {
        let request = Request::post(self.url(path)).header("content-type", "application/json");
        let response = self.success(self.run_without_end(request, serde_json::to_vec(body)?))?;
        Ok(response.into_body().into_reader())
    }

    /// PUT of what is read from `content`, as it comes, for as long as that takes.
    pub fn put_stream(&self, path: &str, content: &mut dyn Read) -> Result<()> {
        let request = Request::put(self.url(path));
        self.success(self.run_without_end(request, SendBody::from_reader(&mut { content })))?;
        Ok(())
    }

    fn run_without_end(
        &self,
        request: Builder,
        body: impl AsSendBody,
    ) -> Result<Response<Body>, ureq::Error> {
        let request = self.authorized(request).body(body)?;
        let request = self.agent.configure_request(request).timeout_global(None).build();
        self.agent.run(request)
    }

    /// GET, read as text.
    pub fn text(&self, path: &str) -> Result<String> {
        let response = self.run(Request::get(self.url(path)), ());
        Ok(self.success(response)?.body_mut().read_to_string()?)
    }

    /// GET of server-sent events, which go on until the edge ends them.
    pub fn events(&self, path: &str) -> Result<impl Read + use<>> {
        let mut request = Request::get(self.url(path));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.expose()));
        }
        let endless = self.agent.configure_request(request.body(())?).timeout_global(None);
        let response = self.success(self.agent.run(endless.build()))?;
        Ok(response.into_body().into_reader())
    }

    /// The rows of a list, page after page, at most `most`. `path` says how many a page has.
    pub fn rows<T: DeserializeOwned>(&self, path: &str, most: usize) -> Result<Vec<T>> {
        let mut rows: Vec<T> = Vec::new();
        let mut next = Some(path.to_owned());
        while let Some(path) = next {
            let mut response = self.success(self.run(Request::get(self.url(&path)), ()))?;
            let link = response.headers().get("link").and_then(|v| v.to_str().ok());
            let after = link.and_then(next_page);
            let page: Vec<T> = response.body_mut().with_config().limit(PAGE_BYTES).read_json()?;
            rows.extend(page);
            next = after.filter(|_| rows.len() < most);
        }
        rows.truncate(most);
        Ok(rows)
    }

    /// Those of `digests` that the edge has not.
    pub fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let mut missing = Vec::new();
        for some in digests.chunks(ASKED) {
            let asked = BlobList { digests: some.iter().map(ToString::to_string).collect() };
            let found: BlobList = self.post("/v1/blobs/missing", &asked)?;
            for digest in found.digests {
                missing.push(digest.parse()?);
            }
        }
        Ok(missing)
    }

    /// What the edge knows of the encodings of the files with these digests.
    pub fn encodings(&self, digests: &[Digest]) -> Result<Known> {
        let mut known = Known::new();
        for some in digests.chunks(ASKED) {
            let digests = some.iter().map(ToString::to_string).collect();
            let asked = EncodingsRequest { encoder: ENCODER, digests };
            let mut found = self.answer_to("/v1/blobs/encodings", &asked)?;
            let found: EncodedFiles =
                found.body_mut().with_config().limit(PAGE_BYTES).read_json()?;
            for file in found.files {
                let mut encodings = Vec::new();
                for e in file.encodings {
                    let coding = serde_json::from_value(e.coding.into())?;
                    let digest = e.digest.parse()?;
                    encodings.push(Encoded { coding, digest, size: e.size, given: false });
                }
                known.insert((file.digest.parse()?, file.media_type), encodings);
            }
        }
        Ok(known)
    }

    /// Uploads what [`crate::artifact::batch`] made.
    pub fn put_batch(&self, archive: Vec<u8>) -> Result<()> {
        let request =
            Request::post(self.url("/v1/blobs")).header("content-type", "application/x-tar");
        let stored: Batch = self.json(request, archive)?;
        log::debug!("{} blobs were stored", stored.stored);
        Ok(())
    }

    /// Uploads a blob; `passed` is told how many bytes have gone, again and again.
    pub fn put_blob(&self, blob: &Blob, passed: &mut dyn FnMut(u64)) -> Result<()> {
        let mut content = Passing { content: blob.open()?, passed, bytes: 0 };
        let request = Request::put(self.url(&format!("/v1/blobs/{}", blob.digest)));
        let request = request.header("content-length", blob.size);
        self.success(self.run(request, SendBody::from_reader(&mut content))).map(|_| ())
    }
}

/// Says how much of it was read.
struct Passing<'a> {
    content: Box<dyn Read>,
    passed: &'a mut dyn FnMut(u64),
    bytes: u64,
}

impl Read for Passing<'_> {
    fn read(&mut self, space: &mut [u8]) -> std::io::Result<usize> {
        let n = self.content.read(space)?;
        self.bytes += n as u64;
        (self.passed)(self.bytes);
        Ok(n)
    }
}
