//! apply in its forms, diff, prune, and validation.

use super::{WEB, WIDGETS};
use kfbox_tests::{Space, TestBox, run_with_input};

const SETTINGS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {part: a, extra: x}}
data: {one: '1', two: '2'}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: more, labels: {part: a}}
data: {three: '3'}
";

#[test]
fn kubectl_apply_merges_three_ways_and_prunes() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "apply")?;
    let created = s.apply(SETTINGS)?;
    assert_eq!(created, "configmap/settings created\nconfigmap/more created\n");
    assert_eq!(s.apply(SETTINGS)?, "configmap/settings unchanged\nconfigmap/more unchanged\n");
    assert!(s.ok("apply view-last-applied configmap/more -o json")?.contains("\"three\": \"3\""));

    // What others wrote stays; what the manifest no longer says goes.
    s.ok("annotate configmap/settings others=wrote")?;
    s.ok_with("patch configmap/settings --type=merge -p", &[r#"{"data":{"theirs":"kept"}}"#])?;
    let less = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {part: a}}
data: {one: uno}
";
    let dry = s.input("apply --dry-run=server -f -", less)?.ok()?.stdout;
    assert_eq!(dry, "configmap/settings configured (server dry run)\n");
    assert_eq!(s.value("configmap/settings", "{.data.one}")?, "1");
    assert_eq!(s.apply(less)?, "configmap/settings configured\n");
    assert_eq!(s.value("configmap/settings", "{.data}")?, r#"{"one":"uno","theirs":"kept"}"#);
    assert_eq!(s.value("configmap/settings", "{.metadata.labels}")?, r#"{"part":"a"}"#);
    assert_eq!(s.value("configmap/settings", "{.metadata.annotations.others}")?, "wrote");

    // Pruning by label, and by the newer sets.
    let pruned = s.input("apply --prune -l part=a --prune-allowlist=core/v1/ConfigMap -f -", less)?.ok()?.stdout;
    assert!(pruned.contains("configmap/more pruned"), "{pruned}");
    assert!(s.refused("get configmap/more")?.contains("(NotFound)"));
    let with_set = |manifest: &str| {
        let mut command = s.kubectl("apply --prune --applyset=bundle -f -");
        command.args(["--namespace", &s.name]).env("KUBECTL_APPLYSET", "true");
        run_with_input(&mut command, manifest)
    };
    let manifest = SETTINGS.replace("name: settings", "name: first").replace("name: more", "name: second");
    with_set(&manifest)?.ok()?;
    assert!(s.value("secret/bundle", "{.metadata.labels}")?.contains("applyset.kubernetes.io/id"));
    let pruned = with_set(manifest.split("---").next().unwrap_or_default())?.ok()?.stdout;
    assert!(pruned.contains("configmap/second pruned"), "{pruned}");
    assert_eq!(s.ok("get configmap/first -o name")?, "configmap/first\n");
    Ok(())
}

#[test]
fn kubectl_applies_on_the_server_with_owners_and_conflicts() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "ssa")?;
    let replicas = |n: u8| WEB.replace("replicas: 2", &format!("replicas: {n}"));
    s.input("apply --server-side --field-manager=gitops -f -", &replicas(0))?.ok()?;
    let managers = s.value("deployment/web --show-managed-fields", "{.metadata.managedFields[*].manager}")?;
    assert!(managers.contains("gitops"), "{managers}");

    let other = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 1}}";
    let refused = s.input("apply --server-side --field-manager=scaler -f -", other)?;
    assert_eq!(refused.code, Some(1));
    let message = "Apply failed with 1 conflict: conflict with \"gitops\": .spec.replicas";
    assert!(refused.stderr.contains(message), "{refused:?}");
    let dry = "apply --server-side --field-manager=scaler --force-conflicts --dry-run=server -f -";
    assert!(s.input(dry, other)?.ok()?.stdout.contains("serverside-applied (server dry run)"));
    assert_eq!(s.value("deployment/web", "{.spec.replicas}")?, "0");
    s.input("apply --server-side --field-manager=scaler --force-conflicts -f -", other)?.ok()?;
    assert_eq!(s.value("deployment/web", "{.spec.replicas}")?, "1");

    // The first owner lets go of the field and adds a container port; the second's value stays.
    let released = replicas(0).replace("  replicas: 0\n", "");
    s.input("apply --server-side --field-manager=gitops -f -", &released)?.ok()?;
    assert_eq!(s.value("deployment/web", "{.spec.replicas}")?, "1");
    let ports = released.replace(
        "ports: [{name: http, containerPort: 8000}]",
        "ports: [{name: http, containerPort: 8000}, {name: other, containerPort: 8001}]",
    );
    s.input("apply --server-side --field-manager=gitops -f -", &ports)?.ok()?;
    let path = "{.spec.template.spec.containers[0].ports[*].name}";
    assert_eq!(s.value("deployment/web", path)?, "http other");
    s.input("apply --server-side --field-manager=gitops -f -", &released)?.ok()?;
    assert_eq!(s.value("deployment/web", path)?, "http");

    // From client side to server side: kubectl moves the fields to the new manager.
    s.input("apply -f -", "{apiVersion: v1, kind: ConfigMap, metadata: {name: moved}, data: {a: '1', b: '2'}}")?
        .ok()?;
    s.input("apply --server-side -f -", "{apiVersion: v1, kind: ConfigMap, metadata: {name: moved}, data: {a: '3'}}")?
        .ok()?;
    assert_eq!(s.value("configmap/moved", "{.data}")?, r#"{"a":"3"}"#);
    Ok(())
}

#[test]
fn kubectl_diff_tells_by_its_exit_code_and_changes_nothing() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "diff")?;
    s.apply(SETTINGS)?;
    assert_eq!(s.input("diff -f -", SETTINGS)?.code, Some(0));
    // The first apply on the server's side makes the annotation of the client's side as the server writes it.
    s.input("apply --server-side --force-conflicts -f -", SETTINGS)?.ok()?;
    assert_eq!(s.input("diff --server-side -f -", SETTINGS)?.code, Some(0));
    let changed = SETTINGS.replace("one: '1'", "one: '9'").replace("name: more", "name: brand-new");
    for how in ["diff -f -", "diff --server-side --force-conflicts -f -"] {
        let output = s.input(how, &changed)?;
        assert_eq!(output.code, Some(1), "{how}: {output:?}");
        for line in ["-  one: \"1\"", "+  one: \"9\"", "+  name: brand-new"] {
            assert!(output.stdout.contains(line), "{how}: {line}: {}", output.stdout);
        }
    }
    assert_eq!(s.value("configmap/settings", "{.data.one}")?, "1");
    let pruning = s.input("diff --prune -l part=a --prune-allowlist=core/v1/ConfigMap -f -", &changed)?;
    assert!(pruning.stdout.contains("-  name: more"), "{}", pruning.stdout);
    Ok(())
}

#[test]
fn kubectl_hears_of_fields_and_values_that_are_wrong() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "wrong")?;
    let unknown = WEB.replace("replicas: 2", "replicaz: 2");
    let strict = s.input("apply -f -", &unknown)?;
    assert!(strict.stderr.contains(r#"strict decoding error: unknown field "spec.replicaz""#), "{strict:?}");
    let warned = s.input("apply --validate=warn --dry-run=server -f -", &unknown)?.ok()?;
    assert!(warned.stderr.contains(r#"Warning: unknown field "spec.replicaz""#), "{warned:?}");
    let ignored = s.input("apply --validate=ignore --dry-run=server -f -", &unknown)?.ok()?;
    assert!(!ignored.stderr.contains("replicaz"), "{ignored:?}");

    let invalid = WEB.replace("containerPort: 8000", "containerPort: 80000");
    let invalid = s.input("apply -f -", &invalid)?.stderr;
    let field = "spec.template.spec.containers[0].ports[0].containerPort: Invalid value: 80000";
    assert!(invalid.contains("The Deployment \"web\" is invalid") && invalid.contains(field), "{invalid}");
    let mistyped = s.input("apply -f -", &WEB.replace("replicas: 2", "replicas: two"))?.stderr;
    assert!(mistyped.contains("BadRequest") && mistyped.contains("spec.replicas"), "{mistyped}");
    let nowhere = s.input("apply -f -", "{apiVersion: nowhere/v1, kind: Thing, metadata: {name: a}}")?.stderr;
    assert!(nowhere.contains(r#"no matches for kind "Thing" in version "nowhere/v1""#), "{nowhere}");

    // A custom resource: its own schema speaks.
    let group = format!("{}.example.test", s.name);
    s.goes_too(format!("crd/widgets.{group}"));
    s.apply(&WIDGETS.replace("GROUP", &group))?;
    s.ok(&format!("wait --for=condition=Established crd/widgets.{group} --timeout=20s"))?;
    let widget = |spec: &str| format!("{{apiVersion: {group}/v1, kind: Widget, metadata: {{name: w}}, spec: {spec}}}");
    for (spec, words) in [
        ("{size: -1}", "spec.size: Invalid value: -1: spec.size in body should be greater than or equal to 0"),
        ("{}", "spec.size: Required value"),
        ("{size: 1, colour: green}", "spec.colour: Unsupported value: \"green\": supported values: \"grey\", \"red\""),
        ("{size: 1, weight: 3}", "strict decoding error: unknown field \"spec.weight\""),
    ] {
        let refused = s.input("apply -f -", &widget(spec))?;
        assert!(refused.code == Some(1) && refused.stderr.contains(words), "{spec}: {refused:?}");
    }
    s.apply(&widget("{size: 2}"))?;
    // By its whole name: other tests make widgets of their own group.
    assert_eq!(s.value(&format!("widgets.{group}/w"), "{.spec.colour}")?, "grey");
    let taking = "apply --server-side --force-conflicts --field-manager=other -f -";
    s.input(taking, &widget("{size: 2, colour: red}"))?.ok()?;
    let conflict = s.input("apply --server-side --field-manager=third -f -", &widget("{size: 2, colour: grey}"))?;
    assert!(conflict.stderr.contains("conflict with \"other\": .spec.colour"), "{conflict:?}");
    Ok(())
}

/// Rules of a definition are checked when it is applied: their types, and what they may cost at most.
#[test]
fn kubectl_is_refused_rules_that_do_not_fit_or_cost_too_much() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "rules")?;
    let group = format!("{}.example.test", s.name);
    s.goes_too(format!("crd/widgets.{group}"));
    let with = |field: &str| {
        let field = format!("colour: {{type: string, default: grey, enum: [grey, red]}}\n              {field}");
        WIDGETS.replace("GROUP", &group).replace("colour: {type: string, default: grey, enum: [grey, red]}", &field)
    };
    let at = "spec.versions[0].schema.openAPIV3Schema.properties[spec].properties";
    for (field, words) in [
        (
            "name: {type: string, x-kubernetes-validations: [{rule: 'self == 1'}]}",
            [
                format!("{at}[name].x-kubernetes-validations[0].rule: Invalid value: "),
                "compilation failed: ERROR: <input>:1:6: found no matching overload for '_==_' applied to '(string, int)'".into(),
            ],
        ),
        (
            "name: {type: string, x-kubernetes-validations: [{rule: 'self.x > 1'}]}",
            ["type 'string' does not support field selection".into(), " | self.x > 1".into()],
        ),
        (
            "many: {type: array, items: {type: string}, x-kubernetes-validations: [{rule: 'self.all(a, self.all(b, a == b))'}]}",
            [
                format!("{at}[many].x-kubernetes-validations[0].rule: Forbidden: "),
                "estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, \
                 maxProperties, and maxLength where arrays, maps, and strings are declared)"
                    .into(),
            ],
        ),
    ] {
        let refused = s.input("apply -f -", &with(field))?;
        assert!(refused.stderr.contains("The CustomResourceDefinition \"widgets."), "{field}: {refused:?}");
        for words in words {
            assert!(refused.code == Some(1) && refused.stderr.contains(&words), "{field}: {words}: {refused:?}");
        }
    }
    // Bounded, the same rule is taken, and holds.
    let bounded = "many: {type: array, maxItems: 20, items: {type: string, maxLength: 20}, \
        x-kubernetes-validations: [{rule: 'self.all(a, self.all(b, a == b))', message: all alike}]}";
    s.apply(&with(bounded))?;
    s.ok(&format!("wait --for=condition=Established crd/widgets.{group} --timeout=20s"))?;
    let widget = |many: &str| {
        format!("{{apiVersion: {group}/v1, kind: Widget, metadata: {{name: w}}, spec: {{size: 1, many: {many}}}}}")
    };
    let refused = s.input("apply -f -", &widget("[a, b]"))?;
    assert!(refused.stderr.contains("spec.many: Invalid value: \"array\": all alike"), "{refused:?}");
    s.apply(&widget("[a, a]"))?;

    // A policy whose result is no bool is refused; one that does not fit its kind says so in its status.
    let name = format!("rules-{}", s.name);
    s.goes_too(format!("validatingadmissionpolicy/{name}"));
    let policy = |expression: &str| {
        format!(
            "{{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicy, metadata: {{name: {name}}}, \
             spec: {{matchConstraints: {{resourceRules: [{{operations: [CREATE], apiGroups: [apps], apiVersions: [v1], \
             resources: [deployments]}}]}}, validations: [{{expression: \"{expression}\"}}]}}}}"
        )
    };
    let refused = s.input("apply -f -", &policy("request.name + 'x'"))?;
    let words =
        "spec.validations[0].expression: Invalid value: \"request.name + 'x'\": must evaluate to bool but got string";
    assert!(refused.stderr.contains(words), "{refused:?}");
    s.apply(&policy("object.spec.replicas == 'three'"))?;
    let warning =
        format!("validatingadmissionpolicy/{name} --for=jsonpath={{.status.typeChecking.expressionWarnings}}");
    s.ok(&format!("wait {warning} --timeout=20s"))?;
    let told =
        s.value(&format!("validatingadmissionpolicy/{name}"), "{.status.typeChecking.expressionWarnings[0].warning}")?;
    assert!(told.contains("apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_==_' applied to '(int, string)'"), "{told}");
    Ok(())
}

#[test]
fn kubectl_builds_and_applies_a_kustomization() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "kustom")?;
    s.file("base/web.yaml", &WEB.replace("replicas: 2", "replicas: 0"))?;
    s.file("base/kustomization.yaml", "resources: [web.yaml]\nconfigMapGenerator:\n- {name: page, literals: [a=b]}\n")?;
    let overlay = "
namePrefix: blue-
resources: [../base]
labels: [{pairs: {colour: blue}}]
patches:
- target: {kind: Deployment}
  patch: |-
    - {op: add, path: /spec/template/spec/containers/0/env, value: [{name: A, value: b}]}
";
    s.file("overlay/kustomization.yaml", overlay)?;
    let built = s.ok("kustomize overlay")?;
    assert!(built.contains("name: blue-web"), "{built}");
    let applied = s.ok("apply -k overlay")?;
    assert!(applied.contains("deployment.apps/blue-web created"), "{applied}");
    assert!(applied.contains("configmap/blue-page-"), "{applied}");
    assert_eq!(s.ok("diff -k overlay")?, "");
    assert_eq!(s.value("deployment/blue-web", "{.spec.template.spec.containers[0].env[0].name}")?, "A");
    s.ok("delete -k overlay")?;
    assert_eq!(s.ok("get deployments -o name")?, "");
    Ok(())
}
