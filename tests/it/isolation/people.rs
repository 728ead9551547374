//! Who tries the doors: people with profiles, their pods, and what is the owner's. All of it goes when the value is
//! dropped, also when the test fails.

use anyhow::Context;
use kfbox_tests::{TestBox, run, run_with_input, wait_until};
use serde_json::{Value, json};
use std::{path::PathBuf, process::Command, time::Duration};

pub struct Person<'a> {
    b: &'a TestBox,
    pub email: String,
    pub namespace: String,
    pub token: String,
}

impl<'a> Person<'a> {
    /// Let in, with a namespace that is ready and a token for everything.
    pub fn new(b: &'a TestBox, name: &str) -> anyhow::Result<Self> {
        let email = format!("{name}@example.com");
        let mut add = Command::new(kfbox_tests::program()?);
        add.args(["user", "add", &email]).env("KFBOX_DATA_DIR", b.data_dir());
        run_with_input(&mut add, "a long enough password\n")?.ok()?;
        let namespace = format!("kubeflow-{}", email.replace(['.', '@'], "-"));
        let mut person = Self { b, email, namespace, token: String::new() };
        let profile = format!("profile/{}", person.namespace);
        b.kubectl(&["wait", "--for=condition=Successful", &profile, "--timeout=60s"])?.ok()?;
        let token = b.kfbox_ok(&["token", "--user", &person.email, "--name", "isolation", "--expires", "1h"])?;
        person.token = token.trim().to_owned();
        Ok(person)
    }

    /// A request to the gateway, which must succeed.
    pub fn api(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let (status, text) = ask(&format!("{}{path}", self.b.url()?), &self.token, method, Some(body))?;
        anyhow::ensure!(status < 300, "{method} {path} was answered with {status}: {text}");
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    /// Gives a role in this person's namespace, or takes it.
    pub fn binding(&self, method: &str, whom: &str, role: &str) -> anyhow::Result<()> {
        self.api(method, "/kfam/v1/bindings", &binding(whom, &self.namespace, role)).map(drop)
    }

    /// S3 credentials of the person's namespace, as `kfbox credentials` gives them.
    pub fn credentials(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.b.kfbox_ok(&["credentials", "-n", &self.namespace, "-o", "json"])?)?)
    }

    /// A certificate in this person's name, as the cluster signs them: `(certificate, key)`.
    pub fn certificate(&self) -> anyhow::Result<(PathBuf, PathBuf)> {
        let dir = self.b.scratch()?;
        let path = |kind: &str| dir.join(format!("{}.{kind}", self.namespace));
        let (key, request, certificate) = (path("key"), path("csr"), path("crt"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-new", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        openssl.args(["-subj", &format!("/CN={}", self.email), "-keyout"]).arg(&key).arg("-out").arg(&request);
        run(&mut openssl)?.ok()?;
        let encoded = run(Command::new("base64").arg("-w0").arg(&request))?.ok()?.stdout;
        let manifest = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": self.namespace},
            "spec": {"request": encoded, "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]},
        });
        self.b.kubectl_with_input(&["apply", "-f", "-"], &manifest.to_string())?.ok()?;
        self.b.kubectl(&["certificate", "approve", &self.namespace])?.ok()?;
        let signed = wait_until(Duration::from_secs(30), "the certificate", || {
            let get = ["get", "csr", &self.namespace, "-o", "jsonpath={.status.certificate}"];
            Ok(Some(self.b.kubectl(&get)?.ok()?.stdout).filter(|text| !text.is_empty()))
        })?;
        let decoded = run_with_input(Command::new("base64").arg("-d"), &signed)?.ok()?.stdout;
        std::fs::write(&certificate, decoded)?;
        self.b.kubectl(&["delete", "csr", &self.namespace])?.ok()?;
        Ok((certificate, key))
    }
}

impl Drop for Person<'_> {
    fn drop(&mut self) {
        let profile = ["delete", "profile", &self.namespace, "--wait=false", "--ignore-not-found"];
        for (what, done) in [
            ("the profile", self.b.kubectl(&profile)),
            ("the user", self.b.kfbox(&["user", "remove", self.email.as_str()])),
        ] {
            match done {
                Ok(output) if output.code == Some(0) => {}
                other => eprintln!("{what} of {} was not removed: {other:?}", self.email),
            }
        }
    }
}

pub fn binding(whom: &str, namespace: &str, role: &str) -> Value {
    json!({"user": {"kind": "User", "name": whom}, "referredNamespace": namespace,
        "roleRef": {"kind": "ClusterRole", "name": role}})
}

/// One request with a bearer token: its status and its text.
pub fn ask(url: &str, token: &str, method: &str, body: Option<&Value>) -> anyhow::Result<(u16, String)> {
    let mut curl = Command::new("curl");
    curl.args(["-sk", "-m", "30", "-X", method, "-w", "\n%{http_code}", "-H", "Accept: application/json"]);
    if !token.is_empty() {
        curl.args(["-H", &format!("Authorization: Bearer {token}")]);
    }
    let body = body.filter(|b| !b.is_null()).map(Value::to_string);
    if body.is_some() {
        curl.args(["-H", "Content-Type: application/json", "--data-binary", "@-"]);
    }
    let output = run_with_input(curl.arg(url), body.as_deref().unwrap_or_default())?.ok()?.stdout;
    let (text, status) = output.rsplit_once('\n').context("curl said nothing")?;
    Ok((status.parse()?, text.to_owned()))
}

/// What the owner has, each part holding the word that nobody else may see.
pub struct Possessions {
    pub word: String,
    pub namespace: String,
    pub pod_ip: String,
    pub service_ip: String,
    pub node_port: u16,
    pub experiment: String,
    pub pipeline: String,
    pub version: String,
    pub run: String,
    pub task: String,
    pub recurring: String,
    /// The key of an object in the shared bucket.
    pub object: String,
}

const SERVER: &str = "import http.server, os
os.makedirs('/tmp/w', exist_ok=True); os.chdir('/tmp/w')
open('index.html', 'w').write(os.environ['WORD']); print(os.environ['WORD'], flush=True)
http.server.test(http.server.SimpleHTTPRequestHandler, port=8000, bind='0.0.0.0')";

/// A pod that stays, in a namespace, with the rights of an editor.
pub fn pod(name: &str, command: &[&str], word: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"serviceAccountName": "default-editor", "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main", "image": "python:3.11", "command": command, "env": [{"name": "WORD", "value": word}],
        }]},
    })
}

/// A claim that nobody mounts.
pub fn claim(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}})
}

/// A VirtualService that leads a path to a Service.
pub fn way(name: &str, prefix: &str, host: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": name}, "spec": {
            "hosts": ["*"], "gateways": ["kubeflow/kubeflow-gateway"],
            "http": [{"match": [{"uri": {"prefix": prefix}}], "rewrite": {"uri": "/"},
                "route": [{"destination": {"host": host, "port": {"number": 80}}}]}],
        },
    })
}

pub fn spec(word: &str) -> Value {
    let script = format!("echo {word} said; mkdir -p \"$(dirname \"$0\")\"; echo {word} made > \"$0\"");
    json!({
        "pipelineInfo": {"name": word}, "schemaVersion": "2.1.0", "sdkVersion": "kfp-2.17.0",
        "components": {"comp-say": {"executorLabel": "exec-say", "outputDefinitions": {"artifacts": {
            "data": {"artifactType": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}}}}}},
        "deploymentSpec": {"executors": {"exec-say": {"container": {"image": "python:3.11",
            "command": ["sh", "-c", script], "args": ["{{$.outputs.artifacts['data'].path}}"]}}}},
        "root": {"dag": {"tasks": {"say": {
            "cachingOptions": {}, "componentRef": {"name": "comp-say"}, "taskInfo": {"name": "say"}}}}},
    })
}

fn text(value: &Value) -> anyhow::Result<String> {
    Ok(value.as_str().with_context(|| format!("no text: {value}"))?.to_owned())
}

impl Possessions {
    pub fn of(owner: &Person<'_>, word: &str) -> anyhow::Result<Self> {
        let (b, namespace) = (owner.b, owner.namespace.clone());
        let n = ["-n", &namespace];
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            pod("door", &["python3", "-u", "-c", SERVER], word),
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "door"}, "spec": {"type": "NodePort",
                "selector": {"app": "door"}, "ports": [{"port": 80, "targetPort": 8000}]}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": word}, "stringData": {"word": word}},
        ]});
        b.kubectl_with_input(&[&["apply", "-f", "-"], &n[..]].concat(), &objects.to_string())?.ok()?;
        let ways = json!({"apiVersion": "v1", "kind": "List", "items": [
            way("door", &format!("/door/{namespace}/"), "door"),
            {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "leaf"}, "spec": {
                "parentRefs": [{"name": "kubeflow-gateway", "namespace": "kubeflow"}],
                "rules": [{
                    "matches": [{"path": {"type": "Exact", "value": format!("/leaf/{namespace}")}}],
                    "filters": [{"type": "URLRewrite",
                        "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/"}}}],
                    "backendRefs": [{"name": "door", "port": 80}],
                }]}},
            {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "closed"}, "spec": {
                "action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/closed/*"]}}]}]}},
        ]});
        b.kubectl_with_input(&[&["apply", "-f", "-"], &n[..]].concat(), &ways.to_string())?.ok()?;

        let api = |path: &str, body: &Value| owner.api("POST", &format!("/pipeline/apis/v2beta1/{path}"), body);
        let made = api("experiments", &json!({"display_name": word, "namespace": namespace}))?;
        let experiment = text(&made["experiment_id"])?;
        let made = api(
            "pipelines/create",
            &json!({"pipeline": {"display_name": word, "namespace": namespace},
                "pipeline_version": {"display_name": word, "pipeline_spec": spec(word)}}),
        )?;
        let pipeline = text(&made["pipeline_id"])?;
        let path = format!("/pipeline/apis/v2beta1/pipelines/{pipeline}/versions");
        let versions = owner.api("GET", &path, &Value::Null)?;
        let version = text(&versions["pipeline_versions"][0]["pipeline_version_id"])?;
        let reference = json!({"pipeline_id": pipeline, "pipeline_version_id": version});
        let wanted =
            json!({"display_name": word, "experiment_id": experiment, "pipeline_version_reference": reference});
        let run = text(&api("runs", &wanted)?["run_id"])?;
        let mut wanted = wanted;
        wanted["trigger"] = json!({"cron_schedule": {"cron": "0 0 0 1 1 *"}});
        wanted["mode"] = "DISABLE".into();
        wanted["max_concurrency"] = "1".into();
        let recurring = text(&api("recurringruns", &wanted)?["recurring_run_id"])?;
        let path = format!("/pipeline/apis/v2beta1/runs/{run}");
        let ended = wait_until(Duration::from_secs(180), "the owner's run", || {
            let run = owner.api("GET", &path, &Value::Null)?;
            anyhow::ensure!(run["state"] != "FAILED", "{run}");
            Ok((run["state"] == "SUCCEEDED").then_some(run))
        })?;
        let tasks = ended["run_details"]["task_details"].as_array().cloned().unwrap_or_default();
        let task = tasks.iter().find(|t| t["display_name"] == "say").context("the run has no such task")?;

        b.kubectl(&[&["wait", "--for=condition=Ready", "pod/door", "--timeout=60s"], &n[..]].concat())?.ok()?;
        for (path, wanted) in [
            (format!("door/{namespace}/"), 200),
            (format!("leaf/{namespace}"), 200),
            (format!("door/{namespace}/closed/"), 403),
        ] {
            let url = format!("{}/{path}", b.url()?);
            wait_until(Duration::from_secs(30), "the ways to the Service", || {
                Ok((ask(&url, &owner.token, "GET", None)?.0 == wanted).then_some(()))
            })?;
        }
        let value = |what: &str, path: &str| -> anyhow::Result<String> {
            let path = format!("jsonpath={path}");
            Ok(b.kubectl(&[&["get", what, "-o", &path], &n[..]].concat())?.ok()?.stdout)
        };
        Ok(Self {
            word: word.into(),
            pod_ip: value("pod/door", "{.status.podIP}")?,
            service_ip: value("service/door", "{.spec.clusterIP}")?,
            node_port: value("service/door", "{.spec.ports[0].nodePort}")?.parse()?,
            object: format!("v2/artifacts/{namespace}/walls/{word}"),
            task: text(&task["task_id"])?,
            namespace,
            experiment,
            pipeline,
            version,
            run,
            recurring,
        })
    }
}
