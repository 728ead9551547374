//! Pipeline packages by URL, from the addresses that the settings name and no other.

use crate::{
    config,
    failure::{Code, Failure},
};
use futures::future::BoxFuture;
use kfbox_pipelines::{PackageError, PackageSource};
use kfbox_platform::packages::{Url, small_file};
use std::path::PathBuf;

pub struct PipelinePackages {
    allowed: Vec<Url>,
    ca_bundle: Option<PathBuf>,
}

impl PipelinePackages {
    pub fn new(pipelines: &config::Pipelines, packages: &config::Packages) -> anyhow::Result<Self> {
        let parse = |text: &String| {
            let url = text.parse::<Url>().ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
            url.ok_or_else(|| {
                let message = format!("pipelines.package_urls: {text:?} is no http or https address");
                Failure::new(Code::Configuration, message, "name addresses such as https://pipelines.lab.example/")
            })
        };
        let allowed = pipelines.package_urls.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { allowed, ca_bundle: packages.ca_bundle.clone() })
    }
}

/// The same scheme, host and port, and a path below.
fn below(url: &Url, allowed: &Url) -> bool {
    let path = allowed.path();
    url.origin() == allowed.origin()
        && url.username().is_empty()
        && url.password().is_none()
        && url
            .path()
            .strip_prefix(path)
            .is_some_and(|rest| path.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
}

impl PackageSource for PipelinePackages {
    fn fetch<'a>(&'a self, url: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<u8>, PackageError>> {
        Box::pin(async move {
            let url: Url = url.parse().map_err(|e| PackageError::Refused(format!("it is no URL: {e}")))?;
            let within = |url: &Url| self.allowed.iter().any(|a| below(url, a));
            if !within(&url) {
                return Err(PackageError::Refused(
                    "it is not below an address that the setting pipelines.package_urls names; upload the package instead"
                        .into(),
                ));
            }
            let fetched = small_file(&url, self.ca_bundle.as_deref(), limit, &within).await;
            fetched.map(|bytes| bytes.to_vec()).map_err(|e| PackageError::Failed(e.to_string()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_addresses_below_those_named_are_asked() {
        let settings = config::Pipelines {
            package_urls: vec!["https://lab.example/pipelines".into(), "http://127.0.0.1:1/".into()],
            ..config::Pipelines::default()
        };
        let source = PipelinePackages::new(&settings, &config::Packages::default()).unwrap();
        for refused in [
            "https://lab.example/pipelines-of-others/x.yaml",
            "https://lab.example/pipelines/../secret.yaml",
            "https://lab.example/pipelines/%2e%2e/secret.yaml",
            "http://lab.example/pipelines/x.yaml",
            "https://lab.example:8443/pipelines/x.yaml",
            "https://ann:pw@lab.example/pipelines/x.yaml",
            "http://127.0.0.1:2/x.yaml",
            "http://169.254.169.254/latest/meta-data",
            "file:///etc/passwd",
            "not a url",
        ] {
            let error = source.fetch(refused, 10).await.unwrap_err();
            assert!(matches!(error, PackageError::Refused(_)), "{refused}: {error}");
        }
        let closed = source.fetch("http://127.0.0.1:1/x.yaml", 10).await.unwrap_err();
        assert!(matches!(closed, PackageError::Failed(_)), "{closed}");
        let wrong = config::Pipelines { package_urls: vec!["lab".into()], ..config::Pipelines::default() };
        assert!(PipelinePackages::new(&wrong, &config::Packages::default()).is_err());
    }
}
