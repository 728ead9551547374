//! A container's environment: services, `envFrom`, `env`, and `$(NAME)` in values, commands and arguments.
//! Upstream: <https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/>

use super::{
    downward::{self, DownwardError, Surroundings},
    objects::Objects,
};
use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, Service};

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    #[error("couldn't find key {key} in ConfigMap {namespace}/{name}")]
    NoConfigKey { key: String, namespace: String, name: String },
    #[error("couldn't find key {key} in Secret {namespace}/{name}")]
    NoSecretKey { key: String, namespace: String, name: String },
    #[error("the value of key {key} in Secret {name} is not UTF-8")]
    NotText { key: String, name: String },
    #[error(transparent)]
    Downward(#[from] DownwardError),
}

/// Variables in order; a later one replaces an earlier one of the same name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1 = value,
            None => self.0.push((name.into(), value)),
        }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// Replaces `$(NAME)` where the name is known; `$$(NAME)` stands for the text itself.
    pub fn expand(&self, text: &str) -> String {
        expand(text, |name| self.get(name))
    }
}

fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// `services` are those of the pod's namespace, and `kubernetes` of the default one.
pub fn variables(
    pod: &Pod,
    container: &Container,
    around: &Surroundings,
    objects: &Objects,
    services: &[Service],
) -> Result<Variables, EnvError> {
    let mut all = Variables::default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    for service in services {
        let meta = &service.metadata;
        let master = meta.namespace.as_deref() == Some("default") && meta.name.as_deref() == Some("kubernetes");
        if master || (links && meta.namespace.as_deref() == Some(namespace)) {
            service_variables(service, &mut all);
        }
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match objects.config_maps.get(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        all.set(&format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoConfigMap(reference.name.clone())),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match objects.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        // A value that is no text cannot be in an environment.
                        if let Ok(value) = String::from_utf8(value.0.clone()) {
                            all.set(&format!("{prefix}{key}"), value);
                        }
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoSecret(reference.name.clone())),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => from_source(pod, container, around, objects, source)?,
            None => Some(all.expand(variable.value.as_deref().unwrap_or_default())),
        };
        if let Some(value) = value {
            all.set(&variable.name, value);
        }
    }
    Ok(all)
}

/// None: optional and not there.
fn from_source(
    pod: &Pod,
    container: &Container,
    around: &Surroundings,
    objects: &Objects,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    let namespace = || pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        return Ok(Some(downward::field(pod, around, &field.field_path)?));
    }
    if let Some(selector) = &source.resource_field_ref {
        return Ok(Some(downward::resource(pod, Some(container), around, selector)?));
    }
    if let Some(r) = &source.config_map_key_ref {
        let optional = r.optional == Some(true);
        return match objects.config_maps.get(&r.name) {
            None if optional => Ok(None),
            None => Err(EnvError::NoConfigMap(r.name.clone())),
            Some(map) => match map.data.as_ref().and_then(|data| data.get(&r.key)) {
                Some(value) => Ok(Some(value.clone())),
                None if optional => Ok(None),
                None => Err(EnvError::NoConfigKey { key: r.key.clone(), namespace: namespace(), name: r.name.clone() }),
            },
        };
    }
    if let Some(r) = &source.secret_key_ref {
        let optional = r.optional == Some(true);
        return match objects.secrets.get(&r.name) {
            None if optional => Ok(None),
            None => Err(EnvError::NoSecret(r.name.clone())),
            Some(secret) => match secret.data.as_ref().and_then(|data| data.get(&r.key)) {
                Some(value) => String::from_utf8(value.0.clone())
                    .map(Some)
                    .map_err(|_| EnvError::NotText { key: r.key.clone(), name: r.name.clone() }),
                None if optional => Ok(None),
                None => Err(EnvError::NoSecretKey { key: r.key.clone(), namespace: namespace(), name: r.name.clone() }),
            },
        };
    }
    Ok(Some(String::new()))
}

/// The variables that Docker links had, for each service with an address.
fn service_variables(service: &Service, all: &mut Variables) {
    let Some(spec) = &service.spec else { return };
    let address = match spec.cluster_ip.as_deref() {
        Some(ip) if !ip.is_empty() && ip != "None" => ip,
        _ => return,
    };
    let name = service.metadata.name.as_deref().unwrap_or_default().to_uppercase().replace('-', "_");
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    all.set(&format!("{name}_SERVICE_HOST"), address.into());
    all.set(&format!("{name}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let port_name = port_name.to_uppercase().replace('-', "_");
            all.set(&format!("{name}_SERVICE_PORT_{port_name}"), port.port.to_string());
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{address}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            all.set(&format!("{name}_PORT"), url.clone());
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
        all.set(&prefix, url);
        all.set(&format!("{prefix}_PROTO"), protocol.to_lowercase());
        all.set(&format!("{prefix}_PORT"), port.port.to_string());
        all.set(&format!("{prefix}_ADDR"), address.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{
        ByteString,
        api::core::v1::{
            ConfigMap, ConfigMapEnvSource, ConfigMapKeySelector, EnvFromSource, EnvVar, Secret, SecretKeySelector,
            ServicePort, ServiceSpec,
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };
    use std::collections::BTreeMap;

    fn pod() -> Pod {
        Pod { metadata: ObjectMeta { namespace: Some("ns".into()), ..Default::default() }, ..Pod::default() }
    }

    fn service(namespace: &str, name: &str, ip: &str) -> Service {
        Service {
            metadata: ObjectMeta { namespace: Some(namespace.into()), name: Some(name.into()), ..Default::default() },
            spec: Some(ServiceSpec {
                cluster_ip: Some(ip.into()),
                ports: Some(vec![ServicePort { name: Some("http".into()), port: 80, ..Default::default() }]),
                ..Default::default()
            }),
            ..Service::default()
        }
    }

    fn build(container: Container, objects: &Objects, services: &[Service]) -> Result<Variables, EnvError> {
        variables(&pod(), &container, &Surroundings::default(), objects, services)
    }

    #[test]
    fn references_expand_from_what_came_before() {
        let var = |n: &str, v: &str| EnvVar { name: n.into(), value: Some(v.into()), value_from: None };
        let container = Container {
            env: Some(vec![var("A", "1"), var("B", "$(A)-$(C)-$$(A)-$5-$"), var("C", "x"), var("A", "$(A)2")]),
            ..Container::default()
        };
        let all = build(container, &Objects::default(), &[]).unwrap();
        assert_eq!(all.get("B"), Some("1-$(C)-$(A)-$5-$"));
        assert_eq!(all.get("A"), Some("12"));
        assert_eq!(all.expand("run $(C)"), "run x");
    }

    #[test]
    fn objects_are_read_and_missing_ones_reported() {
        let mut objects = Objects::default();
        let data = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        objects.config_maps.insert("cm".into(), ConfigMap { data: Some(data), ..Default::default() });
        let bytes = BTreeMap::from([("b".to_owned(), ByteString(vec![0xff]))]);
        objects.secrets.insert("s".into(), Secret { data: Some(bytes), ..Default::default() });
        let from_map = |name: &str, optional| Container {
            env_from: Some(vec![EnvFromSource {
                prefix: Some("P_".into()),
                config_map_ref: Some(ConfigMapEnvSource { name: name.into(), optional }),
                ..Default::default()
            }]),
            ..Container::default()
        };
        assert_eq!(build(from_map("cm", None), &objects, &[]).unwrap().get("P_k"), Some("v"));
        assert_eq!(build(from_map("no", None), &objects, &[]), Err(EnvError::NoConfigMap("no".into())));
        assert!(build(from_map("no", Some(true)), &objects, &[]).is_ok());
        let from_key = |source: EnvVarSource| Container {
            env: Some(vec![EnvVar { name: "X".into(), value: None, value_from: Some(source) }]),
            ..Container::default()
        };
        let key = |key: &str, optional| EnvVarSource {
            config_map_key_ref: Some(ConfigMapKeySelector { name: "cm".into(), key: key.into(), optional }),
            ..Default::default()
        };
        assert_eq!(
            build(from_key(key("z", None)), &objects, &[]).unwrap_err().to_string(),
            "couldn't find key z in ConfigMap ns/cm"
        );
        assert_eq!(build(from_key(key("z", Some(true))), &objects, &[]).unwrap().get("X"), None);
        let secret = EnvVarSource {
            secret_key_ref: Some(SecretKeySelector { name: "s".into(), key: "b".into(), optional: None }),
            ..Default::default()
        };
        assert!(matches!(build(from_key(secret), &objects, &[]), Err(EnvError::NotText { .. })));
    }

    #[test]
    fn services_of_the_namespace_and_the_api_are_linked() {
        let services = [
            service("ns", "my-db", "10.96.0.7"),
            service("other", "far", "10.96.0.8"),
            service("default", "kubernetes", "10.96.0.1"),
            service("ns", "headless", "None"),
        ];
        let all = build(Container::default(), &Objects::default(), &services).unwrap();
        assert_eq!(all.get("MY_DB_SERVICE_HOST"), Some("10.96.0.7"));
        assert_eq!(all.get("MY_DB_PORT_80_TCP"), Some("tcp://10.96.0.7:80"));
        assert_eq!(all.get("MY_DB_SERVICE_PORT_HTTP"), Some("80"));
        assert_eq!(all.get("KUBERNETES_SERVICE_HOST"), Some("10.96.0.1"));
        assert_eq!(all.get("FAR_SERVICE_HOST"), None);
        assert_eq!(all.get("HEADLESS_SERVICE_HOST"), None);
    }
}
