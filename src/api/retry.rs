//! When a call is tried again, and how long to wait: the one place that decides it.
//!
//! Delays are drawn evenly from zero to a doubling ceiling ("full jitter"), so that a fleet that
//! lost its server together does not come back together. A `Retry-After` is a floor, with jitter
//! on top: obeyed as it stands it would line the herd up again.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy)]
pub struct Policy {
    pub base: Duration,
    pub cap: Duration,
    /// No new try begins later than this after the first; `None` never gives up.
    pub give_up_after: Option<Duration>,
}

impl Policy {
    /// A person is waiting.
    pub fn interactive(give_up_after: Duration) -> Policy {
        Policy {
            base: Duration::from_secs(1),
            cap: Duration::from_secs(30),
            give_up_after: Some(give_up_after),
        }
    }

    /// Nobody is.
    pub fn unattended() -> Policy {
        Policy {
            base: Duration::from_secs(5),
            cap: Duration::from_secs(300),
            give_up_after: None,
        }
    }
}

/// A row of delays. Pure: time and chance come from outside.
#[derive(Debug)]
pub struct Backoff {
    policy: Policy,
    chance: fastrand::Rng,
    failures: u32,
}

impl Backoff {
    pub fn new(policy: Policy, seed: u64) -> Backoff {
        Backoff {
            policy,
            chance: fastrand::Rng::with_seed(seed),
            failures: 0,
        }
    }

    /// How long to wait after one more failure, `elapsed` after the first try began; `None` when
    /// it is time to give up.
    pub fn next(&mut self, elapsed: Duration, retry_after: Option<Duration>) -> Option<Duration> {
        let doubled = self
            .policy
            .base
            .saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        let floor = retry_after.map_or(Duration::ZERO, |asked| {
            asked.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
        });
        let delay = floor + doubled.min(self.policy.cap).mul_f64(self.chance.f64());
        match self.policy.give_up_after {
            Some(limit) if elapsed + delay > limit => None,
            _ => Some(delay),
        }
    }

    /// To be called after a success: the next failure starts from the base again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Whether an error is worth another try, and what the server asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    Nothing,
    Retry { after: Option<Duration> },
}

/// Calls `exchange` until it succeeds, fails for good, or time is up; then its last error stands.
pub async fn with_retries<T, E: Display>(
    backoff: &mut Backoff,
    mut exchange: impl AsyncFnMut() -> Result<T, E>,
    worth: impl Fn(&E) -> Worth,
    mut on_retry: impl FnMut(&E, Duration),
) -> Result<T, E> {
    let began = Instant::now();
    loop {
        let error = match exchange().await {
            Ok(answer) => {
                backoff.reset();
                return Ok(answer);
            }
            Err(error) => error,
        };
        let Worth::Retry { after } = worth(&error) else {
            return Err(error);
        };
        let Some(delay) = backoff.next(began.elapsed(), after) else {
            return Err(error);
        };
        on_retry(&error, delay);
        tokio::time::sleep(delay).await;
    }
}

/// Both forms of `Retry-After`: seconds, or a date, which is read against the server's own `Date`
/// because the device's clock may be years off.
pub fn parse_retry_after(
    value: &str,
    server_date: Option<&str>,
    now: SystemTime,
) -> Option<Duration> {
    let value = value.trim();
    if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    let server_now = server_date.and_then(|date| httpdate::parse_http_date(date).ok());
    Some(
        at.duration_since(server_now.unwrap_or(now))
            .unwrap_or(Duration::ZERO),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    const SECOND: Duration = Duration::from_secs(1);

    fn worth_retrying(_: &&str) -> Worth {
        Worth::Retry { after: None }
    }

    #[tokio::test(start_paused = true)]
    async fn an_interactive_call_gives_up_within_its_limit_with_the_last_error() {
        let began = Instant::now();
        let tries = Cell::new(0);
        let outcome: Result<(), &str> = with_retries(
            &mut Backoff::new(Policy::interactive(Duration::from_secs(300)), 7),
            async || {
                tries.set(tries.get() + 1);
                Err("connection refused")
            },
            worth_retrying,
            |_, _| {},
        )
        .await;
        assert_eq!(outcome, Err("connection refused"));
        assert!(began.elapsed() <= Duration::from_secs(300));
        assert!((15..60).contains(&tries.get()), "{} tries", tries.get());
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_error_is_not_tried_again_and_a_success_ends_the_row() {
        let tries = Cell::new(0);
        let mut backoff = Backoff::new(Policy::unattended(), 7);
        let outcome: Result<(), &str> = with_retries(
            &mut backoff,
            async || {
                tries.set(tries.get() + 1);
                Err("rejected")
            },
            |_| Worth::Nothing,
            |_, _| panic!("no retry is announced"),
        )
        .await;
        assert_eq!((outcome, tries.get()), (Err("rejected"), 1));

        let answer = with_retries(
            &mut backoff,
            async || {
                tries.set(tries.get() + 1);
                if tries.get() < 5 { Err("busy") } else { Ok(42) }
            },
            worth_retrying,
            |_, _| {},
        )
        .await;
        assert_eq!((answer, tries.get()), (Ok(42), 5));
    }

    #[test]
    fn retry_after_in_both_forms() {
        let now = SystemTime::UNIX_EPOCH; // a device without a clock battery
        let date = "Fri, 20 Nov 2026 00:00:00 GMT";
        let later = "Fri, 20 Nov 2026 00:02:00 GMT";
        let table = [
            ("120", None, Some(120 * SECOND)),
            (" 5 ", None, Some(5 * SECOND)),
            (later, Some(date), Some(120 * SECOND)),
            (date, Some(later), Some(Duration::ZERO)),
            (
                "99999999999999999999999",
                None,
                Some(Duration::from_secs(u64::MAX)),
            ),
            ("soon", None, None),
            ("-1", None, None),
            ("", None, None),
        ];
        for (value, server_date, expected) in table {
            assert_eq!(
                parse_retry_after(value, server_date, now),
                expected,
                "{value:?}"
            );
        }
    }

    #[test]
    fn without_a_server_date_the_own_clock_serves() {
        let now = httpdate::parse_http_date("Fri, 20 Nov 2026 00:00:00 GMT").expect("a date");
        assert_eq!(
            parse_retry_after("Fri, 20 Nov 2026 00:01:00 GMT", None, now),
            Some(60 * SECOND)
        );
    }

    proptest! {
        #[test]
        fn a_delay_keeps_to_its_bounds(
            seed: u64,
            failures in 1..40_u32,
            asked in proptest::option::of(0..100_000_u64),
        ) {
            let policy = Policy::unattended();
            let mut backoff = Backoff::new(policy, seed);
            let asked = asked.map(Duration::from_secs);
            for _ in 0..failures {
                let delay = backoff.next(Duration::ZERO, asked).expect("never gives up");
                let floor = asked.map_or(Duration::ZERO, |asked| asked.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX));
                prop_assert!(delay >= floor);
                prop_assert!(delay <= floor + policy.cap);
            }
        }

        #[test]
        fn devices_do_not_move_in_step(one: u64, other: u64) {
            prop_assume!(one != other);
            let delay = |seed| Backoff::new(Policy::unattended(), seed).next(Duration::ZERO, Some(SECOND));
            prop_assert_ne!(delay(one), delay(other));
        }

        #[test]
        fn no_header_makes_the_parser_panic(value in ".{0,40}", date in proptest::option::of(".{0,40}")) {
            parse_retry_after(&value, date.as_deref(), SystemTime::UNIX_EPOCH);
        }
    }
}
