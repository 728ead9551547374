//! The end of a namespace: what it owns here ends with it, as its volumes do, so that a namespace which gets the name
//! later inherits nothing. Invariant: no run is left that could start a pod before its rows are gone.

use crate::{
    Inner,
    error::{ApiError, ApiResult},
    store::Forgotten,
};

pub(crate) async fn forget(inner: &Inner, namespace: &str) -> ApiResult<Forgotten> {
    if !crate::rest::is_label(namespace) {
        return Err(ApiError::invalid(format!("`{namespace}` is no namespace")));
    }
    inner.ending.lock().insert(namespace.to_owned());
    let recurring_runs = inner.store.forget_recurring_of(namespace).await?;
    inner.schedule.wake();
    let mut runs = 0;
    loop {
        let ids = inner.store.runs_of(namespace).await?;
        if ids.is_empty() {
            break;
        }
        for id in ids {
            let Some(row) = inner.store.run(&id).await? else { continue };
            inner.engine.delete(&row).await?;
            runs += 1;
        }
    }
    let mut forgotten = inner.store.forget_namespace(namespace).await?;
    forgotten.runs = runs;
    forgotten.recurring_runs = recurring_runs;
    Ok(forgotten)
}
