//! [`kfbox_gateway::user_routes::UserRoutes`] by the routes that the platform reads from the cluster's objects.

use futures::future::BoxFuture;
use kfbox_gateway::user_routes::{Asked, Backend, HeaderChanges, NoBackend, UserRoute, UserRoutes};
use kfbox_platform::routes::{self, Route, Routes, To};

pub struct ClusterRoutes(pub Routes);

fn changes(from: routes::HeaderChanges) -> HeaderChanges {
    let routes::HeaderChanges { set, add, remove } = from;
    HeaderChanges { set, add, remove }
}

fn to_gateway(route: Route) -> UserRoute {
    let Route { namespace, service, port, path, host, request, response, timeout } = route;
    UserRoute { namespace, service, port, path, host, request: changes(request), response: changes(response), timeout }
}

fn to(route: &UserRoute) -> To<'_> {
    To { namespace: &route.namespace, service: &route.service, port: route.port }
}

impl UserRoutes for ClusterRoutes {
    fn find(&self, path: &str) -> Option<UserRoute> {
        self.0.find(path).map(to_gateway)
    }

    fn admits<'a>(&'a self, route: &'a UserRoute, asked: Asked<'a>) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let asked = routes::Asked { user: asked.user, method: asked.method.as_str(), path: &route.path };
            self.0.admits(to(route), asked).await
        })
    }

    fn backend<'a>(&'a self, route: &'a UserRoute, again: bool) -> BoxFuture<'a, Result<Backend, NoBackend>> {
        Box::pin(async move {
            let (address, http2) = self.0.backend(to(route), again).await.map_err(NoBackend)?;
            Ok(Backend { address, http2 })
        })
    }
}
