//! Says to the edge what became of this app's own attempts whose outcome the edge does not know,
//! as the project's docs/actions.md describes it.
//!
//! The app asks for the unknown records of its own environment when it starts, and again now and then:
//! an attempt may also become unknown while the app lives, when the edge was killed or the answer was
//! late. Not started by an edge, it asks nothing.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;

use crate::database::{Attempt, route};
use crate::store::Store;

/// For one question; the edge is on this machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the edge answers, and what it is shown. Not `Debug`: the token is printed nowhere.
#[derive(Clone)]
struct Edge {
    url: String,
    token: String,
    agent: ureq::Agent,
}

#[derive(Deserialize)]
struct Row {
    at: String,
    route: String,
    attempt: u32,
}

impl Edge {
    /// `VANGO_EDGE_SELF_URL` and `VANGO_EDGE_SELF_TOKEN`, if there are both.
    fn from_env() -> Option<Self> {
        let var = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
        Some(Self { url: var("VANGO_EDGE_SELF_URL")?, token: var("VANGO_EDGE_SELF_TOKEN")?, agent })
    }

    fn unknown(&self) -> Result<Vec<Row>, ureq::Error> {
        let asked = self.agent.get(format!("{}/ledger?state=unknown&limit=1000", self.url));
        let mut answer = asked.header("Authorization", format!("Bearer {}", self.token)).call()?;
        answer.body_mut().read_json()
    }

    fn say(&self, attempt: &Attempt, carried_out: bool) -> Result<(), ureq::Error> {
        let outcome = if carried_out { "carried-out" } else { "not-carried-out" };
        let body =
            json!({ "attempt": attempt.number, "outcome": outcome, "note": "by its attempts" });
        let said = self.agent.post(format!("{}/ledger/{}/resolve", self.url, attempt.record));
        said.header("Authorization", format!("Bearer {}", self.token)).send_json(body)?;
        Ok(())
    }
}

/// Asks and says, every `every`, for as long as the process runs.
pub async fn forever(store: Store, every: Duration) {
    let Some(edge) = Edge::from_env() else { return };
    loop {
        if let Err(why) = once(&edge, &store).await {
            // Neither the edge's answer nor the database's: the next time it may be there.
            eprintln!("studylab: unknown attempts are left as they are: {why}");
        }
        sleep(every).await;
    }
}

async fn once(edge: &Edge, store: &Store) -> Result<(), String> {
    let asked = edge.clone();
    let rows = blocking(move || asked.unknown()).await?;
    for row in rows.into_iter().filter(|r| r.route == route::SUBMIT) {
        let record = row.at.rsplit('/').next().unwrap_or_default().to_owned();
        let attempt = Attempt { record, number: row.attempt };
        let claimed = attempt.clone();
        let carried_out = store.write(move |db| db.carried_out(&claimed)).await;
        let carried_out = carried_out.map_err(|e| e.to_string())?;
        let told = edge.clone();
        blocking(move || told.say(&attempt, carried_out)).await?;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, ureq::Error> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(ask).await {
        Ok(answer) => answer.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    }
}
