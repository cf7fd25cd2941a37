//! Talks to the admin API of a running edge.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, RequestBuilder, SendBody};

use crate::admin::types::ProblemBody;
use crate::config::Secret;
use crate::id::Digest;

/// Largest page of a list that is read.
const PAGE_BYTES: u64 = 64 * 1024 * 1024;

/// The address in `<…>; rel="next"` (RFC 8288), as the edge writes it: a path of its own.
fn next_page(link: &str) -> Option<String> {
    let (address, rel) = link.strip_prefix('<')?.split_once('>')?;
    (rel == "; rel=\"next\"" && address.starts_with('/')).then(|| address.to_owned())
}

/// The client. Every call has a deadline.
pub struct Client {
    agent: Agent,
    base: String,
    /// Goes into no error and no log.
    token: Option<Secret>,
}

impl Client {
    /// For the admin API at `base`, such as `http://127.0.0.1:9901`, with a token if it wants one.
    pub fn new(base: &str, token: Option<Secret>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(Duration::from_secs(600)))
            .proxy(None)
            .build();
        Self { agent: config.into(), base: base.trim_end_matches('/').to_owned(), token }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {}", token.expose())),
            None => request,
        }
    }

    fn sent(
        &self,
        outcome: Result<Response<ureq::Body>, ureq::Error>,
    ) -> Result<Response<ureq::Body>> {
        let mut response = outcome.with_context(|| {
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
        match serde_json::from_str::<ProblemBody>(&body) {
            Ok(problem) => bail!("{}", problem.detail),
            Err(_) => bail!("{} answered {status}: {}", self.base, body.trim()),
        }
    }

    /// GET, read as JSON.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let mut response = self.sent(self.authorized(self.agent.get(self.url(path))).call())?;
        Ok(response.body_mut().read_json()?)
    }

    /// The rows of a list, page after page, at most `most`. `path` says how many a page has.
    pub fn rows<T: DeserializeOwned>(&self, path: &str, most: usize) -> Result<Vec<T>> {
        let mut rows: Vec<T> = Vec::new();
        let mut next = Some(path.to_owned());
        while let Some(path) = next {
            let mut response =
                self.sent(self.authorized(self.agent.get(self.url(&path))).call())?;
            let link = response.headers().get("link").and_then(|v| v.to_str().ok());
            next = link.and_then(next_page).filter(|_| rows.len() < most);
            let page: Vec<T> = response.body_mut().with_config().limit(PAGE_BYTES).read_json()?;
            rows.extend(page);
            if rows.len() >= most {
                rows.truncate(most);
                break;
            }
        }
        Ok(rows)
    }

    /// DELETE, read as JSON.
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let request = self.authorized(self.agent.delete(self.url(path)));
        let mut response = self.sent(request.call())?;
        Ok(response.body_mut().read_json()?)
    }

    /// GET, read as text.
    pub fn text(&self, path: &str) -> Result<String> {
        let mut response = self.sent(self.authorized(self.agent.get(self.url(path))).call())?;
        Ok(response.body_mut().read_to_string()?)
    }

    /// POST JSON, read as JSON.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let mut response =
            self.sent(self.authorized(self.agent.post(self.url(path))).send_json(body))?;
        Ok(response.body_mut().read_json()?)
    }

    /// Whether the edge has a blob.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let path = self.url(&format!("/v1/blobs/{digest}"));
        let response = self.authorized(self.agent.head(path)).call();
        match response {
            Ok(r) if r.status().as_u16() == 404 => Ok(false),
            other => self.sent(other).map(|_| true),
        }
    }

    /// Uploads a blob of `size` bytes from a file; `passed` is told how many have gone, again and again.
    pub fn put_blob(
        &self,
        digest: &Digest,
        (file, size): (&Path, u64),
        passed: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let content = File::open(file).with_context(|| file.display().to_string())?;
        let mut content = Passing { content, passed, bytes: 0 };
        let path = self.url(&format!("/v1/blobs/{digest}"));
        let request = self.authorized(self.agent.put(path)).header("content-length", size);
        self.sent(request.send(SendBody::from_reader(&mut content))).map(|_| ())
    }
}

/// Says how much of it was read.
struct Passing<'a> {
    content: File,
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
