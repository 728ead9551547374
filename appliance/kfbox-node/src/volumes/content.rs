//! What is in the volumes that the cluster's objects fill: configMap, secret, downwardAPI and projected. Pure.
//! Upstream: <https://kubernetes.io/docs/concepts/storage/volumes/>

use super::atomic::{FileContent, Payload};
use crate::pod::{
    downward::{self, DownwardError, Surroundings},
    objects::Objects,
};
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccountTokenProjection, Volume};
use std::collections::BTreeMap;

const DEFAULT_MODE: u32 = 0o644;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    #[error("references non-existent config key: {0}")]
    NoConfigKey(String),
    #[error("references non-existent secret key: {0}")]
    NoSecretKey(String),
    #[error("no token for the path {0} was issued")]
    NoToken(String),
    #[error("this kind of projected source is not supported")]
    Unsupported,
    #[error(transparent)]
    Downward(#[from] DownwardError),
}

/// Whether a volume is filled from objects.
pub fn is_content(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// Whether it may hold secrets, and so belongs in memory.
pub fn is_secret(volume: &Volume) -> bool {
    volume.secret.is_some()
        || volume
            .projected
            .iter()
            .flat_map(|p| p.sources.iter().flatten())
            .any(|s| s.secret.is_some() || s.service_account_token.is_some())
}

/// The tokens that a volume projects.
pub fn tokens(volume: &Volume) -> impl Iterator<Item = &ServiceAccountTokenProjection> {
    volume.projected.iter().flat_map(|p| p.sources.iter().flatten()).filter_map(|s| s.service_account_token.as_ref())
}

/// `issued` holds the tokens by path. None: the volume is not filled from objects.
pub fn payload(
    pod: &Pod,
    volume: &Volume,
    around: &Surroundings,
    objects: &Objects,
    issued: &BTreeMap<String, String>,
) -> Result<Option<Payload>, ContentError> {
    let mut files = Payload::new();
    let mode = |mode: Option<i32>| mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(DEFAULT_MODE);
    if let Some(source) = &volume.config_map {
        let default = mode(source.default_mode);
        config_map(&source.name, source.items.as_deref(), source.optional, default, objects, &mut files)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let default = mode(source.default_mode);
        secret(name, source.items.as_deref(), source.optional, default, objects, &mut files)?;
    } else if let Some(source) = &volume.downward_api {
        downward_files(
            pod,
            around,
            source.items.as_deref().unwrap_or_default(),
            mode(source.default_mode),
            &mut files,
        )?;
    } else if let Some(projected) = &volume.projected {
        let default = mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            if let Some(s) = &source.config_map {
                config_map(&s.name, s.items.as_deref(), s.optional, default, objects, &mut files)?;
            } else if let Some(s) = &source.secret {
                secret(&s.name, s.items.as_deref(), s.optional, default, objects, &mut files)?;
            } else if let Some(s) = &source.downward_api {
                downward_files(pod, around, s.items.as_deref().unwrap_or_default(), default, &mut files)?;
            } else if let Some(s) = &source.service_account_token {
                let token = issued.get(&s.path).ok_or_else(|| ContentError::NoToken(s.path.clone()))?;
                files.insert(s.path.clone(), FileContent { bytes: token.clone().into_bytes(), mode: default });
            } else {
                return Err(ContentError::Unsupported);
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

fn config_map(
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
    objects: &Objects,
    files: &mut Payload,
) -> Result<(), ContentError> {
    let optional = optional == Some(true);
    let Some(object) = objects.config_maps.get(name) else {
        return if optional { Ok(()) } else { Err(ContentError::NoConfigMap(name.into())) };
    };
    let text = object.data.iter().flatten().map(|(k, v)| (k.as_str(), v.as_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice()));
    select(text.chain(binary).collect(), items, optional, mode, files).map_err(ContentError::NoConfigKey)
}

fn secret(
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
    objects: &Objects,
    files: &mut Payload,
) -> Result<(), ContentError> {
    let optional = optional == Some(true);
    let Some(object) = objects.secrets.get(name) else {
        return if optional { Ok(()) } else { Err(ContentError::NoSecret(name.into())) };
    };
    let data = object.data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice()));
    select(data.collect(), items, optional, mode, files).map_err(ContentError::NoSecretKey)
}

/// All keys under their own names, or the listed ones where they are wanted. The error is the missing key.
fn select(
    data: BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    files: &mut Payload,
) -> Result<(), String> {
    match items {
        Some(items) if !items.is_empty() => {
            for item in items {
                let Some(bytes) = data.get(item.key.as_str()) else {
                    if optional {
                        continue;
                    }
                    return Err(item.key.clone());
                };
                let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(mode);
                files.insert(item.path.clone(), FileContent { bytes: bytes.to_vec(), mode });
            }
        }
        _ => {
            for (key, bytes) in data {
                files.insert(key.to_owned(), FileContent { bytes: bytes.to_vec(), mode });
            }
        }
    }
    Ok(())
}

fn downward_files(
    pod: &Pod,
    around: &Surroundings,
    items: &[DownwardAPIVolumeFile],
    mode: u32,
    files: &mut Payload,
) -> Result<(), ContentError> {
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            downward::field(pod, around, &field.field_path)?
        } else if let Some(selector) = &item.resource_field_ref {
            downward::resource(pod, None, around, selector)?
        } else {
            continue;
        };
        let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(mode);
        files.insert(item.path.clone(), FileContent { bytes: text.into_bytes(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{
        ConfigMap, ConfigMapVolumeSource, ProjectedVolumeSource, SecretProjection, VolumeProjection,
    };

    fn objects() -> Objects {
        let mut objects = Objects::default();
        let data = [("a", "1"), ("b", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        objects.config_maps.insert("cm".into(), ConfigMap { data: Some(data.into()), ..Default::default() });
        objects
    }

    fn fill(volume: &Volume, issued: &BTreeMap<String, String>) -> Result<Option<Payload>, ContentError> {
        payload(&Pod::default(), volume, &Surroundings::default(), &objects(), issued)
    }

    fn config(items: Option<Vec<KeyToPath>>, name: &str, optional: bool) -> Volume {
        Volume {
            config_map: Some(ConfigMapVolumeSource {
                name: name.into(),
                items,
                optional: Some(optional),
                default_mode: Some(0o400),
            }),
            ..Volume::default()
        }
    }

    #[test]
    fn keys_become_files() {
        let none = BTreeMap::new();
        let files = fill(&config(None, "cm", false), &none).unwrap().unwrap();
        assert_eq!(files["b"], FileContent { bytes: b"2".to_vec(), mode: 0o400 });
        let item = |key: &str| KeyToPath { key: key.into(), path: format!("x/{key}"), mode: Some(0o777) };
        let files = fill(&config(Some(vec![item("a")]), "cm", false), &none).unwrap().unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["x/a"]);
        assert_eq!(files["x/a"].mode, 0o777);
        assert_eq!(
            fill(&config(Some(vec![item("z")]), "cm", false), &none),
            Err(ContentError::NoConfigKey("z".into()))
        );
        assert_eq!(fill(&config(None, "no", false), &none), Err(ContentError::NoConfigMap("no".into())));
        assert_eq!(fill(&config(None, "no", true), &none), Ok(Some(Payload::new())));
        assert_eq!(fill(&Volume::default(), &none), Ok(None));
    }

    #[test]
    fn projected_sources_share_a_folder() {
        let token = ServiceAccountTokenProjection { path: "token".into(), ..Default::default() };
        let volume = Volume {
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![
                    VolumeProjection { service_account_token: Some(token), ..Default::default() },
                    VolumeProjection {
                        secret: Some(SecretProjection {
                            name: "absent".into(),
                            optional: Some(true),
                            ..Default::default()
                        }),
                        ..Default::default()
                    },
                ]),
                default_mode: None,
            }),
            ..Volume::default()
        };
        assert!(is_secret(&volume) && !is_secret(&config(None, "cm", false)));
        assert_eq!(fill(&volume, &BTreeMap::new()), Err(ContentError::NoToken("token".into())));
        let issued = BTreeMap::from([("token".to_owned(), "ey".to_owned())]);
        assert_eq!(fill(&volume, &issued).unwrap().unwrap()["token"].bytes, b"ey");
    }
}
