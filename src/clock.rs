//! Wall-clock time, injected. Durations and deadlines use tokio's monotonic clock instead, which
//! tests can pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The system's clock plus an offset that every clone shares: tests and the mock cloud turn the
/// days forward without touching the machine's clock.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicU64>,
}

impl Clock {
    pub fn system() -> Clock {
        Clock::default()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the door to the wall clock stands here"
    )]
    pub fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }

    pub fn advance(&self, by: Duration) {
        let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.ahead_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// Now, as the API writes times: RFC 3339 in UTC, to the second.
    pub fn timestamp(&self) -> String {
        rfc3339(self.now())
    }
}

pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
