//! Quantities that can be added and compared, and lists of them by resource name. A sum keeps the way of writing of its
//! first part, as upstream's does, so that messages and statuses read the same (apimachinery `pkg/api/resource`).

use crate::schema::quantity;
use serde_json::{Map, Value};
use std::{cmp::Ordering, collections::BTreeMap, fmt};

const UNIT: i128 = 1_000_000_000;

/// How an amount is written: `2000`, `2k`; `1Gi`; `1e3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Decimal,
    Binary,
    Exponent,
}

/// An amount in billionths.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nano: i128,
    form: Form,
}

/// A `ResourceList`.
pub type Amounts = BTreeMap<String, Quantity>;

impl Quantity {
    pub const ZERO: Self = Self { nano: 0, form: Form::Decimal };

    pub fn count(number: usize) -> Self {
        Self { nano: i128::try_from(number).unwrap_or(i128::MAX).saturating_mul(UNIT), form: Form::Decimal }
    }

    pub fn of(value: &Value) -> Option<Self> {
        let nano = quantity::of(value)?;
        let suffix = value.as_str().unwrap_or_default().trim_start_matches(|c: char| !c.is_ascii_alphabetic());
        let form = match suffix {
            "E" => Form::Decimal,
            _ if suffix.ends_with('i') => Form::Binary,
            _ if suffix.starts_with(['e', 'E']) => Form::Exponent,
            _ => Form::Decimal,
        };
        Some(Self { nano, form })
    }

    pub fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// In billionths of the unit.
    pub fn nano(self) -> i128 {
        self.nano
    }

    pub fn plus(self, other: Self) -> Self {
        let form = if self.is_zero() { other.form } else { self.form };
        Self { nano: self.nano.saturating_add(other.nano), form }
    }

    /// What is left of `self`, nothing if `other` is more.
    pub fn beyond(self, other: Self) -> Self {
        Self { nano: self.nano.saturating_sub(other.nano).max(0), ..self }
    }

    /// Up to the next whole unit.
    pub fn rounded_up(self) -> Self {
        let part = self.nano.rem_euclid(UNIT);
        let missing = if part == 0 { 0 } else { UNIT - part };
        Self { nano: self.nano.saturating_add(missing), ..self }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

/// The canonical text: the largest unit that needs no fraction.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        // Small and broken amounts have no binary unit.
        if self.form == Form::Binary && self.nano % UNIT == 0 && (self.nano / UNIT).abs() >= 1024 {
            let mut whole = self.nano / UNIT;
            let mut unit = "";
            for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
                if whole % 1024 != 0 {
                    break;
                }
                whole /= 1024;
                unit = next;
            }
            return write!(f, "{whole}{unit}");
        }
        const UNITS: [(&str, i32); 10] =
            [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
        let mut rest = self.nano;
        let mut at = 0;
        while rest % 1000 == 0 && at + 1 < UNITS.len() {
            rest /= 1000;
            at += 1;
        }
        let (unit, exponent) = UNITS[at];
        match self.form {
            Form::Exponent if exponent != 0 => write!(f, "{rest}e{exponent}"),
            _ => write!(f, "{rest}{unit}"),
        }
    }
}

/// A `ResourceList` as it is in an object; what is no quantity is left out.
pub fn of(list: &Value) -> Amounts {
    let members = list.as_object().into_iter().flatten();
    members.filter_map(|(name, value)| Some((name.clone(), Quantity::of(value)?))).collect()
}

pub fn to_value(amounts: &Amounts) -> Value {
    amounts.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect::<Map<_, _>>().into()
}

pub fn add(into: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = into.get(name).map_or(*amount, |have| have.plus(*amount));
        into.insert(name.clone(), sum);
    }
}

/// Raises each amount to that of `other`.
pub fn raise(into: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if into.get(name).is_none_or(|have| amount > have) {
            into.insert(name.clone(), *amount);
        }
    }
}

/// `cpu=1,memory=2Gi`.
pub fn listed(amounts: &Amounts) -> String {
    amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(text: &str) -> Quantity {
        Quantity::of(&json!(text)).unwrap()
    }

    #[test]
    fn sums_read_as_their_first_part_does() {
        for (parts, sum) in [
            (&["500m", "500m"][..], "1"),
            (&["1Gi", "512Mi"], "1536Mi"),
            (&["0", "1Gi"], "1Gi"),
            (&["1G", "1Gi"], "2073741824"),
            (&["512", "512"], "1024"),
            (&["512Mi", "0.5"], "536870912500m"),
            (&["1e3", "1e3"], "2e3"),
            (&["1E"], "1E"),
            (&["1000k"], "1M"),
            (&["0.1n"], "1n"),
        ] {
            let total = parts.iter().map(|p| parsed(p)).reduce(Quantity::plus).unwrap();
            assert_eq!(total.to_string(), sum, "{parts:?}");
        }
        assert_eq!(Quantity::count(12).to_string(), "12");
        assert_eq!(Quantity::of(&json!(3)).unwrap().to_string(), "3");
        assert!(Quantity::of(&json!("many")).is_none());
        assert!(Quantity::of(&Value::Null).is_none());
    }

    #[test]
    fn what_is_left_is_never_negative_and_rounding_goes_up() {
        assert_eq!(parsed("1").beyond(parsed("3")), Quantity::ZERO);
        assert_eq!(parsed("3").beyond(parsed("1")).to_string(), "2");
        assert_eq!(parsed("1500m").rounded_up().to_string(), "2");
        assert_eq!(parsed("2").rounded_up().to_string(), "2");
        // Beyond what the numbers can hold, sums stop and do not turn over.
        let huge = parsed("999999999999999E");
        assert!(huge.plus(huge).plus(huge) >= huge);
    }

    #[test]
    fn lists_are_added_and_raised_by_name() {
        let mut all = of(&json!({"cpu": "1", "memory": "1Gi", "odd": []}));
        add(&mut all, &of(&json!({"cpu": "500m", "pods": 1})));
        assert_eq!(listed(&all), "cpu=1500m,memory=1Gi,pods=1");
        raise(&mut all, &of(&json!({"cpu": "1", "memory": "2Gi", "x": "1"})));
        assert_eq!(listed(&all), "cpu=1500m,memory=2Gi,pods=1,x=1");
        assert_eq!(to_value(&all)["memory"], "2Gi");
    }
}
