//! create, replace, edit, patch and label: writes of single objects.

use super::{IDLE, WEB, WIDGETS};
use kfbox_tests::{Space, TestBox, run};

#[test]
fn kubectl_creates_replaces_and_patches() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "write")?;
    let web = WEB.replace("replicas: 2", "replicas: 0");
    s.input("create -f -", &web)?.ok()?;
    let twice = s.input("create -f -", &web)?;
    assert!(
        twice.stderr.contains("(AlreadyExists)") && twice.stderr.contains("deployments.apps \"web\" already exists")
    );
    let generated = "{apiVersion: v1, kind: ConfigMap, metadata: {generateName: made-}}";
    let name = s.input("create -o name -f -", generated)?.ok()?.stdout;
    assert!(name.starts_with("configmap/made-") && name.trim().len() == "configmap/made-".len() + 5, "{name}");

    // Replace: only over what was read.
    let read = s.ok("get configmap kube-root-ca.crt -o yaml")?.replace("kube-root-ca.crt", "copy");
    assert!(s.input("replace -f -", &read)?.stderr.contains("(NotFound)"));
    s.ok("create configmap copy --from-literal=a=1")?;
    let first = s.ok("get configmap copy -o yaml")?;
    s.input("replace -f -", &first.replace("a: \"1\"", "a: \"2\""))?.ok()?;
    let stale = s.input("replace -f -", &first.replace("a: \"1\"", "a: \"3\""))?.stderr;
    assert!(stale.contains("(Conflict)") && stale.contains("the object has been modified"), "{stale}");
    let uid = s.value("configmap/copy", "{.metadata.uid}")?;
    s.input("replace --force -f -", "{apiVersion: v1, kind: ConfigMap, metadata: {name: copy}, data: {a: '4'}}")?
        .ok()?;
    assert_ne!(s.value("configmap/copy", "{.metadata.uid}")?, uid);

    // Three kinds of patch, and what each means for lists.
    let patch = |how: &str, patch: &str| s.ok_with(&format!("patch deployment web {how} -p"), &[patch]);
    patch("--type=strategic", r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"x"}]}}}}"#)?;
    assert_eq!(s.value("deployment/web", "{.spec.template.spec.containers[*].name}")?, "side main");
    patch("--type=strategic", r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","$patch":"delete"}]}}}}"#)?;
    assert_eq!(s.value("deployment/web", "{.spec.template.spec.containers[*].name}")?, "main");
    patch("--type=merge", r#"{"metadata":{"labels":{"app":null,"new":"yes"}}}"#)?;
    assert_eq!(s.value("deployment/web", "{.metadata.labels}")?, r#"{"new":"yes"}"#);
    patch(
        "--type=json",
        r#"[{"op":"test","path":"/metadata/labels/new","value":"yes"},{"op":"replace","path":"/metadata/labels/new","value":"no"}]"#,
    )?;
    assert_eq!(s.value("deployment/web", "{.metadata.labels.new}")?, "no");
    let failed =
        run(s.kubectl("patch deployment web --type=json -p").arg(r#"[{"op":"remove","path":"/spec/nothing"}]"#))?;
    assert!(failed.stderr.contains("The request is invalid"), "{failed:?}");
    let unchanged = patch("", r#"{"spec":{"replicas":0}}"#)?;
    assert_eq!(unchanged, "deployment.apps/web patched (no change)\n");
    let immutable =
        run(s.kubectl("patch deployment web -p").arg(r#"{"spec":{"selector":{"matchLabels":{"app":"z"}}}}"#))?;
    assert!(immutable.stderr.contains("field is immutable"), "{immutable:?}");

    // Subresources: the object's own spec and status cannot be written through each other's.
    s.ok_with("patch deployment web --subresource=scale --type=merge -p", &[r#"{"spec":{"replicas":1}}"#])?;
    assert_eq!(s.value("deployment/web", "{.spec.replicas}")?, "1");
    let group = format!("{}.example.test", s.name);
    s.goes_too(format!("crd/widgets.{group}"));
    s.apply(&WIDGETS.replace("GROUP", &group))?;
    s.ok(&format!("wait --for=condition=Established crd/widgets.{group} --timeout=20s"))?;
    s.apply(&format!("{{apiVersion: {group}/v1, kind: Widget, metadata: {{name: w}}, spec: {{size: 2}}}}"))?;
    // By its whole name: other tests make widgets of their own group.
    let widget = format!("widgets.{group}/w");
    s.ok_with(
        &format!("patch {widget} --subresource=status --type=merge -p"),
        &[r#"{"spec":{"size":9},"status":{"phase":"Up","size":2}}"#],
    )?;
    assert_eq!(s.value(&widget, "{.spec.size} {.status.phase}")?, "2 Up");
    s.ok_with(&format!("patch {widget} --type=merge -p"), &[r#"{"status":{"phase":"Down"}}"#])?;
    assert_eq!(s.value(&widget, "{.status.phase}")?, "Up");
    s.ok(&format!("scale {widget} --replicas=5"))?;
    assert_eq!(s.value(&widget, "{.spec.size}")?, "5");
    let strategic = run(s.kubectl(&format!("patch {widget} --type=strategic -p")).arg("{}"))?;
    assert!(strategic.stderr.contains("the body of the request was in an unknown format"), "{strategic:?}");
    Ok(())
}

#[test]
fn kubectl_edits_with_the_users_editor() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "edit")?;
    s.apply(&WEB.replace("replicas: 2", "replicas: 0"))?;
    let edit = |line: &str, script: &str| {
        let mut command = s.kubectl(line);
        run(command.env("KUBE_EDITOR", format!("sed -i -e {script}")))
    };
    assert_eq!(
        edit("edit deployment web", "s/replicas:.0/replicas:\\ 1/")?.ok()?.stdout,
        "deployment.apps/web edited\n"
    );
    assert_eq!(s.value("deployment/web", "{.spec.replicas}")?, "1");
    let untouched = edit("edit deployment web", "s/nothing/else/")?.ok()?;
    assert!(untouched.stderr.contains("Edit cancelled, no changes made."), "{untouched:?}");
    // A wrong edit comes back with the reason as a comment, and is kept.
    let wrong = edit("edit deployment web", "s/containerPort:.8000$/containerPort:\\ 80000/")?;
    assert_eq!(wrong.code, Some(1));
    let copy = wrong.stderr.split('"').find(|part| part.contains("kubectl-edit")).unwrap_or_default().to_owned();
    let kept = std::fs::read_to_string(&copy)?;
    std::fs::remove_file(&copy)?;
    assert!(
        kept.contains("# * spec.template.spec.containers[0].ports[0].containerPort: Invalid value: 80000"),
        "{kept}"
    );
    edit("edit deployment web --subresource=status", "s/observedGeneration:.*/observedGeneration:\\ 77/")?.ok()?;
    edit("apply edit-last-applied deployment web", "s/8000/8123/")?.ok()?;
    assert!(s.ok("apply view-last-applied deployment web")?.contains("8123"));
    Ok(())
}

#[test]
fn kubectl_labels_annotates_and_sets() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "label")?;
    s.apply(IDLE)?;
    s.ok("create serviceaccount robot")?;
    assert_eq!(s.ok("label pod idle tier=front")?, "pod/idle labeled\n");
    assert!(
        s.refused("label pod idle tier=back")?.contains("'tier' already has a value (front), and --overwrite is false")
    );
    s.ok("label pod idle tier=back --overwrite")?;
    assert_eq!(s.ok("label pods -l app=idle tier-")?, "pod/idle unlabeled\n");
    assert!(s.refused("label pod idle bad=sp/ace")?.contains("invalid label value: \"bad=sp/ace\""));
    s.ok("annotate pod idle note=kept")?;
    let stale = s.refused("annotate pod idle note=lost --overwrite --resource-version=1")?;
    assert!(stale.contains("the object has been modified"), "{stale}");
    assert_eq!(s.value("pod/idle", "{.metadata.annotations.note}")?, "kept");

    s.ok("create deployment d --image=python:3.11 --replicas=0")?;
    s.ok("set serviceaccount deployment d robot")?;
    s.ok("create configmap values --from-literal=A=1 --from-literal=B=2")?;
    s.ok("set env deployment/d --from=configmap/values --prefix=V_")?;
    let listed = s.ok("set env deployment/d --list")?;
    assert!(listed.contains("# V_A from configmap values, key A"), "{listed}");
    s.ok("set env deployment/d V_A-")?;
    assert_eq!(s.value("deployment/d", "{.spec.template.spec.containers[0].env[*].name}")?, "V_B");
    s.ok(&format!("create rolebinding viewers --clusterrole=view --serviceaccount={}:robot", s.name))?;
    s.ok("set subject rolebinding viewers --user=someone@example.com")?;
    assert_eq!(s.value("rolebinding/viewers", "{.subjects[*].name}")?, "robot someone@example.com");

    // The generators.
    s.ok("create secret generic keys --from-literal=a=b")?;
    assert_eq!(s.value("secret/keys", "{.data.a}")?, "Yg==");
    s.ok("create quota small --hard=pods=3,configmaps=9")?;
    s.ok("wait quota/small --for=jsonpath={.status.hard.pods}=3 --timeout=20s")?;
    let described = s.ok("describe quota small")?;
    assert!(described.contains("pods        1     3"), "{described}");
    s.ok("create service clusterip plain --tcp=80:8000")?;
    s.ok("create ingress site --rule=example.test/*=plain:80")?;
    assert!(s.ok("get ingress site")?.contains("example.test"));
    s.ok("create poddisruptionbudget budget --selector=app=idle --min-available=1")?;
    s.ok("create role reader --verb=get,list --resource=pods,deployments.apps")?;
    assert_eq!(s.value("role/reader", "{.rules[1].apiGroups[0]}{.rules[1].resources[0]}")?, "appsdeployments");
    Ok(())
}
