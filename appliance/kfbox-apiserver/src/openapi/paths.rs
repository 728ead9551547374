//! Paths with their operations and parameters. As upstream does, parameters that every operation of a path takes stand
//! once, at the path.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Format, META, Served};

type Parameters = &'static [(&'static str, &'static str)];

const LIST: Parameters = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("shardSelector", "string"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: Parameters = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const FORCE: Parameters = &[("force", "boolean")];
const DELETE: Parameters = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const LOG: Parameters = &[
    ("container", "string"),
    ("follow", "boolean"),
    ("insecureSkipTLSVerifyBackend", "boolean"),
    ("limitBytes", "integer"),
    ("previous", "boolean"),
    ("sinceSeconds", "integer"),
    ("stream", "string"),
    ("tailLines", "integer"),
    ("timestamps", "boolean"),
];
const ATTACH: Parameters =
    &[("container", "string"), ("stderr", "boolean"), ("stdin", "boolean"), ("stdout", "boolean"), ("tty", "boolean")];
const COMMAND: Parameters = &[("command", "string")];
const PORTS: Parameters = &[("ports", "integer")];
const PATH: Parameters = &[("path", "string")];

const EVERY_METHOD: &[&str] = &["get", "put", "post", "delete", "options", "head", "patch"];

/// Streams and proxies: resource, subresource, the kind of its options, methods, parameters.
type Connect = (&'static str, &'static str, &'static str, &'static [&'static str], &'static [Parameters]);
const CONNECT: &[Connect] = &[
    ("pods", "attach", "PodAttachOptions", &["get", "post"], &[ATTACH]),
    ("pods", "exec", "PodExecOptions", &["get", "post"], &[ATTACH, COMMAND]),
    ("pods", "portforward", "PodPortForwardOptions", &["get", "post"], &[PORTS]),
    ("pods", "proxy", "PodProxyOptions", EVERY_METHOD, &[PATH]),
    ("services", "proxy", "ServiceProxyOptions", EVERY_METHOD, &[PATH]),
    ("nodes", "proxy", "NodeProxyOptions", EVERY_METHOD, &[PATH]),
];

/// Kinds whose deletion answers the object; the others' a Status.
const ANSWER_OBJECT: &[&str] = &[
    "csidrivers",
    "csinodes",
    "deviceclasses",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourceclaims",
    "resourceclaimtemplates",
    "resourcequotas",
    "resourceslices",
    "serviceaccounts",
    "services",
    "storageclasses",
    "volumeattachments",
    "volumeattributesclasses",
];

const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// Custom resources have no strategies: kubectl asks here before it applies.
const CUSTOM_PATCHES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
const ANY: &[&str] = &["*/*"];
const JSON: &[&str] = &["application/json", "application/yaml"];
const STREAM: &[&str] = &["application/json", "application/yaml", "application/json;stream=watch"];
const TEXT: &[&str] = &["text/plain", "application/json", "application/yaml"];

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Parameter {
    name: &'static str,
    place: &'static str,
    kind: &'static str,
}

impl Parameter {
    fn write(&self, format: Format) -> Value {
        let Self { name, place, kind } = self;
        let mut out = json!({"name": name, "in": place});
        if *place == "path" {
            out["required"] = true.into();
        }
        match format {
            Format::V2 => {
                out["type"] = (*kind).into();
                out["uniqueItems"] = true.into();
            }
            Format::V3 => out["schema"] = json!({"type": kind, "uniqueItems": true}),
        }
        out
    }
}

/// What an operation answers.
enum Answer {
    Type(String),
    Text,
}

struct Operation {
    method: &'static str,
    action: Option<&'static str>,
    id: String,
    tag: String,
    kind: Option<(String, String, String)>,
    parameters: BTreeSet<Parameter>,
    /// Type, media types, whether it must be there.
    body: Option<(String, &'static [&'static str], bool)>,
    answer: Answer,
    /// What v2 says is taken, where there is no body.
    consumes: &'static [&'static str],
    produces: &'static [&'static str],
    codes: &'static [&'static str],
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}

/// `Apps`, `Core`, `RbacAuthorization`.
fn group_word(group: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    group.strip_suffix(".k8s.io").unwrap_or(group).split(['.', '-']).map(capital).collect()
}

/// `apps`, `core`, `rbacAuthorization`.
fn group_tag(group: &str) -> String {
    let mut word = group_word(group);
    if let Some(first) = word.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    word
}

/// Paths as they are collected.
pub(super) struct Paths {
    format: Format,
    items: BTreeMap<String, Vec<Operation>>,
}

impl Paths {
    pub(super) fn new(format: Format) -> Self {
        Self { format, items: BTreeMap::new() }
    }

    fn put(&mut self, path: String, operation: Operation) {
        self.items.entry(path).or_default().push(operation);
    }

    /// `/api/`, `/apis/`, `/version/`: what is served beside resources.
    pub(super) fn add_fixed(
        &mut self,
        path: &str,
        id: &str,
        tag: &str,
        answer: Option<&str>,
        produces: &'static [&'static str],
    ) {
        self.put(
            path.to_owned(),
            Operation {
                method: "get",
                action: None,
                id: id.to_owned(),
                tag: tag.to_owned(),
                kind: None,
                parameters: BTreeSet::new(),
                body: None,
                answer: answer.map_or(Answer::Text, |name| Answer::Type(name.to_owned())),
                consumes: if answer.is_some() { produces } else { &[] },
                produces,
                codes: &["200"],
            },
        );
    }

    /// `/apis/GROUP/`.
    pub(super) fn add_group(&mut self, group: &str) {
        let id = format!("get{}APIGroup", group_word(group));
        self.add_fixed(&format!("/apis/{group}/"), &id, &group_tag(group), Some(&format!("{META}.APIGroup")), JSON);
    }

    /// `/apis/GROUP/VERSION/`.
    pub(super) fn add_version(&mut self, group: &str, version: &str) {
        let id = format!("get{}{}APIResources", group_word(group), capital(version));
        let tag = format!("{}_{version}", group_tag(group));
        let list = format!("{META}.APIResourceList");
        self.add_fixed(&format!("{}/", base(group, version)), &id, &tag, Some(&list), JSON);
    }

    /// The paths of one resource or subresource.
    pub(super) fn add(&mut self, served: &Served<'_>) {
        let base = base(served.group, served.version);
        let (resource, sub) = served.name.split_once('/').unwrap_or((served.name, ""));
        let namespace = if served.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{base}{namespace}/{resource}");
        let one = format!("{collection}/{{name}}");
        let item = if sub.is_empty() { one.clone() } else { format!("{one}/{sub}") };
        for verb in served.verbs {
            let path = match *verb {
                "create" if sub.is_empty() => &collection,
                "list" | "deletecollection" => &collection,
                _ => &item,
            };
            if let Some(operation) = operation(served, verb, path, true) {
                self.put(path.clone(), operation);
            }
            if *verb == "list" && served.namespaced {
                let path = format!("{base}/{resource}");
                self.put_if(operation(served, verb, &path, false), path);
            }
        }
        if !served.builtin || !sub.is_empty() {
            return;
        }
        // The historic way to watch, by path; what is never created is never watched either.
        if served.verbs.contains(&"list") && served.verbs.contains(&"create") {
            let watched = format!("{base}/watch{namespace}/{resource}");
            let one = format!("{watched}/{{name}}");
            self.put_if(operation(served, "watchlist", &watched, true), watched);
            self.put_if(operation(served, "watch", &one, true), one);
            if served.namespaced {
                let path = format!("{base}/watch/{resource}");
                self.put_if(operation(served, "watchlist", &path, false), path);
            }
        }
        if served.group.is_empty() {
            for connect in CONNECT.iter().filter(|c| c.0 == resource) {
                self.add_connect(served, &one, connect);
            }
        }
    }

    fn put_if(&mut self, operation: Option<Operation>, path: String) {
        if let Some(operation) = operation {
            self.put(path, operation);
        }
    }

    fn add_connect(&mut self, served: &Served<'_>, one: &str, (_, sub, options, methods, parameters): &Connect) {
        let plain = (format!("{one}/{sub}"), "");
        let with_path = (format!("{one}/{sub}/{{path}}"), "WithPath");
        let paths = if *sub == "proxy" { vec![plain, with_path] } else { vec![plain] };
        for (path, tail) in paths {
            for method in *methods {
                let mut taken = in_path(&path);
                taken.extend(query(parameters));
                let scope = if served.namespaced { "Namespaced" } else { "" };
                let operation = Operation {
                    method,
                    action: Some("connect"),
                    id: format!("connectCoreV1{}{scope}{}{}{tail}", capital(method), served.owner, capital(sub)),
                    tag: "core_v1".to_owned(),
                    kind: Some((String::new(), "v1".to_owned(), (*options).to_owned())),
                    parameters: taken,
                    body: None,
                    answer: Answer::Text,
                    consumes: ANY,
                    produces: ANY,
                    codes: &["200"],
                };
                self.put(path.clone(), operation);
            }
        }
    }

    pub(super) fn finish(self) -> Map<String, Value> {
        let format = self.format;
        self.items
            .into_iter()
            .map(|(path, mut operations)| {
                let mut common = operations.first().map(|o| o.parameters.clone()).unwrap_or_default();
                for operation in &operations {
                    common.retain(|p| operation.parameters.contains(p));
                }
                let mut item = Map::new();
                for operation in &mut operations {
                    operation.parameters.retain(|p| !common.contains(p));
                    item.insert(operation.method.to_owned(), operation.write(format));
                }
                if !common.is_empty() {
                    let common = common.iter().map(|p| p.write(format)).collect();
                    item.insert("parameters".to_owned(), Value::Array(common));
                }
                (path, Value::Object(item))
            })
            .collect()
    }
}

fn base(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

fn in_path(path: &str) -> BTreeSet<Parameter> {
    let names = ["name", "namespace", "path"].into_iter().filter(|name| path.contains(&format!("{{{name}}}")));
    names.map(|name| Parameter { name, place: "path", kind: "string" }).collect()
}

fn query(lists: &[Parameters]) -> impl Iterator<Item = Parameter> {
    lists.iter().flat_map(|l| l.iter()).map(|(name, kind)| Parameter { name, place: "query", kind })
}

fn operation(served: &Served<'_>, verb: &str, path: &str, namespaced: bool) -> Option<Operation> {
    let (resource, sub) = served.name.split_once('/').unwrap_or((served.name, ""));
    let status = format!("{META}.Status");
    let own = served.object_type.clone();
    let given = |consumes| Some((own.clone(), consumes, true));
    let options = Some((format!("{META}.DeleteOptions"), ANY, false));
    let list = served.list_type.clone().unwrap_or_else(|| own.clone());
    type Parts = (&'static str, &'static str, &'static str, &'static [Parameters]);
    let (method, action, word, parameters): Parts = match verb {
        "get" if sub == "log" => ("get", "get", "read", &[LOG]),
        "get" => ("get", "get", "read", &[]),
        "list" => ("get", "list", "list", &[LIST]),
        "watch" => ("get", "watch", "watch", &[LIST]),
        "watchlist" => ("get", "watchlist", "watch", &[LIST]),
        "create" => ("post", "post", "create", &[WRITE]),
        "update" => ("put", "put", "replace", &[WRITE]),
        "patch" => ("patch", "patch", "patch", &[WRITE, FORCE]),
        "delete" => ("delete", "delete", "delete", &[DELETE]),
        "deletecollection" => ("delete", "deletecollection", "delete", &[DELETE, LIST]),
        _ => return None,
    };
    let (body, answer) = match verb {
        "get" if sub == "log" => (None, Answer::Text),
        "list" => (None, Answer::Type(list)),
        "watch" | "watchlist" => (None, Answer::Type(format!("{META}.WatchEvent"))),
        "create" | "update" => (given(ANY), Answer::Type(own.clone())),
        "patch" => {
            let patches = if served.builtin { PATCHES } else { CUSTOM_PATCHES };
            (Some((format!("{META}.Patch"), patches, true)), Answer::Type(own.clone()))
        }
        "delete" if served.builtin && ANSWER_OBJECT.contains(&resource) => (options, Answer::Type(own.clone())),
        "delete" | "deletecollection" => (options, Answer::Type(status)),
        _ => (None, Answer::Type(own.clone())),
    };
    let scope = if served.namespaced && namespaced { "Namespaced" } else { "" };
    let tail = if served.namespaced && !namespaced { "ForAllNamespaces" } else { "" };
    let many = if verb == "deletecollection" { "Collection" } else { "" };
    let listed = if verb == "watchlist" { "List" } else { "" };
    let group = format!("{}{}", group_word(served.group), capital(served.version));
    let mut taken = in_path(path);
    taken.extend(query(parameters));
    taken.insert(Parameter { name: "pretty", place: "query", kind: "string" });
    if verb == "deletecollection" {
        taken.retain(|p| !matches!(p.name, "allowWatchBookmarks" | "watch"));
    }
    let (group_name, version, kind) = served.kind;
    Some(Operation {
        method,
        action: Some(action),
        id: format!("{word}{group}{many}{scope}{}{}{listed}{tail}", served.owner, capital(sub)),
        tag: format!("{}_{}", group_tag(served.group), served.version),
        kind: Some((group_name.to_owned(), version.to_owned(), kind.to_owned())),
        parameters: taken,
        body,
        answer,
        consumes: ANY,
        produces: match verb {
            "list" | "watch" | "watchlist" => STREAM,
            "get" if sub == "log" => TEXT,
            _ => JSON,
        },
        codes: match verb {
            "create" => &["200", "201", "202"],
            "update" | "patch" => &["200", "201"],
            "delete" => &["200", "202"],
            _ => &["200"],
        },
    })
}

impl Operation {
    fn write(&self, format: Format) -> Value {
        let mut out = Map::new();
        let mut put = |name: &str, value: Value| drop(out.insert(name.to_owned(), value));
        put("operationId", self.id.as_str().into());
        put("tags", json!([self.tag]));
        if let Some(action) = self.action {
            put("x-kubernetes-action", action.into());
        }
        if let Some((group, version, kind)) = &self.kind {
            put("x-kubernetes-group-version-kind", json!({"group": group, "version": version, "kind": kind}));
        }
        let schema = match &self.answer {
            Answer::Type(name) => json!({"$ref": format.reference(name)}),
            Answer::Text => json!({"type": "string"}),
        };
        let mut parameters: Vec<Value> = self.parameters.iter().map(|p| p.write(format)).collect();
        let content = |media: &[&str], schema: &Value| -> Map<String, Value> {
            media.iter().map(|m| ((*m).to_owned(), json!({"schema": schema}))).collect()
        };
        let answer = match format {
            Format::V2 => {
                let consumes = self.body.as_ref().map_or(self.consumes, |(_, media, _)| media);
                if !consumes.is_empty() {
                    put("consumes", json!(consumes));
                }
                put("produces", json!(self.produces));
                put("schemes", json!(["https"]));
                if let Some((name, _, required)) = &self.body {
                    let mut body = json!({"name": "body", "in": "body", "schema": {"$ref": format.reference(name)}});
                    if *required {
                        body["required"] = true.into();
                    }
                    parameters.insert(0, body);
                }
                json!({"description": "OK", "schema": schema})
            }
            Format::V3 => {
                if let Some((name, media, required)) = &self.body {
                    let mut body = json!({"content": content(media, &json!({"$ref": format.reference(name)}))});
                    if *required {
                        body["required"] = true.into();
                    }
                    put("requestBody", body);
                }
                json!({"description": "OK", "content": content(self.produces, &schema)})
            }
        };
        let mut responses: Map<String, Value> =
            self.codes.iter().map(|code| ((*code).to_owned(), answer.clone())).collect();
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        put("responses", responses.into());
        if !parameters.is_empty() {
            put("parameters", Value::Array(parameters));
        }
        Value::Object(out)
    }
}
