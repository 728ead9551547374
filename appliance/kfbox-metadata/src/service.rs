//! `ml_metadata.MetadataStoreService`: each method finds the caller's scope, then asks the [`Store`].

use crate::{
    Access, Among, Error, NAMESPACE_HEADER, Scope, Store, lineage,
    links::{self, Relation},
    node::Kind,
    proto::{self, metadata_store_service_server::MetadataStoreService, *},
    rows, types,
};
use kfbox_base::UserInfo;
use rusqlite::types::Value;
use std::{collections::BTreeMap, sync::Arc};
use tonic::{Request, Response, Status};

#[derive(Clone)]
pub(crate) struct Service {
    pub store: Store,
    pub access: Arc<dyn Access>,
}

impl Service {
    /// Who calls, and what that one may see and change.
    async fn scope<T>(&self, request: &Request<T>) -> Result<Scope, Status> {
        let caller = request.extensions().get::<UserInfo>().filter(|u| !u.is_anonymous());
        let caller = caller.ok_or_else(|| Status::unauthenticated("the metadata store does not know who calls"))?;
        let grants = self.access.grants(caller).await.map_err(|error| {
            tracing::error!(%error, "cannot find out what a caller may do");
            Status::unavailable("cannot find out what you may do; try again")
        })?;
        let named = match request.metadata().get(NAMESPACE_HEADER).map(|v| v.to_str()) {
            Some(Ok(name)) if !name.is_empty() => Some(name.to_owned()),
            Some(Err(_)) => return Err(Status::invalid_argument(format!("{NAMESPACE_HEADER} is not text"))),
            _ => None,
        };
        Ok(Scope { read: grants.read, write: grants.write, target: named.or(grants.home) })
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

fn paths(mask: Option<prost_types::FieldMask>) -> Vec<String> {
    mask.map(|m| m.paths).unwrap_or_default()
}

fn of_type(name: Option<String>, version: Option<String>) -> Among {
    Among::OfType { name: name.unwrap_or_default(), version }
}

fn missing(name: &str) -> Status {
    Status::not_found(format!("No type found for query, name: {name}"))
}

/// `fn name(request) -> response` for methods whose whole body is one call of the store.
macro_rules! methods {
    ($($name:ident($service:ident, $scope:ident, $request:ident: $input:ty) -> $output:ty $body:block)*) => {
        #[tonic::async_trait]
        impl MetadataStoreService for Service {
            $(async fn $name(&self, request: Request<$input>) -> Answer<$output> {
                let $scope = self.scope(&request).await?;
                let ($service, $request) = (self, request.into_inner());
                answer($body)
            })*
        }
    };
}

/// A put of one type, the same for the three kinds.
macro_rules! put_type {
    ($service:ident, $scope:ident, $request:ident, $kind:expr, $field:ident) => {{
        let evolution = types::Evolution { can_add: $request.can_add_fields(), can_omit: $request.can_omit_fields() };
        let info = $request.$field.unwrap_or_default().into();
        $service.store.write(&$scope, move |tx, scope| types::put(tx, scope, $kind, info, evolution)).await?
    }};
}

macro_rules! get_type {
    ($service:ident, $scope:ident, $request:ident, $kind:expr) => {{
        let name = $request.type_name.unwrap_or_default();
        let found = $service.store.type_by_name(&$scope, $kind, name.clone(), $request.type_version).await?;
        Some(found.ok_or_else(|| missing(&name))?)
    }};
}

macro_rules! read {
    ($service:ident, $scope:ident, |$c:ident, $inner:ident| $body:expr) => {{
        let found = $service.store.read(&$scope, move |$c, $inner| $body).await?;
        found.into_iter().map(Into::into).collect()
    }};
}

/// By external ids; upstream answers NOT_FOUND when none matches.
macro_rules! by_external {
    ($service:ident, $scope:ident, $request:ident, $kind:expr) => {{
        let found = $service
            .store
            .read(&$scope, move |c, scope| {
                let list = Value::Text(serde_json::to_string(&$request.external_ids)?);
                let condition = "n.external_id IN (SELECT value FROM json_each(?)) ORDER BY n.id";
                rows::select(c, scope, $kind, condition, vec![list])
            })
            .await?;
        if found.is_empty() {
            return Err(Status::not_found(format!("No {}s found for external_ids.", $kind.noun())));
        }
        found.into_iter().map(Into::into).collect()
    }};
}

macro_rules! types_by_external {
    ($service:ident, $scope:ident, $request:ident, $kind:expr) => {{
        let found = $service
            .store
            .read(&$scope, move |c, scope| types::by_external_ids(c, scope, $kind, &$request.external_ids))
            .await?;
        if found.is_empty() {
            return Err(Status::not_found(format!("No {} types found for external_ids.", $kind.noun())));
        }
        found.into_iter().map(Into::into).collect()
    }};
}

/// Relatives of many contexts; those without any are left out.
async fn relatives(
    service: &Service,
    scope: &Scope,
    ids: Vec<i64>,
    relation: Relation,
) -> Result<BTreeMap<i64, Vec<proto::Context>>, Error> {
    service
        .store
        .read(scope, move |c, scope| {
            let mut all = BTreeMap::new();
            for id in ids {
                let found = links::relatives(c, scope, id, relation)?;
                if !found.is_empty() {
                    all.insert(id, found.into_iter().map(Into::into).collect());
                }
            }
            Ok(all)
        })
        .await
}

methods! {
    put_artifact_type(service, scope, request: PutArtifactTypeRequest) -> PutArtifactTypeResponse {
        PutArtifactTypeResponse { type_id: Some(put_type!(service, scope, request, Kind::Artifact, artifact_type)) }
    }
    put_execution_type(service, scope, request: PutExecutionTypeRequest) -> PutExecutionTypeResponse {
        PutExecutionTypeResponse { type_id: Some(put_type!(service, scope, request, Kind::Execution, execution_type)) }
    }
    put_context_type(service, scope, request: PutContextTypeRequest) -> PutContextTypeResponse {
        PutContextTypeResponse { type_id: Some(put_type!(service, scope, request, Kind::Context, context_type)) }
    }
    put_types(service, scope, request: PutTypesRequest) -> PutTypesResponse {
        service.store.put_types_request(&scope, request).await?
    }
    put_artifacts(service, scope, request: PutArtifactsRequest) -> PutArtifactsResponse {
        let abort = request.options.unwrap_or_default().abort_if_latest_updated_time_changed();
        let mask = paths(request.update_mask);
        let put = service.store.put_nodes(&scope, Kind::Artifact, request.artifacts, mask, abort);
        PutArtifactsResponse { artifact_ids: put.await? }
    }
    put_executions(service, scope, request: PutExecutionsRequest) -> PutExecutionsResponse {
        let mask = paths(request.update_mask);
        let put = service.store.put_nodes(&scope, Kind::Execution, request.executions, mask, false);
        PutExecutionsResponse { execution_ids: put.await? }
    }
    put_contexts(service, scope, request: PutContextsRequest) -> PutContextsResponse {
        let mask = paths(request.update_mask);
        let put = service.store.put_nodes(&scope, Kind::Context, request.contexts, mask, false);
        PutContextsResponse { context_ids: put.await? }
    }
    put_events(service, scope, request: PutEventsRequest) -> PutEventsResponse {
        service.store.put_events(&scope, request.events).await?;
        PutEventsResponse {}
    }
    put_execution(service, scope, request: PutExecutionRequest) -> PutExecutionResponse {
        service.store.put_execution(&scope, request).await?
    }
    put_lineage_subgraph(service, scope, request: PutLineageSubgraphRequest) -> PutLineageSubgraphResponse {
        service.store.put_subgraph(&scope, request).await?
    }
    put_attributions_and_associations(
        service, scope, request: PutAttributionsAndAssociationsRequest
    ) -> PutAttributionsAndAssociationsResponse {
        let artifacts = request.attributions.iter().map(|a| (a.artifact_id(), a.context_id())).collect();
        let executions = request.associations.iter().map(|a| (a.execution_id(), a.context_id())).collect();
        service.store.link(&scope, artifacts, executions).await?;
        PutAttributionsAndAssociationsResponse {}
    }
    put_parent_contexts(service, scope, request: PutParentContextsRequest) -> PutParentContextsResponse {
        let pairs = request.parent_contexts.iter().map(|p| (p.child_id(), p.parent_id())).collect();
        service.store.put_parents(&scope, pairs).await?;
        PutParentContextsResponse {}
    }
    get_artifact_type(service, scope, request: GetArtifactTypeRequest) -> GetArtifactTypeResponse {
        GetArtifactTypeResponse { artifact_type: get_type!(service, scope, request, Kind::Artifact) }
    }
    get_execution_type(service, scope, request: GetExecutionTypeRequest) -> GetExecutionTypeResponse {
        GetExecutionTypeResponse { execution_type: get_type!(service, scope, request, Kind::Execution) }
    }
    get_context_type(service, scope, request: GetContextTypeRequest) -> GetContextTypeResponse {
        GetContextTypeResponse { context_type: get_type!(service, scope, request, Kind::Context) }
    }
    get_artifact_types_by_id(
        service, scope, request: GetArtifactTypesByIdRequest
    ) -> GetArtifactTypesByIdResponse {
        let artifact_types =
            read!(service, scope, |c, s| types::by_ids(c, s, Kind::Artifact, &request.type_ids));
        GetArtifactTypesByIdResponse { artifact_types }
    }
    get_execution_types_by_id(
        service, scope, request: GetExecutionTypesByIdRequest
    ) -> GetExecutionTypesByIdResponse {
        let execution_types =
            read!(service, scope, |c, s| types::by_ids(c, s, Kind::Execution, &request.type_ids));
        GetExecutionTypesByIdResponse { execution_types }
    }
    get_context_types_by_id(service, scope, request: GetContextTypesByIdRequest) -> GetContextTypesByIdResponse {
        let context_types = read!(service, scope, |c, s| types::by_ids(c, s, Kind::Context, &request.type_ids));
        GetContextTypesByIdResponse { context_types }
    }
    get_artifact_types(service, scope, _request: GetArtifactTypesRequest) -> GetArtifactTypesResponse {
        GetArtifactTypesResponse { artifact_types: read!(service, scope, |c, s| types::all(c, s, Kind::Artifact)) }
    }
    get_execution_types(service, scope, _request: GetExecutionTypesRequest) -> GetExecutionTypesResponse {
        GetExecutionTypesResponse { execution_types: read!(service, scope, |c, s| types::all(c, s, Kind::Execution)) }
    }
    get_context_types(service, scope, _request: GetContextTypesRequest) -> GetContextTypesResponse {
        GetContextTypesResponse { context_types: read!(service, scope, |c, s| types::all(c, s, Kind::Context)) }
    }
    get_artifacts(service, scope, request: GetArtifactsRequest) -> GetArtifactsResponse {
        let (artifacts, next_page_token) =
            service.store.list_artifacts(&scope, Among::All, request.options).await?;
        GetArtifactsResponse { artifacts, next_page_token }
    }
    get_executions(service, scope, request: GetExecutionsRequest) -> GetExecutionsResponse {
        let (executions, next_page_token) =
            service.store.list_executions(&scope, Among::All, request.options).await?;
        GetExecutionsResponse { executions, next_page_token }
    }
    get_contexts(service, scope, request: GetContextsRequest) -> GetContextsResponse {
        let (contexts, next_page_token) = service.store.list_contexts(&scope, Among::All, request.options).await?;
        GetContextsResponse { contexts, next_page_token }
    }
    get_artifacts_by_id(service, scope, request: GetArtifactsByIdRequest) -> GetArtifactsByIdResponse {
        let with_types = request.populate_artifact_types();
        let artifacts = service.store.artifacts(&scope, request.artifact_ids).await?;
        let mut ids: Vec<i64> = artifacts.iter().filter_map(|a| a.type_id).filter(|_| with_types).collect();
        ids.dedup();
        let artifact_types = read!(service, scope, |c, s| types::by_ids(c, s, Kind::Artifact, &ids));
        GetArtifactsByIdResponse { artifacts, artifact_types }
    }
    get_executions_by_id(service, scope, request: GetExecutionsByIdRequest) -> GetExecutionsByIdResponse {
        GetExecutionsByIdResponse { executions: service.store.executions(&scope, request.execution_ids).await? }
    }
    get_contexts_by_id(service, scope, request: GetContextsByIdRequest) -> GetContextsByIdResponse {
        GetContextsByIdResponse { contexts: service.store.contexts(&scope, request.context_ids).await? }
    }
    get_artifacts_by_type(service, scope, request: GetArtifactsByTypeRequest) -> GetArtifactsByTypeResponse {
        let among = of_type(request.type_name, request.type_version);
        let (artifacts, next_page_token) = service.store.list_artifacts(&scope, among, request.options).await?;
        GetArtifactsByTypeResponse { artifacts, next_page_token }
    }
    get_executions_by_type(service, scope, request: GetExecutionsByTypeRequest) -> GetExecutionsByTypeResponse {
        let among = of_type(request.type_name, request.type_version);
        let (executions, next_page_token) = service.store.list_executions(&scope, among, request.options).await?;
        GetExecutionsByTypeResponse { executions, next_page_token }
    }
    get_contexts_by_type(service, scope, request: GetContextsByTypeRequest) -> GetContextsByTypeResponse {
        let among = of_type(request.type_name, request.type_version);
        let (contexts, next_page_token) = service.store.list_contexts(&scope, among, request.options).await?;
        GetContextsByTypeResponse { contexts, next_page_token }
    }
    get_artifact_by_type_and_name(
        service, scope, request: GetArtifactByTypeAndNameRequest
    ) -> GetArtifactByTypeAndNameResponse {
        let (kind, name) = (request.type_name.unwrap_or_default(), request.artifact_name.unwrap_or_default());
        let found = service.store.node_by_name(&scope, Kind::Artifact, kind, request.type_version, name);
        GetArtifactByTypeAndNameResponse { artifact: found.await? }
    }
    get_execution_by_type_and_name(
        service, scope, request: GetExecutionByTypeAndNameRequest
    ) -> GetExecutionByTypeAndNameResponse {
        let (kind, name) = (request.type_name.unwrap_or_default(), request.execution_name.unwrap_or_default());
        let found = service.store.node_by_name(&scope, Kind::Execution, kind, request.type_version, name);
        GetExecutionByTypeAndNameResponse { execution: found.await? }
    }
    get_context_by_type_and_name(
        service, scope, request: GetContextByTypeAndNameRequest
    ) -> GetContextByTypeAndNameResponse {
        let (kind, name) = (request.type_name.unwrap_or_default(), request.context_name.unwrap_or_default());
        let found = service.store.node_by_name(&scope, Kind::Context, kind, request.type_version, name);
        GetContextByTypeAndNameResponse { context: found.await? }
    }
    get_artifacts_by_uri(service, scope, request: GetArtifactsByUriRequest) -> GetArtifactsByUriResponse {
        let artifacts = read!(service, scope, |c, s| {
            let list = Value::Text(serde_json::to_string(&request.uris)?);
            rows::select(
                c, s, Kind::Artifact, "n.uri IN (SELECT value FROM json_each(?)) ORDER BY n.id", vec![list],
            )
        });
        GetArtifactsByUriResponse { artifacts }
    }
    get_events_by_execution_i_ds(
        service, scope, request: GetEventsByExecutionIDsRequest
    ) -> GetEventsByExecutionIDsResponse {
        let events = service.store.events_of_executions(&scope, request.execution_ids).await?;
        GetEventsByExecutionIDsResponse { events }
    }
    get_events_by_artifact_i_ds(
        service, scope, request: GetEventsByArtifactIDsRequest
    ) -> GetEventsByArtifactIDsResponse {
        let events = service.store.events_of_artifacts(&scope, request.artifact_ids).await?;
        GetEventsByArtifactIDsResponse { events }
    }
    get_artifacts_by_external_ids(
        service, scope, request: GetArtifactsByExternalIdsRequest
    ) -> GetArtifactsByExternalIdsResponse {
        GetArtifactsByExternalIdsResponse { artifacts: by_external!(service, scope, request, Kind::Artifact) }
    }
    get_executions_by_external_ids(
        service, scope, request: GetExecutionsByExternalIdsRequest
    ) -> GetExecutionsByExternalIdsResponse {
        GetExecutionsByExternalIdsResponse { executions: by_external!(service, scope, request, Kind::Execution) }
    }
    get_contexts_by_external_ids(
        service, scope, request: GetContextsByExternalIdsRequest
    ) -> GetContextsByExternalIdsResponse {
        GetContextsByExternalIdsResponse { contexts: by_external!(service, scope, request, Kind::Context) }
    }
    get_artifact_types_by_external_ids(
        service, scope, request: GetArtifactTypesByExternalIdsRequest
    ) -> GetArtifactTypesByExternalIdsResponse {
        GetArtifactTypesByExternalIdsResponse {
            artifact_types: types_by_external!(service, scope, request, Kind::Artifact),
        }
    }
    get_execution_types_by_external_ids(
        service, scope, request: GetExecutionTypesByExternalIdsRequest
    ) -> GetExecutionTypesByExternalIdsResponse {
        GetExecutionTypesByExternalIdsResponse {
            execution_types: types_by_external!(service, scope, request, Kind::Execution),
        }
    }
    get_context_types_by_external_ids(
        service, scope, request: GetContextTypesByExternalIdsRequest
    ) -> GetContextTypesByExternalIdsResponse {
        GetContextTypesByExternalIdsResponse {
            context_types: types_by_external!(service, scope, request, Kind::Context),
        }
    }
    get_contexts_by_artifact(
        service, scope, request: GetContextsByArtifactRequest
    ) -> GetContextsByArtifactResponse {
        let contexts = service.store.contexts_of_artifact(&scope, request.artifact_id()).await?;
        GetContextsByArtifactResponse { contexts }
    }
    get_contexts_by_execution(
        service, scope, request: GetContextsByExecutionRequest
    ) -> GetContextsByExecutionResponse {
        let contexts = service.store.contexts_of_execution(&scope, request.execution_id()).await?;
        GetContextsByExecutionResponse { contexts }
    }
    get_parent_contexts_by_context(
        service, scope, request: GetParentContextsByContextRequest
    ) -> GetParentContextsByContextResponse {
        GetParentContextsByContextResponse { contexts: service.store.parents(&scope, request.context_id()).await? }
    }
    get_children_contexts_by_context(
        service, scope, request: GetChildrenContextsByContextRequest
    ) -> GetChildrenContextsByContextResponse {
        GetChildrenContextsByContextResponse { contexts: service.store.children(&scope, request.context_id()).await? }
    }
    get_parent_contexts_by_contexts(
        service, scope, request: GetParentContextsByContextsRequest
    ) -> GetParentContextsByContextsResponse {
        use get_parent_contexts_by_contexts_response::ParentContextsPerChild;
        let all = relatives(service, &scope, request.context_ids, Relation::Parents).await?;
        let one = |(id, parent_contexts)| (id, ParentContextsPerChild { parent_contexts });
        GetParentContextsByContextsResponse { contexts: all.into_iter().map(one).collect() }
    }
    get_children_contexts_by_contexts(
        service, scope, request: GetChildrenContextsByContextsRequest
    ) -> GetChildrenContextsByContextsResponse {
        use get_children_contexts_by_contexts_response::ChildrenContextsPerParent;
        let all = relatives(service, &scope, request.context_ids, Relation::Children).await?;
        let one = |(id, children_contexts)| (id, ChildrenContextsPerParent { children_contexts });
        GetChildrenContextsByContextsResponse { contexts: all.into_iter().map(one).collect() }
    }
    get_artifacts_by_context(
        service, scope, request: GetArtifactsByContextRequest
    ) -> GetArtifactsByContextResponse {
        let among = Among::InContext(request.context_id());
        let (artifacts, next_page_token) = service.store.list_artifacts(&scope, among, request.options).await?;
        GetArtifactsByContextResponse { artifacts, next_page_token }
    }
    get_executions_by_context(
        service, scope, request: GetExecutionsByContextRequest
    ) -> GetExecutionsByContextResponse {
        let among = Among::InContext(request.context_id());
        let (executions, next_page_token) = service.store.list_executions(&scope, among, request.options).await?;
        GetExecutionsByContextResponse { executions, next_page_token, transaction_options: None }
    }
    get_lineage_graph(service, scope, request: GetLineageGraphRequest) -> GetLineageGraphResponse {
        let asked = request.options.unwrap_or_default();
        let found = service.store.read(&scope, move |c, scope| lineage::graph(c, scope, asked));
        GetLineageGraphResponse { subgraph: Some(found.await?) }
    }
    get_lineage_subgraph(service, scope, request: GetLineageSubgraphRequest) -> GetLineageSubgraphResponse {
        GetLineageSubgraphResponse { lineage_subgraph: Some(service.store.lineage(&scope, request).await?) }
    }
}
