//! Kubernetes quantities (`100m`, `64Mi`, `1e3`).
//! Upstream: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A thousandth, as milli-units are counted.
const MILLI: f64 = 1000.0;

/// The value in whole units, rounded up as upstream rounds.
pub fn value(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 1.0)
}

/// The value in thousandths, rounded up.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, MILLI)
}

/// A number of bytes as upstream writes it: the largest binary unit that leaves no fraction.
pub fn binary(bytes: u64) -> String {
    let mut number = bytes;
    let mut unit = "";
    for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
        if number == 0 || !number.is_multiple_of(1024) {
            break;
        }
        number /= 1024;
        unit = next;
    }
    format!("{number}{unit}")
}

fn scaled(text: &str, times: f64) -> Option<i64> {
    let (number, factor) = split(text.trim())?;
    let exact: f64 = number.parse().ok()?;
    // A relative slack keeps 0.1 * 1000 from rounding up to 101.
    let product = exact * factor * times;
    let rounded = if (product - product.round()).abs() < 1e-6 * product.abs().max(1e-9) {
        product.round()
    } else {
        product.ceil()
    };
    // Saturates, which is right for the capacities compared here.
    Some(rounded as i64)
}

fn split(text: &str) -> Option<(&str, f64)> {
    const BINARY: [(&str, i32); 6] = [("Ki", 1), ("Mi", 2), ("Gi", 3), ("Ti", 4), ("Pi", 5), ("Ei", 6)];
    const DECIMAL: [(&str, i32); 9] =
        [("n", -9), ("u", -6), ("m", -3), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
    for (suffix, power) in BINARY {
        if let Some(number) = text.strip_suffix(suffix) {
            return plain(number).then(|| (number, 1024_f64.powi(power)));
        }
    }
    for (suffix, power) in DECIMAL {
        if let Some(number) = text.strip_suffix(suffix) {
            return plain(number).then(|| (number, 10_f64.powi(power)));
        }
    }
    let valid = text
        .split_once(['e', 'E'])
        .map_or_else(|| plain(text), |(mantissa, exponent)| plain(mantissa) && exponent.parse::<i16>().is_ok());
    valid.then_some((text, 1.0))
}

fn plain(number: &str) -> bool {
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') && digits.matches('.').count() <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_in_the_largest_whole_unit() {
        let texts = [0, 1, 1024, 1536, 100 << 20, 3 << 40].map(binary);
        assert_eq!(texts, ["0", "1", "1Ki", "1536", "100Mi", "3Ti"]);
    }

    #[test]
    fn units_and_rounding() {
        let cases = [
            ("100m", 1, 100),
            ("0.1", 1, 100),
            ("1", 1, 1000),
            ("64Mi", 67_108_864, 67_108_864_000),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("1e3", 1000, 1_000_000),
            ("2k", 2000, 2_000_000),
            ("1500u", 1, 2),
            ("2E", 2_000_000_000_000_000_000, i64::MAX),
        ];
        for (text, whole, thousandths) in cases {
            let q = Quantity(text.into());
            assert_eq!((value(&q), milli(&q)), (Some(whole), Some(thousandths)), "{text}");
        }
        for bad in ["", "abc", "1x", "--1", "1.2.3", "NaN", "inf", "Mi"] {
            assert_eq!(value(&Quantity(bad.into())), None, "{bad}");
        }
    }
}
