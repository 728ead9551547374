//! How the command line speaks to the daemon: JSON over HTTP on a Unix socket that only its owner can open. The socket
//! is the credential: whoever can open it is root on this machine.

mod client;
mod people;
mod server;

pub use client::Client;
pub use people::{ImportedUser, NewUser, People, SessionRow, TokenRow, UserChange, UserRow};
pub use server::{Backend, Control, serve};

use kfbox_base::readiness::ComponentStatus;
use kfbox_gateway::AcmeStatus;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `GET /v1/status`, and a line of `GET /v1/status/watch`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub instance: String,
    pub ready: bool,
    pub uptime_seconds: u64,
    /// Resident memory of the daemon in bytes, as `VmRSS` counts it.
    pub resident_bytes: u64,
    pub url: String,
    pub user: String,
    /// Where each protocol listens, by name.
    pub addresses: BTreeMap<String, String>,
    pub components: Vec<ComponentStatus>,
    /// How the gateway's certificate stands, when it comes from an ACME server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<AcmeStatus>,
    /// The first user's password: present until the first client that asks with `?claim` has read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

/// `GET /v1/images`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRow {
    pub name: String,
    pub id: String,
    pub size_bytes: u64,
    pub created: Option<String>,
}

/// `GET /v1/gpus`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Gpus {
    pub gpus: Vec<GpuRow>,
    /// By vendor, why none was found.
    pub absent: BTreeMap<String, String>,
}

/// An accelerator, or a MIG instance of one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuRow {
    pub vendor: String,
    pub index: String,
    pub id: String,
    pub name: String,
    pub memory_bytes: u64,
    pub driver: String,
    pub pci: String,
    /// What pods ask for to get it.
    pub resource: String,
    /// Why it is given to nobody; empty when it is well.
    pub fault: String,
    /// The pods that have it, as NAMESPACE/NAME.
    pub held_by: Vec<String>,
}

/// `POST /v1/images/{import,pull}` bodies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageRequest {
    /// Import: an absolute path of an archive or layout. Pull: unused.
    #[serde(default)]
    pub path: String,
    /// Import: the name to store under, if the archive's own should not serve. Pull: the image.
    #[serde(default)]
    pub name: Option<String>,
}

/// Lines that image work answers with, the last being `done` or `error`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum Progress {
    Layer { id: String, done: u64, total: u64 },
    Done { images: Vec<ImageRow> },
    Error { message: String },
}

/// `POST /v1/tokens`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRequest {
    pub user: Option<String>,
    pub name: String,
    pub expires_in_seconds: u64,
    /// `platform`, `kubernetes`; both, when empty.
    #[serde(default)]
    pub scopes: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenResponse {
    pub token: String,
    /// Names it in the list; not the secret.
    pub id: String,
}

/// `GET /v1/credentials/s3?namespace=`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct S3Credentials {
    pub endpoint: String,
    /// An address that is good on this machine and in its pods alike.
    pub endpoint_for_pods: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    pub bucket: String,
    /// The part of the bucket that is the namespace's own; nothing else in it may be listed, read or written.
    pub prefix: String,
    /// A bucket for itself alone.
    pub own_bucket: Option<String>,
}

/// `POST /v1/stop`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StopRequest {
    pub keep_pods: bool,
}

/// An error's body.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
    #[serde(default)]
    pub next: String,
}
