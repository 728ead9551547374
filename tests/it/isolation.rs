//! Walls between users: who gets through which door, asserted door by door and printed as a table; and what went wrong in
//! the systems whose job kfbox does.
//!
//! # Weaknesses of others, and the tests that show them closed here
//!
//! Tests are named by crate and function; those without a crate are of this module. "doors" are rows of [`doors`].
//!
//! | elsewhere | what | shown closed by |
//! |---|---|---|
//! | KFP UI CVE-2026-54745 | open `/_proxy/` | doors "upstream's open proxy"; kfbox-gateway `confusing_paths_are_refused` |
//! | KFP CVE-2026-77596 | upload without authorization | doors "pipeline: upload", "version: upload", "pipeline: create" |
//! | KFP CVE-2023-6570 | `namespace` of the artifact proxy reaches any host | doors "upstream's artifact proxy", "artifact: download"; kfbox-pipelines `a_namespace_stays_within_its_fence` |
//! | KFP #13127 | SQL in page tokens | kfbox-pipelines `lists_page_sort_and_filter_and_refuse_made_up_tokens`; [`statements_in_tokens_filters_and_sorting_are_text`] |
//! | KFP #13683, #12509, #13288 | ids, logs and pipelines of others | doors "run: get", "step: log", "pipeline: update" and their neighbours |
//! | KFP GHSA-rhjm-6347-5x33 | output executed as code | kfbox-pipelines `data_is_never_read_as_an_expression`; [`crate::engine`]'s `an_output_that_is_code_arrives_as_text_everywhere` |
//! | KFP SDK GHSA-qv29-qxgh-jcw8 | a token sent to another host | kfbox-gateway `another_applications_tokens_are_not_good_on_the_platform`, `personal_tokens_have_scopes_an_end_and_are_stored_hashed`; kfbox-node `credentials_go_to_their_registry_alone`; kfbox-platform `credentials_go_to_the_index_only` |
//! | MLMD GHSA-j53r-x5f5-j4hr | no authorization of tenants | doors "metadata: …"; kfbox-metadata `writes_are_stamped_and_reads_confined`, `a_forged_page_token_shows_nothing_of_others` |
//! | dashboard CVE-2023-6571 | reflected XSS | kfbox-dashboard `hostile_names_are_text_on_every_page`; kfbox-gateway `the_page_escapes_what_was_typed_and_cannot_be_framed` |
//! | dashboard CVE-2024-5552 | catastrophic backtracking | kfbox-platform `addresses_are_judged_in_one_pass` |
//! | KFAM #6077 | any user owns any namespace | doors "kfam: …"; kfbox-platform `only_the_owner_or_an_administrator_binds_and_unbinds`, `nobody_makes_a_profile_for_somebody_else`, `a_foreign_namespace_is_never_taken` |
//! | Katib #1322, #1983 | pages without access review | no such page yet; every route is behind one door: kfbox-gateway `only_health_and_sign_in_are_open`, and [`no_header_query_or_agent_opens_a_route`] |
//! | KServe #4205, #4796, #4975, #4939 | archives that leave their root or fill the disk | kfbox-pipelines `an_archive_bomb_is_refused`; kfbox-node `nothing_leaves_the_layer`, `what_would_fill_memory_is_refused_wherever_it_stands`, `nothing_is_written_outside` |
//! | MinIO CVE-2023-28432, -28434 | secrets by the environment, forged admin requests | [`the_store_has_no_administrators_door`]; kfbox-objects `secrets_stay_out_of_debug_forms` |
//! | MinIO CVE-2024-55949, CVE-2025-62506 | rights widened by import and session policies | [`the_store_has_no_administrators_door`] (neither exists); kfbox-objects `a_credential_is_confined_to_its_grants` |
//! | SeaweedFS CVE-2026-72920 and others | an open admin port, `..` across buckets, `../` in DeleteObjects | doors "object: get by .."; kfbox-objects `keys_are_names_and_never_paths`; [`the_store_has_no_administrators_door`] |
//! | Dex CVE-2022-39222 | codes stolen through public clients | kfbox-gateway `a_public_client_signs_in_with_pkce_and_its_tokens_work_once_each`, `redirect_addresses_are_compared_exactly_and_errors_do_not_travel` |
//! | Dex GHSA-7qjx-gp9h-65qj | token exchange skips connectors | kfbox-gateway `a_token_is_exchanged_only_by_a_client_that_may_and_for_users_it_takes`, `what_a_policy_does_not_name_exactly_it_does_not_allow` |
//! | Dex GHSA-gr79-9v6v-gc9r | old TLS served | [`old_tls_is_refused`] |
//! | oauth2-proxy CVE-2025-54576, CVE-2026-34457, -40575, -76835 | queries, agents and forwarded headers that open routes | [`no_header_query_or_agent_opens_a_route`]; kfbox-gateway `a_component_gets_the_user_and_no_header_that_a_stranger_could_set` |
//! | Argo CVE-2025-62156 | Zip Slip | kfbox-node `nothing_leaves_the_layer`; kfbox-launcher `a_hostile_name_in_an_input_is_refused` |
//! | Argo CVE-2026-31892, -42296, -54526 | pod patches past strict templates | [`a_step_passes_the_admission_of_its_namespace`] |
//! | Kubernetes CVE-2020-8554, CVE-2021-25740 | external addresses and endpoints that take others' traffic | doors "own: …" |
//! | Kubeflow's manifests | default password `12341234` | kfbox-gateway `generated_passwords_differ_and_are_acceptable`, `what_was_stored_survives_a_restart_and_the_first_user_is_made_once` |

mod departed;
mod doors;
mod keys;
mod lineage;
pub mod people;
mod runs;

use doors::{Door, ROWS};
use kfbox_tests::{Python, TestBox, run, run_with_input, wait_until};
use people::{Person, Possessions, ask, pod};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// A word that nothing else on the box holds.
fn word(what: &str) -> String {
    format!("{what}{:x}x{:x}", std::process::id(), std::time::UNIX_EPOCH.elapsed().unwrap_or_default().subsec_nanos())
}

/// The outcomes of a plan, tried here or in a pod.
fn probe(b: &TestBox, pod: Option<(&str, &str)>, plan: &Value) -> anyhow::Result<Vec<String>> {
    let output = match pod {
        None => run_with_input(&mut Python::Clients.script("tests/clients/isolation_probe.py"), &plan.to_string())?,
        Some((namespace, name)) => {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/isolation_probe.py");
            let source = std::fs::read_to_string(source)?;
            let args = ["exec", "-i", "-n", namespace, name, "--", "python3", "-c", &source];
            b.kubectl_with_input(&args, &plan.to_string())?
        }
    };
    Ok(serde_json::from_str(&output.ok()?.stdout)?)
}

/// The pods' gateway, which is the node's own address to them.
pub fn bridge(b: &TestBox) -> anyhow::Result<String> {
    let get = ["get", "endpointslices", "-n", "kubeflow", "-l", "kubernetes.io/service-name=minio-service", "-o"];
    Ok(b.kubectl(&[&get[..], &["jsonpath={.items[0].endpoints[0].addresses[0]}"]].concat())?.ok()?.stdout)
}

#[test]
fn everybody_gets_through_their_own_doors_and_no_other() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let word = word("own");
    let owner = Person::new(&b, &word)?;
    let viewer = Person::new(&b, &format!("view.{word}"))?;
    let editor = Person::new(&b, &format!("edit.{word}"))?;
    let stranger = Person::new(&b, &self::word("other"))?;
    owner.binding("POST", &viewer.email, "view")?;
    owner.binding("POST", &editor.email, "edit")?;
    let has = Possessions::of(&owner, &word)?;
    let spares = runs::Spares::of(&owner, &has)?;
    let claim = people::claim(&word).to_string();
    b.kubectl_with_input(&["apply", "-n", &owner.namespace, "-f", "-"], &claim)?.ok()?;
    let outside = pod("outside", &["sleep", "infinity"], "");
    let n = ["-n", &stranger.namespace];
    b.kubectl_with_input(&[&["apply", "-f", "-"], &n[..]].concat(), &outside.to_string())?.ok()?;
    b.kubectl(&[&["wait", "--for=condition=Ready", "pod/outside", "--timeout=60s"], &n[..]].concat())?.ok()?;
    let service = format!("door.{}.svc.cluster.local", owner.namespace);
    for claim in [
        people::way("steal", &format!("/steal/{}/", stranger.namespace), &service),
        people::way("mine", &format!("/mine/{}/", owner.namespace), "door"),
    ] {
        b.kubectl_with_input(&[&["apply", "-f", "-"], &n[..]].concat(), &claim.to_string())?.ok()?;
    }

    let here = json!({
        "gateway": b.url()?,
        "kubernetes": format!("https://{}", b.address("kubernetes")?),
        "objects": format!("http://{}", b.address("objects")?),
        "metadata": format!("https://{}", b.address("metadata")?),
    });
    let put = json!({"kind": "s3", "method": "PUT", "path": format!("/mlpipeline/{}", has.object), "body": word});
    let plan = json!({"bases": here, "markers": [], "s3": owner.credentials()?, "doors": [put]});
    assert_eq!(probe(&b, None, &plan)?, ["200"]);

    let bridge = bridge(&b)?;
    let in_pods = json!({
        "tasks": format!("http://{bridge}:8887"),
        "gateway": "http://ml-pipeline.kubeflow:8888",
        "kubernetes": "https://kubernetes.default",
        "objects": "http://minio-service.kubeflow:9000",
        "metadata": "http://metadata-grpc-service.kubeflow:8080",
    });
    let from_host = |person: &Person<'_>| -> anyhow::Result<Value> {
        let (certificate, key) = person.certificate()?;
        Ok(json!({"bases": here, "token": person.token, "s3": person.credentials()?,
            "certificate": certificate, "key": key}))
    };
    let from_pod = |person: &Person<'_>| -> anyhow::Result<Value> {
        let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
        Ok(json!({"bases": in_pods, "token_file": token, "s3": person.credentials()?}))
    };
    let who = [
        (None, json!({"bases": here})),
        (None, from_host(&owner)?),
        (None, from_host(&viewer)?),
        (None, from_host(&editor)?),
        (None, from_host(&stranger)?),
        (Some((stranger.namespace.as_str(), "outside")), from_pod(&stranger)?),
        (Some((owner.namespace.as_str(), "door")), from_pod(&owner)?),
    ];
    let made = lineage::Metadata::of(&b, &from_host(&owner)?, &has)?;
    let doors = doors::all(&has, &spares, &made, &stranger.namespace, &bridge);
    let mut seen = vec![vec!["-".to_owned(); ROWS.len()]; doors.len()];
    for (row, (pod, mut plan)) in who.into_iter().enumerate() {
        let tried: Vec<usize> = (0..doors.len()).filter(|n| doors[*n].wanted[row] != "-").collect();
        plan["markers"] = json!([word]);
        plan["doors"] = tried.iter().map(|n| doors[*n].how.clone()).collect();
        for (n, outcome) in tried.into_iter().zip(probe(&b, pod, &plan)?) {
            seen[n][row] = outcome;
        }
    }
    let wrong = compare(&doors, &seen);
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), b.log());
    Ok(())
}

/// Prints the table; what is not as wanted.
fn compare(doors: &[Door], seen: &[Vec<String>]) -> Vec<String> {
    let mut wrong = Vec::new();
    println!("{:<36}{}", "", ROWS.map(|row| format!("{row:<13}")).concat());
    for (door, seen) in doors.iter().zip(seen) {
        println!("{:<36}{}", door.name, seen.iter().map(|cell| format!("{cell:<13}")).collect::<String>());
        for (row, (seen, wanted)) in ROWS.iter().zip(seen.iter().zip(door.wanted)) {
            if seen != wanted {
                wrong.push(format!("{}, {row}: {seen} instead of {wanted}", door.name));
            }
            if matches!(*row, "anonymous" | "stranger" | "their pod") && seen.ends_with('+') {
                wrong.push(format!("{}, {row}: sees what is the owner's", door.name));
            }
        }
    }
    wrong
}

/// Asks until refused; how long after `since` that was.
fn refused_after(since: Instant, what: &str, mut status: impl FnMut() -> anyhow::Result<u16>) -> anyhow::Result<()> {
    loop {
        let asked = since.elapsed();
        let status = status()?;
        if matches!(status, 401 | 403 | 404) {
            println!("{what}: {status} to what was asked {asked:?} after");
            anyhow::ensure!(asked < Duration::from_secs(1), "{what} was refused only {asked:?} after");
            return Ok(());
        }
        anyhow::ensure!(asked < Duration::from_secs(10), "{what} was never refused, but answered {status}");
    }
}

#[test]
fn what_is_revoked_is_refused_within_a_second() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let owner = Person::new(&b, &word("gives"))?;
    let guest = Person::new(&b, &word("guest"))?;
    let (gateway, kubernetes) = (b.url()?, format!("https://{}", b.address("kubernetes")?));
    let ns = &owner.namespace;
    let doors = [
        format!("{gateway}/pipeline/apis/v2beta1/runs?namespace={ns}"),
        format!("{gateway}/runs?namespace={ns}"),
        format!("{gateway}/api/activities/{ns}"),
        format!("{kubernetes}/api/v1/namespaces/{ns}/pods"),
    ];
    for door in &doors {
        owner.binding("POST", &guest.email, "edit")?;
        // Several times: what an answer left in a cache would be used.
        for _ in 0..3 {
            assert_eq!(ask(door, &guest.token, "GET", None)?.0, 200, "{door}");
        }
        let since = Instant::now();
        owner.binding("DELETE", &guest.email, "edit")?;
        refused_after(since, door, || Ok(ask(door, &guest.token, "GET", None)?.0))?;
    }

    // A pod's account that is deleted: its token is refused, also once another account of the name is there.
    let account = b.kubectl(&["create", "token", "default-editor", "-n", ns])?.ok()?.stdout;
    for _ in 0..3 {
        assert_eq!(ask(&doors[0], account.trim(), "GET", None)?.0, 200);
    }
    b.kubectl(&["delete", "serviceaccount", "default-editor", "-n", ns, "--wait=false"])?.ok()?;
    let since = Instant::now();
    refused_after(since, "a deleted account", || Ok(ask(&doors[0], account.trim(), "GET", None)?.0))?;

    // A person who is shut out.
    let mine = format!("{gateway}/pipeline/apis/v2beta1/runs");
    assert_eq!(ask(&mine, &guest.token, "GET", None)?.0, 200);
    b.kfbox_ok(&["user", "disable", &guest.email])?;
    refused_after(Instant::now(), "a disabled person", || Ok(ask(&mine, &guest.token, "GET", None)?.0))
}

#[test]
fn a_step_passes_the_admission_of_its_namespace() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let strict = Person::new(&b, &word("strict"))?;
    let level = "pod-security.kubernetes.io/enforce=restricted";
    b.kubectl(&["label", "namespace", &strict.namespace, level, "--overwrite"])?.ok()?;
    // It runs as root, which this namespace does not let pods do, whoever makes them.
    let spec = json!({
        "pipelineInfo": {"name": "as-root"}, "schemaVersion": "2.1.0", "sdkVersion": "kfp-2.17.0",
        "components": {"comp-id": {"executorLabel": "exec-id"}},
        "deploymentSpec": {"executors": {"exec-id": {"container": {"image": "python:3.11", "command": ["id"]}}}},
        "root": {"dag": {"tasks": {"id": {"componentRef": {"name": "comp-id"}, "taskInfo": {"name": "id"}}}}},
    });
    let wanted = json!({"display_name": "as root", "namespace": strict.namespace, "pipeline_spec": spec});
    let run = strict.api("POST", "/pipeline/apis/v2beta1/runs", &wanted)?;
    let path = format!("/pipeline/apis/v2beta1/runs/{}", run["run_id"].as_str().unwrap_or_default());
    let ended = wait_until(Duration::from_secs(120), "the end of the run", || {
        let run = strict.api("GET", &path, &Value::Null)?;
        Ok((run["state"] == "FAILED" || run["state"] == "SUCCEEDED").then_some(run))
    })?;
    assert_eq!(ended["state"], "FAILED", "{ended}");
    assert!(ended["error"].to_string().contains("violates PodSecurity"), "{}", ended["error"]);
    // An administrator's level stays.
    let label = "jsonpath={.metadata.labels.pod-security\\.kubernetes\\.io/enforce}";
    assert_eq!(b.kubectl(&["get", "namespace", &strict.namespace, "-o", label])?.ok()?.stdout, "restricted");
    Ok(())
}

#[test]
fn no_header_query_or_agent_opens_a_route() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let url = b.url()?;
    let status = |path: &str, headers: &[&str]| -> anyhow::Result<String> {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", "-m", "20"]);
        curl.args(["-H", "Accept: application/json"]).args(headers.iter().flat_map(|h| ["-H", *h]));
        Ok(run(curl.arg(format!("{url}{path}")))?.ok()?.stdout)
    };
    let closed = [
        "/pipeline/apis/v2beta1/runs",
        "/apis/v2beta1/pipelines",
        "/kfam/v1/bindings",
        "/api/namespaces",
        "/runs",
        "/",
        "/api/workgroup/env-info",
        "/katib/",
        "/_proxy/127.0.0.1:22",
        "/metrics",
        "/debug/pprof/",
    ];
    for path in closed {
        assert_eq!(status(path, &[])?, "401", "{path}");
    }
    let runs = "/apis/v2beta1/runs";
    for disguise in [
        "User-Agent: kube-probe/1.36",
        "User-Agent: GoogleHC/1.0",
        "X-Forwarded-Uri: /healthz",
        "X-Original-Url: /healthz",
        "X-Rewrite-Url: /healthz",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-User: user@example.com",
        "kubeflow-userid: user@example.com",
        "X-Auth-Request-Email: user@example.com",
        "X-Remote-User: admin",
        "Cookie: oauth2_proxy_kubeflow=guess",
        "Authorization: Basic dXNlcjpwYXNz",
        "Authorization: Bearer null",
    ] {
        assert_eq!(status(runs, &[disguise])?, "401", "{disguise}");
    }
    for query in ["?x=/healthz", "?rd=/dex/auth", "?/oauth2/", "?path=/dex/static/sign-in.css", ";/healthz"] {
        let answer = status(&format!("{runs}{query}"), &[])?;
        assert!(matches!(answer.as_str(), "401" | "400"), "{query}: {answer}");
    }
    for confusing in
        ["/healthz/..%2fapis/v2beta1/runs", "/dex/../apis/v2beta1/runs", "//apis/v2beta1/runs", "/dex/%2e%2e/runs"]
    {
        assert_eq!(status(confusing, &[])?, "400", "{confusing}");
    }
    Ok(())
}

#[test]
fn statements_in_tokens_filters_and_sorting_are_text() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let who = Person::new(&b, &word("query"))?;
    let hostile = "x%27%20OR%201%3D1%3B--%20";
    let runs = |query: &str| ask(&format!("{}/pipeline/apis/v2beta1/runs?{query}", b.url()?), &who.token, "GET", None);
    for bad in [
        format!("page_token={hostile}"),
        format!("sort_by={hostile}"),
        format!("filter={hostile}"),
        format!("namespace={hostile}"),
        "page_size=1%20UNION%20SELECT".to_owned(),
        "page_token=eyJvZmZzZXQiOiIwIE9SIDE9MSJ9".to_owned(),
    ] {
        let (status, text) = runs(&bad)?;
        assert_eq!(status, 400, "{bad}: {text}");
        assert!(!text.to_lowercase().contains("sqlite"), "{text}");
    }
    let filter = json!({"predicates": [{"operation": "EQUALS", "key": "name", "string_value": "' OR '1'='1"}]});
    let encoded: String = filter.to_string().bytes().map(|c| format!("%{c:02X}")).collect();
    let (status, text) = runs(&format!("filter={encoded}"))?;
    let found: Value = serde_json::from_str(&text)?;
    assert_eq!((status, found["runs"].as_array().map_or(0, Vec::len)), (200, 0), "{text}");
    Ok(())
}

#[test]
fn the_store_has_no_administrators_door() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let who = Person::new(&b, &word("store"))?;
    let credentials = who.credentials()?;
    let secret = credentials["secretKey"].as_str().unwrap_or_default();
    let door =
        |method: &str, path: &str, body: &str| json!({"kind": "s3", "method": method, "path": path, "body": body});
    let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}"#;
    let doors = [
        door("GET", "/minio/admin/v3/info", ""),
        door("POST", "/minio/bootstrap/v1/verify", ""),
        door("GET", "/minio/v2/metrics/cluster", ""),
        door("GET", "/minio/admin/v3/export-iam", ""),
        door("PUT", "/minio/admin/v3/import-iam", policy),
        door("POST", "/?Action=AssumeRole&Version=2011-06-15", ""),
        door("PUT", "/mlpipeline?policy", policy),
        door("PUT", "/mlpipeline?acl", ""),
        door("GET", "/mlpipeline?policy", ""),
        door("PUT", "/somebody-elses-bucket", ""),
    ];
    let base = json!({"objects": format!("http://{}", b.address("objects")?)});
    let mut plan = json!({"bases": base, "markers": [secret], "doors": doors});
    let anonymous = probe(&b, None, &plan)?;
    plan["s3"] = credentials.clone();
    let signed = probe(&b, None, &plan)?;
    for (door, outcomes) in doors.iter().zip(anonymous.iter().zip(&signed)) {
        for outcome in [outcomes.0, outcomes.1] {
            assert!(matches!(outcome.as_str(), "400" | "403" | "404" | "405" | "501"), "{door}: {outcome}");
        }
    }
    assert!(!b.log().contains(secret));
    Ok(())
}

#[test]
fn old_tls_is_refused() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    for server in ["kubernetes", "metadata"] {
        let address = b.address(server)?;
        let connect = |version: &str| {
            let mut client = Command::new("openssl");
            // Debian's own configuration would not even offer the old ones.
            client.args(["s_client", "-connect", &address, version, "-cipher", "DEFAULT@SECLEVEL=0"]);
            run(client.env("OPENSSL_CONF", "/dev/null"))
        };
        for old in ["-tls1", "-tls1_1"] {
            let said = connect(old)?;
            let text = format!("{}{}", said.stdout, said.stderr);
            // Which alert depends on what else the two could not agree on.
            let refused = text.contains("alert protocol version") || text.contains("alert handshake failure");
            assert!(said.code != Some(0) && refused, "{server} {old}: {text}");
        }
        let text = connect("-tls1_2")?.stdout;
        assert!(text.contains("Protocol  : TLSv1.2") || text.contains("New, TLSv1.2"), "{server}: {text}");
    }
    Ok(())
}
