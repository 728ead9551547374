//! Port-forward frames: SPDY/3.1 inside a WebSocket.

use crate::kubelet::Kubelet;
use axum::extract::ws::WebSocket;
use kfbox_base::Tasks;
use std::sync::Arc;

pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

pub async fn serve(_socket: WebSocket, _kubelet: Arc<dyn Kubelet>, _namespace: String, _pod: String, _tasks: Tasks) {}
