//! exec and attach over SPDY: one stream each for `error`, `stdin`, `stdout`, `stderr` and `resize`, as far as they were
//! asked for. Guarantees: all output is sent before the outcome, and the outcome before the connection's end.
//! Source: `k8s.io/kubelet/pkg/cri/streaming/remotecommand/httpstream.go`.

use super::{
    Incoming, Outgoing,
    frames::{Frame, Headers, Inflate, PING, REFUSED, control, data, goaway, reply, reset},
};
use crate::{
    kubelet::{ExecSession, Exit, KubeletError, Streams, TerminalSize},
    subresources::streams::{outcome, receive, terminal_size},
};
use bytes::Bytes;
use std::{collections::HashMap, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// How long the client may take to open its streams: what upstream's kubelet gives it.
const OPEN: Duration = Duration::from_secs(30);

/// How long the connection stays for the client to read what was sent last.
const LINGER: Duration = Duration::from_secs(10);

/// Frames queued for the client besides output: replies and pongs.
const QUEUE: usize = 64;

/// A terminal's size in JSON has some 30 bytes; more than this without a line's end is none.
const RESIZE_LIMIT: usize = 1 << 10;

/// What was asked for.
pub struct Remote {
    pub streams: Streams,
    /// Version 3 of the protocol on: a terminal can change its size.
    pub resizable: bool,
    /// Version 4 on: the outcome is a Status; before, a failure is text and success is nothing.
    pub status: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Error,
    Stdin,
    Stdout,
    Stderr,
    Resize,
}

impl Kind {
    fn of(headers: &Headers) -> Option<Self> {
        Some(match headers.get("streamtype")?.as_str() {
            "error" => Self::Error,
            "stdin" => Self::Stdin,
            "stdout" => Self::Stdout,
            "stderr" => Self::Stderr,
            "resize" => Self::Resize,
            _ => return None,
        })
    }
}

/// The client's streams by what they carry.
type Ids = HashMap<Kind, u32>;

struct Opened {
    ids: Ids,
    inflate: Inflate,
    last: u32,
}

pub async fn serve<F>((mut incoming, mut outgoing): (Incoming, Outgoing), remote: Remote, start: F)
where
    F: Future<Output = Result<ExecSession, KubeletError>> + Send,
{
    let opened = match tokio::time::timeout(OPEN, open(&mut incoming, &mut outgoing, &remote)).await {
        Ok(Some(opened)) => opened,
        Ok(None) | Err(_) => {
            outgoing.close().await;
            return;
        }
    };
    let ids = opened.ids.clone();
    let last = opened.last;
    let exit = match start.await {
        Ok(session) => carry(&mut incoming, &mut outgoing, opened, session).await,
        Err(error) => Some(Exit::Failed(error.to_string())),
    };
    // None: the client is gone, and the session, dropped, has hung up.
    if let Some(exit) = exit {
        let text = outcome(remote.status, &exit).unwrap_or_default();
        let error = ids.get(&Kind::Error).map(|id| data(*id, true, text.as_bytes()));
        let others = ids.iter().filter(|(kind, _)| matches!(kind, Kind::Stdin | Kind::Resize));
        let ends = others.map(|(_, id)| data(*id, true, &[]));
        for frame in error.into_iter().chain(ends).chain([goaway(last)]) {
            if !outgoing.send(frame).await {
                return;
            }
        }
    }
    outgoing.close().await;
    drop(tokio::time::timeout(LINGER, incoming.drain()).await);
}

/// Takes the client's streams until all that were asked for are there. None when the client is gone or breaks the rules.
async fn open(incoming: &mut Incoming, outgoing: &mut Outgoing, remote: &Remote) -> Option<Opened> {
    let Streams { stdin, stdout, stderr, tty } = remote.streams;
    let wanted = [
        (Kind::Error, true),
        (Kind::Stdin, stdin),
        (Kind::Stdout, stdout),
        (Kind::Stderr, stderr && !tty),
        (Kind::Resize, tty && remote.resizable),
    ];
    let mut opened = Opened { ids: Ids::new(), inflate: Inflate::new(), last: 0 };
    while !wanted.iter().all(|(kind, wanted)| !wanted || opened.ids.contains_key(kind)) {
        match incoming.next().await {
            Ok(Some(Frame::Open { stream, block, .. })) => {
                let headers = opened.inflate.block(&block).ok()?;
                let kind = Kind::of(&headers).filter(|kind| wanted.contains(&(*kind, true)))?;
                let first = opened.last == 0;
                opened.last = stream;
                opened.ids.insert(kind, stream);
                if !outgoing.send(reply(stream, first)).await {
                    return None;
                }
            }
            Ok(Some(Frame::Ping { id })) => {
                outgoing.send(control(PING, &id.to_be_bytes())).await;
            }
            Ok(Some(Frame::Other)) => {}
            // Data before all streams are there comes from no client; what it is for cannot be told yet.
            Ok(Some(Frame::Data { .. } | Frame::Reset { .. } | Frame::GoAway) | None) | Err(_) => return None,
        }
    }
    Some(opened)
}

/// Until the process has ended and said all, or the client is gone (None).
async fn carry(incoming: &mut Incoming, outgoing: &mut Outgoing, opened: Opened, session: ExecSession) -> Option<Exit> {
    let ExecSession { stdin, stdout, stderr, resize, exit } = session;
    let (answers, queue) = mpsc::channel(QUEUE);
    let ids = opened.ids.clone();
    tokio::select! {
        () = read(incoming, opened, stdin, resize, answers) => None,
        exit = write(outgoing, &ids, stdout, stderr, queue, exit) => exit,
    }
}

async fn read(
    incoming: &mut Incoming,
    opened: Opened,
    mut stdin: Option<mpsc::Sender<Bytes>>,
    resize: Option<mpsc::Sender<TerminalSize>>,
    answers: mpsc::Sender<Bytes>,
) {
    let Opened { ids, mut inflate, .. } = opened;
    let is = |stream: u32, kind: Kind| ids.get(&kind) == Some(&stream);
    let mut sizes = Vec::new();
    loop {
        let frame = match incoming.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "a client broke the SPDY protocol");
                return;
            }
        };
        match frame {
            Frame::Data { stream, fin, data } if is(stream, Kind::Stdin) => {
                if let Some(sender) = &stdin
                    && !data.is_empty()
                    && sender.send(data).await.is_err()
                {
                    stdin = None;
                }
                if fin {
                    stdin = None;
                }
            }
            Frame::Data { stream, data, .. } if is(stream, Kind::Resize) => {
                sizes.extend_from_slice(&data);
                while let Some(end) = sizes.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = sizes.drain(..=end).collect();
                    if let (Some(resize), Some(size)) = (&resize, terminal_size(&line)) {
                        // Fails when the process has ended, which the writing side tells.
                        let _ = resize.send(size).await;
                    }
                }
                if sizes.len() > RESIZE_LIMIT {
                    return;
                }
            }
            Frame::Reset { stream } if is(stream, Kind::Stdin) => stdin = None,
            Frame::Ping { id } => drop(answers.send(control(PING, &id.to_be_bytes())).await),
            Frame::Open { stream, block, .. } => {
                // Read all the same: the next block is compressed with what this one said.
                if inflate.block(&block).is_err() {
                    return;
                }
                drop(answers.send(reset(stream, REFUSED)).await);
            }
            Frame::GoAway => return,
            Frame::Data { .. } | Frame::Reset { .. } | Frame::Other => {}
        }
    }
}

async fn write(
    outgoing: &mut Outgoing,
    ids: &Ids,
    mut stdout: Option<mpsc::Receiver<Bytes>>,
    mut stderr: Option<mpsc::Receiver<Bytes>>,
    mut answers: mpsc::Receiver<Bytes>,
    exit: oneshot::Receiver<Exit>,
) -> Option<Exit> {
    let id = |kind: Kind| ids.get(&kind).copied().unwrap_or_default();
    while stdout.is_some() || stderr.is_some() {
        let frame = tokio::select! {
            chunk = receive(&mut stdout) => {
                if chunk.is_none() {
                    stdout = None;
                }
                data(id(Kind::Stdout), chunk.is_none(), &chunk.unwrap_or_default())
            }
            chunk = receive(&mut stderr) => {
                if chunk.is_none() {
                    stderr = None;
                }
                data(id(Kind::Stderr), chunk.is_none(), &chunk.unwrap_or_default())
            }
            Some(answer) = answers.recv() => answer,
        };
        if !outgoing.send(frame).await {
            return None;
        }
    }
    Some(exit.await.unwrap_or_else(|_| Exit::Failed("the container's process was lost".into())))
}
