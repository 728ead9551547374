//! RFC 3339 in UTC with nine digits of a second, as the CRI log format wants. No allocation: the shim writes one a line.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub type Text = [u8; 30];

/// Now, as text.
pub fn now() -> Text {
    format(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub fn now_string() -> String {
    String::from_utf8_lossy(&now()).into_owned()
}

/// `since` counts from 1970. Civil date from day number: Howard Hinnant, `chrono`-compatible low-level date algorithms.
pub fn format(since: Duration) -> Text {
    let seconds = since.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);

    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], rest / 3_600);
    digits(&mut text[14..16], rest / 60 % 60);
    digits(&mut text[17..19], rest % 60);
    digits(&mut text[20..29], u64::from(since.subsec_nanos()));
    text
}

fn digits(into: &mut [u8], mut value: u64) {
    for place in into.iter_mut().rev() {
        // A remainder of ten always fits.
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_chrono() {
        for seconds in [0_u64, 951_782_400, 1_709_164_799, 1_709_164_800, 1_735_689_599, 4_102_444_799, 1_772_323_199] {
            let ours = format(Duration::new(seconds, 7_000_042));
            let theirs = chrono::DateTime::from_timestamp(i64::try_from(seconds).unwrap(), 7_000_042).unwrap();
            assert_eq!(std::str::from_utf8(&ours).unwrap(), theirs.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true));
        }
    }
}
