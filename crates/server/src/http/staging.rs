//! Image files on their way in.
//!
//! ```text
//!  PUT ──▶ .staging/<image>/<part>.<random>.upload ──synced, hashed──▶ .staging/<image>/<part> (+ .json)
//!  POST ─▶ linked to <image>/<part> ──committed──▶ staging emptied
//!                                   └─refused───▶ links removed
//! ```
//! Files are linked, not moved, so that a server that dies between the two can be asked again.

use super::problem::Failure;
use crate::config::Limits;
use crate::datadir::{DataDir, write_whole};
use crate::secret::{hex, token_id};
use drover_api::problem::{Problem, ProblemType};
use drover_api::v1::{ImagePart, StagedFile};
use drover_model::ImageId;
use futures_util::{Stream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::fs;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

/// Written to the file at once, so that hashing and writing large pieces take turns.
const BUFFER_BYTES: usize = 1 << 20;

pub struct Staging {
    staging: PathBuf,
    images: PathBuf,
    file_bytes_max: u64,
    idle: Duration,
    /// Held while files change their place.
    moving: Mutex<()>,
}

impl Staging {
    pub fn new(dirs: &DataDir, limits: &Limits) -> Self {
        let staging = Self {
            staging: dirs.staging(),
            images: dirs.images(),
            file_bytes_max: limits.image_file_bytes_max,
            idle: Duration::from_secs(limits.upload_idle_timeout_s),
            moving: Mutex::new(()),
        };
        staging.forget_unfinished();
        staging
    }

    /// Uploads that an earlier run did not finish.
    fn forget_unfinished(&self) {
        let Ok(images) = std::fs::read_dir(&self.staging) else { return };
        for file in images.flatten().filter_map(|image| std::fs::read_dir(image.path()).ok()).flatten().flatten() {
            if file.file_name().to_string_lossy().ends_with(".upload")
                && let Err(error) = std::fs::remove_file(file.path())
            {
                tracing::warn!(path = %file.path().display(), %error, "an unfinished upload can't be removed");
            }
        }
    }

    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.moving.lock().await
    }

    fn dir(&self, image: &ImageId) -> PathBuf {
        self.staging.join(image.as_str())
    }

    pub fn image_dir(&self, image: &ImageId) -> PathBuf {
        self.images.join(image.as_str())
    }

    /// Takes a file in, durably. `announced`: its length, if the client said it.
    pub async fn take<E: std::fmt::Display>(
        &self,
        image: &ImageId,
        part: ImagePart,
        announced: Option<u64>,
        body: impl Stream<Item = Result<bytes::Bytes, E>> + Unpin,
    ) -> Result<StagedFile, Failure> {
        if announced.is_some_and(|length| length > self.file_bytes_max) {
            return Err(self.too_large());
        }
        let dir = self.dir(image);
        fs::create_dir_all(&dir).await.map_err(|error| failed(&dir, &error))?;
        let temporary = dir.join(format!("{part}.{}.upload", token_id("u")));
        let written = self.write(&temporary, body).await;
        let (size_bytes, sha256) = match written {
            Ok(written) => written,
            Err(failure) => {
                discard(&temporary).await;
                return Err(failure);
            }
        };
        let staged = StagedFile { image: image.clone(), part, size_bytes, sha256 };
        let _turn = self.turn().await;
        let (file, note) = (dir.join(part.as_str()), dir.join(format!("{part}.json")));
        // The note goes first and comes last: a file with a note is the file the note speaks of.
        discard(&note).await;
        fs::rename(&temporary, &file).await.map_err(|error| failed(&file, &error))?;
        let text = serde_json::to_vec(&staged)
            .map_err(|error| Failure::new(ProblemType::Internal, format!("the upload can't be noted: {error}")))?;
        write_whole(&note, &text, 0o644)
            .map_err(|error| Failure::new(ProblemType::Internal, crate::shell::chain(&error)))?;
        Ok(staged)
    }

    async fn write<E: std::fmt::Display>(
        &self,
        path: &Path,
        mut body: impl Stream<Item = Result<bytes::Bytes, E>> + Unpin,
    ) -> Result<(u64, String), Failure> {
        let file = fs::File::create_new(path).await.map_err(|error| failed(path, &error))?;
        let mut file = tokio::io::BufWriter::with_capacity(BUFFER_BYTES, file);
        let (mut size, mut hash) = (0_u64, Sha256::new());
        loop {
            let chunk = match timeout(self.idle, body.next()).await {
                Err(_) => {
                    let detail = format!("nothing came for {} s; upload the file again", self.idle.as_secs());
                    return Err(Failure::new(ProblemType::TimedOut, detail));
                }
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    let detail = format!("the upload broke off ({error}); upload the file again");
                    return Err(Failure::new(ProblemType::Malformed, detail));
                }
                Ok(Some(Ok(chunk))) => chunk,
            };
            size += chunk.len() as u64;
            if size > self.file_bytes_max {
                return Err(self.too_large());
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(|error| failed(path, &error))?;
        }
        if size == 0 {
            return Err(Failure::new(ProblemType::Invalid, "the file is empty: send its bytes as the body"));
        }
        file.flush().await.map_err(|error| failed(path, &error))?;
        file.get_ref().sync_all().await.map_err(|error| failed(path, &error))?;
        Ok((size, hex(&hash.finalize())))
    }

    fn too_large(&self) -> Failure {
        let detail =
            format!("an image file may have {} bytes at most (limits.image_file_bytes_max)", self.file_bytes_max);
        Failure::new(ProblemType::TooLarge, detail)
    }

    /// What was staged for this part.
    pub async fn staged(&self, image: &ImageId, part: ImagePart) -> Result<StagedFile, Failure> {
        let missing = || {
            let detail = format!("{part} was not uploaded: PUT /v1/images/{image}/files/{part} first");
            Failure::invalid("files", detail)
        };
        let note = fs::read(self.dir(image).join(format!("{part}.json"))).await.map_err(|_| missing())?;
        let staged: StagedFile = serde_json::from_slice(&note).map_err(|_| missing())?;
        let size = fs::metadata(self.dir(image).join(part.as_str())).await.map_err(|_| missing())?.len();
        if size == staged.size_bytes { Ok(staged) } else { Err(missing()) }
    }

    /// Puts the staged files where agents look for them. What lay there is of an image that was never registered.
    pub async fn publish(&self, image: &ImageId, parts: &[ImagePart]) -> Result<(), Failure> {
        let to = self.image_dir(image);
        self.withdraw(image).await;
        fs::create_dir_all(&to).await.map_err(|error| failed(&to, &error))?;
        for part in parts {
            let (from, to) = (self.dir(image).join(part.as_str()), to.join(part.as_str()));
            fs::hard_link(&from, &to).await.map_err(|error| failed(&to, &error))?;
        }
        for dir in [&to, &self.images] {
            let synced = async { fs::File::open(dir).await?.sync_all().await };
            synced.await.map_err(|error| failed(dir, &error))?;
        }
        Ok(())
    }

    /// Removes an image's files: it was refused, or removed.
    pub async fn withdraw(&self, image: &ImageId) {
        remove_dir(&self.image_dir(image)).await;
    }

    /// The image is registered: what was staged for it has served.
    pub async fn forget(&self, image: &ImageId) {
        remove_dir(&self.dir(image)).await;
    }
}

async fn remove_dir(dir: &Path) {
    match fs::remove_dir_all(dir).await {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %dir.display(), %error, "can't be removed; remove it by hand"),
    }
}

async fn discard(path: &Path) {
    match fs::remove_file(path).await {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "can't be removed; remove it by hand"),
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    let path = path.display();
    Failure(match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Problem::new(
            ProblemType::NoRoom,
            format!("the shared directory is full ({path}): free space and try again"),
        ),
        _ => Problem::new(ProblemType::Internal, format!("{path} can't be written: {error}")),
    })
}
