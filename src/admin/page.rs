//! Lists in pages: `?limit=` rows after the row that `?after=` names; the header `Link` has the
//! address of the next page (RFC 8288) while there is one.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::problem::Problem;

/// Rows of a page, at most.
pub const MOST: usize = 1000;

/// Which page of a list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Rows at most; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// Only rows that come after this one; the header `Link` of the page before has it.
    pub after: Option<String>,
}

/// What a request for a page asks for, and at which address: the next page's repeats it.
pub struct Asked {
    query: PageQuery,
    uri: Uri,
}

impl<S: Sync> FromRequestParts<S> for Asked {
    type Rejection = QueryRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, QueryRejection> {
        let Query(query) = Query::try_from_uri(&parts.uri)?;
        Ok(Self { query, uri: parts.uri.clone() })
    }
}

impl Asked {
    /// Rows that are asked for.
    ///
    /// # Errors
    /// When there are none, or too many.
    pub fn limit(&self) -> Result<usize, Problem> {
        match self.query.limit.unwrap_or(100) {
            n @ 1..=MOST => Ok(n),
            n => Err(Problem::bad(format!("limit: expected 1 to {MOST}, found {n}"))),
        }
    }

    /// The row to begin after.
    pub fn after(&self) -> Option<&str> {
        self.query.after.as_deref()
    }
}

/// What a list is answered with.
pub type Rows<T> = Result<Page<T>, Problem>;

/// A page of a list.
#[derive(Debug)]
pub struct Page<T> {
    rows: Vec<T>,
    next: Option<String>,
}

impl<T> Page<T> {
    /// The page of `rows` that is asked for. `name` names a row, the same way as long as it is listed.
    ///
    /// # Errors
    /// When the limit is out of bounds, or the row to begin after is not (or no longer) listed.
    pub fn cut(
        rows: impl IntoIterator<Item = T>,
        name: impl Fn(&T) -> String,
        asked: &Asked,
    ) -> Rows<T> {
        let limit = asked.limit()?;
        let mut rows = rows.into_iter();
        if let Some(after) = asked.after()
            && !rows.by_ref().any(|row| name(&row) == after)
        {
            let why = "after: no row of this list has that name now; begin with the first page";
            return Err(Problem::bad(why));
        }
        let page: Vec<T> = rows.by_ref().take(limit).collect();
        let more = rows.next().is_some();
        let next = page.last().filter(|_| more).map(|last| next_page(&asked.uri, &name(last)));
        Ok(Self { rows: page, next })
    }

    /// A page that was read as one, with whether `more` come after it.
    pub fn read(rows: Vec<T>, more: bool, name: impl Fn(&T) -> &str, asked: &Asked) -> Self {
        let next = rows.last().filter(|_| more).map(|last| next_page(&asked.uri, name(last)));
        Self { rows, next }
    }

    /// A page after which the one at `next` follows.
    pub fn until(rows: Vec<T>, next: Option<String>, asked: &Asked) -> Self {
        Self { rows, next: next.map(|next| next_page(&asked.uri, &next)) }
    }

    /// Each row as another.
    pub fn map<R>(self, to: impl FnMut(T) -> R) -> Page<R> {
        Page { rows: self.rows.into_iter().map(to).collect(), next: self.next }
    }
}

/// `uri` with another `after`. Names of rows are made of characters that a query may have.
fn next_page(uri: &Uri, after: &str) -> String {
    let kept = uri.query().unwrap_or_default().split('&');
    let mut query: String = kept
        .filter(|pair| !pair.is_empty() && !pair.starts_with("after="))
        .fold(String::new(), |all, pair| all + pair + "&");
    query.push_str("after=");
    query.push_str(after);
    format!("{}?{query}", uri.path())
}

impl<T: Serialize> IntoResponse for Page<T> {
    fn into_response(self) -> Response {
        let link = self.next.and_then(|uri| {
            HeaderValue::from_str(&format!("<{uri}>; rel=\"next\""))
                .ok()
                .map(|v| [(header::LINK, v)])
        });
        match link {
            Some(link) => (link, Json(self.rows)).into_response(),
            None => Json(self.rows).into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(limit: Option<usize>, after: Option<String>) -> Rows<u32> {
        let uri = "/v1/rows?app=a&after=1&limit=2".parse().unwrap();
        Page::cut(1..=5, u32::to_string, &Asked { query: PageQuery { limit, after }, uri })
    }

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let mut after = None;
        let mut seen = Vec::new();
        loop {
            let page = page(Some(2), after).unwrap();
            seen.extend(page.rows);
            let Some(next) = page.next else { break };
            assert!(next.starts_with("/v1/rows?app=a&limit=2&after="), "{next}");
            after = next.rsplit('=').next().map(str::to_owned);
        }
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_row_that_is_gone_and_a_wrong_limit_are_refused() {
        assert!(page(None, Some("9".into())).is_err());
        for limit in [0, MOST + 1] {
            assert!(page(Some(limit), None).is_err());
        }
    }
}
