//! How the edge stops: what tells it to, and the order in which it takes its leave.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::OnExit;
use crate::systemd;

use super::compose::Edge;

/// What tells the edge to stop.
pub(super) struct StopSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl StopSignals {
    pub(super) fn new() -> Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    pub(super) async fn told(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Readiness goes first, so that a balancer in front looks elsewhere; then the listeners close; then
/// what is in flight and what is held finish, wakes included. Requests that are held still at the limit
/// are told to come again. A second signal cuts the wait short.
pub(super) async fn drain(edge: &Edge, stop: &mut StopSignals) {
    let server = edge.ground.node.config.load().server.clone();
    log::info!("stopping within {:?}", server.grace);
    systemd::stopping();
    edge.ready.store(false, Ordering::Release);
    let sockets = &edge.woken.sockets;
    let began = edge.ground.node.clock.now();
    let in_order = async {
        tokio::time::sleep(server.unready_for).await;
        let drained = edge.serving.drain(server.grace);
        let (left, ()) = tokio::join!(drained, sockets.drain_all(server.grace));
        if left > 0 {
            edge.woken.queues.shut_down();
            edge.serving.closed_within(LAST_WORD).await;
        }
        // Exchanges whose client has left are read to their end too, within what is left of the
        // limit; the rest becomes unknown when its allocation stops.
        let waited = edge.ground.node.clock.now().since(began);
        edge.exchanges.drained(server.grace.saturating_sub(waited)).await;
    };
    tokio::select! {
        () = in_order => {}
        () = stop.told() => {
            log::info!("told to stop again: not waiting any longer");
            edge.woken.queues.shut_down();
            tokio::join!(edge.serving.drain(LAST_WORD), sockets.drain_all(LAST_WORD));
        }
    }
    let unheard = edge.exchanges.open();
    if unheard > 0 {
        log::warn!("{unheard} requests that were sent had no answer yet: their outcome is unknown");
    }
    let left = edge.serving.open();
    if left > 0 {
        log::info!("{left} connections were still open and are cut");
    }
}

/// How long what the edge has to say itself may take to be sent, after `server.grace`.
const LAST_WORD: Duration = Duration::from_millis(500);

/// How long what came of the last requests may take to be written.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// What was counted is written down; allocations stop or are left for the next edge to adopt; what came
/// of the last requests is put on record; then the stores are flushed and closed.
pub(super) async fn leave(edge: &Edge) {
    edge.commands.counts.flush().await;
    let keep = edge.ground.node.config.load().runner.on_exit == OnExit::Keep;
    match edge.woken.inheritance.leave(keep).await {
        Ok((kept, ended)) => log::info!("{ended} allocations stopped, {kept} left running"),
        Err(e) => log::error!("allocations could not be taken off the registry: {e}"),
    }
    // What is still at work then is unknown to the next process, as after a crash.
    let (at_work, unwritten) = tokio::join!(
        edge.ground.ledger.settled(LAST_RECORDS),
        edge.ground.audit.written(LAST_RECORDS)
    );
    if at_work + unwritten > 0 {
        log::warn!(
            "left unwritten: {at_work} records of the ledger, {unwritten} rows of the audit"
        );
    }
    if let Err(e) = edge.ground.ledger_store.close().await {
        log::error!("the ledger was not closed in order: {e}");
    }
    if let Err(e) = edge.ground.store.close().await {
        log::error!("the store was not closed in order: {e}");
    }
}
