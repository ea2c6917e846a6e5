//! Wall-clock time, injected. Durations and deadlines use tokio's monotonic clock instead, which
//! tests can pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// The system's clock plus an offset that every clone shares: tests and the mock cloud turn the
/// days without touching the machine's clock.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicI64>,
}

impl Clock {
    pub fn system() -> Clock {
        Clock::default()
    }

    /// A clock that shows this time now, and goes on from there.
    pub fn showing(time: SystemTime) -> Clock {
        let clock = Clock::system();
        let now = clock.now();
        let ahead_ms = match time.duration_since(now) {
            Ok(ahead) => milliseconds(ahead),
            Err(behind) => -milliseconds(behind.duration()),
        };
        clock.ahead_ms.store(ahead_ms, Ordering::Relaxed);
        clock
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the door to the wall clock stands here"
    )]
    pub fn now(&self) -> SystemTime {
        let now = SystemTime::now();
        let ahead_ms = self.ahead_ms.load(Ordering::Relaxed);
        let distance = Duration::from_millis(ahead_ms.unsigned_abs());
        if ahead_ms < 0 {
            now - distance
        } else {
            now + distance
        }
    }

    pub fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(milliseconds(by), Ordering::Relaxed);
    }

    /// Now, as the API writes times: RFC 3339 in UTC, to the second.
    pub fn timestamp(&self) -> String {
        rfc3339(self.now())
    }
}

pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
