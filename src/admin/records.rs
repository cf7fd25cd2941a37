//! What resources are about: the environment that a path names, and the records that are read for a view.

use axum::Json;
use axum::http::StatusCode;
use serde::Deserialize;

use crate::id::{Digest, Environment};
use crate::record::Record;

use super::Admin;
use super::problem::Problem;

pub(super) type Answer<T> = Result<Json<T>, Problem>;

/// Records of a list that are shown, at most.
const MOST: usize = 10_000;

/// Every record under `prefix`, the last [`MOST`] if there are more.
pub(super) async fn records<T: Record>(admin: &Admin, prefix: &str) -> Result<Vec<T>, Problem> {
    let last = admin.node.last_records::<T>(prefix, MOST).await.map_err(Problem::unavailable)?;
    Ok(last.into_iter().map(|found| found.record).collect())
}

pub(super) fn digest(text: &str) -> Result<Digest, Problem> {
    text.parse().map_err(Problem::bad)
}

/// `{app}/{name}` of a resource's path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct Named {
    /// The app
    app: String,
    /// Its environment: production, or a preview's name
    name: String,
}

impl Named {
    /// The environment, which need not exist.
    ///
    /// # Errors
    /// 400 for what is no name of one.
    pub fn environment(&self) -> Result<Environment, Problem> {
        format!("{}/{}", self.app, self.name).parse().map_err(Problem::bad)
    }

    /// The environment, if this edge knows it.
    ///
    /// # Errors
    /// 404 if it does not.
    pub fn known(&self, admin: &Admin) -> Result<Environment, Problem> {
        let environment = self.environment()?;
        if admin.node.snapshots.load().environment(&environment).is_none() {
            return Err(Problem::not_found(format!(
                "there is no environment {environment}; `vango-edge routes` lists them"
            )));
        }
        Ok(environment)
    }

    /// The environment, if this edge runs it.
    ///
    /// # Errors
    /// 404 if it does not know it, 409 if this edge does not run it.
    pub fn ours(&self, admin: &Admin) -> Result<Environment, Problem> {
        let environment = self.known(admin)?;
        let snapshot = admin.node.snapshots.load();
        if snapshot.environment(&environment).is_some_and(|v| v.external) {
            let why = format!("this edge does not run {environment}: it only forwards to it");
            return Err(Problem::new(StatusCode::CONFLICT, why));
        }
        Ok(environment)
    }
}
