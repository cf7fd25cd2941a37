//! Work on many items, on as many threads as there are processors.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::ArtifactError;

/// Runs `work` for each of `items`; results in order. After an error nothing more is begun.
pub fn each<I: Sync, T: Send>(
    items: &[I],
    progress: &mut dyn FnMut(u64, u64),
    work: impl Fn(&I) -> Result<T, ArtifactError> + Sync,
) -> Result<Vec<T>, ArtifactError> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Result<T, ArtifactError>>>> =
        Mutex::new(items.iter().map(|_| None).collect());
    let (told, telling) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            let (next, results, told, work) = (&next, &results, told.clone(), &work);
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { return };
                    let result = work(item);
                    if result.is_err() {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    results.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(result);
                    // The receiver lives as long as this scope.
                    let _ = told.send(());
                }
            });
        }
        drop(told);
        for (done, ()) in telling.iter().enumerate() {
            progress(done as u64 + 1, items.len() as u64);
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_an_error_ends_it() {
        let items: Vec<u64> = (0..500).collect();
        let mut seen = 0;
        let doubled = each(&items, &mut |done, _| seen = seen.max(done), |n| Ok(n * 2)).unwrap();
        assert_eq!((seen, doubled), (500, items.iter().map(|n| n * 2).collect()));
        let begun = AtomicUsize::new(0);
        let failed = each(&items, &mut |_, _| {}, |n| {
            begun.fetch_add(1, Ordering::Relaxed);
            if *n == 0 { Err(ArtifactError::refused("0", "no")) } else { Ok(()) }
        });
        assert!(failed.is_err());
        assert!(each(&[] as &[u64], &mut |_, _| {}, |_| Ok(())).unwrap().is_empty());
    }
}
