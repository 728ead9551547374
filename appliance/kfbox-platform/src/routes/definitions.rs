//! The custom resources of Istio and of the Gateway API that the gateway honours for people's namespaces, as far as
//! `kubectl apply` needs them: names, versions, columns. What is inside is kept as it was written; what of it counts is
//! said in the object's status. <https://istio.io/latest/docs/reference/config/>, <https://gateway-api.sigs.k8s.io/>

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kfbox_api::names::{FIELD_MANAGER, label::MANAGED_BY};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub const ISTIO_NETWORKING: &str = "networking.istio.io";
pub const ISTIO_SECURITY: &str = "security.istio.io";
pub const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// A kind, and what is known of it.
pub struct Definition {
    pub group: &'static str,
    /// The first is stored.
    pub versions: &'static [&'static str],
    pub kind: &'static str,
    pub plural: &'static str,
    short: &'static [&'static str],
    category: &'static str,
    columns: &'static [(&'static str, &'static str)],
}

impl Definition {
    pub fn resource(&self) -> ApiResource {
        let gvk = GroupVersionKind::gvk(self.group, self.versions[0], self.kind);
        ApiResource::from_gvk_with_plural(&gvk, self.plural)
    }

    pub fn crd_name(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    pub fn crd(&self) -> Result<CustomResourceDefinition, serde_json::Error> {
        let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let mut columns: Vec<Value> =
            self.columns.iter().map(|(name, path)| json!({"name": name, "type": "string", "jsonPath": path})).collect();
        columns.push(json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}));
        let version = |(n, name): (usize, &&str)| {
            json!({
                "name": name, "served": true, "storage": n == 0, "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": any, "status": any}}},
            })
        };
        // Kubernetes wants it where a CRD defines a group under k8s.io.
        let approval = ("api-approved.kubernetes.io", "https://github.com/kubernetes-sigs/gateway-api");
        let annotations: BTreeMap<_, _> = (self.group == GATEWAY_API).then_some(approval).into_iter().collect();
        serde_json::from_value(json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.crd_name(), "labels": {MANAGED_BY: FIELD_MANAGER}, "annotations": annotations},
            "spec": {
                "group": self.group, "scope": "Namespaced",
                "names": {
                    "kind": self.kind, "listKind": format!("{}List", self.kind), "plural": self.plural,
                    "singular": self.kind.to_lowercase(), "shortNames": self.short, "categories": [self.category],
                },
                "versions": self.versions.iter().enumerate().map(version).collect::<Vec<_>>(),
            },
        }))
    }
}

pub const VIRTUAL_SERVICE: Definition = Definition {
    group: ISTIO_NETWORKING,
    versions: &["v1", "v1beta1", "v1alpha3"],
    kind: "VirtualService",
    plural: "virtualservices",
    short: &["vs"],
    category: "networking-istio-io",
    columns: &[("Gateways", ".spec.gateways"), ("Hosts", ".spec.hosts")],
};

pub const HTTP_ROUTE: Definition = Definition {
    group: GATEWAY_API,
    versions: &["v1", "v1beta1"],
    kind: "HTTPRoute",
    plural: "httproutes",
    short: &[],
    category: "gateway-api",
    columns: &[("Hostnames", ".spec.hostnames")],
};

pub const AUTHORIZATION_POLICY: Definition = Definition {
    group: ISTIO_SECURITY,
    versions: &["v1", "v1beta1"],
    kind: "AuthorizationPolicy",
    plural: "authorizationpolicies",
    short: &["ap"],
    category: "security-istio-io",
    columns: &[("Action", ".spec.action")],
};

pub const REQUEST_AUTHENTICATION: Definition = Definition {
    group: ISTIO_SECURITY,
    versions: &["v1", "v1beta1"],
    kind: "RequestAuthentication",
    plural: "requestauthentications",
    short: &["ra"],
    category: "security-istio-io",
    columns: &[],
};

/// Gateways themselves are the box's; people's are kept, and told that they have no effect.
pub const GATEWAY: Definition = Definition {
    group: ISTIO_NETWORKING,
    versions: &["v1", "v1beta1", "v1alpha3"],
    kind: "Gateway",
    plural: "gateways",
    short: &["gw"],
    category: "networking-istio-io",
    columns: &[],
};

pub const ALL: [&Definition; 5] =
    [&VIRTUAL_SERVICE, &HTTP_ROUTE, &AUTHORIZATION_POLICY, &REQUEST_AUTHENTICATION, &GATEWAY];

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, fs, path::Path};

    /// With `KFBOX_WRITE_BUNDLES` set, writes the file; without, it must be what would be written.
    #[test]
    fn the_bundle_is_what_the_table_says() {
        let mut wanted = "# Generated from appliance/kfbox-platform; write anew with: KFBOX_WRITE_BUNDLES=1 cargo test -p kfbox-platform bundle\n".to_owned();
        for definition in ALL {
            wanted += "---\n";
            wanted += &serde_yaml::to_string(&definition.crd().unwrap()).unwrap();
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bundles/routes/crds.yaml");
        if env::var_os("KFBOX_WRITE_BUNDLES").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &wanted).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == wanted, "{} is not what the table says; see its first line", path.display());
    }
}
