//! The OpenAPI 3.1 document of the admin API, made from the handlers themselves: what is served is
//! what is described.

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, OpenApi as Document, Ref, RefOr, Response};
use utoipa::{Modify, OpenApi};

use super::LogBatch;
use super::exec::ExecFrame;
use super::types::{ProblemBody, TraceBatch};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "vango-edge admin API",
        description = "What an edge knows and decided, and the commands of its operators. Errors \
                       are application/problem+json. Lists come in pages: the header Link has the \
                       next one's address."
    ),
    components(schemas(ExecFrame, ProblemBody, TraceBatch, LogBatch)),
    security((), ("token" = [])),
    modifiers(&Common)
)]
struct Base;

/// What every resource has in common.
struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut Document) {
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
            "A token of admin.tokens; without any configured, none is asked for",
        ));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(token.build()));
        let allocation = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
            "An allocation's credential: what its process has in VANGO_EDGE_SELF_TOKEN",
        ));
        components.add_security_scheme("allocation", SecurityScheme::Http(allocation.build()));
    }
}

/// The document's frame, without paths.
pub fn base() -> Document {
    Base::openapi()
}

fn problem(description: &str) -> Response {
    let body = Ref::from_schema_name("ProblemBody");
    let mut response = Response::new(description);
    response.content.insert("application/problem+json".into(), RefOr::T(Content::new(Some(body))));
    response
}

/// Adds to every operation the errors that come before its handler.
pub fn complete(document: &mut Document) {
    for item in document.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.head,
            &mut item.patch,
        ];
        for operation in operations.into_iter().flatten() {
            let mut common = vec![
                ("400", "The request cannot be read"),
                ("401", "A token is required, or not known"),
                ("403", "Host, Origin or the token's role do not allow it"),
            ];
            if operation.request_body.is_some() {
                common.push(("413", "The body is too long"));
                common.push(("415", "The body's type is not the documented one"));
                common.push(("422", "The body has not the documented form"));
            }
            for (status, description) in common {
                let responses = &mut operation.responses.responses;
                responses.entry(status.into()).or_insert_with(|| RefOr::T(problem(description)));
            }
            // Handlers name their own errors by status and words; the form is always this one.
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response
                    && status.starts_with(['4', '5'])
                    && response.content.is_empty()
                {
                    *response = problem(&response.description.clone());
                }
            }
        }
    }
}
