//! The HTTP face of the cache.

use super::{
    Packages,
    download::{DownloadError, Opened},
    fetch::FetchError,
    index::IndexError,
    page::{self, HTML_TYPE, JSON_TYPE, is_file_name, is_sha256, normalise},
};
use axum::{
    Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;

pub fn router(packages: Packages) -> Router {
    Router::new()
        .route("/simple/", get(projects))
        .route("/simple/{project}", get(to_page))
        .route("/simple/{project}/", get(project))
        .route("/files/{sha256}/{name}", get(file))
        .with_state(packages)
}

/// The form of a page that the client likes best. `pip` names JSON first; a plain browser gets HTML.
fn wants_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let quality = |part: &str| {
        let q = part.split(';').find_map(|p| p.trim().strip_prefix("q=")?.parse::<f32>().ok());
        q.unwrap_or(1.0)
    };
    let best = |types: &[&str]| {
        accept
            .split(',')
            .filter(|part| types.contains(&part.split(';').next().unwrap_or("").trim()))
            .map(quality)
            .fold(0.0, f32::max)
    };
    let (json, html) = (best(&[JSON_TYPE, "application/vnd.pypi.simple.latest+json"]), best(&[HTML_TYPE, "text/html"]));
    json > 0.0 && json >= html
}

fn typed(content_type: &'static str, body: String) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    // The page changes when upstream's does; asking is cheap here.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=0"));
    response
}

fn refuse(status: StatusCode, message: &str) -> Response {
    (status, format!("{message}\n")).into_response()
}

async fn projects(State(packages): State<Packages>, headers: HeaderMap) -> Response {
    let listed = tokio::task::spawn_blocking(move || packages.inner.index.known()).await;
    let Ok(Ok(names)) = listed else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the cache folder cannot be listed");
    };
    if wants_json(&headers) {
        let projects: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
        return typed(JSON_TYPE, json!({"meta": {"api-version": "1.0"}, "projects": projects}).to_string());
    }
    let links: String = names.iter().map(|name| format!("<a href=\"{name}/\">{name}</a><br>\n")).collect();
    typed("text/html; charset=utf-8", format!("<!DOCTYPE html>\n<html><body>\n{links}</body></html>\n"))
}

async fn to_page(Path(project): Path<String>) -> Response {
    match normalise(&project) {
        Some(name) => redirect(&format!("/simple/{name}/")),
        None => refuse(StatusCode::NOT_FOUND, "this is not a project name"),
    }
}

fn redirect(to: &str) -> Response {
    match HeaderValue::from_str(to) {
        Ok(location) => (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, location)]).into_response(),
        Err(_) => refuse(StatusCode::NOT_FOUND, "no such page"),
    }
}

async fn project(State(packages): State<Packages>, Path(asked): Path<String>, headers: HeaderMap) -> Response {
    let Some(name) = normalise(&asked) else {
        return refuse(StatusCode::NOT_FOUND, "this is not a project name");
    };
    if name != asked {
        return redirect(&format!("/simple/{name}/"));
    }
    match packages.project(&name).await {
        Ok(files) if wants_json(&headers) => typed(JSON_TYPE, page::write_json(&name, &files).to_string()),
        Ok(files) => typed("text/html; charset=utf-8", page::write_html(&name, &files)),
        Err(error) => index_error(&error),
    }
}

fn index_error(error: &IndexError) -> Response {
    match error {
        IndexError::Absent => refuse(StatusCode::NOT_FOUND, "the package index does not have this"),
        IndexError::Fetch(FetchError::Timeout { .. }) => refuse(StatusCode::GATEWAY_TIMEOUT, &error.to_string()),
        IndexError::Fetch(_) => refuse(
            StatusCode::BAD_GATEWAY,
            &format!("{error}; nothing of this project was seen before, so that it cannot be served without the index"),
        ),
        IndexError::Disk(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn file(State(packages): State<Packages>, Path((sha256, name)): Path<(String, String)>) -> Response {
    if !is_sha256(&sha256) || !is_file_name(&name) {
        return refuse(StatusCode::NOT_FOUND, "this is not the address of a file");
    }
    let opened = match name.strip_suffix(".metadata") {
        Some(wheel) => metadata(&packages, &sha256, wheel).await,
        None => match packages.find(&sha256, &name).await {
            Ok(file) => packages.open_file(&file).await.map_err(|e| download_error(&e)),
            // The page may be gone while the file is not: what has the hash is the file.
            Err(error) => kept(&packages, &sha256).await.ok_or_else(|| index_error(&error)),
        },
    };
    match opened {
        Ok(opened) => {
            let mut response = opened.body.into_response();
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            // The address names the content.
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=31536000, immutable"));
            if let Some(length) = opened.length {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
            response
        }
        Err(response) => response,
    }
}

async fn kept(packages: &Packages, sha256: &str) -> Option<Opened> {
    packages.open_kept_file(sha256).await.ok().flatten()
}

async fn metadata(packages: &Packages, sha256: &str, wheel: &str) -> Result<Opened, Response> {
    let file = packages.find(sha256, wheel).await.map_err(|e| index_error(&e))?;
    let absent = || refuse(StatusCode::NOT_FOUND, "this file has no separate metadata");
    // Without a hash of its own it could not be verified; the installer then opens the wheel.
    let hash = file.metadata.and_then(|m| m.sha256).ok_or_else(absent)?;
    let mut url = file.url.clone();
    url.set_path(&format!("{}.metadata", file.url.path()));
    packages.open_url(&url, &hash).await.map_err(|e| download_error(&e))
}

fn download_error(error: &DownloadError) -> Response {
    let status = match error {
        DownloadError::Fetch(e) if e.is_absent() => StatusCode::NOT_FOUND,
        DownloadError::Fetch(FetchError::Timeout { .. }) => StatusCode::GATEWAY_TIMEOUT,
        DownloadError::Fetch(_) | DownloadError::Broken(_) | DownloadError::Hash => StatusCode::BAD_GATEWAY,
        DownloadError::TooLarge(_) => StatusCode::INSUFFICIENT_STORAGE,
        DownloadError::Disk(_) => StatusCode::INTERNAL_SERVER_ERROR,
        DownloadError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    };
    refuse(status, &error.to_string())
}
