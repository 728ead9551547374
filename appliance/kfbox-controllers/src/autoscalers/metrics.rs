//! What pods use, as `metrics.k8s.io/v1beta1` tells it (the metrics server's API).

use crate::{scheduler::fit, write};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// A pod's use over a window that ended at `at`, by container and resource, in thousandths.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    pub at: Timestamp,
    pub window: SignedDuration,
    pub containers: BTreeMap<String, BTreeMap<String, i64>>,
}

#[derive(Deserialize)]
struct Wire {
    timestamp: Timestamp,
    #[serde(default)]
    window: String,
    #[serde(default)]
    containers: Vec<WireContainer>,
}

#[derive(Deserialize)]
struct WireContainer {
    name: String,
    #[serde(default)]
    usage: BTreeMap<String, Quantity>,
}

/// A Go duration of whole and broken seconds, minutes and hours, such as `1m30.5s`; a minute when it is none.
fn window(text: &str) -> SignedDuration {
    let mut total = 0.0;
    let mut number = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' | '.' => number.push(c),
            'h' | 'm' | 's' => {
                let unit = f64::from(match c {
                    'h' => 3600,
                    'm' => 60,
                    _ => 1,
                });
                let Ok(value) = number.parse::<f64>() else { return SignedDuration::from_secs(60) };
                total += value * unit;
                number.clear();
            }
            _ => return SignedDuration::from_secs(60),
        }
    }
    SignedDuration::try_from_secs_f64(total).unwrap_or(SignedDuration::from_secs(60))
}

fn read(wire: Wire) -> Usage {
    let amount = |q: &Quantity| fit::milli(q).and_then(|m| i64::try_from(m).ok());
    let containers = wire.containers.into_iter().map(|container| {
        let usage = container.usage.iter().filter_map(|(name, q)| Some((name.clone(), amount(q)?))).collect();
        (container.name, usage)
    });
    Usage { at: wire.timestamp, window: window(&wire.window), containers: containers.collect() }
}

/// The use of the pods that the selector (in its textual form) selects, by name; an error is for people to read.
pub async fn fetch(client: &Client, namespace: &str, selector: &str) -> Result<BTreeMap<String, Usage>, String> {
    let kind =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("metrics.k8s.io", "v1beta1", "PodMetrics"), "pods");
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &kind);
    let fail = |why: String| format!("unable to fetch metrics from resource metrics API: {why}");
    let list = match api.list(&ListParams::default().labels(selector)).await {
        Ok(list) => list,
        Err(error) if write::is_missing(&error) => {
            return Err(fail("the server could not find the requested resource (get pods.metrics.k8s.io)".into()));
        }
        Err(error) => return Err(fail(error.to_string())),
    };
    if list.items.is_empty() {
        return Err("no metrics returned from resource metrics API".into());
    }
    let mut all = BTreeMap::new();
    for object in list.items {
        let Some(name) = object.metadata.name else { continue };
        // One pod's figures that cannot be read are that pod's: it counts as missing.
        if let Ok(wire) = serde_json::from_value::<Wire>(object.data) {
            all.insert(name, read(wire));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_metrics_server_says_is_read_exactly() {
        let wire = json!({ "timestamp": "2027-01-15T08:00:00Z", "window": "1m30.5s", "containers": [
            { "name": "c", "usage": { "cpu": "156340n", "memory": "12Mi" } }, { "name": "d", "usage": { "cpu": "1" } }] });
        let usage = read(serde_json::from_value(wire).unwrap());
        assert_eq!(usage.window, SignedDuration::from_millis(90_500));
        assert_eq!(usage.containers["c"]["cpu"], 1, "rounded up to a thousandth");
        assert_eq!(usage.containers["c"]["memory"], (12 << 20) * 1000);
        assert_eq!(usage.containers["d"]["cpu"], 1000);
    }

    #[test]
    fn windows_are_go_durations() {
        for (text, seconds) in [("15s", 15), ("1m0s", 60), ("2h", 7200), ("", 0), ("soon", 60), ("1.2.3s", 60)] {
            assert_eq!(window(text), SignedDuration::from_secs(seconds), "{text}");
        }
    }
}
