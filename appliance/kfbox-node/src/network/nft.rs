//! The packet filter, driven by scripts for `nft -f -`: each script is one transaction, applied whole or not at all.
//! Source: nft(8).

use std::process::Stdio;
use tokio::io::AsyncWriteExt;

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("cannot run nft ({0}); install it with: apt-get install -y nftables")]
    Missing(#[source] std::io::Error),
    #[error("nft refused the rules: {stderr}")]
    Refused { stderr: String },
    #[error("talking to nft: {0}")]
    Io(#[source] std::io::Error),
}

/// Applies one transaction.
pub async fn apply(script: &str) -> Result<(), NftError> {
    run(&["-f", "-"], script).await.map(drop)
}

/// Runs nft and returns what it prints.
pub async fn run(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let spawn = |program: &str| {
        tokio::process::Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    };
    // Services are often started without the administrator's folders on the path.
    let mut child = spawn("nft").or_else(|_| spawn("/usr/sbin/nft")).map_err(NftError::Missing)?;
    let stdin = child.stdin.take();
    let write = async {
        match stdin {
            Some(mut stdin) => stdin.write_all(input.as_bytes()).await,
            None => Ok(()),
        }
    };
    // Together, because a full pipe on either side would stop the other.
    let (written, output) = tokio::join!(write, child.wait_with_output());
    let output = output.map_err(NftError::Io)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(NftError::Refused { stderr: stderr.chars().take(2000).collect() });
    }
    written.map_err(NftError::Io)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
