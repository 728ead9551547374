//! `kfbox run FILE`: compiles if needed, starts a run as its user, follows it with states and logs, and ends as it ends.

mod follow;
mod parameters;
pub(super) mod web;

use super::{RunArgs, SourceArgs};
use crate::{
    control::{Client, Status, TokenRequest, TokenResponse},
    failure::{Code, Failure},
};
use anyhow::Context as _;
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use std::{
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};
use web::Web;

/// How long one call may follow a run: its token ends then. The run itself may take longer.
const TOKEN_SECONDS: u64 = 7 * 86_400;
/// Upstream's limit of a pipeline package.
const LARGEST_PACKAGE: u64 = 32 << 20;
/// The SDK's compiler, from whichever Python has it.
const COMPILE: &str = "import sys; from kfp.cli.__main__ import main; sys.argv[0] = 'kfp'; main()";

pub async fn run(data_dir: PathBuf, args: RunArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&data_dir);
    // Before the compiler is started: without a box there is nothing to do.
    let status: Status = client.get("/v1/status").await?;
    let documents = documents(&args.source).await?;
    let spec = documents.first().context("the file holds no pipeline")?;
    let given = parameters::typed(spec, &args.parameters)?;

    as_user(&client, &status, args.user.clone(), "kfbox run", async |web| {
        start_and_follow(web, &status, &args, &documents, given).await
    })
    .await
}

/// Does `work` as a user, with a token that ends with it.
pub(super) async fn as_user<T>(
    client: &Client,
    status: &Status,
    user: Option<String>,
    name: &str,
    work: impl AsyncFnOnce(&Web) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let request =
        TokenRequest { user, name: name.into(), expires_in_seconds: TOKEN_SECONDS, scopes: vec!["platform".into()] };
    let token: TokenResponse = client.post("/v1/tokens", &request).await?;
    let web = Web::new(status, token.token)?;
    let ended = work(&web).await;
    // Good for nothing from here on.
    let revoked = client.delete::<Value>(&format!("/v1/tokens?id={}", token.id)).await;
    let done = ended?;
    revoked.map(|_| done)
}

async fn start_and_follow(
    web: &Web,
    status: &Status,
    args: &RunArgs,
    documents: &[Value],
    given: Map<String, Value>,
) -> anyhow::Result<ExitCode> {
    let pipeline = match documents {
        [spec, platform, ..] => json!({"pipeline_spec": spec, "platform_spec": platform}),
        [spec] => spec.clone(),
        [] => Value::Null,
    };
    let name = documents.first().and_then(|d| d.pointer("/pipelineInfo/name")).and_then(Value::as_str);
    let name = args
        .name
        .clone()
        .unwrap_or_else(|| format!("{} {}", name.unwrap_or("run"), chrono::Utc::now().format("%Y-%m-%d %H:%M:%S")));
    let mut body = json!({
        "display_name": name,
        "pipeline_spec": pipeline,
        "runtime_config": {"parameters": given},
        "namespace": args.namespace.clone().unwrap_or_default(),
    });
    if let Some(experiment) = &args.experiment {
        body["experiment_id"] = json!(experiment_id(web, experiment, args.namespace.as_deref()).await?);
    }
    let run: Value = web.post("/apis/v2beta1/runs", &body).await?;
    let id = run["run_id"].as_str().context("the answer names no run")?;
    eprintln!("{name}\n  {}/runs/{id}", status.url.trim_end_matches('/'));
    if args.detach {
        println!("{id}");
        return Ok(ExitCode::SUCCESS);
    }
    follow::follow(web, id, args.quiet).await
}

/// The experiment of that name; made if there is none.
async fn experiment_id(web: &Web, name: &str, namespace: Option<&str>) -> anyhow::Result<String> {
    let filter = json!({"predicates": [{"key": "name", "operation": "EQUALS", "string_value": name}]}).to_string();
    let path = format!(
        "/apis/v2beta1/experiments?namespace={}&filter={}",
        super::encode(namespace.unwrap_or_default()),
        super::encode(&filter)
    );
    let found: Value = web.get(&path).await?;
    if let Some(id) = found.pointer("/experiments/0/experiment_id").and_then(Value::as_str) {
        return Ok(id.to_owned());
    }
    let body = json!({"display_name": name, "namespace": namespace.unwrap_or_default()});
    let made: Value = web.post("/apis/v2beta1/experiments", &body).await?;
    made["experiment_id"].as_str().map(str::to_owned).context("the answer names no experiment")
}

/// The pipeline's YAML documents: its specification, and with platform features a second one.
pub(super) async fn documents(args: &SourceArgs) -> anyhow::Result<Vec<Value>> {
    let is_python = args.file.extension().is_some_and(|e| e == "py");
    let text = if is_python { compile(args).await? } else { read(&args.file)? };
    let documents: Result<Vec<Value>, _> = serde_yaml::Deserializer::from_str(&text).map(Value::deserialize).collect();
    let documents = documents.with_context(|| format!("{} is no YAML or JSON", args.file.display()))?;
    let documents: Vec<Value> = documents.into_iter().filter(|d| !d.is_null()).collect();
    if documents.first().is_none_or(|d| d.get("root").is_none()) {
        return Err(Failure::new(
            Code::General,
            format!("{} is no compiled pipeline", args.file.display()),
            "give a pipeline's Python file, or what the kfp SDK's compiler made of it",
        )
        .into());
    }
    Ok(documents)
}

fn read(path: &Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.take(LARGEST_PACKAGE + 1).read_to_string(&mut text);
    let size = size.with_context(|| format!("cannot read {}", path.display()))?;
    anyhow::ensure!(size as u64 <= LARGEST_PACKAGE, "{} is larger than a pipeline may be", path.display());
    Ok(text)
}

async fn compile(args: &SourceArgs) -> anyhow::Result<String> {
    // Found before Python starts, for the clearer error.
    std::fs::metadata(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?;
    let folder = tempfile::tempdir()?;
    let package = folder.path().join("pipeline.yaml");
    let mut command = tokio::process::Command::new(&args.python);
    command.args(["-c", COMPILE, "dsl", "compile", "--py"]).arg(&args.file).arg("--output").arg(&package);
    if let Some(function) = &args.function {
        command.args(["--function", function]);
    }
    let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output().await;
    let output = output.map_err(|error| {
        Failure::new(
            Code::General,
            format!("cannot run {}: {error}", args.python.display()),
            "name a Python that has the kfp package with --python",
        )
    })?;
    if output.status.success() {
        return read(&package);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let next = if said.contains("No module named 'kfp'") {
        "install the SDK (`pip install kfp`), or name a Python that has it with --python"
    } else {
        "mend the pipeline; what Python said stands above"
    };
    eprint!("{said}");
    Err(Failure::new(Code::General, format!("{} could not be compiled", args.file.display()), next).into())
}
