//! The Date of an HTTP answer (RFC 9110 section 5.6.7), in the one form that may still be sent.

use crate::time::UnixTime;

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Reads `Sun, 06 Nov 1994 08:49:37 GMT`; `None` for anything else and for times before 1970.
pub fn parse(text: &str) -> Option<UnixTime> {
    let (_, rest) = text.split_once(", ")?;
    let [day, month, year, time, "GMT"] = rest.split(' ').collect::<Vec<_>>()[..] else { return None };
    let [hour, minute, second] = time.split(':').collect::<Vec<_>>()[..] else { return None };
    let number = |text: &str, len: usize, most: u64| {
        let digits = text.len() == len && text.bytes().all(|octet| octet.is_ascii_digit());
        text.parse::<u64>().ok().filter(|number| digits && *number <= most)
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let (day, year) = (number(day, 2, 31).filter(|day| *day > 0)?, number(year, 4, 9999).filter(|year| *year >= 1970)?);
    let seconds = number(hour, 2, 23)? * 3600 + number(minute, 2, 59)? * 60 + number(second, 2, 60)?;
    Some(UnixTime::from_secs(days(year, month, day) * 86_400 + seconds))
}

/// Days from 1970-01-01: the era arithmetic of the Gregorian calendar, with years that begin in March.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_are_read() {
        for (text, rfc3339) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", "1970-01-01T00:00:00Z"),
            ("Tue, 29 Feb 2000 12:30:59 GMT", "2000-02-29T12:30:59Z"),
            ("Sat, 21 Nov 2026 15:00:01 GMT", "2026-11-21T15:00:01Z"),
            ("Thu, 31 Dec 2099 23:59:59 GMT", "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), rfc3339);
        }
        for text in [
            "",
            "Sat, 21 Nov 2026 15:00:01 CET",
            "Sat, 21 Nov 1969 15:00:01 GMT",
            "Sat, 0 Nov 2026 15:00:01 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_date_or_none(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
