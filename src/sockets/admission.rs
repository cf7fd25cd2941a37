//! How many live sockets are being accepted at a time: a herd that comes back when an allocation
//! dies reaches each survivor a few at a time, in order, with a little jitter, while pages pass by.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::id::AllocationId;

/// Most jitter of one that had to wait.
const JITTER: Duration = Duration::from_millis(20);

/// Bounds of the node.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionLimits {
    /// Sockets that one allocation is accepting at the same time.
    pub at_once: usize,
    /// Sockets that wait for that, on the whole node.
    pub waiting: usize,
}

/// Why a socket is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdmitted {
    /// As many sockets wait as [`AdmissionLimits::waiting`] allows.
    Full,
    /// It waited as long as it may.
    TooLate,
}

/// Admits sockets to their allocations.
#[derive(Debug)]
pub struct Admission {
    limits: AdmissionLimits,
    allocations: Mutex<HashMap<AllocationId, Arc<Semaphore>>>,
    /// As many permits as sockets may wait.
    waiting: Semaphore,
}

/// A socket that is being accepted, until this is dropped.
pub type Admitted = OwnedSemaphorePermit;

impl Admission {
    /// No socket is admitted yet.
    pub fn new(limits: AdmissionLimits) -> Self {
        Self { limits, allocations: Mutex::default(), waiting: Semaphore::new(limits.waiting) }
    }

    /// Sockets that wait to be admitted.
    pub fn waiting(&self) -> usize {
        self.limits.waiting - self.waiting.available_permits()
    }

    /// Waits until `allocation` may accept one more, at most for `within`. `pick` is 64 random bits.
    ///
    /// # Errors
    /// [`NotAdmitted`]; nothing was sent.
    pub async fn admit(
        &self,
        allocation: &AllocationId,
        within: Duration,
        pick: u64,
    ) -> Result<Admitted, NotAdmitted> {
        let semaphore = self.semaphore(allocation);
        if let Ok(permit) = Arc::clone(&semaphore).try_acquire_owned() {
            return Ok(permit);
        }
        let waiting = self.waiting.try_acquire().map_err(|_| NotAdmitted::Full)?;
        let permit = tokio::time::timeout(within, semaphore.acquire_owned()).await;
        drop(waiting);
        // The semaphore is never closed.
        let Ok(Ok(permit)) = permit else { return Err(NotAdmitted::TooLate) };
        let jitter = u64::try_from(JITTER.as_micros()).unwrap_or(u64::MAX);
        tokio::time::sleep(Duration::from_micros(pick % jitter)).await;
        Ok(permit)
    }

    fn semaphore(&self, allocation: &AllocationId) -> Arc<Semaphore> {
        let mut all = self.allocations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(allocation) {
            return Arc::clone(known);
        }
        // Allocations that accept no socket just now: the map stays as small as what is going on.
        all.retain(|_, s| Arc::strong_count(s) > 1);
        let new = Arc::new(Semaphore::new(self.limits.at_once));
        all.insert(allocation.clone(), Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_at_a_time_in_order_and_no_more_wait_than_may() {
        let a = Admission::new(AdmissionLimits { at_once: 2, waiting: 1 });
        let id: AllocationId = "al-aaaaaaaaaaaaaaaa".parse().unwrap();
        let other: AllocationId = "al-bbbbbbbbbbbbbbbb".parse().unwrap();
        let second = Duration::from_secs(1);
        let one = a.admit(&id, second, 1).await.unwrap();
        let _two = a.admit(&id, second, 2).await.unwrap();
        let _elsewhere = a.admit(&other, second, 3).await.unwrap();
        let (third, fourth) = tokio::join!(a.admit(&id, second, 4), async {
            tokio::task::yield_now().await;
            let full = a.admit(&id, second, 5).await.map(drop);
            drop(one);
            full
        });
        assert!(third.is_ok());
        assert_eq!(fourth, Err(NotAdmitted::Full));
        assert_eq!(a.admit(&id, second, 6).await.map(drop), Err(NotAdmitted::TooLate));
        assert_eq!(a.waiting(), 0);
    }
}
