//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy.

use super::*;

const API: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn maps_rule() -> Value {
    json!({"resourceRules": [{"operations": ["CREATE", "UPDATE", "DELETE"], "apiGroups": [""], "apiVersions": ["v1"],
        "resources": ["configmaps"]}]})
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// A policy of this name with a binding of the same name.
async fn enforce(world: &World, name: &str, spec: Value, binding: Value) {
    let mut spec = spec;
    if spec["matchConstraints"].is_null() {
        spec["matchConstraints"] = maps_rule();
    }
    let policy = object("ValidatingAdmissionPolicy", name, spec);
    let (code, body) = world.post(&format!("{API}/validatingadmissionpolicies"), policy).await;
    assert_eq!(code, 201, "{body}");
    let mut binding = binding;
    binding["policyName"] = name.into();
    if binding["validationActions"].is_null() {
        binding["validationActions"] = json!(["Deny"]);
    }
    let binding = object("ValidatingAdmissionPolicyBinding", name, binding);
    let (code, body) = world.post(&format!("{API}/validatingadmissionpolicybindings"), binding).await;
    assert_eq!(code, 201, "{body}");
}

async fn lift(world: &World, name: &str) {
    for plural in ["validatingadmissionpolicies", "validatingadmissionpolicybindings"] {
        assert_eq!(world.delete(&format!("{API}/{plural}/{name}"), Value::Null).await.0, 200);
    }
}

#[tokio::test]
async fn a_policy_denies_warns_and_explains_itself() {
    let world = world().await;
    let spec = json!({
        "variables": [
            {"name": "size", "expression": "has(object.data) ? object.data.size() : 0"},
            {"name": "twice", "expression": "variables.size * 2"}],
        "validations": [
            {"expression": "variables.size < 3", "messageExpression": "'has ' + string(variables.size) + ', twice ' + string(variables.twice)"},
            {"expression": "request.operation != 'DELETE' && !has(object.data.forbidden)", "message": "never", "reason": "Forbidden"}],
    });
    enforce(&world, "small", spec, json!({})).await;
    // Without its binding a policy does nothing.
    let (code, body) = world.post(MAPS, map("m", json!({"a": "1", "b": "2", "c": "3"}))).await;
    let message = "configmaps \"m\" is forbidden: ValidatingAdmissionPolicy 'small' with binding 'small' denied request: \
                   has 3, twice 6";
    assert_eq!((code.as_u16(), &body["reason"], &body["message"]), (422, &json!("Invalid"), &json!(message)));
    assert_eq!(
        body["details"]["causes"][0]["message"],
        "ValidatingAdmissionPolicy 'small' with binding 'small' denied request: has 3, twice 6"
    );
    let (code, body) = world.post(MAPS, map("m", json!({"forbidden": "1"}))).await;
    assert_eq!((code.as_u16(), &body["reason"]), (403, &json!("Forbidden")));
    assert!(body["message"].as_str().unwrap().ends_with("denied request: never"));
    assert_eq!(world.post(MAPS, map("m", json!({"a": "1"}))).await.0, 201);
    // The object of a deletion is null.
    let (code, body) = world.delete(&format!("{MAPS}/m"), Value::Null).await;
    assert_eq!(code, 422, "{body}");
    assert!(
        body["message"].as_str().unwrap().contains("composited variable \"size\" fails to evaluate: no such overload")
    );
    lift(&world, "small").await;
    assert_eq!(world.delete(&format!("{MAPS}/m"), Value::Null).await.0, 200);

    let spec = json!({"validations": [{"expression": "false"}]});
    enforce(&world, "warns", spec.clone(), json!({"validationActions": ["Warn", "Audit"]})).await;
    let (code, headers, _) =
        world.request("POST", MAPS, &[("content-type", "application/json")], map("w", json!({}))).await;
    assert_eq!(code, 201);
    assert_eq!(
        headers["warning"].to_str().unwrap(),
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'warns' with binding 'warns': failed expression: false\""
    );
}

#[tokio::test]
async fn errors_deny_unless_the_policy_ignores_them() {
    let world = world().await;
    for (expression, why) in [
        ("object.absent == 1", "expression 'object.absent == 1' resulted in error: no such key: absent"),
        ("object.data.k / 2 == 1", "expression 'object.data.k / 2 == 1' resulted in error: no such overload"),
    ] {
        let spec = json!({"validations": [{"expression": expression}]});
        enforce(&world, "strict", spec.clone(), json!({})).await;
        let (code, body) = world.post(MAPS, map("m", json!({"k": "v"}))).await;
        assert_eq!(code, 422, "{body}");
        assert!(body["message"].as_str().unwrap().ends_with(why), "{body}");
        lift(&world, "strict").await;
        let mut lenient = spec;
        lenient["failurePolicy"] = "Ignore".into();
        enforce(&world, "lenient", lenient, json!({})).await;
        assert_eq!(world.post(&format!("{MAPS}?dryRun=All"), map("m", json!({"k": "v"}))).await.0, 201);
        lift(&world, "lenient").await;
    }
    // Conditions exclude before the rules are looked at.
    let spec = json!({"matchConditions": [{"name": "n", "expression": "object.metadata.name.startsWith('x')"}],
        "validations": [{"expression": "false", "message": "no x"}]});
    enforce(&world, "conditions", spec, json!({})).await;
    assert_eq!(world.post(MAPS, map("y", json!({}))).await.0, 201);
    assert_eq!(world.post(MAPS, map("x", json!({}))).await.0, 422);
}

#[tokio::test]
async fn parameters_come_from_objects() {
    let world = world().await;
    for namespace in ["other", "limits"] {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {"n": namespace}}});
        assert_eq!(world.post("/api/v1/namespaces", body).await.0, 201);
    }
    let spec = || {
        json!({
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["secrets"]}]},
            "validations": [{"expression": "!has(object.data) || object.data.size() <= int(params.data.max)",
                "messageExpression": "'at most ' + params.data.max + ' in ' + namespaceObject.metadata.labels.n"}],
        })
    };
    let secret = |keys: usize| {
        let data: serde_json::Map<String, Value> = (0..keys).map(|n| (format!("k{n}"), json!("dg=="))).collect();
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": data})
    };
    let secrets = "/api/v1/namespaces/other/secrets?dryRun=All";
    let reference = json!({"name": "limit", "namespace": "limits", "parameterNotFoundAction": "Deny"});
    enforce(&world, "params", spec(), json!({"paramRef": reference})).await;
    let (code, body) = world.post(secrets, secret(1)).await;
    let prefix =
        "secrets \"s\" is forbidden: ValidatingAdmissionPolicy 'params' with binding 'params' denied request: ";
    let missing = "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    assert_eq!((code.as_u16(), &body["message"]), (422, &json!(format!("{prefix}{missing}"))));
    let limits = "/api/v1/namespaces/limits/configmaps";
    let mut limit = map("limit", json!({"max": "1"}));
    limit["metadata"]["labels"] = json!({"of": "secrets"});
    assert_eq!(world.post(limits, limit.clone()).await.0, 201);
    assert_eq!(world.post(secrets, secret(1)).await.0, 201);
    let (code, body) = world.post(secrets, secret(2)).await;
    assert_eq!((code.as_u16(), &body["message"]), (422, &json!(format!("{prefix}at most 1 in other"))));
    // The parameter is read anew for each request.
    world.merge(&format!("{limits}/limit"), json!({"data": {"max": "5"}})).await;
    assert_eq!(world.post(secrets, secret(2)).await.0, 201);
    lift(&world, "params").await;

    // A selector: each parameter judges by itself, and none is no objection with Allow. Those of the object's namespace.
    let reference = json!({"selector": {"matchLabels": {"of": "secrets"}}, "parameterNotFoundAction": "Allow"});
    enforce(&world, "select", spec(), json!({"paramRef": reference})).await;
    assert_eq!(world.post(secrets, secret(9)).await.0, 201);
    for (name, max) in [("a", "3"), ("b", "2")] {
        limit["metadata"]["name"] = name.into();
        limit["data"]["max"] = max.into();
        assert_eq!(world.post("/api/v1/namespaces/other/configmaps", limit.clone()).await.0, 201);
    }
    assert_eq!(world.post(secrets, secret(2)).await.0, 201);
    let (_, body) = world.post(secrets, secret(3)).await;
    assert!(body["message"].as_str().unwrap().ends_with("at most 2 in other"), "{body}");
    lift(&world, "select").await;

    let mut unknown = spec();
    unknown["paramKind"] = json!({"apiVersion": "example.com/v1", "kind": "Limit"});
    let reference = json!({"name": "x", "parameterNotFoundAction": "Allow"});
    enforce(&world, "unknown", unknown, json!({"paramRef": reference})).await;
    let (code, body) = world.post(secrets, secret(1)).await;
    assert_eq!(code, 422);
    let why = "failed to find resource referenced by paramKind: 'example.com/v1, Kind=Limit'";
    assert!(body["message"].as_str().unwrap().ends_with(why), "{body}");
}

#[tokio::test]
async fn bindings_narrow_and_the_authorizer_answers() {
    let world = world().await;
    let spec = json!({"validations": [{"expression": "authorizer.group('').resource('secrets').namespace('default').check('get').allowed()",
        "messageExpression": "request.userInfo.username + ' reads no secrets'"}]});
    let narrow = json!({"matchResources": {"objectSelector": {"matchLabels": {"guarded": "yes"}}}});
    enforce(&world, "reads", spec, narrow).await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "maps"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    assert_eq!(world.post(&format!("{rbac}/roles"), role).await.0, 201);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "maps"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "maps"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}]});
    assert_eq!(world.post(&format!("{rbac}/rolebindings"), binding).await.0, 201);
    let eve = world.server.client_as(UserInfo::new("eve", []));
    let api: Api<ConfigMap> = Api::namespaced(eve, "default");
    api.create(&PostParams::default(), &config_map("plain", "v")).await.unwrap();
    let mut guarded = config_map("guarded", "v");
    guarded.metadata.labels = Some([("guarded".to_owned(), "yes".to_owned())].into());
    let error = api.create(&PostParams::default(), &guarded).await.unwrap_err();
    assert!(error.to_string().contains("eve reads no secrets"), "{error}");
    let api: Api<ConfigMap> = Api::namespaced(world.client.clone(), "default");
    api.create(&PostParams::default(), &guarded).await.unwrap();
}

#[tokio::test]
async fn no_policy_holds_the_server() {
    let world = world().await;
    let spec = json!({"validations": [{"expression":
        "object.data.all(a, object.data.all(b, object.data.all(c, object.data[a] + object.data[b] != object.data[c])))"}]});
    enforce(&world, "hostile", spec, json!({})).await;
    let data: serde_json::Map<String, Value> = (0..5_000).map(|n| (format!("k{n}"), json!("value"))).collect();
    let started = std::time::Instant::now();
    let (code, body) = world.post(MAPS, map("m", data.clone().into())).await;
    assert_eq!(code, 422);
    let why = "operation cancelled: actual cost limit exceeded";
    assert!(body["message"].as_str().unwrap().ends_with(why), "{body}");
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    lift(&world, "hostile").await;
    // Many rules that are each within the limit of one are not within that of all.
    let rule =
        json!({"expression": "object.data.all(a, object.data.size() > 0) && object.data.all(a, [1].size() > 0)"});
    let spec = json!({"validations": vec![rule; 300]});
    enforce(&world, "many", spec, json!({})).await;
    let (code, body) = world.post(MAPS, map("m", data.into())).await;
    assert_eq!(code, 422);
    assert!(body["message"].as_str().unwrap().contains("running out of cost budget"), "{body}");
}

#[tokio::test]
async fn policies_that_cannot_work_are_refused_and_the_others_are_checked_against_their_kinds() {
    let world = world().await;
    let path = format!("{API}/validatingadmissionpolicies");
    for (change, field) in [
        (json!({"validations": [{"expression": "objekt.x"}]}), "spec.validations[0].expression"),
        (json!({"validations": [{"expression": "'text'"}]}), "spec.validations[0].expression"),
        (json!({"validations": [{"expression": "variables.x"}]}), "spec.validations[0].expression"),
        (json!({"validations": [{"expression": "params.x"}]}), "spec.validations[0].expression"),
        (
            json!({"validations": [{"expression": "true", "messageExpression": "authorizer.path('/').check('get').reason()"}]}),
            "spec.validations[0].messageExpression",
        ),
        (json!({"validations": [{"expression": "true", "message": "a\nb"}]}), "spec.validations[0].message"),
        (json!({"validations": [{"expression": "true", "reason": "Because"}]}), "spec.validations[0].reason"),
        (json!({"validations": []}), "spec.validations"),
        (
            json!({"validations": [{"expression": "true"}], "matchConstraints": {}}),
            "spec.matchConstraints.resourceRules",
        ),
        (
            json!({"validations": [{"expression": "true"}], "variables": [{"name": "a-b", "expression": "1"}]}),
            "spec.variables[0].name",
        ),
        (
            json!({"validations": [{"expression": "true"}], "variables": [
            {"name": "a", "expression": "variables.b"}, {"name": "b", "expression": "1"}]}),
            "spec.variables[0].expression",
        ),
    ] {
        let mut spec = change.clone();
        if spec["matchConstraints"].is_null() {
            spec["matchConstraints"] = maps_rule();
        }
        let (code, body) = world.post(&path, object("ValidatingAdmissionPolicy", "bad", spec)).await;
        assert_eq!(code, 422, "{change}: {body}");
        assert_eq!(body["details"]["causes"][0]["field"], field, "{body}");
    }
    let binding = json!({"policyName": "p", "validationActions": ["Deny", "Warn"]});
    let binding = object("ValidatingAdmissionPolicyBinding", "bad", binding);
    assert_eq!(world.post(&format!("{API}/validatingadmissionpolicybindings"), binding).await.0, 422);

    let core = world.server.core();
    let collection = "validatingadmissionpolicies.admissionregistration.k8s.io";
    let mut changes = core.store.watch(collection, core.store.revision()).unwrap();
    let rules = json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"],
        "resources": ["deployments"]}]});
    let spec = json!({"matchConstraints": rules, "validations": [
        {"expression": "object.spec.replicas > 1"}, {"expression": "object.spec.replica > 1 && object.metadata.labels.x == 'y'"}]});
    let (code, made) = world.post(&path, object("ValidatingAdmissionPolicy", "typed", spec)).await;
    assert_eq!(code, 201, "{made}");
    let status = loop {
        let batch = changes.next().await.unwrap();
        if let Some(status) =
            batch.iter().map(|c| c.object.value()["status"].clone()).find(|s| s["observedGeneration"].is_i64())
        {
            break status;
        }
    };
    assert_eq!(status["observedGeneration"], 1);
    let warnings = status["typeChecking"]["expressionWarnings"].as_array().unwrap();
    assert_eq!((warnings.len(), &warnings[0]["fieldRef"]), (1, &json!("spec.validations[1].expression")), "{status}");
    assert_eq!(
        warnings[0]["warning"],
        "apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'replica'\n | object.spec.replica > 1 && \
         object.metadata.labels.x == 'y'\n | ...........^"
    );
}

async fn alter(world: &World, name: &str, spec: Value) {
    let mut spec = spec;
    for (field, value) in
        [("matchConstraints", maps_rule()), ("reinvocationPolicy", json!("Never")), ("failurePolicy", json!("Fail"))]
    {
        if spec[field].is_null() {
            spec[field] = value;
        }
    }
    let policy = object("MutatingAdmissionPolicy", name, spec);
    let (code, body) = world.post(&format!("{API}/mutatingadmissionpolicies"), policy).await;
    assert_eq!(code, 201, "{body}");
    let binding = object("MutatingAdmissionPolicyBinding", name, json!({"policyName": name}));
    let (code, body) = world.post(&format!("{API}/mutatingadmissionpolicybindings"), binding).await;
    assert_eq!(code, 201, "{body}");
}

#[tokio::test]
async fn mutating_policies_apply_and_patch() {
    let world = world().await;
    world.default_account().await;
    let apply =
        |expression: &str| json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}});
    let patch = |expression: &str| json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}});
    alter(&world, "label", json!({
        "variables": [{"name": "who", "expression": "request.userInfo.username"}],
        "mutations": [
            apply("Object{metadata: Object.metadata{labels: {'by': variables.who}}}"),
            patch("[JSONPatch{op: 'add', path: '/metadata/annotations', value: {}}, JSONPatch{op: 'add', \
                   path: '/metadata/annotations/' + jsonpatch.escapeKey('a/b'), value: object.metadata.labels.by}]")],
    }))
    .await;
    let (code, made) = world.post(MAPS, map("m", json!({"k": "v"}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(
        (&made["metadata"]["labels"]["by"], &made["metadata"]["annotations"]["a/b"]),
        (&json!("admin"), &json!("admin"))
    );
    assert_eq!(made["data"], json!({"k": "v"}));

    // Lists merge by their keys, as in server-side apply: the container that is there gains a variable.
    alter(&world, "sidecar", json!({
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]},
        "mutations": [apply("Object{spec: Object.spec{containers: [Object.spec.containers{name: 'main', env: \
            [Object.spec.containers.env{name: 'A', value: 'b'}]}, Object.spec.containers{name: 'side', image: 'i'}]}}")],
    }))
    .await;
    let api: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let made = serde_json::to_value(api.create(&PostParams::default(), &pod("p")).await.unwrap()).unwrap();
    let containers = made["spec"]["containers"].as_array().unwrap();
    let main = containers.iter().find(|c| c["name"] == "main").unwrap();
    assert_eq!((&main["image"], &main["env"][0]["value"]), (&json!("python:3.11"), &json!("b")), "{made}");
    let side = containers.iter().find(|c| c["name"] == "side").unwrap();
    assert_eq!(side["terminationMessagePath"], "/dev/termination-log", "what is added is defaulted");

    for (name, mutation, why) in [
        ("fails", patch("[JSONPatch{op: 'remove', path: '/data/absent'}]"), "JSON Patch: "),
        ("error", apply("Object{metadata: Object.metadata{labels: {'x': object.absent}}}"), "no such key: absent"),
    ] {
        alter(&world, name, json!({"mutations": [mutation]})).await;
        let (code, body) = world.post(MAPS, map("n", json!({"k": "v"}))).await;
        let message = body["message"].as_str().unwrap();
        assert_eq!(code, 403, "{body}");
        assert!(message.starts_with(&format!("policy '{name}' with binding '{name}' denied request: ")), "{message}");
        assert!(message.contains(why), "{message}");
        for plural in ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"] {
            assert_eq!(world.delete(&format!("{API}/{plural}/{name}"), Value::Null).await.0, 200);
        }
    }
    assert_eq!(world.post(MAPS, map("n", json!({"k": "v"}))).await.0, 201);
}

#[tokio::test]
async fn mutating_policies_see_later_changes_again_where_asked() {
    let world = world().await;
    let add = |field: &str, when: &str| {
        json!({"matchConditions": [{"name": "once", "expression": when}], "mutations": [{"patchType": "JSONPatch",
            "jsonPatch": {"expression": format!("[JSONPatch{{op: 'add', path: '/data/{field}', value: 'x'}}]")}}]})
    };
    let mut first = add("first", "'second' in object.data && !('first' in object.data)");
    first["reinvocationPolicy"] = "IfNeeded".into();
    alter(&world, "a", first).await;
    alter(&world, "b", add("second", "!('second' in object.data)")).await;
    let (code, made) = world.post(MAPS, map("m", json!({"k": "v"}))).await;
    assert_eq!((code.as_u16(), &made["data"]), (201, &json!({"k": "v", "first": "x", "second": "x"})), "{made}");
}
