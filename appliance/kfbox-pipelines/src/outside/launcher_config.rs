//! The config map `kfp-launcher` of a namespace: where its runs keep their artifacts, and what opens the stores that its
//! artifacts lie in. Pure: texts in, settings out. Source: kubeflow/pipelines `backend/src/v2/config/{env,s3,minio,gcs}.go`,
//! and "Object Store Configuration" in Kubeflow's documentation. As upstream, names of fields are read in any case, the
//! first override that matches adds to the default, and a query in the address takes the place of all of it. Beyond
//! upstream, an unknown provider or field is refused: it is mostly a slip.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

pub(crate) const NAME: &str = "kfp-launcher";
const ROOT: &str = "defaultPipelineRoot";
const PROVIDERS: &str = "providers";
/// Upstream's.
const RETRIES: u32 = 5;
/// More only keeps a step waiting for a store that is not there.
const MOST_RETRIES: u32 = 20;
const MAX_OVERRIDES: usize = 1000;
/// Amazon's own default, for stores that have no regions.
const REGION: &str = "us-east-1";

/// Where a store's credentials are: names of a Secret's keys. `at` names the setting for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// In the step's environment, as upstream. Where there is no step, or it has none, requests are not signed: the daemon
    /// shows nobody its own.
    Environment,
    Keys {
        at: String,
        secret: String,
        access_key: String,
        secret_key: String,
    },
    Token {
        at: String,
        secret: String,
        key: String,
    },
}

/// What is known of the store that an address is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub endpoint: Option<String>,
    pub region: String,
    pub path_style: bool,
    pub max_retries: u32,
    pub credentials: Credentials,
}

impl Settings {
    /// Of a store that nothing is said about: Amazon's or Google's, for what everybody may read there.
    pub(crate) fn public() -> Self {
        Self {
            endpoint: None,
            region: REGION.into(),
            path_style: true,
            max_retries: 1,
            credentials: Credentials::Environment,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Entry {
    at: String,
    endpoint: Option<String>,
    region: Option<String>,
    disable_ssl: Option<bool>,
    path_style: Option<bool>,
    max_retries: Option<u32>,
    credentials: Option<Credentials>,
}

#[derive(Debug, Clone, Default)]
struct Override {
    bucket: String,
    prefix: String,
    entry: Entry,
}

#[derive(Debug, Clone, Default)]
struct Provider {
    at: String,
    default: Option<Entry>,
    overrides: Vec<Override>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct LauncherConfig {
    /// Empty when the namespace has none.
    pub root: String,
    providers: BTreeMap<String, Provider>,
}

impl LauncherConfig {
    /// An error names the field at fault and what it should be.
    pub(crate) fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let root = data.get(ROOT).map(|r| r.trim().to_owned()).unwrap_or_default();
        let text = data.get(PROVIDERS).map_or("", String::as_str);
        let parsed: Value = match text.trim().is_empty() {
            true => Value::Null,
            false => serde_yaml::from_str(text).map_err(|e| format!("{PROVIDERS} is no YAML: {e}"))?,
        };
        let mut providers = BTreeMap::new();
        for (name, value) in object(PROVIDERS, &parsed)? {
            let at = format!("{PROVIDERS}.{name}");
            if !matches!(name.as_str(), "s3" | "minio" | "gs") {
                return Err(format!("{at} is no provider: use s3, minio or gs"));
            }
            let fields = fields(&at, value, &["default", "overrides"])?;
            let default = fields.get("default").map(|v| entry(name, format!("{at}.default"), v, &[])).transpose()?;
            let mut overrides = Vec::new();
            for (n, value) in list(&format!("{at}.overrides"), fields.get("overrides").copied())?.iter().enumerate() {
                let at = format!("{at}.overrides[{n}]");
                let entry = entry(name, at.clone(), value, &["bucketName", "keyPrefix"])?;
                let own = self::fields(&at, value, ANY)?;
                let bucket = text_of(&at, "bucketName", &own)?.ok_or_else(|| format!("{at}.bucketName is missing"))?;
                let prefix = text_of(&at, "keyPrefix", &own)?.unwrap_or_default();
                overrides.push(Override { bucket, prefix: prefix.trim_matches('/').to_owned(), entry });
            }
            providers.insert(name.clone(), Provider { at, default, overrides });
        }
        Ok(Self { root, providers })
    }

    /// What opens `scheme://bucket/key`; `None` when nothing is said about stores of this scheme.
    pub(crate) fn settings(&self, scheme: &str, bucket: &str, key: &str) -> Result<Option<Settings>, String> {
        let Some(provider) = self.providers.get(scheme) else { return Ok(None) };
        let applies = |o: &&Override| {
            let rest = key.strip_prefix(o.prefix.as_str());
            o.bucket == bucket && (o.prefix.is_empty() || rest.is_some_and(|r| r.is_empty() || r.starts_with('/')))
        };
        let found = provider.overrides.iter().find(applies).map(|o| &o.entry);
        let (base, over) = match (&provider.default, found) {
            (None, None) if provider.overrides.is_empty() => return Ok(None),
            (None, None) => {
                return Err(format!("{}.default is missing, and no override is for {scheme}://{bucket}", provider.at));
            }
            (Some(default), found) => (default.clone(), found.cloned()),
            (None, Some(found)) => (found.clone(), None),
        };
        // An override without credentials is a mistake upstream too: its bucket is mostly another account's.
        let credentials = match &over {
            Some(over) => over.credentials.clone().ok_or_else(|| format!("{}.credentials is missing", over.at)),
            None => base.credentials.clone().ok_or_else(|| format!("{}.credentials is missing", base.at)),
        }?;
        let over = over.unwrap_or_default();
        let disable_ssl = over.disable_ssl.or(base.disable_ssl).unwrap_or(false);
        let named = over.endpoint.map(|e| (e, over.at)).or(base.endpoint.map(|e| (e, base.at)));
        let endpoint = named.map(|(e, at)| endpoint(&format!("{at}.endpoint"), &e, disable_ssl)).transpose()?.flatten();
        Ok(Some(Settings {
            endpoint,
            region: over.region.or(base.region).unwrap_or_else(|| REGION.into()),
            path_style: over.path_style.or(base.path_style).unwrap_or(true),
            max_retries: over.max_retries.or(base.max_retries).unwrap_or(RETRIES),
            credentials,
        }))
    }
}

/// What the query of an address says about its store, by the names that gocloud.dev's `s3blob` has for it.
pub(crate) fn from_query(query: &str) -> Result<Settings, String> {
    let mut settings = Settings { max_retries: RETRIES, ..Settings::public() };
    let (mut named, mut disable_ssl) = (None, false);
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let at = format!("the address's query: {name}");
        let value = percent_decode_str(&value.replace('+', " ")).decode_utf8().map(|v| v.into_owned());
        let value = value.map_err(|_| format!("{at} is no text"))?;
        match name {
            "region" => settings.region = value,
            "endpoint" => named = Some(value),
            "disableSSL" | "disable_https" => disable_ssl = truth(&at, &value)?,
            "s3ForcePathStyle" | "use_path_style" => settings.path_style = truth(&at, &value)?,
            // Said about libraries that are not used here, or true in any case.
            "awssdk" | "anonymous" | "hostname_immutable" | "rate_limiter_capacity" => {}
            _ => {
                return Err(format!(
                    "{at} is not known: use endpoint, region, disableSSL and s3ForcePathStyle, or name the store in \
                     the config map {NAME}"
                ));
            }
        }
    }
    settings.endpoint =
        named.map(|e| endpoint("the address's query: endpoint", &e, disable_ssl)).transpose()?.flatten();
    Ok(settings)
}

/// An endpoint with its scheme; `None` for Amazon's, which its region names.
fn endpoint(at: &str, text: &str, disable_ssl: bool) -> Result<Option<String>, String> {
    let text = text.trim().trim_end_matches('/');
    let host = text.to_ascii_lowercase();
    if text.is_empty() || host.strip_prefix("https://").unwrap_or(&host).starts_with("s3.amazonaws.com") {
        return Ok(None);
    }
    let full = match host.starts_with("http://") || host.starts_with("https://") {
        true => text.to_owned(),
        false if disable_ssl => format!("http://{text}"),
        false => format!("https://{text}"),
    };
    let uri: Option<http::Uri> = full.parse().ok();
    let fits = uri.is_some_and(|u| {
        u.authority().is_some_and(|a| !a.as_str().contains('@') && !a.host().is_empty()) && u.query().is_none()
    });
    if fits { Ok(Some(full)) } else { Err(format!("{at} should be like minio.example:9000 and is not")) }
}

const ENTRY: [&str; 6] = ["endpoint", "region", "disableSSL", "forcePathStyle", "maxRetries", "credentials"];
/// For a second look at an object whose fields are known to be right.
const ANY: &[&str] = &[];

fn entry(provider: &str, at: String, value: &Value, more: &[&str]) -> Result<Entry, String> {
    let known: Vec<&str> = match provider {
        "gs" => ["credentials"].iter().chain(more).copied().collect(),
        _ => ENTRY.iter().chain(more).copied().collect(),
    };
    let given = fields(&at, value, &known)?;
    let max_retries = match given.get(&"maxRetries".to_lowercase()) {
        None => None,
        Some(value) => {
            let number = value.as_i64().and_then(|n| u32::try_from(n).ok());
            let number = number.ok_or_else(|| format!("{at}.maxRetries should be a number"))?;
            // 0 is upstream's word for its default.
            Some(if number == 0 { RETRIES } else { number.min(MOST_RETRIES) })
        }
    };
    let credentials = match given.get("credentials") {
        None => None,
        Some(value) => Some(credentials(provider, &format!("{at}.credentials"), value)?),
    };
    Ok(Entry {
        endpoint: text_of(&at, "endpoint", &given)?,
        region: text_of(&at, "region", &given)?,
        disable_ssl: truth_of(&at, "disableSSL", &given)?,
        path_style: truth_of(&at, "forcePathStyle", &given)?,
        max_retries,
        credentials,
        at,
    })
}

fn credentials(provider: &str, at: &str, value: &Value) -> Result<Credentials, String> {
    let given = fields(at, value, &["fromEnv", "secretRef"])?;
    if truth_of(at, "fromEnv", &given)? == Some(true) {
        return Ok(Credentials::Environment);
    }
    let at = format!("{at}.secretRef");
    let reference = *given.get("secretref").ok_or_else(|| format!("{at} is missing, and fromEnv is not true"))?;
    let keys: &[&str] = if provider == "gs" { &["tokenKey"] } else { &["accessKeyKey", "secretKeyKey"] };
    let known: Vec<&str> = ["secretName"].iter().chain(keys).copied().collect();
    let given = fields(&at, reference, &known)?;
    let must = |name: &str| text_of(&at, name, &given)?.ok_or_else(|| format!("{at}.{name} is missing"));
    let secret = must("secretName")?;
    Ok(match provider {
        "gs" => Credentials::Token { secret, key: must("tokenKey")?, at: at.clone() },
        _ => Credentials::Keys {
            secret,
            access_key: must("accessKeyKey")?,
            secret_key: must("secretKeyKey")?,
            at: at.clone(),
        },
    })
}

fn object<'a>(at: &str, value: &'a Value) -> Result<Vec<(&'a String, &'a Value)>, String> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Object(map) => Ok(map.iter().collect()),
        _ => Err(format!("{at} should hold fields, such as {}", if at == PROVIDERS { "s3:" } else { "default:" })),
    }
}

type Fields<'a> = BTreeMap<String, &'a Value>;

/// Fields by their names in lower case, as Go's JSON reads them; null is as good as absent.
fn fields<'a>(at: &str, value: &'a Value, known: &[&str]) -> Result<Fields<'a>, String> {
    let map: &Map<String, Value> = match value {
        Value::Null => return Ok(Fields::new()),
        Value::Object(map) => map,
        _ => return Err(format!("{at} should hold fields")),
    };
    if let Some(name) = map.keys().find(|k| !known.is_empty() && !known.iter().any(|n| n.eq_ignore_ascii_case(k))) {
        return Err(format!("{at}.{name} is not known: use {}", known.join(", ")));
    }
    Ok(map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.to_lowercase(), v)).collect())
}

fn list<'a>(at: &str, value: Option<&'a Value>) -> Result<&'a [Value], String> {
    match value {
        None => Ok(&[]),
        Some(Value::Array(list)) if list.len() <= MAX_OVERRIDES => Ok(list),
        Some(_) => Err(format!("{at} should be a list of at most {MAX_OVERRIDES}")),
    }
}

fn text_of(at: &str, name: &str, given: &Fields<'_>) -> Result<Option<String>, String> {
    match given.get(&name.to_lowercase()) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|t| !t.is_empty())),
        Some(_) => Err(format!("{at}.{name} should be text")),
    }
}

fn truth_of(at: &str, name: &str, given: &Fields<'_>) -> Result<Option<bool>, String> {
    match given.get(&name.to_lowercase()) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(format!("{at}.{name} should be true or false")),
    }
}

/// Go's `strconv.ParseBool`.
fn truth(at: &str, text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{at} should be true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(providers: &str) -> Result<LauncherConfig, String> {
        LauncherConfig::parse(&[(PROVIDERS.to_owned(), providers.to_owned())].into())
    }

    const TWO: &str = "
s3:
  default:
    endpoint: s3.amazonaws.com
    disableSSL: false
    region: us-east-2
    credentials: {fromEnv: false, secretRef: {secretName: s, accessKeyKey: a, secretKeyKey: b}}
  Overrides:
  - {bucketName: lab, keyPrefix: data/raw/, endpoint: minio.lab:9000, disableSSL: true, forcePathStyle: false,
     maxRetries: 2, credentials: {secretRef: {secretName: t, accessKeyKey: a, secretKeyKey: b}}}
  - {bucketName: lab, credentials: {fromEnv: true}}
gs:
  default: {credentials: {secretRef: {secretName: g, tokenKey: key.json}}}
";

    #[test]
    fn overrides_add_to_the_default_and_the_first_that_matches_counts() {
        let config = parse(TWO).unwrap();
        let s3 = |bucket: &str, key: &str| config.settings("s3", bucket, key).unwrap().unwrap();
        let secret = |of: &Settings| match &of.credentials {
            Credentials::Keys { secret, .. } => secret.clone(),
            other => format!("{other:?}"),
        };
        let default = s3("other", "x");
        assert_eq!((default.endpoint.clone(), default.region.as_str(), default.max_retries), (None, "us-east-2", 5));
        assert!(default.path_style && secret(&default) == "s", "{default:?}");
        let raw = s3("lab", "data/raw/x.csv");
        assert_eq!(raw.endpoint.as_deref(), Some("http://minio.lab:9000"));
        assert_eq!((raw.region.as_str(), raw.path_style, raw.max_retries), ("us-east-2", false, 2));
        assert_eq!(secret(&raw), "t");
        // A prefix ends at a slash.
        assert_eq!(secret(&s3("lab", "data/rawer/x.csv")), "Environment");
        assert!(config.settings("minio", "lab", "x").unwrap().is_none());
        let gs = config.settings("gs", "b", "x").unwrap().unwrap();
        assert!(matches!(gs.credentials, Credentials::Token { ref key, .. } if key == "key.json"), "{gs:?}");
        assert!(LauncherConfig::parse(&BTreeMap::new()).unwrap().settings("s3", "b", "x").unwrap().is_none());
    }

    #[test]
    fn each_fault_names_its_field() {
        for (text, says) in [
            ("s3: [", "providers is no YAML"),
            ("just text", "providers should hold fields"),
            ("azure: {}", "providers.azure is no provider: use s3, minio or gs"),
            ("s3: {defaults: {}}", "providers.s3.defaults is not known: use default, overrides"),
            ("s3: {default: {endpiont: x}}", "providers.s3.default.endpiont is not known"),
            ("gs: {default: {endpoint: x}}", "providers.gs.default.endpoint is not known"),
            ("s3: {default: {disableSSL: 'yes'}}", "providers.s3.default.disableSSL should be true or false"),
            ("s3: {default: {maxRetries: many}}", "providers.s3.default.maxRetries should be a number"),
            ("s3: {default: {region: 5}}", "providers.s3.default.region should be text"),
            ("s3: {default: {credentials: {}}}", "providers.s3.default.credentials.secretRef is missing"),
            (
                "minio: {default: {credentials: {secretRef: {secretName: s, accessKeyKey: a}}}}",
                "providers.minio.default.credentials.secretRef.secretKeyKey is missing",
            ),
            ("s3: {overrides: [{keyPrefix: x}]}", "providers.s3.overrides[0].bucketName is missing"),
            ("s3: {overrides: 5}", "providers.s3.overrides should be a list"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        for (text, says) in [
            ("s3: {default: {endpoint: 'x y', credentials: {fromEnv: true}}}", "providers.s3.default.endpoint should"),
            ("s3: {default: {endpoint: 'http://u:p@x', credentials: {fromEnv: true}}}", "default.endpoint should"),
            ("s3: {default: {endpoint: x}}", "providers.s3.default.credentials is missing"),
            (
                "s3: {default: {credentials: {fromEnv: true}}, overrides: [{bucketName: b}]}",
                "providers.s3.overrides[0].credentials is missing",
            ),
            (
                "s3: {overrides: [{bucketName: other}]}",
                "providers.s3.default is missing, and no override is for s3://b",
            ),
        ] {
            let error = parse(text).unwrap().settings("s3", "b", "x").unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_query_says_where_the_store_is() {
        let found = from_query("endpoint=minio.lab%3A9000&region=here&disableSSL=true&s3ForcePathStyle=true").unwrap();
        assert_eq!(found.endpoint.as_deref(), Some("http://minio.lab:9000"));
        assert_eq!((found.region.as_str(), found.path_style), ("here", true));
        for (query, says) in [
            ("profile=admin", "profile is not known"),
            ("disableSSL=maybe", "disableSSL should be true or false"),
            ("endpoint=%ff", "endpoint is no text"),
            ("endpoint=a/b@c d", "endpoint should be like"),
        ] {
            let error = from_query(query).unwrap_err();
            assert!(error.contains(says), "{query}: {error}");
        }
    }
}
