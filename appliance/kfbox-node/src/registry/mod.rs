//! The embedded registry: clients push images to it and pull them, pods run them without a copy. It is one more door to the
//! image store, on listeners of its own: its protocol wants the root of a host and speaks Basic authentication, so it is no
//! route of the gateway.
//!
//! `NAMESPACE/NAME` belongs to who may create pods in that namespace, to read as to write: what an image holds may be seen
//! by those who may run it. `library/NAME` is read by everybody who is known, and written by administrators.
//! Source: OCI distribution-spec 1.1; the error codes are its own.
//!
//! Architecture Invariant: nothing is fetched from elsewhere; the anonymous get a challenge and nothing else.

mod access;
mod answer;
mod blobs;
mod manifests;
mod route;
mod uploads;

pub use access::{Access, Action, Callers, is_own, owner};

use crate::images::{ImageStore, Owner};
use answer::Fault;
use axum::{Router, body::Body, extract::Request, response::Response};
use http::{Method, request::Parts};
use kfbox_base::{Tasks, UserInfo};
use route::{Route, Target};
use std::sync::Arc;
use uploads::Uploads;

/// Cloning shares it.
#[derive(Clone)]
pub struct Registry {
    images: ImageStore,
    access: Arc<Access>,
    uploads: Arc<Uploads>,
    tasks: Tasks,
}

/// A request that may be carried out, without its body.
struct Call<'a> {
    registry: &'a Registry,
    user: &'a UserInfo,
    owner: Owner,
    repository: &'a str,
    head: &'a Parts,
}

impl Registry {
    pub fn new(images: ImageStore, access: Arc<Access>, tasks: Tasks) -> Self {
        Self { images, access, uploads: Arc::default(), tasks }
    }

    pub fn router(&self) -> Router {
        let registry = self.clone();
        Router::new().fallback(move |request: Request| {
            let registry = registry.clone();
            async move { registry.answer(request).await }
        })
    }

    async fn answer(&self, request: Request) -> Response {
        let only_head = request.method() == Method::HEAD;
        let (head, body) = request.into_parts();
        let mut response = self.handle(&head, body).await.unwrap_or_else(Fault::into_response);
        response.headers_mut().insert("docker-distribution-api-version", answer::VERSION);
        if only_head {
            *response.body_mut() = Body::empty();
        }
        response
    }

    async fn handle(&self, head: &Parts, body: Body) -> Result<Response, Fault> {
        let Some(route) = Route::parse(head.uri.path()) else { return Err(Fault::no_such_page()) };
        let user = self.access.caller(&head.headers).await?;
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        let (name, target) = match route? {
            Route::Base if reads => return Ok(answer::empty_object()),
            Route::Catalog if reads => return self.catalog(&user, head).await,
            Route::Base | Route::Catalog => return Err(Fault::method()),
            Route::Repository { name, target } => (name, target),
        };
        let action = if reads && !matches!(target, Target::Upload(_)) { Action::Pull } else { Action::Push };
        self.access.check(&user, action, &name).await?;
        let owner = self.access.owner(&name).await?.ok_or_else(|| Fault::name_unknown(&name))?;
        let call = Call { registry: self, user: &user, owner, repository: &name, head };
        match (target, &head.method) {
            (Target::Tags, &Method::GET) => call.tags(),
            (Target::Referrers(subject), &Method::GET) => call.referrers(&subject),
            (Target::Blob(digest), &Method::GET | &Method::HEAD) => call.blob(&digest).await,
            (Target::Blob(digest), &Method::DELETE) => call.delete_blob(digest).await,
            (Target::Manifest(reference), &Method::GET | &Method::HEAD) => call.manifest(&reference).await,
            (Target::Manifest(reference), &Method::PUT) => call.put_manifest(&reference, body).await,
            (Target::Manifest(reference), &Method::DELETE) => call.delete_manifest(reference).await,
            (Target::Uploads, &Method::POST) => call.begin_upload(body).await,
            (Target::Upload(id), &Method::GET) => call.upload_status(&id).await,
            (Target::Upload(id), &Method::PATCH) => call.continue_upload(&id, body).await,
            (Target::Upload(id), &Method::PUT) => call.end_upload(&id, body).await,
            (Target::Upload(id), &Method::DELETE) => call.cancel_upload(&id),
            _ => Err(Fault::method()),
        }
    }

    /// The repositories that the caller may read.
    async fn catalog(&self, user: &UserInfo, head: &Parts) -> Result<Response, Fault> {
        let page = answer::Page::of(&head.uri)?;
        let mut names = self.images.repositories().of(&Owner::shared());
        for owner in self.access.owners().await? {
            let own = self.images.repositories().of(&owner);
            if let Some(first) = own.first()
                && self.access.check(user, Action::Pull, first).await.is_ok()
            {
                names.extend(own);
            }
        }
        names.sort();
        names.retain(|name| *name > page.last);
        Ok(page.answer("/v2/_catalog", "repositories", None, names))
    }
}
