//! The typed interface inside the daemon. Each call is one transaction within a [`Scope`].

use crate::{
    Error, Scope, bundles, lineage,
    links::{self, Relation},
    listing::list,
    node::{Kind, Node, TypeInfo},
    proto,
    rows::{self, Update},
    types::{self, Evolution},
};
use kfbox_db::Database;
use rusqlite::{Connection, Transaction, types::Value};

/// A cloneable handle on the store.
#[derive(Clone)]
pub struct Store {
    pub(crate) db: Database,
}

/// One page of a listing, with the token of the next.
pub type Page<T> = (Vec<T>, Option<String>);

/// Which nodes a listing is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Among {
    All,
    /// A type by name and version; of all namespaces in scope.
    OfType {
        name: String,
        version: Option<String>,
    },
    InContext(i64),
}

impl Among {
    fn condition(self, kind: Kind) -> (String, Vec<Value>) {
        match self {
            Self::All => ("1".into(), Vec::new()),
            Self::OfType { name, version } => (
                format!("n.type IN (SELECT id FROM type WHERE kind = {} AND name = ? AND version = ?)", kind as i64),
                vec![Value::Text(name), Value::Text(version.unwrap_or_default())],
            ),
            Self::InContext(context) => (
                format!("n.id IN (SELECT node FROM member WHERE context = ? AND kind = {})", kind as i64),
                vec![Value::Integer(context)],
            ),
        }
    }
}

impl Store {
    pub(crate) async fn write<T, F>(&self, scope: &Scope, work: F) -> Result<T, Error>
    where
        F: FnOnce(&Transaction<'_>, &Scope) -> Result<T, Error> + Send + 'static,
        T: Send + 'static,
    {
        let scope = scope.clone();
        self.db.write(move |tx| work(tx, &scope)).await
    }

    pub(crate) async fn read<T, F>(&self, scope: &Scope, work: F) -> Result<T, Error>
    where
        F: FnOnce(&Connection, &Scope) -> Result<T, Error> + Send + 'static,
        T: Send + 'static,
    {
        let scope = scope.clone();
        self.db.read(move |c| work(c, &scope)).await
    }

    /// Deletes all that belongs to a namespace: types, artifacts, executions, contexts, and what links them. How many
    /// artifacts, executions and contexts there were.
    pub async fn forget_namespace(&self, namespace: &str) -> Result<usize, Error> {
        let namespace = namespace.to_owned();
        self.db
            .write(move |tx| {
                // Links join only what is of one namespace, so either end says whose they are.
                let of = |kind: Kind| format!("(SELECT id FROM node WHERE namespace = ?1 AND kind = {})", kind as i64);
                let (artifacts, contexts) = (of(Kind::Artifact), of(Kind::Context));
                for links in [
                    format!("DELETE FROM event WHERE artifact IN {artifacts} OR execution IN {}", of(Kind::Execution)),
                    format!("DELETE FROM member WHERE context IN {contexts}"),
                    format!("DELETE FROM parent WHERE child IN {contexts} OR parent IN {contexts}"),
                    "DELETE FROM property WHERE (kind, node) IN (SELECT kind, id FROM node WHERE namespace = ?1)"
                        .into(),
                ] {
                    tx.execute(&links, [&namespace])?;
                }
                let nodes = tx.execute("DELETE FROM node WHERE namespace = ?1", [&namespace])?;
                tx.execute("DELETE FROM type WHERE namespace = ?1", [&namespace])?;
                Ok(nodes)
            })
            .await
    }

    /// Puts types into the scope's namespace; those that exist may gain properties and keep what is not named here.
    pub async fn put_types(
        &self,
        scope: &Scope,
        artifacts: Vec<proto::ArtifactType>,
        executions: Vec<proto::ExecutionType>,
        contexts: Vec<proto::ContextType>,
    ) -> Result<proto::PutTypesResponse, Error> {
        let request = proto::PutTypesRequest {
            artifact_types: artifacts,
            execution_types: executions,
            context_types: contexts,
            can_add_fields: Some(true),
            can_omit_fields: Some(true),
            ..Default::default()
        };
        self.put_types_request(scope, request).await
    }

    pub(crate) async fn put_types_request(
        &self,
        scope: &Scope,
        request: proto::PutTypesRequest,
    ) -> Result<proto::PutTypesResponse, Error> {
        self.write(scope, move |tx, scope| {
            let evolution = Evolution { can_add: request.can_add_fields(), can_omit: request.can_omit_fields() };
            let put = |kind, info: Vec<TypeInfo>| {
                info.into_iter().map(|t| types::put(tx, scope, kind, t, evolution)).collect::<Result<Vec<i64>, _>>()
            };
            Ok(proto::PutTypesResponse {
                artifact_type_ids: put(Kind::Artifact, request.artifact_types.into_iter().map(Into::into).collect())?,
                execution_type_ids: put(
                    Kind::Execution,
                    request.execution_types.into_iter().map(Into::into).collect(),
                )?,
                context_type_ids: put(Kind::Context, request.context_types.into_iter().map(Into::into).collect())?,
            })
        })
        .await
    }

    pub async fn put_artifacts(&self, scope: &Scope, artifacts: Vec<proto::Artifact>) -> Result<Vec<i64>, Error> {
        self.put_nodes(scope, Kind::Artifact, artifacts, Vec::new(), false).await
    }

    pub async fn put_executions(&self, scope: &Scope, executions: Vec<proto::Execution>) -> Result<Vec<i64>, Error> {
        self.put_nodes(scope, Kind::Execution, executions, Vec::new(), false).await
    }

    pub async fn put_contexts(&self, scope: &Scope, contexts: Vec<proto::Context>) -> Result<Vec<i64>, Error> {
        self.put_nodes(scope, Kind::Context, contexts, Vec::new(), false).await
    }

    pub(crate) async fn put_nodes<N>(
        &self,
        scope: &Scope,
        kind: Kind,
        nodes: Vec<N>,
        mask: Vec<String>,
        abort_if_changed: bool,
    ) -> Result<Vec<i64>, Error>
    where
        N: Into<Node> + Send + 'static,
    {
        self.write(scope, move |tx, scope| {
            let update = Update { mask: Some(&mask), abort_if_changed, force_time: false };
            nodes.into_iter().map(|n| rows::put(tx, scope, kind, n.into(), &update)).collect()
        })
        .await
    }

    /// An execution with its artifacts, events and contexts, all or nothing.
    pub async fn put_execution(
        &self,
        scope: &Scope,
        request: proto::PutExecutionRequest,
    ) -> Result<proto::PutExecutionResponse, Error> {
        self.write(scope, move |tx, scope| bundles::put_execution(tx, scope, request)).await
    }

    pub async fn put_subgraph(
        &self,
        scope: &Scope,
        request: proto::PutLineageSubgraphRequest,
    ) -> Result<proto::PutLineageSubgraphResponse, Error> {
        self.write(scope, move |tx, scope| bundles::put_subgraph(tx, scope, request)).await
    }

    pub async fn put_events(&self, scope: &Scope, events: Vec<proto::Event>) -> Result<(), Error> {
        self.write(scope, move |tx, scope| events.iter().try_for_each(|e| links::put_event(tx, scope, e))).await
    }

    /// Puts artifacts and executions into contexts, given as pairs of (node, context).
    pub async fn link(
        &self,
        scope: &Scope,
        artifacts: Vec<(i64, i64)>,
        executions: Vec<(i64, i64)>,
    ) -> Result<(), Error> {
        self.write(scope, move |tx, scope| {
            for (node, context) in artifacts {
                links::put_member(tx, scope, context, Kind::Artifact, node)?;
            }
            for (node, context) in executions {
                links::put_member(tx, scope, context, Kind::Execution, node)?;
            }
            Ok(())
        })
        .await
    }

    /// Pairs of (child, parent).
    pub async fn put_parents(&self, scope: &Scope, pairs: Vec<(i64, i64)>) -> Result<(), Error> {
        self.write(scope, move |tx, scope| {
            pairs.into_iter().try_for_each(|(child, parent)| links::put_parent(tx, scope, child, parent))
        })
        .await
    }

    pub async fn artifact_type(&self, scope: &Scope, name: &str) -> Result<Option<proto::ArtifactType>, Error> {
        self.type_by_name(scope, Kind::Artifact, name.into(), None).await
    }

    pub async fn execution_type(&self, scope: &Scope, name: &str) -> Result<Option<proto::ExecutionType>, Error> {
        self.type_by_name(scope, Kind::Execution, name.into(), None).await
    }

    pub async fn context_type(&self, scope: &Scope, name: &str) -> Result<Option<proto::ContextType>, Error> {
        self.type_by_name(scope, Kind::Context, name.into(), None).await
    }

    pub(crate) async fn type_by_name<T>(
        &self,
        scope: &Scope,
        kind: Kind,
        name: String,
        version: Option<String>,
    ) -> Result<Option<T>, Error>
    where
        T: From<TypeInfo> + Send + 'static,
    {
        self.read(scope, move |c, scope| Ok(types::by_name(c, scope, kind, &name, version.as_deref())?.map(T::from)))
            .await
    }

    /// Those of the ids that exist in scope.
    pub async fn artifacts(&self, scope: &Scope, ids: Vec<i64>) -> Result<Vec<proto::Artifact>, Error> {
        self.nodes(scope, Kind::Artifact, ids).await
    }

    pub async fn executions(&self, scope: &Scope, ids: Vec<i64>) -> Result<Vec<proto::Execution>, Error> {
        self.nodes(scope, Kind::Execution, ids).await
    }

    pub async fn contexts(&self, scope: &Scope, ids: Vec<i64>) -> Result<Vec<proto::Context>, Error> {
        self.nodes(scope, Kind::Context, ids).await
    }

    pub(crate) async fn nodes<N>(&self, scope: &Scope, kind: Kind, ids: Vec<i64>) -> Result<Vec<N>, Error>
    where
        N: From<Node> + Send + 'static,
    {
        self.read(scope, move |c, scope| Ok(convert(rows::by_ids(c, scope, kind, &ids)?))).await
    }

    pub async fn artifact_by_name(
        &self,
        scope: &Scope,
        type_name: &str,
        name: &str,
    ) -> Result<Option<proto::Artifact>, Error> {
        self.node_by_name(scope, Kind::Artifact, type_name.into(), None, name.into()).await
    }

    pub async fn execution_by_name(
        &self,
        scope: &Scope,
        type_name: &str,
        name: &str,
    ) -> Result<Option<proto::Execution>, Error> {
        self.node_by_name(scope, Kind::Execution, type_name.into(), None, name.into()).await
    }

    pub async fn context_by_name(
        &self,
        scope: &Scope,
        type_name: &str,
        name: &str,
    ) -> Result<Option<proto::Context>, Error> {
        self.node_by_name(scope, Kind::Context, type_name.into(), None, name.into()).await
    }

    pub(crate) async fn node_by_name<N>(
        &self,
        scope: &Scope,
        kind: Kind,
        type_name: String,
        version: Option<String>,
        name: String,
    ) -> Result<Option<N>, Error>
    where
        N: From<Node> + Send + 'static,
    {
        self.read(scope, move |c, scope| {
            let (types, mut rest) = Among::OfType { name: type_name, version }.condition(kind);
            rest.extend([Value::Text(name), Value::Text(scope.target.clone().unwrap_or_default())]);
            let condition = format!("{types} AND n.name = ? ORDER BY n.namespace = ? DESC, n.id LIMIT 1");
            Ok(rows::select(c, scope, kind, &condition, rest)?.into_iter().next().map(N::from))
        })
        .await
    }

    pub async fn list_artifacts(
        &self,
        scope: &Scope,
        among: Among,
        options: Option<proto::ListOperationOptions>,
    ) -> Result<Page<proto::Artifact>, Error> {
        self.list(scope, Kind::Artifact, among, options).await
    }

    pub async fn list_executions(
        &self,
        scope: &Scope,
        among: Among,
        options: Option<proto::ListOperationOptions>,
    ) -> Result<Page<proto::Execution>, Error> {
        self.list(scope, Kind::Execution, among, options).await
    }

    pub async fn list_contexts(
        &self,
        scope: &Scope,
        among: Among,
        options: Option<proto::ListOperationOptions>,
    ) -> Result<Page<proto::Context>, Error> {
        self.list(scope, Kind::Context, among, options).await
    }

    pub(crate) async fn list<N>(
        &self,
        scope: &Scope,
        kind: Kind,
        among: Among,
        options: Option<proto::ListOperationOptions>,
    ) -> Result<Page<N>, Error>
    where
        N: From<Node> + Send + 'static,
    {
        self.read(scope, move |c, scope| {
            let (condition, rest) = among.condition(kind);
            let (nodes, next) = list(c, scope, kind, &condition, rest, options.as_ref())?;
            Ok((convert(nodes), next))
        })
        .await
    }

    pub async fn events_of_artifacts(&self, scope: &Scope, ids: Vec<i64>) -> Result<Vec<proto::Event>, Error> {
        self.read(scope, move |c, scope| links::events(c, scope, Kind::Artifact, &ids)).await
    }

    pub async fn events_of_executions(&self, scope: &Scope, ids: Vec<i64>) -> Result<Vec<proto::Event>, Error> {
        self.read(scope, move |c, scope| links::events(c, scope, Kind::Execution, &ids)).await
    }

    pub async fn contexts_of_artifact(&self, scope: &Scope, id: i64) -> Result<Vec<proto::Context>, Error> {
        self.read(scope, move |c, scope| Ok(convert(links::contexts_of(c, scope, Kind::Artifact, id)?))).await
    }

    pub async fn contexts_of_execution(&self, scope: &Scope, id: i64) -> Result<Vec<proto::Context>, Error> {
        self.read(scope, move |c, scope| Ok(convert(links::contexts_of(c, scope, Kind::Execution, id)?))).await
    }

    pub async fn parents(&self, scope: &Scope, context: i64) -> Result<Vec<proto::Context>, Error> {
        self.relatives(scope, context, Relation::Parents).await
    }

    pub async fn children(&self, scope: &Scope, context: i64) -> Result<Vec<proto::Context>, Error> {
        self.relatives(scope, context, Relation::Children).await
    }

    async fn relatives(&self, scope: &Scope, of: i64, relation: Relation) -> Result<Vec<proto::Context>, Error> {
        self.read(scope, move |c, scope| Ok(convert(links::relatives(c, scope, of, relation)?))).await
    }

    pub async fn lineage(
        &self,
        scope: &Scope,
        request: proto::GetLineageSubgraphRequest,
    ) -> Result<proto::LineageGraph, Error> {
        self.read(scope, move |c, scope| lineage::subgraph(c, scope, request)).await
    }
}

fn convert<N: From<Node>>(nodes: Vec<Node>) -> Vec<N> {
    nodes.into_iter().map(N::from).collect()
}
