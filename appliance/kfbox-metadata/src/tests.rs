//! The service through a real gRPC client on a loopback port, with and without TLS.

use crate::{
    Access, Among, Config, Error, Grants, IdentifyAddress, IdentifyCertificate, Metadata, NAMESPACE_HEADER, Namespaces,
    Scope, names,
    proto::{self, metadata_store_service_client::MetadataStoreServiceClient as Client},
};
use futures::future::BoxFuture;
use kfbox_base::{BoxError, Tasks, UserInfo};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tonic::{Code, Request, transport::Channel};

/// Callers own the namespaces that their groups name; `reader:x` only reads x.
struct ByGroup;

impl Access for ByGroup {
    fn grants<'a>(&'a self, caller: &'a UserInfo) -> BoxFuture<'a, Result<Grants, BoxError>> {
        let owned: Vec<String> =
            caller.groups.iter().filter_map(|g| g.strip_prefix("owner:")).map(str::to_owned).collect();
        let read = caller.groups.iter().filter_map(|g| g.strip_prefix("reader:")).map(str::to_owned);
        let grants = Grants {
            home: owned.first().cloned(),
            read: Namespaces::These(owned.iter().cloned().chain(read).collect()),
            write: Namespaces::These(owned),
        };
        Box::pin(async move { Ok(grants) })
    }
}

struct Fixture {
    metadata: Metadata,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metadata = Metadata::open(Config { data_dir: dir.path().to_owned() }, Arc::new(ByGroup)).unwrap();
        Self { metadata, tasks: Tasks::new(), _dir: dir }
    }

    /// A client whose connection counts as a caller of these groups; without groups as an unknown one.
    async fn client(&self, groups: &[&str]) -> Client<Channel> {
        let caller =
            (!groups.is_empty()).then(|| UserInfo::new(groups.join("+"), groups.iter().map(|g| (*g).to_owned())));
        let identify: IdentifyAddress = Arc::new(move |_| {
            let caller = caller.clone();
            Box::pin(async move { caller }) as BoxFuture<'static, _>
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.metadata.serve_plain(listener, identify, &self.tasks);
        Client::connect(format!("http://{address}")).await.unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

fn artifact_type(name: &str) -> proto::PutArtifactTypeRequest {
    let properties = BTreeMap::from([("n".to_owned(), proto::PropertyType::Int as i32)]);
    let artifact_type = Some(proto::ArtifactType { name: Some(name.into()), properties, ..Default::default() });
    proto::PutArtifactTypeRequest { artifact_type, ..Default::default() }
}

fn put_artifact(type_id: i64, name: &str) -> proto::PutArtifactsRequest {
    let artifact = proto::Artifact { type_id: Some(type_id), name: Some(name.into()), ..Default::default() };
    proto::PutArtifactsRequest { artifacts: vec![artifact], ..Default::default() }
}

async fn all_names(client: &mut Client<Channel>) -> Vec<String> {
    let answer = client.get_artifacts(proto::GetArtifactsRequest::default()).await.unwrap().into_inner();
    answer.artifacts.into_iter().filter_map(|a| a.name).collect()
}

#[tokio::test]
async fn unknown_callers_are_refused_everything() {
    let fixture = Fixture::new();
    let mut nobody = fixture.client(&[]).await;
    let read = nobody.get_artifact_types(proto::GetArtifactTypesRequest::default()).await.unwrap_err();
    let write = nobody.put_artifact_type(artifact_type("T")).await.unwrap_err();
    assert_eq!((read.code(), write.code()), (Code::Unauthenticated, Code::Unauthenticated));
}

#[tokio::test]
async fn writes_are_stamped_and_reads_confined() {
    let fixture = Fixture::new();
    let mut ann = fixture.client(&["owner:ann", "owner:team"]).await;
    let mut bob = fixture.client(&["owner:bob"]).await;
    let mut guest = fixture.client(&["reader:ann"]).await;

    let mine = ann.put_artifact_type(artifact_type("T")).await.unwrap().into_inner().type_id();
    ann.put_artifacts(put_artifact(mine, "in-ann")).await.unwrap();
    let mut request = Request::new(artifact_type("T"));
    request.metadata_mut().insert(NAMESPACE_HEADER, "team".parse().unwrap());
    let team = ann.put_artifact_type(request).await.unwrap().into_inner().type_id();
    assert_ne!(mine, team, "each namespace has its own types");
    ann.put_artifacts(put_artifact(team, "in-team")).await.unwrap();

    assert_eq!(all_names(&mut ann).await, ["in-ann", "in-team"]);
    assert_eq!(all_names(&mut bob).await, [""; 0]);
    assert_eq!(all_names(&mut guest).await, ["in-ann"]);

    // Naming a namespace does not give rights in it; ids of others do not exist; readers do not write.
    let mut request = Request::new(artifact_type("T"));
    request.metadata_mut().insert(NAMESPACE_HEADER, "ann".parse().unwrap());
    assert_eq!(bob.put_artifact_type(request).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(bob.put_artifacts(put_artifact(mine, "x")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(guest.put_artifacts(put_artifact(mine, "x")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(guest.put_artifact_type(artifact_type("U")).await.unwrap_err().code(), Code::FailedPrecondition);
    let steal = proto::Artifact { id: Some(1), uri: Some("stolen".into()), ..Default::default() };
    let request = proto::PutArtifactsRequest { artifacts: vec![steal], ..Default::default() };
    assert_eq!(bob.put_artifacts(request.clone()).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(guest.put_artifacts(request).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_forged_page_token_shows_nothing_of_others() {
    let fixture = Fixture::new();
    let store = fixture.metadata.store();
    for namespace in ["ann", "bob"] {
        let scope = Scope::namespace(namespace);
        let kind = proto::ArtifactType { name: Some("T".into()), ..Default::default() };
        let id = store.put_types(&scope, vec![kind], vec![], vec![]).await.unwrap().artifact_type_ids[0];
        let all = (0..3).map(|n| proto::Artifact {
            type_id: Some(id),
            name: Some(format!("{namespace}{n}")),
            ..Default::default()
        });
        store.put_artifacts(&scope, all.collect()).await.unwrap();
    }
    let page =
        |token| proto::ListOperationOptions { max_result_size: Some(2), next_page_token: token, ..Default::default() };
    let (ann, bob) = (Scope::namespace("ann"), Scope::namespace("bob"));
    let (first, token) = store.list_artifacts(&ann, Among::All, Some(page(None))).await.unwrap();
    assert_eq!(first.len(), 2);
    let (rest, end) = store.list_artifacts(&ann, Among::All, Some(page(token.clone()))).await.unwrap();
    assert_eq!((rest[0].name(), rest.len(), end), ("ann2", 1, None));
    // The same token in another tenant's hands goes on in that tenant's own listing.
    let (theirs, _) = store.list_artifacts(&bob, Among::All, Some(page(token.clone()))).await.unwrap();
    assert!(theirs.iter().all(|a| a.name().starts_with("bob")));
    for forged in ["' OR 1=1 --", "AAAA", "eyJ4IjoxfQ"] {
        let refused = store.list_artifacts(&ann, Among::All, Some(page(Some(forged.into())))).await;
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{forged}");
    }
    let other_filter = proto::ListOperationOptions { filter_query: Some("id > 0".into()), ..page(token) };
    assert!(store.list_artifacts(&ann, Among::All, Some(other_filter)).await.is_err());
    for size in [0, -5] {
        let options = proto::ListOperationOptions { max_result_size: Some(size), ..Default::default() };
        assert!(store.list_artifacts(&ann, Among::All, Some(options)).await.is_err());
    }
}

#[tokio::test]
async fn links_do_not_cross_namespaces_even_for_who_owns_both() {
    let fixture = Fixture::new();
    let store = fixture.metadata.store();
    let both = Namespaces::These(vec!["a".into(), "b".into()]);
    let scope = |target: &str| Scope { read: both.clone(), write: both.clone(), target: Some(target.into()) };
    let artifact = proto::ArtifactType { name: Some(names::ARTIFACT_DATASET.into()), ..Default::default() };
    let execution = proto::ExecutionType { name: Some(names::EXECUTION_CONTAINER.into()), ..Default::default() };
    let in_a = store.put_types(&scope("a"), vec![artifact], vec![], vec![]).await.unwrap().artifact_type_ids[0];
    let in_b = store.put_types(&scope("b"), vec![], vec![execution], vec![]).await.unwrap().execution_type_ids[0];
    let dataset = proto::Artifact { type_id: Some(in_a), ..Default::default() };
    let step = proto::Execution { type_id: Some(in_b), ..Default::default() };
    let request = proto::PutExecutionRequest {
        execution: Some(step),
        artifact_event_pairs: vec![proto::put_execution_request::ArtifactAndEvent {
            artifact: Some(dataset),
            event: Some(proto::Event { r#type: Some(proto::event::Type::Input as i32), ..Default::default() }),
        }],
        ..Default::default()
    };
    let refused = store.put_execution(&scope("a"), request).await.unwrap_err();
    assert!(refused.to_string().contains("different namespaces"), "{refused}");
    // And nothing of it stayed.
    assert!(store.list_artifacts(&scope("a"), Among::All, None).await.unwrap().0.is_empty());
    assert!(store.list_executions(&scope("a"), Among::All, None).await.unwrap().0.is_empty());
}

#[tokio::test]
async fn what_was_answered_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let scope = Scope::namespace("ann");
    for round in 0..2_usize {
        let metadata = Metadata::open(Config { data_dir: dir.path().to_owned() }, Arc::new(ByGroup)).unwrap();
        let context = proto::ContextType { name: Some(names::CONTEXT_PIPELINE_RUN.into()), ..Default::default() };
        let types = metadata.store().put_types(&scope, vec![], vec![], vec![context]).await.unwrap();
        let run = proto::Context {
            type_id: types.context_type_ids.first().copied(),
            name: Some(format!("run-{round}")),
            ..Default::default()
        };
        metadata.store().put_contexts(&scope, vec![run]).await.unwrap();
        let (all, _) = metadata.store().list_contexts(&scope, Among::All, None).await.unwrap();
        assert_eq!(all.len(), round + 1);
        let found = metadata.store().context_by_name(&scope, names::CONTEXT_PIPELINE_RUN, "run-0").await.unwrap();
        assert_eq!(found.unwrap().id(), 1);
    }
}

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: rustls::pki_types::CertificateDer<'static>,
}

type Chain = (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>);

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: rcgen::Issuer::new(params, key), root }
    }

    fn issue(&self, name: &str) -> Chain {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        (vec![certificate.der().clone()], key)
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        Arc::new(roots)
    }
}

async fn over_tls(
    address: std::net::SocketAddr,
    authority: &Authority,
    identity: Option<Chain>,
) -> Result<Client<Channel>, tonic::transport::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authority.roots());
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let connect = tower::service_fn(move |_: http::Uri| {
        let connector = connector.clone();
        async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    let endpoint = Channel::from_static("http://localhost").timeout(Duration::from_secs(10));
    Ok(Client::new(endpoint.connect_with_connector(connect).await?))
}

#[tokio::test]
async fn over_tls_the_certificate_says_who_calls() {
    let fixture = Fixture::new();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (chain, key) = ours.issue("localhost");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(ours.roots(), provider.clone()).build().unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    let (ann, stranger) = (ours.issue("ann"), ours.issue("stranger"));
    let known = ann.0[0].clone();
    let identify: IdentifyCertificate =
        Arc::new(move |chain| (chain.first() == Some(&known)).then(|| UserInfo::new("ann", ["owner:ann".to_owned()])));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    fixture.metadata.serve_tls(listener, Arc::new(config), identify, &fixture.tasks);

    let mut ann = over_tls(address, &ours, Some(ann)).await.unwrap();
    ann.put_artifact_type(artifact_type("T")).await.unwrap();
    let scope = Scope::namespace("ann");
    assert!(fixture.metadata.store().artifact_type(&scope, "T").await.unwrap().is_some());

    let mut stranger = over_tls(address, &ours, Some(stranger)).await.unwrap();
    let refused = stranger.put_artifact_type(artifact_type("U")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    // Without a certificate, or with one of another authority, the handshake itself fails.
    for identity in [None, Some(theirs.issue("ann"))] {
        let refused = match over_tls(address, &ours, identity).await {
            Err(_) => true,
            Ok(mut client) => client.get_artifact_types(proto::GetArtifactTypesRequest::default()).await.is_err(),
        };
        assert!(refused);
    }
}

#[tokio::test]
async fn servers_end_on_shutdown_with_connections_open() {
    let fixture = Fixture::new();
    let mut ann = fixture.client(&["owner:ann"]).await;
    ann.put_artifact_type(artifact_type("T")).await.unwrap();
    fixture.tasks.stop();
    assert_eq!(fixture.tasks.drain(Duration::from_secs(10)).await, [""; 0]);
}

#[tokio::test]
async fn a_namespace_is_forgotten_with_its_links_and_others_stay() {
    let fixture = Fixture::new();
    let store = fixture.metadata.store();
    for namespace in ["ann", "bob"] {
        let scope = Scope::namespace(namespace);
        let artifact = proto::ArtifactType { name: Some("T".into()), ..Default::default() };
        let context = proto::ContextType { name: Some("C".into()), ..Default::default() };
        let types = store.put_types(&scope, vec![artifact], vec![], vec![context]).await.unwrap();
        let made = proto::Artifact {
            type_id: Some(types.artifact_type_ids[0]),
            uri: Some(format!("minio://{namespace}")),
            ..Default::default()
        };
        store.put_artifacts(&scope, vec![made]).await.unwrap();
        let made = ["child", "parent"].map(|name| proto::Context {
            type_id: Some(types.context_type_ids[0]),
            name: Some(name.into()),
            ..Default::default()
        });
        let ids = store.put_contexts(&scope, made.to_vec()).await.unwrap();
        store.put_parents(&scope, vec![(ids[0], ids[1])]).await.unwrap();
    }
    assert_eq!(store.forget_namespace("ann").await.unwrap(), 3);
    assert_eq!(store.forget_namespace("ann").await.unwrap(), 0, "again finds nothing");
    assert!(store.artifact_type(&Scope::namespace("ann"), "T").await.unwrap().is_none());
    let bob = Scope::namespace("bob");
    assert!(store.artifact_type(&bob, "T").await.unwrap().is_some());
    let left: Vec<i64> = store
        .db
        .read(|c| {
            let count = |table: &str| c.query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get(0));
            Ok::<_, Error>(vec![count("node")?, count("parent")?, count("type")?])
        })
        .await
        .unwrap();
    assert_eq!(left, [3, 1, 2]);
}
