//! Bodies of requests that the gateway and its components read. One that stops coming is given up, so that nobody holds
//! connections by halves of forms; uploads to people's Services are for these to judge.
//!
//! Guarantees: only silence counts, and only while somebody waits to read; a request without a body costs nothing.

use crate::guard;
use axum::{body::Body, extract::Request, response::Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

#[derive(Debug, thiserror::Error)]
#[error("nothing more came of the request's body")]
struct Silent;

/// What becomes of the answer to a request whose body was watched. `None`: there was none to watch.
pub(crate) struct Upload(Option<(Arc<AtomicBool>, Version)>);

/// Gives the body up after this long without a byte.
pub(crate) fn watch(request: Request, patience: Duration) -> (Request, Upload) {
    // What upgrades has no body, unless it says that it has one.
    if request.body().is_end_stream() {
        return (request, Upload(None));
    }
    let (given_up, version) = (Arc::new(AtomicBool::new(false)), request.version());
    let told = given_up.clone();
    let request =
        request.map(|body| Body::new(Watched { body, patience, since: None, waiting: false, given_up: told }));
    (request, Upload(Some((given_up, version))))
}

impl Upload {
    /// Who could not read a body says so in its own words, of which none fits as well as the status for it.
    pub fn finish(self, response: Response) -> Response {
        let Some((given_up, version)) = self.0 else { return response };
        let failed = response.status().is_client_error() || response.status().is_server_error();
        if !failed || !given_up.load(Ordering::Relaxed) {
            return response;
        }
        let mut response = guard::problem(StatusCode::REQUEST_TIMEOUT, "timeout", "the request's body did not come");
        if version < Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

struct Watched {
    body: Body,
    patience: Duration,
    /// Made when somebody first waits, on the runtime where they do.
    since: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    given_up: Arc<AtomicBool>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.waiting = false;
            return Poll::Ready(frame);
        }
        let patience = this.patience;
        let sleep = this.since.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        if !std::mem::replace(&mut this.waiting, true) {
            sleep.as_mut().reset(Instant::now() + patience);
        }
        ready!(sleep.as_mut().poll(cx));
        this.given_up.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Err(axum::Error::new(Silent))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt as _, channel::mpsc};
    use http_body_util::BodyExt as _;
    use std::convert::Infallible;

    /// Longer than any test takes.
    const PATIENCE: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn only_silence_counts_and_each_byte_begins_it_anew() {
        let (sender, chunks) = mpsc::unbounded::<Result<Bytes, Infallible>>();
        let given_up = Arc::new(AtomicBool::new(false));
        let body = Body::from_stream(chunks);
        let mut body = Watched { body, patience: PATIENCE, since: None, waiting: false, given_up: given_up.clone() };
        assert!(body.since.is_none(), "no timer before somebody waits");
        assert!(body.frame().now_or_never().is_none());
        let first = body.since.as_ref().unwrap().deadline();
        assert!(body.frame().now_or_never().is_none());
        assert_eq!(body.since.as_ref().unwrap().deadline(), first, "asking again is no byte");
        sender.unbounded_send(Ok(Bytes::from_static(b"x"))).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "x");
        assert!(body.frame().now_or_never().is_none());
        assert!(body.since.as_ref().unwrap().deadline() > first);
        sender.unbounded_send(Ok(Bytes::from_static(b"y"))).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "y");
        assert!(!given_up.load(Ordering::Relaxed));
        body.patience = Duration::from_millis(10);
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), Silent.to_string());
        assert!(given_up.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn only_a_failure_for_want_of_the_body_is_told_as_such() {
        let ask = |body: Body| watch(Request::new(body), PATIENCE).1;
        assert!(ask(Body::empty()).0.is_none());
        let upgrade = Request::post("/").header(header::UPGRADE, "x").body(Body::from("x")).unwrap();
        assert!(watch(upgrade, PATIENCE).1.0.is_some(), "no word gets around it");
        let answer = |status: StatusCode| {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = status;
            response
        };
        assert_eq!(ask(Body::from("x")).finish(answer(StatusCode::BAD_REQUEST)).status(), StatusCode::BAD_REQUEST);
        for (before, after) in [(400, 408), (500, 408), (200, 200), (303, 303)] {
            let upload = ask(Body::from("x"));
            upload.0.as_ref().unwrap().0.store(true, Ordering::Relaxed);
            let response = upload.finish(answer(StatusCode::from_u16(before).unwrap()));
            assert_eq!(response.status(), after);
            assert_eq!(response.headers().contains_key(header::CONNECTION), after == 408);
        }
    }
}
