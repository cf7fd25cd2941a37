//! Where values of secrets come from: the operator's configuration names their sources, and nothing
//! here keeps what a process or a session store was given. A process gets its allocation's credential
//! besides.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::admin::OWN;
use crate::admin::credential::Credentials;
use crate::config::{self, Running, Secret, SecretSource, SecretValues};
use crate::contract::Contract;
use crate::id::{AllocationId, Environment};
use crate::proxy::WebhookSecrets;
use crate::session::StoreSecrets;
use crate::wake::Secrets;

/// Secrets that deliveries are verified with, as read at the start or with the last reload.
pub(super) struct VerifyingSecrets(pub(super) Arc<SecretValues>);

impl WebhookSecrets for VerifyingSecrets {
    fn of(&self, environment: &Environment, name: &str) -> Vec<Secret> {
        self.0.of(environment, name)
    }
}

/// Reads secrets where the operator's configuration says they are, each time they are needed, so
/// that a rotated file counts from the next start on.
pub(super) struct OperatorSecrets(pub(super) Arc<Running>);

impl StoreSecrets for OperatorSecrets {
    fn read(&self, environment: &Environment, name: &str) -> Result<String, String> {
        let config = self.0.load();
        let app = config.apps.get(environment.app());
        let production = *environment == Environment::production(environment.app().clone());
        let sources: Option<&Vec<SecretSource>> = app.and_then(|a| {
            if production { a.secrets.get(name) } else { a.preview_secrets.get(name) }
        });
        let source = sources.and_then(|s| s.first()).ok_or_else(|| {
            let list = if production { "secrets" } else { "preview_secrets" };
            format!("the app asks for the secret {name}: add it to `{list}` in its conf/apps file")
        })?;
        let secret = config::read_secret(source).map_err(|e| format!("secret {name}: {e}"))?;
        Ok(secret.expose().to_owned())
    }
}

/// What a process is given besides what its contract's `env` says.
pub(super) struct ProcessSecrets {
    pub(super) operator: Arc<OperatorSecrets>,
    pub(super) credentials: Arc<Credentials>,
    /// Where an app finds the admin API.
    pub(super) admin: SocketAddr,
}

impl Secrets for ProcessSecrets {
    fn of(
        &self,
        environment: &Environment,
        allocation: Option<&AllocationId>,
        contract: &Contract,
    ) -> Result<Vec<(String, String)>, String> {
        let value = |name: &String| Ok((name.clone(), self.operator.read(environment, name)?));
        let secrets: Result<Vec<_>, String> = contract.process.secrets.iter().map(value).collect();
        let mut secrets = secrets?;
        if let Some(allocation) = allocation {
            // After the contract's own: the last one of a name counts.
            secrets.push(("VANGO_EDGE_SELF_URL".into(), format!("http://{}{OWN}", self.admin)));
            let token = self.credentials.seal(environment, allocation);
            secrets.push(("VANGO_EDGE_SELF_TOKEN".into(), token));
        }
        Ok(secrets)
    }
}
