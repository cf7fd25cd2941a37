//! The environment that a resource's path names.

use axum::http::StatusCode;
use serde::Deserialize;

use crate::id::Environment;

use super::Admin;
use super::problem::Problem;

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
        if admin.control.snapshots.load().environment(&environment).is_none() {
            let why =
                format!("there is no environment {environment}; `vango-edge routes` lists them");
            return Err(Problem::not_found(why));
        }
        Ok(environment)
    }

    /// The environment, if this edge runs it.
    ///
    /// # Errors
    /// 404 if it does not know it, 409 if this edge does not run it.
    pub fn ours(&self, admin: &Admin) -> Result<Environment, Problem> {
        let environment = self.known(admin)?;
        let snapshot = admin.control.snapshots.load();
        if snapshot.environment(&environment).is_some_and(|v| v.external) {
            let why = format!("this edge does not run {environment}: it only forwards to it");
            return Err(Problem::new(StatusCode::CONFLICT, why));
        }
        Ok(environment)
    }
}
