//! The API server alone, for trying clients against it: `serve DATA_DIR` prints the path of a kubeconfig and serves on a
//! free port until it is interrupted.

use kfbox_apiserver::{ApiServer, Config};
use kfbox_base::Tasks;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir: std::path::PathBuf = std::env::args().nth(1).ok_or("usage: serve DATA_DIR")?.into();
    let started = std::time::Instant::now();
    let tasks = Tasks::new();
    let server = ApiServer::open(Config::new(&dir), &tasks).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    server.serve(listener, &tasks)?;
    let path = dir.join("admin.kubeconfig");
    std::fs::write(&path, server.admin_kubeconfig(&format!("https://{address}"))?.to_string())?;
    println!("{} ({:?})", path.display(), started.elapsed());
    tokio::signal::ctrl_c().await?;
    tasks.stop();
    tasks.drain(std::time::Duration::from_secs(5)).await;
    Ok(())
}
