//! The pipelines' doors, in both versions of the API and on the pages, and what is there to be deleted through them.

use super::{
    doors::{BY_ID, Door, IN_NAMESPACE, NOT_THERE, OWN, SIGNED_IN_NEVER, web},
    people::{Person, Possessions, spec},
};
use anyhow::Context;
use serde_json::{Value, json};

/// As [`BY_ID`], where the answer names nothing of the owner's.
const SEEN: [&str; 7] = ["401", "200", "200", "200", "404", "404", "200"];
/// A change that can be made again.
const SWITCH: [&str; 7] = ["401", "200", "403", "200", "404", "404", "200"];
/// Who may do it is told why it cannot be done now.
const TOLD: [&str; 7] = ["401", "400", "403", "400", "404", "404", "400"];
/// Gone with the last who tries, so that it was there for all others.
const GOES: [&str; 7] = ["401", "-", "403", "-", "404", "404", "200"];
/// Needed until the end: who may delete it does not try.
const STAYS: [&str; 7] = ["401", "-", "403", "-", "404", "404", "-"];

/// What may go, once by each version of the API.
pub struct Spares {
    runs: [String; 2],
    recurring: [String; 2],
}

impl Spares {
    pub fn of(owner: &Person<'_>, p: &Possessions) -> anyhow::Result<Self> {
        let make = |what: &str, id: &str, body: &Value| -> anyhow::Result<String> {
            let made = owner.api("POST", &format!("/pipeline/apis/v2beta1/{what}"), body)?;
            Ok(made[id].as_str().with_context(|| format!("no {id} in {made}"))?.to_owned())
        };
        // Its only step is skipped: it takes no pod.
        let mut idle = spec("idle");
        idle["root"]["dag"]["tasks"]["say"]["triggerPolicy"] = json!({"condition": "false"});
        let mut wanted = json!({"display_name": "spare", "experiment_id": p.experiment, "pipeline_spec": idle});
        let run = |wanted: &Value| make("runs", "run_id", wanted);
        let runs = [run(&wanted)?, run(&wanted)?];
        wanted["trigger"] = json!({"cron_schedule": {"cron": "0 0 0 1 1 *"}});
        wanted["mode"] = "DISABLE".into();
        wanted["max_concurrency"] = "1".into();
        let schedule = |wanted: &Value| make("recurringruns", "recurring_run_id", wanted);
        Ok(Self { runs, recurring: [schedule(&wanted)?, schedule(&wanted)?] })
    }
}

pub fn doors(p: &Possessions, spares: &Spares) -> Vec<Door> {
    let mut doors = v2(p, spares);
    doors.extend(v1(p, spares));
    doors
}

fn v2(p: &Possessions, spares: &Spares) -> Vec<Door> {
    let door = |name, method: &str, path: String, body: Value, wanted| Door {
        name,
        how: web("gateway", method, format!("/pipeline/apis/v2beta1/{path}"), body),
        wanted,
    };
    let get = |name, path: String, wanted| door(name, "GET", path, Value::Null, wanted);
    let act = |name, path: String, wanted| door(name, "POST", path, json!({}), wanted);
    let (ns, run) = (&p.namespace, &p.run);
    let page = |name, path: String, wanted| Door { name, how: web("gateway", "GET", path, Value::Null), wanted };
    // Who may create is told what the request lacks.
    let create = ["401", "400", "403", "400", "403", "403", "400"];
    let reference = json!({"pipeline_id": p.pipeline, "pipeline_version_id": p.version});
    let surplus = json!({"parameters": {"there-is-none": 1}});
    let schedule = json!({"display_name": "x", "namespace": ns, "trigger": {"cron_schedule": {"cron": "0 0 0 1 1 *"}}});
    let report = json!({"metadata": {"name": "x", "namespace": ns, "uid": run}});
    let delete = |name, path: String, wanted| door(name, "DELETE", path, Value::Null, wanted);
    vec![
        get("run: get", format!("runs/{run}"), BY_ID),
        get("runs: list", format!("runs?namespace={ns}"), IN_NAMESPACE),
        get("runs: list mine", "runs".into(), OWN),
        get("runs: list by experiment", format!("runs?experiment_id={}", p.experiment), BY_ID),
        act("run: terminate", format!("runs/{run}:terminate"), TOLD),
        act("run: retry", format!("runs/{run}:retry"), TOLD),
        act("run: archive", format!("runs/{run}:archive"), SWITCH),
        act("run: unarchive", format!("runs/{run}:unarchive"), SWITCH),
        door("run: create", "POST", "runs".into(), json!({"display_name": "x", "namespace": ns}), create),
        door(
            "run: create in experiment",
            "POST",
            "runs".into(),
            json!({"display_name": "x", "experiment_id": p.experiment}),
            ["401", "400", "403", "400", "404", "404", "400"],
        ),
        door(
            "run: of the owner's version",
            "POST",
            "runs".into(),
            json!({"display_name": "x", "pipeline_version_reference": reference, "runtime_config": surplus}),
            ["401", "400", "400", "400", "404", "404", "400"],
        ),
        get("experiment: get", format!("experiments/{}", p.experiment), BY_ID),
        get("experiments: list", format!("experiments?namespace={ns}"), IN_NAMESPACE),
        get("experiments: list mine", "experiments".into(), OWN),
        act("experiment: unarchive", format!("experiments/{}:unarchive", p.experiment), SWITCH),
        door("experiment: create", "POST", "experiments".into(), json!({"namespace": ns}), create),
        get("recurring run: get", format!("recurringruns/{}", p.recurring), BY_ID),
        get("recurring runs: list", format!("recurringruns?namespace={ns}"), IN_NAMESPACE),
        act("recurring run: disable", format!("recurringruns/{}:disable", p.recurring), SWITCH),
        get("pipeline: get", format!("pipelines/{}", p.pipeline), BY_ID),
        get("pipeline: get by name", format!("pipelines/names/{}?namespace={ns}", p.word), BY_ID),
        get("pipelines: list", format!("pipelines?namespace={ns}"), IN_NAMESPACE),
        get("versions: list", format!("pipelines/{}/versions", p.pipeline), BY_ID),
        get("version: get", format!("pipelines/{}/versions/{}", p.pipeline, p.version), BY_ID),
        door("pipeline: create", "POST", "pipelines".into(), json!({"namespace": ns}), create),
        act("pipeline: upload", format!("pipelines/upload?namespace={ns}"), create),
        act(
            "version: upload",
            format!("pipelines/upload_version?pipelineid={}", p.pipeline),
            ["401", "400", "403", "400", "404", "404", "400"],
        ),
        door(
            "pipeline: update",
            "PATCH",
            format!("pipelines/{}", p.pipeline),
            json!({"description": "d"}),
            ["401", "200+", "403", "200+", "404", "404", "200+"],
        ),
        delete("run: delete", format!("runs/{}", spares.runs[0]), GOES),
        delete("recurring run: delete", format!("recurringruns/{}", spares.recurring[0]), GOES),
        // It has runs, and the pipeline a version: both stay.
        delete("experiment: delete", format!("experiments/{}", p.experiment), TOLD),
        delete("pipeline: delete", format!("pipelines/{}", p.pipeline), TOLD),
        delete("version: delete", format!("pipelines/{}/versions/{}", p.pipeline, p.version), STAYS),
        door("recurring run: create", "POST", "recurringruns".into(), schedule, create),
        get("artifact: read", format!("runs/{run}/nodes/{}/artifacts/data:read", p.task), SEEN),
        get(
            "auth: viewers",
            format!("auth?verb=GET&resources=VIEWERS&namespace={ns}"),
            ["401", "200", "200", "200", "403", "403", "200"],
        ),
        // For upstream's persistence agent.
        door("workflow: report", "POST", "workflows".into(), report, SIGNED_IN_NEVER),
        page("step: log", format!("/pipeline/apis/v1beta1/runs/{run}/nodes/{}/log", p.task), BY_ID),
        page("page: run", format!("/runs/{run}"), BY_ID),
        page("page: runs", format!("/runs?namespace={ns}"), IN_NAMESPACE),
        page("page: live events", format!("/runs/{run}/live"), SEEN),
        // Of whatever the caller sees; that something changed is all that it tells.
        page("page: all live events", "/live".into(), ["401", "200", "200", "200", "200", "200", "200"]),
        page("page: step", format!("/runs/{run}/nodes/{}", p.task), BY_ID),
        page("page: log", format!("/runs/{run}/nodes/{}/log", p.task), BY_ID),
        page("artifact: download", format!("/runs/{run}/artifacts/{}:data:0", p.task), BY_ID),
        page("artifact: preview", format!("/runs/{run}/artifacts/{}:data:0/preview", p.task), BY_ID),
        page("upstream's artifact proxy", format!("/artifacts/get?namespace={ns}&key={}", p.object), NOT_THERE),
        page("upstream's open proxy", "/_proxy/127.0.0.1:6443/version".into(), NOT_THERE),
    ]
}

fn v1(p: &Possessions, spares: &Spares) -> Vec<Door> {
    let door = |name, method: &str, path: String, body: Value, wanted| Door {
        name,
        how: web("gateway", method, format!("/pipeline/apis/v1beta1/{path}"), body),
        wanted,
    };
    let get = |name, path: String, wanted| door(name, "GET", path, Value::Null, wanted);
    let act = |name, path: String, wanted| door(name, "POST", path, json!({}), wanted);
    let delete = |name, path: String, wanted| door(name, "DELETE", path, Value::Null, wanted);
    let of = format!("resource_reference_key.type=NAMESPACE&resource_reference_key.id={}", p.namespace);
    vec![
        get("v1 run: get", format!("runs/{}", p.run), BY_ID),
        get("v1 runs: list", format!("runs?{of}"), IN_NAMESPACE),
        act("v1 run: terminate", format!("runs/{}/terminate", p.run), TOLD),
        act("v1 run: retry", format!("runs/{}/retry", p.run), TOLD),
        act("v1 run: report metrics", format!("runs/{}:reportMetrics", p.run), SWITCH),
        get("v1 artifact: read", format!("runs/{}/nodes/{}/artifacts/data:read", p.run, p.task), SEEN),
        delete("v1 run: delete", format!("runs/{}", spares.runs[1]), GOES),
        get("v1 job: get", format!("jobs/{}", p.recurring), BY_ID),
        get("v1 jobs: list", format!("jobs?{of}"), IN_NAMESPACE),
        act("v1 job: disable", format!("jobs/{}/disable", p.recurring), SWITCH),
        delete("v1 job: delete", format!("jobs/{}", spares.recurring[1]), GOES),
        get("v1 experiment: get", format!("experiments/{}", p.experiment), BY_ID),
        get("v1 experiments: list", format!("experiments?{of}"), IN_NAMESPACE),
        delete("v1 experiment: delete", format!("experiments/{}", p.experiment), TOLD),
        get("v1 pipeline: get", format!("pipelines/{}", p.pipeline), BY_ID),
        get("v1 pipelines: list", format!("pipelines?{of}"), IN_NAMESPACE),
        get("v1 pipeline: template", format!("pipelines/{}/templates", p.pipeline), BY_ID),
        // Its versions would go with it.
        delete("v1 pipeline: delete", format!("pipelines/{}", p.pipeline), STAYS),
        delete("v1 version: delete", format!("pipeline_versions/{}", p.version), STAYS),
    ]
}
