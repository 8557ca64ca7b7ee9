//! The guest runs at the destination; the rest of its memory is sent from here.
//!
//! Nothing that happens from here on lets the guest run at the source again: QEMU is watched for it and stopped. A
//! connection that breaks leaves the memory in both QEMUs, which wait to be connected anew.

use super::failure::{FailureCause, OutgoingFailed, RecoverError, RecoverFailed};
use super::source::{Revive, Source};
use super::strategy::{Adjust, post_copy_limit, set_parameters};
use super::switch_over::HandedOver;
use super::wire::{MigrateInfo, Status};
use super::{POLL, POST_COPY_SILENCE_MAX, PROGRESS_EVERY, Progress, RECOVER_MAX};
use crate::command_line::migration_uri;
use crate::qmp::QmpError;
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, timeout};

/// Longest wait for a connection to a destination that listens; long enough for a lost attempt to be repeated twice.
const CONNECT_AGAIN_MAX: Duration = Duration::from_secs(4);

/// Memory follows the guest.
pub struct PostCopy {
    source: Box<Source>,
    committed_at: Option<SystemTime>,
}

/// The connection broke; the memory is kept.
#[derive(Debug)]
pub struct Stalled {
    post_copy: PostCopy,
    why: String,
}

/// A post-copy that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum PostCopyBroken {
    #[error("the post-copy lost its connection ({}): connect both ends anew", .0.why)]
    Stalled(Stalled),
    /// The guest does not run here, and its memory here is not whole.
    #[error(transparent)]
    Failed(OutgoingFailed),
}

impl std::fmt::Debug for PostCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostCopy").field("machine", &self.source.machine).finish_non_exhaustive()
    }
}

impl PostCopy {
    pub(super) fn new(source: Source, committed_at: Option<SystemTime>) -> Self {
        Self { source: Box::new(source), committed_at }
    }

    pub fn adjust(&self) -> Adjust {
        Adjust(self.source.pace.clone())
    }

    /// Waits until the last page was sent. Progress is told about every half second.
    pub async fn run(mut self, mut on_progress: impl FnMut(Progress)) -> Result<HandedOver, PostCopyBroken> {
        let mut tell_at = Instant::now();
        let mut transferred = 0;
        let mut flowed_at = Instant::now();
        loop {
            match self.look().await {
                Ok(info) => {
                    let progress = info.progress();
                    if progress.transferred != transferred || self.source.pace.borrow().paused {
                        (transferred, flowed_at) = (progress.transferred, Instant::now());
                    }
                    if Instant::now() >= tell_at {
                        on_progress(progress);
                        tell_at = Instant::now() + PROGRESS_EVERY;
                    }
                    match info.status {
                        Status::PostcopyActive if flowed_at.elapsed() >= POST_COPY_SILENCE_MAX => self.pause().await,
                        Status::PostcopyActive | Status::PostcopyRecover | Status::PreSwitchover | Status::Device => {}
                        Status::PostcopyPaused => {
                            let why = info.error();
                            return Err(PostCopyBroken::Stalled(Stalled { post_copy: self, why }));
                        }
                        Status::Completed if self.source.is_at_rest().await => {
                            on_progress(progress);
                            return Ok(HandedOver::new(&self.source, &info, self.committed_at));
                        }
                        Status::Completed => {}
                        ref status => {
                            let cause = match status {
                                Status::Failed => FailureCause::Stream { desc: info.error() },
                                _ => FailureCause::Foreign { status: status.to_string() },
                            };
                            return Err(PostCopyBroken::Failed(self.source.settled(cause, Revive::Forbid).await));
                        }
                    }
                }
                Err(error @ QmpError::Closed { .. }) => return Err(PostCopyBroken::Failed(self.source.lost(error))),
                // Asked again: there is nothing to unwind to.
                Err(error) => tracing::warn!(%error, "cannot see how the post-copy is doing"),
            }
            tokio::select! {
                // Cannot end: the other half is in the source.
                _ = self.source.pace_changes.changed() => self.tell_pace().await,
                _ = timeout(POLL, self.source.timeline.next()) => {}
            }
        }
    }

    async fn look(&mut self) -> Result<MigrateInfo, QmpError> {
        self.source.keep_still().await?;
        self.source.look().await
    }

    async fn tell_pace(&self) {
        let limit = post_copy_limit(*self.source.pace.borrow());
        if let Err(error) = set_parameters(&self.source.machine, vec![("max-postcopy-bandwidth", json!(limit))]).await {
            tracing::warn!(%error, "cannot change the pace of the post-copy");
        }
    }

    /// Breaks a connection that nothing comes through, so that another can take its place.
    async fn pause(&self) {
        if let Err(error) = self.source.machine.qmp().execute("migrate-pause", json!({})).await {
            tracing::warn!(%error, "cannot break the connection of a silent post-copy");
        }
    }
}

impl Stalled {
    pub(super) fn new(post_copy: PostCopy, why: String) -> Self {
        Self { post_copy, why }
    }

    /// QEMU's words, for people.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Connects to a destination that listens anew, and goes on. After a failure the post-copy is stalled as before.
    pub async fn recover(mut self, destination: SocketAddr) -> Result<PostCopy, RecoverFailed> {
        match self.reconnect(destination).await {
            Ok(()) => Ok(self.post_copy),
            Err(cause) => Err(RecoverFailed { stalled: self, cause }),
        }
    }

    async fn reconnect(&mut self, destination: SocketAddr) -> Result<(), RecoverError> {
        let post_copy = &mut self.post_copy;
        post_copy.source.timeline.recovering = false;
        let uri = migration_uri(destination.ip(), destination.port());
        post_copy.source.machine.qmp().execute("migrate", json!({ "uri": uri, "resume": true })).await?;
        post_copy.tell_pace().await;
        let give_up_at = Instant::now() + RECOVER_MAX;
        let connect_by = Instant::now() + CONNECT_AGAIN_MAX;
        loop {
            let info = post_copy.look().await?;
            match info.status {
                Status::PostcopyActive | Status::Completed => return Ok(()),
                // QEMU is so until it has connected, and stays so if it can't, which it says to nobody but its log.
                Status::PostcopyPaused if post_copy.source.timeline.recovering || Instant::now() >= connect_by => {
                    return Err(RecoverError::NotReached { desc: info.error() });
                }
                _ => {}
            }
            if Instant::now() >= give_up_at {
                return Err(RecoverError::TookTooLong);
            }
            let _ = timeout(POLL, post_copy.source.timeline.next()).await;
        }
    }
}
