//! How fast the store puts and gets, in-process: `objects_bench DATA_DIR`. Every put is durable when it is counted.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use kfbox_base::{BoxError, Tasks};
use kfbox_objects::{Config, Objects};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

const LARGE: usize = 512 * 1024 * 1024;
const SMALL: usize = 4096;
const COUNT: usize = 2000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data_dir = PathBuf::from(std::env::args().nth(1).ok_or("usage: objects_bench DATA_DIR")?);
    std::fs::create_dir_all(&data_dir)?;
    let tasks = Tasks::new();
    let objects = Objects::open(Config { data_dir, region: "us-east-1".into() }, &tasks).await?;
    objects.ensure_bucket("bench").await?;

    let chunk = Bytes::from(vec![7_u8; 256 * 1024]);
    let body = || stream::iter((0..LARGE / chunk.len()).map(|_| Ok::<_, BoxError>(chunk.clone())));
    let start = Instant::now();
    objects.put("bench", "large", body(), None).await?;
    rate("put of 512 MiB", LARGE, start.elapsed());
    let start = Instant::now();
    let (_, content) = objects.get("bench", "large", None).await?;
    let read: usize = content.try_fold(0, |n, chunk| async move { Ok(n + chunk.len()) }).await?;
    rate("get of 512 MiB", read, start.elapsed());

    for width in [1, 32] {
        let start = Instant::now();
        let puts = stream::iter(0..COUNT).map(|n| {
            let objects = &objects;
            async move { objects.put_bytes("bench", &format!("small/{width}/{n}"), vec![1; SMALL], None).await }
        });
        puts.buffer_unordered(width).try_collect::<Vec<_>>().await?;
        operations(&format!("put of 4 KiB, {width} at a time"), start.elapsed());
        let start = Instant::now();
        let gets = stream::iter(0..COUNT).map(|n| {
            let objects = &objects;
            async move { objects.get("bench", &format!("small/{width}/{n}"), None).await }
        });
        gets.buffer_unordered(width).try_collect::<Vec<_>>().await?;
        operations(&format!("get of 4 KiB, {width} at a time"), start.elapsed());
    }
    tasks.stop();
    tasks.drain(Duration::from_secs(5)).await;
    Ok(())
}

fn rate(what: &str, bytes: usize, took: Duration) {
    println!("{what}: {:.0} MB/s", bytes as f64 / 1e6 / took.as_secs_f64());
}

fn operations(what: &str, took: Duration) {
    println!("{what}: {:.0}/s", COUNT as f64 / took.as_secs_f64());
}
