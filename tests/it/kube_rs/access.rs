//! A service account's token and what RBAC lets it do.

use super::{client, pod};
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::{
    authentication::v1::{SelfSubjectReview, TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Pod, Secret, ServiceAccount},
    rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
};
use kfbox_tests::{Space, TestBox};
use kube::{
    Api, Client, Config,
    api::{AttachParams, ListParams, ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use std::time::Duration;

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }
}

fn forbidden<T: std::fmt::Debug>(result: kube::Result<T>) -> anyhow::Result<String> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 403 && status.reason == "Forbidden" => Ok(status.message),
        other => anyhow::bail!("not forbidden: {other:?}"),
    }
}

async fn allow(admin: &Client, name: &str, resource: &str, verbs: &[&str]) -> anyhow::Result<()> {
    let rule = PolicyRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(vec![resource.into()]),
        verbs: verbs.iter().map(|v| (*v).to_owned()).collect(),
        ..PolicyRule::default()
    };
    let role = Role { metadata: named(name), rules: Some(vec![rule]) };
    Api::<Role>::default_namespaced(admin.clone()).create(&PostParams::default(), &role).await?;
    let subject = Subject {
        kind: "ServiceAccount".into(),
        name: "robot".into(),
        namespace: Some(admin.default_namespace().into()),
        ..Subject::default()
    };
    let binding = RoleBinding {
        metadata: named(name),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "Role".into(),
            name: name.into(),
        },
        subjects: Some(vec![subject]),
    };
    Api::<RoleBinding>::default_namespaced(admin.clone()).create(&PostParams::default(), &binding).await?;
    Ok(())
}

#[tokio::test]
async fn kube_rs_with_a_service_accounts_token_has_its_rights_only() -> anyhow::Result<()> {
    let space = Space::new(&TestBox::shared()?, "kuberstoken")?;
    let admin = client(&space).await?;
    let accounts: Api<ServiceAccount> = Api::default_namespaced(admin.clone());
    accounts.create(&PostParams::default(), &ServiceAccount { metadata: named("robot"), ..Default::default() }).await?;
    let request = TokenRequest {
        spec: Some(TokenRequestSpec { expiration_seconds: Some(600), ..TokenRequestSpec::default() }),
        ..TokenRequest::default()
    };
    let granted = accounts.create_token_request("robot", &PostParams::default(), &request).await?;
    let token = granted.status.and_then(|s| s.token).unwrap_or_default();

    // The same server and authority, without the administrator's certificate.
    let mut kubeconfig = Kubeconfig::read_from(space.kubeconfig())?;
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(kube::config::AuthInfo { token: Some(token.clone().into()), ..Default::default() });
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let robot = Client::try_from(config)?;
    let me = Api::<SelfSubjectReview>::all(robot.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await?;
    let me = me.status.and_then(|s| s.user_info).and_then(|u| u.username);
    assert_eq!(me.as_deref(), Some(&*format!("system:serviceaccount:{}:robot", space.name)));

    let maps: Api<ConfigMap> = Api::default_namespaced(robot.clone());
    let message = forbidden(maps.list(&ListParams::default()).await)?;
    assert!(message.contains("cannot list resource \"configmaps\" in API group \"\" in the namespace"), "{message}");
    // A watcher that begins without the right reports it, goes on asking, and works once it has it.
    let events = watcher::watcher(maps.clone(), watcher::Config::default()).default_backoff();
    pin_mut!(events);
    assert!(matches!(events.next().await, Some(Ok(Event::Init))));
    let refused = events.next().await;
    assert!(matches!(refused, Some(Err(watcher::Error::InitialListFailed(_)))), "{refused:?}");
    allow(&admin, "maps", "configmaps", &["list", "watch"]).await?;
    let begun = tokio::time::timeout(Duration::from_secs(30), async {
        while let Some(event) = events.next().await {
            if matches!(event, Ok(Event::InitDone)) {
                return true;
            }
        }
        false
    });
    assert!(begun.await?, "the watch ended");
    forbidden(maps.get("kube-root-ca.crt").await)?;
    forbidden(maps.create(&PostParams::default(), &ConfigMap { metadata: named("mine"), ..Default::default() }).await)?;
    forbidden(Api::<ConfigMap>::all(robot.clone()).list(&ListParams::default()).await)?;
    forbidden(Api::<Secret>::default_namespaced(robot.clone()).list(&ListParams::default()).await)?;

    // Logs and exec are rights of their own, and exec is making, not reading.
    let pods: Api<Pod> = Api::default_namespaced(robot.clone());
    let running = Api::<Pod>::default_namespaced(admin.clone());
    running.create(&PostParams::default(), &pod("p", "print('said'); input()")).await?;
    let is_running = kube::runtime::wait::conditions::is_pod_running();
    let up = kube::runtime::wait::await_condition(running, "p", is_running);
    tokio::time::timeout(Duration::from_secs(60), up).await??;
    allow(&admin, "pods", "pods", &["get", "list"]).await?;
    pods.get("p").await?;
    forbidden(pods.logs("p", &Default::default()).await)?;
    let refused = pods.exec("p", ["true"], &AttachParams::default()).await;
    assert!(refused.is_err(), "exec without the right");
    allow(&admin, "reading", "pods/exec", &["get"]).await?;
    let refused = pods.exec("p", ["true"], &AttachParams::default()).await;
    assert!(refused.is_err(), "exec with the right to read only");
    allow(&admin, "making", "pods/exec", &["create"]).await?;
    let mut process = pods.exec("p", ["true"], &AttachParams::default()).await?;
    let status = process.take_status().ok_or_else(|| anyhow::anyhow!("no status"))?.await;
    assert_eq!(status.and_then(|s| s.status).as_deref(), Some("Success"));
    Ok(())
}
