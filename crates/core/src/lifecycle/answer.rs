//! What a client is told, where that is not the app's answer, and how an answer of the edge's own is written
//! for who reads it: a program, a person or a call of gRPC's.

use std::borrow::Cow;

use crate::id::RequestId;
use crate::record::ledger::StoredResponse;

use super::facts::ErrorForm;
use super::page::{self, Brand};
use super::reply::{PROBLEM_BASE, Reply};
use super::standing::Standing;

/// What a client is told, where that is not the app's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// An answer of the edge's own.
    Reply(Reply),
    /// 303 to the same address without the token, with the cookie that opens the preview.
    Welcome {
        location: String,
        /// The `Set-Cookie` field's value.
        cookie: String,
    },
    /// 200, for a client that asks how its host's app stands.
    Standing(Standing),
    /// 200, for an authority that looks whether a host is ours.
    Validation(String),
    /// The stored response of an earlier request with the same key.
    Stored(StoredResponse),
    /// 200, for an event that the app accepted before.
    Acknowledge,
}

impl Answer {
    /// The edge's own answer.
    pub fn reply(&self) -> Option<&Reply> {
        match self {
            Self::Reply(reply) => Some(reply),
            _ => None,
        }
    }
    pub fn status(&self) -> u16 {
        match self {
            Self::Reply(reply) => reply.status,
            Self::Welcome { .. } => 303,
            Self::Stored(stored) => stored.head.status,
            Self::Acknowledge | Self::Standing(_) | Self::Validation(_) => 200,
        }
    }
}

impl Reply {
    /// The status that it is sent with. gRPC's own is in a field of the head, and HTTP's says that there is
    /// one.
    pub fn sent_status(&self, form: ErrorForm) -> u16 {
        if matches!(form, ErrorForm::Grpc(_)) { 200 } else { self.status }
    }

    /// Content type and body; a page is made with `brand`.
    pub fn body(
        &self,
        form: ErrorForm,
        request: RequestId,
        brand: &Brand,
    ) -> (&'static str, String) {
        match form {
            // All of it is in the head: [`super::grpc_status::fields`].
            ErrorForm::Grpc(dialect) => (dialect.content_type(), String::new()),
            // What a contract has a health check told is no problem.
            _ if self.status < 400 => {
                ("text/plain; charset=utf-8", format!("{}\n", self.problem.name()))
            }
            ErrorForm::Problem => ("application/problem+json", self.problem_json(request)),
            ErrorForm::Page | ErrorForm::FormPage => {
                ("text/html; charset=utf-8", page::page(self, form, request, brand))
            }
        }
    }

    /// What programs are told: the detail, and what of the contract leads to another answer.
    fn whole_detail(&self) -> Cow<'_, str> {
        match &self.hint {
            Some(hint) => format!("{} For its developer: {hint}.", self.detail).into(),
            None => self.detail.as_str().into(),
        }
    }

    /// Header fields that a page has besides [`Self::headers`].
    pub fn page_fields(&self, form: ErrorForm, brand: &Brand) -> Vec<(&'static str, String)> {
        let page = matches!(form, ErrorForm::Page | ErrorForm::FormPage);
        if page && self.status >= 400 { page::fields(form, brand).into() } else { Vec::new() }
    }

    fn problem_json(&self, request: RequestId) -> String {
        let mut body = serde_json::json!({
            "type": format!("{PROBLEM_BASE}{}", self.problem.name()),
            "title": self.problem.title(),
            "status": self.status,
            "detail": self.whole_detail(),
            "forwarded": self.forwarded.text(),
            "request": request.to_string(),
        });
        if let Some(id) = &self.operation {
            body["operation"] = id.to_string().into();
        }
        if let Some(seconds) = self.retry_after {
            body["retry_after"] = seconds.into();
        }
        format!("{body}\n")
    }
}

#[cfg(test)]
mod tests;
