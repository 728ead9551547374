//! Sets of completion indexes as a Job's status writes them: `1,3-5,7`.

use std::collections::BTreeSet;

/// Reads the text; what is malformed or not below `bound` is left out.
pub fn parse(text: &str, bound: i32) -> BTreeSet<i32> {
    let mut set = BTreeSet::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            set.extend((first.max(0)..=last).take_while(|i| *i < bound));
        }
    }
    set
}

pub fn format(set: &BTreeSet<i32>) -> String {
    let mut parts = Vec::new();
    let mut items = set.iter().copied().peekable();
    while let Some(first) = items.next() {
        let mut last = first;
        while items.peek() == Some(&(last + 1)) {
            last += 1;
            items.next();
        }
        match last - first {
            0 => parts.push(first.to_string()),
            1 => parts.extend([first.to_string(), last.to_string()]),
            _ => parts.push(format!("{first}-{last}")),
        }
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_set_agree() {
        for text in ["", "0", "1,3-5,7", "0,1", "2-9"] {
            assert_eq!(format(&parse(text, 100)), text);
        }
        assert_eq!(format(&parse("0-2000000000", 3)), "0-2");
        assert_eq!(parse("x,-3,5-2,1", 10), BTreeSet::from([1]));
    }
}
