//! Who one is and what one may: auth, tokens, impersonation, certificates.

use kfbox_tests::{Space, TestBox, run};
use std::process::Command;

#[test]
fn kubectl_asks_who_one_is_and_what_one_may() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "auth")?;
    assert!(s.ok("auth whoami")?.contains("system:masters"));
    let name = s.ok_with("auth whoami --as=someone --as-group=team -o", &["jsonpath={.status.userInfo.username}"])?;
    assert_eq!(name, "someone");
    assert_eq!(s.ok("auth can-i delete nodes")?, "yes\n");
    let robot = format!("system:serviceaccount:{}:default", s.name);
    let no = s.run(&format!("auth can-i get pods --as={robot}"))?;
    assert!(no.code == Some(1) && no.stdout.starts_with("no"), "{no:?}");

    let rules = format!(
        "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: reader, namespace: {0}}}
rules: [{{apiGroups: [''], resources: [pods, pods/log], verbs: [get, list]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: readers, namespace: {0}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}}
subjects: [{{kind: ServiceAccount, name: default, namespace: {0}}}]
",
        s.name
    );
    s.input("auth reconcile -f -", &rules)?.ok()?;
    // Reconciling adds what is missing and keeps what others added.
    s.ok_with(
        "patch role reader --type=json -p",
        &[r#"[{"op":"add","path":"/rules/-","value":{"apiGroups":[""],"resources":["events"],"verbs":["list"]}}]"#],
    )?;
    s.input("auth reconcile -f -", &rules.replace("[get, list]", "[get, list, watch]"))?.ok()?;
    let list = s.ok(&format!("auth can-i --list --as={robot}"))?;
    for resource in ["pods ", "pods/log", "events"] {
        assert!(list.lines().any(|line| line.starts_with(resource)), "{resource}: {list}");
    }
    assert_eq!(s.ok(&format!("auth can-i watch pods --subresource=log --as={robot}"))?, "yes\n");
    assert!(s.refused(&format!("get secrets --as={robot}"))?.contains(&format!(
        "(Forbidden): secrets is forbidden: User \"{robot}\" cannot list resource \"secrets\" in API group \"\" in the \
         namespace \"{}\"",
        s.name
    )));
    // Nobody grants more than they have.
    s.ok("create role maker --verb=create --resource=roles.rbac.authorization.k8s.io")?;
    s.ok("create rolebinding makers --role=maker --user=climber")?;
    let climb = s.refused("create role all --verb=* --resource=* --as=climber")?;
    assert!(climb.contains("is attempting to grant RBAC permissions not currently held"), "{climb}");
    Ok(())
}

#[test]
fn kubectl_uses_a_token_of_a_service_account() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let s = Space::new(&b, "token")?;
    s.ok("create serviceaccount robot")?;
    s.ok(&format!("create rolebinding robot --clusterrole=edit --serviceaccount={}:robot", s.name))?;
    let token = s.ok("create token robot --duration=15m")?;
    // Without the administrator's certificate: a configuration that has the token only.
    let bare = |line: &str| {
        let mut command = s.kubectl(line);
        command.args(["--user=robot"]);
        run(&mut command)
    };
    s.ok(&format!("config set-credentials robot --token={}", token.trim()))?;
    assert!(bare("auth whoami")?.ok()?.stdout.contains(&format!("system:serviceaccount:{}:robot", s.name)));
    bare("create configmap mine --from-literal=a=b")?.ok()?;
    assert!(bare("get nodes")?.stderr.contains("nodes is forbidden"));
    assert!(bare("create role r --verb=get --resource=pods")?.stderr.contains("(Forbidden)"));

    // Bound to a pod or secret: dead with it. For another audience: no use here.
    s.ok("create secret generic anchor")?;
    let bound = s.ok("create token robot --bound-object-kind=Secret --bound-object-name=anchor")?;
    s.ok(&format!("config set-credentials robot --token={}", bound.trim()))?;
    bare("auth whoami")?.ok()?;
    s.ok("delete secret anchor")?;
    assert!(bare("auth whoami")?.stderr.contains("Unauthorized"));
    let foreign = s.ok("create token robot --audience=elsewhere")?;
    s.ok(&format!("config set-credentials robot --token={}", foreign.trim()))?;
    assert!(bare("get configmaps")?.stderr.contains("Unauthorized"));
    s.ok("delete serviceaccount robot")?;
    s.ok(&format!("config set-credentials robot --token={}", token.trim()))?;
    assert!(bare("get configmaps")?.stderr.contains("Unauthorized"));
    Ok(())
}

/// A request is approved by a person, signed by the controller, and the certificate is somebody.
#[test]
fn kubectl_approves_a_certificate_that_then_signs_in() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "csr")?;
    let mut openssl = Command::new("openssl");
    openssl.current_dir(s.dir()).args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    openssl.args(["-nodes", "-keyout", "key.pem", "-out", "csr.pem", "-subj", "/O=surveyors/CN=jane@example.test"]);
    run(&mut openssl)?.ok()?;
    let request = run(Command::new("base64").args(["-w0", "csr.pem"]).current_dir(s.dir()))?.ok()?.stdout;
    let manifest = |name: &str| {
        format!(
            "
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {{name: {name}}}
spec: {{signerName: kubernetes.io/kube-apiserver-client, usages: [client auth], expirationSeconds: 3600, request: {request}}}
"
        )
    };
    let (name, denied) = (s.name.clone(), format!("{}-denied", s.name));
    for name in [&name, &denied] {
        s.goes_too(format!("csr/{name}"));
        s.apply(&manifest(name))?;
    }
    assert!(s.ok(&format!("get csr {name}"))?.contains("Pending"));
    assert!(s.ok(&format!("certificate approve {name}"))?.contains("approved"));
    s.ok(&format!("wait csr/{name} --for=jsonpath={{.status.certificate}} --timeout=30s"))?;
    assert!(s.ok(&format!("get csr {name}"))?.contains("Approved,Issued"));
    let certificate = s.value(&format!("csr/{name}"), "{.status.certificate}")?;
    let decoded = kfbox_tests::run_with_input(Command::new("base64").arg("-d"), &certificate)?.ok()?.stdout;
    s.file("cert.pem", &decoded)?;
    s.ok("config set-credentials jane --client-certificate=cert.pem --client-key=key.pem --embed-certs")?;
    let who = s.ok("auth whoami --user=jane")?;
    assert!(who.contains("jane@example.test") && who.contains("surveyors"), "{who}");
    assert!(s.refused("get pods --user=jane")?.contains("User \"jane@example.test\" cannot list resource"));

    s.ok(&format!("certificate deny {denied}"))?;
    assert!(s.ok(&format!("get csr {denied}"))?.contains("Denied"));
    assert_eq!(s.value(&format!("csr/{denied}"), "{.status.certificate}")?, "");
    Ok(())
}
