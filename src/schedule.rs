//! When things are due. Pure: the time and the dice are handed in.

use std::time::Duration;

/// The first wait before a failed connection is tried again.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The longest.
const BACKOFF_MOST: Duration = Duration::from_secs(60);

/// How long after the start a server's first snapshot is due.
///
/// `age` is how long ago its last one began, when that is known. A server that is due already, or was never
/// seen, gets a random place within one period (`dice` in 0..1), so that a whole fleet does not come at once.
pub fn first_delay(age: Option<Duration>, frequency: Duration, dice: f64) -> Duration {
    match age {
        Some(age) if age < frequency => frequency - age,
        _ => frequency.mul_f64(dice.clamp(0.0, 1.0)),
    }
}

/// How long to wait before attempt number `attempt` (the first retry is 1): doubling from a second to a
/// minute, less up to half of it (`dice` in 0..1) so that many who wait for one server come one by one.
pub fn backoff(attempt: u32, dice: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    let wait = BACKOFF_FIRST.saturating_mul(1 << doublings).min(BACKOFF_MOST);
    wait.mul_f64(1.0 - 0.5 * dice.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_start_goes_on_where_the_last_run_ended() {
        assert_eq!(first_delay(Some(S(20)), S(60), 0.9), S(40));
    }

    #[test]
    fn an_overdue_or_unknown_server_gets_a_random_place_in_one_period() {
        assert_eq!(first_delay(Some(S(60)), S(60), 0.5), S(30));
        assert_eq!(first_delay(Some(S(6000)), S(60), 0.0), S(0));
        assert_eq!(first_delay(None, S(60), 0.25), S(15));
    }

    #[test]
    fn waits_double_up_to_a_minute_and_never_vanish() {
        assert_eq!(backoff(1, 0.0), S(1));
        assert_eq!(backoff(3, 0.0), S(4));
        assert_eq!(backoff(u32::MAX, 0.0), S(60));
        assert_eq!(backoff(1, 1.0), Duration::from_millis(500));
    }
}
