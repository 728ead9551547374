//! `VisualizationService`: a picture of what a run left, as one HTML page without scripts. Tables and ROC curves are
//! drawn here from CSV in the caller's own namespace; TFDV, TFMA and CUSTOM run Python of TensorFlow's or of the caller's
//! (`backend/src/apiserver/visualization` upstream: in a pod of their namespace, with all of TensorFlow in its image). They are
//! not offered, since a step does the same with the caller's own image: the answer says how.
//! Invariants: what comes out is escaped; nothing outside the namespace's root is read.

use super::{App, Caller, GROUP, is_label, json_body, text_field};
use crate::{
    Inner,
    error::{ApiError, ApiResult, Code},
    outside::Found,
    ports::StoreError,
};
use axum::{Json, body::Body, extract::Path};
use futures::StreamExt;
use kfbox_base::ResourceAttributes;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Bytes of CSV that are drawn: what a person can look at is far less.
const MAX_SOURCE: usize = 4 << 20;
const MAX_FILES: usize = 100;
/// `VisualizationType`, by number.
const TYPES: [&str; 5] = ["ROC_CURVE", "TFDV", "TFMA", "TABLE", "CUSTOM"];

pub(super) async fn create(
    app: App,
    Caller(user): Caller,
    Path(namespace): Path<String>,
    body: Body,
) -> ApiResult<Json<Value>> {
    if !is_label(&namespace) {
        return Err(ApiError::invalid(format!("`{namespace}` is no namespace")));
    }
    app.allow(&user, ResourceAttributes::namespaced("create", GROUP, "visualizations", &namespace)).await?;
    let mut body = json_body(body).await?;
    let kind = match super::field(&body, "type") {
        None => TYPES.first(),
        Some(Value::String(name)) => TYPES.iter().find(|t| *t == name),
        Some(n) => n.as_u64().and_then(|n| TYPES.get(usize::try_from(n).ok()?)),
    };
    let kind = *kind.ok_or_else(|| ApiError::invalid(format!("type should be one of {}", TYPES.join(", "))))?;
    let (source, arguments) = (text_field(&body, "source")?, text_field(&body, "arguments")?);
    let arguments: Value = serde_json::from_str(if arguments.is_empty() { "{}" } else { &arguments })
        .map_err(|e| ApiError::invalid(format!("arguments should be JSON: {e}")))?;
    if source.is_empty() && kind != "CUSTOM" {
        return Err(ApiError::invalid("source is missing: the URI of the CSV files, which may end in *"));
    }
    let html = match kind {
        "TABLE" => table(&rows(&app, &namespace, &source).await?, &arguments)?,
        "ROC_CURVE" => roc(&rows(&app, &namespace, &source).await?, &arguments)?,
        other => {
            return Err(ApiError::new(
                Code::Unimplemented,
                format!(
                    "{other} visualizations run Python, which kfbox does in a namespace's own pods only: {}, and \
                     write the page to an output of type dsl.HTML, which the run's page shows",
                    instead_of(other)
                ),
            ));
        }
    };
    body["type"] = json!(kind);
    body["html"] = json!(html);
    Ok(Json(body))
}

/// How a step makes the page that upstream's visualization server would have made.
fn instead_of(kind: &str) -> &'static str {
    match kind {
        "TFDV" => {
            "in a step, install tensorflow-data-validation, call \
             tensorflow_data_validation.utils.display_util.get_statistics_html"
        }
        "TFMA" => "in a step, install tensorflow-model-analysis, load the result and draw it",
        _ => "put the code into a step",
    }
}

async fn rows(app: &Inner, namespace: &str, source: &str) -> ApiResult<Vec<Vec<Vec<String>>>> {
    let many = source.strip_suffix('*');
    let found = app.locate(namespace, many.unwrap_or(source).trim_end_matches('/'), "").await;
    let Found { store, at, .. } = found.map_err(|e| ApiError::invalid(format!("the source: {e}")))?;
    let failed = |e| match e {
        StoreError::Outside(why) => ApiError::new(Code::FailedPrecondition, why),
        e => ApiError::internal("reading the visualization's source", e),
    };
    let keys = match many {
        None => vec![at.key],
        Some(_) => {
            let found = store.list(&at.bucket, &at.key).await.map_err(failed)?;
            found.into_iter().map(|o| o.key).take(MAX_FILES).collect()
        }
    };
    let (mut files, mut size) = (Vec::new(), 0);
    for key in keys {
        let absent = |e| match e {
            StoreError::NotFound => ApiError::not_found("the visualization's source", source),
            other => failed(other),
        };
        let (_, mut content) = store.get(&at.bucket, &key).await.map_err(absent)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = content.next().await {
            bytes.extend_from_slice(&chunk.map_err(|e| ApiError::internal("reading the visualization's source", e))?);
            if size + bytes.len() > MAX_SOURCE {
                return Err(ApiError::invalid(format!("the source is larger than {} MiB", MAX_SOURCE >> 20)));
            }
        }
        size += bytes.len();
        files.push(csv(&String::from_utf8_lossy(&bytes)));
    }
    if files.is_empty() { Err(ApiError::not_found("the visualization's source", source)) } else { Ok(files) }
}

/// RFC 4180, and lines that end in a bare newline.
fn csv(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut cell)),
            '\r' if !quoted && chars.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            other => cell.push(other),
        }
    }
    if !cell.is_empty() || !row.is_empty() {
        row.push(cell);
        rows.push(row);
    }
    rows.retain(|r| r.iter().any(|c| !c.is_empty()));
    rows
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "<style>body{font:14px system-ui,sans-serif;margin:1em}table{border-collapse:collapse}\
                     th,td{border:1px solid #8888;padding:.3em .6em;text-align:left}</style>";

/// With `headers` in the arguments all rows are data, else each file's first names the columns.
fn table(files: &[Vec<Vec<String>>], arguments: &Value) -> ApiResult<String> {
    let given: Option<Vec<String>> = match arguments.get("headers") {
        None | Some(Value::Null | Value::Bool(false)) => None,
        Some(value) => Some(
            serde_json::from_value(value.clone())
                .map_err(|_| ApiError::invalid("arguments.headers should be a list of strings"))?,
        ),
    };
    let skip = usize::from(given.is_none());
    let headers = given.or_else(|| files.first()?.first().cloned()).unwrap_or_default();
    let cells = |row: &[String], tag: &str| {
        row.iter().fold(String::new(), |mut all, c| {
            let _ = write!(all, "<{tag}>{}</{tag}>", escaped(c));
            all
        })
    };
    let body = files.iter().flat_map(|f| f.iter().skip(skip)).fold(String::new(), |mut all, row| {
        let _ = write!(all, "<tr>{}</tr>", cells(row, "td"));
        all
    });
    Ok(format!(
        "<!doctype html><meta charset=utf-8>{STYLE}<table><thead><tr>{}</tr></thead><tbody>{body}</tbody></table>",
        cells(&headers, "th")
    ))
}

/// `is_generated`: rows are false positive rate, true positive rate, threshold. Otherwise the first row names columns, of
/// which `target` holds the class (`trueclass`, "true" unless said) and `true_score_column` ("true") its score.
fn roc(files: &[Vec<Vec<String>>], arguments: &Value) -> ApiResult<String> {
    let number = |text: &str| -> ApiResult<f64> {
        let read = text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
        read.ok_or_else(|| ApiError::invalid(format!("`{text}` in the source is no number")))
    };
    if arguments.get("target_lambda").is_some() {
        return Err(ApiError::invalid("target_lambda is Python, which is not run here; give a column called target"));
    }
    let mut points: Vec<(f64, f64)> = Vec::new();
    if arguments.get("is_generated").and_then(Value::as_bool) == Some(true) {
        for row in files.iter().flatten() {
            let [fpr, tpr, ..] = row.as_slice() else {
                return Err(ApiError::invalid("a row of the source has no fpr and tpr"));
            };
            points.push((number(fpr)?, number(tpr)?));
        }
    } else {
        let text = |name: &str| arguments.get(name).and_then(Value::as_str).unwrap_or("true").to_owned();
        let (class, score) = (text("trueclass"), text("true_score_column"));
        let mut scored: Vec<(f64, bool)> = Vec::new();
        for file in files {
            let (Some(names), rows) = (file.first(), file.iter().skip(1)) else { continue };
            let at = |wanted: &str| {
                let found = names.iter().position(|n| n.trim() == wanted);
                found.ok_or_else(|| ApiError::invalid(format!("the source has no column called {wanted}")))
            };
            let (target, score) = (at("target")?, at(&score)?);
            for row in rows {
                let cell = |at: usize| row.get(at).map_or("", String::as_str);
                scored.push((number(cell(score))?, cell(target).trim() == class));
            }
        }
        points = curve(scored);
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let area: f64 = points.windows(2).map(|w| (w[1].0 - w[0].0) * (w[0].1 + w[1].1) / 2.0).sum();
    let path = points.iter().fold(String::new(), |mut all, (x, y)| {
        let _ = write!(all, "{:.2},{:.2} ", 40.0 + x * 400.0, 410.0 - y * 400.0);
        all
    });
    Ok(format!(
        "<!doctype html><meta charset=utf-8>{STYLE}<svg viewBox='0 0 460 450' width=460 role=img \
         aria-label='ROC curve, area {area:.3}'><rect x=40 y=10 width=400 height=400 fill=none stroke=#888 />\
         <line x1=40 y1=410 x2=440 y2=10 stroke=#888 stroke-dasharray=4 />\
         <polyline points='{path}' fill=none stroke=#1a73e8 stroke-width=2 />\
         <text x=240 y=440 text-anchor=middle>false positive rate</text>\
         <text x=15 y=210 text-anchor=middle transform='rotate(-90 15 210)'>true positive rate</text>\
         <text x=430 y=400 text-anchor=end>area {area:.3}</text></svg>"
    ))
}

/// Rates at each threshold, from the highest score down.
fn curve(mut scored: Vec<(f64, bool)>) -> Vec<(f64, f64)> {
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    #[expect(clippy::cast_precision_loss, reason = "counts of rows in a few MiB")]
    let rate = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let positives = scored.iter().filter(|s| s.1).count();
    let negatives = scored.len() - positives;
    let (mut points, mut hits, mut misses) = (vec![(0.0, 0.0)], 0, 0);
    for (at, (score, is_positive)) in scored.iter().enumerate() {
        if *is_positive {
            hits += 1
        } else {
            misses += 1
        }
        // Rows with equal scores lie on one side of every threshold.
        if scored.get(at + 1).is_none_or(|next| next.0 < *score) {
            points.push((rate(misses, negatives), rate(hits, positives)));
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_cells_keep_their_commas_and_markup_is_escaped() {
        let rows = csv("a,\"b, \"\"c\"\"\"\r\n1,<script>\n\n");
        assert_eq!(rows, [vec!["a".to_owned(), "b, \"c\"".to_owned()], vec!["1".to_owned(), "<script>".to_owned()]]);
        let html = table(&[rows], &json!({})).unwrap();
        assert!(html.contains("<th>b, &quot;c&quot;</th>") && html.contains("<td>&lt;script&gt;</td>"), "{html}");
    }

    #[test]
    fn a_perfect_classifier_has_area_one_and_ties_make_one_step() {
        let text = "target,true\nyes,0.9\nyes,0.8\nno,0.1\n";
        let html = roc(&[csv(text)], &json!({"trueclass": "yes"})).unwrap();
        assert!(html.contains("area 1.000"), "{html}");
        let tied = roc(&[csv("target,true\nyes,0.5\nno,0.5\n")], &json!({"trueclass": "yes"})).unwrap();
        assert!(tied.contains("area 0.500"), "{tied}");
        assert!(roc(&[csv("x,y\n1,2\n")], &json!({})).unwrap_err().message.contains("column called target"));
    }
}
