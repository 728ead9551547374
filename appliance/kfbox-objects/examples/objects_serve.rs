//! An object store alone: `objects_serve DATA_DIR [ADDRESS]`. Prints its address and where its credential lies.

use kfbox_base::Tasks;
use kfbox_objects::{Config, Objects};
use std::{path::PathBuf, time::Duration};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let data_dir = PathBuf::from(arguments.next().ok_or("usage: objects_serve DATA_DIR [ADDRESS]")?);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());
    std::fs::create_dir_all(&data_dir)?;
    let tasks = Tasks::new();
    let config = Config { data_dir: data_dir.clone(), region: "us-east-1".into() };
    let objects = Objects::open(config, &tasks).await?;
    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("http://{} {}", listener.local_addr()?, data_dir.join("objects-admin.json").display());
    objects.serve(listener, &tasks);
    tokio::select! {
        stopped = tasks.stopped() => stopped?,
        signal = tokio::signal::ctrl_c() => signal?,
    }
    tasks.stop();
    tasks.drain(Duration::from_secs(5)).await;
    Ok(())
}
