//! A real ACME server (acme2certifier) with an authority, a name server and an address of the test's own, ended with the
//! value. The gateway's own tests use this file too.

use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Names that the server gives certificates for, besides those below and its address.
pub const NAME: &str = "lab.example";

pub struct AcmeServer {
    child: Child,
    folder: tempfile::TempDir,
    /// Its directory's URL.
    pub directory: String,
    /// Where all names lead: of this machine, and nobody else's, so that its ports 80 and 443 are free.
    pub address: Ipv4Addr,
}

impl AcmeServer {
    /// With settings of `tests/clients/acme_server.py`, and keys of external accounts if it should want one.
    pub fn start(settings: &Value, external: Option<&Value>) -> std::io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("kfbox-acme-").tempdir()?;
        fs::write(folder.path().join("settings.json"), settings.to_string())?;
        if let Some(keys) = external {
            fs::write(folder.path().join("eab.json"), keys.to_string())?;
        }
        let [a, b, c] = rand::random::<[u8; 3]>();
        let address = Ipv4Addr::new(127, 64 | a & 63, b, c.clamp(1, 254));
        let cache = std::env::var_os("KFBOX_CACHE").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/kfbox"),
            PathBuf::from,
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|a| a.join("tests/clients/acme_server.py"));
        let script = script.into_iter().find(|path| path.exists()).unwrap_or_default();
        let mut child = Command::new(cache.join("venv-acme/bin/python"))
            .arg(script)
            .arg(folder.path())
            .arg(address.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(folder.path().join("log"))?)
            .spawn()?;
        let mut directory = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut directory)?;
        }
        let server = Self { child, folder, directory: directory.trim().to_owned(), address };
        match server.directory.is_empty() {
            true => Err(std::io::Error::other(format!("the ACME server does not start: {}", server.log()))),
            false => Ok(server),
        }
    }

    /// Changes settings while it runs.
    pub fn set(&self, change: &Value) -> std::io::Result<()> {
        let path = self.file("settings.json");
        let mut settings: Value = serde_json::from_slice(&fs::read(&path)?)?;
        for (name, value) in change.as_object().into_iter().flatten() {
            settings[name] = value.clone();
        }
        let temporary = self.file("settings.tmp");
        fs::write(&temporary, settings.to_string())?;
        fs::rename(temporary, path)
    }

    /// The certificate of its authority.
    pub fn authority(&self) -> PathBuf {
        self.file("ca.pem")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// From now on, requests to finalize wait until [`Self::release`].
    pub fn hold(&self) -> std::io::Result<()> {
        let path = self.file("hold");
        fs::write(&path, "")?;
        self.set(&json!({"hold": path}))
    }

    pub fn release(&self) -> std::io::Result<()> {
        fs::remove_file(self.file("hold"))
    }

    /// How often this path was asked for, since `seen` was set.
    pub fn seen(&self, path: &str) -> usize {
        let lines = fs::read_to_string(self.file("seen")).unwrap_or_default();
        lines.lines().filter(|line| line.ends_with(path)).count()
    }

    pub fn watch(&self) -> std::io::Result<()> {
        self.set(&json!({"seen": self.file("seen")}))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    pub fn stop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for AcmeServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the ACME server's log\n{}", self.log());
        }
        self.stop();
    }
}
