//! A metadata store alone: `metadata_serve DATA_DIR`. Prints an address in the clear where every caller is one tenant (`ann`, who
//! may also read and write `shared`), and one where every caller is another (`bob`).

use futures::future::BoxFuture;
use kfbox_base::{BoxError, Tasks, UserInfo};
use kfbox_metadata::{Access, Config, Grants, IdentifyAddress, Metadata, Namespaces};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// Everybody owns the namespace of their own name.
struct Own;

impl Access for Own {
    fn grants<'a>(&'a self, caller: &'a UserInfo) -> BoxFuture<'a, Result<Grants, BoxError>> {
        let mut names = vec![caller.username.clone()];
        names.extend((caller.username == "ann").then(|| "shared".to_owned()));
        let these = Namespaces::These(names);
        let grants = Grants { home: Some(caller.username.clone()), read: these.clone(), write: these };
        Box::pin(async move { Ok(grants) })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data_dir = PathBuf::from(std::env::args().nth(1).ok_or("usage: metadata_serve DATA_DIR")?);
    std::fs::create_dir_all(&data_dir)?;
    let tasks = Tasks::new();
    let metadata = Metadata::open(Config { data_dir }, Arc::new(Own))?;
    for name in ["ann", "bob"] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let identify: IdentifyAddress =
            Arc::new(move |_| Box::pin(async move { Some(UserInfo::new(name, [])) }) as BoxFuture<'static, _>);
        metadata.serve_plain(listener, identify, &tasks);
    }
    tokio::select! {
        stopped = tasks.stopped() => stopped?,
        signal = tokio::signal::ctrl_c() => signal?,
    }
    tasks.stop();
    tasks.drain(Duration::from_secs(5)).await;
    Ok(())
}
