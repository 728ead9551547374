//! The package cache alone, to try installers against: `cargo run --example package_cache -- FOLDER [INDEX-URL]`.

use kfbox_base::Tasks;
use kfbox_platform::packages::{Config, Packages};

#[tokio::main]
async fn main() -> Result<(), kfbox_base::BoxError> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: package_cache FOLDER [INDEX-URL]")?;
    let index = arguments.next().unwrap_or_else(|| "https://pypi.org/simple".into());
    let tasks = Tasks::new();
    let packages = Packages::open(Config::new(folder.into(), index.parse()?), &tasks)?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}/simple", listener.local_addr()?);
    axum::serve(listener, packages.router()).await?;
    Ok(())
}
