//! The edge's control room: what deploys, promotes and removes. It is a process of its own here, which
//! crashes and begins again while requests go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;
use vango_edge::artifact::{ArtifactError, ArtifactSource, Decoded, Verified};
use vango_edge::control::{
    Collector, Counts, Decisions, Deployments, OneOffs, Owners, Previews, PromotionWork,
    Promotions, Routing, Sleeper,
};
use vango_edge::id::Digest;
use vango_edge::node::Node;
use vango_edge::wake::Executor;

use crate::edge::{self, Waker, files, waker};
use crate::store::Life;
use crate::world::{Sim, contract};

pub struct Control {
    pub owners: Arc<Owners>,
    pub promotions: Arc<Promotions>,
    pub previews: Arc<Previews>,
    pub deployments: Deployments,
    /// Deployments that go on.
    pub deploying: Arc<AtomicU32>,
    pub life: Arc<Life>,
}

impl Control {
    /// Makes it, under the configuration of the edge's `node`, and lets it run.
    pub async fn start(
        sim: &Arc<Sim>,
        node: &Node,
        routing: &Arc<Routing>,
        sleeper: &Arc<Sleeper>,
    ) -> Arc<Self> {
        let life = Arc::<Life>::default();
        let node = edge::node(sim, "control", &life, node.config.clone());
        let n = || node.clone();
        let Waker { runner, allocations, starts, wakes, exits } = waker(sim, &node, &life);
        let owners = Owners::new(n(), routing.clone(), sleeper.clone());
        let counts = Counts::new(n());
        let collector = Collector::new(n(), Arc::clone(&files().artifacts));
        let work = PromotionWork::new(
            n(),
            counts.clone(),
            owners.clone(),
            starts.clone(),
            allocations,
            wakes.clone(),
            OneOffs::new(n(), starts.clone(), runner, 4),
        );
        let executor = Executor::new(n(), work);
        let promotions = Promotions::new(n(), counts.clone(), collector.clone(), executor);
        let deployments = Deployments {
            node: n(),
            artifacts: Arc::new(Uploaded { sim: Arc::clone(sim), life: Arc::clone(&life) }),
            starts,
            owners: owners.clone(),
            routing: routing.clone(),
            counts: counts.clone(),
            promotions: promotions.clone(),
            collector,
        };
        let previews = Previews::new(
            n(),
            counts.clone(),
            owners.clone(),
            sleeper.clone(),
            routing.clone(),
            Decisions::new(n(), Box::new(|_, _| Box::pin(async { Ok(()) }))),
        );
        // As `server` does: first what an earlier process left, then the loops.
        tokio::spawn(exits.follow());
        while wakes.executor.let_go_of_claims().await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
        let config = node.config.load().clone();
        let one = owners.change().await;
        while owners.follow(&config, &one).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
        drop(one);
        tokio::spawn(promotions.clone().run());
        tokio::spawn(counts.run());
        Arc::new(Self {
            owners,
            promotions,
            previews,
            deployments,
            deploying: Arc::default(),
            life,
        })
    }
}

/// Artifacts that were uploaded: what of them is not flushed, a power cut takes.
struct Uploaded {
    sim: Arc<Sim>,
    life: Arc<Life>,
}

impl Uploaded {
    async fn takes(&self, scales: &[usize]) {
        sleep(self.sim.dice.ms(scales)).await;
        self.life.goes_on().await;
    }
}

#[async_trait]
impl ArtifactSource for Uploaded {
    async fn verified(
        self: Arc<Self>,
        digest: &Digest,
        _decoded: Decoded,
    ) -> Result<Verified, ArtifactError> {
        self.takes(&[1, 20, 200]).await;
        if !self.sim.is_calm() && self.sim.dice.one_in(20) {
            return Err(ArtifactError::Missing(*digest));
        }
        Ok(Verified { contract: contract(digest), files: 1, bytes: 1, assets: None })
    }

    async fn flush(&self) -> Result<(), ArtifactError> {
        let written = self.sim.truth().moves.unflushed();
        self.takes(&[1, 20]).await;
        if !self.sim.is_calm() && self.sim.dice.one_in(20) {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(ArtifactError::Io { path: "blobs".into(), source });
        }
        self.sim.truth().moves.flushed(written);
        Ok(())
    }

    async fn note(
        &self,
        _digest: &Digest,
        _annotations: BTreeMap<String, String>,
    ) -> Result<(), ArtifactError> {
        self.takes(&[1, 20]).await;
        Ok(())
    }
}
