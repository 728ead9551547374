//! Manifests, tags, and what is attached to a manifest.

use super::{
    Call,
    answer::{self, Fault, Page},
};
use crate::images::{MAX_DOCUMENT, ManifestError};
use axum::{body::Body, response::Response};
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::json;

impl Call<'_> {
    pub(super) async fn manifest(&self, reference: &str) -> Result<Response, Fault> {
        let images = &self.registry.images;
        let found = images.repositories().manifest(&self.owner, self.repository, reference);
        let (digest, held) = found.ok_or_else(|| Fault::manifest_unknown(reference))?;
        let fields = [
            ("docker-content-digest", digest.clone()),
            ("etag", format!("\"{digest}\"")),
            ("content-type", held.media_type),
            ("content-length", held.size.to_string()),
        ];
        let mut response = answer::headers(StatusCode::OK, &fields);
        if self.head.method == Method::GET {
            *response.body_mut() = Body::from(images.read_document(&digest).await?);
        }
        Ok(response)
    }

    pub(super) async fn put_manifest(&self, reference: &str, body: Body) -> Result<Response, Fault> {
        let media_type = self.head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
        let limit = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
        let body = axum::body::to_bytes(body, limit).await.map_err(|error| {
            let too_long =
                std::error::Error::source(&error).is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
            if too_long {
                return Fault::too_large("MANIFEST_INVALID", format!("a manifest may have {MAX_DOCUMENT} bytes"));
            }
            Fault::manifest_invalid("the request ended before its body did")
        })?;
        let images = &self.registry.images;
        let stored = images.put_manifest(&self.owner, self.repository, body.to_vec(), &media_type, reference).await;
        let digest = stored.map_err(|error| match error {
            ManifestError::Invalid(why) => Fault::manifest_invalid(why),
            ManifestError::Repository(error) => error.into(),
        })?;
        let (user, repository) = (&self.user.username, self.repository);
        tracing::info!(target: "audit", %user, repository, reference, digest, "a manifest was pushed");
        let mut fields = vec![
            ("location", format!("/v2/{repository}/manifests/{digest}")),
            ("docker-content-digest", digest.clone()),
        ];
        let held = images.repositories().manifest(&self.owner, repository, &digest);
        fields.extend(held.and_then(|(_, held)| held.subject).map(|subject| ("oci-subject", subject)));
        Ok(answer::headers(StatusCode::CREATED, &fields))
    }

    pub(super) async fn delete_manifest(&self, reference: String) -> Result<Response, Fault> {
        let (owner, repository, wanted) = (self.owner.clone(), self.repository.to_owned(), reference.clone());
        let images = &self.registry.images;
        let deleted =
            images.changing_repositories(move |all| all.delete_manifest(&owner, &repository, &wanted)).await?;
        if !deleted {
            return Err(Fault::manifest_unknown(&reference));
        }
        let (user, repository) = (&self.user.username, self.repository);
        tracing::info!(target: "audit", %user, repository, reference, "a manifest was deleted from the registry");
        Ok(answer::headers(StatusCode::ACCEPTED, &[]))
    }

    pub(super) fn tags(&self) -> Result<Response, Fault> {
        let page = Page::of(&self.head.uri)?;
        let repositories = self.registry.images.repositories();
        let tags = repositories.tags(&self.owner, self.repository, &page.last, page.count.saturating_add(1));
        let tags = tags.ok_or_else(|| Fault::name_unknown(self.repository))?;
        Ok(page.answer(&format!("/v2/{}/tags/list", self.repository), "tags", Some(self.repository), tags))
    }

    pub(super) fn referrers(&self, subject: &str) -> Result<Response, Fault> {
        let wanted = answer::query(&self.head.uri)?.remove("artifactType");
        let attached = self.registry.images.repositories().referrers(&self.owner, self.repository, subject);
        let fits = |artifact_type: &str| wanted.as_deref().is_none_or(|wanted| wanted == artifact_type);
        let entries = attached.into_iter().filter(|(_, held)| fits(&held.artifact_type)).map(|(digest, held)| {
            let mut entry = json!({
                "mediaType": held.media_type, "digest": digest, "size": held.size, "artifactType": held.artifact_type,
            });
            if !held.annotations.is_empty() {
                entry["annotations"] = json!(held.annotations);
            }
            entry
        });
        let index = crate::images::INDEX_TYPE;
        let body = json!({ "schemaVersion": 2, "mediaType": index, "manifests": entries.collect::<Vec<_>>() });
        let mut response = answer::document(StatusCode::OK, &body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(index));
        if wanted.is_some() {
            response.headers_mut().insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
        }
        Ok(response)
    }
}
