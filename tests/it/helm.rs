//! helm, unmodified: a chart's whole life, and what becomes of releases that fail.

use kfbox_tests::{Output, Space, TestBox, cache_dir, run};
use serde_json::Value;

const CHART: &str = "
apiVersion: v2
name: shop
version: 1.0.0
appVersion: '1'
";

const VALUES: &str = "
replicas: 1
greeting: hello
image: python:3.11
broken: false
";

/// A gadget's definition comes before the templates; its group is the release's namespace.
const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.GROUP}
spec:
  group: GROUP
  scope: Namespaced
  names: {kind: Gadget, plural: gadgets, singular: gadget}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {greeting: {type: string}}}}
";

const TEMPLATES: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-page}
data:
  greeting: {{ .Values.greeting | quote }}
  revision: "{{ .Release.Revision }}"
  kube: {{ .Capabilities.KubeVersion.Version }}
  apps: "{{ .Capabilities.APIVersions.Has "apps/v1/Deployment" }}"
  {{- with lookup "v1" "ConfigMap" .Release.Namespace "kube-root-ca.crt" }}
  found: {{ .metadata.name }}
  {{- end }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}-web}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: {{ .Values.image }}
        command: [python3, -m, http.server, '8000']
        env: [{name: GREETING, value: {{ .Values.greeting }}}]
        readinessProbe: {httpGet: {path: /, port: 8000}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: {{ .Release.Name }}-web}
spec: {selector: {app: {{ .Release.Name }}}, ports: [{port: 80, targetPort: 8000}]}
---
apiVersion: GROUP/v1
kind: Gadget
metadata: {name: {{ .Release.Name }}}
spec: {greeting: {{ .Values.greeting }}}
"#;

const HOOK: &str = r#"
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-prepare
  annotations:
    helm.sh/hook: pre-install,pre-upgrade
    helm.sh/hook-delete-policy: before-hook-creation
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers:
      - {name: main, image: 'python:3.11', command: [python3, -c, 'print("prepared {{ .Release.Revision }}")']}
"#;

const CHECK: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: {{ .Release.Name }}-check
  annotations: {helm.sh/hook: test, helm.sh/hook-delete-policy: before-hook-creation}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: python:3.11
    command: [python3, -c]
    args: ['import urllib.request; print(urllib.request.urlopen("http://{{ .Release.Name }}-web/").status)']
"#;

struct Helm {
    space: Space,
    group: String,
}

impl Helm {
    fn new(prefix: &str) -> anyhow::Result<Self> {
        let space = Space::new(&TestBox::shared()?, prefix)?;
        let group = format!("{}.example.test", space.name);
        space.goes_too(format!("crd/gadgets.{group}"));
        space.file("shop/Chart.yaml", CHART)?;
        space.file("shop/values.yaml", VALUES)?;
        space.file("shop/crds/gadgets.yaml", &DEFINITION.replace("GROUP", &group))?;
        space.file("shop/templates/all.yaml", &TEMPLATES.replace("GROUP", &group))?;
        space.file("shop/templates/prepare.yaml", HOOK)?;
        space.file("shop/templates/tests/check.yaml", CHECK)?;
        space.file("shop/templates/NOTES.txt", "Said {{ .Values.greeting }}.\n")?;
        Ok(Self { space, group })
    }

    fn run(&self, line: &str) -> anyhow::Result<Output> {
        run(self.space.command(cache_dir().join("bin/helm")).args(line.split_whitespace()))
    }

    fn ok(&self, line: &str) -> anyhow::Result<String> {
        use anyhow::Context as _;
        Ok(self.run(line)?.ok().with_context(|| format!("helm {line}"))?.stdout)
    }

    fn page(&self, key: &str) -> anyhow::Result<String> {
        self.space.value("configmap/shop-page", &format!("{{.data.{key}}}"))
    }
}

#[test]
fn helm_lives_through_a_releases_life() -> anyhow::Result<()> {
    let h = Helm::new("helm")?;
    let s = &h.space;
    assert!(h.ok("lint shop --strict")?.contains("0 chart(s) failed"));
    let installed = h.ok("install shop shop --wait --timeout 90s")?;
    assert!(installed.contains("STATUS: deployed") && installed.contains("Said hello."), "{installed}");
    assert_eq!(s.value("deployment/shop-web", "{.status.readyReplicas}")?, "1");
    assert_eq!(
        (h.page("revision")?, h.page("apps")?, h.page("found")?),
        ("1".into(), "true".into(), "kube-root-ca.crt".into())
    );
    assert_eq!(s.ok("logs job/shop-prepare")?, "prepared 1\n");
    assert_eq!(s.value(&format!("gadgets.{}/shop", h.group), "{.spec.greeting}")?, "hello");
    assert!(h.run("install shop shop")?.stderr.contains("cannot reuse a name that is still in use"));
    let tested = h.ok("test shop --logs --timeout 60s")?;
    assert!(tested.contains("Succeeded") && tested.contains("200"), "{tested}");

    // The server is asked for what `lookup` finds, and nothing stays.
    let dry = h.ok("install other shop --dry-run=server --set greeting=dry")?;
    assert!(dry.contains("greeting: \"dry\"") && dry.contains("found: kube-root-ca.crt"), "{dry}");
    assert!(s.refused("get configmap other-page")?.contains("NotFound"));

    // Another's field survives an upgrade; what the chart says comes back.
    s.ok("annotate deployment/shop-web others=wrote")?;
    h.ok("upgrade shop shop --wait --timeout 90s --set greeting=bonjour,replicas=2")?;
    assert_eq!((h.page("revision")?, h.page("greeting")?), ("2".into(), "bonjour".into()));
    assert_eq!(s.value("deployment/shop-web", "{.status.readyReplicas}{.metadata.annotations.others}")?, "2wrote");
    assert!(h.ok("get values shop")?.contains("greeting: bonjour"));
    assert!(h.ok("get manifest shop --revision 1")?.contains("value: hello"));
    assert!(h.ok("status shop")?.contains("STATUS: deployed"));
    h.ok("rollback shop 1 --wait --timeout 90s")?;
    assert_eq!(h.page("greeting")?, "hello");
    assert_eq!(s.value("deployment/shop-web", "{.spec.replicas}")?, "1");
    let history: Value = serde_json::from_str(&h.ok("history shop -o json")?)?;
    let told: Vec<_> =
        history.as_array().into_iter().flatten().map(|r| r["status"].as_str().unwrap_or_default()).collect();
    assert_eq!(told, ["superseded", "superseded", "deployed"]);
    assert_eq!(history[2]["description"], "Rollback to 1");
    let listed: Value = serde_json::from_str(&h.ok("list -o json")?)?;
    assert_eq!((listed[0]["name"].as_str(), listed[0]["revision"].as_str()), (Some("shop"), Some("3")));

    h.ok("uninstall shop --wait --timeout 60s")?;
    let left = s.ok("get deployments,services,configmaps,secrets -o name")?;
    assert_eq!(left.trim(), "configmap/kube-root-ca.crt");
    // Definitions stay, so that their objects are never lost by the way.
    s.ok(&format!("get crd gadgets.{}", h.group))?;
    Ok(())
}

#[test]
fn helm_rolls_back_what_fails() -> anyhow::Result<()> {
    let h = Helm::new("helmfail")?;
    let s = &h.space;
    // A first install that fails leaves nothing behind.
    let failed = h.run("install shop shop --rollback-on-failure --timeout 4s --set image=localhost/none:1")?;
    assert!(failed.code == Some(1) && failed.stderr.contains("has been uninstalled due to"), "{failed:?}");
    assert_eq!(s.ok("get deployments,services -o name")?, "");
    assert_eq!(h.ok("list --failed --pending --deployed -q")?.trim(), "");

    h.ok("install shop shop --wait --timeout 90s")?;
    let failed =
        h.run("upgrade shop shop --rollback-on-failure --timeout 4s --set image=localhost/none:1,greeting=lost")?;
    assert!(failed.code == Some(1) && failed.stderr.contains("has been rolled back due to"), "{failed:?}");
    assert_eq!(h.page("greeting")?, "hello");
    assert_eq!(s.value("deployment/shop-web", "{.spec.template.spec.containers[0].image}")?, "python:3.11");
    let history: Value = serde_json::from_str(&h.ok("history shop -o json")?)?;
    assert_eq!(history[1]["status"], "failed");
    assert_eq!(history[2]["status"], "deployed");

    // What the server refuses is told with its reason, and without --rollback-on-failure the release stays failed.
    let refused = h.run("upgrade shop shop --set replicas=-1")?;
    assert!(refused.stderr.contains("spec.replicas: Invalid value: -1"), "{refused:?}");
    assert!(h.ok("status shop")?.contains("STATUS: failed"));
    h.ok("upgrade shop shop --wait --timeout 60s")?;
    assert!(h.ok("status shop")?.contains("STATUS: deployed"));
    // Client-side patches, as helm did before its fourth version.
    h.ok("upgrade shop shop --server-side=false --set greeting=old-way")?;
    assert_eq!(h.page("greeting")?, "old-way");
    h.ok("uninstall shop --keep-history")?;
    assert!(h.ok("history shop")?.contains("uninstalled"));
    Ok(())
}
