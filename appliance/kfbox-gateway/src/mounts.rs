//! Where components are found: an in-process router for each path prefix, and people's Services where no component is.

use crate::{
    user_routes::{Doors, UserRoute, UserServices},
    workers,
};
use axum::{Router, extract::Request, response::Response};
use http::{Uri, uri::PathAndQuery};
use tokio::runtime::Handle;
use tower::ServiceExt as _;

/// The route table, longest prefix first. Prefixes match whole segments: `/apis` is not `/apisx`.
#[derive(Clone, Default)]
pub struct Mounts {
    mounts: Vec<Mount>,
    doors: Option<Doors>,
    /// Where components run; None: where the request is.
    home: Option<Handle>,
}

#[derive(Clone)]
struct Mount {
    prefix: String,
    strip: bool,
    router: Router,
}

impl Mounts {
    pub fn new() -> Self {
        Self::default()
    }

    /// The component sees the whole path. `/` takes what no other prefix does.
    #[must_use]
    pub fn at(self, prefix: &str, router: Router) -> Self {
        self.add(prefix, false, router)
    }

    /// The component sees the path without the prefix, as `/pipeline/apis/…` of Kubeflow's gateway is served. The bare
    /// prefix is not the component's: `/pipeline` is a page, which the next shorter prefix has.
    #[must_use]
    pub fn stripped(self, prefix: &str, router: Router) -> Self {
        self.add(prefix, true, router)
    }

    /// Ways into people's namespaces, which come after every prefix but `/`.
    #[must_use]
    pub fn with_user_services(self, services: UserServices) -> Self {
        Self { doors: Some(Doors::new(services)), ..self }
    }

    /// The same for one of the gateway's threads: with connections to pods of its own, and components on another runtime.
    pub(crate) fn of_worker(&self, home: Handle) -> Self {
        Self { mounts: self.mounts.clone(), doors: self.doors.as_ref().map(Doors::of_worker), home: Some(home) }
    }

    fn add(mut self, prefix: &str, strip: bool, router: Router) -> Self {
        let prefix = prefix.trim_end_matches('/').to_owned();
        self.mounts.retain(|m| m.prefix != prefix);
        self.mounts.push(Mount { prefix, strip, router });
        self.mounts.sort_by_key(|m| std::cmp::Reverse(m.prefix.len()));
        self
    }

    pub(crate) fn find(&self, path: &str) -> Target<'_> {
        let found = self.mounts.iter().find(|m| {
            let rest = path.strip_prefix(m.prefix.as_str());
            rest.is_some_and(|rest| {
                (rest.is_empty() && !m.strip) || (rest.starts_with('/') && (rest != "/" || !m.strip))
            })
        });
        if let Some(doors) = &self.doors
            && found.is_none_or(|m| m.prefix.is_empty())
            && let Some(route) = doors.find(path)
        {
            return Target::Service(doors, Box::new(route));
        }
        match found {
            Some(mount) => Target::Component(Component { mount, home: self.home.as_ref() }),
            None => Target::Nothing,
        }
    }
}

/// Who answers at a path.
pub(crate) enum Target<'a> {
    Component(Component<'a>),
    Service(&'a Doors, Box<UserRoute>),
    Nothing,
}

pub(crate) struct Component<'a> {
    mount: &'a Mount,
    home: Option<&'a Handle>,
}

impl Component<'_> {
    /// Without the slash at its end.
    pub fn prefix(&self) -> &str {
        &self.mount.prefix
    }

    pub async fn call(&self, mut request: Request) -> Response {
        if self.mount.strip
            && let Some(uri) = without_prefix(request.uri(), &self.mount.prefix)
        {
            *request.uri_mut() = uri;
        }
        let router = self.mount.router.clone();
        if let Some(home) = self.home {
            return workers::at_home(home, router, request).await;
        }
        match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

fn without_prefix(uri: &Uri, prefix: &str) -> Option<Uri> {
    let rest = uri.path().strip_prefix(prefix)?;
    let text = match uri.query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(text.parse::<PathAndQuery>().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    async fn ask(mounts: &Mounts, path: &str) -> String {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let Target::Component(component) = mounts.find(request.uri().path()) else { panic!("{path}") };
        let bytes = axum::body::to_bytes(component.call(request).await.into_body(), 10_000).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_longest_whole_segment_prefix_wins() {
        let echo = |name: &'static str| Router::new().fallback(move |uri: Uri| async move { format!("{name} {uri}") });
        let mounts = Mounts::new().at("/", echo("pages")).at("/apis", echo("apis")).stripped("/pipeline", echo("kfp"));
        assert_eq!(ask(&mounts, "/apis/v1?x=1").await, "apis /apis/v1?x=1");
        assert_eq!(ask(&mounts, "/apisx").await, "pages /apisx");
        assert_eq!(ask(&mounts, "/pipeline/apis/v1?x=1").await, "kfp /apis/v1?x=1");
        assert_eq!(ask(&mounts, "/pipeline").await, "pages /pipeline");
        assert_eq!(ask(&mounts, "/pipeline/?x=2").await, "pages /pipeline/?x=2");
        assert!(matches!(Mounts::new().find("/x"), Target::Nothing));
    }
}
