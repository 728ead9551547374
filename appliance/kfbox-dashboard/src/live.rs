//! Server-sent events: the page is told that something changed, and fetches its new parts.

use crate::data::ChangeStream;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt as _};
use std::{convert::Infallible, time::Duration};
use tokio_util::sync::CancellationToken;

/// At most three updates a second: more is flicker, and each costs the reading of the page.
const PAUSE: Duration = Duration::from_millis(300);
/// Changes taken together; any number means the same.
const MERGED: usize = 256;

pub fn events(
    changes: ChangeStream,
    shutdown: CancellationToken,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + Send> {
    let stream = async_stream::stream! {
        // The page may have been rendered before this stream was there to hear of changes.
        yield Ok(Event::default().event("changed").data("0").retry(Duration::from_secs(2)));
        let mut changes = changes.ready_chunks(MERGED);
        loop {
            tokio::select! {
                next = changes.next() => match next {
                    Some(_) => yield Ok(Event::default().event("changed").data("1")),
                    None => break,
                },
                () = shutdown.cancelled() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = shutdown.cancelled() => return,
            }
        }
        // Nothing more will come: the browser need not reconnect.
        yield Ok(Event::default().event("end").data("0"));
    };
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(20)))
}
