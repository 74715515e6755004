//! The files of a container: looking, copying in and out, comparing, exporting. Whether it
//! runs is no matter, and neither is what separates it.

use std::io::{self, Read};

use bulkhead_files::protocol::{self, Answer, MAX_FRAME, MAX_MESSAGE, frame_length};
use bulkhead_files::{Change, FilesError, FilesErrorKind, PathStat, Reply, Request, Usage};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Handle;
use super::rest::FilesAccess;
use crate::error::{ApiError, ApiResult};

/// Most bytes of an archive that are held at a time.
const PIECE: usize = 256 << 10;
/// Most changes that are listed; each is a path.
const MAX_CHANGES: usize = 4 << 20;

/// An archive to be unpacked in a container.
#[derive(Debug, Clone, Default)]
pub struct WriteArchive {
    /// The directory.
    pub path: String,
    /// Whether a directory may not replace something else, nor the reverse.
    pub no_overwrite_dir_non_dir: bool,
    /// Whether everything is to be the container's user's.
    pub copy_owner: bool,
}

/// What a container answers, byte by byte; fails where the container did.
#[derive(Debug)]
pub struct ArchiveStream {
    stream: UnixStream,
    /// Of the current frame.
    left: usize,
    over: bool,
    _access: FilesAccess,
}

impl ArchiveStream {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.over {
            return None;
        }
        let piece = self.piece().await;
        self.over = !matches!(piece, Ok(Some(_)));
        piece.transpose()
    }

    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            let mut prefix = [0; 4];
            self.stream.read_exact(&mut prefix).await?;
            self.left = frame_length(prefix)?;
        }
        if self.left == 0 {
            let outcome: Result<(), FilesError> = receive(&mut self.stream).await?;
            return outcome.map(|()| None).map_err(io::Error::other);
        }
        let most = self.left.min(PIECE);
        let mut bytes = BytesMut::with_capacity(most);
        let limit = u64::try_from(most).unwrap_or(u64::MAX);
        let read = (&mut self.stream).take(limit).read_buf(&mut bytes).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        Ok(Some(bytes.freeze()))
    }

    /// As a body.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        futures::stream::unfold(self, |mut stream| async move {
            let piece = stream.next().await?;
            Some((piece, stream))
        })
    }
}

/// The writable layer as the tar of an image's layer. Blocks.
#[derive(Debug)]
pub struct LayerTar {
    answer: Answer<std::os::unix::net::UnixStream>,
    _access: FilesAccess,
}

impl Read for LayerTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.answer.read(buffer)
    }
}

async fn receive<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the container's answer is too long",
        ));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn lost(error: io::Error) -> ApiError {
    ApiError::internal("the container's files", &error)
}

impl Handle {
    /// An error about a path, in Docker's words.
    fn refused(&self, path: &str, error: &FilesError) -> ApiError {
        match error.kind {
            FilesErrorKind::NotFound => ApiError::not_found(format!(
                "Could not find the file {path} in container {}",
                self.id
            )),
            FilesErrorKind::Invalid => ApiError::bad_request(&error.message),
            FilesErrorKind::ReadOnly => {
                ApiError::new(axum::http::StatusCode::FORBIDDEN, &error.message)
            }
            FilesErrorKind::Unsupported => ApiError::not_implemented(&error.message),
            FilesErrorKind::Other => ApiError::new(
                axum::http::StatusCode::INTERNAL_SERVER_ERROR,
                &error.message,
            ),
        }
    }

    /// Asks, and reads the reply; the connection is then at the first frame.
    async fn converse(
        &self,
        request: &Request,
        path: &str,
    ) -> ApiResult<(Reply, UnixStream, FilesAccess)> {
        let access = self.open_files().await?;
        let mut stream = access.task().files().await.map_err(lost)?;
        let message =
            protocol::encode(request).map_err(|_| ApiError::bad_request("the path is too long"))?;
        stream.write_all(&message).await.map_err(lost)?;
        let reply: Result<Reply, FilesError> = receive(&mut stream).await.map_err(lost)?;
        let reply = reply.map_err(|error| self.refused(path, &error))?;
        Ok((reply, stream, access))
    }

    /// What a path is.
    ///
    /// # Errors
    /// 404 for one that is not there.
    pub async fn stat_path(&self, path: &str) -> ApiResult<PathStat> {
        let request = Request::Stat {
            path: path.to_owned(),
        };
        let (reply, _, _) = self.converse(&request, path).await?;
        path_stat(reply)
    }

    /// A path as an archive.
    ///
    /// # Errors
    /// 404 for one that is not there.
    pub async fn read_archive(&self, path: &str) -> ApiResult<(PathStat, ArchiveStream)> {
        let request = Request::Read {
            path: path.to_owned(),
        };
        let (reply, stream, access) = self.converse(&request, path).await?;
        let stat = path_stat(reply)?;
        access.announce(self, "archive-path").await;
        Ok((stat, archive(stream, access)))
    }

    /// Unpacks an archive, plain, into a directory of the container.
    ///
    /// # Errors
    /// 404 for a directory that is not there, 400 for what is none and for an archive that
    /// cannot be unpacked, 403 where nothing may be written.
    pub async fn write_archive(
        &self,
        wanted: WriteArchive,
        body: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> ApiResult<()> {
        let user = self.view().record.config.user.clone().unwrap_or_default();
        let request = Request::Write {
            path: wanted.path.clone(),
            no_overwrite_dir_non_dir: wanted.no_overwrite_dir_non_dir,
            owner: Some(user).filter(|user| wanted.copy_owner && !user.is_empty()),
        };
        let mut body = std::pin::pin!(body);
        let asked = self.converse(&request, &wanted.path).await;
        let (_, stream, access) = match asked {
            Ok(asked) => asked,
            Err(error) => {
                // Clients look at the answer only when they have written everything.
                while let Some(Ok(_)) = body.next().await {}
                return Err(error);
            }
        };
        let (mut reader, mut writer) = stream.into_split();
        let outcome = {
            let sending = async {
                while let Some(piece) = body.next().await {
                    for part in piece?.chunks(MAX_FRAME) {
                        let length = u32::try_from(part.len()).map_err(io::Error::other)?;
                        writer.write_all(&length.to_be_bytes()).await?;
                        writer.write_all(part).await?;
                    }
                }
                writer.write_all(&[0; 4]).await
            };
            let outcome = async {
                let end = reader.read_u32().await?;
                if end != 0 {
                    return Err(io::Error::other("the container's answer is of no use"));
                }
                receive::<Result<(), FilesError>>(&mut reader).await
            };
            let mut sending = std::pin::pin!(sending);
            let mut outcome = std::pin::pin!(outcome);
            tokio::select! {
                biased;
                outcome = &mut outcome => outcome,
                sent = &mut sending => match sent {
                    Ok(()) => outcome.await,
                    // Either side may have failed; the container's word comes first.
                    Err(error) => match futures::FutureExt::now_or_never(&mut outcome) {
                        Some(Ok(outcome)) => Ok(outcome),
                        _ => Err(error),
                    },
                },
            }
        };
        match outcome.map_err(lost)? {
            Ok(()) => {
                access.announce(self, "extract-to-dir").await;
                Ok(())
            }
            Err(error) => {
                while let Some(Ok(_)) = body.next().await {}
                Err(match error.kind {
                    // Something in the archive, not the directory.
                    FilesErrorKind::NotFound => ApiError::bad_request(error.message),
                    _ => self.refused(&wanted.path, &error),
                })
            }
        }
    }

    /// What differs from the image.
    ///
    /// # Errors
    /// What the container says.
    pub async fn changes(&self) -> ApiResult<Vec<Change>> {
        let (_, stream, access) = self.converse(&Request::Changes, "").await?;
        let mut pieces = archive(stream, access);
        let mut pending = Vec::new();
        let mut changes = Vec::new();
        while let Some(piece) = pieces.next().await {
            pending.extend_from_slice(&piece.map_err(lost)?);
            let end = pending.iter().rposition(|byte| *byte == b'\n');
            let rest = pending.split_off(end.map_or(0, |end| end + 1));
            let lines = std::mem::replace(&mut pending, rest);
            for line in lines.split(|byte| *byte == b'\n') {
                if !line.is_empty() {
                    let change =
                        serde_json::from_slice(line).map_err(|error| lost(error.into()))?;
                    changes.push(change);
                }
            }
            if changes.len() > MAX_CHANGES || pending.len() > MAX_FRAME {
                return Err(ApiError::new(
                    axum::http::StatusCode::INTERNAL_SERVER_ERROR,
                    format!("more than {MAX_CHANGES} changes are not listed"),
                ));
            }
        }
        Ok(changes)
    }

    /// Everything but what is mounted over the root, as an archive.
    ///
    /// # Errors
    /// What the container says.
    pub async fn export(&self) -> ApiResult<ArchiveStream> {
        let (_, stream, access) = self.converse(&Request::Export, "").await?;
        access.announce(self, "export").await;
        Ok(archive(stream, access))
    }

    /// What the changes take.
    ///
    /// # Errors
    /// What the container says.
    pub async fn usage(&self) -> ApiResult<Usage> {
        match self.converse(&Request::Usage, "").await?.0 {
            Reply::Usage(usage) => Ok(usage),
            _ => Err(unexpected()),
        }
    }

    /// The changes as a layer: whiteouts for what is gone, owners, modes, attributes, links and
    /// devices as they are, names in order, times in whole seconds and not after `newest`.
    /// A container at rest neither starts nor goes until it is dropped.
    ///
    /// # Errors
    /// What the container says. An error while it is read means that it is not whole.
    pub async fn layer_tar(
        &self,
        newest: Option<i64>,
        mount_points: Vec<String>,
    ) -> ApiResult<LayerTar> {
        let access = self.open_files().await?;
        let stream = access.task().files().await.map_err(lost)?;
        let asked = async {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            let request = Request::Layer {
                newest,
                mount_points,
            };
            let asking = move || Answer::ask(stream, &request);
            tokio::task::spawn_blocking(asking)
                .await
                .map_err(io::Error::other)?
        };
        let (_, answer) = asked
            .await
            .map_err(lost)?
            .map_err(|error| self.refused("", &error))?;
        Ok(LayerTar {
            answer,
            _access: access,
        })
    }
}

fn archive(stream: UnixStream, access: FilesAccess) -> ArchiveStream {
    ArchiveStream {
        stream,
        left: 0,
        over: false,
        _access: access,
    }
}

fn path_stat(reply: Reply) -> ApiResult<PathStat> {
    match reply {
        Reply::Stat(stat) => Ok(stat),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> ApiError {
    lost(io::Error::other("an answer to another question came"))
}
