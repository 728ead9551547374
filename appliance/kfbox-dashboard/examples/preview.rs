//! The pages with sample data, to look at: `cargo run -p kfbox-dashboard --example preview`. Prints its address. The
//! running run goes on a little every two seconds.

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt as _, stream};
use kfbox_base::UserInfo;
use kfbox_dashboard::{
    ArtifactContent, ArtifactView, ChangeStream, ComponentState, ComponentView, Connect, Data, DataError, Deps,
    ExperimentView, GraphEdge, GraphNode, LogStream, Member, NamespaceView, NodeDetail, NodeKind, Page, Parameter,
    PipelineDetail, PipelineView, Query, Role, RunDetail, RunState, RunSummary, SharingView, router,
};
use std::{sync::Arc, time::Duration};

struct Sample {
    start: DateTime<Utc>,
}

fn parameter(name: &str, value: &str) -> Parameter {
    Parameter { name: name.into(), value: value.into() }
}

const STEPS: [(&str, &[&str]); 8] = [
    ("load-data", &[]),
    ("validate", &["load-data"]),
    ("preprocess", &["load-data"]),
    ("train-gradient-boosting", &["preprocess"]),
    ("train-neural-network", &["preprocess", "validate"]),
    ("compare", &["train-gradient-boosting", "train-neural-network"]),
    ("deploy-to-staging-environment", &["compare"]),
    ("notify", &["compare", "load-data"]),
];

impl Sample {
    fn summary(&self, id: &str, name: &str, state: RunState, ago: i64, took: i64) -> RunSummary {
        let created = self.start - TimeDelta::seconds(ago);
        RunSummary {
            id: id.into(),
            name: name.into(),
            namespace: "kubeflow-user-example-com".into(),
            experiment: "Default".into(),
            pipeline: "churn-model".into(),
            pipeline_id: "p1".into(),
            state,
            created: Some(created),
            started: Some(created),
            finished: state.is_final().then(|| created + TimeDelta::seconds(took)),
        }
    }

    fn progress(&self) -> usize {
        usize::try_from((Utc::now() - self.start).num_seconds() / 3).unwrap_or(0).min(3)
    }

    fn nodes(&self, live: bool) -> (Vec<GraphNode>, Vec<GraphEdge>) {
        let step = self.progress() + 3;
        let mut nodes = Vec::new();
        let mut edges = Vec::new();
        for (n, (name, after)) in STEPS.iter().enumerate() {
            let state = match (live, n) {
                (false, 4) => RunState::Failed,
                (false, 5..) => RunState::Skipped,
                (false, 1) => RunState::Cached,
                (true, 1) => RunState::Cached,
                (true, n) if n < step => RunState::Succeeded,
                (true, n) if n == step || n == 4 => RunState::Running,
                (true, _) => RunState::Pending,
                _ => RunState::Succeeded,
            };
            let begun = !matches!(state, RunState::Pending | RunState::Skipped);
            let started = self.start - TimeDelta::seconds(40 - i64::try_from(n).unwrap_or(0) * 6);
            nodes.push(GraphNode {
                id: (*name).into(),
                name: (*name).into(),
                state,
                started: begun.then_some(started),
                finished: (begun && state.is_final()).then(|| started + TimeDelta::milliseconds(5400)),
                ..GraphNode::default()
            });
            if n == 2 || n == 3 {
                let id = format!("{name}/out");
                nodes.push(GraphNode {
                    id: id.clone(),
                    kind: NodeKind::Artifact,
                    name: if n == 2 { "features" } else { "model" }.into(),
                    state: RunState::Succeeded,
                    detail: "Dataset".into(),
                    ..GraphNode::default()
                });
                edges.push(GraphEdge { from: (*name).into(), to: id });
            }
            for from in *after {
                let from = match *from {
                    "preprocess" | "train-gradient-boosting" => format!("{from}/out"),
                    other => other.to_owned(),
                };
                edges.push(GraphEdge { from, to: (*name).into() });
            }
        }
        (nodes, edges)
    }
}

#[async_trait]
impl Data for Sample {
    async fn components(&self) -> Vec<ComponentView> {
        let names = ["Kubernetes API", "Node", "Objects", "ML Metadata", "Profiles", "Pipelines", "Gateway"];
        names
            .into_iter()
            .enumerate()
            .map(|(n, name)| ComponentView {
                name: name.into(),
                state: if n == 3 { ComponentState::Starting } else { ComponentState::Ready },
                message: if n == 3 { "opening the database".into() } else { String::new() },
                took_ms: (n != 3).then_some(37 * (n as u64 + 1) * (n as u64 + 1)),
            })
            .collect()
    }

    async fn namespaces(&self, _: &UserInfo) -> Result<Vec<NamespaceView>, DataError> {
        let view = |name: &str, role: &str| NamespaceView { name: name.into(), role: role.into(), owner: "x".into() };
        Ok(vec![view("kubeflow-user-example-com", "owner"), view("team-vision", "edit"), view("shared-data", "view")])
    }

    async fn runs(&self, _: &UserInfo, query: &Query) -> Result<Page<RunSummary>, DataError> {
        if query.namespace == "shared-data" {
            return Ok(Page::default());
        }
        let all = vec![
            self.summary("live", "churn-model 2026-11-22 nightly", RunState::Running, 40, 0),
            self.summary("bad", "churn-model with new features", RunState::Failed, 3900, 312),
            self.summary("r3", "<script>alert('hostile')</script>", RunState::Succeeded, 7600, 95),
            self.summary("r4", "quick-start", RunState::Succeeded, 90_000, 9),
            self.summary(
                "r5",
                "sweep-learning-rates-for-the-large-vision-transformer-on-the-whole-corpus",
                RunState::Canceled,
                400_000,
                17_000,
            ),
            self.summary("r6", "waiting for a GPU", RunState::Pending, 4, 0),
        ];
        let items = all.into_iter().filter(|r| query.state.is_empty() || r.state.key() == query.state).collect();
        Ok(Page { items, next: if query.page.is_empty() { "token".into() } else { String::new() } })
    }

    async fn run(&self, _: &UserInfo, id: &str) -> Result<RunDetail, DataError> {
        let live = id != "bad";
        let state = if live { RunState::Running } else { RunState::Failed };
        let name = if live { "churn-model 2026-11-22 nightly" } else { "churn-model with new features" };
        let (nodes, edges) = self.nodes(live);
        let error = "train-neural-network failed: exit code 1\nValueError: Input X contains NaN";
        Ok(RunDetail {
            run: self.summary(id, name, state, 40, 312),
            error: if live { String::new() } else { error.into() },
            parameters: vec![parameter("learning_rate", "0.01"), parameter("rows", "100000")],
            nodes,
            edges,
        })
    }

    async fn node(&self, user: &UserInfo, run: &str, node: &str) -> Result<NodeDetail, DataError> {
        let detail = self.run(user, run).await?;
        let found = detail.nodes.into_iter().find(|n| n.id == node).ok_or(DataError::NotFound)?;
        let artifact = |id: &str, name: &str, kind: &str, size| ArtifactView {
            id: id.into(),
            name: name.into(),
            type_name: kind.into(),
            uri: format!("minio://mlpipeline/v2/artifacts/churn-model/{run}/{node}/{name}"),
            size: Some(size),
            metadata: if kind == "Metrics" {
                vec![parameter("accuracy", "0.947"), parameter("f1", "0.912")]
            } else {
                vec![]
            },
        };
        Ok(NodeDetail {
            id: found.id,
            kind: found.kind,
            error: if found.state == RunState::Failed {
                "exit code 1\n  File \"/app/train.py\", line 61, in fit\nValueError: Input X contains NaN".into()
            } else {
                String::new()
            },
            name: found.name,
            state: found.state,
            started: found.started,
            finished: found.finished,
            image: "python:3.11".into(),
            command: "python3 -m kfp.dsl.executor_main".into(),
            pod: format!("{run}-{node}-7f9c"),
            inputs: vec![
                parameter("learning_rate", "0.01"),
                parameter("columns", "[\"age\", \"plan\", \"months\", \"support_calls\"]"),
            ],
            outputs: vec![parameter("rows", "99 812")],
            input_artifacts: vec![artifact("features", "features", "Dataset", 18_400_000)],
            output_artifacts: vec![
                artifact("metrics", "metrics", "Metrics", 120),
                artifact("plot", "plot", "Artifact", 9000),
            ],
            has_log: found.kind == NodeKind::Task,
        })
    }

    async fn log(&self, _: &UserInfo, _: &str, _: &str, follow: bool) -> Result<LogStream, DataError> {
        let lines = stream::iter(0..40).map(|n| {
            Ok(Bytes::from(format!(
                "2026-11-22 03:{n:02}:07 INFO  epoch {n:>3}  loss {:.4}  accuracy {:.3}\n",
                1.0 / f64::from(n + 1),
                1.0 - 0.4 / f64::from(n + 1)
            )))
        });
        let more = stream::unfold(40, |n| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok(Bytes::from(format!("2026-11-22 03:40:{n:02} INFO  epoch {n:>3}\n"))), n + 1))
        });
        Ok(if follow { lines.chain(more).boxed() } else { lines.boxed() })
    }

    async fn artifact(&self, _: &UserInfo, _: &str, id: &str) -> Result<ArtifactContent, DataError> {
        let text: &[u8] =
            if id == "plot" { b"\x80\x04\x95\x00" } else { b"age,plan,months\n31,basic,12\n<b>55</b>,pro,40\n" };
        let body = stream::iter([Ok(Bytes::from_static(text))]).boxed();
        Ok(ArtifactContent { file_name: id.into(), size: Some(text.len() as u64), body })
    }

    async fn changes(&self, _: &UserInfo, _: Option<&str>) -> Result<ChangeStream, DataError> {
        Ok(stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Some(((), ()))
        })
        .boxed())
    }

    async fn terminate(&self, _: &UserInfo, _: &str) -> Result<(), DataError> {
        Err(DataError::Forbidden("you may look at this run, not stop it".into()))
    }

    async fn pipelines(&self, _: &UserInfo, _: &Query) -> Result<Page<PipelineView>, DataError> {
        let pipeline = PipelineView {
            id: "p1".into(),
            name: "churn-model".into(),
            description: "Predicts which customers leave, from their last twelve months.".into(),
            namespace: "kubeflow-user-example-com".into(),
            created: Some(self.start - TimeDelta::days(3)),
        };
        Ok(Page { items: vec![pipeline], next: String::new() })
    }

    async fn pipeline(&self, user: &UserInfo, _: &str) -> Result<PipelineDetail, DataError> {
        let pipeline = self.pipelines(user, &Query::default()).await?.items.remove(0);
        let (mut nodes, edges) = self.nodes(true);
        for node in &mut nodes {
            node.state = RunState::Unknown;
            node.started = None;
            node.finished = None;
        }
        Ok(PipelineDetail {
            pipeline,
            versions: vec!["churn-model v3".into(), "v2".into()],
            parameters: vec![parameter("learning_rate", "NUMBER, 0.01")],
            nodes,
            edges,
        })
    }

    async fn experiments(&self, _: &UserInfo, _: &Query) -> Result<Page<ExperimentView>, DataError> {
        Ok(Page::default())
    }

    async fn sharing(&self, _: &UserInfo) -> Result<Vec<SharingView>, DataError> {
        let member = |name: &str, role, owner| Member { name: name.into(), group: false, role, owner };
        let own = SharingView {
            namespace: "kubeflow-user-example-com".into(),
            owner: "user@example.com".into(),
            role: Some(Role::Admin),
            owned: true,
            managed: true,
            members: vec![
                member("user@example.com", Role::Admin, true),
                member("ann@example.com", Role::Edit, false),
                member("bob@example.com", Role::View, false),
            ],
        };
        let shared = SharingView {
            namespace: "team-vision".into(),
            owner: "carol@example.com".into(),
            role: Some(Role::Edit),
            owned: false,
            managed: false,
            members: vec![],
        };
        Ok(vec![own, shared])
    }

    async fn grant(&self, _: &UserInfo, _: &str, person: &str, _: Role) -> Result<(), DataError> {
        Err(DataError::Invalid(format!("nobody on this box signs in as {person}")))
    }

    async fn revoke(&self, _: &UserInfo, _: &str, member: &Member) -> Result<(), DataError> {
        Err(DataError::Invalid(format!("{} has this role no more", member.name)))
    }
}

#[tokio::main]
async fn main() -> Result<(), kfbox_base::BoxError> {
    let deps = Deps {
        data: Arc::new(Sample { start: Utc::now() }),
        connect: Connect {
            gateway_url: "http://127.0.0.1:8080".into(),
            s3_endpoint: "http://127.0.0.1:9000".into(),
            version: "0.1.0".into(),
        },
        shutdown: tokio_util::sync::CancellationToken::new(),
    };
    let user = UserInfo::new("user@example.com", []);
    let pages = router(deps).layer(axum::Extension(user));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, pages).await?;
    Ok(())
}
