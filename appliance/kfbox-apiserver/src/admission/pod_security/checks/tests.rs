use super::*;
use serde_json::json;
use std::path::Path;

fn told(level: Level, version: Version, pod: &Value) -> String {
    let subject = Subject { metadata: &pod["metadata"], spec: &pod["spec"] };
    details(&evaluate(LevelVersion { level, version }, subject))
}

#[test]
fn every_sample_pod_is_judged_as_its_folder_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/kubernetes/pod-security");
    if !root.is_dir() {
        eprintln!("SKIPPED: no upstream samples at {}", root.display());
        return;
    }
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    let mut seen = 0;
    for (folder, level) in [("baseline", Level::Baseline), ("restricted", Level::Restricted)] {
        for release in names(&root.join(folder)) {
            let version = Version::Minor(release.strip_prefix("v1.").unwrap().parse().unwrap());
            for expected in ["pass", "fail"] {
                let folder = root.join(folder).join(&release).join(expected);
                if !folder.is_dir() {
                    continue;
                }
                for file in names(&folder) {
                    let text = std::fs::read_to_string(folder.join(&file)).unwrap();
                    let pod: Value = serde_yaml::from_str(&text).unwrap();
                    let told = told(level, version, &pod);
                    assert_eq!(told.is_empty(), expected == "pass", "{} {file}: {told}", folder.display());
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 2000, "only {seen} samples");
}

#[test]
fn messages_name_the_fields_as_upstreams_do() {
    let pod = json!({
        "metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "unconfined"}},
        "spec": {
            "hostNetwork": true, "hostPID": true,
            "securityContext": {
                "seLinuxOptions": {"type": "x", "user": "u"}, "sysctls": [{"name": "a.b"}, {"name": "c.d"}],
                "seccompProfile": {"type": "Unconfined"}, "windowsOptions": {"hostProcess": true},
            },
            "volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "nfs": {}}],
            "initContainers": [{"name": "i", "ports": [{"hostPort": 80}], "securityContext": {"privileged": true}}],
            "containers": [
                {"name": "a", "ports": [{"hostPort": 443}, {"hostPort": 80}, {"containerPort": 1}],
                 "securityContext": {"privileged": true, "capabilities": {"add": ["SYS_ADMIN", "CHOWN", "BPF"]}}},
                {"name": "b", "livenessProbe": {"httpGet": {"host": "h"}},
                 "securityContext": {"procMount": "Unmasked", "seccompProfile": {"type": "Unconfined"},
                                     "windowsOptions": {"hostProcess": true}}},
            ],
        },
    });
    assert_eq!(
        told(Level::Baseline, Version::Latest, &pod),
        "forbidden AppArmor profile (annotation must not set AppArmor profile type to \
         \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\"), \
         non-default capabilities (container \"a\" must not include \"BPF\", \"SYS_ADMIN\" in \
         securityContext.capabilities.add), \
         host namespaces (hostNetwork=true, hostPID=true), \
         hostPath volumes (volume \"v\"), \
         hostPort (containers \"i\", \"a\" use hostPorts 443, 80), \
         probe or lifecycle host (container \"b\" uses probe or lifecycle host \"h\"), \
         privileged (containers \"i\", \"a\" must not set securityContext.privileged=true), \
         procMount (container \"b\" must not set securityContext.procMount to \"Unmasked\"), \
         seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set), \
         seccompProfile (pod and container \"b\" must not set securityContext.seccompProfile.type to \"Unconfined\"), \
         forbidden sysctls (a.b, c.d), \
         hostProcess (pod and container \"b\" must not set securityContext.windowsOptions.hostProcess=true)"
    );
    let plain =
        json!({"spec": {"containers": [{"name": "a"}], "volumes": [{"name": "v", "hostPath": {}}, {"name": "w"}]}});
    assert_eq!(
        told(Level::Restricted, Version::Latest, &plain),
        "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false), \
         unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]), \
         restricted volume types (volumes \"v\", \"w\" use restricted volume types \"hostPath\", \"unknown\"), \
         runAsNonRoot != true (pod or container \"a\" must set securityContext.runAsNonRoot=true), \
         seccompProfile (pod or container \"a\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \
         \"Localhost\")"
    );
    assert_eq!(told(Level::Privileged, Version::Latest, &pod), "");
}

#[test]
fn rules_change_with_the_release() {
    let root_in_user_namespace = json!({"spec": {"hostUsers": false, "containers": [{"name": "a", "securityContext": {
        "runAsUser": 0, "procMount": "Unmasked", "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"}}}]}});
    let told_in = |level, minor| told(level, Version::Minor(minor), &root_in_user_namespace);
    assert!(told_in(Level::Baseline, 34).starts_with("procMount"));
    assert_eq!(told_in(Level::Baseline, 35), "");
    assert!(told_in(Level::Restricted, 34).contains("runAsUser=0"));
    assert!(told_in(Level::Restricted, 35).starts_with("procMount ("));
    assert_eq!(
        told_in(Level::Restricted, 35),
        told_in(Level::Restricted, 9999),
        "newer than known is the newest known"
    );
    // The stricter rule speaks alone.
    let adds = json!({"spec": {"containers": [{"name": "a", "securityContext": {"capabilities": {"add": ["BPF"]}}}]}});
    assert!(told(Level::Restricted, Version::Minor(21), &adds).contains("non-default capabilities"));
    assert!(!told(Level::Restricted, Version::Minor(22), &adds).contains("non-default capabilities"));
    let windows = json!({"spec": {"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true}, "containers": [{"name": "a"}]}});
    assert_ne!(told(Level::Restricted, Version::Minor(24), &windows), "");
    assert_eq!(told(Level::Restricted, Version::Minor(25), &windows), "");
}

#[test]
fn odd_shapes_are_judged_and_never_panic() {
    for odd in [
        json!(null),
        json!(1),
        json!("x"),
        json!([1, null]),
        json!({"containers": {"a": 1}}),
        json!({"containers": [1, null, "x", []]}),
    ] {
        for level in [Level::Baseline, Level::Restricted] {
            told(level, Version::Latest, &json!({"metadata": odd, "spec": odd}));
        }
    }
}
