//! The order, on one thread and on several.

use std::sync::atomic::AtomicU64;

use super::*;
use vango_edge_core::clock::{ManualClock, Wall};

/// What ran, in its order.
#[derive(Clone, Default)]
struct Order(Arc<Mutex<Vec<&'static str>>>);

impl Order {
    fn add(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }
    fn before(&self, what: &str) -> Vec<&'static str> {
        let all = self.0.lock().unwrap();
        all.iter().take_while(|w| **w != what).copied().collect()
    }
}

fn urgent() -> Arc<Urgency> {
    let urgency = Arc::<Urgency>::default();
    urgency.answered();
    urgency
}

fn large() -> Arc<Urgency> {
    let urgency = Arc::<Urgency>::default();
    urgency.has_time();
    urgency
}

/// On one thread: `first` makes tasks, all of which are ready before one of them runs.
fn on_one_thread<F: Future<Output = ()> + Send + 'static>(
    first: impl FnOnce(Arc<dyn Clock>, Arc<ManualClock>) -> F + Send + 'static,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let clock = Arc::new(ManualClock::default());
    let all = runtime.spawn(async move { first(Arc::clone(&clock) as _, clock).await });
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(30), all).await })
        .unwrap()
        .unwrap();
}

#[test]
fn what_is_urgent_is_beside_what_is_new_and_not_behind_it() {
    on_one_thread(|time, clock| async move {
        let order = Order::default();
        let mut tasks = Vec::new();
        for _ in 0..200 {
            let (order, clock) = (order.clone(), Arc::clone(&clock));
            // Each turn is a pass.
            let work = async move {
                clock.advance(A_PASS);
                order.add("new");
            };
            tasks.push(tokio::spawn(run(&time, Arc::default(), work)));
        }
        let hot = order.clone();
        tasks.push(tokio::spawn(run(&time, urgent(), async move {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            hot.add("urgent");
        })));
        for task in tasks {
            task.await.unwrap();
        }
        let before = order.before("urgent").len();
        assert!(before <= 25, "{before} of 200 ran before a request had looked ten times");
        assert_eq!(order.0.lock().unwrap().len(), 201);
    });
}

#[test]
fn what_gives_way_has_its_share_beside_what_is_always_ready() {
    on_one_thread(|time, clock| async move {
        let (done, polls) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicU64::new(0)));
        let mut busy = Vec::new();
        for _ in 0..100 {
            let (done, polls, clock) = (Arc::clone(&done), Arc::clone(&polls), Arc::clone(&clock));
            busy.push(tokio::spawn(run(&time, urgent(), async move {
                while done.load(Ordering::Relaxed) == 0 {
                    polls.fetch_add(1, Ordering::Relaxed);
                    clock.advance(A_PASS);
                    behind().await;
                }
            })));
        }
        let mut tasks = Vec::new();
        for _ in 0..100 {
            let clock = Arc::clone(&clock);
            let work = async move { clock.advance(A_PASS) };
            tasks.push(tokio::spawn(run(&time, Arc::default(), work)));
        }
        for task in tasks {
            task.await.unwrap();
        }
        done.store(1, Ordering::Relaxed);
        for task in busy {
            task.await.unwrap();
        }
        // One in five is 400; one in each round would be 10,000.
        let polls = polls.load(Ordering::Relaxed);
        assert!(polls <= 1500, "100 turns took {polls} turns of what is always ready");
    });
}

#[test]
fn a_new_connection_is_not_behind_all_large_answers_nor_they_behind_new_connections() {
    on_one_thread(|time, clock| async move {
        let order = Order::default();
        let mut tasks = Vec::new();
        let classes = [("large", large as fn() -> _), ("new", Arc::default), ("large", large)];
        for (name, urgency) in classes {
            for _ in 0..50 {
                let (order, clock) = (order.clone(), Arc::clone(&clock));
                let work = async move {
                    clock.advance(A_PASS);
                    order.add(name);
                };
                tasks.push(tokio::spawn(run(&time, urgency(), work)));
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
        let all = order.0.lock().unwrap().clone();
        // The first few ran before the others had come.
        let large = all[10..60].iter().filter(|w| **w == "large").count();
        assert!((20..=30).contains(&large), "{large} of 50: {all:?}");
    });
}

#[test]
fn a_task_that_ended_in_the_queue_keeps_no_other_waiting() {
    on_one_thread(|time, clock| async move {
        let mut tasks = Vec::new();
        for _ in 0..100 {
            let clock = Arc::clone(&clock);
            let work = async move { clock.advance(A_PASS) };
            tasks.push(tokio::spawn(run(&time, Arc::default(), work)));
        }
        // All have been polled once, and most wait.
        behind().await;
        behind().await;
        let line = LINE.with(Arc::clone);
        let waiting: usize = line.lock().queues.iter().map(VecDeque::len).sum();
        assert!(waiting > 50, "{waiting}");
        for task in tasks.drain(..99) {
            task.abort();
        }
        tasks.remove(0).await.unwrap();
        while line.lock().paced {
            tokio::task::yield_now().await;
        }
        assert!(line.lock().is_empty());
    });
}

/// Each reading takes as long as a third of a pass: turns end passes without a test that waits.
struct Running(ManualClock);

impl Clock for Running {
    fn now(&self) -> Mono {
        self.0.advance(A_PASS / 3);
        self.0.now()
    }
    fn wall(&self) -> Wall {
        self.0.wall()
    }
}

/// Several threads, tasks of every kind that change their urgency from elsewhere, wait, are woken
/// from elsewhere and end in the queue: each that is left runs to its end, and all is quiet then.
#[test]
fn no_wake_is_lost_among_threads() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build();
    let runtime = runtime.unwrap();
    let time: Arc<dyn Clock> = Arc::new(Running(ManualClock::default()));
    let storm = runtime.spawn(async move {
        for round in 0..20_u64 {
            let mut tasks = Vec::new();
            for n in 0..300_u64 {
                let urgency = [Arc::default(), urgent(), large(), Urgency::of_acceptor()]
                    [(n % 4) as usize]
                    .clone();
                let from_elsewhere = Arc::clone(&urgency);
                let (wake, woken) = tokio::sync::oneshot::channel::<()>();
                let task = tokio::spawn(run(&time, urgency, async move {
                    for _ in 0..n % 7 {
                        behind().await;
                    }
                    let _ = woken.await;
                    tokio::task::yield_now().await;
                }));
                if (n + round) % 11 == 0 {
                    task.abort();
                } else {
                    tasks.push(task);
                }
                tokio::spawn(async move {
                    if n % 3 == 0 {
                        from_elsewhere.answered();
                    } else if n % 3 == 1 {
                        from_elsewhere.awaits(true);
                    }
                    let _ = wake.send(());
                });
            }
            for task in tasks {
                task.await.unwrap();
            }
        }
        // This one is left: no task begins passes where none waits.
        while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 1 {
            tokio::task::yield_now().await;
        }
    });
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(60), storm).await })
        .expect("a task was never woken")
        .unwrap();
}

#[test]
fn a_request_is_urgent_once_one_was_answered_and_while_it_is_small() {
    let urgency = Urgency::default();
    assert!(!urgency.is_urgent(), "nothing was answered");
    urgency.awaits(true);
    urgency.awaits(false);
    assert!(!urgency.is_urgent());
    urgency.answered();
    assert!(urgency.is_urgent());
    urgency.awaits(true);
    assert!(!urgency.is_urgent() && urgency.queue() == 1);
    urgency.awaits(false);
    assert!(urgency.is_urgent() && urgency.queue() == 0);
    urgency.has_time();
    urgency.awaits(false);
    assert!(!urgency.is_urgent() && urgency.queue() == 1);
    urgency.answered();
    assert!(urgency.is_urgent());
}
