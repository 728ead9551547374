//! Resource quantities (`500m`, `1.5Gi`, `2e3`). Upstream: apimachinery `pkg/api/resource`.

/// The amount in billionths, or none where the text is no quantity. Sub-nano digits round up, as upstream does.
pub fn parse(text: &str) -> Option<i128> {
    const NANO: i128 = 1_000_000_000;
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let digits_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 60 {
        return None;
    }
    let (base, exponent): (i128, i32) = match suffix {
        "" => (10, 0),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (1024, 1),
        "Mi" => (1024, 2),
        "Gi" => (1024, 3),
        "Ti" => (1024, 4),
        "Pi" => (1024, 5),
        "Ei" => (1024, 6),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let exponent: i32 = exponent.parse().ok()?;
            if !(-20..=20).contains(&exponent) {
                return None;
            }
            (10, exponent)
        }
    };
    let mut digits: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        digits = digits.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
    }
    let power = |base: i128, by: u32| base.checked_pow(by).unwrap_or(i128::MAX);
    let mut numerator = digits.saturating_mul(NANO);
    let mut denominator = power(10, u32::try_from(fraction.len()).ok()?);
    if exponent >= 0 {
        numerator = numerator.saturating_mul(power(base, exponent.unsigned_abs()));
    } else {
        denominator = denominator.saturating_mul(power(base, exponent.unsigned_abs()));
    }
    // Larger ones than upstream can hold are that.
    let amount = (numerator / denominator + i128::from(numerator % denominator != 0)).min(i128::from(i64::MAX) * NANO);
    Some(if negative { -amount } else { amount })
}

/// The amount of a JSON value that stands for a quantity.
pub fn of(value: &serde_json::Value) -> Option<i128> {
    match value {
        serde_json::Value::String(text) => parse(text),
        serde_json::Value::Number(number) => parse(&number.to_string()),
        _ => None,
    }
}

/// An amount of billionths in upstream's form.
pub fn print(amount: i128) -> String {
    let mut rest = amount;
    let mut unit = "n";
    if amount == 0 {
        return "0".to_owned();
    }
    for next in ["u", "m", "", "k", "M", "G", "T", "P", "E"] {
        if rest % 1000 != 0 {
            break;
        }
        rest /= 1000;
        unit = next;
    }
    format!("{rest}{unit}")
}

/// The form in which upstream stores a quantity: the largest unit that needs no fraction (`1000m` is `1`).
pub fn canonical(text: &str) -> Option<String> {
    const NANO: i128 = 1_000_000_000;
    let amount = parse(text)?;
    let suffix = text.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '+' | '-'));
    if suffix.starts_with(['e', 'E']) && suffix != "E" && suffix != "Ei" {
        return Some(text.to_owned());
    }
    if amount == 0 {
        return Some("0".to_owned());
    }
    if suffix.ends_with('i') && amount % NANO == 0 && (amount / NANO).abs() >= 1024 {
        let mut whole = amount / NANO;
        let mut unit = "";
        for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
            if whole % 1024 != 0 {
                break;
            }
            whole /= 1024;
            unit = next;
        }
        return Some(format!("{whole}{unit}"));
    }
    Some(print(amount))
}

#[cfg(test)]
mod tests {
    use super::{canonical, parse};

    #[test]
    fn canonical_forms() {
        for (text, form) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1", "1"),
            ("100Mi", "100Mi"),
            ("0", "0"),
            ("2000", "2k"),
            ("1500m", "1500m"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("-1000m", "-1"),
            ("99999999999999999999Gi", "9223372036854775807"),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(form), "{text}");
            assert_eq!(parse(form), parse(text));
        }
    }

    #[test]
    fn amounts() {
        assert_eq!(parse("1"), Some(1_000_000_000));
        assert_eq!(parse("500m"), Some(500_000_000));
        assert_eq!(parse("1.5Gi"), Some(1_610_612_736_000_000_000));
        assert_eq!(parse("1e3"), parse("1k"));
        assert_eq!(parse("0.1n"), Some(1));
        assert_eq!(parse("-1"), Some(-1_000_000_000));
        for bad in ["", "m", "1 Gi", "1gi", "1.2.3", "--1", "1e99", "Gi", "0x1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
