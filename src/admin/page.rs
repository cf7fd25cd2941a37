//! Lists in pages: `?limit=` rows after the row that `?after=` names; the header `Link` has the
//! address of the next page (RFC 8288) while there is one.

use axum::Json;
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

impl PageQuery {
    /// Rows that are asked for.
    ///
    /// # Errors
    /// When there are none, or too many.
    pub fn limit(&self, default: usize) -> Result<usize, Problem> {
        match self.limit.unwrap_or(default) {
            n @ 1..=MOST => Ok(n),
            n => Err(Problem::bad(format!("limit: expected 1 to {MOST}, found {n}"))),
        }
    }
}

/// A page of a list.
#[derive(Debug)]
pub struct Page<T> {
    rows: Vec<T>,
    next: Option<String>,
}

impl<T> Page<T> {
    /// The page of `rows` that `query` asks for. `name` names a row, the same way as long as it is
    /// listed; `uri` is what was asked, which the next page's address repeats.
    ///
    /// # Errors
    /// When the limit is out of bounds, or the row to begin after is not (or no longer) listed.
    pub fn cut(
        rows: impl IntoIterator<Item = T>,
        name: impl Fn(&T) -> String,
        query: &PageQuery,
        uri: &Uri,
    ) -> Result<Self, Problem> {
        let limit = query.limit(100)?;
        let mut rows = rows.into_iter();
        if let Some(after) = &query.after
            && !rows.by_ref().any(|row| name(&row) == *after)
        {
            let why = "after: no row of this list has that name now; begin with the first page";
            return Err(Problem::bad(why));
        }
        let page: Vec<T> = rows.by_ref().take(limit).collect();
        let more = rows.next().is_some();
        let next = page.last().filter(|_| more).map(|last| next_page(uri, &name(last)));
        Ok(Self { rows: page, next })
    }
}

impl<T> Page<T> {
    /// A page that was read as one: `next` names its last row where more come after it.
    pub fn read(rows: Vec<T>, next: Option<&str>, uri: &Uri) -> Self {
        Self { rows, next: next.map(|last| next_page(uri, last)) }
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

    fn page(query: &PageQuery) -> Result<Page<u32>, Problem> {
        let uri = "/v1/rows?app=a&after=1&limit=2".parse().unwrap();
        Page::cut(1..=5, u32::to_string, query, &uri)
    }

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let mut query = PageQuery { limit: Some(2), after: None };
        let mut seen = Vec::new();
        loop {
            let page = page(&query).unwrap();
            seen.extend(page.rows);
            let Some(next) = page.next else { break };
            assert!(next.starts_with("/v1/rows?app=a&limit=2&after="), "{next}");
            query.after = next.rsplit('=').next().map(str::to_owned);
        }
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_row_that_is_gone_and_a_wrong_limit_are_refused() {
        assert!(page(&PageQuery { limit: None, after: Some("9".into()) }).is_err());
        for limit in [0, MOST + 1] {
            assert!(page(&PageQuery { limit: Some(limit), after: None }).is_err());
        }
    }
}
