//! What a step puts out is data for whatever reads it next: other steps, conditions and loops (GHSA-rhjm-6347-5x33 was an
//! output that was run as Python).

use super::client;
use kfbox_tests::TestBox;
use serde_json::Value;

#[test]
fn an_output_that_is_code_arrives_as_text_everywhere() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let seen = client(&b, "kfp_hostile.py", &[], "")?;
    assert_eq!(seen["state"], "SUCCEEDED", "{seen:#}\n{}", b.log());
    assert_eq!(seen["ran"], false, "an output was run on this machine: {seen:#}");
    let states =
        |name: &str| -> Vec<&str> { seen[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect() };
    // Once by itself, once behind a condition that holds, and once for each item of a list.
    let received = states("received");
    assert_eq!(received.len() as u64, 2 + seen["texts"].as_u64().unwrap_or_default(), "{seen:#}");
    assert!(received.iter().all(|state| *state == "SUCCEEDED"), "{seen:#}");
    // No text talked a condition into holding.
    assert!(states("never").iter().all(|state| *state == "SKIPPED"), "{seen:#}");
    Ok(())
}
