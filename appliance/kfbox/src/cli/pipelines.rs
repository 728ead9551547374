//! `kfbox pipelines`: what the pipelines API holds, for people at a terminal. Everything goes through the same routes as
//! the SDK, as a user whose rights count.

use super::{
    DebugArgs, Output, SourceArgs, debug, encode,
    run::{as_user, documents, web::Web},
};
use crate::{
    control::{Client, Status},
    failure::{Code, Failure},
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use std::{path::PathBuf, process::ExitCode};

pub const EXAMPLES: &str = "\
Examples:
  kfbox pipelines upload pipeline.py              the pipeline, or a new version of it
  kfbox pipelines runs list --state failed        what went wrong lately
  kfbox pipelines runs get 6f1b2c                 one run and its steps; the id's beginning is enough
  kfbox pipelines runs retry 6f1b2c               go on where it failed
  kfbox pipelines recurring disable nightly       by name or id";

const API: &str = "/apis/v2beta1";
/// Rows fetched at a time: the API's own limit.
const PAGE: usize = 200;
/// An id's beginning that is long enough to mean one thing.
const SHORTEST_PREFIX: usize = 4;

#[derive(Args)]
pub struct PipelinesArgs {
    #[command(flatten)]
    who: Who,
    #[command(subcommand)]
    command: AnyCommand,
}

#[derive(Args)]
struct Who {
    /// Whose rights are used [default: the first user]
    #[arg(long, value_name = "EMAIL", global = true)]
    user: Option<String>,
    /// Where to look [default: the user's namespaces]
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// How to print lists
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true)]
    output: Output,
}

#[derive(Subcommand)]
enum AnyCommand {
    #[command(flatten)]
    Api(PipelinesCommand),
    /// Start a step's container again, with its inputs, and open a shell in it; it goes when the shell ends
    Debug(DebugArgs),
}

#[derive(Subcommand)]
enum PipelinesCommand {
    /// The pipelines, newest first
    #[command(visible_alias = "ls")]
    List(Limit),
    /// Store a pipeline; if there is one of this name, as a new version of it
    Upload {
        #[command(flatten)]
        source: SourceArgs,
        /// The pipeline's name [default: the one it has in the file]
        #[arg(long)]
        name: Option<String>,
        /// The version's name [default: the pipeline's and the time]
        #[arg(long)]
        version: Option<String>,
        /// What it is for
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Delete pipelines with their versions, by name or id; runs made from them stay
    #[command(visible_alias = "rm")]
    Delete {
        #[arg(required = true)]
        pipelines: Vec<String>,
    },
    /// Runs
    #[command(subcommand, visible_alias = "run")]
    Runs(RunsCommand),
    /// Experiments
    #[command(subcommand, visible_alias = "experiment")]
    Experiments(ExperimentsCommand),
    /// Recurring runs
    #[command(subcommand)]
    Recurring(RecurringCommand),
}

#[derive(Args)]
struct Limit {
    /// How many at most
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

#[derive(Subcommand)]
enum RunsCommand {
    /// Runs, newest first
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        limit: Limit,
        /// Only those in this state: pending, running, succeeded, failed, canceled
        #[arg(long)]
        state: Option<String>,
        /// Only those of this experiment, by name or id
        #[arg(long)]
        experiment: Option<String>,
        /// Archived ones instead
        #[arg(long)]
        archived: bool,
    },
    /// One run and its steps
    Get { run: String },
    /// Stop runs
    Terminate {
        #[arg(required = true)]
        runs: Vec<String>,
    },
    /// Go on with failed or terminated runs, where they failed
    Retry {
        #[arg(required = true)]
        runs: Vec<String>,
    },
    /// Put runs aside; `list --archived` shows them
    Archive {
        #[arg(required = true)]
        runs: Vec<String>,
    },
    /// Delete runs, with their logs and the artifacts that no other run reuses
    #[command(visible_alias = "rm")]
    Delete {
        #[arg(required = true)]
        runs: Vec<String>,
    },
}

#[derive(Subcommand)]
enum ExperimentsCommand {
    /// Experiments, newest first
    #[command(visible_alias = "ls")]
    List(Limit),
    /// Make one
    Create {
        name: String,
        /// What it is for
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Put experiments and their runs aside
    Archive {
        #[arg(required = true)]
        experiments: Vec<String>,
    },
    /// Delete experiments that have no runs
    #[command(visible_alias = "rm")]
    Delete {
        #[arg(required = true)]
        experiments: Vec<String>,
    },
}

#[derive(Subcommand)]
enum RecurringCommand {
    /// Recurring runs, newest first
    #[command(visible_alias = "ls")]
    List(Limit),
    /// Let them start runs again
    Enable {
        #[arg(required = true)]
        recurring: Vec<String>,
    },
    /// Let them start no more runs
    Disable {
        #[arg(required = true)]
        recurring: Vec<String>,
    },
    /// Delete them; runs that they started stay
    #[command(visible_alias = "rm")]
    Delete {
        #[arg(required = true)]
        recurring: Vec<String>,
    },
}

/// How a kind is listed: its collection, the list in the answer, and the name of its id.
struct Kind {
    path: &'static str,
    list: &'static str,
    id: &'static str,
    shown: &'static str,
}

const PIPELINES: Kind = Kind { path: "pipelines", list: "pipelines", id: "pipeline_id", shown: "pipeline" };
const RUNS: Kind = Kind { path: "runs", list: "runs", id: "run_id", shown: "run" };
const EXPERIMENTS: Kind = Kind { path: "experiments", list: "experiments", id: "experiment_id", shown: "experiment" };
const RECURRING: Kind =
    Kind { path: "recurringruns", list: "recurringRuns", id: "recurring_run_id", shown: "recurring run" };

pub async fn run(data_dir: PathBuf, args: PipelinesArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&data_dir);
    let status: Status = client.get("/v1/status").await?;
    let PipelinesArgs { who, command } = args;
    let command = match command {
        AnyCommand::Debug(args) => return debug::debug(data_dir, who.user, args).await,
        AnyCommand::Api(command) => command,
    };
    // Compiling may take a while and fail: no token is needed for it.
    let package = match &command {
        PipelinesCommand::Upload { source, .. } => documents(source).await?,
        _ => Vec::new(),
    };
    let user = who.user.clone();
    as_user(&client, &status, user, "kfbox pipelines", async |web| {
        Session { web, who }.carry_out(command, package).await
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

struct Session<'a> {
    web: &'a Web,
    who: Who,
}

impl Session<'_> {
    async fn carry_out(&self, command: PipelinesCommand, package: Vec<Value>) -> anyhow::Result<()> {
        match command {
            PipelinesCommand::List(Limit { limit }) => {
                let rows = self.list(&PIPELINES, "", limit).await?;
                self.print(&rows, &["ID", "NAME", "NAMESPACE", "CREATED", "DESCRIPTION"], |row| {
                    ["pipeline_id", "name", "namespace", "created_at", "description"].map(|f| cell(row, f)).to_vec()
                })
            }
            PipelinesCommand::Upload { name, version, description, .. } => {
                self.upload(&package, name, version, &description).await
            }
            PipelinesCommand::Delete { pipelines } => {
                for name in pipelines {
                    let (id, shown) = self.find(&PIPELINES, &name).await?;
                    let _: Value = self.web.delete(&format!("{API}/pipelines/{id}?cascade=true")).await?;
                    println!("deleted {shown}");
                }
                Ok(())
            }
            PipelinesCommand::Runs(command) => self.runs(command).await,
            PipelinesCommand::Experiments(command) => self.experiments(command).await,
            PipelinesCommand::Recurring(command) => self.recurring(command).await,
        }
    }

    async fn upload(
        &self,
        package: &[Value],
        name: Option<String>,
        version: Option<String>,
        description: &str,
    ) -> anyhow::Result<()> {
        let spec = package.first().context("the file holds no pipeline")?;
        let own = spec.pointer("/pipelineInfo/name").and_then(Value::as_str).unwrap_or("pipeline");
        let name = name.unwrap_or_else(|| own.to_owned());
        let version = version.unwrap_or_else(|| format!("{name}-{}", chrono::Utc::now().format("%Y%m%d-%H%M%S%3f")));
        let wire = match package {
            [spec, platform, ..] => json!({"pipeline_spec": spec, "platform_spec": platform}),
            _ => spec.clone(),
        };
        let namespace = self.who.namespace.clone().unwrap_or_default();
        let filter = json!({"predicates": [{"key": "name", "operation": "EQUALS", "string_value": name}]}).to_string();
        let found = self.list(&PIPELINES, &format!("&filter={}", encode(&filter)), 1).await?;
        let id = match found.first() {
            Some(found) => {
                let id = cell(found, PIPELINES.id);
                let body = json!({"display_name": version, "description": description, "pipeline_spec": wire});
                let made: Value = self.web.post(&format!("{API}/pipelines/{id}/versions"), &body).await?;
                println!("version {} of {name}", cell(&made, "display_name"));
                id
            }
            None => {
                let body = json!({
                    "pipeline": {"display_name": name, "description": description, "namespace": namespace},
                    "pipeline_version": {"name": version, "description": description, "pipeline_spec": wire},
                });
                let made: Value = self.web.post(&format!("{API}/pipelines/create"), &body).await?;
                println!("pipeline {name}");
                cell(&made, PIPELINES.id)
            }
        };
        println!("  {id}");
        Ok(())
    }

    async fn runs(&self, command: RunsCommand) -> anyhow::Result<()> {
        match command {
            RunsCommand::List { limit: Limit { limit }, state, experiment, archived } => {
                let storage = if archived { "ARCHIVED" } else { "AVAILABLE" };
                let is = |key: &str, value: &str| json!({"key": key, "operation": "EQUALS", "string_value": value});
                let mut predicates = vec![is("storage_state", storage)];
                predicates.extend(state.map(|s| is("state", &s)));
                let filter = json!({"predicates": predicates}).to_string();
                let mut more = format!("&filter={}", encode(&filter));
                if let Some(name) = experiment {
                    more += &format!("&experiment_id={}", self.find(&EXPERIMENTS, &name).await?.0);
                }
                let rows = self.list(&RUNS, &more, limit).await?;
                self.print(&rows, &["ID", "NAME", "STATE", "CREATED", "ENDED"], |row| {
                    let ended = cell(row, "finished_at");
                    // The moment zero stands for a run that has not ended.
                    let ended = if ended.starts_with("1970") { String::new() } else { ended };
                    vec![
                        cell(row, "run_id"),
                        cell(row, "display_name"),
                        cell(row, "state"),
                        cell(row, "created_at"),
                        ended,
                    ]
                })
            }
            RunsCommand::Get { run } => {
                let (id, _) = self.find(&RUNS, &run).await?;
                let run: Value = self.web.get(&format!("{API}/runs/{id}")).await?;
                if self.who.output == Output::Json {
                    println!("{}", serde_json::to_string_pretty(&run)?);
                    return Ok(());
                }
                println!("{}  {}  {}", cell(&run, "run_id"), cell(&run, "state"), cell(&run, "display_name"));
                let error = run.pointer("/error/message").and_then(Value::as_str);
                println!("{}", error.map(|e| format!("\n{e}\n")).unwrap_or_default());
                let tasks = run.pointer("/run_details/task_details").and_then(Value::as_array);
                let tasks: Vec<Value> = tasks.cloned().unwrap_or_default();
                self.print(&tasks, &["STEP", "STATE", "STARTED", "ENDED"], |task| {
                    ["display_name", "state", "start_time", "end_time"].map(|f| cell(task, f)).to_vec()
                })
            }
            RunsCommand::Terminate { runs } => self.act(&RUNS, runs, "terminate", "stopping").await,
            RunsCommand::Retry { runs } => self.act(&RUNS, runs, "retry", "going on with").await,
            RunsCommand::Archive { runs } => self.act(&RUNS, runs, "archive", "archived").await,
            RunsCommand::Delete { runs } => self.delete(&RUNS, runs).await,
        }
    }

    async fn experiments(&self, command: ExperimentsCommand) -> anyhow::Result<()> {
        match command {
            ExperimentsCommand::List(Limit { limit }) => {
                let rows = self.list(&EXPERIMENTS, "", limit).await?;
                self.print(&rows, &["ID", "NAME", "NAMESPACE", "STATE", "LAST RUN"], |row| {
                    let last = cell(row, "last_run_created_at");
                    let last = if last.starts_with("1970") { String::new() } else { last };
                    vec![
                        cell(row, "experiment_id"),
                        cell(row, "display_name"),
                        cell(row, "namespace"),
                        cell(row, "storage_state").to_lowercase(),
                        last,
                    ]
                })
            }
            ExperimentsCommand::Create { name, description } => {
                let namespace = self.who.namespace.clone().unwrap_or_default();
                let body = json!({"display_name": name, "description": description, "namespace": namespace});
                let made: Value = self.web.post(&format!("{API}/experiments"), &body).await?;
                println!("experiment {name}\n  {}", cell(&made, "experiment_id"));
                Ok(())
            }
            ExperimentsCommand::Archive { experiments } => {
                self.act(&EXPERIMENTS, experiments, "archive", "archived").await
            }
            ExperimentsCommand::Delete { experiments } => self.delete(&EXPERIMENTS, experiments).await,
        }
    }

    async fn recurring(&self, command: RecurringCommand) -> anyhow::Result<()> {
        match command {
            RecurringCommand::List(Limit { limit }) => {
                let rows = self.list(&RECURRING, "", limit).await?;
                self.print(&rows, &["ID", "NAME", "STATE", "WHEN"], |row| {
                    let cron = row.pointer("/trigger/cron_schedule/cron").and_then(Value::as_str).map(str::to_owned);
                    let every = row.pointer("/trigger/periodic_schedule/interval_second");
                    let every = every.map(|s| format!("every {} s", s.to_string().trim_matches('"')));
                    vec![
                        cell(row, "recurring_run_id"),
                        cell(row, "display_name"),
                        cell(row, "status").to_lowercase(),
                        cron.or(every).unwrap_or_default(),
                    ]
                })
            }
            RecurringCommand::Enable { recurring } => self.act(&RECURRING, recurring, "enable", "enabled").await,
            RecurringCommand::Disable { recurring } => self.act(&RECURRING, recurring, "disable", "disabled").await,
            RecurringCommand::Delete { recurring } => self.delete(&RECURRING, recurring).await,
        }
    }

    async fn act(&self, kind: &Kind, names: Vec<String>, verb: &str, done: &str) -> anyhow::Result<()> {
        for name in names {
            let (id, shown) = self.find(kind, &name).await?;
            let _: Value = self.web.post(&format!("{API}/{}/{id}:{verb}", kind.path), &Value::Null).await?;
            println!("{done} {shown}");
        }
        Ok(())
    }

    async fn delete(&self, kind: &Kind, names: Vec<String>) -> anyhow::Result<()> {
        for name in names {
            let (id, shown) = self.find(kind, &name).await?;
            let _: Value = self.web.delete(&format!("{API}/{}/{id}", kind.path)).await?;
            println!("deleted {shown}");
        }
        Ok(())
    }

    /// The newest first, page by page.
    async fn list(&self, kind: &Kind, more: &str, limit: usize) -> anyhow::Result<Vec<Value>> {
        let (mut rows, mut token) = (Vec::new(), String::new());
        let namespace = encode(self.who.namespace.as_deref().unwrap_or_default());
        while rows.len() < limit {
            let size = (limit - rows.len()).min(PAGE);
            let order = encode("created_at desc");
            let path = format!(
                "{API}/{}?namespace={namespace}&page_size={size}&sort_by={order}&page_token={token}{more}",
                kind.path
            );
            let page: Value = self.web.get(&path).await?;
            rows.extend(page[kind.list].as_array().into_iter().flatten().cloned());
            token = encode(page["next_page_token"].as_str().unwrap_or_default());
            if token.is_empty() {
                break;
            }
        }
        Ok(rows)
    }

    /// The id and name of what a person means: an id, its beginning, or a name that only one thing has.
    async fn find(&self, kind: &Kind, meant: &str) -> anyhow::Result<(String, String)> {
        let named =
            |row: &Value| (cell(row, kind.id), format!("{} ({})", cell(row, "display_name"), cell(row, kind.id)));
        if uuid::Uuid::parse_str(meant).is_ok() {
            let row: Value = self.web.get(&format!("{API}/{}/{meant}", kind.path)).await?;
            return Ok(named(&row));
        }
        let filter = json!({"predicates": [{"key": "name", "operation": "EQUALS", "string_value": meant}]}).to_string();
        let mut found = self.list(kind, &format!("&filter={}", encode(&filter)), 2).await?;
        let is_prefix = meant.len() >= SHORTEST_PREFIX && meant.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        if found.is_empty() && is_prefix {
            let filter =
                json!({"predicates": [{"key": "id", "operation": "IS_SUBSTRING", "string_value": meant}]}).to_string();
            found = self.list(kind, &format!("&filter={}", encode(&filter)), PAGE).await?;
            found.retain(|row| cell(row, kind.id).starts_with(meant));
        }
        match found.as_slice() {
            [one] => Ok(named(one)),
            [] => Err(Failure::new(
                Code::General,
                format!("there is no {} called {meant}", kind.shown),
                "the list shows ids and names; --user and --namespace say where to look",
            )
            .into()),
            _ => Err(Failure::new(
                Code::General,
                format!("{meant} means more than one {}", kind.shown),
                "give the whole id",
            )
            .into()),
        }
    }

    fn print(&self, rows: &[Value], headers: &[&str], cells: impl Fn(&Value) -> Vec<String>) -> anyhow::Result<()> {
        if self.who.output == Output::Json {
            println!("{}", serde_json::to_string_pretty(rows)?);
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(headers.iter().copied());
        for row in rows {
            table.add_row(cells(row));
        }
        println!("{table}");
        Ok(())
    }
}

/// A field as a table shows it; moments to the second.
fn cell(row: &Value, field: &str) -> String {
    let text = row.get(field).and_then(Value::as_str).unwrap_or_default();
    let is_moment = field.ends_with("_at") || field.ends_with("_time");
    match text.split_once('.') {
        Some((moment, _)) if is_moment => format!("{}Z", moment.replace('T', " ")),
        _ => text.lines().next().unwrap_or_default().to_owned(),
    }
}
