//! Release commands on the machine: each ends well, ends badly, or does not end when its fate says so.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::sleep;
use vango_edge::id::AllocationId;
use vango_edge::runner::{
    ExitStatus, FreezeError, Launched, Once, OnceSpec, Pipes, Room, StopError,
};

use crate::store::Life;
use crate::world::Sim;

/// A command that runs.
struct Command {
    /// The process of the edge that started it.
    life: Arc<Life>,
    ended: watch::Sender<Option<ExitStatus>>,
    _room: Room,
}

/// All that run.
#[derive(Default)]
pub struct Commands {
    all: Mutex<BTreeMap<AllocationId, Command>>,
    /// How the next ones end, where a story says so.
    told: Mutex<VecDeque<ExitStatus>>,
}

impl Commands {
    pub fn running(&self) -> Vec<AllocationId> {
        self.all.lock().unwrap().keys().cloned().collect()
    }

    /// The next one ends with `status`, at once.
    pub fn next_ends(&self, status: ExitStatus) {
        self.told.lock().unwrap().push_back(status);
    }

    fn end(&self, sim: &Sim, id: &AllocationId, status: ExitStatus) {
        let ended = self.all.lock().unwrap().remove(id);
        if let Some(command) = ended {
            sim.released(id, status);
            command.ended.send_replace(Some(status));
        }
    }

    /// The next process of the edge ends what the one before left.
    pub fn end_leftovers(&self, sim: &Sim, of: &Arc<Life>) {
        let left: Vec<_> = {
            let all = self.all.lock().unwrap();
            all.iter().filter(|(_, c)| Arc::ptr_eq(&c.life, of)).map(|(id, _)| id.clone()).collect()
        };
        for id in left {
            sim.happened("a release command outlived its edge");
            self.end(sim, &id, ExitStatus::Signal(9));
        }
    }
}

/// Starts it.
pub fn launch(sim: &Arc<Sim>, life: &Arc<Life>, spec: OnceSpec, room: Room) -> Once {
    let OnceSpec { id, program, grace, .. } = spec;
    sim.about_to_release(&id, &program);
    let (ended, told) = watch::channel(None);
    let command = Command { life: Arc::clone(life), ended, _room: room };
    sim.machine.commands.all.lock().unwrap().insert(id.clone(), command);
    tokio::spawn(fate(Arc::clone(sim), id.clone()));
    let launched = Migration { sim: Arc::clone(sim), life: Arc::clone(life), id, told };
    Once::of(Arc::new(launched), grace, Pipes::default())
}

async fn fate(sim: Arc<Sim>, id: AllocationId) {
    let told = sim.machine.commands.told.lock().unwrap().pop_front();
    if let Some(status) = told {
        return sim.machine.commands.end(&sim, &id, status);
    }
    let dice = &sim.dice;
    let trouble = |one_in| !sim.is_calm() && dice.one_in(one_in);
    let (fails, killed) = (trouble(5), trouble(20));
    // Longer than its contract lets it at times.
    sleep(dice.ms(if sim.is_calm() { &[20, 300] } else { &[20, 300, 900, 3_000] })).await;
    let status = match (fails, killed) {
        (_, true) => ExitStatus::Signal(11),
        (true, _) => ExitStatus::Code(1),
        _ => ExitStatus::Code(0),
    };
    sim.machine.commands.end(&sim, &id, status);
}

/// What its node has of it.
struct Migration {
    sim: Arc<Sim>,
    life: Arc<Life>,
    id: AllocationId,
    told: watch::Receiver<Option<ExitStatus>>,
}

#[async_trait]
impl Launched for Migration {
    fn id(&self) -> &AllocationId {
        &self.id
    }
    fn pid(&self) -> u32 {
        1
    }
    fn ended(&self) -> BoxFuture<'static, ExitStatus> {
        let mut told = self.told.clone();
        async move {
            let ended = told.wait_for(Option::is_some).await;
            ended.ok().and_then(|status| *status).unwrap_or(ExitStatus::Unknown)
        }
        .boxed()
    }
    fn has_ended(&self) -> bool {
        self.told.borrow().is_some()
    }
    fn asked(&self) -> bool {
        false
    }
    async fn freeze(&self) -> Result<(), FreezeError> {
        Ok(())
    }
    fn thaw(&self) -> Result<(), FreezeError> {
        Ok(())
    }
    async fn memory(&self) -> u64 {
        0
    }
    async fn end(&self, _grace: Duration) -> Result<(), StopError> {
        self.life.goes_on().await;
        self.sim.told_to_end(&self.id);
        sleep(self.sim.dice.ms(&[1, 50, 500])).await;
        self.life.goes_on().await;
        self.sim.machine.commands.end(&self.sim, &self.id, ExitStatus::Signal(15));
        Ok(())
    }
    fn printed(&self, _max: usize) -> String {
        String::new()
    }
}
