//! The ConfigMap of the dashboard's menu and settings, in the form of `components/centraldashboard/manifests` of
//! <https://github.com/kubeflow/dashboard>; the links are those of the pages that the box has.
//!
//! Guarantee: one that is there is an administrator's and stays as it is.

use super::SetupError;
use crate::workgroup::CONFIG_MAP;
use k8s_openapi::api::core::v1::ConfigMap;
use kfbox_api::names::{self, label};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};

pub(crate) async fn install(client: &Client) -> Result<(), SetupError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), names::KUBEFLOW_NAMESPACE);
    match api.create(&PostParams::default(), &defaults()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(SetupError::Apply { what: format!("ConfigMap {CONFIG_MAP}"), source: Box::new(error) }),
    }
}

fn defaults() -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(CONFIG_MAP.into());
    map.metadata.labels = Some([(label::PART_OF.into(), names::KUBEFLOW_NAMESPACE.into())].into());
    // Indented, for whoever edits it.
    map.data =
        Some([("links".into(), format!("{:#}", links())), ("settings".into(), format!("{:#}", settings()))].into());
    map
}

fn settings() -> Value {
    json!({"DASHBOARD_FORCE_IFRAME": true})
}

fn links() -> Value {
    let item = |text: &str, link: &str| json!({"type": "item", "text": text, "link": link});
    let hint = |text: &str, desc: &str, link: &str| json!({"text": text, "desc": desc, "link": link});
    json!({
        "menuLinks": [{
            "type": "section",
            "text": "Pipelines",
            "icon": "kubeflow:pipeline-centered",
            "items": [item("Pipelines", "/pipelines"), item("Experiments", "/experiments"), item("Runs", "/runs")],
        }],
        "externalLinks": [],
        "quickLinks": [
            hint("Upload a pipeline", "Pipelines", "/pipelines"),
            hint("View the runs", "Pipelines", "/runs"),
        ],
        "documentationItems": [
            hint("Kubeflow", "The project's pages", "https://www.kubeflow.org/"),
            hint(
                "Kubeflow Pipelines",
                "How pipelines are written and run",
                "https://www.kubeflow.org/docs/components/pipelines/",
            ),
        ],
    })
}
