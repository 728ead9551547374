//! What the server says of itself against what upstream's says: discovery and OpenAPI, as they are on the wire. Every
//! difference is printed; those that are meant are listed by name with their reason.

use super::*;
use std::collections::BTreeSet;

/// Differences that are meant: a part of the line that tells them, and why.
const MEANT: &[(&str, &str)] = &[
    ("alone upstream: application/apply-patch+cbor", "CBOR is an alpha feature upstream, off by default"),
    ("content/application/apply-patch+cbor: upstream has", "the same in OpenAPI v3"),
    ("alone upstream: application/cbor", "CBOR is an alpha feature upstream, off by default"),
    ("content/application/cbor: upstream has", "the same in OpenAPI v3"),
    ("content/application/cbor-seq: upstream has", "the same in OpenAPI v3"),
    ("alone upstream: application/vnd.kubernetes.protobuf", "answers are JSON; bodies in protobuf are taken"),
    ("content/application/vnd.kubernetes.protobuf: upstream has", "the same in OpenAPI v3"),
    ("content/application/vnd.kubernetes.protobuf;stream=watch: upstream has", "the same in OpenAPI v3"),
    ("/apis/apiextensions.k8s.io/v1/resources/0/storageVersionHash:", "upstream still stores it as v1beta1"),
    ("/apis/admissionregistration.k8s.io/v1/resources/0/storageVersionHash:", "upstream still stores it as v1beta1"),
    ("/apis/admissionregistration.k8s.io/v1/resources/1/storageVersionHash:", "upstream still stores it as v1beta1"),
    ("x-kubernetes-map-type: upstream has \"granular\"", "what a map is when nothing is said"),
    ("x-kubernetes-unions: upstream has", "says nothing that a client acts on"),
    ("info/version:", "the samples were written by a build without a version"),
    ("serverAddressByClientCIDRs/0/serverAddress:", "an address of the machine"),
    ("/version/v1beta1: alone upstream", "beta versions are off by default"),
    ("/version/v1beta2: alone upstream", "beta versions are off by default"),
    ("/version/v1alpha1: alone upstream", "alpha versions are off by default"),
    ("/version/v1alpha2: alone upstream", "alpha versions are off by default"),
    ("/version/v1alpha3: alone upstream", "alpha versions are off by default"),
    ("group internal.apiserver.k8s.io: alone upstream", "alpha; for several API servers that share a store"),
    ("group storagemigration.k8s.io: alone upstream", "beta, off by default"),
    ("group metrics.k8s.io: alone here", "upstream it is the metrics server's"),
];

fn sample(path: &str) -> Option<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/kubernetes/api").join(path);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(serde_json::from_str(&text).unwrap()),
        Err(_) => {
            eprintln!("SKIPPED: no upstream sample at {}", path.display());
            None
        }
    }
}

/// Differences as they are found, and which of the meant ones were met.
#[derive(Default)]
struct Report {
    lines: Vec<String>,
    compared: usize,
}

impl Report {
    fn say(&mut self, line: String) {
        self.lines.push(line);
    }

    /// Fails with every difference that is not meant.
    fn finish(self, at_least: usize) -> BTreeSet<&'static str> {
        let mut met = BTreeSet::new();
        let mut unmeant = Vec::new();
        for line in &self.lines {
            match MEANT.iter().find(|(part, _)| line.contains(part)) {
                Some((part, _)) => drop(met.insert(*part)),
                None => unmeant.push(line.as_str()),
            }
        }
        assert!(unmeant.is_empty(), "{} differences:\n{}", unmeant.len(), unmeant.join("\n"));
        assert!(self.compared >= at_least, "only {} things were compared", self.compared);
        met
    }

    fn compare(&mut self, at: &str, ours: &Value, theirs: &Value) {
        self.compared += 1;
        match (ours, theirs) {
            (Value::Object(ours), Value::Object(theirs)) => {
                for (name, theirs) in theirs {
                    match ours.get(name) {
                        Some(ours) => self.compare(&format!("{at}/{name}"), ours, theirs),
                        None => self.say(format!("{at}/{name}: upstream has {}", short(theirs))),
                    }
                }
                for (name, ours) in ours.iter().filter(|(name, _)| !theirs.contains_key(*name)) {
                    self.say(format!("{at}/{name}: here is {}", short(ours)));
                }
            }
            (Value::Array(ours), Value::Array(theirs)) if ours.iter().chain(theirs).all(Value::is_string) => {
                let words = |list: &[Value]| -> BTreeSet<String> {
                    list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
                };
                let (ours, theirs) = (words(ours), words(theirs));
                theirs.difference(&ours).for_each(|word| self.say(format!("{at}: alone upstream: {word}")));
                ours.difference(&theirs).for_each(|word| self.say(format!("{at}: alone here: {word}")));
            }
            (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
                for (n, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                    self.compare(&format!("{at}/{n}"), ours, theirs);
                }
            }
            (ours, theirs) if ours != theirs => {
                self.say(format!("{at}: here {}, upstream {}", short(ours), short(theirs)));
            }
            _ => {}
        }
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    text.chars().take(300).collect()
}

fn by<'v>(list: &'v Value, name: &str) -> Vec<(&'v str, &'v Value)> {
    list.as_array().unwrap().iter().map(|v| (v[name].as_str().unwrap_or_default(), v)).collect()
}

#[tokio::test]
async fn discovery_is_upstreams() {
    let Some(aggregated) = sample("discovery/aggregated_v2.json") else { return };
    let world = world().await;
    let mut report = Report::default();

    let groups_of = |list: &Value| -> Vec<String> {
        list["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap().to_owned()).collect()
    };
    let (_, ours) = world.get("/apis").await;
    let theirs = sample("discovery/apis.json").unwrap();
    let (our_groups, their_groups) = (groups_of(&ours), groups_of(&theirs));
    their_groups
        .iter()
        .filter(|g| !our_groups.contains(g))
        .for_each(|g| report.say(format!("group {g}: alone upstream")));
    our_groups.iter().filter(|g| !their_groups.contains(g)).for_each(|g| report.say(format!("group {g}: alone here")));
    let shared: Vec<&String> = our_groups.iter().filter(|g| their_groups.contains(g)).collect();
    let expected: Vec<&String> = their_groups.iter().filter(|g| our_groups.contains(g)).collect();
    assert_eq!(shared, expected, "the order of groups");
    for (name, theirs) in by(&theirs["groups"], "name") {
        let Some((_, listed)) = by(&ours["groups"], "name").into_iter().find(|(n, _)| *n == name) else { continue };
        let (_, alone) = world.get(&format!("/apis/{name}")).await;
        for ours in [listed, &alone] {
            let versions = |group: &Value| -> Vec<String> {
                by(&group["versions"], "version").iter().map(|(v, _)| (*v).to_owned()).collect()
            };
            report.compare(
                &format!("/apis/{name} preferredVersion"),
                &ours["preferredVersion"],
                &theirs["preferredVersion"],
            );
            let (our_versions, their_versions) = (versions(ours), versions(theirs));
            their_versions
                .iter()
                .filter(|v| !our_versions.contains(v))
                .for_each(|v| report.say(format!("/apis/{name}/version/{v}: alone upstream")));
            let expected: Vec<&String> = their_versions.iter().filter(|v| our_versions.contains(v)).collect();
            assert_eq!(our_versions.iter().collect::<Vec<_>>(), expected, "versions of {name}");
        }
        assert_eq!((&alone["kind"], &alone["apiVersion"]), (&json!("APIGroup"), &json!("v1")));
    }

    report.compare("/api", &world.get("/api").await.1, &sample("discovery/api.json").unwrap());
    let registry = world.server.core().resources.current();
    for group in &registry.groups {
        for version in &group.versions {
            let (path, file) = match &*group.name {
                "" => ("/api/v1".to_owned(), "api__v1".to_owned()),
                "metrics.k8s.io" => continue,
                name => (format!("/apis/{name}/{}", version.version), format!("apis__{name}__{}", version.version)),
            };
            let theirs = sample(&format!("discovery/{file}.json")).unwrap();
            report.compare(&path, &world.get(&path).await.1, &theirs);
        }
    }

    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let (_, headers, ours) = world.request("GET", "/apis", &[("accept", accept)], Value::Null).await;
    assert!(headers["content-type"].to_str().unwrap().contains("as=APIGroupDiscoveryList"));
    for field in ["kind", "apiVersion", "metadata"] {
        report.compare(field, &ours[field], &aggregated[field]);
    }
    for theirs in aggregated["items"].as_array().unwrap() {
        let name = &theirs["metadata"]["name"];
        let Some(ours) = ours["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == *name) else {
            continue;
        };
        report.compare("aggregated metadata", &ours["metadata"], &theirs["metadata"]);
        for (version, ours) in by(&ours["versions"], "version") {
            let (_, theirs) = by(&theirs["versions"], "version").into_iter().find(|(v, _)| *v == version).unwrap();
            report.compare(&format!("aggregated {name}/{version}"), ours, theirs);
        }
    }
    let met = report.finish(1000);
    assert!(met.contains("group storagemigration.k8s.io: alone upstream"));
}

/// Without texts, with references to parameters followed, and with lists in one order.
fn plain(value: &Value, whole: &Value) -> Value {
    match value {
        Value::Object(map) => {
            if let Some(target) = map.get("$ref").and_then(Value::as_str).filter(|r| r.starts_with("#/parameters/")) {
                return plain(whole.pointer(&target[1..]).unwrap(), whole);
            }
            let text = |name: &str, v: &Value| name == "description" && v.is_string();
            map.iter().filter(|(k, v)| !text(k, v)).map(|(k, v)| (k.clone(), plain(v, whole))).collect()
        }
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(|v| plain(v, whole)).collect();
            if items.iter().all(|v| v["in"].is_string() || v["kind"].is_string()) {
                items.sort_by_cached_key(|v| {
                    let word = |name: &str| v[name].as_str().unwrap_or_default().to_owned();
                    [word("name"), word("in"), word("group"), word("version")]
                });
            }
            Value::Array(items)
        }
        other => other.clone(),
    }
}

/// The parts of upstream's document that are about what is served here.
fn compare_openapi(report: &mut Report, at: &str, ours: &Value, theirs: &Value, served: &BTreeSet<(String, String)>) {
    let (ours, mut theirs) = (plain(ours, ours), plain(theirs, theirs));
    // Kinds of every group: those of the groups that are served.
    for part in ["/definitions", "/components/schemas"] {
        for (name, definition) in theirs.pointer_mut(part).and_then(Value::as_object_mut).into_iter().flatten() {
            if let Some(kinds) = definition["x-kubernetes-group-version-kind"].as_array_mut()
                && (name.ends_with(".DeleteOptions") || name.ends_with(".WatchEvent"))
            {
                kinds.retain(|k| {
                    let word = |name: &str| k[name].as_str().unwrap_or_default().to_owned();
                    served.contains(&(word("group"), word("version")))
                });
            }
            if definition["x-kubernetes-group-version-kind"].is_null() {
                definition.as_object_mut().unwrap().remove("x-kubernetes-group-version-kind");
            }
        }
    }
    for part in ["/paths", "/definitions", "/components/schemas", "/components/securitySchemes", "/securityDefinitions"]
    {
        let (Some(ours), Some(theirs)) = (ours.pointer(part), theirs.pointer(part)) else { continue };
        let (ours, theirs) = (ours.as_object().unwrap(), theirs.as_object().unwrap());
        for (name, ours) in ours {
            if name.contains("metrics") && name.contains("v1beta1") || name == "/apis/metrics.k8s.io/" {
                continue; // upstream they are another server's
            }
            match theirs.get(name) {
                Some(theirs) => report.compare(&format!("{at} {name}"), ours, theirs),
                None => report.say(format!("{at} {name}: alone here")),
            }
        }
        // A path is ours to serve if its group and version are.
        for name in theirs.keys().filter(|name| !ours.contains_key(*name)) {
            let steps: Vec<&str> = name.split('/').filter(|s| !s.is_empty()).collect();
            let belongs = match steps[..] {
                ["api", ..] | ["version" | "openid" | ".well-known", ..] => true,
                ["apis", group] => served.iter().any(|(g, _)| g == group),
                ["apis", group, version, ..] => served.contains(&(group.to_owned(), version.to_owned())),
                _ => part != "/paths" && at.starts_with("v3"),
            };
            if belongs {
                report.say(format!("{at} {name}: alone upstream"));
            }
        }
    }
}

#[tokio::test]
async fn openapi_is_upstreams() {
    let Some(swagger) = sample("openapi-spec/swagger.json") else { return };
    let world = world().await;
    let registry = world.server.core().resources.current();
    let served: BTreeSet<(String, String)> = registry
        .groups
        .iter()
        .filter(|g| &*g.name != "metrics.k8s.io")
        .flat_map(|g| g.versions.iter().map(|v| (g.name.to_string(), v.version.to_string())))
        .collect();
    let mut report = Report::default();
    let (_, v2) = world.get("/openapi/v2").await;
    compare_openapi(&mut report, "v2", &v2, &swagger, &served);

    let (_, index) = world.get("/openapi/v3").await;
    let mut versions = 0;
    for (path, entry) in index["paths"].as_object().unwrap() {
        let url = entry["serverRelativeURL"].as_str().unwrap();
        let (code, headers, ours) = world.request("GET", url, &[], Value::Null).await;
        assert_eq!(code, 200, "{url}");
        assert!(headers.contains_key("etag"), "{url}");
        if path.contains("metrics.k8s.io") || path.starts_with(".well-known") {
            continue; // another server's, and a name the samples have no file for
        }
        let theirs = sample(&format!("openapi-spec/v3/{}_openapi.json", path.replace('/', "__"))).unwrap();
        compare_openapi(&mut report, &format!("v3 {path}"), &ours, &theirs, &served);
        versions += 1;
    }
    assert!(versions > 45, "{versions}");
    report.finish(100_000);
}

/// `kubectl explain`: nearly everything that upstream explains is explained.
#[tokio::test]
async fn types_and_fields_are_explained() {
    let Some(theirs) = sample("openapi-spec/v3/api__v1_openapi.json") else { return };
    let world = world().await;
    let (_, ours) = world.get("/openapi/v3/api/v1").await;
    let (ours, theirs) = (&ours["components"]["schemas"], &theirs["components"]["schemas"]);
    let (mut explained, mut silent) = (0, Vec::new());
    for (name, theirs) in theirs.as_object().unwrap() {
        let mut look = |what: String, ours: &Value, theirs: &Value| {
            if theirs["description"].is_string() {
                match ours["description"].as_str() {
                    Some(text) if !text.is_empty() => explained += 1,
                    _ => silent.push(what),
                }
            }
        };
        look(name.clone(), &ours[name], theirs);
        for (field, theirs) in theirs["properties"].as_object().into_iter().flatten() {
            look(format!("{name}.{field}"), &ours[name]["properties"][field], theirs);
        }
    }
    // Kept out of k8s-openapi, which reads watches as a stream of its own.
    silent.retain(|s| !s.contains(".WatchEvent"));
    assert_eq!(silent, Vec::<String>::new());
    assert!(explained > 1000, "{explained}");
    let containers = &ours["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert!(containers["description"].as_str().unwrap().contains("containers belonging to the pod"), "{containers}");
}
